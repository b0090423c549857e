"""One transformer for all encoders and decoders: ours, timm's and Hugging Face's ViT, CLIP's, BERT are settings of it.

Computation runs in `dtype`, parameters are float32; attention logits, softmax and layer norm are float32. Ours has no
key bias: softmax cancels it, so its true gradient is zero and Adam would turn rounding noise into updates.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmclip_jax import sharding
from mmclip_jax.models.attention import PLAIN, attend

Dtype = Any
_INIT = nn.initializers.xavier_uniform()
# The last layer of each residual branch: a pre-norm block starts as the identity.
_ZERO = nn.initializers.zeros

NORMS = ("pre", "post")
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": nn.gelu,
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "tanh": jnp.tanh,
}
MLP_ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")


@dataclasses.dataclass(frozen=True)
class Variant:
    """In what one family's transformer differs from another's; the defaults are ours.

    Attributes:
      norm: "pre": layer norms precede attention and MLP; "post": they follow the residual sums (BERT).
      first_norm: a layer norm before the first layer, which the encoder applies (CLIP's images, BERT).
      final_norm: a layer norm after the last layer.
      causal: a token sees itself and those before it (CLIP's texts).
      key_bias: keys have a bias.
      activation: of the MLP, one of `MLP_ACTIVATIONS`.
      epsilon: of every layer norm.
      layer_scale: a learnt factor for each channel of each branch, `scale_self` and `scale_mlp` (DINOv2).
    """

    norm: str = "pre"
    first_norm: bool = False
    final_norm: bool = True
    causal: bool = False
    key_bias: bool = False
    activation: str = "gelu_tanh"
    epsilon: float = 1e-6
    layer_scale: bool = False


OURS = Variant()


def layer_norm(x: jax.Array, name: str | None = None, epsilon: float = OURS.epsilon) -> jax.Array:
    """Layer norm over the last axis, computed in float32, returned in the dtype of `x`."""
    return nn.LayerNorm(epsilon=epsilon, dtype=jnp.float32, name=name)(x).astype(x.dtype)


def sincos_codes(positions: np.ndarray, width: int) -> np.ndarray:
    """Sine-cosine codes float32 [n, width] of positions [n]; the inner product of two depends on their distance alone.

    Raises:
      ValueError: width is odd.
    """
    if width % 2:
        raise ValueError(f"a sine-cosine code needs an even width, not {width}")
    angles = positions[:, None] / 10000 ** (np.arange(width // 2) / (width / 2))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def sincos_positions(side: int, width: int) -> np.ndarray:
    """2-D sine-cosine codes [side*side, width], half of the width for each image axis (as in MAE).

    Raises:
      ValueError: width is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"a 2-D position code needs a width that is a multiple of 4, not {width}")
    y, x = np.divmod(np.arange(side * side), side)
    return np.concatenate([sincos_codes(axis, width // 2) for axis in (y, x)], axis=-1)


class Attention(nn.Module):
    """Multi-head attention of queries x [B,Q,D] over context y [B,C,·].

    out_init: initialiser of the output projection; form: see models/attention.py.
    Returns ([B,Q,D], attention weights [B,heads,Q,C] float32; None unless the form is plain).
    """

    heads: int
    dtype: Dtype = jnp.float32
    out_init: Any = _INIT
    key_bias: bool = False
    causal: bool = False
    form: str = PLAIN

    @nn.compact
    def __call__(
        self, x: jax.Array, y: jax.Array, valid: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """valid: bool [B,C], False where the context must not be looked at."""
        width = x.shape[-1]
        if width % self.heads:
            raise ValueError(f"width {width} is no multiple of {self.heads} heads")

        def dense(name: str, bias: bool, init: Any = _INIT) -> nn.Dense:
            return nn.Dense(width, use_bias=bias, dtype=self.dtype, kernel_init=init, name=name)

        def split(z: jax.Array) -> jax.Array:
            return z.reshape(*z.shape[:-1], self.heads, width // self.heads)

        q, k, v = split(dense("query", True)(x)), split(dense("key", self.key_bias)(y)), split(dense("value", True)(y))
        attended, weights = attend(self.form, q, k, v, valid, self.causal)
        return dense("out", True, self.out_init)(attended.reshape(x.shape)), weights


class Block(nn.Module):
    """Self-attention, optional cross-attention to a context, MLP; each with a residual and a layer norm.

    Returns (x [B,N,D], attention weights to the context if there is one, else to itself; None unless asked for).
    """

    heads: int
    mlp_dim: int
    variant: Variant = OURS
    dtype: Dtype = jnp.float32
    return_attention: bool = False
    form: str = PLAIN

    @nn.compact
    def __call__(
        self, x: jax.Array, valid: jax.Array | None, context: jax.Array | None, context_valid: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        width, variant, weights = x.shape[-1], self.variant, None
        form = PLAIN if self.return_attention else self.form

        def scaled(name: str, y: jax.Array) -> jax.Array:
            if not variant.layer_scale:
                return y
            return y * self.param(name, nn.initializers.ones, (width,)).astype(y.dtype)[None, None]

        def attend(y: jax.Array) -> jax.Array:
            nonlocal weights
            attention = Attention(
                self.heads, self.dtype, _ZERO, variant.key_bias, variant.causal, form, name="self_attention"
            )
            y, weights = attention(y, y, valid)
            return scaled("scale_self", y)

        def attend_context(y: jax.Array) -> jax.Array:
            nonlocal weights
            attention = Attention(self.heads, self.dtype, _ZERO, variant.key_bias, form=form, name="cross_attention")
            y, weights = attention(y, context, context_valid)
            return y

        def mlp(y: jax.Array) -> jax.Array:
            y = nn.Dense(self.mlp_dim, dtype=self.dtype, kernel_init=_INIT, name="mlp_in")(y)
            y = ACTIVATIONS[variant.activation](y)
            y = nn.Dense(width, dtype=self.dtype, kernel_init=_ZERO, name="mlp_out")(y)
            return scaled("scale_mlp", y)

        branches = [("norm_self", attend), ("norm_cross", attend_context), ("norm_mlp", mlp)]
        for norm, branch in branches:
            if norm == "norm_cross" and context is None:
                continue
            if variant.norm == "pre":
                x = sharding.shard_rows(x + branch(layer_norm(x, norm, variant.epsilon)))
            else:
                x = sharding.shard_rows(layer_norm(x + branch(x), norm, variant.epsilon))
        return x, weights if self.return_attention else None


class Transformer(nn.Module):
    """`depth` blocks scanned over their stacked parameters, then a final layer norm where the variant has one.

    remat: recompute a block's activations in the backward pass; unroll: compile the layers one after another instead
    of as a loop (faster on CPU, slower to compile); attention: its form, see models/attention.py. Where weights are
    returned it is the plain one.
    Returns (x [B,N,D], attention weights [depth,B,heads,N,C] or None).
    """

    depth: int
    heads: int
    mlp_dim: int
    variant: Variant = OURS
    dtype: Dtype = jnp.float32
    remat: bool = False
    unroll: bool = False
    return_attention: bool = False
    attention: str = PLAIN

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        valid: jax.Array | None = None,
        context: jax.Array | None = None,
        context_valid: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        # Inside a loop nothing is shared by mistake. One after another, XLA would keep what is to be computed again.
        block = nn.remat(Block, prevent_cse=self.unroll) if self.remat else Block
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
            length=self.depth,
            unroll=self.depth if self.unroll else 1,
        )(self.heads, self.mlp_dim, self.variant, self.dtype, self.return_attention, self.attention, name="layers")
        x, weights = layers(sharding.shard_rows(x), valid, context, context_valid)
        return layer_norm(x, "norm", self.variant.epsilon) if self.variant.final_norm else x, weights
