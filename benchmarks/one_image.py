"""What one image costs: seconds of processor for a call of encode_image, by the number of images.

    python benchmarks/one_image.py RUN [--repeats 15]

Each number is the median of interleaved calls, after one that compiles; "padded to 64" is the same call in a batch of
64, as every call was before batches had several sizes. Seconds of processor, so that other work matters less.
"""

import argparse
import time

import numpy as np

import mmclip_jax
from mmclip_jax.inference import inputs


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    model = mmclip_jax.load(args.run)
    side = model.config.model.image_size
    image = np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)
    counts = (1, 2, 4, 8, 16, 32, 64)
    spent: dict[tuple[int, bool], list[float]] = {}
    sizes = model._size
    for repeat in range(args.repeats + 1):
        for count in counts:
            for is_padded in (False, True):
                model._size = (lambda rows: inputs.BATCH) if is_padded else sizes  # type: ignore[method-assign]
                start = time.process_time()
                model.encode_image([image] * count)
                if repeat:
                    spent.setdefault((count, is_padded), []).append(time.process_time() - start)
    print(f"{model!r}\n\n| images | ms of processor | padded to {inputs.BATCH} |\n|---|---|---|")
    for count in counts:
        now, padded = (1000 * float(np.median(spent[count, is_padded])) for is_padded in (False, True))
        print(f"| {count} | {now:.1f} | {padded:.1f} |")


if __name__ == "__main__":
    main()
