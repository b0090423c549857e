"""The decoders: ID restores image patches with the text, TD restores masked tokens with the image."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmclip_jax.models.attention import PLAIN
from mmclip_jax.models.masking import take_positions
from mmclip_jax.models.transformer import OURS, Dtype, Transformer, sincos_codes, sincos_positions


class ImageDecoder(nn.Module):
    """ID: patch features with masked positions hidden, cross-attending to the text -> pixels of the masked patches.

    The attended text A_r is added at the visible positions only: at a masked one it would be computed from the very
    features that are hidden.
    """

    patch_pixels: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    dtype: Dtype = jnp.float32
    remat: bool = False
    unroll: bool = False
    attention: str = PLAIN

    @nn.compact
    def __call__(
        self,
        patches: jax.Array,
        hidden: jax.Array,
        masked: jax.Array,
        attended_text: jax.Array,
        tokens: jax.Array,
        valid: jax.Array,
    ) -> jax.Array:
        """Predicts the masked patches.

        Args:
          patches: V [B,N,D]; what it holds at hidden positions has no influence.
          hidden: bool [B,N].
          masked: int [B,K], the hidden positions, sorted.
          attended_text: A_r [B,N,D_t], used where not hidden.
          tokens: T [B,L,D_t]; valid: bool [B,L].

        Returns:
          Normalised pixels float32 [B,K,P*P].
        """
        count = patches.shape[1]
        x = nn.Dense(self.width, dtype=self.dtype, name="patches")(patches)
        x = x + nn.Dense(self.width, dtype=self.dtype, name="attended_text")(attended_text)
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width))
        x = jnp.where(hidden[:, :, None], mask_token.astype(x.dtype), x)
        side = round(count**0.5)
        position = self.param("position", lambda _: jnp.asarray(sincos_positions(side, self.width)))
        x = x + position.astype(x.dtype)[None]
        context = nn.Dense(self.width, dtype=self.dtype, name="context")(tokens)
        x, _ = Transformer(
            self.depth,
            self.heads,
            self.mlp_dim,
            OURS,
            self.dtype,
            self.remat,
            self.unroll,
            attention=self.attention,
            name="transformer",
        )(x, None, context, valid)
        x = take_positions(x, masked)
        return nn.Dense(self.patch_pixels, dtype=jnp.float32, name="pixels")(x.astype(jnp.float32))


class TextDecoder(nn.Module):
    """TD: features of the masked text, cross-attending to the image -> features at the masked slots [B,K,D_t] float32.

    The caller turns them into logits with the text encoder's embedding (`TextEncoder.attend_vocabulary`).
    """

    output_width: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    dtype: Dtype = jnp.float32
    remat: bool = False
    unroll: bool = False
    attention: str = PLAIN

    @nn.compact
    def __call__(self, tokens: jax.Array, valid: jax.Array, patches: jax.Array, slots: jax.Array) -> jax.Array:
        """tokens: T of the masked text [B,L,D_t]; valid: bool [B,L]; patches: V [B,N,D]; slots: int [B,K]."""
        x = nn.Dense(self.width, dtype=self.dtype, name="tokens")(tokens)
        codes = sincos_codes(np.arange(tokens.shape[1]), self.width)
        position = self.param("position", lambda _: jnp.asarray(codes))
        x = x + position.astype(x.dtype)[None]
        context = nn.Dense(self.width, dtype=self.dtype, name="context")(patches)
        x, _ = Transformer(
            self.depth,
            self.heads,
            self.mlp_dim,
            OURS,
            self.dtype,
            self.remat,
            self.unroll,
            attention=self.attention,
            name="transformer",
        )(x, valid, context, None)
        x = take_positions(x, slots).astype(jnp.float32)
        return nn.Dense(self.output_width, dtype=jnp.float32, name="output")(x)
