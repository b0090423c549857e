"""Responses and attended text against NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmclip_jax.models import similarity

Array = np.ndarray


def response_reference(patches: Array, tokens: Array, weights: Array, temperature: float) -> Array:
    v = patches / np.linalg.norm(patches, axis=-1, keepdims=True)
    u = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    logits = np.einsum("bne,ble->bnl", v, u) / temperature
    softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax /= softmax.sum(axis=1, keepdims=True)
    return np.einsum("bnl,bl->bn", softmax, weights / weights.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_response_is_the_weighted_softmax_over_patches(temperature: float, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    patches = jnp.asarray(3 * rng.normal(size=(2, 13, 7)), dtype)
    tokens = jnp.asarray(0.1 * rng.normal(size=(2, 5, 7)), dtype)
    weights = rng.integers(0, 4, (2, 5)).astype(np.float32)
    weights[:, 0] = 2
    got = similarity.text_response(patches, tokens, jnp.asarray(weights), temperature)
    assert got.dtype == jnp.float32
    expected = response_reference(np.asarray(patches, np.float64), np.asarray(tokens, np.float64), weights, temperature)
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-7)
    np.testing.assert_allclose(np.sum(got, axis=1), 1.0, atol=1e-5)


def test_response_of_a_text_without_weights_is_zero_not_nan() -> None:
    got = similarity.text_response(jnp.ones((1, 5, 3)), jnp.ones((1, 2, 3)), jnp.zeros((1, 2)), 0.1)
    np.testing.assert_array_equal(got, np.zeros((1, 5)))


def test_normalising_a_zero_vector_gives_zero_and_a_finite_gradient() -> None:
    value, gradient = jax.value_and_grad(lambda x: similarity.normalize(x).sum())(jnp.zeros(3))
    assert float(value) == 0
    assert np.all(np.isfinite(gradient))


def test_attended_text_is_the_mean_of_the_valid_tokens_by_their_softmax() -> None:
    rng = np.random.default_rng(0)
    queries, keys, features = (
        rng.normal(size=shape).astype(np.float32) for shape in ((2, 7, 5), (2, 3, 5), (2, 3, 11))
    )
    valid = np.array([[True, True, False], [True, True, True]])
    got = similarity.attended_text(*map(jnp.asarray, (queries, keys, features, valid)))
    logits = np.einsum("bne,ble->bnl", np.float64(queries), keys) / np.sqrt(5)
    softmax = np.exp(logits) * valid[:, None]
    softmax /= softmax.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(got, np.einsum("bnl,bld->bnd", softmax, features), atol=1e-5)
