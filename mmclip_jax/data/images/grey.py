"""Any picture as grey: a file's bytes, a PIL image of any mode, an array. One set of rules, whatever the form.

Colour is its luminance (ITU-R 601), transparent is black, 16 bits are scaled by the range that is used, floating-point
numbers are 0 to 1, and a rotation flag is applied. What cannot be read so is refused in one line.
"""

import functools
import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmclip_jax.data.images import dicom
from mmclip_jax.data.images.luts import BIT_DEPTHS
from mmclip_jax.data.images.quiet import quiet
from mmclip_jax.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "TIFF", "BMP")  # what Pillow may take a file for
_BAND = 1 << 22  # pixels that are converted at a time, so that large images need no copies of their size
_CHANNELS = {2: "LA", 3: "RGB", 4: "RGBA"}
_ALPHA = {"LA": "LA", "La": "LA", "PA": "RGBA", "RGBA": "RGBA", "RGBa": "RGBA"}
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_MAGIC = {
    b"\x89PNG": "PNG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"BM": "BMP",
    b"\xff\xd8": "JPEG",
}


class Source(NamedTuple):
    """A decoded picture.

    grey: a Pillow image of mode L, or F with values 0..255; width, height: upright, before the decoder reduced it;
    minimum, maximum: of the values; is_plain: an upright 8-bit grey JPEG or PNG; note: as `dicom.Decoded` has it.
    """

    grey: "Image.Image"
    width: int
    height: int
    minimum: float
    maximum: float
    is_plain: bool = False
    note: str = ""


def read_file(data: bytes, shorter_side: int = 0, value_range: str | int = "auto") -> Source:
    """Decodes a JPEG, PNG, TIFF, BMP or DICOM file.

    Args:
      data: the file.
      shorter_side: pixels that are enough of the shorter side: a JPEG may be decoded smaller; 0 is all.
      value_range: see `images.store_image`.

    Raises:
      UserError: see `images.store_image`.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise UserError("the file is empty (0 bytes)")
    if dicom.is_dicom(data):
        decoded = dicom.decode_dicom(data, value_range)
        opened = Image.fromarray(decoded.pixels)
        return Source(opened, *opened.size, decoded.minimum, decoded.maximum, note=decoded.note)
    with quiet():
        try:
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError as error:
            limit = dicom.MAX_PIXELS // 10**6
            raise UserError(f"the image claims more than {limit} megapixels: it is damaged") from error
        except UnidentifiedImageError as error:
            raise UserError(f"the image cannot be decoded ({_why_not(data)})") from error
        except Exception as error:  # Pillow raises a dozen kinds for damaged files, from OSError to struct.error
            raise UserError(f"the image cannot be decoded ({_words(error)})") from error
        dicom.check_pixels(*opened.size)
        bits = data[24] if opened.format == "PNG" else None
        scale = min(1.0, shorter_side / min(opened.size)) if shorter_side else 1.0
        if opened.format == "JPEG" and scale < 0.5:
            width, height = size = opened.size
            # Lets the decoder drop detail far beyond the target size, and reads luminance only: several times faster.
            opened.draft("L", (max(1, round(2 * width * scale)), max(1, round(2 * height * scale))))
            return read_picture(opened, value_range, 8, size)
        return read_picture(opened, value_range, bits)


def _why_not(data: bytes) -> str:
    """What hinders Pillow, of files whose first bytes it knows."""
    kind = next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), "")
    if kind == "JPEG":
        try:
            _, _, precision = dicom.coded_frame(data)
        except Exception:
            precision = 8
        if precision not in (0, 8):
            return f"a JPEG of {precision} bits is not supported: convert it to a 16-bit PNG"
    if kind:
        return f"it is damaged, or a kind of {kind} that is not supported: save it as PNG"
    return "it is no JPEG, PNG, TIFF, BMP or DICOM file"


def read_picture(
    opened: "Image.Image", value_range: str | int = "auto", bits: int | None = None, size: tuple[int, int] | None = None
) -> Source:
    """Decodes a PIL image of any mode, just opened or made; it stays as it is, but for being loaded.

    bits: of a sample of its file, if that is known; size: what its file has, if it was told to decode a smaller one.
    """
    from PIL import Image

    with quiet():
        try:
            dicom.check_pixels(*opened.size)
            is_tiff = opened.format == "TIFF"
            if is_tiff and getattr(opened, "n_frames", 1) != 1:
                raise UserError("the TIFF file has several pages: an image is one; extract the one to use")
            tags = getattr(opened, "tag_v2", {})  # of TIFF files alone
            if is_tiff:
                bits = max(tags.get(258, (8,)))
            is_inverse = is_tiff and tags.get(262) == 0 and opened.mode not in ("1", "L")
            opened.load()
            if bits is None:
                bits = _few_bits(opened)
            turn = 1 if is_tiff else opened.getexif().get(0x0112, 1)  # Pillow turns TIFF by itself
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"the image cannot be decoded ({_words(error)})") from error
        try:
            grey, minimum, maximum = _to_grey(opened, bits, is_inverse, value_range)
            if turn in _TURNS:
                grey = grey.transpose(getattr(Image.Transpose, _TURNS[turn]))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"the image cannot be converted to grey ({_words(error)})") from error
    plain = turn not in _TURNS and opened.mode == "L" and bits == 8 and "transparency" not in opened.info
    width, height = size or opened.size
    if turn in (5, 6, 7, 8):
        width, height = height, width
    return Source(grey, width, height, minimum, maximum, plain and opened.format in ("JPEG", "PNG"))


def _few_bits(opened: Any) -> int:
    """Bits of a sample, by the pixels: a decoded PNG does not say, though its transparent value is in units of them."""
    clear = opened.info.get("transparency")
    if opened.format == "PNG" and opened.mode == "L" and isinstance(clear, int) and clear < 16:
        values = np.flatnonzero(opened.histogram())
        if clear < 4 and not (values % 85).any():
            return 2
        if not (values % 17).any():
            return 4
    return 8


def read_array(array: npt.ArrayLike) -> Source:
    """An array as the file would be that holds it: uint8 [H, W], other integers as 16-bit grey, floats of 0 to 1.

    A last axis of 1, 2, 3 or 4 is grey, grey and alpha, RGB, RGBA.
    """
    from PIL import Image

    values = np.asarray(array)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if not (values.ndim == 2 or (values.ndim == 3 and values.shape[-1] in _CHANNELS)):
        raise UserError(f"an image as an array is [H,W], [H,W,1] or [H,W,3], not {values.dtype} {list(values.shape)}")
    dicom.check_pixels(values.shape[1], values.shape[0])
    if values.dtype.kind not in "buif":
        raise UserError(f"an image as an array is of integers, or of floats from 0 to 1, not of {values.dtype}")
    bits = 8
    if values.dtype.kind == "f":
        _check_floats(values)
        values = np.rint(values.astype(np.float32 if values.itemsize <= 4 else np.float64) * 255).astype(np.uint8)
    elif values.dtype.kind == "b":
        values = values.astype(np.uint8) * np.uint8(255)
    elif values.dtype != np.uint8:
        _check_integers(values.min(), values.max())
        bits, values = 16, values.astype(np.uint16)
        if values.ndim == 3:  # as Pillow reads 16-bit colour
            values = (values >> 8).astype(np.uint8)
    values = np.ascontiguousarray(values)
    return read_picture(Image.fromarray(values), "auto", bits)


def to_pixels(grey: "Image.Image") -> np.ndarray:
    """uint8 [H, W] of a Pillow image of mode L or F."""
    if grey.mode == "L":
        return np.asarray(grey)
    pixels = np.empty((grey.height, grey.width), np.uint8)
    for top, band in _bands(grey):
        pixels[top : top + band.height] = np.clip(np.rint(np.asarray(band)), 0, 255)
    return pixels


def _words(error: Exception) -> str:
    """An error of a library in one short line."""
    return " ".join(str(error).split())[:120] or type(error).__name__


def _check_floats(values: np.ndarray) -> None:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise UserError(
            f"values from {low:g} to {high:g} are not those of an 8 or 16 bit grey image; {values.dtype} must be 0 to 1"
        )


def _check_integers(low: Any, high: Any) -> None:
    if low < 0 or high > 65535:
        raise UserError(f"values from {low} to {high} are not those of an 8 or 16 bit grey image")


def _bands(image: Any) -> Iterator[tuple[int, Any]]:
    """(first row, those rows) of an image, some million pixels each."""
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(image.height, top + rows)))


def _by_bands(image: Any, mode: str, convert: Callable[[Any], Any]) -> Any:
    """convert(image), an image of `mode`, without another copy of the whole."""
    from PIL import Image

    if image.height <= _BAND // image.width:
        return convert(image)
    made = Image.new(mode, image.size)
    for top, band in _bands(image):
        made.paste(convert(band), (0, top))
    return made


def _to_grey(opened: Any, bits: int, is_inverse: bool, value_range: str | int) -> tuple[Any, float, float]:
    """(image, minimum, maximum): of mode L, or F with values 0..255 where the file has more than 8 bits."""
    if opened.mode in ("I", "F") or opened.mode.startswith("I;16"):
        return _deep(opened, is_inverse, value_range)
    grey = opened
    if opened.mode != "L" or "transparency" in opened.info:
        grey = _by_bands(opened, "L", functools.partial(_shallow, like=opened, bits=bits))
    low, high = grey.getextrema()
    if bits == 16 and opened.mode != "L":
        # Pillow reads 16-bit colour as the upper 8 bits: right if the file uses all 16, else too dark to be of use.
        if not (value_range == "full" or (value_range == "auto" and high >= 64) or value_range == 65535):
            raise UserError("a 16-bit colour file that does not use all 16 bits: convert it to 16-bit grey")
    elif bits > 16:
        raise UserError(f"colour of {bits} bits a sample is not supported: convert it to 8 bits")
    return grey, low, high


def _deep(opened: Any, is_inverse: bool, value_range: str | int) -> tuple[Any, float, float]:
    """The same for integers of more than 8 bits, and floats. is_inverse: 0 is white."""
    from PIL import Image

    ends = [(values.min(), values.max()) for _, band in _bands(opened) for values in [np.asarray(band)]]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if opened.mode == "F":
        _check_floats(np.array(ends))
        white: float = 1
    else:
        _check_integers(low, high)
        white = _white(int(high), value_range)
    clear = opened.info.get("transparency") if opened.format == "PNG" else None

    def convert(band: Any) -> Any:
        values = np.asarray(band)
        scaled = values.astype(np.float32) * np.float32(255 / white)
        if is_inverse:
            scaled = 255 - scaled
        if isinstance(clear, int):
            scaled[values == clear] = 0
        return Image.fromarray(scaled)

    return _by_bands(opened, "F", convert), float(low), float(high)


def _shallow(band: Any, like: Any, bits: int) -> Any:
    """Rows of an image of 8 bits a sample as mode L. like: the whole image, which knows its file."""
    from PIL import Image, ImageChops

    if band.mode == "CMYK":
        if like.format in ("JPEG", "MPO") and "adobe" not in like.info:
            # Pillow takes all of them to be inverted, as Adobe writes them; without its marker they are not.
            band = ImageChops.invert(band)
        band = band.convert("RGB")
    clear = like.info.get("transparency")
    if band.mode in _ALPHA or (clear is not None and band.mode in ("1", "L", "P", "RGB")):
        if band.mode == "L" and like.format == "PNG" and bits < 8:  # stated in units of the file's few bits
            band.info["transparency"] = clear * 255 // (2**bits - 1)
        straight = _ALPHA.get(band.mode, "RGBA")
        band = band.convert(straight) if band.mode != straight else band
        rgba = band.convert("RGBA")
        band = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    if band.mode in ("1", "L", "RGB", "RGBA", "RGBX"):
        return band.convert("L")
    return band.convert("RGB").convert("L")


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
