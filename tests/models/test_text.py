"""The text encoder: padding, positions, length, and the tied vocabulary."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mmclip_jax.models.encoders.text import TextTransformer
from mmclip_jax.models.transformer import Variant, sincos_codes

SIZES = {"vocab_size": 31, "length": 11, "width": 10, "depth": 2, "heads": 5, "mlp_dim": 13}


def encoder(**options: Any) -> tuple[Callable[..., Any], Any]:
    """The compiled encoder and random parameters."""
    module = TextTransformer(**SIZES, **options)
    tokens = jnp.ones((1, 11), jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), tokens, tokens > 0)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), x.dtype), shapes)
    return tiny.jit(module.apply, static_argnames="method"), variables


def texts(lengths: tuple[int, ...]) -> np.ndarray:
    tokens = np.random.default_rng(1).integers(1, 31, (len(lengths), 11)).astype(np.int32)
    for row, length in enumerate(lengths):
        tokens[row, length:] = 0
    return tokens


def test_padding_has_no_influence_on_the_text() -> None:
    apply, variables = encoder()
    tokens = texts((7, 7, 7))
    valid = tokens > 0
    features, _ = apply(variables, tokens, valid)
    shorter, _ = apply(variables, tokens[:, :7], valid[:, :7])
    np.testing.assert_allclose(features[:, :7], shorter, atol=1e-5)
    garbage = np.where(valid, tokens, 29)
    np.testing.assert_allclose(apply(variables, garbage, valid)[0][:, :7], shorter, atol=1e-5)
    # Without the mask the same garbage is seen.
    assert np.abs(apply(variables, garbage, garbage > 0)[0][:, :7] - shorter).max() > 1e-2


def test_the_encoder_looks_both_ways_and_knows_the_order() -> None:
    apply, variables = encoder()
    tokens = texts((11,))
    features = apply(variables, tokens, tokens > 0)[0]
    for place in (0, 10):
        changed = tokens.copy()
        changed[0, place] = changed[0, place] % 30 + 1
        difference = np.abs(apply(variables, changed, changed > 0)[0] - features).max(axis=-1)[0]
        assert np.all(difference > 1e-5)
    swapped = tokens[:, ::-1].copy()
    assert np.abs(apply(variables, swapped, swapped > 0)[0][:, ::-1] - features).max() > 1e-2


def test_a_causal_encoder_knows_only_what_came_before_and_needs_no_mask() -> None:
    apply, variables = encoder(variant=Variant(causal=True))
    tokens = texts((11,))
    features = apply(variables, tokens, tokens > 0)[0]
    changed = tokens.copy()
    changed[0, 6] = changed[0, 6] % 30 + 1
    difference = np.abs(apply(variables, changed, changed > 0)[0] - features).max(axis=-1)[0]
    assert not difference[:6].any()
    assert np.all(difference[6:] > 1e-4)
    # A vocabulary may have a word at the number of padding.
    np.testing.assert_array_equal(apply(variables, tokens, np.arange(11)[None] != 3)[0], features)


def test_words_keep_their_size_where_others_do_not_scale_them() -> None:
    module = TextTransformer(**SIZES, embed_scale=False, variant=Variant(first_norm=True, norm="post"))
    tokens = jnp.ones((1, 11), jnp.int32)
    params = tiny.jit(module.init)(jax.random.key(0), tokens, tokens > 0)["params"]
    for table in (params["embed"]["embedding"], params["position"]):
        assert 0.01 < np.std(table) < 0.03
    scaled = tiny.jit(TextTransformer(**SIZES).init)(jax.random.key(0), tokens, tokens > 0)["params"]
    assert 0.7 < np.std(scaled["embed"]["embedding"]) * 10**0.5 < 1.3
    np.testing.assert_allclose(scaled["position"], sincos_codes(np.arange(11), 10), atol=1e-6)
    assert set(params["norm_pre"]) == {"scale", "bias"}
    assert "norm_pre" not in scaled


def test_an_empty_text_is_finite() -> None:
    apply, variables = encoder()
    tokens = texts((0, 3))
    assert np.all(np.isfinite(apply(variables, tokens, tokens > 0)[0]))


def test_too_long_a_text_is_refused() -> None:
    apply, variables = encoder()
    tokens = jnp.ones((1, 12), jnp.int32)
    with pytest.raises(ValueError, match="12"):
        apply(variables, tokens, tokens > 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_vocabulary_logits_are_float32_products_with_the_token_embedding(dtype: Any) -> None:
    apply, variables = encoder(dtype=dtype)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3, 10)), dtype)
    logits = apply(variables, x, method="attend_vocabulary")
    assert logits.dtype == jnp.float32
    embedding = np.asarray(variables["params"]["embed"]["embedding"], np.float64)
    np.testing.assert_allclose(logits, np.asarray(x, np.float64) @ embedding.T, atol=1e-5)


def test_bfloat16_computes_with_float32_parameters() -> None:
    apply, variables = encoder(dtype=jnp.bfloat16, return_attention=True)
    tokens = texts((5, 11))
    features, attention = apply(variables, tokens, tokens > 0)
    assert features.dtype == jnp.bfloat16
    assert attention.shape == (2, 2, 5, 11, 11)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert not np.any(attention[:, 0, :, :, 5:])
