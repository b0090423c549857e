"""Normalised pixels and the error of restored ones, against formulas in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmclip_jax.objectives import attmim

Array = np.ndarray


def normalized(patches: Array) -> Array:
    mean, variance = patches.mean(axis=-1, keepdims=True), patches.var(axis=-1, keepdims=True)
    return (patches - mean) / np.sqrt(variance + (2 / 255) ** 2)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**31 - 1), contrast=st.sampled_from([0.0, 0.004, 0.1, 1.0]))
def test_pixels_are_normalised_patch_by_patch(seed: int, contrast: float) -> None:
    patches = 0.3 + contrast * (np.random.default_rng(seed).random((3, 5, 49)) - 0.3)
    got = attmim.normalized_pixels(jnp.asarray(patches, jnp.float32))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, normalized(patches), atol=3e-4)


def test_noise_of_one_grey_level_is_not_blown_up_to_unit_variance() -> None:
    flat = np.full((1, 1, 64), 200 / 255)
    noisy = flat.copy()
    noisy[..., ::2] += 1 / 255
    assert np.abs(attmim.normalized_pixels(jnp.asarray(flat, jnp.float32))).max() < 1e-3
    # Deviation half a grey level against a floor of two.
    assert np.std(attmim.normalized_pixels(jnp.asarray(noisy, jnp.float32))) == pytest.approx(
        0.5 / np.hypot(0.5, 2), rel=1e-3
    )


def test_reconstruction_error_is_the_mean_square_over_the_masked_patches() -> None:
    rng = np.random.default_rng(0)
    patches, predicted = rng.random((3, 13, 49)), rng.normal(size=(3, 5, 49))
    masked = np.sort(np.stack([rng.permutation(13)[:5] for _ in range(3)]), axis=1).astype(np.int32)
    expected = [np.mean((predicted[b] - normalized(patches[b, masked[b]])) ** 2) for b in range(3)]
    got = attmim.reconstruction_error(
        jnp.asarray(predicted, jnp.float32), jnp.asarray(patches, jnp.float32), jnp.asarray(masked)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5)
