"""Images a second of one core: making the stored image beside bare decoding of the same bytes. Prints one table.

    python benchmarks/images.py

Bare decoding is what the format's usual library does: Pillow's load, or pydicom's pixel_array (GDCM for compressed
files). JPEG lossless, JPEG-LS and JPEG 2000 decode in a child process here, and in this process there, so the figures
are of wall-clock time: medians over the repeats. The image is made up: smooth shapes with the noise of a detector, 8 or
12 bits, without a window.
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image

from mmclip_jax.data.images.store import store_image

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "data"))
import dicoms

SIZES = ((2048, 2500), (1024, 1024))


def scene(height: int, width: int) -> np.ndarray:
    """uint16 [height,width], 12 bits."""
    y, x = np.mgrid[:height, :width] / height
    shapes = 2000 + 1500 * np.sin(9 * y) * np.cos(7 * x) + 300 * (np.hypot(y - 0.5, x - 0.4) < 0.2)
    return np.clip(shapes + np.random.default_rng(0).normal(0, 12, shapes.shape), 0, 4095).astype(np.uint16)


def files(pixels: np.ndarray) -> dict[str, bytes]:
    """The same image in each format."""
    grey = Image.fromarray((pixels >> 4).astype(np.uint8))
    plain = dicoms.dicom_file(pixels)
    found = {}
    for name, image, file_format in (
        ("JPEG, 8 bits", grey, "JPEG"),
        ("PNG, 8 bits", grey, "PNG"),
        ("PNG, 16 bits", Image.fromarray(pixels), "PNG"),
    ):
        stream = io.BytesIO()
        image.save(stream, file_format)
        found[name] = stream.getvalue()
    return found | {
        "DICOM, uncompressed": plain,
        "DICOM, RLE": dicoms.compressed(plain, "RLELossless"),
        "DICOM, JPEG lossless": dicoms.compressed(plain, "JPEGLosslessProcess14_1"),
        "DICOM, JPEG-LS": dicoms.compressed(plain, "JPEGLSLossless"),
        "DICOM, JPEG 2000": dicoms.compressed(plain, "JPEG2000Lossless"),
    }


def decode(data: bytes) -> object:
    """The pixels, by the format's usual library."""
    if data[128:132] == b"DICM":
        return pydicom.dcmread(io.BytesIO(data)).pixel_array
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def seconds(function: Callable[[bytes], object], data: bytes, repeats: int) -> float:
    """The median, after one call that is not counted."""
    function(data)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(data)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    print(f"{'format':<22}{'size':>12}{'MB':>7}{'stored/s':>10}{'decoded/s':>11}{'ratio':>7}")
    for height, width in SIZES:
        for name, data in files(scene(height, width)).items():
            stored, bare = (seconds(function, data, options.repeats) for function in (store_image, decode))
            size = f"{width} x {height}"
            print(
                f"{name:<22}{size:>12}{len(data) / 1e6:>7.1f}{1 / stored:>10.1f}{1 / bare:>11.1f}{bare / stored:>7.2f}"
            )


if __name__ == "__main__":
    main()
