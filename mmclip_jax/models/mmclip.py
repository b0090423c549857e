"""The MMCLIP model: two encoders, two projections, two decoders; every method is a pure function of the parameters."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mmclip_jax import sharding
from mmclip_jax.errors import UserError
from mmclip_jax.models import masking
from mmclip_jax.models.decoders import ImageDecoder, TextDecoder
from mmclip_jax.models.text import TextEncoder
from mmclip_jax.models.transformer import Attention
from mmclip_jax.models.vit import ImageEncoder

INITIAL_TEMPERATURE = 0.07
MAX_LOGIT_SCALE = 100.0
POOLS = ("mean", "max", "cls", "map")
TEXT_POOLS = ("mean", "max")
DTYPES = ("float32", "bfloat16")
STEMS = ("patch", "conv")
RESPONSES = ("similarity", "cross_attention")
PAD_ID = 0


class MMCLIP(nn.Module):
    """Built from the `model` part of a config. Shapes: B rows, N patches, L tokens, D widths, E embedding."""

    patch_size: int
    embed_dim: int
    pool: str
    text_pool: str
    stem: str
    image: dict
    text: dict
    image_decoder: dict
    text_decoder: dict
    dtype: jnp.dtype
    remat: bool
    unroll: bool

    def setup(self) -> None:
        compute = {"dtype": self.dtype, "remat": self.remat, "unroll": self.unroll}
        self.image_encoder = ImageEncoder(
            patch_size=self.patch_size, stem=self.stem, class_token=self.pool == "cls", **self.image, **compute
        )
        self.text_encoder = TextEncoder(**self.text, **compute)
        self.decode_patches = ImageDecoder(patch_pixels=self.patch_size**2, **self.image_decoder, **compute)
        self.decode_tokens = TextDecoder(output_width=self.text["width"], **self.text_decoder, **compute)

        def projection() -> nn.Dense:
            return nn.Dense(self.embed_dim, use_bias=False, dtype=jnp.float32, precision="highest")

        self.image_projection, self.text_projection = projection(), projection()
        self.response_query, self.response_key = projection(), projection()
        self.log_logit_scale = self.param(
            "log_logit_scale", nn.initializers.constant(math.log(1.0 / INITIAL_TEMPERATURE)), ()
        )
        self.logit_bias = self.param("logit_bias", nn.initializers.constant(-10.0), ())
        if self.pool == "map":
            self.pool_query = self.param("pool_query", nn.initializers.normal(0.02), (1, 1, self.image["width"]))
            self.pool_attention = Attention(self.image["heads"], self.dtype)

    def __call__(self, images: jax.Array, tokens: jax.Array) -> None:
        """Touches every parameter, for initialisation: images [B,S,S,1], tokens int [B,L]."""
        valid = tokens != PAD_ID
        patches, _ = self.encode_image(images)
        features = self.encode_text(tokens)
        self.response(patches, features, jnp.ones(tokens.shape), "cross_attention", 1.0)
        first = jnp.zeros((len(images), 1), jnp.int32)
        self.reconstruct(patches, first, features, valid)
        self.restore(features, valid, patches, first)
        self.embed_text(features, valid)

    def encode_image(self, images: jax.Array, visible: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """IE: images float [B,S,S,1] -> (V [B,N,D], v [B,E] float32, L2-normalised).

        visible: int [B,M], the only patches to encode; V is then [B,M,D].
        """
        patches, pooled = self.pool_image(images, visible)
        return patches, self._embed(self.image_projection, pooled)

    def pool_image(self, images: jax.Array, visible: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """IE before its projection: images float [B,S,S,1] -> (V [B,N,D], pooled [B,D] for a classifier)."""
        patches, class_token, _ = self.image_encoder(images, visible)
        if self.pool == "mean":
            pooled = patches.astype(jnp.float32).mean(axis=1)
        elif self.pool == "max":
            pooled = _maximum(patches.astype(jnp.float32))
        elif self.pool == "cls":
            assert class_token is not None
            pooled = class_token
        else:
            query = jnp.broadcast_to(self.pool_query.astype(patches.dtype), (len(patches), 1, patches.shape[-1]))
            pooled = self.pool_attention(query, patches)[0][:, 0]
        return patches, pooled

    def encode_text(self, tokens: jax.Array) -> jax.Array:
        """TE: tokens int [B,L], padded with 0 -> T [B,L,D]."""
        return self.text_encoder(tokens, tokens != PAD_ID)[0]

    def embed_text(self, features: jax.Array, valid: jax.Array) -> jax.Array:
        """u [B,E] float32, L2-normalised, from T [B,L,D] and valid bool [B,L]: a mean or maximum over valid tokens."""
        features, valid = features.astype(jnp.float32), valid[:, :, None]
        if self.text_pool == "mean":
            pooled = jnp.where(valid, features, 0.0).sum(axis=1) / jnp.maximum(valid.sum(axis=1), 1)
        else:
            pooled = _maximum(features, valid)
        return self._embed(self.text_projection, pooled)

    @staticmethod
    def _embed(projection: nn.Dense, pooled: jax.Array) -> jax.Array:
        # Rows stay where they are on both sides: under fsdp XLA would rather move these small arrays than the kernel.
        return masking.normalize(sharding.shard_rows(projection(sharding.shard_rows(pooled))))

    def project_patches(self, patches: jax.Array) -> jax.Array:
        """v_n [B,N,E] float32, L2-normalised; shares W_v with the image embedding."""
        return masking.normalize(self.image_projection(patches))

    def project_tokens(self, features: jax.Array) -> jax.Array:
        """u_l [B,L,E] float32, L2-normalised; shares W_t with the text embedding."""
        return masking.normalize(self.text_projection(features))

    def response(
        self, patches: jax.Array, features: jax.Array, weights: jax.Array, kind: str, temperature: float
    ) -> jax.Array:
        """r [B,N] float32 of V [B,N,D] to T [B,L,D] with token weights [B,L]; kind: "similarity"|"cross_attention"."""
        if kind == "similarity":
            queries, keys = self.image_projection(patches), self.text_projection(features)
        else:
            queries, keys = self.response_query(patches), self.response_key(features)
        return masking.text_response(queries, keys, weights, temperature)

    def attend_text(self, patches: jax.Array, features: jax.Array, valid: jax.Array) -> jax.Array:
        """A_r = softmax_l(E_img E_text^T / sqrt(d_k)) E_text: for each patch the text it attends to, [B,N,D_t]."""
        queries, keys = self.response_query(patches), self.response_key(features)
        queries, keys = jax.lax.optimization_barrier((queries, keys))
        logits = jnp.einsum("bne,ble->bnl", queries, keys, precision="highest") * self.embed_dim**-0.5
        weights = jax.nn.softmax(jnp.where(valid[:, None, :], logits, jnp.finfo(jnp.float32).min), axis=-1)
        return jnp.einsum("bnl,bld->bnd", weights.astype(features.dtype), features)

    def reconstruct(
        self,
        patches: jax.Array,
        masked: jax.Array,
        features: jax.Array,
        valid: jax.Array,
    ) -> jax.Array:
        """ID: normalised pixels float32 [B,K,P*P] of the masked patches from the others and the text.

        patches: V [B,N,D]; masked: int [B,K]; features: T [B,L,D_t]; valid: bool [B,L].
        """
        hidden = masking.hidden_patches(masked, patches.shape[1])
        attended = self.attend_text(patches, features, valid)
        return self.decode_patches(patches, hidden, masked, attended, features, valid)

    def restore(self, features: jax.Array, valid: jax.Array, patches: jax.Array, slots: jax.Array) -> jax.Array:
        """TD: vocabulary logits float32 [B,K,V] at the slots int [B,K] of a masked text with features [B,L,D_t]."""
        return self.text_encoder.attend_vocabulary(self.decode_tokens(features, valid, patches, slots))

    def scale_and_bias(self) -> tuple[jax.Array, jax.Array]:
        """The logit scale s and the logit bias (of the sigmoid loss)."""
        return jnp.exp(self.log_logit_scale), self.logit_bias


def _maximum(x: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Maxima [B,D] over the elements of x [B,N,D] that `valid` [B,N,1] allows; 0 where it allows none.

    The gradient of jnp.max compares x with its maximum and divides by the number of hits: a compiler that computes x
    twice, rounded otherwise, finds no hit and gives NaN. Here it goes to the element that was chosen.
    """
    allowed = x if valid is None else jnp.where(valid, x, jnp.finfo(jnp.float32).min)
    best = jnp.argmax(jax.lax.stop_gradient(allowed), axis=1, keepdims=True)
    chosen = jnp.arange(x.shape[1])[None, :, None] == best
    return jnp.where(chosen if valid is None else chosen & valid, x, 0.0).sum(axis=1)


def build_model(config: ConfigDict) -> MMCLIP:
    """The model of a config's `model` part.

    Raises:
      UserError: sizes that do not fit together.
    """
    if config.pool not in POOLS:
        raise UserError(f"model.pool={config.pool!r} is not one of {', '.join(POOLS)}")
    if config.dtype not in DTYPES:
        raise UserError(f"model.dtype={config.dtype!r} is not one of {', '.join(DTYPES)}")
    if config.text_pool not in TEXT_POOLS:
        raise UserError(f"model.text_pool={config.text_pool!r} is not one of {', '.join(TEXT_POOLS)}")
    if config.stem not in STEMS:
        raise UserError(f"model.stem={config.stem!r} is not one of {', '.join(STEMS)}")
    if config.stem == "conv" and config.patch_size & (config.patch_size - 1):
        raise UserError(f"model.stem='conv' halves the image: patch_size={config.patch_size} must be a power of 2")
    if config.image_size % config.patch_size:
        raise UserError(f"model.image_size={config.image_size} is no multiple of patch_size={config.patch_size}")
    for name in ("image", "text", "image_decoder", "text_decoder"):
        part = config[name]
        if part.width % part.heads:
            raise UserError(f"model.{name}.width={part.width} is no multiple of heads={part.heads}")
        if name.startswith("image") and part.width % 4:
            raise UserError(f"model.{name}.width={part.width} is no multiple of 4")
    return MMCLIP(
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        pool=config.pool,
        text_pool=config.text_pool,
        stem=config.stem,
        image=dict(config.image),
        text=dict(config.text),
        image_decoder=dict(config.image_decoder),
        text_decoder=dict(config.text_decoder),
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
        unroll=config.unroll,
    )


def init_params(model: MMCLIP, config: ConfigDict, seed: int) -> Any:
    """Initial parameters, float32, from the seed alone; config: the `model` part."""
    images = jnp.zeros((1, config.image_size, config.image_size, 1))
    tokens = jnp.ones((1, config.text.length), jnp.int32)
    return model.init(jax.random.key(seed), images, tokens)["params"]
