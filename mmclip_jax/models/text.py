"""The text encoder TE: a bidirectional transformer over SentencePiece tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmclip_jax import sharding
from mmclip_jax.models.transformer import Dtype, Transformer, sincos_codes


class TextEncoder(nn.Module):
    """T = TE(t): tokens int [B,L], valid bool [B,L] -> (token features [B,L,D], attention or None).

    `attend_vocabulary` ties the output of the text decoder to the token embedding.
    """

    vocab_size: int
    length: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    dtype: Dtype = jnp.float32
    remat: bool = False
    unroll: bool = False
    return_attention: bool = False

    def setup(self) -> None:
        self.embed = nn.Embed(self.vocab_size, self.width, embedding_init=nn.initializers.normal(self.width**-0.5))
        self.position = self.param("position", lambda _: jnp.asarray(sincos_codes(np.arange(self.length), self.width)))
        self.transformer = Transformer(
            self.depth, self.heads, self.mlp_dim, self.dtype, self.remat, self.unroll, self.return_attention
        )

    def __call__(self, tokens: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        if tokens.shape[1] > self.length:
            raise ValueError(f"{tokens.shape[1]} tokens, but the text encoder was built for {self.length}")
        # Words and places start at the size of what a block adds to them: smaller, they would drown in it.
        # Unscaled, the same table serves as output embedding.
        # The table is gathered, not the tokens: XLA would look words up where their column of the table lies.
        words = sharding.shard_rows(jnp.take(sharding.replicate(self.embed.embedding), tokens, axis=0))
        x = words * self.width**0.5 + self.position[None, : tokens.shape[1]]
        return self.transformer(x.astype(self.dtype), valid)

    def attend_vocabulary(self, x: jax.Array) -> jax.Array:
        """Logits float32 [...,V] of features x [...,D] against the token embedding.

        In float32 whatever the compute dtype: bfloat16 logits would tie and blur the loss.
        """
        return jnp.einsum("...d,vd->...v", x.astype(jnp.float32), self.embed.embedding, precision="highest")
