"""The local loss against its formula in NumPy and finite differences."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmclip_jax.objectives import local

Array = np.ndarray


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def unit(rng: np.random.Generator, *shape: int) -> Array:
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def local_reference(v: Array, u: Array, ids: Array, affirmed: Array, attend: float, temperature: float) -> Any:
    """(loss, accuracy) with loops over images and tokens."""
    tokens = [(row, slot) for row in range(len(ids)) for slot in range(ids.shape[1]) if ids[row, slot] >= 0]
    logits, positive = np.zeros((len(v), len(tokens))), np.zeros((len(v), len(tokens)))
    for row in range(len(v)):
        for c, place in enumerate(tokens):
            seen = v[row] @ u[place]
            attention = np.exp(seen / attend) / np.exp(seen / attend).sum()
            logits[row, c] = attention @ seen / temperature
            positive[row, c] = ids[place] in affirmed[row]
    affirming = np.any(affirmed >= 0, axis=1)  # the others have no token of their own, but are negatives of each
    hits = positive[np.arange(len(v)), logits.argmax(axis=1)][affirming].mean()
    losses = []
    for matrix, match in ((logits, positive), (logits.T, positive.T)):
        has = match.any(axis=1)
        target = match[has] / match[has].sum(axis=1, keepdims=True)
        losses.append(-(target * log_softmax(matrix)[has]).sum(axis=1).mean())
    return sum(losses) / 2, hits


def local_case(seed: int = 5) -> tuple[Array, Array, Array, Array]:
    """(patches, token, token_id, affirmed) of 7 rows, 5 patches, 3 tokens, 11 numbers: row 2 affirms nothing."""
    rng = np.random.default_rng(seed)
    affirmed = np.where(rng.random((7, 13)) < 0.4, rng.integers(0, 17, (7, 13)), -1)
    affirmed[2] = -1
    ids = np.full((7, 3), -1)
    for row in range(7):
        known = affirmed[row][affirmed[row] >= 0][: 2 if row == 4 else 3]
        ids[row, : len(known)] = known
    return unit(rng, 7, 5, 11), unit(rng, 7, 3, 11), ids, affirmed


def call_local(v: Array, u: Array, ids: Array, affirmed: Array) -> tuple[float, float]:
    loss, metrics = local.local_loss(
        *map(jnp.asarray, (np.float32(v), np.float32(u), ids, affirmed)), attention_temperature=0.3, temperature=0.2
    )
    return float(loss), float(metrics["accuracy"])


def test_the_local_loss_is_its_formula() -> None:
    v, u, ids, affirmed = local_case()
    assert np.sum(ids >= 0) == 17
    assert call_local(v, u, ids, affirmed) == pytest.approx(local_reference(v, u, ids, affirmed, 0.3, 0.2), abs=1e-5)


def test_the_local_loss_without_a_token_is_zero() -> None:
    v, u, ids, affirmed = local_case()
    assert call_local(v, u, np.full_like(ids, -1), np.full_like(affirmed, -1)) == (0.0, 0.0)


def test_the_gradient_of_the_local_loss_is_a_finite_difference() -> None:
    v, u, ids, affirmed = local_case()

    def loss(v: jax.Array, u: jax.Array) -> jax.Array:
        options = {"attention_temperature": 0.3, "temperature": 0.2}
        return local.local_loss(v, u, jnp.asarray(ids), jnp.asarray(affirmed), **options)[0]

    gradients = jax.grad(loss, argnums=(0, 1))(jnp.asarray(v, jnp.float32), jnp.asarray(u, jnp.float32))
    for number, place in ((0, (3, 1, 4)), (0, (2, 0, 0)), (1, (0, 2, 7)), (1, (4, 2, 1))):
        ends = []
        for step in (1e-5, -1e-5):
            moved = (v.copy(), u.copy())
            moved[number][place] += step
            ends.append(local_reference(moved[0], moved[1], ids, affirmed, 0.3, 0.2)[0])
        expected = (ends[0] - ends[1]) / 2e-5
        assert float(gradients[number][place]) == pytest.approx(expected, abs=2e-5)
