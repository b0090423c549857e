"""The encoders by name: a new one is a module with the interface of `base`, and an entry here.

An entry builds a Flax module from the `model` part of a config; it takes from it what concerns it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from mmclip_jax.errors import UserError
from mmclip_jax.models.attention import PLAIN
from mmclip_jax.models.encoders.base import ImageEncoder, TextEncoder
from mmclip_jax.models.encoders.convnext import ConvNeXt
from mmclip_jax.models.encoders.text import TextTransformer
from mmclip_jax.models.encoders.vit import STEMS, ViT
from mmclip_jax.models.transformer import MLP_ACTIVATIONS, NORMS, OURS, Variant


def image_encoder(config: ConfigDict) -> ImageEncoder:
    """The image encoder of a config's `model` part.

    Raises:
      UserError: settings that do not fit together.
    """
    return _named(IMAGE_ENCODERS, "image", config)(config)


def text_encoder(config: ConfigDict) -> TextEncoder:
    """The text encoder of a config's `model` part.

    Raises:
      UserError: settings that do not fit together.
    """
    return _named(TEXT_ENCODERS, "text", config)(config)


def _named(encoders: dict[str, Any], part: str, config: ConfigDict) -> Any:
    name = config[part].get("encoder", next(iter(encoders)))
    if name not in encoders:
        raise UserError(f"model.{part}.encoder={name!r} is not one of {', '.join(encoders)}")
    return encoders[name]


def _transformer(part: str, config: ConfigDict, **fixed: Any) -> dict[str, Any]:
    """What an encoder around a transformer takes from config.PART; fixed: what its name says of the variant."""
    own = config[part]
    if own.width % own.heads:
        raise UserError(f"model.{part}.width={own.width} is no multiple of heads={own.heads}")
    sizes = {name: own[name] for name in ("width", "depth", "heads", "mlp_dim")}
    how = {"variant": _variant(part, config, **fixed), "attention": config.get("attention", PLAIN)}
    return sizes | _computed(config) | how


def _computed(config: ConfigDict) -> dict[str, Any]:
    """How modules are computed, and that they belong to none yet."""
    return {"dtype": jnp.dtype(config.dtype), "remat": config.remat, "unroll": config.unroll, "parent": None}


def _variant(part: str, config: ConfigDict, **fixed: Any) -> Variant:
    own = config[part]
    names = [field.name for field in dataclasses.fields(Variant)]
    variant = Variant(**({name: own[name] for name in names if name in own} | fixed))
    for name, value, allowed in (
        ("activation", variant.activation, MLP_ACTIVATIONS),
        ("norm", variant.norm, NORMS),
    ):
        if value not in allowed:
            raise UserError(f"model.{part}.{name}={value!r} is not one of {', '.join(allowed)}")
    return variant


def _vit(config: ConfigDict) -> ImageEncoder:
    if config.stem not in STEMS:
        raise UserError(f"model.stem={config.stem!r} is not one of {', '.join(STEMS)}")
    if config.stem == "conv" and config.patch_size & (config.patch_size - 1):
        raise UserError(f"model.stem='conv' halves the image: patch_size={config.patch_size} must be a power of 2")
    return ViT(
        patch_size=config.patch_size,
        stem=config.stem,
        class_token=config.pool == "cls" or config.image.get("class_token", False),
        registers=config.image.get("registers", 0),
        **_transformer("image", config),
    )


def _convnext(config: ConfigDict) -> ImageEncoder:
    image, depths = config.image, tuple(config.image.get("depths", ()))
    if config.stem != "patch":
        raise UserError(f"model.stem={config.stem!r} is of model.image.encoder='vit': a convnext has a stem of its own")
    for name, value in (dataclasses.asdict(OURS) | {"class_token": False, "registers": 0}).items():
        if name not in ("activation", "epsilon") and image.get(name, value) != value:
            raise UserError(f"model.image.{name}={image[name]!r} is of model.image.encoder='vit': a convnext has none")
    if not depths:
        raise UserError("model.image.encoder='convnext' needs model.image.depths, such as (3, 3, 9, 3)")
    if image.width % (1 << (len(depths) - 1)):
        raise UserError(f"model.image.width={image.width} cannot be halved at each of {len(depths)} stages")
    encoder = ConvNeXt(depths, image.width, _variant("image", config), **_computed(config))
    if encoder.patch_size != config.patch_size:
        raise UserError(
            f"model.patch_size={config.patch_size}, but a convnext of {len(depths)} stages has patches of "
            f"{encoder.patch_size} pixels: set model.patch_size={encoder.patch_size}"
        )
    return encoder


def _text(embed_scale: bool = False, **fixed: Any) -> Callable[[ConfigDict], TextEncoder]:
    def build(config: ConfigDict) -> TextEncoder:
        return TextTransformer(
            vocab_size=config.text.vocab_size,
            length=config.text.length,
            embed_scale=embed_scale,
            **_transformer("text", config, **fixed),
        )

    return build


IMAGE_ENCODERS: dict[str, Callable[[ConfigDict], ImageEncoder]] = {"vit": _vit, "convnext": _convnext}
# The names say how the layers are built; activation, epsilon and key bias are settings of each.
TEXT_ENCODERS: dict[str, Callable[[ConfigDict], TextEncoder]] = {
    "transformer": _text(embed_scale=True),
    "bert": _text(norm="post", first_norm=True, final_norm=False),
    "clip": _text(causal=True),
}
