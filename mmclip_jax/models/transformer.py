"""Pre-norm transformer layers shared by the encoders and decoders.

Computation runs in `dtype`, parameters are float32; attention logits, softmax and layer norm are float32. Attention has
no key bias: softmax cancels it, so its true gradient is zero and Adam would turn rounding noise into updates.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmclip_jax import sharding

Dtype = Any
_INIT = nn.initializers.xavier_uniform()
# The last layer of each residual branch: a block starts as the identity.
_ZERO = nn.initializers.zeros


def layer_norm(x: jax.Array, name: str | None = None) -> jax.Array:
    """Layer norm over the last axis, computed in float32, returned in the dtype of `x`."""
    return nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name=name)(x).astype(x.dtype)


def sincos_codes(positions: np.ndarray, width: int) -> np.ndarray:
    """Sine-cosine codes float32 [n, width] of positions [n]; the inner product of two depends on their distance alone.

    Raises:
      ValueError: width is odd.
    """
    if width % 2:
        raise ValueError(f"a sine-cosine code needs an even width, not {width}")
    angles = positions[:, None] / 10000 ** (np.arange(width // 2) / (width / 2))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


class Attention(nn.Module):
    """Multi-head attention of queries x [B,Q,D] over context y [B,C,·].

    out_init: initialiser of the output projection.
    Returns ([B,Q,D], attention weights [B,heads,Q,C] float32).
    """

    heads: int
    dtype: Dtype = jnp.float32
    out_init: Any = _INIT

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array, valid: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """valid: bool [B,C], False where the context must not be looked at."""
        width = x.shape[-1]
        if width % self.heads:
            raise ValueError(f"width {width} is no multiple of {self.heads} heads")

        def dense(name: str, bias: bool, init: Any = _INIT) -> nn.Dense:
            return nn.Dense(width, use_bias=bias, dtype=self.dtype, kernel_init=init, name=name)

        def split(z: jax.Array) -> jax.Array:
            return z.reshape(*z.shape[:-1], self.heads, width // self.heads)

        q_BxQxHxD = split(dense("query", True)(x)) * (width // self.heads) ** -0.5
        k_BxCxHxD = split(dense("key", False)(y))
        v_BxCxHxD = split(dense("value", True)(y))
        logits = jnp.einsum("bqhd,bchd->bhqc", q_BxQxHxD, k_BxCxHxD, preferred_element_type=jnp.float32)
        if valid is not None:
            logits = jnp.where(valid[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
        weights_BxHxQxC = jax.nn.softmax(logits, axis=-1)
        attended = jnp.einsum("bhqc,bchd->bqhd", weights_BxHxQxC.astype(self.dtype), v_BxCxHxD)
        return dense("out", True, self.out_init)(attended.reshape(x.shape)), weights_BxHxQxC


class Block(nn.Module):
    """Self-attention, optional cross-attention to a context, MLP; each pre-norm with a residual.

    Returns (x [B,N,D], attention weights to the context if there is one, else to itself; None unless asked for).
    """

    heads: int
    mlp_dim: int
    dtype: Dtype = jnp.float32
    return_attention: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, valid: jax.Array | None, context: jax.Array | None, context_valid: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        width = x.shape[-1]
        y = layer_norm(x, "norm_self")
        y, weights = Attention(self.heads, self.dtype, _ZERO, name="self_attention")(y, y, valid)
        x = sharding.shard_rows(x + y)
        if context is not None:
            y = layer_norm(x, "norm_cross")
            y, weights = Attention(self.heads, self.dtype, _ZERO, name="cross_attention")(y, context, context_valid)
            x = sharding.shard_rows(x + y)
        y = layer_norm(x, "norm_mlp")
        y = nn.Dense(self.mlp_dim, dtype=self.dtype, kernel_init=_INIT, name="mlp_in")(y)
        y = nn.Dense(width, dtype=self.dtype, kernel_init=_ZERO, name="mlp_out")(nn.gelu(y))
        return sharding.shard_rows(x + y), weights if self.return_attention else None


class Transformer(nn.Module):
    """`depth` blocks scanned over their stacked parameters, then a final layer norm.

    remat: recompute a block's activations in the backward pass; unroll: compile the layers one after another instead
    of as a loop (faster on CPU, slower to compile).
    Returns (x [B,N,D], attention weights [depth,B,heads,N,C] or None).
    """

    depth: int
    heads: int
    mlp_dim: int
    dtype: Dtype = jnp.float32
    remat: bool = False
    unroll: bool = False
    return_attention: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        valid: jax.Array | None = None,
        context: jax.Array | None = None,
        context_valid: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
            length=self.depth,
            unroll=self.depth if self.unroll else 1,
        )(self.heads, self.mlp_dim, self.dtype, self.return_attention, name="layers")
        x, weights = layers(sharding.shard_rows(x), valid, context, context_valid)
        return layer_norm(x, "norm"), weights
