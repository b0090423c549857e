"""The forward pass of a dual encoder of another program: two transformers, as pure functions of their weights.

One tree of weights fits all families that `layouts` imports. Of an encoder: "position" [N,D], "layers" (of each weight
all depths stacked), "head" (one or two dense layers to the embedding), and, where the family has them, "norm_pre" and
"norm". Of images also "patch" (dense) and "class_token" [D]; of texts "tokens" [V,D]. A dense layer is {"kernel"
[in,out], "bias" [out], which may be missing}, a norm {"scale", "bias"}.

Everything is float32, products too, whatever the accelerator: these are other people's numbers.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmclip_jax.models.inputs import patchify

Params = dict[str, Any]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "tanh": jnp.tanh,
}


@dataclasses.dataclass(frozen=True)
class Tower:
    """What the weights of an encoder do not tell.

    heads: of attention. activation: of the MLPs; head_activation: between the layers of the head, both of
    `ACTIVATIONS`. eps: of the norms. post_norm: norms follow the residual sums (BERT) instead of preceding the
    branches. causal: a token sees only those before it.
    """

    heads: int
    activation: str = "gelu"
    head_activation: str = "gelu"
    eps: float = 1e-5
    post_norm: bool = False
    causal: bool = False


@functools.partial(jax.jit, static_argnames="tower")
def embed_images(params: Params, images: jax.Array, *, tower: Tower) -> jax.Array:
    """[B,S,S,C] float32, normalised as the model wants it -> embeddings [B,E], L2-normalised."""
    patch_size = round((params["patch"]["kernel"].shape[0] / images.shape[-1]) ** 0.5)
    with jax.default_matmul_precision("highest"):
        x = _dense(params["patch"], patchify(images, patch_size))
        token = jnp.broadcast_to(params["class_token"], (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([token, x], axis=1) + params["position"][None]
        return _encode(params, tower, x, jnp.zeros(len(x), jnp.int32), None)


@functools.partial(jax.jit, static_argnames="tower")
def embed_texts(params: Params, tokens: jax.Array, count: jax.Array, *, tower: Tower) -> jax.Array:
    """Token ids int32 [B,L] with the number of true ones [B] -> embeddings [B,E], L2-normalised.

    A causal encoder is read at the last true token, the end of the text; another one at the first, the class token.
    """
    place = jnp.arange(tokens.shape[1])
    if tower.causal:
        at, visible = count - 1, (place[None, :] <= place[:, None])[None]
    else:
        at, visible = jnp.zeros_like(count), place[None, None, :] < count[:, None, None]
    with jax.default_matmul_precision("highest"):
        x = jnp.take(params["tokens"], tokens, axis=0) + params["position"][None, : tokens.shape[1]]
        return _encode(params, tower, x, at, visible)


def _encode(params: Params, tower: Tower, x: jax.Array, at: jax.Array, visible: jax.Array | None) -> jax.Array:
    """x [B,N,D]; at [B]: the token that is read; visible: bool, broadcast to [B,N,N]."""
    if "norm_pre" in params:
        x = _norm(params["norm_pre"], x, tower.eps)

    def block(x: jax.Array, layer: Params) -> tuple[jax.Array, None]:
        def attend(y: jax.Array) -> jax.Array:
            return _attention(layer, tower.heads, y, visible)

        def mlp(y: jax.Array) -> jax.Array:
            return _dense(layer["mlp_out"], ACTIVATIONS[tower.activation](_dense(layer["mlp_in"], y)))

        for norm, branch in (("norm_1", attend), ("norm_2", mlp)):
            if tower.post_norm:
                x = _norm(layer[norm], x + branch(x), tower.eps)
            else:
                x = x + branch(_norm(layer[norm], x, tower.eps))
        return x, None

    x, _ = jax.lax.scan(block, x, params["layers"])
    y = jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]
    if "norm" in params:
        y = _norm(params["norm"], y, tower.eps)
    for number, layer in enumerate(params["head"]):
        y = _dense(layer, ACTIVATIONS[tower.head_activation](y) if number else y)
    return y / jnp.maximum(jnp.linalg.norm(y, axis=-1, keepdims=True), 1e-12)


def _attention(layer: Params, heads: int, x: jax.Array, visible: jax.Array | None) -> jax.Array:
    def split(name: str) -> jax.Array:
        return _dense(layer[name], x).reshape(*x.shape[:-1], heads, -1)

    q_BxNxHxD, k_BxNxHxD, v_BxNxHxD = split("query"), split("key"), split("value")
    logits = jnp.einsum("bqhd,bkhd->bhqk", q_BxNxHxD, k_BxNxHxD) * q_BxNxHxD.shape[-1] ** -0.5
    if visible is not None:
        logits = jnp.where(visible[:, None], logits, jnp.finfo(jnp.float32).min)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1), v_BxNxHxD)
    return _dense(layer["out"], mixed.reshape(x.shape))


def _dense(layer: Params, x: jax.Array) -> jax.Array:
    y = jnp.einsum("...i,io->...o", x, layer["kernel"])
    return y + jnp.expand_dims(layer["bias"], tuple(range(y.ndim - 1))) if "bias" in layer else y


def _norm(layer: Params, x: jax.Array, eps: float) -> jax.Array:
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    scale, bias = (jnp.expand_dims(layer[name], tuple(range(x.ndim - 1))) for name in ("scale", "bias"))
    return (x - mean) * jax.lax.rsqrt(variance + eps) * scale + bias
