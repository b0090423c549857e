"""One encoder of published weights: which family it is of, its parameters, and the settings of a model that runs it.

The names of the weights tell the family. config.json beside them (Hugging Face's or timm's) tells what the shapes do
not: heads, activation, epsilon. Without it stands what the family's published models have, and the result says so.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmclip_jax.errors import UserError
from mmclip_jax.fields import field, fits, read_json
from mmclip_jax.models.pretrained import families
from mmclip_jax.models.pretrained.blocks import Params, grid, heads_of, image_sizes, sizes
from mmclip_jax.models.pretrained.weights import Weights, find_weights, read_weights
from mmclip_jax.models.transformer import MLP_ACTIVATIONS

CONFIG, PREPROCESSING = "config.json", "preprocessor_config.json"
HALF = ((0.5,) * 3, (0.5,) * 3)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}
# Buffers that are saved beside the weights.
_BUFFERS = ("attn_mask", "position_ids", "token_type_ids", "input_resolution", "context_length", "vocab_size")


@dataclasses.dataclass(frozen=True)
class Family:
    """How the weights of a family are told from others, and read.

    title: for people. part: "image" or "text". ending: of a name that it alone has; what stands before it is the
    prefix. read: (weights, prefix) -> parameters. encoder: its name in `mmclip_jax.models.encoders`. epsilon: of its
    norms, activation: of its MLPs, normal: (mean, std) of its pixels, where nothing says them. left_out: beginnings of
    names, behind the prefix, that are no part of the encoder.
    """

    title: str
    part: str
    ending: str
    read: Callable[[Weights, str], Params]
    encoder: str
    epsilon: float
    activation: str = "gelu"
    normal: tuple[Sequence[float], Sequence[float]] = IMAGENET
    left_out: tuple[str, ...] = ()


_HEADS_OF_OTHERS = ("pooler.", "classifier.", "head.", "lm_head.", "cls.", "cls_projection_head.", "logit_scale")
FAMILIES = (
    Family(
        *("timm's vision transformer", "image", "patch_embed.proj.weight", families.timm, "vit", 1e-6),
        left_out=("head.", "fc_norm.", "pre_logits.", "mask_token", "decoder_"),
    ),
    Family(
        *("Hugging Face's DINOv2", "image", "encoder.layer.0.layer_scale1.lambda1", families.dinov2, "vit", 1e-6),
        left_out=("embeddings.mask_token", *_HEADS_OF_OTHERS),
    ),
    Family(
        *("Hugging Face's ViT", "image", "embeddings.patch_embeddings.projection.weight", families.vit, "vit", 1e-12),
        normal=HALF,
        left_out=("embeddings.mask_token", "decoder.", *_HEADS_OF_OTHERS),
    ),
    Family(
        *("CLIP's image encoder", "image", "embeddings.patch_embedding.weight", families.clip_image, "vit", 1e-5),
        activation="quick_gelu",
        normal=OPENAI,
    ),
    Family(
        *("OpenAI's CLIP, images", "image", "class_embedding", families.openai_image, "vit", 1e-5),
        activation="quick_gelu",
        normal=OPENAI,
        left_out=("proj",),
    ),
    Family(
        *("BERT", "text", "embeddings.word_embeddings.weight", families.bert, "bert", 1e-12),
        left_out=_HEADS_OF_OTHERS,
    ),
    Family(
        *("CLIP's text encoder", "text", "embeddings.token_embedding.weight", families.clip_text, "clip", 1e-5),
        activation="quick_gelu",
    ),
    Family(
        *("OpenAI's CLIP, texts", "text", "token_embedding.weight", families.openai_text, "clip", 1e-5),
        activation="quick_gelu",
        left_out=("visual.", "text_projection", "logit_scale"),
    ),
)
_CONVOLUTIONS = (
    "layer1.0.conv1.weight",
    "features.denseblock1.denselayer1.conv1.weight",
    "stages.0.blocks.0.conv_dw.weight",
)
_HALVES = ("text_model.", "vision_model.", "text.", "visual_projection", "text_projection")  # of dual encoders


@dataclasses.dataclass(frozen=True)
class Encoder:
    """One encoder as its authors published it.

    params: of the encoder, patches in its own channels. settings: of `model.image` or `model.text`; assumed: those of
    them that nobody states. patch_size, image_size: pixels a side (0 for texts). normal: (mean, std) of each channel of
    pixels in [0, 1]. left_out: names of weights that are no part of it. file: where they lie.
    """

    title: str
    part: str
    file: pathlib.Path
    params: Params
    settings: Mapping[str, Any]
    assumed: Sequence[str]
    left_out: Sequence[str]
    patch_size: int = 0
    image_size: int = 0
    normal: tuple[Sequence[float], Sequence[float]] = IMAGENET


def load(path: str | pathlib.Path, part: str, heads: int = 0) -> Encoder:
    """Reads the "image" or the "text" encoder of a file of weights, or a folder with one; of a dual encoder its half.

    heads: of attention, where nothing beside the weights says it and the family's usual number is wrong; 0: find it.

    Raises:
      UserError: no weights, damaged ones, another architecture, or one that is not supported.
    """
    file = find_weights(path)
    weights = Weights(read_weights(file), str(file), _BUFFERS)
    family, prefix = _family(weights, part)
    config, beside = _config(file, part)
    _check_kind(config, beside, part)
    params = family.read(weights, prefix)
    own = [name for name in weights.left() if name.startswith(prefix) and not _is_other(name, prefix, family)]
    if own:
        raise UserError(
            f"{file}: {len(own)} of its weights have no place in {family.title} ({', '.join(own[:3])}): another "
            "architecture, which is not supported"
        )
    settings = image_sizes(params) if part == "image" else sizes(params)
    told = _timm_told(config, beside, params) if "architecture" in config else _hugging_told(config, beside)
    if heads:
        told.setdefault("heads", heads)
    found: dict[str, Any] = {"activation": family.activation, "epsilon": family.epsilon} | told
    found["heads"] = heads_of(str(file), part, settings["width"], found.get("heads", 0))
    assumed = [name for name in ("heads", "activation", "epsilon") if name not in told]
    settings |= {"encoder": family.encoder} | found
    if part == "text":
        settings["length"], settings["vocab_size"] = params["position"].shape[0], params["embed"]["embedding"].shape[0]
        return Encoder(family.title, part, file, params, settings, assumed, weights.left())
    side, patch_size, _ = grid(params, str(file))
    normal = normal_told(file, config, beside)
    return Encoder(
        *(family.title, part, file, params, settings, assumed + ["normalisation"] * (normal is None), weights.left()),
        patch_size=patch_size,
        image_size=side * patch_size,
        normal=normal or _usual_normal(family, weights, config),
    )


def _family(weights: Weights, part: str) -> tuple[Family, str]:
    """(family, what stands before its names)."""
    for family in FAMILIES:
        if family.part != part or not (prefixes := weights.ending(family.ending)):
            continue
        if len(prefixes) > 1:
            raise UserError(
                f"{weights.where} holds {len(prefixes)} encoders ({', '.join(map(repr, prefixes))}); save the weights "
                "of one alone"
            )
        return family, prefixes[0]
    known = ", ".join(family.title for family in FAMILIES if family.part == part)
    if any(weights.ending(name) for name in _CONVOLUTIONS):
        raise UserError(f"{weights.where} is a convolutional network; image encoders known here: {known}")
    first = ", ".join(weights.names()[:2])
    raise UserError(f"{weights.where} holds no {part} encoder known here ({known}); its weights begin with {first}")


def _is_other(name: str, prefix: str, family: Family) -> bool:
    """Whether a weight that nobody took is known to be no part of the encoder."""
    behind = name.removeprefix(prefix)
    if behind.startswith(family.left_out):
        return True
    # Without a prefix every name is behind it: those of the other half of a dual encoder are not this one's.
    return not prefix and behind.startswith(_HALVES)


def _config(file: pathlib.Path, part: str) -> tuple[Mapping[str, Any], str]:
    """(the configuration of the encoder of this part, {} without one; its name for errors)."""
    beside = file.parent / CONFIG
    if not beside.is_file():
        return {}, str(beside)
    config = read_json(beside)
    nested = config.get({"image": "vision_config", "text": "text_config"}[part])
    return (nested if isinstance(nested, dict) else config), str(beside)


def _check_kind(config: Mapping[str, Any], beside: str, part: str) -> None:
    kind = field(beside, config, "model_type", str, "")
    allowed = {
        "image": ("vit", "vit_mae", "dinov2", "dinov2_with_registers", "clip", "clip_vision_model"),
        "text": ("bert", "clip", "clip_text_model", "cxr-bert"),
    }[part]
    if kind and kind not in allowed:
        raise UserError(f"{beside}: model_type {kind!r} is not supported; known here: {', '.join(allowed)}")
    if config.get("position_embedding_type") not in (None, "absolute"):
        raise UserError(f"{beside}: positions of type {config['position_embedding_type']!r} are not supported")


def _hugging_told(config: Mapping[str, Any], beside: str) -> dict[str, Any]:
    """Heads, activation and epsilon as far as Hugging Face's configuration says them."""
    told: dict[str, Any] = {}
    if count := field(beside, config, "num_attention_heads", int, 0, low=1):
        told["heads"] = count
    if name := field(beside, config, "hidden_act", str, ""):
        told["activation"] = _ACTIVATIONS.get(name, name)
        if told["activation"] not in MLP_ACTIVATIONS:
            raise UserError(f"{beside}: the activation {name!r} is not one of {', '.join(sorted(MLP_ACTIVATIONS))}")
    epsilon = field(beside, config, "layer_norm_eps", float, 0.0, low=0)
    return told | ({"epsilon": float(epsilon)} if epsilon else {})


def _timm_told(config: Mapping[str, Any], beside: str, params: Params) -> dict[str, Any]:
    """The same of timm's configuration, which names the architecture and what was changed of it."""
    name = field(beside, config, "architecture", str, "")
    changed = field(beside, config, "model_args", dict, {})
    told: dict[str, Any] = {"activation": "quick_gelu" if "quickgelu" in name else "gelu"}
    if count := field(beside, changed, "num_heads", int, 0, low=1):
        told["heads"] = count
    # Its CLIPs, which alone have a norm in front of the blocks, use PyTorch's epsilon.
    return told | {"epsilon": 1e-5 if "norm_pre" in params else 1e-6}


def normal_told(
    file: pathlib.Path, config: Mapping[str, Any], beside: str
) -> tuple[Sequence[float], Sequence[float]] | None:
    """(mean, std) of pixels in [0, 1] as timm's `config`, or the preprocessing beside the weights, says; None: neither.

    Raises:
      UserError: they are no numbers.
    """
    place = file.parent / PREPROCESSING
    if "pretrained_cfg" in config:
        told = field(beside, config, "pretrained_cfg", dict, {})
        return pixels_told(beside, told.get("mean"), told.get("std"))
    if not place.is_file():
        return None
    told = read_json(place)
    if told.get("do_normalize") is False:
        return (0.0,), (1.0,)
    return pixels_told(str(place), told.get("image_mean"), told.get("image_std"))


def pixels_told(where: str, mean: Any, std: Any) -> tuple[Sequence[float], Sequence[float]] | None:
    """The two as numbers; None where both are missing.

    Raises:
      UserError: they are not one number each, or three.
    """
    if mean is None and std is None:
        return None
    for name, values, low in (("mean", mean, None), ("std", std, 1e-6)):
        numbers = values if isinstance(values, list | tuple) else [values]
        if len(numbers) not in (1, 3) or not all(fits(value, float, low) for value in numbers):
            raise UserError(f"{where}: the {name} of its pixels is one number or three, not {values!r:.60}")
    return tuple(np.ravel(mean).tolist()), tuple(np.ravel(std).tolist())


def _usual_normal(
    family: Family, weights: Weights, config: Mapping[str, Any]
) -> tuple[Sequence[float], Sequence[float]]:
    """What most published models of the family have: MAE, of Hugging Face's too, that of ImageNet."""
    masked = config.get("model_type") == "vit_mae" or any("decoder_embed" in name for name in weights.names())
    return IMAGENET if masked else family.normal
