"""The image encoder: order of patches and pixels, position codes, visible subsets, the class token's place."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mmclip_jax.models.encoders.vit import ViT
from mmclip_jax.models.inputs import patchify, unpatchify
from mmclip_jax.models.transformer import sincos_positions

SIZES = {"patch_size": 3, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 11}


def encoder(**options: Any) -> tuple[Callable[..., Any], Any, jax.Array]:
    """The compiled encoder of 5x5 patches, random parameters, and images."""
    module = ViT(**SIZES, **options)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.random((2, 15, 15, 1)), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), x.dtype), shapes)
    return tiny.jit(module.apply), variables, images


def test_patches_go_row_by_row_and_so_do_their_pixels() -> None:
    images = np.random.default_rng(0).random((2, 6, 15, 2)).astype(np.float32)
    patches = patchify(jnp.asarray(images), 3)
    assert patches.shape == (2, 2 * 5, 3 * 3 * 2)
    for row in range(2):
        for column in range(5):
            cut = images[:, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
            np.testing.assert_array_equal(patches[:, 5 * row + column], cut.reshape(2, -1))


@pytest.mark.parametrize("channels", [1, 2])
def test_unpatchify_undoes_patchify(channels: int) -> None:
    images = np.random.default_rng(0).random((2, 15, 15, channels)).astype(np.float32)
    np.testing.assert_array_equal(unpatchify(patchify(jnp.asarray(images), 3), 3, channels), images)


def test_an_image_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="15x16"):
        patchify(jnp.zeros((1, 15, 16, 1)), 3)


def test_position_codes_are_sines_and_cosines_of_both_axes() -> None:
    side, width = 3, 20
    code = sincos_positions(side, width)
    frequencies = [10000 ** (-k / 5) for k in range(5)]
    for y in range(side):
        for x in range(side):
            expected = [f(place * w) for place in (y, x) for f in (np.sin, np.cos) for w in frequencies]
            np.testing.assert_allclose(code[side * y + x], expected, atol=1e-6)
    with pytest.raises(ValueError, match="6"):
        sincos_positions(side, 6)


def test_the_position_embedding_starts_at_the_code_and_is_a_parameter() -> None:
    module = ViT(**SIZES)
    params = tiny.jit(module.init)(jax.random.key(0), jnp.zeros((1, 15, 15, 1)))["params"]
    np.testing.assert_array_equal(params["position"], sincos_positions(5, 8))


@pytest.mark.parametrize("class_token", [False, True])
def test_the_class_token_is_never_one_of_the_patches(class_token: bool) -> None:
    apply, variables, images = encoder(class_token=class_token, return_attention=True)
    patches, token, attention = apply(variables, images)
    assert patches.shape == (2, 25, 8)
    assert (token is not None) == class_token
    assert attention.shape == (1, 2, 2, 25 + class_token, 25 + class_token)
    if class_token:
        # With the layers' outputs at zero only the residual is left: the token's row knows no image, the patches' rows
        # know no token.
        layers = variables["params"]["transformer"]["layers"]
        for part in (layers["self_attention"]["out"], layers["mlp_out"]):
            part["kernel"] = jnp.zeros_like(part["kernel"])
        patches, token, _ = apply(variables, images)
        np.testing.assert_array_equal(token[0], token[1])
        variables["params"]["class_token"] = -variables["params"]["class_token"]
        moved_patches, moved_token, _ = apply(variables, images)
        np.testing.assert_array_equal(moved_patches, patches)
        assert np.abs(moved_token - token).max() > 0.1
        assert np.abs(patches[0] - patches[1]).max() > 0.1


@pytest.mark.parametrize("class_token", [False, True])
def test_hidden_patches_have_no_influence_on_the_visible(class_token: bool) -> None:
    apply, variables, images = encoder(class_token=class_token)
    visible = jnp.asarray([[0, 7, 11, 24], [3, 4, 5, 19]])
    seen, token, _ = apply(variables, images, visible)
    assert seen.shape == (2, 4, 8)
    patches = np.array(patchify(images, 3))
    for row in range(2):
        patches[row, ~np.isin(np.arange(25), visible[row])] = 77.0
    other = unpatchify(jnp.asarray(patches), 3)
    np.testing.assert_array_equal(apply(variables, other, visible)[0], seen)
    assert np.abs(apply(variables, other)[0] - apply(variables, images)[0]).max() > 1e-2
    assert (token is None) != class_token


def test_all_patches_visible_is_the_whole_image_and_order_is_kept() -> None:
    apply, variables, images = encoder()
    whole = apply(variables, images)[0]
    everything = jnp.broadcast_to(jnp.arange(25)[None], (2, 25))
    np.testing.assert_allclose(apply(variables, images, everything)[0], whole, atol=1e-6)
    shuffled = apply(variables, images, everything[:, ::-1])[0]
    np.testing.assert_allclose(shuffled[:, ::-1], whole, atol=1e-5)


def test_each_patch_knows_its_place() -> None:
    apply, variables, _ = encoder()
    flat = apply(variables, jnp.full((1, 15, 15, 1), 0.5))[0][0]
    assert len({tuple(np.round(row, 4).tolist()) for row in flat}) == 25


def test_the_convolutional_stem_keeps_the_order_of_the_patches() -> None:
    module = ViT(patch_size=4, width=8, depth=1, heads=2, mlp_dim=11, stem="conv")
    images = np.random.default_rng(0).random((2, 20, 20, 1)).astype(np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), x.dtype), shapes)
    layers = variables["params"]["transformer"]["layers"]
    for part in (layers["self_attention"]["out"], layers["mlp_out"]):  # only the stem and the position are left
        part["kernel"] = jnp.zeros_like(part["kernel"])
    encode = tiny.jit(module.apply)
    patches, token, _ = encode(variables, images)
    assert patches.shape == (2, 25, 8)
    assert token is None
    changed = images.copy()
    changed[:, 9:11, 13:15] = 1 - changed[:, 9:11, 13:15]  # inside patch row 2, column 3
    moved = np.abs(encode(variables, changed)[0] - patches).max(axis=(0, 2)).reshape(5, 5)
    near = np.zeros((5, 5), bool)
    near[1:4, 2:5] = True
    assert moved[2, 3] > 1e-2
    assert not np.any(moved[~near])


@pytest.mark.parametrize("options", [{"remat": True}, {"unroll": True}])
def test_options_of_compilation_change_nothing(options: dict[str, bool]) -> None:
    apply, variables, images = encoder()
    other, _, _ = encoder(**options)
    assert tiny.largest_difference(other(variables, images)[0], apply(variables, images)[0]) < 1e-6
