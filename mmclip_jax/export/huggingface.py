"""A directory that `transformers` loads offline.

Architectures that transformers has become its own classes: CLIPModel, or VisionTextDualEncoderModel of ViT (or CLIP's
vision transformer) and BERT. All others become a module of ours in PyTorch (`remote/`), which `trust_remote_code` runs.
"""

import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmclip_jax.checkpoints.exported import READERS, REST_FILE
from mmclip_jax.errors import UserError, extra
from mmclip_jax.export.content import Content, write_json
from mmclip_jax.models.inputs import PIXEL_MEAN, PIXEL_STD
from mmclip_jax.models.pretrained import blocks, families
from mmclip_jax.models.pretrained.blocks import Arrays, Params
from mmclip_jax.models.pretrained.dual import HUGGINGFACE_CONFIG

WEIGHTS_FILE, PREPROCESSING_FILE = "model.safetensors", "preprocessor_config.json"
REMOTE = pathlib.Path(__file__).parent / "remote"
SHARES = (0.25, 0.5, 0.25)
"""The parts of a grey kernel that red, green and blue get: powers of two, so that their sum is the kernel again."""
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu", "tanh": "tanh"}
# Only training needs these; they are in no class of transformers, and in `REST_FILE`.
_OF_TRAINING = ("decode_patches", "decode_tokens", "response_query", "response_key")
_BILINEAR = 2  # of Pillow's filters; it is the one that tensors are resized with, too


def write(content: Content, folder: pathlib.Path) -> str:
    """Writes weights, settings, processor and tokenizer; returns which class it is, and why.

    Raises:
      UserError: the package safetensors is missing; a classifier of an architecture that no class of transformers has.
    """
    if content.classifier is not None:
        return _write_classifier(content, content.classifier, folder)
    kind, why = native_class(content)
    if kind == "MMCLIPModel":
        weights, config = remote_module(content)
        for file in sorted(REMOTE.glob("*_mmclip.py")):
            shutil.copyfile(file, folder / file.name)
    else:
        weights, config = _CLASSES[kind](content)
        shutil.copyfile(REMOTE / _PROCESSING, folder / _PROCESSING)
    save_weights(folder / WEIGHTS_FILE, weights)
    write_json(folder / HUGGINGFACE_CONFIG, config | {"torch_dtype": "float32"})
    write_json(folder / PREPROCESSING_FILE, _preprocessing(content, kind))
    content.write_tokenizer(folder)
    write_rest(content, folder, "huggingface")
    if kind != "MMCLIPModel":
        return f"{kind}, a class of transformers"
    return f"MMCLIPModel, which needs trust_remote_code=True; no class of transformers has {', '.join(why)}"


def save_weights(file: pathlib.Path, weights: Mapping[str, np.ndarray]) -> None:
    """Writes a .safetensors file.

    Raises:
      UserError: the package safetensors is missing.
    """
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise UserError(f"{file.name} is written by the package safetensors; install {extra('export')}") from error
    whole = {name: np.asarray(array, np.float32, order="C") for name, array in weights.items()}
    file.write_bytes(save(whole, metadata={"format": "pt"}))


def write_rest(content: Content, folder: pathlib.Path, form: str) -> None:
    """Writes the parameters that the files of the format do not give back to the last bit."""
    back = READERS[form](folder, content.model)
    rest = {
        path: array
        for path, array in content.params.items()
        if path not in back or back[path].shape != array.shape or back[path].tobytes() != array.tobytes()
    }
    np.savez(folder / REST_FILE, **rest)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------------------
# Which class


Misfit = tuple[str, Any, tuple[Any, ...]]
"""(a setting, its value, those that can be exported)."""


def native_class(content: Content) -> tuple[str, list[str]]:
    """(the class of transformers, []) or ("MMCLIPModel", the settings that no class of transformers has)."""
    is_clip = content.model.text.encoder == "clip"
    misfits = clip_misfits(content) if is_clip else _dual_misfits(content)
    if misfits:
        return "MMCLIPModel", [f"{name}={value!r}" for name, value, _ in misfits]
    return ("CLIPModel" if is_clip else "VisionTextDualEncoderModel"), []


def clip_misfits(content: Content) -> list[Misfit]:
    """What stands in the way of CLIP's architecture."""
    model = content.model
    return _misfits(
        *_of_any_class(content),
        ("model.text.encoder", model.text.encoder, ("clip",)),
        ("model.text_pool", model.text_pool, ("last",)),
        ("model.image.first_norm", model.image.first_norm, (True,)),
        ("model.image_head.hidden", model.image_head.hidden, (0,)),
        ("model.text_head.hidden", model.text_head.hidden, (0,)),
        ("a mark at the end of texts (data.tokenizer)", bool(content.tokenizer.end), (True,)),
    )


def _dual_misfits(content: Content) -> list[Misfit]:
    model = content.model
    image, text = model.image, model.text
    return _misfits(
        *_of_any_class(content),
        ("model.text.encoder", text.encoder, ("bert",)),
        ("model.text_pool", model.text_pool, ("first",)),
        *(_of_bert(content) if text.encoder == "bert" else ()),
        ("model.image_head.hidden", model.image_head.hidden, (0,) if image.first_norm else (0, image.width)),
    )


def _of_bert(content: Content) -> list[Misfit]:
    """BERT always has a layer with tanh before the projection."""
    head = content.model.text_head
    return [
        ("model.text_head.hidden", head.hidden, (content.model.text.width,)),
        ("model.text_head.activation", head.activation, ("tanh",)),
    ]


def _of_any_class(content: Content) -> list[Misfit]:
    return [
        *_of_any_image_encoder(content),
        ("model.image_head.bias", content.model.image_head.bias, (False,)),
        ("model.text_head.bias", content.model.text_head.bias, (False,)),
    ]


def _of_any_image_encoder(content: Content) -> list[Misfit]:
    model, image = content.model, content.model.image
    return [
        ("model.image.encoder", image.encoder, ("vit",)),
        ("model.stem", model.stem, ("patch",)),
        ("model.pool", model.pool, ("cls",)),
        ("model.image.norm", image.norm, ("pre",)),
        ("model.image.final_norm", image.final_norm, (True,)),
        ("model.image.layer_scale", image.layer_scale, (False,)),
        ("model.image.registers", image.registers, (0,)),
    ]


def refuse(misfits: Sequence[Misfit], whose: str, remedy: str) -> None:
    """Raises UserError if there are misfits; the message names the settings that the run has and needs."""
    if misfits:
        has = ", ".join(f"{name}={value!r}" for name, value, _ in misfits)
        wanted = ", ".join(f"{name}={' or '.join(map(repr, fits))}" for name, _, fits in misfits)
        raise UserError(f"{whose} has no counterpart of {has}: it can hold runs with {wanted}; {remedy}")


def _misfits(*wanted: Misfit) -> list[Misfit]:
    return [(name, value, fits) for name, value, fits in wanted if value not in fits]


# ---------------------------------------------------------------------------------------------------------------------
# Classes of transformers


def _clip(content: Content) -> tuple[Arrays, dict[str, Any]]:
    names = (families.CLIP_IMAGE, families.CLIP_TEXT)
    weights = families.put_image(names[0], content.tree("image_encoder"), "vision_model.", SHARES)
    weights |= families.put_text(names[1], content.tree("text_encoder"), "text_model.")
    weights |= _projections(content)
    vision, text = (_part(content, part) for part in ("image", "text"))
    marks = {"bos_token_id": content.tokenizer.begin[0], "eos_token_id": content.tokenizer.end[0], "pad_token_id": 0}
    return weights, {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": content.model.embed_dim,
        "logit_scale_init_value": float(content.params["log_logit_scale"]),
        "vision_config": vision | {"model_type": "clip_vision_model", "projection_dim": content.model.embed_dim},
        "text_config": text | marks | {"model_type": "clip_text_model", "projection_dim": content.model.embed_dim},
    }


def _dual(content: Content) -> tuple[Arrays, dict[str, Any]]:
    is_clip = content.model.image.first_norm
    names, prefix = (families.CLIP_IMAGE, "vision_model." * 2) if is_clip else (families.VIT, "vision_model.")
    weights = families.put_image(names, content.tree("image_encoder"), prefix, SHARES)
    weights |= families.put_text(families.BERT, content.tree("text_encoder"), "text_model.")
    weights |= _projections(content)
    vision, text = (_part(content, part) for part in ("image", "text"))
    vision["model_type"] = "clip_vision_model" if is_clip else "vit"
    if not is_clip:
        layer, vision["pooler_act"] = _pooler(content)
        weights |= blocks.put_dense(layer, "vision_model.pooler.dense")
    pooler = blocks.biased(content.tree("text_hidden"))
    weights |= blocks.put_dense(pooler, "text_model.pooler.dense")
    return weights, {
        "architectures": ["VisionTextDualEncoderModel"],
        "model_type": "vision-text-dual-encoder",
        "projection_dim": content.model.embed_dim,
        "logit_scale_init_value": float(content.params["log_logit_scale"]),
        "vision_config": vision,
        "text_config": text | {"model_type": "bert", "type_vocab_size": 2, "pad_token_id": 0},
    }


def _write_classifier(content: Content, told: Mapping[str, Any], folder: pathlib.Path) -> str:
    misfits = _misfits(
        *_of_any_image_encoder(content), ("model.image.first_norm", content.model.image.first_norm, (False,))
    )
    refuse(misfits, "ViTForImageClassification", "--to stablehlo holds any")
    weights = families.put_image(families.VIT, content.tree("image_encoder"), "vit.", SHARES)
    weights |= blocks.put_dense(content.tree("head"), "classifier")
    several = told["task"] == "multi-class"
    config = _part(content, "image") | {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "problem_type": f"{'single' if several else 'multi'}_label_classification",
        "id2label": {str(number): finding for number, finding in enumerate(told["findings"])},
        "label2id": {finding: number for number, finding in enumerate(told["findings"])},
    }
    preprocessing = _preprocessing(content, "ViTForImageClassification")
    del preprocessing["processor_class"]  # it would bring a tokenizer
    save_weights(folder / WEIGHTS_FILE, weights)
    write_json(folder / HUGGINGFACE_CONFIG, config | {"torch_dtype": "float32"})
    write_json(folder / PREPROCESSING_FILE, preprocessing)
    shutil.copyfile(REMOTE / _PROCESSING, folder / _PROCESSING)
    content.write_reader(folder)
    write_rest(content, folder, "huggingface")
    return f"ViTForImageClassification, a class of transformers; {'softmax' if several else 'sigmoid'} of its logits"


_CLASSES = {"CLIPModel": _clip, "VisionTextDualEncoderModel": _dual}


def _pooler(content: Content) -> tuple[Params, str]:
    """(ViT's layer between class token and projection, its activation); one that changes nothing where we have none."""
    if content.has("image_hidden"):
        return blocks.biased(content.tree("image_hidden")), ACTIVATIONS[content.model.image_head.activation]
    width = content.model.image.width
    return {"kernel": np.eye(width, dtype=np.float32), "bias": np.zeros(width, np.float32)}, "linear"


def _projections(content: Content) -> Arrays:
    weights: Arrays = {"logit_scale": content.params["log_logit_scale"]}
    for part, name in (("image", "visual_projection"), ("text", "text_projection")):
        weights |= blocks.put_dense(content.tree(f"{part}_projection"), name)
    return weights


def _part(content: Content, part: str) -> dict[str, Any]:
    """The settings of an encoder as transformers calls them."""
    model, own = content.model, content.model[part]
    said: dict[str, Any] = {
        "hidden_size": own.width,
        "num_hidden_layers": own.depth,
        "num_attention_heads": own.heads,
        "intermediate_size": own.mlp_dim,
        "hidden_act": ACTIVATIONS[own.activation],
        "layer_norm_eps": own.epsilon,
        "attention_dropout": 0.0,
    }
    if part == "image":
        return said | {"image_size": model.image_size, "patch_size": model.patch_size, "num_channels": len(SHARES)}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return said | dropout | {"vocab_size": own.vocab_size, "max_position_embeddings": own.length}


# ---------------------------------------------------------------------------------------------------------------------
# Our own class


def remote_module(content: Content) -> tuple[Arrays, dict[str, Any]]:
    """The state of `remote.modeling_mmclip.MMCLIPModel`, and the content of its config.json."""
    used = {path: x for path, x in content.params.items() if not path.startswith(_OF_TRAINING)}
    settings = content.model.to_dict()
    for name in ("image_decoder", "text_decoder", "dtype", "remat", "unroll"):
        settings.pop(name, None)
    settings["image"]["depths"] = list(settings["image"]["depths"])
    return families.as_module(used), {
        "architectures": ["MMCLIPModel"],
        "model_type": "mmclip",
        "auto_map": {
            "AutoConfig": "configuration_mmclip.MMCLIPConfig",
            "AutoModel": "modeling_mmclip.MMCLIPModel",
        },
        "logit_scale_init_value": float(content.params["log_logit_scale"]),
        "settings": settings,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Processor

_PROCESSING = "image_processing_mmclip.py"


def _preprocessing(content: Content, kind: str) -> dict[str, Any]:
    """The content of preprocessor_config.json: ours; a class of transformers has ViT's, too, without padding."""
    size, channels = content.model.image_size, 1 if kind == "MMCLIPModel" else len(SHARES)
    mean: Sequence[float] = [PIXEL_MEAN] * channels
    return {
        "auto_map": {"AutoImageProcessor": "image_processing_mmclip.MMCLIPImageProcessor"},
        "image_processor_type": "MMCLIPImageProcessor" if channels == 1 else "ViTImageProcessor",
        "processor_class": "VisionTextDualEncoderProcessor",
        "channels": channels,
        "size": {"height": size, "width": size},
        "do_resize": True,
        "resample": _BILINEAR,
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": [PIXEL_STD] * channels,
    }
