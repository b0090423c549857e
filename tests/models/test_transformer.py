"""Attention and layers against a NumPy float64 transformer that is written from the formulas."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mmclip_jax.models.transformer import Attention, Transformer, Variant, computed_once, layer_norm

pytestmark = pytest.mark.compiles

Array = np.ndarray
ROWS, QUERIES, CONTEXT, WIDTH, CONTEXT_WIDTH, HEADS, MLP, DEPTH = 2, 5, 7, 12, 10, 3, 17, 2


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def double(x: Any) -> Array:
    return np.asarray(x, np.float64)


def randomized(params: Any, seed: int = 1) -> Any:
    """Parameters with nothing at zero or one."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), x.dtype), params)


def dense(p: Any, x: Array) -> Array:
    return x @ np.asarray(p["kernel"], np.float64) + (np.asarray(p["bias"], np.float64) if "bias" in p else 0)


def norm(p: Any, x: Array, epsilon: float = 1e-6) -> Array:
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + epsilon)
    return x * np.asarray(p["scale"], np.float64) + np.asarray(p["bias"], np.float64)


def attention(p: Any, x: Array, y: Array, valid: Array | None, heads: int, causal: bool = False) -> tuple[Array, Array]:
    """One row: x [Q,D], y [C,E], valid [C] -> ([Q,D], weights [heads,Q,C])."""
    q, k, v = dense(p["query"], x), dense(p["key"], y), dense(p["value"], y)
    size = x.shape[-1] // heads
    out, weights = np.zeros_like(q), []
    for head in range(heads):
        cut = slice(head * size, (head + 1) * size)
        logits = q[:, cut] @ k[:, cut].T / np.sqrt(size)
        if valid is not None:
            logits[:, ~valid] = -np.inf
        if causal:
            logits[np.triu_indices(len(x), 1)] = -np.inf
        w = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights.append(w / w.sum(axis=1, keepdims=True))
        out[:, cut] = weights[-1] @ v[:, cut]
    return dense(p["out"], out), np.stack(weights)


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def transformer(
    p: Any, x: Array, valid: Array | None, y: Array | None, y_valid: Array | None, heads: int
) -> tuple[Array, list[Array]]:
    """One row through stacked pre-norm layers; the weights returned are those to the context where there is one."""
    maps = []
    for layer in range(p["layers"]["norm_self"]["scale"].shape[0]):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], p["layers"])
        z = norm(block["norm_self"], x)
        out, weights = attention(block["self_attention"], z, z, valid, heads)
        x = x + out
        if y is not None:
            out, weights = attention(block["cross_attention"], norm(block["norm_cross"], x), y, y_valid, heads)
            x = x + out
        x = x + dense(block["mlp_out"], gelu(dense(block["mlp_in"], norm(block["norm_mlp"], x))))
        maps.append(weights)
    return norm(p["norm"], x), maps


ACTIVATIONS = {
    "gelu_tanh": gelu,
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
}


def variant_of(p: Any, x: Array, valid: Array | None, variant: Variant) -> Array:
    """One row through stacked layers without a context, of any variant."""
    for number in range(DEPTH):
        block = jax.tree.map(lambda leaf, number=number: double(leaf[number]), p["layers"])

        def attend(z: Array, block: Any = block) -> Array:
            out = attention(block["self_attention"], z, z, valid, HEADS, variant.causal)[0]
            return out * (block["scale_self"] if variant.layer_scale else 1.0)

        def mlp(z: Array, block: Any = block) -> Array:
            out = dense(block["mlp_out"], ACTIVATIONS[variant.activation](dense(block["mlp_in"], z)))
            return out * (block["scale_mlp"] if variant.layer_scale else 1.0)

        for name, branch in (("norm_self", attend), ("norm_mlp", mlp)):
            if variant.norm == "pre":
                x = x + branch(norm(block[name], x, variant.epsilon))
            else:
                x = norm(block[name], x + branch(x), variant.epsilon)
    return norm(p["norm"], x, variant.epsilon) if variant.final_norm else x


VALID = np.array([[1, 1, 0, 1, 1], [1, 1, 1, 1, 0]], bool)
CONTEXT_VALID = np.array([[1, 1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1]], bool)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_against_numpy(masked: bool) -> None:
    x, y = normal(ROWS, QUERIES, WIDTH), normal(ROWS, CONTEXT, CONTEXT_WIDTH, seed=1)
    valid = CONTEXT_VALID if masked else None
    module = Attention(HEADS)
    params = randomized(jax.eval_shape(module.init, jax.random.key(0), x, y)["params"])
    out, weights = module.apply({"params": params}, x, y, valid)
    assert weights.shape == (ROWS, HEADS, QUERIES, CONTEXT)
    assert weights.dtype == jnp.float32
    for row in range(ROWS):
        row_valid = None if valid is None else valid[row]
        expected, maps = attention(params, double(x[row]), double(y[row]), row_valid, HEADS)
        np.testing.assert_allclose(out[row], expected, atol=1e-5)
        np.testing.assert_allclose(weights[row], maps, atol=1e-6)


@pytest.mark.parametrize("with_context", [False, True])
def test_layers_against_numpy(with_context: bool) -> None:
    x = normal(ROWS, QUERIES, WIDTH)
    context = normal(ROWS, CONTEXT, CONTEXT_WIDTH, seed=1) if with_context else None
    module = Transformer(DEPTH, HEADS, MLP, return_attention=True)
    arguments = (x, VALID, context, CONTEXT_VALID if with_context else None)
    params = randomized(jax.eval_shape(module.init, jax.random.key(0), *arguments)["params"])
    out, maps = tiny.jit(module.apply)({"params": params}, *arguments)
    assert maps.shape == (DEPTH, ROWS, HEADS, QUERIES, CONTEXT if with_context else QUERIES)
    for row in range(ROWS):
        expected, expected_maps = transformer(
            params,
            double(x[row]),
            VALID[row],
            None if context is None else double(context[row]),
            CONTEXT_VALID[row] if with_context else None,
            HEADS,
        )
        np.testing.assert_allclose(out[row], expected, atol=3e-5)
        np.testing.assert_allclose(maps[:, row], expected_maps, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "post", "final_norm": False, "activation": "gelu", "key_bias": True, "epsilon": 0.1},
        {"causal": True, "activation": "quick_gelu", "key_bias": True},
        {"layer_scale": True, "activation": "gelu", "epsilon": 0.1},
        {"final_norm": False},
    ],
)
def test_variants_against_numpy(changes: dict[str, Any]) -> None:
    variant, x = Variant(**changes), normal(ROWS, QUERIES, WIDTH)
    module = Transformer(DEPTH, HEADS, MLP, variant)
    params = randomized(jax.eval_shape(module.init, jax.random.key(0), x, VALID)["params"])
    assert ("norm" in params) == variant.final_norm
    assert ("bias" in params["layers"]["self_attention"]["key"]) == variant.key_bias
    out, _ = tiny.jit(module.apply)({"params": params}, x, VALID)
    for row in range(ROWS):
        np.testing.assert_allclose(out[row], variant_of(params, double(x[row]), VALID[row], variant), atol=3e-5)


def test_the_context_of_a_causal_decoder_is_seen_whole() -> None:
    x, y = normal(ROWS, QUERIES, WIDTH), normal(ROWS, CONTEXT, CONTEXT_WIDTH, seed=1)
    module = Transformer(DEPTH, HEADS, MLP, Variant(causal=True))
    params = randomized(jax.eval_shape(module.init, jax.random.key(0), x, None, y)["params"])
    run = tiny.jit(lambda x, y: module.apply({"params": params}, x, None, y)[0])
    out = run(x, y)
    later = run(x.at[:, 3].multiply(-1), y)
    np.testing.assert_array_equal(later[:, :3], out[:, :3])
    assert np.all(np.abs(later[:, 3:] - out[:, 3:]).max(axis=(0, 2)) > 1e-3)
    assert np.all(np.abs(run(x, y.at[:, CONTEXT - 1].multiply(-1)) - out).max(axis=(0, 2)) > 1e-3)


def test_attention_is_returned_only_when_asked_for() -> None:
    x = normal(ROWS, QUERIES, WIDTH)
    module = Transformer(1, HEADS, MLP)
    params = randomized(jax.eval_shape(module.init, jax.random.key(0), x)["params"])
    assert module.apply({"params": params}, x)[1] is None


def test_a_fully_masked_row_is_finite_and_has_a_finite_gradient() -> None:
    x, y = normal(ROWS, QUERIES, WIDTH), normal(ROWS, CONTEXT, CONTEXT_WIDTH, seed=1)
    module = Attention(HEADS)
    params = randomized(jax.eval_shape(module.init, jax.random.key(0), x, y)["params"])
    nothing = jnp.zeros((ROWS, CONTEXT), bool)
    value, gradient = jax.value_and_grad(lambda p: module.apply({"params": p}, x, y, nothing)[0].sum())(params)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("options", [{"unroll": True}, {"remat": True}, {"remat": True, "unroll": True}])
def test_unrolled_and_recomputed_layers_are_the_same_function(options: dict[str, bool]) -> None:
    x, context = normal(ROWS, QUERIES, WIDTH), normal(ROWS, CONTEXT, CONTEXT_WIDTH, seed=1)
    plain, other = Transformer(3, HEADS, MLP), Transformer(3, HEADS, MLP, **options)
    shapes = jax.eval_shape(plain.init, jax.random.key(0), x, None, context)["params"]
    assert jax.eval_shape(other.init, jax.random.key(0), x, None, context)["params"] == shapes
    params = randomized(shapes)

    def value_and_gradient(module: Transformer) -> Any:
        return tiny.jit(
            jax.value_and_grad(lambda p: jnp.square(module.apply({"params": p}, x, VALID, context)[0]).mean())
        )(params)

    expected, got = value_and_gradient(plain), value_and_gradient(other)
    assert tiny.largest_difference(expected, got) < 1e-5


def test_layers_do_not_share_their_initial_parameters() -> None:
    module = Transformer(3, HEADS, MLP)
    params = tiny.jit(module.init)(jax.random.key(0), normal(1, QUERIES, WIDTH))["params"]
    kernel = params["layers"]["mlp_in"]["kernel"]
    assert kernel.shape == (3, WIDTH, MLP)
    assert np.abs(kernel[0] - kernel[1]).max() > 1e-3


def test_a_block_starts_as_the_identity() -> None:
    module = Transformer(DEPTH, HEADS, MLP)
    x, context = normal(3, QUERIES, WIDTH), normal(3, CONTEXT, CONTEXT_WIDTH, seed=1)
    out, _ = module.apply(module.init(jax.random.key(0), x, None, context), x, None, context)
    expected = (double(x) - double(x).mean(-1, keepdims=True)) / double(x).std(-1, keepdims=True)
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_keys_have_no_bias_and_the_others_do() -> None:
    module = Transformer(1, HEADS, MLP)
    arguments = (normal(1, QUERIES, WIDTH), None, normal(1, CONTEXT, CONTEXT_WIDTH))
    layers = jax.eval_shape(module.init, jax.random.key(0), *arguments)["params"]["layers"]
    for kind in ("self_attention", "cross_attention"):
        assert set(layers[kind]["key"]) == {"kernel"}
        for name in ("query", "value", "out"):
            assert set(layers[kind][name]) == {"kernel", "bias"}


def test_bfloat16_layers_keep_float32_parameters_norms_and_softmax() -> None:
    x = normal(ROWS, QUERIES, WIDTH).astype(jnp.bfloat16)
    module = Transformer(DEPTH, HEADS, MLP, dtype=jnp.bfloat16, return_attention=True)
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    out, maps = module.apply({"params": randomized(params)}, x)
    assert out.dtype == jnp.bfloat16
    assert maps.dtype == jnp.float32
    np.testing.assert_allclose(maps.sum(axis=-1), 1.0, atol=1e-5)  # bfloat16 sums miss by 1e-2
    # Mean 1000, spread 1: bfloat16 statistics would lose the spread entirely.
    far = jnp.asarray([[1000.0, 1004.0, 996.0, 1000.0]], jnp.bfloat16)
    variables = {"params": {"norm": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}}

    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return layer_norm(x, "norm")

    expected = (double(far) - 1000) / np.sqrt(8)
    np.testing.assert_allclose(double(Norm().apply(variables, far)), expected, atol=0.01)


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="13"):
        jax.eval_shape(Attention(HEADS).init, jax.random.key(0), jnp.zeros((1, 2, 13)), jnp.zeros((1, 2, 13)))


def test_computed_once_changes_neither_values_nor_gradients() -> None:
    x = normal(ROWS, WIDTH)

    def total(x: jax.Array, once: bool) -> jax.Array:
        return (nn.gelu(computed_once(x) if once else x) * jnp.arange(1.0, WIDTH + 1)[None]).sum()

    for once, plain in zip(*(jax.value_and_grad(total)(x, flag) for flag in (True, False)), strict=True):
        np.testing.assert_array_equal(once, plain)
