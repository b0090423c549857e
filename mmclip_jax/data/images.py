"""From an image file as a data set ships it to the 8-bit grey image that is stored.

Two things go wrong silently elsewhere and are done on purpose here: 16-bit files are scaled by the range that their
values really use (Pillow's own conversion saturates them, a division by 256 leaves 12-bit images almost black), and a
photograph-style rotation flag (EXIF) is applied instead of lost.
"""

import dataclasses
import io
from typing import Any

import numpy as np

from mmclip_jax.errors import UserError

BIT_DEPTHS = (8, 10, 12, 14, 16)


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """image: the encoded file to store; pixels: uint8 [H, W], what it decodes to; original_*: of the upright source."""

    image: bytes
    pixels: np.ndarray
    original_height: int
    original_width: int


def store_image(
    data: bytes, *, shorter_side: int = 256, value_range: str | int = "auto", encoding: str = "jpeg"
) -> StoredImage:
    """Makes the 8-bit grey image that is stored of a JPEG or PNG file, 8 or 16 bits, grey or colour.

    A file that is 8-bit grey JPEG or PNG already, upright, and not larger than `shorter_side`, is kept byte for byte.
    Images are never enlarged.

    Args:
      data: the file.
      shorter_side: pixels of the shorter side of what is stored, > 0.
      value_range: what counts as white in a 16-bit file: "auto", the smallest of 8, 10, 12, 14, 16 bits that holds the
        image's maximum; "full", 65535; or the maximum itself, e.g. 4095. 8-bit files are 0..255 always.
      encoding: "jpeg" (quality 95) or "png" (lossless, about three times the size).

    Raises:
      UserError: the file is empty, cannot be decoded, shows one flat value, or has values beyond `value_range`; the
        message says which and leaves the file's name to the caller.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not data:
        raise UserError("the file is empty (0 bytes)")
    try:
        opened: Any = Image.open(io.BytesIO(data))
        turned = opened.getexif().get(0x0112, 1) not in (0, 1)
        width, height = opened.size
        scale = min(1.0, shorter_side / min(width, height))
        is_plain = (
            opened.mode == "L" and (opened.format == "JPEG" or (opened.format == "PNG" and _png_bits(data)[0] == 8))
        )  # fmt: skip
        kept = is_plain and scale == 1.0 and not turned
        if opened.format == "JPEG" and scale < 0.5:
            # Lets the decoder drop detail far beyond the target size, and reads luminance only: several times faster.
            opened.draft("L", (max(1, round(2 * width * scale)), max(1, round(2 * height * scale))))
        opened.load()
        if turned:
            opened = ImageOps.exif_transpose(opened)
    except UnidentifiedImageError as error:
        raise UserError("the image cannot be decoded (it is not an image file)") from error
    except Exception as error:  # Pillow raises a dozen kinds for damaged files, from OSError to struct.error
        raise UserError(f"the image cannot be decoded ({error or type(error).__name__})") from error
    if turned and _swaps_axes(data):
        width, height = height, width
    grey = _to_grey(opened, data, value_range)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if grey.size != size:
        # The gap has most of a large reduction done by plain averages, with the same result to the eye.
        grey = grey.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    values = np.asarray(grey)
    pixels = values if values.dtype == np.uint8 else np.clip(np.rint(values), 0, 255).astype(np.uint8)
    if pixels.min() == pixels.max():
        raise UserError(f"the image is empty: every pixel has the value {int(pixels.flat[0])}")
    if kept:
        return StoredImage(data, pixels, height, width)
    stream = io.BytesIO()
    if encoding == "png":
        Image.fromarray(pixels).save(stream, "PNG")
    elif encoding == "jpeg":
        Image.fromarray(pixels).save(stream, "JPEG", quality=95)
        pixels = np.asarray(Image.open(io.BytesIO(stream.getvalue())))
    else:
        raise UserError(f"unknown encoding {encoding!r}: jpeg or png")
    return StoredImage(stream.getvalue(), pixels, height, width)


def _swaps_axes(data: bytes) -> bool:
    from PIL import Image

    return Image.open(io.BytesIO(data)).getexif().get(0x0112, 1) in (5, 6, 7, 8)


def _png_bits(data: bytes) -> tuple[int, int]:
    """(bits per sample, colour type) of a PNG file, which Pillow does not tell; (8, 0) of other files."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 26:
        return 8, 0
    return data[24], data[25]


def _to_grey(opened: Any, data: bytes, value_range: str | int) -> Any:
    """A Pillow image of mode L, or of mode F with values 0..255 where the file has more than 8 bits."""
    from PIL import Image

    bits, _ = _png_bits(data)
    if opened.mode in ("I", "F") or opened.mode.startswith("I;16"):
        values = np.asarray(opened)
        if opened.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise UserError(f"values from {values.min()} to {values.max()} are not those of an 8 or 16 bit grey image")
        return Image.fromarray(values.astype(np.float32) * np.float32(255 / _white(int(values.max()), value_range)))
    if opened.mode in ("P", "PA", "LA", "RGBA", "La", "RGBa"):
        if "A" in opened.mode or "a" in opened.mode or "transparency" in opened.info:
            rgba = opened.convert("RGBA")
            black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
            opened = Image.alpha_composite(black, rgba)
        opened = opened.convert("RGB")
    grey = opened.convert("L") if opened.mode != "L" else opened
    if bits == 16:
        # Pillow reads 16-bit colour as the upper 8 bits: right if the file uses all 16, else too dark to be of use.
        top = int(np.asarray(grey).max())
        if not (value_range == "full" or (value_range == "auto" and top >= 64) or value_range == 65535):
            raise UserError("a 16-bit colour PNG that does not use all 16 bits: convert it to 16-bit grey")
    return grey


def _white(maximum: int, value_range: str | int) -> int:
    """The value of a 16-bit file that becomes 255."""
    if value_range == "auto":
        return next(2**bits - 1 for bits in BIT_DEPTHS if maximum < 2**bits)
    if value_range == "full":
        return 65535
    white = int(value_range)
    if maximum > white:
        raise UserError(f"the image's maximum {maximum} is above the given value range 0..{white}")
    return white
