"""Checkpoints of other programs as parameters and settings of `MMCLIP`: OpenAI's CLIP, open_clip, Hugging Face.

Shapes tell the sizes. What they do not tell (heads, activations) comes from the spec, else from the configuration
beside the weights, where the layout has one, and last from what most published models of the family have: heads of 64.
Who says them goes with them.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmclip_jax.errors import UserError
from mmclip_jax.fields import field, fits, read_json
from mmclip_jax.models.pretrained import families, single
from mmclip_jax.models.pretrained.blocks import Params, dense, grid, heads_of, image_sizes, sizes
from mmclip_jax.models.pretrained.weights import Weights, find_weights, read_weights
from mmclip_jax.models.transformer import ACTIVATIONS, MLP_ACTIVATIONS

LAYOUTS = ("openai", "open_clip", "huggingface")
OPEN_CLIP_CONFIG = "open_clip_config.json"
HUGGINGFACE_CONFIG = "config.json"
_ASSUMED = "assumed"
# Buffers and constants that are saved beside the weights.
_IGNORED = ("attn_mask", "position_ids", "token_type_ids", "input_resolution", "context_length", "vocab_size")


@dataclasses.dataclass(frozen=True)
class Told:
    """What the weights of an encoder do not tell.

    encoder: its name in `mmclip_jax.models.encoders`. heads: of attention. activation: of the MLPs; head_activation:
    between the layers of its head, both of `ACTIVATIONS`. epsilon: of the norms.
    """

    encoder: str
    heads: int
    activation: str = "gelu"
    head_activation: str = "gelu"
    epsilon: float = 1e-5


@dataclasses.dataclass(frozen=True)
class DualEncoder:
    """A dual encoder as an MMCLIP without decoders.

    params: of `MMCLIP`, what embeddings need of them; settings: of the `model` part of a config, those that the
    checkpoint fixes; image, text: what the weights do not tell of either; logit_scale: what similarities are
    multiplied by, as trained; channels: 1 or 3; description: the sizes in a line. origins: who says "heads" and
    "activation" of "image" and "text". title: of its layout, for people. normal: (mean, std) of each channel of pixels
    in [0, 1], as the folder says or as CLIP's. sha256: of the file, where somebody has summed it.
    """

    params: Params
    settings: Mapping[str, Any]
    image: Told
    text: Told
    logit_scale: float
    channels: int
    description: str
    origins: Mapping[str, Mapping[str, str]]
    title: str = "a dual encoder"
    normal: tuple[Sequence[float], Sequence[float]] = single.OPENAI
    sha256: str = ""

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return int(self.settings["image_size"])

    @property
    def context(self) -> int:
        """Tokens of the longest text."""
        return int(self.settings["text"]["length"])

    @property
    def vocab_size(self) -> int:
        """Rows of the token embedding."""
        return int(self.settings["text"]["vocab_size"])

    @property
    def embed_dim(self) -> int:
        """Dimensions of an embedding."""
        return int(self.settings["embed_dim"])


def load(
    path: str | pathlib.Path, layout: str, *, activation: str = "", heads: Mapping[str, int] | None = None
) -> DualEncoder:
    """Reads a checkpoint of one of `LAYOUTS`.

    Args:
      path: a file of weights, or a folder with one.
      layout: of `LAYOUTS`.
      activation: of the MLPs; "" for the configuration's, or the family's. Not of "huggingface".
      heads: {"image": n, "text": n}, where they are not of width 64 and no configuration says it. Not of "huggingface".

    Raises:
      UserError: the checkpoint is not of that layout, or an architecture that is not supported.
    """
    file = find_weights(path)
    check_options(str(file), layout, activation, heads or {})
    weights = Weights(read_weights(file), str(file), _IGNORED)
    heads = dict(heads or {})
    if layout == "huggingface":
        encoder = _huggingface(weights, read_json(file.parent / HUGGINGFACE_CONFIG), file)
    elif layout == "open_clip":
        place = file.parent / OPEN_CLIP_CONFIG
        config = field(str(place), read_json(place), "model_cfg", dict, {}) if place.is_file() else None
        encoder = _openai(weights, file, config, activation, heads)
    else:
        encoder = _openai(weights, file, None, activation, heads, quick=True)
    weights.finish()
    normal = _normal(file, layout) or single.OPENAI
    return dataclasses.replace(encoder, title=f"a dual encoder in the layout of {layout}", normal=normal)


def layout_of(file: pathlib.Path) -> str:
    """The layout of `LAYOUTS` that the files beside the weights speak of; OpenAI's has none."""
    if file.with_name(OPEN_CLIP_CONFIG).is_file():
        return "open_clip"
    return "huggingface" if file.with_name(HUGGINGFACE_CONFIG).is_file() else "openai"


def _normal(file: pathlib.Path, layout: str) -> tuple[Sequence[float], Sequence[float]] | None:
    beside = file.with_name(OPEN_CLIP_CONFIG)
    if layout == "open_clip" and beside.is_file():
        told = field(str(beside), read_json(beside), "preprocess_cfg", dict, {})
        return single.pixels_told(str(beside), told.get("mean"), told.get("std"))
    return single.normal_told(file, {}, "") if layout == "huggingface" else None


def check_options(where: str, layout: Any, activation: Any, heads: Any) -> None:
    """Checks what a spec says of a layout; activation "" and heads {} are what it leaves out.

    Raises:
      UserError: no such layout, activation or heads, or a layout that says them itself; with `where` before it.
    """
    if layout not in LAYOUTS:
        raise UserError(f"{where}: layout is one of {', '.join(LAYOUTS)}, not {layout!r}")
    if activation not in ("", *MLP_ACTIVATIONS):
        raise UserError(f"{where}: activation is one of {', '.join(sorted(MLP_ACTIVATIONS))}, not {activation!r}")
    counts = heads.values() if isinstance(heads, Mapping) else (0,)
    if not all(fits(count, int, low=1) for count in counts) or set(heads) - {"image", "text"}:
        raise UserError(f"{where}: heads are numbers of image and text, such as {{image: 12, text: 8}}")
    if layout == "huggingface" and (activation or heads):
        raise UserError(
            f"{where}: in layout huggingface {HUGGINGFACE_CONFIG} says heads and activation; leave them out"
        )


# ---------------------------------------------------------------------------------------------------------------------
# OpenAI's CLIP, and what open_clip makes of the same names


def _openai(
    weights: Weights,
    file: pathlib.Path,
    found: Mapping[str, Any] | None,
    activation: str,
    heads: Mapping[str, int],
    quick: bool = False,
) -> DualEncoder:
    """found: the configuration, if there is one; quick: the activation where neither it nor the spec says one."""
    config = found or {}
    if "visual.layer1.0.conv1.weight" in weights or "visual.attnpool.positional_embedding" in weights:
        raise UserError(f"{file}: its image encoder is a ResNet; only vision transformers are supported")
    if "logit_bias" in weights:
        raise UserError(f"{file}: trained with a sigmoid loss (it has a logit_bias), which is not supported")
    beside = file.with_name(OPEN_CLIP_CONFIG)
    vision, text_config = (field(str(beside), config, name, dict, {}) for name in ("vision_cfg", "text_cfg"))
    for part, told, known in (
        ("model_cfg", config, _MODEL),
        ("vision_cfg", vision, _VISION),
        ("text_cfg", text_config, _TEXT),
    ):
        if strange := sorted(key for key, value in told.items() if value and key not in known):
            raise UserError(f"{beside}: {strange[0]} of {part} is not supported")
    fixed = {"image": "visual.trunk.cls_token" in weights, "text": _BERT_TOKENS in weights}
    if activation not in ("", "gelu") and any(fixed.values()):
        raise UserError(f"{file}: an encoder of timm's or a BERT has gelu; leave activation out of the spec")
    usual = _ASSUMED if found is None else OPEN_CLIP_CONFIG
    activation_from = "the spec" if activation else ("OpenAI's layout" if quick else usual)
    if not activation:
        activation = "quick_gelu" if field(str(beside), config, "quick_gelu", bool, quick) else "gelu"
    image, image_told = _openai_image(weights, file, vision, activation)
    width = image["position"].shape[1]
    told = {"image": heads.get("image", 0), "text": heads.get("text", 0)}
    heads_from = {part: "the spec" if count else _ASSUMED for part, count in told.items()}
    if not told["image"] and (per_head := field(str(beside), vision, "head_width", int, 0, low=1)):
        told["image"], heads_from["image"] = width // per_head, OPEN_CLIP_CONFIG
    image_heads = heads_of(str(file), "image", width, told["image"], _SAY_HEADS)
    text, text_told = _openai_text(weights, file, text_config, activation)
    width = text["position"].shape[1]
    usual_heads = 0 if found is None or fixed["text"] else 8  # where its configuration says nothing, open_clip takes 8
    if not told["text"] and (count := field(str(beside), text_config, "heads", int, usual_heads, low=1)):
        told["text"], heads_from["text"] = count, OPEN_CLIP_CONFIG
    text_heads = heads_of(str(file), "text", width, told["text"], _SAY_HEADS)
    origins = {
        part: {"heads": heads_from[part], "activation": "its architecture" if fixed[part] else activation_from}
        for part in told
    }
    return _encoder(
        weights,
        file,
        {"image": image, "text": text},
        dataclasses.replace(image_told, heads=image_heads),
        dataclasses.replace(text_told, heads=text_heads),
        origins,
    )


def _openai_image(
    weights: Weights, file: pathlib.Path, vision: Mapping[str, Any], activation: str
) -> tuple[Params, Told]:
    """The image encoder with its "head", and what its weights do not tell."""
    if "visual.trunk.cls_token" in weights:
        if field(str(file.with_name(OPEN_CLIP_CONFIG)), vision, "timm_pool", str, "") not in ("", "token"):
            raise UserError(f"{file}: the pooling {vision['timm_pool']!r} of its timm image encoder is not supported")
        image = families.timm(weights, "visual.trunk.")
        image["head"] = [dense(weights, "visual.head.proj", None, image["position"].shape[1])]
        image_told = Told("vit", 0, epsilon=1e-6)
    elif "visual.conv1.weight" in weights:
        image, image_told = families.openai_image(weights, "visual."), _open_clip_told("vit", file, vision, activation)
        image["head"] = [{"kernel": weights.take("visual.proj", image["position"].shape[1], None)}]
    else:
        raise UserError(f"{file}: its image encoder is neither CLIP's vision transformer nor timm's: not supported")
    return image, image_told


def _openai_text(
    weights: Weights, file: pathlib.Path, config: Mapping[str, Any], activation: str
) -> tuple[Params, Told]:
    """The text encoder with its "head", and what its weights do not tell."""
    if _BERT_TOKENS in weights:
        text, pooled = families.bert(weights, "text.transformer."), config.get("hf_pooler_type")
        context = field(
            str(file.with_name(OPEN_CLIP_CONFIG)), config, "context_length", int, len(text["position"]), low=1
        )
        text["position"] = text["position"][:context]
        if pooled != "cls_last_hidden_state_pooler":
            raise UserError(
                f"{file}: its text encoder is a BERT, which is read only where {OPEN_CLIP_CONFIG} beside it names the "
                f"pooler cls_last_hidden_state_pooler, not {pooled}"
            )
        text["head"] = _projections(weights)
        text_told = Told("bert", 0, epsilon=1e-12)
    else:
        prefix = "text." if "text.token_embedding.weight" in weights else ""
        text = families.openai_text(weights, prefix)
        text["head"] = [{"kernel": weights.take(f"{prefix}text_projection", text["position"].shape[1], None)}]
        text_told = _open_clip_told("clip", file, config, activation)
    return text, text_told


def _open_clip_told(encoder: str, file: pathlib.Path, config: Mapping[str, Any], activation: str) -> Told:
    """What a vision_cfg or text_cfg of open_clip says of norms and activation.

    Raises:
      UserError: arguments of them that are not known, or a pooling other than that of the end of the text.
    """
    beside = str(file.with_name(OPEN_CLIP_CONFIG))
    norms, activations = (field(beside, config, name, dict, {}) for name in ("norm_kwargs", "act_kwargs"))
    if set(norms) - {"eps"} or activations not in ({}, {"approximate": "tanh"}):
        raise UserError(f"{beside}: norm_kwargs {dict(norms)} or act_kwargs {dict(activations)} are not supported")
    if config.get("pool_type") not in (None, "argmax", "eos"):
        raise UserError(f"{beside}: the pooling {config['pool_type']!r} of texts is not supported")
    name = "gelu_tanh" if activations and activation == "gelu" else activation
    return Told(encoder, 0, name, epsilon=float(field(beside, norms, "eps", float, 1e-5, low=0)))


_SAY_HEADS = "say it in the spec (heads)"
_BERT_TOKENS = "text.transformer.embeddings.word_embeddings.weight"
# Settings of an open_clip_config.json that are heeded, or follow from the shapes.
_MODEL = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text")
_VISION = (
    *("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "act_kwargs", "norm_kwargs"),
    *("timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj"),
)
_TEXT = (
    *("layers", "width", "heads", "mlp_ratio", "context_length", "vocab_size", "tokenizer_kwargs", "act_kwargs"),
    *("norm_kwargs", "pool_type", "pad_id", "eos_id"),
    *("hf_model_name", "hf_model_pretrained", "hf_tokenizer_name", "hf_proj_type", "hf_pooler_type"),
)


def _projections(weights: Weights) -> list[Params]:
    """open_clip's projection of a Hugging Face text encoder: linear, or two layers with a GELU between them."""
    if "text.proj.weight" in weights:
        return [dense(weights, "text.proj", None, None)]
    return [dense(weights, f"text.proj.{number}", None, None) for number in (0, 2)]


# ---------------------------------------------------------------------------------------------------------------------
# Hugging Face

# What its configurations leave out when it is so.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip_text_model": {"num_attention_heads": 8, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "clip_vision_model": {"num_attention_heads": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "bert": {"num_attention_heads": 12, "hidden_act": "gelu", "layer_norm_eps": 1e-12},
    "vit": {"num_attention_heads": 12, "hidden_act": "gelu", "layer_norm_eps": 1e-12},
}
_HUGGINGFACE_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


def _huggingface(weights: Weights, config: Mapping[str, Any], file: pathlib.Path) -> DualEncoder:
    """CLIPModel, or VisionTextDualEncoderModel of ViT (or CLIP's vision transformer) and BERT."""
    kind, beside = config.get("model_type"), file.parent / HUGGINGFACE_CONFIG
    vision, text = (dict(field(str(beside), config, name, dict, {})) for name in ("vision_config", "text_config"))
    if kind == "clip":
        vision["model_type"], text["model_type"] = "clip_vision_model", "clip_text_model"
    elif kind != "vision-text-dual-encoder":
        raise UserError(f"{beside}: model_type {kind!r} is not supported; clip and vision-text-dual-encoder are")
    texts = ("clip_text_model",) if kind == "clip" else ("bert",)
    for part, allowed in ((vision, ("vit", "clip_vision_model")), (text, texts)):
        if part.get("model_type") not in allowed:
            raise UserError(
                f"{beside}: an encoder of model_type {part.get('model_type')!r} is not "
                f"supported; known here: {', '.join(allowed)}"
            )
    # A dual encoder of two models holds CLIP's vision model one level deeper.
    nested = "vision_model.vision_model.embeddings.class_embedding" in weights
    image = _READERS[vision["model_type"]](weights, "vision_model." * (1 + nested))
    words = _READERS[text["model_type"]](weights, "text_model.")
    for params, model, place, name in (
        (image, vision, "vision_model", "visual_projection"),
        (words, text, "text_model", "text_projection"),
    ):
        params["head"] = [*_pooler(weights, place, model, beside), dense(weights, name, None, None)]
    told = [_told(part, beside) for part in (vision, text)]
    for each, params, name in zip(told, (image, words), ("vision", "text"), strict=True):
        heads_of(str(beside), name, params["position"].shape[1], each.heads)
    origins = {
        part: {
            what: HUGGINGFACE_CONFIG if config.get(name) is not None else "default of transformers"
            for what, name in (("heads", "num_attention_heads"), ("activation", "hidden_act"))
        }
        for part, config in (("image", vision), ("text", text))
    }
    return _encoder(weights, file, {"image": image, "text": words}, told[0], told[1], origins)


def _pooler(weights: Weights, place: str, model: Mapping[str, Any], file: pathlib.Path) -> list[Params]:
    """The layer between the class token and the projection; [] where there is none, or one that changes nothing.

    Raises:
      UserError: one without an activation that changes something.
    """
    if model["model_type"].startswith("clip"):
        return []
    layer = dense(weights, f"{place}.pooler.dense", None, None)
    if model.get("pooler_act") != _LINEAR:
        return [layer]
    if not np.array_equal(layer["kernel"], np.eye(*layer["kernel"].shape)) or np.any(layer.get("bias", 0)):
        raise UserError(f"{file}: a pooler without an activation (pooler_act {_LINEAR!r}) is not supported")
    return []


_LINEAR = "linear"
_READERS = {
    "vit": families.vit,
    "clip_vision_model": families.clip_image,
    "bert": families.bert,
    "clip_text_model": families.clip_text,
}
_ENCODERS = {"vit": "vit", "clip_vision_model": "vit", "bert": "bert", "clip_text_model": "clip"}


def _told(config: Mapping[str, Any], file: pathlib.Path) -> Told:
    usual = _DEFAULTS[config["model_type"]]
    if config.get("position_embedding_type") not in (None, "absolute"):
        raise UserError(f"{file}: positions of type {config['position_embedding_type']!r} are not supported")
    name = field(str(file), config, "hidden_act", str, usual["hidden_act"])
    heads = field(str(file), config, "num_attention_heads", int, usual["num_attention_heads"], low=1)
    eps = field(str(file), config, "layer_norm_eps", float, usual["layer_norm_eps"], low=0)
    activation = _activation(_HUGGINGFACE_ACTIVATIONS.get(name, name), file)
    pooled = field(str(file), config, "pooler_act", str, "tanh")
    head = "tanh" if pooled == _LINEAR else _activation(_HUGGINGFACE_ACTIVATIONS.get(pooled, pooled), file)
    return Told(_ENCODERS[config["model_type"]], heads, activation, head, float(eps))


# ---------------------------------------------------------------------------------------------------------------------
# What all of them share


def _activation(name: str, file: pathlib.Path) -> str:
    if name not in ACTIVATIONS:
        raise UserError(f"{file}: the activation {name!r} is not one of {', '.join(ACTIVATIONS)}")
    return name


def _head(part: str, layers: Sequence[Mapping[str, np.ndarray]], told: Told) -> tuple[Params, Params]:
    """(parameters of the head of "image" or "text", its settings)."""
    *hidden, last = layers
    params: Params = {f"{part}_projection": dict(last)}
    settings: Params = {"bias": "bias" in last}
    if hidden:
        params[f"{part}_hidden"] = dict(hidden[0])
        settings |= {"hidden": hidden[0]["kernel"].shape[1], "hidden_bias": "bias" in hidden[0]}
        settings["activation"] = told.head_activation
    return params, settings


def _encoder(
    weights: Weights,
    file: pathlib.Path,
    encoders: Params,
    image: Told,
    text: Told,
    origins: Mapping[str, Mapping[str, str]],
) -> DualEncoder:
    """Checks that the two encoders fit each other."""
    log_scale = weights.scalar("logit_scale")
    side, patch_size, channels = grid(encoders["image"], str(file))
    heads = {part: encoders[part].pop("head") for part in ("image", "text")}
    embed_dims = [heads[part][-1]["kernel"].shape[1] for part in ("image", "text")]
    if embed_dims[0] != embed_dims[1]:
        raise UserError(f"{file}: images are embedded in {embed_dims[0]} dimensions and texts in {embed_dims[1]}")
    params: Params = {"log_logit_scale": np.float32(log_scale), "logit_bias": np.float32(0)}
    settings: Params = {"image_size": side * patch_size, "patch_size": patch_size, "embed_dim": embed_dims[0]}
    settings |= {"pool": "cls", "text_pool": "last" if text.encoder == "clip" else "first"}
    details = [f"{side * patch_size} px in patches of {patch_size}"]
    for part, told in (("image", image), ("text", text)):
        own = encoders[part]
        settings[part] = (image_sizes if part == "image" else sizes)(own)
        settings[part] |= {"encoder": told.encoder, "heads": told.heads}
        settings[part] |= {"activation": told.activation, "epsilon": told.epsilon}
        head, settings[f"{part}_head"] = _head(part, heads[part], told)
        params |= {f"{part}_encoder": own} | head
        by, size = origins[part], settings[part]
        details.append(
            f"{part} encoder {size['depth']} × {size['width']} with {told.heads} heads ({by['heads']}), "
            f"{told.activation} ({by['activation']})"
        )
    length, vocab_size = encoders["text"]["position"].shape[0], encoders["text"]["embed"]["embedding"].shape[0]
    settings["text"] |= {"length": length, "vocab_size": vocab_size}
    return DualEncoder(
        params=params,
        settings=settings,
        image=image,
        text=text,
        logit_scale=float(np.exp(log_scale)),
        channels=channels,
        description=f"{', '.join(details)}, embedding {embed_dims[0]}",
        origins=origins,
    )
