"""What an evaluation embeds in a second beside the encoder alone, and what a single image costs. Prints one table.

    python benchmarks/evaluate.py --workdir runs/demo --data runs/demo/data/phantom

"encoder alone" is the compiled image encoder on a batch that lies on the device already, again and again; "evaluation"
reads, decodes and fits the images of the validation split and embeds them, as `mmclip evaluate` does. The two take
turns; figures are medians by the clock, so run it on a quiet machine. "one image" is `Model.encode_image` of one array.
"""

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable

from mmclip_jax.memory import keep_freed_memory

if __name__ == "__main__":  # before NumPy and JAX start threads
    keep_freed_memory()

import jax
import numpy as np

import mmclip_jax
from mmclip_jax.evaluate.rows import Split, embed_images
from mmclip_jax.inference.inputs import BATCH


def seconds(function: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", required=True, help="a run, or one of its checkpoints")
    parser.add_argument("--data", required=True, help="a built data set")
    parser.add_argument("--images", type=int, default=512, help="of the validation split, at most")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=pathlib.Path, help="where the numbers go, too")
    options = parser.parse_args()
    model = mmclip_jax.load(options.workdir)
    split = Split.load([options.data], "validation")
    split = split.only(range(min(len(split), options.images)))
    size = model.config.model.image_size
    batch = jax.device_put(np.random.default_rng(0).integers(0, 256, (BATCH, size, size, 1)).astype(np.uint8))
    one = [np.asarray(batch)[0, :, :, 0]]
    rounds = -(-len(split) // BATCH)

    def alone() -> None:
        jax.block_until_ready([model._encode_image(batch) for _ in range(rounds)])

    sides = {"encoder": alone, "evaluation": lambda: embed_images(model, split), "one": lambda: model.encode_image(one)}
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.repeats + 1):
        for name, function in sides.items():
            used = seconds(function)
            if number:  # the first compiles
                spent[name].append(used)
    encoder = [used / (rounds * BATCH) for used in spent["encoder"]]
    evaluation = [used / len(split) for used in spent["evaluation"]]
    found = {
        "encoder alone, images/s": 1 / statistics.median(encoder),
        "evaluation, images/s": 1 / statistics.median(evaluation),
        "evaluation / encoder": statistics.median(a / b for a, b in zip(encoder, evaluation, strict=True)),
        "one image, ms": 1e3 * statistics.median(spent["one"]),
        "one image / one of a batch": statistics.median(a / b for a, b in zip(spent["one"], encoder, strict=True)),
    }
    print(f"{len(split)} images of {size} px, batches of {BATCH}, {jax.devices()[0].device_kind}")
    for name, value in found.items():
        print(f"{name:<32}{value:>10.2f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
