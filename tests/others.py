"""Small models of other programs with random weights, in every layout; torch and transformers make them."""

import collections
import gzip
import itertools
import json
import pathlib
from typing import Any

import numpy as np

IMAGE_SIZE, CONTEXT = 21, 29
CORPUS = (
    "There is no pleural effusion . Small left pleural effusion is present . Cardiomegaly and edema are seen . "
    "No evidence of pneumothorax . The lungs are clear . There is a large mass in the right upper lobe . No nodule ."
)


def byte_letters() -> list[str]:
    """A letter for each byte in the order of OpenAI's vocabulary, from its definition: printable ones first."""
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(len(rest))]


def learn_merges(count: int) -> list[tuple[str, str]]:
    """Byte pairs of the corpus, most frequent first, as byte-pair encoding learns them."""
    words = [(*word[:-1], word[-1] + "</w>") for word in CORPUS.lower().split()]
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs = collections.Counter(pair for word in words for pair in itertools.pairwise(word))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        joined = []
        for word in words:
            parts: list[str] = []
            for part in word:
                if parts and (parts[-1], part) == best:
                    parts[-1] += part
                else:
                    parts.append(part)
            joined.append(tuple(parts))
        words = joined
    return merges


MERGES = learn_merges(61)
VOCABULARY = [
    *byte_letters(),
    *(letter + "</w>" for letter in byte_letters()),
    *("".join(merge) for merge in MERGES),
    "<|startoftext|>",
    "<|endoftext|>",
]


def write_openai_vocabulary(folder: pathlib.Path) -> pathlib.Path:
    """The merges as OpenAI keeps them."""
    file = folder / "bpe_simple_vocab_16e6.txt.gz"
    lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', *(" ".join(merge) for merge in MERGES), ""]
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    return file


def write_huggingface_vocabulary(folder: pathlib.Path) -> None:
    """The same as Hugging Face keeps it."""
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(VOCABULARY)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(merge) for merge in MERGES), ""]))


def shake(model: Any, seed: int) -> Any:
    """Random weights of a size that matters, biases and norms too."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name == "logit_scale":
                weight.fill_(2.3 + 0.1 * seed)
            else:
                spread = weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.3
                center = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
                weight.copy_(center + spread * torch.randn(weight.shape, generator=generator))
    return model.eval()


def clip(seed: int = 0, activation: str = "quick_gelu") -> Any:
    """A CLIPModel: images of 21 px in patches of 7, width 30, 2 layers, 5 heads; texts of width 22, 3 layers, 2 heads.

    Its logit scale is exp(2.3 + 0.1 seed).
    """
    from transformers import CLIPConfig, CLIPModel

    end = len(VOCABULARY) - 1
    vision: dict[str, Any] = {"hidden_size": 30, "num_hidden_layers": 2, "num_attention_heads": 5}
    vision |= {"intermediate_size": 41, "image_size": IMAGE_SIZE, "patch_size": 7, "hidden_act": activation}
    text: dict[str, Any] = {"hidden_size": 22, "num_hidden_layers": 3, "num_attention_heads": 2}
    text |= {"intermediate_size": 37, "max_position_embeddings": CONTEXT, "hidden_act": activation}
    text |= {"vocab_size": end + 1}
    text |= {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    return shake(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=17)), seed)


HEADS = {"image": 5, "text": 2}


def openai_layout(model: Any, prefix: str = "") -> dict[str, Any]:
    """The weights of a CLIPModel under the names of OpenAI's CLIP; prefix: of the text encoder, "text." in open_clip.

    attn_mask is a buffer that open_clip saves too.
    """
    import torch

    old = model.state_dict()
    new: dict[str, Any] = {}

    def both(ours: str, theirs: str) -> None:
        for kind in ("weight", "bias"):
            new[f"{ours}.{kind}"] = old[f"{theirs}.{kind}"]

    for tower, ours in (("vision_model", "visual.transformer"), ("text_model", f"{prefix}transformer")):
        for layer in range({"vision_model": 2, "text_model": 3}[tower]):
            a, b = f"{ours}.resblocks.{layer}", f"{tower}.encoder.layers.{layer}"
            for kind in ("weight", "bias"):
                joint = [old[f"{b}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                new[f"{a}.attn.in_proj_{kind}"] = torch.cat(joint)
            both(f"{a}.attn.out_proj", f"{b}.self_attn.out_proj")
            both(f"{a}.ln_1", f"{b}.layer_norm1")
            both(f"{a}.ln_2", f"{b}.layer_norm2")
            both(f"{a}.mlp.c_fc", f"{b}.mlp.fc1")
            both(f"{a}.mlp.c_proj", f"{b}.mlp.fc2")
    both("visual.ln_pre", "vision_model.pre_layrnorm")
    both("visual.ln_post", "vision_model.post_layernorm")
    both(f"{prefix}ln_final", "text_model.final_layer_norm")
    vision, text = "vision_model.embeddings.", "text_model.embeddings."
    new["visual.class_embedding"] = old[f"{vision}class_embedding"]
    new["visual.positional_embedding"] = old[f"{vision}position_embedding.weight"]
    new["visual.conv1.weight"] = old[f"{vision}patch_embedding.weight"]
    new["visual.proj"] = old["visual_projection.weight"].T.contiguous()
    new[f"{prefix}token_embedding.weight"] = old[f"{text}token_embedding.weight"]
    new[f"{prefix}positional_embedding"] = old[f"{text}position_embedding.weight"]
    new[f"{prefix}text_projection"] = old["text_projection.weight"].T.contiguous()
    new["logit_scale"] = old["logit_scale"]
    new[f"{prefix}attn_mask"] = torch.zeros(CONTEXT, CONTEXT)
    return new


def dual_encoder(seed: int = 0, clip_vision: bool = False) -> Any:
    """A VisionTextDualEncoderModel of ViT (or CLIP's) and BERT: sizes as of `clip`, 59 word pieces, 13 places."""
    from transformers import (
        BertConfig,
        CLIPVisionConfig,
        VisionTextDualEncoderConfig,
        VisionTextDualEncoderModel,
        ViTConfig,
    )

    kind = CLIPVisionConfig if clip_vision else ViTConfig
    vision = kind(hidden_size=30, num_hidden_layers=2, num_attention_heads=5, intermediate_size=41,
                  image_size=21, patch_size=7)  # fmt: skip
    text = BertConfig(vocab_size=59, hidden_size=22, num_hidden_layers=3, num_attention_heads=2, intermediate_size=37,
                      max_position_embeddings=13)  # fmt: skip
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=17)
    return shake(VisionTextDualEncoderModel(config), seed)


def biomedclip_like(folder: pathlib.Path, pooler: str = "cls_last_hidden_state_pooler") -> tuple[Any, Any, Any]:
    """ViT and BERT under the names of timm and open_clip, with a projection of two layers: the layout of BiomedCLIP."""
    import torch
    from safetensors.torch import load_file

    whole = dual_encoder()
    vision, text = whole.vision_model, whole.text_model
    # Saved, the weights have the names that all versions of transformers read.
    whole.save_pretrained(folder / "hf")
    saved = load_file(folder / "hf" / "model.safetensors")
    old = {name.removeprefix("vision_model."): value for name, value in saved.items() if name.startswith("vision")}
    generator = torch.Generator().manual_seed(3)
    heads = [torch.randn(shape, generator=generator) for shape in ((17, 30), (19, 22), (17, 19))]
    new = {name.replace("text_model", "text.transformer", 1): value for name, value in saved.items()
           if name.startswith("text_model") and "pooler" not in name}  # fmt: skip
    new["text.transformer.embeddings.position_ids"] = torch.arange(13)[None]
    new["visual.trunk.cls_token"] = old["embeddings.cls_token"]
    new["visual.trunk.pos_embed"] = old["embeddings.position_embeddings"]
    new |= {"visual.head.proj.weight": heads[0], "text.proj.0.weight": heads[1], "text.proj.2.weight": heads[2]}
    new["logit_scale"] = torch.tensor(4.4)
    for kind in ("weight", "bias"):
        new[f"visual.trunk.patch_embed.proj.{kind}"] = old[f"embeddings.patch_embeddings.projection.{kind}"]
        new[f"visual.trunk.norm.{kind}"] = old[f"layernorm.{kind}"]
        for layer in range(2):
            a, b = f"visual.trunk.blocks.{layer}", f"encoder.layer.{layer}"
            joint = [old[f"{b}.attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            new[f"{a}.attn.qkv.{kind}"] = torch.cat(joint)
            new[f"{a}.attn.proj.{kind}"] = old[f"{b}.attention.output.dense.{kind}"]
            new[f"{a}.norm1.{kind}"] = old[f"{b}.layernorm_before.{kind}"]
            new[f"{a}.norm2.{kind}"] = old[f"{b}.layernorm_after.{kind}"]
            new[f"{a}.mlp.fc1.{kind}"] = old[f"{b}.intermediate.dense.{kind}"]
            new[f"{a}.mlp.fc2.{kind}"] = old[f"{b}.output.dense.{kind}"]
    torch.save(new, folder / "open_clip_pytorch_model.bin")
    config = {
        "vision_cfg": {"timm_model_name": "vit_base_patch16_224", "timm_pool": "", "head_width": 6},
        "text_cfg": {"hf_model_name": "x", "hf_pooler_type": pooler, "heads": 2, "context_length": 11},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return vision, text, heads


def features(model: Any, pixels: np.ndarray, ids: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(images [n,E], texts [m,E]), L2-normalised, as transformers computes them; pixels [n,S,S,3], ids [m,L]."""
    import torch

    mask = torch.tensor((np.arange(ids.shape[1]) < count[:, None]).astype(np.int64))
    with torch.no_grad():
        images = model.get_image_features(torch.tensor(pixels.transpose(0, 3, 1, 2).copy()))
        texts = model.get_text_features(torch.tensor(ids.astype(np.int64)), attention_mask=mask)
    raw = (getattr(each, "pooler_output", each).numpy() for each in (images, texts))
    made = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in raw]
    return made[0], made[1]
