"""A directory that open_clip loads as "local-dir:DIR". It has CLIP's architecture alone; what differs is refused."""

import pathlib
from typing import Any

from mmclip_jax.export.content import Content, write_json
from mmclip_jax.export.huggingface import SHARES, Misfit, clip_misfits, refuse, save_weights, write_rest
from mmclip_jax.models.inputs import PIXEL_MEAN, PIXEL_STD
from mmclip_jax.models.pretrained import families
from mmclip_jax.models.pretrained.dual import OPEN_CLIP_CONFIG

WEIGHTS_FILE = "open_clip_model.safetensors"


def write(content: Content, folder: pathlib.Path) -> str:
    """Writes weights, settings and tokenizer.

    Raises:
      UserError: an architecture that open_clip lacks; the message names the settings that it has.
    """
    misfits = [*clip_misfits(content), *_own_misfits(content)]
    refuse(misfits, "open_clip", "--to huggingface holds any")
    model = content.model
    weights = families.put_image(families.OPENAI_IMAGE, content.tree("image_encoder"), "visual.", SHARES)
    weights |= families.put_text(families.OPENAI_TEXT, content.tree("text_encoder"), "")
    weights["visual.proj"] = content.params["image_projection/kernel"]
    weights["text_projection"] = content.params["text_projection/kernel"]
    weights["logit_scale"] = content.params["log_logit_scale"]
    save_weights(folder / WEIGHTS_FILE, weights)
    vision, text = (_tower(content, part) for part in ("image", "text"))
    vision |= {"image_size": model.image_size, "patch_size": model.patch_size}
    vision["head_width"] = model.image.width // model.image.heads
    text |= {"context_length": model.text.length, "vocab_size": model.text.vocab_size, "heads": model.text.heads}
    # Any word has open_clip read the tokenizer of the directory itself.
    text |= {"hf_tokenizer_name": ".", "pool_type": "eos", "eos_id": content.tokenizer.end[0], "pad_id": 0}
    settings: dict[str, Any] = {"embed_dim": model.embed_dim, "vision_cfg": vision, "text_cfg": text}
    if model.image.activation == "quick_gelu":
        settings["quick_gelu"] = True
    pixels: dict[str, Any] = {"mean": [PIXEL_MEAN] * len(SHARES), "std": [PIXEL_STD] * len(SHARES)}
    pixels |= {"interpolation": "bilinear", "resize_mode": "longest", "fill_color": 0}
    write_json(folder / OPEN_CLIP_CONFIG, {"model_cfg": settings, "preprocess_cfg": pixels})
    content.write_tokenizer(folder)
    write_rest(content, folder, "open_clip")
    return f"{model.embed_dim} dimensions; open_clip.create_model_from_pretrained('local-dir:DIR')"


def _own_misfits(content: Content) -> list[Misfit]:
    image, text = content.model.image.activation, content.model.text.activation
    if image != text and "quick_gelu" in (image, text):
        return [("model.text.activation", text, (image,))]
    return []


def _tower(content: Content, part: str) -> dict[str, Any]:
    own = content.model[part]
    said: dict[str, Any] = {"width": own.width, "layers": own.depth, "norm_kwargs": {"eps": own.epsilon}}
    said["mlp_ratio"] = (own.mlp_dim + 0.5) / own.width  # of which open_clip takes the whole part, times the width
    if own.activation == "gelu_tanh":
        said["act_kwargs"] = {"approximate": "tanh"}
    return said
