"""Samples a second that the training input makes, beside bare decoding and PyTorch's DataLoader. Prints one table.

    python benchmarks/pipeline.py                            # 480 made-up radiographs of 256 px, about 12 kB each
    python benchmarks/pipeline.py --data runs/real/data/covid runs/real/data/nih --json pipeline.json

"ours" reads records, decodes, augments (on the host, or leaves that to the device), draws a text, tokenises and stacks
batches, as `mmclip train` does, with the config's image size and text length. "decoding" is that of the same images,
already in memory, into arrays. "DataLoader" is what a user of PyTorch would write: Pillow decodes, pads, resizes, turns
and shifts, changes brightness and contrast, a float tensor is made, and a fast tokenizer of Hugging Face takes the
batch's texts, which lie in memory too; it needs `torch` and `transformers` and is left out without them.

All take turns in one process. Counted is its processor time, so other work on the machine hardly matters; worker
processes are timed by the clock: run that (--workers) on a quiet machine.
"""

import argparse
import contextlib
import csv
import functools
import importlib.util
import io
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmclip_jax.memory import keep_freed_memory

if __name__ == "__main__":  # before NumPy and JAX start threads
    keep_freed_memory()

import numpy as np
from PIL import Image, ImageEnhance

from mmclip_jax.data import pipeline, sources
from mmclip_jax.data.images import stored
from mmclip_jax.settings import read_config
from mmclip_jax.text.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
SENTENCES = (
    "There is a small left pleural effusion.", "The heart is enlarged.", "No pneumothorax.", "No focal consolidation.",
    "Mild pulmonary edema.", "Bibasilar atelectasis is unchanged.", "The mediastinal contours are normal.",
    "A right PICC line ends in the SVC.", "No acute osseous abnormality.", "Lungs are clear.",
)  # fmt: skip


def make_data(folder: Path, count: int) -> str:
    """Builds a data set of grey JPEG files by `mmclip data build table`, half of them with a report; returns where."""
    from mmclip_jax.cli.entry import main as command

    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    rows = []
    for number in range(count):
        height, width = (256, int(rng.integers(256, 312)))[:: 1 if number % 4 < 2 else -1]
        coarse = Image.fromarray(rng.integers(30, 220, (9, 9), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + rng.normal(
            0, 2.5, (height, width)
        )
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{number}.jpg", quality=90)
        report = " ".join(SENTENCES[i] for i in rng.permutation(len(SENTENCES))[: rng.integers(3, 8)])
        labels = dict(zip(("edema", "cardiomegaly"), rng.integers(0, 2, 2).tolist(), strict=True))
        said = {"report": "", **labels} if number % 2 else {"report": report, "edema": "", "cardiomegaly": ""}
        rows.append({"image": f"{number}.jpg", "patient": number, "split": "train", **said})
    with open(folder / "table.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    given = ["--table", folder / "table.csv", "--images", folder / "images", "--name", "made", "--data-dir", folder]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        command(["data", "build", "table", *map(str, given)])
    return str(folder / "made")


def batches(config: Any, **data: Any) -> pipeline.TrainIterator:
    """The training batches of `config` with these settings of its `data`."""
    config = config.copy_and_resolve_references()
    config.data.update(data)
    return pipeline.make_train_iterator(config, load_tokenizer())


def decode(images: list[bytes]) -> None:
    """Bare decoding by Pillow."""
    for data in images:
        np.asarray(Image.open(io.BytesIO(data)))


def decode_turbo(images: list[bytes]) -> None:
    """Bare decoding of grey JPEG by simplejpeg."""
    for data in images:
        stored.decode_grey_jpeg(data)


def data_loader(images: list[bytes], texts: list[str], size: int, length: int, batch: int, augment: Any) -> Any:
    """PyTorch's DataLoader over the same images and texts, without workers; None where it is not installed."""
    if not (importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")):
        return None
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import tokenizers
    import torch
    import transformers

    torch.set_num_threads(1)
    trained = tokenizers.BertWordPieceTokenizer()
    trained.train_from_iterator(texts, vocab_size=2000, show_progress=False)
    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, **marks)

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, number: int) -> tuple[Any, str]:
            image = Image.open(io.BytesIO(images[number])).convert("L")
            side = max(image.size)
            square = Image.new("L", (side, side))
            square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            draw = torch.empty(6).uniform_(-1, 1).tolist()
            turned = square.resize((size, size), Image.Resampling.BILINEAR).rotate(
                augment.rotate * draw[0],
                Image.Resampling.BILINEAR,
                translate=(int(augment.shift * size * draw[1]), int(augment.shift * size * draw[2])),
            )
            toned = ImageEnhance.Brightness(turned).enhance(1 + augment.brightness * draw[4])
            toned = ImageEnhance.Contrast(toned).enhance(1 + augment.contrast * draw[5])
            values = torch.from_numpy(np.array(toned)).to(torch.float32).div_(255).sub_(0.5).div_(0.25)
            return values[None], texts[number]

    def collate(rows: list[tuple[Any, str]]) -> tuple[Any, Any]:
        given = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        return torch.stack([image for image, _ in rows]), tokenizer([text for _, text in rows], **given)

    return torch.utils.data.DataLoader(Rows(), batch_size=batch, shuffle=True, collate_fn=collate)


def seconds(function: Callable[[], object], clock: Callable[[], float]) -> float:
    """How long it takes."""
    start = clock()
    function()
    return clock() - start


def take(iterator: Iterator[Any], count: int) -> None:
    """Asks for so many batches."""
    for _ in range(count):
        next(iterator)


def workers_table(config: Any, options: argparse.Namespace) -> dict[str, float]:
    """Samples a second by the clock with one and two worker processes, and how much more two make."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    opened = {workers: batches(config, threads=1, workers=workers, augment_on="device") for workers in rates}
    for iterator in opened.values():
        take(iterator, options.batches)  # the processes start
    for _ in range(options.repeats):
        for workers, iterator in opened.items():
            take(iterator, 4)  # what was made while the other took its turn
            count = 4 * options.batches
            made = seconds(functools.partial(take, iterator, count), time.monotonic)
            rates[workers].append(count * 2 * options.batch / made)
    for iterator in opened.values():
        iterator.close()
    found = {f"{workers} worker process(es)": statistics.median(each) for workers, each in rates.items()}
    return found | {
        "2 workers / 1 worker": statistics.median(two / one for one, two in zip(rates[1], rates[2], strict=True))
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default=str(ROOT / "configs" / "mmclip_vitb16.py"))
    parser.add_argument("--data", nargs="*", default=(), help="built data sets, paired and unpaired; default: made up")
    parser.add_argument("--batch", type=int, default=32, help="paired rows a batch, and unpaired")
    parser.add_argument("--batches", type=int, default=6, help="of a measurement")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--images", type=int, default=480, help="made up where no data are given")
    parser.add_argument("--workers", action="store_true", help="time one and two worker processes too")
    parser.add_argument("--json", type=Path, help="where the numbers go, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options, tuple(options.data) or (make_data(Path(folder), options.images),))


def measure(options: argparse.Namespace, data: tuple[str, ...]) -> None:
    """Measures and prints."""
    config = read_config(options.config).copy_and_resolve_references()
    config.data.train, config.data.paired_weights, config.data.unpaired_weights = data, (), ()
    config.data.batch_paired = config.data.batch_unpaired = options.batch
    config.data.threads = config.data.workers = 0
    small = sources.MEMORY_BYTES
    sources.MEMORY_BYTES = 0  # records come from their files, as those of a large data set
    host = batches(config, augment_on="host", keep_decoded=0)
    device = batches(config, augment_on="device", keep_decoded=0)
    sources.MEMORY_BYTES = small
    kept = batches(config, augment_on="device", keep_decoded=256)
    numbers = [int(r) for _ in range(options.batches) for part in next(host).values() for r in part["record"]]
    examples = [host.table.example(number) for number in numbers]
    images, samples = [example.image for example in examples], len(examples)
    texts = [example.text or "Chest radiograph." for example in examples]
    size, length = config.model.image_size, config.model.text.length
    loader = data_loader(images, texts, size, length, options.batch, config.data.augment)
    sides: dict[str, Callable[[], object]] = {
        "decoding alone, Pillow": functools.partial(decode, images),
        "decoding alone, simplejpeg": functools.partial(decode_turbo, images),
        "ours, augmented on the host": functools.partial(take, host, options.batches),
        "ours, augmented on the device": functools.partial(take, device, options.batches),
        "ours, likewise, small data set kept decoded": functools.partial(take, kept, options.batches),
    }
    if loader is not None:
        sides["PyTorch DataLoader, Pillow"] = lambda: list(loader)
    take(kept, 2 * len(host.table) // (2 * options.batch) + 2)
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.repeats + 1):
        for name, function in sides.items():
            used = seconds(function, time.process_time)
            if number:  # the first is for what is loaded at first use
                spent[name].append(used / samples)
    mean = sum(map(len, images)) / samples / 1000
    print(f"images of {mean:.1f} kB (mean) to {size} px, {length} tokens at most; {platform.machine()}, one process")
    print(f"{'':<46}{'samples/s':>10}{'us each':>9}{'/ Pillow':>10}{'/ DataLoader':>14}")
    bare, peer = spent["decoding alone, Pillow"], spent.get("PyTorch DataLoader, Pillow")
    rows = {}
    for name, each in spent.items():
        row: dict[str, Any] = {
            "samples_per_second": 1 / statistics.median(each),
            "microseconds": 1e6 * statistics.median(each),
        }
        row["of_pillow"] = statistics.median(b / e for b, e in zip(bare, each, strict=True))
        row["of_data_loader"] = statistics.median(p / e for p, e in zip(peer, each, strict=True)) if peer else None
        rows[name] = row
        beside = f"{row['of_data_loader']:>14.2f}" if peer else f"{'–':>14}"
        rate, micros = row["samples_per_second"], row["microseconds"]
        print(f"{name:<46}{rate:>10.0f}{micros:>9.0f}{row['of_pillow']:>10.2f}{beside}")
    by_clock = workers_table(config, options) if options.workers else {}
    for name, value in by_clock.items():
        print(f"{name:<46}{value:>10.2f}")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "workers": by_clock}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
