"""Samples a second that the training input makes, beside the bare decoding of the same images. Prints one table.

    python benchmarks/pipeline.py --data runs/real/data/covid runs/real/data/nih
    python benchmarks/pipeline.py --config real_small --data ...

"pipeline" reads records, decodes, augments, draws a text, tokenises and stacks batches, as `mmclip train` does, with
the config's image size and text length. "decoding" is Pillow's decoding of the very same images, already in memory,
into arrays. The two take turns; a second of processor time of the one process is what is counted, so that other work on
the machine hardly matters. Worker processes are timed by the clock: run that on a quiet machine.
"""

import argparse
import functools
import io
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmclip_jax.data import pipeline, sources
from mmclip_jax.settings import read_config
from mmclip_jax.text.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]


def batches(config: Any, threads: int, workers: int) -> pipeline.TrainIterator:
    """The training batches of `config` with so many threads and workers."""
    config = config.copy_and_resolve_references()
    config.data.threads, config.data.workers = threads, workers
    return pipeline.make_train_iterator(config, load_tokenizer())


def images_of(iterator: pipeline.TrainIterator, count: int) -> list[bytes]:
    """The stored images of the next `count` batches."""
    table = iterator.table
    numbers = [int(r) for _ in range(count) for part in next(iterator).values() for r in part["record"]]
    return [table.example(number).image for number in numbers]


def decode(images: list[bytes]) -> None:
    """Bare decoding."""
    for data in images:
        np.asarray(Image.open(io.BytesIO(data)))


def rate(samples: int, function: Callable[[], object], clock: Callable[[], float]) -> float:
    """Samples a second."""
    start = clock()
    function()
    return samples / (clock() - start)


def take(iterator: Iterator[Any], count: int) -> None:
    """Asks for so many batches."""
    for _ in range(count):
        next(iterator)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default=str(ROOT / "configs" / "mmclip_vitb16.py"))
    parser.add_argument("--data", nargs="+", required=True, help="built data sets, paired and unpaired")
    parser.add_argument("--batch", type=int, default=32, help="paired rows a batch, and unpaired")
    parser.add_argument("--batches", type=int, default=12, help="of a measurement")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    config = read_config(options.config)
    config.data.train, config.data.paired_weights, config.data.unpaired_weights = tuple(options.data), (), ()
    config.data.batch_paired = config.data.batch_unpaired = options.batch
    sources.MEMORY_BYTES = 0  # records come from their files, as those of a large data set

    iterator = batches(config, 0, 0)
    images = images_of(iterator, options.batches)
    samples = len(images)
    mean = sum(map(len, images)) / samples / 1000
    bare, made = [], []
    for _ in range(options.repeats):
        bare.append(rate(samples, lambda: decode(images), time.process_time))
        made.append(rate(samples, lambda: take(iterator, options.batches), time.process_time))
    ratio = statistics.median(m / b for m, b in zip(made, bare, strict=True))
    print(f"images of {mean:.1f} kB (mean) to {config.model.image_size} px, {config.model.text.length} tokens at most")
    print(f"{'decoding alone, samples a second of a core':<52}{statistics.median(bare):>9.0f}")
    print(f"{'whole pipeline, samples a second of a core':<52}{statistics.median(made):>9.0f}")
    print(f"{'whole pipeline / decoding alone':<52}{ratio:>9.2f}")
    by_workers: dict[int, list[float]] = {1: [], 2: []}
    opened = {workers: batches(config, 1, workers) for workers in by_workers}
    for iterator in opened.values():
        take(iterator, options.batches)  # the processes start
    for _ in range(options.repeats):
        for workers, iterator in opened.items():
            take(iterator, 4)  # what was made while the other took its turn
            count = 4 * options.batches
            rows = count * 2 * options.batch
            by_workers[workers].append(rate(rows, functools.partial(take, iterator, count), time.monotonic))
    for workers, rates in by_workers.items():
        print(f"{f'{workers} worker process(es), samples a second':<52}{statistics.median(rates):>9.0f}")
    pairs = zip(by_workers[2], by_workers[1], strict=True)
    print(f"{'2 workers / 1 worker':<52}{statistics.median(two / one for two, one in pairs):>9.2f}")
    for iterator in opened.values():
        iterator.close()


if __name__ == "__main__":
    main()
