"""The MMCLIP model: two encoders, two projections, two decoders; every method is a pure function of the parameters."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mmclip_jax import sharding
from mmclip_jax.errors import UserError
from mmclip_jax.models import attention, encoders, masking, similarity
from mmclip_jax.models.decoders import ImageDecoder, TextDecoder
from mmclip_jax.models.encoders.base import ImageEncoder, TextEncoder
from mmclip_jax.models.transformer import ACTIVATIONS, Attention

INITIAL_TEMPERATURE = 0.07
MAX_LOGIT_SCALE = 100.0
POOLS = ("mean", "max", "cls", "map")
TEXT_POOLS = ("mean", "max", "first", "last")
DTYPES = ("float32", "bfloat16")
RESPONSES = ("similarity", "cross_attention")
PAD_ID = 0
_TOWERS = ("image", "text", "image_decoder", "text_decoder")


@dataclasses.dataclass(frozen=True)
class Head:
    """How a pooled feature becomes an embedding: by one linear map (ours), or two with an activation between them.

    Attributes:
      hidden: width between the two; 0 for one map.
      activation: between them, of `ACTIVATIONS`.
      hidden_bias: whether the first of two has a bias.
      bias: whether the last one has.
    """

    hidden: int = 0
    activation: str = "gelu"
    hidden_bias: bool = True
    bias: bool = False


class MMCLIP(nn.Module):
    """Built from the `model` part of a config. Shapes: B rows, N patches, L tokens, D widths, E embedding."""

    image_encoder: ImageEncoder
    text_encoder: TextEncoder
    decode_patches: ImageDecoder
    decode_tokens: TextDecoder
    embed_dim: int
    pool: str
    text_pool: str
    pool_heads: int
    image_head: Head
    text_head: Head
    dtype: jnp.dtype

    def setup(self) -> None:
        def dense(features: int, bias: bool = False, precision: str = "highest") -> nn.Dense:
            return nn.Dense(features, use_bias=bias, dtype=jnp.float32, precision=precision)

        if self.image_head.hidden:
            self.image_hidden = dense(self.image_head.hidden, self.image_head.hidden_bias)
        if self.text_head.hidden:
            self.text_hidden = dense(self.text_head.hidden, self.text_head.hidden_bias)
        self.image_projection = dense(self.embed_dim, self.image_head.bias)
        self.text_projection = dense(self.embed_dim, self.text_head.bias)
        # Weights of a softmax alone, of every patch and token; the embeddings are scaled by up to 100.
        self.response_query = dense(self.embed_dim, precision=similarity.PRECISION)
        self.response_key = dense(self.embed_dim, precision=similarity.PRECISION)
        self.log_logit_scale = self.param(
            "log_logit_scale", nn.initializers.constant(math.log(1.0 / INITIAL_TEMPERATURE)), ()
        )
        self.logit_bias = self.param("logit_bias", nn.initializers.constant(-10.0), ())
        if self.pool == "map":
            self.pool_query = self.param("pool_query", nn.initializers.normal(0.02), (1, 1, self.image_encoder.width))
            self.pool_attention = Attention(self.pool_heads, self.dtype)

    @property
    def patch_size(self) -> int:
        """Pixels a side of a patch."""
        return self.image_encoder.patch_size

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
        return patches, self._embed("image", pooled)

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
            query = jnp.broadcast_to(self.pool_query.astype(patches.dtype), (patches.shape[0], 1, patches.shape[-1]))
            pooled = self.pool_attention(query, patches)[0][:, 0]
        return patches, pooled

    def encode_text(self, tokens: jax.Array, valid: jax.Array | None = None) -> jax.Array:
        """TE: tokens int [B,L] -> T [B,L,D]; valid: bool [B,L], by default all that are not 0."""
        return self.text_encoder(tokens, tokens != PAD_ID if valid is None else valid)[0]

    def embed_text(self, features: jax.Array, valid: jax.Array) -> jax.Array:
        """u [B,E] float32, L2-normalised, from T [B,L,D] and valid bool [B,L].

        Pooled are the valid tokens: their mean or maximum, the first (BERT's class token) or the last (the end of
        CLIP's texts).
        """
        features, counted = features.astype(jnp.float32), valid[:, :, None]
        if self.text_pool == "mean":
            pooled = jnp.where(counted, features, 0.0).sum(axis=1) / jnp.maximum(counted.sum(axis=1), 1)
        elif self.text_pool == "max":
            pooled = _maximum(features, counted)
        elif self.text_pool == "first":
            pooled = features[:, 0]
        else:
            last = jnp.where(valid, jnp.arange(valid.shape[1])[None], 0).max(axis=1)
            pooled = jnp.take_along_axis(features, last[:, None, None], axis=1)[:, 0]
        return self._embed("text", pooled)

    def _embed(self, part: str, pooled: jax.Array) -> jax.Array:
        # Rows stay where they are on both sides: under fsdp XLA would rather move these small arrays than the kernel.
        return similarity.normalize(sharding.shard_rows(self._project(part, sharding.shard_rows(pooled))))

    def _project(self, part: str, x: jax.Array) -> jax.Array:
        """x [...,D] of "image" or "text" -> [...,E] float32, not normalised."""
        if part == "image":
            head, projection = self.image_head, self.image_projection
        else:
            head, projection = self.text_head, self.text_projection
        if head.hidden:
            x = ACTIVATIONS[head.activation]((self.image_hidden if part == "image" else self.text_hidden)(x))
        return projection(x)

    def project_patches(self, patches: jax.Array) -> jax.Array:
        """v_n [B,N,E] float32, L2-normalised; shares W_v with the image embedding."""
        return similarity.normalize(self._project("image", patches))

    def project_tokens(self, features: jax.Array) -> jax.Array:
        """u_l [B,L,E] float32, L2-normalised; shares W_t with the text embedding."""
        return similarity.normalize(self._project("text", features))

    def response(
        self, patches: jax.Array, features: jax.Array, weights: jax.Array, kind: str, temperature: float
    ) -> jax.Array:
        """r [B,N] float32 of V [B,N,D] to T [B,L,D] with token weights [B,L]; kind: "similarity"|"cross_attention"."""
        if kind == "similarity":
            queries, keys = self._project("image", patches), self._project("text", features)
        else:
            queries, keys = self.response_query(patches), self.response_key(features)
        return similarity.text_response(queries, keys, weights, temperature)

    def attend_text(self, patches: jax.Array, features: jax.Array, valid: jax.Array) -> jax.Array:
        """A_r = softmax_l(E_img E_text^T / sqrt(d_k)) T: for each patch the text it attends to, [B,N,D_t]."""
        return similarity.attended_text(self.response_query(patches), self.response_key(features), features, valid)

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


def build_model(config: ConfigDict, device: Any | None = None) -> MMCLIP:
    """The model of a config's `model` part.

    device: on which it will run, which decides how attention is computed (`attention.choose`); None: in the plain form.

    Raises:
      UserError: sizes that do not fit together.
    """
    for name, allowed in (("pool", POOLS), ("dtype", DTYPES), ("text_pool", TEXT_POOLS)):
        if config[name] not in allowed:
            raise UserError(f"model.{name}={config[name]!r} is not one of {', '.join(allowed)}")
    if config.image_size % config.patch_size:
        raise UserError(f"model.image_size={config.image_size} is no multiple of patch_size={config.patch_size}")
    for name in ("image_decoder", "text_decoder"):
        if config[name].width % config[name].heads:
            raise UserError(f"model.{name}.width={config[name].width} is no multiple of heads={config[name].heads}")
    if config.image_decoder.width % 4:
        raise UserError(f"model.image_decoder.width={config.image_decoder.width} is no multiple of 4")
    config = config.copy_and_resolve_references().unlock()
    towers = [part for part in _TOWERS if "depths" not in config[part] or not config[part].depths]
    widths = [config[part].width // config[part].heads for part in towers]
    config.attention = attention.choose(config.get("attention", "auto"), config.dtype, widths, device)
    image, text = encoders.image_encoder(config), encoders.text_encoder(config)
    if config.pool == "cls" and not image.has_class_token:
        raise UserError(f"model.pool='cls' needs a class token, which {config.image.encoder} has not; take mean")
    if config.pool == "map" and image.width % config.image.heads:
        raise UserError(
            f"model.image.width={image.width} is no multiple of heads={config.image.heads}, those of the pool"
        )
    compute = {"dtype": jnp.dtype(config.dtype), "remat": config.remat, "unroll": config.unroll, "parent": None}
    compute["attention"] = config.attention
    return MMCLIP(
        image_encoder=image,
        text_encoder=text,
        decode_patches=ImageDecoder(patch_pixels=config.patch_size**2, **config.image_decoder, **compute),
        decode_tokens=TextDecoder(output_width=text.width, **config.text_decoder, **compute),
        embed_dim=config.embed_dim,
        pool=config.pool,
        text_pool=config.text_pool,
        pool_heads=config.image.heads,
        image_head=Head(**config.get("image_head", {})),
        text_head=Head(**config.get("text_head", {})),
        dtype=jnp.dtype(config.dtype),
    )


def init_params(model: MMCLIP, config: ConfigDict, seed: int) -> Any:
    """Initial parameters, float32, from the seed alone; config: the `model` part."""
    images = jnp.zeros((1, config.image_size, config.image_size, 1))
    tokens = jnp.ones((1, config.text.length), jnp.int32)
    return model.init(jax.random.key(seed), images, tokens)["params"]
