"""Checkpoints of other programs as one tree of weights (see `towers`): OpenAI's CLIP, open_clip, Hugging Face.

Shapes tell the sizes. What they do not tell (heads, activations) comes from the spec, else from the configuration
beside the weights, where the layout has one, and last from what most published models of the family have: heads of 64.
Who says them goes with them.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmclip_jax.errors import UserError
from mmclip_jax.external.towers import ACTIVATIONS, Params, Tower
from mmclip_jax.models.pretrained.weights import Weights, find_weights, read_weights
from mmclip_jax.fields import field, fits, read_json

LAYOUTS = ("openai", "open_clip", "huggingface")
OPEN_CLIP_CONFIG = "open_clip_config.json"
HUGGINGFACE_CONFIG = "config.json"
_HEAD_WIDTH = 64
_MLP_ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")
_ASSUMED = "assumed"
# Buffers and constants that are saved beside the weights.
_IGNORED = ("attn_mask", "position_ids", "token_type_ids", "input_resolution", "context_length", "vocab_size")


@dataclasses.dataclass(frozen=True)
class DualEncoder:
    """A dual encoder in JAX.

    params: {"image", "text"}; image, text: what the weights do not tell of either; logit_scale: what similarities are
    multiplied by, as trained; image_size: pixels a side; channels: 1 or 3; context: tokens of the longest text;
    vocab_size: rows of the token embedding; embed_dim; description: the sizes in a line. origins: who says "heads" and
    "activation" of "image" and "text". sha256: of the file, where somebody has summed it.
    """

    params: Params
    image: Tower
    text: Tower
    logit_scale: float
    image_size: int
    channels: int
    context: int
    vocab_size: int
    embed_dim: int
    description: str
    origins: Mapping[str, Mapping[str, str]]
    sha256: str = ""


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
    return encoder


def check_options(where: str, layout: Any, activation: Any, heads: Any) -> None:
    """Checks what a spec says of a layout; activation "" and heads {} are what it leaves out.

    Raises:
      UserError: no such layout, activation or heads, or a layout that says them itself; with `where` before it.
    """
    if layout not in LAYOUTS:
        raise UserError(f"{where}: layout is one of {', '.join(LAYOUTS)}, not {layout!r}")
    if activation not in ("", *_MLP_ACTIVATIONS):
        raise UserError(f"{where}: activation is one of {', '.join(_MLP_ACTIVATIONS)}, not {activation!r}")
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
    if "visual.trunk.cls_token" in weights:
        image, image_tower = _timm(weights, file, vision), Tower(0, "gelu", eps=1e-6)
    elif "visual.conv1.weight" in weights:
        image, image_tower = _openai_image(weights), Tower(0, activation)
    else:
        raise UserError(f"{file}: its image encoder is neither CLIP's vision transformer nor timm's: not supported")
    width = image["class_token"].shape[0]
    told = {"image": heads.get("image", 0), "text": heads.get("text", 0)}
    heads_from = {part: "the spec" if count else _ASSUMED for part, count in told.items()}
    if not told["image"] and (per_head := field(str(beside), vision, "head_width", int, 0, low=1)):
        told["image"], heads_from["image"] = width // per_head, OPEN_CLIP_CONFIG
    image_heads = _heads(file, "image", width, told["image"])
    if fixed["text"]:
        text, pooled = _bert(weights, "text.transformer."), text_config.get("hf_pooler_type")
        context = field(str(beside), text_config, "context_length", int, len(text["position"]), low=1)
        text["position"] = text["position"][:context]
        if pooled != "cls_last_hidden_state_pooler":
            raise UserError(
                f"{file}: its text encoder is a BERT, which is read only where {OPEN_CLIP_CONFIG} beside it names the "
                f"pooler cls_last_hidden_state_pooler, not {pooled}"
            )
        text["head"] = _projections(weights)
        text_tower = Tower(0, "gelu", "gelu", eps=1e-12, post_norm=True)
    else:
        text = _openai_text(weights, "text." if "text.token_embedding.weight" in weights else "")
        text_tower = Tower(0, activation, causal=True)
    width = text["tokens"].shape[1]
    usual_heads = 0 if found is None or fixed["text"] else 8  # where its configuration says nothing, open_clip takes 8
    if not told["text"] and (count := field(str(beside), text_config, "heads", int, usual_heads, low=1)):
        told["text"], heads_from["text"] = count, OPEN_CLIP_CONFIG
    text_heads = _heads(file, "text", width, told["text"])
    origins = {
        part: {"heads": heads_from[part], "activation": "its architecture" if fixed[part] else activation_from}
        for part in told
    }
    return _encoder(
        weights,
        file,
        {"image": image, "text": text},
        dataclasses.replace(image_tower, heads=image_heads),
        dataclasses.replace(text_tower, heads=text_heads),
        origins,
    )


_BERT_TOKENS = "text.transformer.embeddings.word_embeddings.weight"
# Settings of an open_clip_config.json that are heeded, or follow from the shapes.
_MODEL = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text")
_VISION = (
    *("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"),
    *("timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj"),
)
_TEXT = (
    *("layers", "width", "heads", "mlp_ratio", "context_length", "vocab_size", "tokenizer_kwargs"),
    *("hf_model_name", "hf_model_pretrained", "hf_tokenizer_name", "hf_proj_type", "hf_pooler_type"),
)


def _openai_image(weights: Weights) -> Params:
    patch, width = _patch(weights, "visual.conv1.weight")
    return {
        "patch": patch,
        "class_token": weights.take("visual.class_embedding", width),
        "position": weights.take("visual.positional_embedding", None, width),
        "norm_pre": _norm(weights, "visual.ln_pre", width),
        "layers": _layers(weights, "visual.transformer.resblocks.", _OPENAI_BLOCK, width),
        "norm": _norm(weights, "visual.ln_post", width),
        "head": [{"kernel": weights.take("visual.proj", width, None)}],
    }


def _openai_text(weights: Weights, prefix: str) -> Params:
    tokens = weights.take(f"{prefix}token_embedding.weight", None, None)
    width = tokens.shape[1]
    return {
        "tokens": tokens,
        "position": weights.take(f"{prefix}positional_embedding", None, width),
        "layers": _layers(weights, f"{prefix}transformer.resblocks.", _OPENAI_BLOCK, width),
        "norm": _norm(weights, f"{prefix}ln_final", width),
        "head": [{"kernel": weights.take(f"{prefix}text_projection", width, None)}],
    }


def _timm(weights: Weights, file: pathlib.Path, config: Mapping[str, Any]) -> Params:
    """timm's vision transformer with a class token, and a linear projection: the image encoder of BiomedCLIP."""
    if field(str(file.with_name(OPEN_CLIP_CONFIG)), config, "timm_pool", str, "") not in ("", "token"):
        raise UserError(f"{file}: the pooling {config['timm_pool']!r} of its timm image encoder is not supported")
    patch, width = _patch(weights, "visual.trunk.patch_embed.proj.weight")
    return {
        "patch": patch | {"bias": weights.take("visual.trunk.patch_embed.proj.bias", width)},
        "class_token": weights.take("visual.trunk.cls_token", 1, 1, width)[0, 0],
        "position": weights.take("visual.trunk.pos_embed", 1, None, width)[0],
        "layers": _layers(weights, "visual.trunk.blocks.", _TIMM_BLOCK, width),
        "norm": _norm(weights, "visual.trunk.norm", width),
        "head": [_dense(weights, "visual.head.proj", None, width)],
    }


def _bert(weights: Weights, prefix: str) -> Params:
    """BERT; its segment embedding is always that of the first segment."""
    tokens = weights.take(f"{prefix}embeddings.word_embeddings.weight", None, None)
    width = tokens.shape[1]
    segment = weights.take(f"{prefix}embeddings.token_type_embeddings.weight", None, width)[0]
    position = weights.take(f"{prefix}embeddings.position_embeddings.weight", None, width)
    return {
        "tokens": tokens,
        "position": position + segment[np.newaxis],
        "norm_pre": _norm(weights, f"{prefix}embeddings.LayerNorm", width),
        "layers": _layers(weights, f"{prefix}encoder.layer.", _BERT_BLOCK, width),
    }


def _projections(weights: Weights) -> list[Params]:
    """open_clip's projection of a Hugging Face text encoder: linear, or two layers with a GELU between them."""
    if "text.proj.weight" in weights:
        return [_dense(weights, "text.proj", None, None)]
    return [_dense(weights, f"text.proj.{number}", None, None) for number in (0, 2)]


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
    readers = {"vit": _vit, "clip_vision_model": _clip_image, "bert": _huggingface_bert, "clip_text_model": _clip_text}
    for part, allowed in ((vision, ("vit", "clip_vision_model")), (text, texts)):
        if part.get("model_type") not in allowed:
            raise UserError(
                f"{beside}: an encoder of model_type {part.get('model_type')!r} is not "
                f"supported; known here: {', '.join(allowed)}"
            )
    image, words = readers[vision["model_type"]](weights), readers[text["model_type"]](weights)
    for params, name in ((image, "visual_projection"), (words, "text_projection")):
        params["head"] = [*params["head"], _dense(weights, name, None, None)]
    causal = text["model_type"] == "clip_text_model"
    towers = [_tower(part, beside) for part in (vision, text)]
    for tower, params, name in zip(towers, (image, words), ("vision", "text"), strict=True):
        _heads(beside, name, params["position"].shape[1], tower.heads)
    text_tower = dataclasses.replace(towers[1], causal=causal, post_norm=not causal)
    origins = {
        part: {
            what: HUGGINGFACE_CONFIG if told.get(name) is not None else "default of transformers"
            for what, name in (("heads", "num_attention_heads"), ("activation", "hidden_act"))
        }
        for part, told in (("image", vision), ("text", text))
    }
    return _encoder(weights, file, {"image": image, "text": words}, towers[0], text_tower, origins)


def _tower(config: Mapping[str, Any], file: pathlib.Path) -> Tower:
    usual = _DEFAULTS[config["model_type"]]
    if config.get("position_embedding_type") not in (None, "absolute"):
        raise UserError(f"{file}: positions of type {config['position_embedding_type']!r} are not supported")
    name = field(str(file), config, "hidden_act", str, usual["hidden_act"])
    heads = field(str(file), config, "num_attention_heads", int, usual["num_attention_heads"], low=1)
    eps = field(str(file), config, "layer_norm_eps", float, usual["layer_norm_eps"], low=0)
    return Tower(heads, _activation(_HUGGINGFACE_ACTIVATIONS.get(name, name), file), "tanh", eps=float(eps))


def _clip_image(weights: Weights) -> Params:
    # A dual encoder of two models holds CLIP's vision model one level deeper.
    nested = "vision_model.vision_model.embeddings.class_embedding" in weights
    prefix = "vision_model.vision_model." if nested else "vision_model."
    patch, width = _patch(weights, f"{prefix}embeddings.patch_embedding.weight")
    return {
        "patch": patch,
        "class_token": weights.take(f"{prefix}embeddings.class_embedding", width),
        "position": weights.take(f"{prefix}embeddings.position_embedding.weight", None, width),
        "norm_pre": _norm(weights, f"{prefix}pre_layrnorm", width),
        "layers": _layers(weights, f"{prefix}encoder.layers.", _CLIP_BLOCK, width),
        "norm": _norm(weights, f"{prefix}post_layernorm", width),
        "head": [],
    }


def _clip_text(weights: Weights) -> Params:
    tokens = weights.take("text_model.embeddings.token_embedding.weight", None, None)
    width = tokens.shape[1]
    return {
        "tokens": tokens,
        "position": weights.take("text_model.embeddings.position_embedding.weight", None, width),
        "layers": _layers(weights, "text_model.encoder.layers.", _CLIP_BLOCK, width),
        "norm": _norm(weights, "text_model.final_layer_norm", width),
        "head": [],
    }


def _vit(weights: Weights) -> Params:
    patch, width = _patch(weights, "vision_model.embeddings.patch_embeddings.projection.weight")
    return {
        "patch": patch | {"bias": weights.take("vision_model.embeddings.patch_embeddings.projection.bias", width)},
        "class_token": weights.take("vision_model.embeddings.cls_token", 1, 1, width)[0, 0],
        "position": weights.take("vision_model.embeddings.position_embeddings", 1, None, width)[0],
        "layers": _layers(weights, "vision_model.encoder.layer.", _VIT_BLOCK, width),
        "norm": _norm(weights, "vision_model.layernorm", width),
        "head": [_dense(weights, "vision_model.pooler.dense", width, width)],
    }


def _huggingface_bert(weights: Weights) -> Params:
    return _bert(weights, "text_model.") | {"head": [_dense(weights, "text_model.pooler.dense", None, None)]}


# ---------------------------------------------------------------------------------------------------------------------
# What all of them share


@dataclasses.dataclass(frozen=True)
class _Names:
    """What a layout calls the parts of a block; joint: how the weight and bias of query, key and value in one begin."""

    norm_1: str
    norm_2: str
    out: str
    mlp_in: str
    mlp_out: str
    joint: str = ""
    separate: Sequence[str] = ()


_OPENAI_BLOCK = _Names("ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj", joint="attn.in_proj_")
_TIMM_BLOCK = _Names("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2", joint="attn.qkv.")
_CLIP_BLOCK = _Names(
    "layer_norm1",
    "layer_norm2",
    "self_attn.out_proj",
    "mlp.fc1",
    "mlp.fc2",
    separate=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
)
_VIT_BLOCK = _Names(
    "layernorm_before",
    "layernorm_after",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
    separate=tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
)
_BERT_BLOCK = _Names(
    "attention.output.LayerNorm",
    "output.LayerNorm",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
    separate=tuple(f"attention.self.{name}" for name in ("query", "key", "value")),
)


def _layers(weights: Weights, prefix: str, names: _Names, width: int) -> Params:
    """The blocks "PREFIX0.…" to "PREFIXn.…", each weight stacked over the depth: [depth, …]."""
    numbered = re.compile(re.escape(prefix) + r"(\d+)\.")
    depth = 1 + max((int(match[1]) for name in weights.names() if (match := numbered.match(name))), default=0)
    blocks = [_block(weights, f"{prefix}{number}.", names, width) for number in range(depth)]
    return {
        part: {name: np.stack([block[part][name] for block in blocks]) for name in blocks[0][part]}
        for part in blocks[0]
    }


def _block(weights: Weights, prefix: str, names: _Names, width: int) -> dict[str, dict[str, np.ndarray]]:
    block = {part: _norm(weights, prefix + getattr(names, part), width) for part in ("norm_1", "norm_2")}
    if names.joint:
        kernels = np.split(weights.take(f"{prefix}{names.joint}weight", 3 * width, width), 3)
        biases = np.split(weights.take(f"{prefix}{names.joint}bias", 3 * width), 3)
        for part, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
            block[part] = {"kernel": kernel.T, "bias": bias}
    else:
        for part, name in zip(("query", "key", "value"), names.separate, strict=True):
            block[part] = _dense(weights, prefix + name, width, width)
    block["out"] = _dense(weights, prefix + names.out, width, width)
    block["mlp_in"] = _dense(weights, prefix + names.mlp_in, None, width)
    block["mlp_out"] = _dense(weights, prefix + names.mlp_out, width, block["mlp_in"]["kernel"].shape[1])
    return block


def _dense(weights: Weights, name: str, outputs: int | None, inputs: int | None) -> dict[str, np.ndarray]:
    """A linear layer as PyTorch keeps it, [outputs, inputs], with its bias if it has one."""
    kernel = weights.take(f"{name}.weight", outputs, inputs).T
    return {"kernel": kernel} | (
        {"bias": weights.take(f"{name}.bias", kernel.shape[1])} if f"{name}.bias" in weights else {}
    )


def _norm(weights: Weights, name: str, width: int) -> dict[str, np.ndarray]:
    return {"scale": weights.take(f"{name}.weight", width), "bias": weights.take(f"{name}.bias", width)}


def _patch(weights: Weights, name: str) -> tuple[dict[str, np.ndarray], int]:
    """A convolution [D,C,P,P] over whole patches as a dense layer of a patch's pixels, row by row, channels last."""
    kernel = weights.take(name, None, None, None, None)
    return {"kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])}, kernel.shape[0]


def _activation(name: str, file: pathlib.Path) -> str:
    if name not in ACTIVATIONS:
        raise UserError(f"{file}: the activation {name!r} is not one of {', '.join(ACTIVATIONS)}")
    return name


def _heads(file: pathlib.Path, part: str, width: int, heads: int) -> int:
    """The number of heads; of 0, as many of the usual width as there are."""
    if not heads:
        heads = width // _HEAD_WIDTH
        if not heads or width % _HEAD_WIDTH:
            raise UserError(
                f"{file}: the {part} encoder's width {width} is no multiple of {_HEAD_WIDTH}, and nothing says how "
                "many heads it has; say it in the spec (heads)"
            )
    if width % heads:
        raise UserError(f"{file}: the {part} encoder's width {width} is no multiple of {heads} heads")
    return heads


def _encoder(
    weights: Weights,
    file: pathlib.Path,
    params: Params,
    image: Tower,
    text: Tower,
    origins: Mapping[str, Mapping[str, str]],
) -> DualEncoder:
    """Checks that the two encoders fit each other."""
    scale = float(np.exp(weights.scalar("logit_scale")))
    pixels = params["image"]["patch"]["kernel"].shape[0]
    patches, image_width = params["image"]["position"].shape
    side = round((patches - 1) ** 0.5)
    channels = next((c for c in (1, 3) if round((pixels / c) ** 0.5) ** 2 * c == pixels), 0)
    if side * side + 1 != patches or not channels:
        raise UserError(f"{file}: its {patches - 1} patches of {pixels} values are no square of grey or RGB patches")
    patch_size = round((pixels / channels) ** 0.5)
    sizes = [params[name]["head"][-1]["kernel"].shape[1] for name in ("image", "text")]
    if sizes[0] != sizes[1]:
        raise UserError(f"{file}: images are embedded in {sizes[0]} dimensions and texts in {sizes[1]}")
    (context, text_width), vocab_size = params["text"]["position"].shape, params["text"]["tokens"].shape[0]
    depths = [params[name]["layers"]["norm_1"]["scale"].shape[0] for name in ("image", "text")]
    details = {
        part: f"{tower.heads} heads ({origins[part]['heads']}), {tower.activation} ({origins[part]['activation']})"
        for part, tower in (("image", image), ("text", text))
    }
    return DualEncoder(
        params=params,
        image=image,
        text=text,
        logit_scale=scale,
        image_size=side * patch_size,
        channels=channels,
        context=context,
        vocab_size=vocab_size,
        embed_dim=sizes[0],
        description=f"{side * patch_size} px in patches of {patch_size}, "
        f"image encoder {depths[0]} × {image_width} with {details['image']}, "
        f"text encoder {depths[1]} × {text_width} with {details['text']}, embedding {sizes[0]}",
        origins=origins,
    )
