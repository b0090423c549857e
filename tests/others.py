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
