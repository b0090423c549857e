"""How attention is computed: in the plain form that gives its weights, or by `jax.nn.dot_product_attention`.

The forms are equal up to rounding; tests/models/test_attention.py holds the tolerances. cuDNN's kernel never writes the
weights to memory, which is most of what attention costs on a GPU.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from mmclip_jax.errors import UserError

FORMS = ("auto", "plain", "xla", "cudnn")
PLAIN = "plain"
_HOPPER = 9.0
_WIDEST_HEAD = 256  # of cuDNN's kernel


def choose(setting: str, dtype: Any, head_widths: Iterable[int], device: Any | None = None) -> str:
    """The form, one of `FORMS` but "auto".

    "auto" takes cuDNN on NVIDIA GPUs of compute capability 9.0 and up, in bfloat16, where its kernel knows the width of
    every head; elsewhere the plain form. XLA compiles its own form to the same operations, so "auto" never takes it.

    Args:
      setting: `model.attention`.
      dtype: that the model computes in.
      head_widths: of all encoders and decoders.
      device: on which it will run, or one that a topology describes; None: not known, which allows the plain form only.

    Raises:
      UserError: the setting is none of `FORMS`, or asks for cuDNN where it cannot run.
    """
    if setting not in FORMS:
        raise UserError(f"model.attention={setting!r} is not one of {', '.join(FORMS)}")
    if device is None:
        return PLAIN
    if setting in (PLAIN, "xla"):
        return setting
    against = _against_cudnn(dtype, head_widths, device)
    if setting == "cudnn" and against:
        raise UserError(f"model.attention='cudnn': {against}; take auto, xla or plain")
    return PLAIN if against or (setting == "auto" and capability(device) < _HOPPER) else "cudnn"


def capability(device: Any) -> float:
    """Compute capability of an NVIDIA GPU, such as 9.0; 0 for all other devices."""
    said = getattr(device, "compute_capability", None)
    if device.platform not in ("gpu", "cuda") or not isinstance(said, str):
        return 0.0  # ROCm says gfx942
    try:
        return float(said)
    except ValueError:
        return 0.0


def _against_cudnn(dtype: Any, head_widths: Iterable[int], device: Any) -> str:
    """Why cuDNN's kernel cannot run; "" if it can."""
    if capability(device) < 8.0:
        return f"it needs an NVIDIA GPU of compute capability 8.0 or more, which {device.device_kind} is not"
    if jnp.dtype(dtype) != jnp.bfloat16:
        return f"it needs model.dtype=bfloat16, not {jnp.dtype(dtype)}"
    if bad := [width for width in head_widths if width % 8 or width > _WIDEST_HEAD]:
        return f"a head {bad[0]} wide is no multiple of 8 up to {_WIDEST_HEAD}"
    return ""


def attend(
    form: str, q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None, causal: bool
) -> tuple[jax.Array, jax.Array | None]:
    """softmax(q k^T / sqrt(d)) v for each head; the softmax is float32.

    Args:
      form: one of `FORMS` but "auto".
      q: [B,Q,H,D]; k, v: [B,C,H,D].
      valid: bool [B,C], False where the context must not be looked at. All forms but the plain one count them: they
        must come first (padding is at the end). These forms look at the first of a row that has none.
      causal: a position sees itself and those before it.

    Returns:
      ([B,Q,H,D], weights [B,H,Q,C] float32, which only the plain form gives).
    """
    with jax.named_scope("attend"):  # mmclip plan counts it by this name
        if form == PLAIN:
            return _plain(q, k, v, valid, causal)
        lengths = None if valid is None else jnp.maximum(valid.sum(axis=1, dtype=jnp.int32), 1)
        queries = q.shape[1]
        if form == "cudnn":
            q, k, v, lengths = even(q, k, v, lengths)
        attended = jax.nn.dot_product_attention(
            q,
            k,
            v,
            is_causal=causal,
            key_value_seq_lengths=lengths,
            implementation="cudnn" if form == "cudnn" else "xla",
        )
    return attended[:, :queries], None


def even(
    q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Queries and context with one more position where they have an odd number: cuDNN's backward pass refuses those.

    The context's new position is hidden by the number of valid ones (int32 [B]), the queries' is cut off afterwards.
    """

    def longer(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))

    context = k.shape[1]
    if context % 2 and lengths is None:
        lengths = jnp.full(len(k), context, jnp.int32)
    return longer(q), longer(k), longer(v), lengths


def _plain(
    q_BxQxHxD: jax.Array, k_BxCxHxD: jax.Array, v_BxCxHxD: jax.Array, valid: jax.Array | None, causal: bool
) -> tuple[jax.Array, jax.Array]:
    scaled = q_BxQxHxD * q_BxQxHxD.shape[-1] ** -0.5
    logits = jnp.einsum("bqhd,bchd->bhqc", scaled, k_BxCxHxD, preferred_element_type=jnp.float32)
    hidden = jnp.finfo(jnp.float32).min
    if valid is not None:
        logits = jnp.where(valid[:, None, None, :], logits, hidden)
    if causal:
        seen = jnp.arange(k_BxCxHxD.shape[1])[None] <= jnp.arange(q_BxQxHxD.shape[1])[:, None]
        logits = jnp.where(seen[None, None], logits, hidden)
    weights_BxHxQxC = jax.nn.softmax(logits, axis=-1)
    return jnp.einsum("bhqc,bchd->bqhd", weights_BxHxQxC.astype(v_BxCxHxD.dtype), v_BxCxHxD), weights_BxHxQxC
