"""From an image file as a data set ships it to the 8-bit grey image that is stored.

What goes wrong silently elsewhere is done on purpose here: 16-bit files are scaled by the range that their values
really use (Pillow's own conversion saturates them, a division by 256 leaves 12-bit images almost black), a
photograph-style rotation flag (EXIF) is applied instead of lost, and DICOM values go through their lookup tables.
What a file is, is told by its contents, not by its name.
"""

import dataclasses
import io
import warnings
from typing import Any

import numpy as np

from mmclip_jax.data import dicom
from mmclip_jax.errors import UserError

BIT_DEPTHS = (8, 10, 12, 14, 16)
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF")


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """image: the encoded file to store; pixels: uint8 [H, W], what it decodes to.

    original_height, original_width: of the upright source; original_min, original_max: its grey values before they were
    scaled to 0..255 (of a JPEG that is decoded at a reduced size: of the reduced image).
    """

    image: bytes
    pixels: np.ndarray
    original_height: int
    original_width: int
    original_min: float
    original_max: float


def store_image(
    data: bytes, *, shorter_side: int = 256, value_range: str | int = "auto", encoding: str = "jpeg"
) -> StoredImage:
    """Makes the 8-bit grey image that is stored of a JPEG, PNG, TIFF, BMP, GIF or DICOM file, grey or colour.

    A file that is 8-bit grey JPEG or PNG already, upright, and not larger than `shorter_side`, is kept byte for byte.
    Images are never enlarged.

    Args:
      data: the file.
      shorter_side: pixels of the shorter side of what is stored, > 0.
      value_range: what counts as white in a 16-bit file: "auto", the smallest of 8, 10, 12, 14, 16 bits that holds the
        image's maximum; "full", 65535; or the maximum itself, e.g. 4095. 8-bit files are 0..255 always, and DICOM files
        say themselves what is white (see `dicom.decode_dicom`).
      encoding: "jpeg" (quality 95) or "png" (lossless, about three times the size).

    Raises:
      UserError: the file is empty, cannot be decoded, shows one flat value, or has values beyond `value_range`; the
        message says which and leaves the file's name to the caller.
    """
    from PIL import Image

    if not data:
        raise UserError("the file is empty (0 bytes)")
    source = _from_dicom(data) if dicom.is_dicom(data) else _from_picture(data, shorter_side, value_range)
    scale = min(1.0, shorter_side / min(source.width, source.height))
    size = (max(1, round(source.width * scale)), max(1, round(source.height * scale)))
    grey = source.grey
    if grey.size != size:
        # The gap has most of a large reduction done by plain averages, with the same result to the eye.
        grey = grey.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    values = np.asarray(grey)
    pixels = values if values.dtype == np.uint8 else np.clip(np.rint(values), 0, 255).astype(np.uint8)
    if pixels.min() == pixels.max():
        raise UserError(f"the image is empty: every pixel has the value {int(pixels.flat[0])}")
    if source.is_plain and scale == 1.0:
        image = data
    elif encoding == "png":
        image = _encoded(pixels, "PNG")
    elif encoding == "jpeg":
        image = _encoded(pixels, "JPEG", quality=95)
        pixels = np.asarray(Image.open(io.BytesIO(image)))
    else:
        raise UserError(f"unknown encoding {encoding!r}: jpeg or png")
    return StoredImage(image, pixels, source.height, source.width, source.low, source.high)


@dataclasses.dataclass(frozen=True)
class _Source:
    """A decoded file: `grey` is a Pillow image of mode L or (0..255) F, perhaps decoded at less than the full size."""

    grey: Any
    height: int
    width: int
    low: float
    high: float
    is_plain: bool = False  # the file itself could be stored


def _from_dicom(data: bytes) -> _Source:
    from PIL import Image

    decoded = dicom.decode_dicom(data)
    height, width = decoded.grey.shape
    return _Source(Image.fromarray(decoded.grey), height, width, decoded.low, decoded.high)


def _from_picture(data: bytes, shorter_side: int, value_range: str | int) -> _Source:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a file is decoded or refused
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened: Any = Image.open(io.BytesIO(data), formats=FORMATS)
            turned = opened.getexif().get(0x0112, 1) not in (0, 1)
            width, height = opened.size
            scale = min(1.0, shorter_side / min(width, height))
            is_plain = (
                opened.mode == "L" and (opened.format == "JPEG" or (opened.format == "PNG" and _png_bits(data)[0] == 8))
            )  # fmt: skip
            if opened.format == "JPEG" and scale < 0.5:
                # Lets the decoder drop detail far beyond the target size and read luminance only: several times faster.
                opened.draft("L", (max(1, round(2 * width * scale)), max(1, round(2 * height * scale))))
            opened.load()
            if turned:
                opened = ImageOps.exif_transpose(opened)
    except UnidentifiedImageError as error:
        raise UserError(
            "the image cannot be decoded (it is not an image file; JPEG, PNG, TIFF, BMP, GIF and DICOM are read)"
        ) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"the image claims more pixels than the {Image.MAX_IMAGE_PIXELS} that are allowed") from error
    except Exception as error:  # Pillow raises a dozen kinds for damaged files, from OSError to struct.error
        raise UserError(f"the image cannot be decoded ({error or type(error).__name__})") from error
    if turned and _swaps_axes(data):
        width, height = height, width
    grey, low, high = _to_grey(opened, data, value_range)
    return _Source(grey, height, width, low, high, is_plain and not turned)


def _encoded(pixels: np.ndarray, file_format: str, **options: Any) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, file_format, **options)
    return stream.getvalue()


def _swaps_axes(data: bytes) -> bool:
    from PIL import Image

    return Image.open(io.BytesIO(data)).getexif().get(0x0112, 1) in (5, 6, 7, 8)


def _png_bits(data: bytes) -> tuple[int, int]:
    """(bits per sample, colour type) of a PNG file, which Pillow does not tell; (8, 0) of other files."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 26:
        return 8, 0
    return data[24], data[25]


def _to_grey(opened: Any, data: bytes, value_range: str | int) -> tuple[Any, float, float]:
    """(Pillow image of mode L, or of mode F in 0..255 where the file has more than 8 bits; least, greatest value)."""
    from PIL import Image

    bits, _ = _png_bits(data)
    if opened.mode in ("I", "F") or opened.mode.startswith("I;16"):
        values = np.asarray(opened)
        if opened.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise UserError(f"values from {values.min()} to {values.max()} are not those of an 8 or 16 bit grey image")
        low, high = int(values.min()), int(values.max())
        return Image.fromarray(values.astype(np.float32) * np.float32(255 / _white(high, value_range))), low, high
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
    return grey, *map(float, grey.getextrema())


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
