"""`mmclip evaluate --external` against CheXzero's own program, on random weights of its true size: the same numbers?

    git clone https://github.com/rajpurkarlab/CheXzero
    .venv-interop/bin/pip install ftfy
    .venv-interop/bin/python benchmarks/external.py CheXzero

The clone gives the network (model.py), the tokenizer and its vocabulary. Padding, normalising, resizing, softmax and
mean are written out here with Pillow and PyTorch after its data_process.py and zero_shot.py, which need packages that
only training wants. Prints a table in Markdown; the exit status is 1 if a probability differs by more than 1e-6.
"""

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmclip_jax.evaluate import protocols
from mmclip_jax.evaluate.evaluations.scored import score_by_protocol
from mmclip_jax.external import run as external
from mmclip_jax.text import prompts

SIZES = ((512, 431), (390, 777), (333, 333), (900, 700), (224, 512), (1024, 837))
LABELS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion"),
    *("Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax"),
    "Support Devices",
)
# CLIP's ViT-B/32: embedding, pixels, layers, width, patch, text's length, vocabulary, width, heads and layers.
VIT_B32 = (512, 224, 12, 768, 32, 77, 49408, 512, 8, 12)
MOST = 1e-6


def main() -> None:
    """Draws weights and images, asks both programs, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clone", type=Path, help="a clone of CheXzero's repository")
    parser.add_argument("--members", type=int, default=2, help="checkpoints of the ensemble")
    args = parser.parse_args()
    sys.path.insert(0, str(args.clone))
    vocabulary = args.clone / "bpe_simple_vocab_16e6.txt.gz"
    import torch

    network = importlib.import_module("model").CLIP
    tokenizer = importlib.import_module("simple_tokenizer").SimpleTokenizer(str(vocabulary))
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 256, (9, 7)).astype(np.uint8)) for _ in SIZES]
    images = [np.asarray(each.resize(size, Image.Resampling.BICUBIC)) for each, size in zip(small, SIZES, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        files, theirs = [], []
        for member in range(args.members):
            torch.manual_seed(member)
            model = network(*VIT_B32).eval()
            files.append(Path(folder) / f"{member}.pt")
            torch.save(model.state_dict(), files[-1])
            theirs.append(probabilities(model, tokenizer, images))
        opened = external.open_model(external.load_spec("chexzero"), files, vocabulary)
    spec = external.load_spec("chexzero")
    asked = protocols.load("chexpert-14").with_prompts(spec.title, spec.prompts or {})
    kinds = [str(prompts.kind_of(label)) for label in LABELS]
    embedded = opened.model.encode_image(images)
    margins = score_by_protocol(opened.model, embedded, kinds, asked)["difference"] * opened.model.logit_scale
    ours, wanted = 1 / (1 + np.exp(-margins)), np.mean(theirs, axis=0)
    start = time.perf_counter()
    opened.model.encode_image(images * 12)
    rate = len(images) * 12 / (time.perf_counter() - start)
    apart = float(np.abs(ours - wanted).max())
    print("| checkpoints | images x findings | probabilities | largest difference | images a second |")
    print("|---|---|---|---|---|")
    print(f"| {args.members} | {ours.shape[0]} x {ours.shape[1]} | {wanted.min():.4f} to {wanted.max():.4f} | "
          f"{apart:.1e} | {rate:.1f} |")  # fmt: skip
    sys.exit(apart > MOST)


def probabilities(model: Any, tokenizer: Any, images: list[np.ndarray]) -> np.ndarray:
    """CheXzero's probabilities [n,K] of one checkpoint."""
    import torch

    def embed(texts: list[str]) -> Any:
        ids = torch.zeros(len(texts), model.context_length, dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            tokens = [tokenizer.encoder["<|startoftext|>"], *tokenizer.encode(text), tokenizer.encoder["<|endoftext|>"]]
            row[: len(tokens)] = torch.tensor(tokens)
        return torch.nn.functional.normalize(model.encode_text(ids), dim=-1)

    with torch.no_grad():
        seen = model.encode_image(torch.stack([pixels(image) for image in images]))
        seen = torch.nn.functional.normalize(seen, dim=-1)
        present, absent = (
            torch.exp(seen @ embed([template.format(label) for label in LABELS]).T) for template in ("{}", "no {}")
        )
    return np.asarray(present / (present + absent), np.float64)


def pixels(image: np.ndarray) -> Any:
    """What CheXzero's network takes [3,224,224] of a grey image: its longer side to 320, black around, then to 224."""
    import torch

    ratio = 320 / max(image.shape)
    height, width = (int(side * ratio) for side in image.shape)
    square = np.zeros((320, 320), np.float32)
    top, left = (320 - height) // 2, (320 - width) // 2
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    square[top : top + height, left : left + width] = np.asarray(resized)
    levels = (torch.from_numpy(square) - 101.48761) / 83.43944
    whole = torch.nn.functional.interpolate(levels[None, None], size=(224, 224), mode="bicubic", align_corners=False)
    return whole[0].expand(3, -1, -1)


if __name__ == "__main__":
    main()
