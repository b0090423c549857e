"""What each decoder may look at, and what it may not."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mmclip_jax.models.decoders import ImageDecoder, TextDecoder

Array = np.ndarray
ROWS, PATCHES, LENGTH, IMAGE_WIDTH, TEXT_WIDTH = 2, 9, 7, 10, 11
MASKED = np.array([[0, 4, 5], [2, 3, 8]], np.int32)
VALID = np.arange(LENGTH)[None] < np.array([[5], [7]])


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def hidden(masked: Array = MASKED) -> Array:
    return np.stack([np.isin(np.arange(PATCHES), row) for row in masked])


def compiled(module: Any, *arguments: Any) -> Callable[..., Array]:
    shapes = jax.eval_shape(module.init, jax.random.key(0), *arguments)
    rng = np.random.default_rng(3)
    variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), x.dtype), shapes)
    function = tiny.jit(module.apply)
    return lambda *arguments: np.asarray(function(variables, *arguments))


def image_decoder(**options: Any) -> tuple[Callable[..., Array], list[Array]]:
    module = ImageDecoder(patch_pixels=13, width=8, depth=2, heads=2, mlp_dim=12, **options)
    arguments = [
        normal(ROWS, PATCHES, IMAGE_WIDTH),
        hidden(),
        MASKED,
        normal(ROWS, PATCHES, TEXT_WIDTH, seed=1),
        normal(ROWS, LENGTH, TEXT_WIDTH, seed=2),
        VALID,
    ]
    return compiled(module, *arguments), arguments


def text_decoder(**options: Any) -> tuple[Callable[..., Array], list[Array]]:
    module = TextDecoder(output_width=13, width=8, depth=2, heads=2, mlp_dim=12, **options)
    slots = np.array([[0, 2, 4], [6, 1, 5]], np.int32)
    arguments = [normal(ROWS, LENGTH, TEXT_WIDTH), VALID, normal(ROWS, PATCHES, IMAGE_WIDTH, seed=1), slots]
    return compiled(module, *arguments), arguments


def changed(arguments: list[Array], which: int, where: Array) -> list[Array]:
    """The arguments with rubbish in one of them, at the positions `where` bool [B,·]."""
    rubbish = 5.0 * normal(*arguments[which].shape, seed=9)
    other = np.where(where[:, :, None], rubbish, arguments[which])
    return [*arguments[:which], other, *arguments[which + 1 :]]


PATCH_FEATURES, ATTENDED, IMAGE_TEXT = 0, 3, 4


@pytest.mark.parametrize("which", [PATCH_FEATURES, ATTENDED])
def test_the_image_decoder_sees_features_and_attended_text_at_visible_positions_only(which: int) -> None:
    decode, arguments = image_decoder()
    expected = decode(*arguments)
    assert expected.shape == (ROWS, 3, 13)
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(decode(*changed(arguments, which, hidden())), expected)
    assert np.abs(decode(*changed(arguments, which, ~hidden())) - expected).max(axis=(1, 2)).min() > 1e-2


def test_the_image_decoder_sees_the_text_but_not_its_padding() -> None:
    decode, arguments = image_decoder()
    expected = decode(*arguments)
    np.testing.assert_array_equal(decode(*changed(arguments, IMAGE_TEXT, ~VALID)), expected)
    assert np.abs(decode(*changed(arguments, IMAGE_TEXT, VALID)) - expected).max(axis=(1, 2)).min() > 1e-2


def test_the_image_decoder_predicts_the_masked_positions_in_their_order() -> None:
    decode, arguments = image_decoder()
    expected = decode(*arguments)
    backwards = decode(*arguments[:2], MASKED[:, ::-1].copy(), *arguments[3:])
    np.testing.assert_allclose(backwards[:, ::-1], expected, atol=1e-5)
    # The same mask token everywhere: only the position tells the masked patches apart.
    assert np.abs(expected[:, 0] - expected[:, 1]).max() > 1e-2


def test_the_text_decoder_sees_the_image_and_not_the_padding() -> None:
    decode, arguments = text_decoder()
    expected = decode(*arguments)
    assert expected.shape == (ROWS, 3, 13)
    np.testing.assert_array_equal(decode(*changed(arguments, 0, ~VALID)), expected)
    everywhere = np.ones((ROWS, PATCHES), bool)
    assert np.abs(decode(*changed(arguments, 2, everywhere)) - expected).max(axis=(1, 2)).min() > 1e-2
    assert np.abs(decode(*changed(arguments, 0, VALID)) - expected).max(axis=(1, 2)).min() > 1e-2


def test_the_text_decoder_looks_both_ways_and_gathers_its_slots() -> None:
    decode, arguments = text_decoder()
    expected = decode(*arguments)
    backwards = decode(*arguments[:3], arguments[3][:, ::-1].copy())
    np.testing.assert_allclose(backwards[:, ::-1], expected, atol=1e-5)
    for place in (0, 4):
        only = np.zeros((ROWS, LENGTH), bool)
        only[:, place] = True
        assert np.abs(decode(*changed(arguments, 0, only)) - expected).max(axis=2).min() > 1e-4


@pytest.mark.parametrize("make", [image_decoder, text_decoder])
def test_bfloat16_decoders_answer_in_float32(make: Callable[..., Any]) -> None:
    exact, arguments = make()
    rough, _ = make(dtype=jnp.bfloat16)
    expected, got = exact(*arguments), rough(*arguments)
    assert got.dtype == np.float32
    assert not np.array_equal(got, expected)
    np.testing.assert_allclose(got, expected, atol=0.1 * np.abs(expected).max())
