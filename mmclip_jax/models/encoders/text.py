"""A transformer over the tokens of a text: ours, BERT, CLIP's text encoder."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmclip_jax import sharding
from mmclip_jax.models import work
from mmclip_jax.models.attention import PLAIN
from mmclip_jax.models.encoders.base import transformer_layer_numbers
from mmclip_jax.models.similarity import PRECISION
from mmclip_jax.models.transformer import OURS, Dtype, Transformer, Variant, sincos_codes


class TextTransformer(nn.Module):
    """T = TE(t): tokens int [B,L], valid bool [B,L] -> (token features [B,L,D], attention or None).

    embed_scale: words are multiplied by sqrt(width), and positions start at the sine-cosine code; else both start at
    normal noise of 0.02, as in BERT and CLIP. `attend_vocabulary` ties the output of the text decoder to the token
    embedding. A causal one looks at no padding, which comes last; `valid` has no influence on it.
    """

    vocab_size: int
    length: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    embed_scale: bool = True
    variant: Variant = OURS
    dtype: Dtype = jnp.float32
    remat: bool = False
    unroll: bool = False
    return_attention: bool = False
    attention: str = PLAIN

    def setup(self) -> None:
        noise = nn.initializers.normal(0.02)
        scaled = nn.initializers.normal(self.width**-0.5)
        self.embed = nn.Embed(self.vocab_size, self.width, embedding_init=scaled if self.embed_scale else noise)
        if self.embed_scale:
            codes = sincos_codes(np.arange(self.length), self.width)
            self.position = self.param("position", lambda _: jnp.asarray(codes))
        else:
            self.position = self.param("position", noise, (self.length, self.width))
        if self.variant.first_norm:
            self.norm_pre = nn.LayerNorm(epsilon=self.variant.epsilon, dtype=jnp.float32)
        self.transformer = Transformer(
            self.depth,
            self.heads,
            self.mlp_dim,
            self.variant,
            self.dtype,
            self.remat,
            self.unroll,
            self.return_attention,
            self.attention,
        )

    def __call__(self, tokens: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        if tokens.shape[1] > self.length:
            raise ValueError(f"{tokens.shape[1]} tokens, but the text encoder was built for {self.length}")
        # The table is gathered, not the tokens: XLA would look words up where their column of the table lies.
        x = sharding.shard_rows(jnp.take(sharding.replicate(self.embed.embedding), tokens, axis=0))
        if self.embed_scale:
            # Words and places start at the size of what a block adds to them: smaller, they would drown in it.
            # Unscaled, the same table serves as output embedding.
            x = x * self.width**0.5
        x = x + self.position[None, : tokens.shape[1]]
        if self.variant.first_norm:
            x = self.norm_pre(x)
        return self.transformer(x.astype(self.dtype), None if self.variant.causal else valid)

    def attend_vocabulary(self, x: jax.Array) -> jax.Array:
        """Logits float32 [...,V] of features x [...,D] against the token embedding.

        In float32 whatever the compute dtype: bfloat16 logits would tie and blur the loss. See `similarity.PRECISION`.
        """
        return jnp.einsum("...d,vd->...v", x.astype(jnp.float32), self.embed.embedding, precision=PRECISION)

    @property
    def layers(self) -> int:
        """How many there are."""
        return self.depth

    def layer_numbers(self, path: str) -> np.ndarray:
        """As `base.TextEncoder.layer_numbers`."""
        return transformer_layer_numbers(path, self.depth)

    def work(self) -> work.Work:
        """As `base.TextEncoder.work`."""
        part = {"width": self.width, "depth": self.depth, "mlp_dim": self.mlp_dim}
        return work.layers(part, self.length, remat=self.remat)
