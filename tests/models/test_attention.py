"""The forms of attention against each other, and which one is chosen where."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mmclip_jax.errors import UserError
from mmclip_jax.models.attention import attend, choose, even
from mmclip_jax.models.mmclip import build_model, init_params
from mmclip_jax.models.transformer import Transformer

ROWS, QUERIES, CONTEXT, HEADS, WIDTH = 3, 5, 7, 2, 8
# Largest difference to the plain form in the same dtype, for outputs and gradients of order 1. bfloat16 has 8 bits: one
# step of a number between 1 and 2 is 0.0078, and the forms round queries and weights at other places.
TOLERANCE = {"float32": 2e-6, "bfloat16": 0.04}


@dataclasses.dataclass
class Device:
    """What `choose` reads of a device."""

    platform: str
    device_kind: str
    compute_capability: Any = None


CPU, TPU, ROCM = Device("cpu", "cpu"), Device("tpu", "TPU v5e"), Device("gpu", "MI300X", "gfx942")
V100, A100, H100, B200 = (
    Device("gpu", name, capability)
    for name, capability in (("V100", "7.0"), ("A100", "8.0"), ("H100", "9.0"), ("B200", "10.0"))
)


@pytest.mark.parametrize("device", [CPU, TPU, ROCM, V100, A100, None])
def test_auto_is_plain_where_there_is_no_hopper(device: Device | None) -> None:
    assert choose("auto", jnp.bfloat16, [64], device) == "plain"


@pytest.mark.parametrize("device", [H100, B200])
def test_auto_is_cudnn_on_hopper_in_bfloat16_where_heads_allow(device: Device) -> None:
    assert choose("auto", "bfloat16", [64, 128], device) == "cudnn"
    assert choose("auto", "float32", [64], device) == "plain"
    assert choose("auto", "bfloat16", [64, 12], device) == "plain"
    assert choose("auto", "bfloat16", [264], device) == "plain"
    assert choose("plain", "bfloat16", [64], device) == "plain"


def test_what_is_named_is_taken_or_refused() -> None:
    assert choose("xla", "float32", [7], CPU) == "xla"
    assert choose("cudnn", "bfloat16", [64], A100) == "cudnn"
    for device, dtype, width, said in (
        (CPU, "bfloat16", 64, "8.0 or more, which cpu is not"),
        (V100, "bfloat16", 64, "8.0 or more, which V100 is not"),
        (H100, "float32", 64, "model.dtype=bfloat16, not float32"),
        (H100, "bfloat16", 12, "a head 12 wide"),
    ):
        with pytest.raises(UserError, match=said):
            choose("cudnn", dtype, [width], device)
    with pytest.raises(UserError, match="not one of"):
        choose("flash", "bfloat16", [64], H100)


def inputs(dtype: str) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    shapes = [(ROWS, QUERIES, HEADS, WIDTH), *[(ROWS, CONTEXT, HEADS, WIDTH)] * 2]
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


@pytest.mark.compiles
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("lengths", [None, (7, 1, 4)])
@pytest.mark.parametrize("causal", [False, True])
def test_outputs_and_gradients_are_those_of_the_plain_form(
    dtype: str, lengths: tuple[int, ...] | None, causal: bool
) -> None:
    valid = None if lengths is None else jnp.arange(CONTEXT)[None] < jnp.asarray(lengths)[:, None]
    found = {}
    for form in ("plain", "xla"):

        def out(q: jax.Array, k: jax.Array, v: jax.Array, form: str = form) -> tuple[jax.Array, jax.Array]:
            attended = attend(form, q, k, v, valid, causal)[0]
            return (
                attended.astype(jnp.float32) * jnp.cos(jnp.arange(attended.size).reshape(attended.shape))
            ).sum(), attended

        found[form] = tiny.jit(jax.grad(out, argnums=(0, 1, 2), has_aux=True))(*inputs(dtype))
    assert tiny.largest_difference(found["plain"], found["xla"]) <= TOLERANCE[dtype]
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(found["xla"]))


@pytest.mark.compiles
@pytest.mark.parametrize("lengths", [None, (7, 1, 4)])
def test_an_even_number_of_positions_gives_the_same(lengths: tuple[int, ...] | None) -> None:
    """What cuDNN gets for 5 queries and a context of 7, computed by XLA."""
    q, k, v = inputs("float32")
    count = None if lengths is None else jnp.asarray(lengths, jnp.int32)
    valid = None if count is None else jnp.arange(CONTEXT)[None] < count[:, None]
    longer = even(q, k, v, count)
    assert [x.shape[1] for x in longer[:3]] == [QUERIES + 1, CONTEXT + 1, CONTEXT + 1]
    attended = jax.nn.dot_product_attention(*longer[:3], key_value_seq_lengths=longer[3], implementation="xla")
    np.testing.assert_allclose(attended[:, :QUERIES], attend("plain", q, k, v, valid, False)[0], atol=2e-6)
    assert even(q[:, :4], k[:, :6], v[:, :6], None)[3] is None


@pytest.mark.compiles
def test_a_row_without_valid_context_is_finite() -> None:
    valid = jnp.zeros((ROWS, CONTEXT), bool)
    q, k, v = inputs("float32")
    attended = attend("xla", q, k, v, valid, False)[0]
    np.testing.assert_allclose(attended, jnp.broadcast_to(v[:, :1], q.shape), rtol=1e-6)


@pytest.mark.compiles
def test_where_weights_are_asked_for_the_form_is_plain() -> None:
    x = jnp.asarray(np.random.default_rng(1).normal(size=(ROWS, CONTEXT, 8)), jnp.float32)
    plain = Transformer(2, 2, 16, return_attention=True)
    params = plain.init(jax.random.key(0), x)
    other = Transformer(2, 2, 16, return_attention=True, attention="cudnn")
    for a, b in zip(plain.apply(params, x), other.apply(params, x), strict=True):
        np.testing.assert_array_equal(a, b)
    assert Transformer(2, 2, 16, attention="xla").apply(params, x)[1] is None


@pytest.mark.compiles
def test_the_whole_step_has_the_same_losses_and_gradients() -> None:
    """All three objectives: images, texts with padding at their end, and both decoders' cross-attention."""
    config = tiny.config()
    found = {}
    params = init_params(build_model(config.model), config.model, 0)
    batch = {"paired": tiny.rows(16, 0), "unpaired": tiny.rows(8, 1)}
    for form in ("plain", "xla"):
        config.model.attention = form
        model = build_model(config.model, jax.devices()[0])
        assert model.image_encoder.attention == form  # type: ignore[attr-defined]
        assert model.decode_tokens.attention == form
        found[form] = tiny.jit(tiny.loss_and_gradients(model, config))(params, jnp.int32(3), batch)
    assert tiny.largest_difference(found["plain"][0][0], found["xla"][0][0]) <= 2e-6
    assert tiny.largest_difference(found["plain"][1], found["xla"][1]) <= 1e-5
