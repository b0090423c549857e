"""From an image file as a data set ships it to the 8-bit grey image that is stored.

Two things go wrong silently elsewhere and are done on purpose here: 16-bit files are scaled by the range that their
values really use (Pillow's own conversion saturates them, a division by 256 leaves 12-bit images almost black), and a
photograph-style rotation flag (EXIF) is applied instead of lost.
"""

import dataclasses
import io
from typing import Any, NamedTuple

import numpy as np

from mmclip_jax.data import dicom
from mmclip_jax.data.luts import BIT_DEPTHS
from mmclip_jax.data.quiet import quiet
from mmclip_jax.errors import UserError

FORMATS = ("JPEG", "PNG", "TIFF")  # what Pillow may take a file for


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """An image as it is stored, and what its source was.

    image: the encoded file to store; pixels: uint8 [H, W], what it decodes to; original_height, original_width: of the
    upright source, in pixels; original_min, original_max: of its grey values before they were scaled to 8 bits (DICOM:
    after the modality LUT, without padding; JPEG larger than needed: of its reduced decoding); note: what a DICOM file
    says about its display and was ignored, or "".
    """

    image: bytes
    pixels: np.ndarray
    original_height: int
    original_width: int
    original_min: float
    original_max: float
    note: str = ""


def store_image(
    data: bytes, *, shorter_side: int = 256, value_range: str | int = "auto", encoding: str = "jpeg"
) -> StoredImage:
    """Makes the 8-bit grey image that is stored of a JPEG, PNG, TIFF or DICOM file, 8 or 16 bits, grey or colour.

    The content decides what a file is, not its name. A file that is 8-bit grey JPEG or PNG already, upright, and not
    larger than `shorter_side`, is kept byte for byte. Images are never enlarged.

    Args:
      data: the file.
      shorter_side: pixels of the shorter side of what is stored, > 0.
      value_range: what counts as white in a 16-bit file: "auto", the smallest of 8, 10, 12, 14, 16 bits that holds the
        image's maximum; "full", 65535; or the maximum itself, e.g. 4095. 8-bit files are 0..255 always. For DICOM see
        `dicom.decode_dicom`.
      encoding: "jpeg" (quality 95) or "png" (lossless, about three times the size).

    Raises:
      UserError: the file is empty, cannot be decoded, is of another format, claims more than `dicom.MAX_PIXELS`, shows
        one flat value, or has values beyond `value_range`; the message says which and leaves the file's name to the
        caller.
    """
    from PIL import Image

    if not data:
        raise UserError("the file is empty (0 bytes)")
    if dicom.is_dicom(data):
        decoded = dicom.decode_dicom(data, value_range)
        opened = Image.fromarray(decoded.pixels)
        source = _Source(opened, opened.width, opened.height, decoded.minimum, decoded.maximum, False, decoded.note)
    else:
        with quiet():
            source = _read(data, shorter_side, value_range)
    width, height, grey = source.width, source.height, source.grey
    scale = min(1.0, shorter_side / min(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if grey.size != size:
        # The gap has most of a large reduction done by plain averages, with the same result to the eye.
        grey = grey.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    values = np.asarray(grey)
    pixels = values if values.dtype == np.uint8 else np.clip(np.rint(values), 0, 255).astype(np.uint8)
    if pixels.min() == pixels.max():
        raise UserError(f"the image is empty: every pixel has the value {int(pixels.flat[0])}")
    if source.is_plain and scale == 1.0:
        return StoredImage(data, pixels, height, width, source.minimum, source.maximum)
    stream = io.BytesIO()
    if encoding == "png":
        Image.fromarray(pixels).save(stream, "PNG")
    elif encoding == "jpeg":
        Image.fromarray(pixels).save(stream, "JPEG", quality=95)
        pixels = np.asarray(Image.open(io.BytesIO(stream.getvalue())))
    else:
        raise UserError(f"unknown encoding {encoding!r}: jpeg or png")
    return StoredImage(stream.getvalue(), pixels, height, width, source.minimum, source.maximum, source.note)


class _Source(NamedTuple):
    """A decoded file: a Pillow image L or F (0..255), the upright size before reduction, the range of values."""

    grey: Any
    width: int
    height: int
    minimum: float
    maximum: float
    is_plain: bool  # may be stored as it is
    note: str


def _read(data: bytes, shorter_side: int, value_range: str | int) -> _Source:
    """Decodes a JPEG, PNG or TIFF file."""
    from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

    try:
        opened: Any = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = opened.size
        dicom.check_pixels(width, height)
        is_tiff = opened.format == "TIFF"
        if is_tiff and getattr(opened, "n_frames", 1) != 1:
            raise UserError("the TIFF file has several pages: an image is one; extract the one to use")
        turn = 1 if is_tiff else opened.getexif().get(0x0112, 1)  # Pillow turns TIFF by itself
        bits = _bits(opened, data)
        is_plain = turn in (0, 1) and opened.mode == "L" and bits == 8 and opened.format in ("JPEG", "PNG")
        scale = min(1.0, shorter_side / min(width, height))
        if opened.format == "JPEG" and scale < 0.5:
            # Lets the decoder drop detail far beyond the target size, and reads luminance only: several times faster.
            opened.draft("L", (max(1, round(2 * width * scale)), max(1, round(2 * height * scale))))
        opened.load()
        if opened.mode == "CMYK" and opened.format != "TIFF" and "adobe" not in opened.info:
            # Pillow takes all of them to be inverted, as Adobe writes them; without its marker they are not.
            opened = ImageChops.invert(opened)
        if turn not in (0, 1):
            opened = ImageOps.exif_transpose(opened)
            if turn in (5, 6, 7, 8):
                width, height = height, width
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"the image claims more than {dicom.MAX_PIXELS // 10**6} megapixels: it is damaged") from error
    except UnidentifiedImageError as error:
        raise UserError("the image cannot be decoded (it is no JPEG, PNG, TIFF or DICOM file)") from error
    except Exception as error:  # Pillow raises a dozen kinds for damaged files, from OSError to struct.error
        raise UserError(f"the image cannot be decoded ({error or type(error).__name__})") from error
    try:
        grey, minimum, maximum = _to_grey(opened, bits, value_range)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the image cannot be converted to grey ({error or type(error).__name__})") from error
    return _Source(grey, width, height, minimum, maximum, is_plain, "")


def _bits(opened: Any, data: bytes) -> int:
    """Bits per sample of a file, of which Pillow's modes do not tell all."""
    if opened.format == "PNG":
        return data[24]
    if opened.format == "TIFF":
        return max(opened.tag_v2.get(258, (8,)))
    return 8


def _to_grey(opened: Any, bits: int, value_range: str | int) -> tuple[Any, float, float]:
    """(image, minimum, maximum): of mode L, or F with values 0..255 where the file has more than 8 bits."""
    from PIL import Image

    if opened.mode in ("I", "F") or opened.mode.startswith("I;16"):
        values = np.asarray(opened)
        if opened.mode == "F" or values.size == 0 or values.min() < 0 or values.max() > 65535:
            raise UserError(f"values from {values.min()} to {values.max()} are not those of an 8 or 16 bit grey image")
        low, high = int(values.min()), int(values.max())
        return Image.fromarray(values.astype(np.float32) * np.float32(255 / _white(high, value_range))), low, high
    if opened.mode == "CMYK":
        opened = opened.convert("RGB")
    if opened.mode in ("P", "PA", "LA", "RGBA", "La", "RGBa"):
        if "A" in opened.mode or "a" in opened.mode or "transparency" in opened.info:
            rgba = opened.convert("RGBA")
            black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
            opened = Image.alpha_composite(black, rgba)
        opened = opened.convert("RGB")
    grey = opened.convert("L") if opened.mode != "L" else opened
    low, high = grey.getextrema()
    if bits == 16:
        # Pillow reads 16-bit colour as the upper 8 bits: right if the file uses all 16, else too dark to be of use.
        if not (value_range == "full" or (value_range == "auto" and high >= 64) or value_range == 65535):
            raise UserError("a 16-bit colour file that does not use all 16 bits: convert it to 16-bit grey")
    elif bits > 16:
        raise UserError(f"colour of {bits} bits a sample is not supported: convert it to 8 bits")
    return grey, low, high


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
