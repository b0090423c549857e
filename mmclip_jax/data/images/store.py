"""From an image file as a data set ships it to the 8-bit grey image that is stored.

Two things go wrong silently elsewhere and are done on purpose here: 16-bit files are scaled by the range that their
values really use (Pillow's own conversion saturates them, a division by 256 leaves 12-bit images almost black), and a
photograph-style rotation flag (EXIF) is applied instead of lost.
"""

import dataclasses
import io

import numpy as np

from mmclip_jax.data.images import grey as grey_lib
from mmclip_jax.data.images.stored import open_stored
from mmclip_jax.errors import UserError

MAX_SIDE = 65_500  # of a stored image: what a JPEG can have


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
    """Makes the 8-bit grey image that is stored of a JPEG, PNG, TIFF, BMP or DICOM file, 8 or 16 bits, grey or colour.

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

    source = grey_lib.read_file(data, shorter_side, value_range)
    width, height, grey = source.width, source.height, source.grey
    scale = min(1.0, shorter_side / min(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if max(size) > MAX_SIDE:
        raise UserError(f"the image is {width} x {height} pixels: no radiograph is so long and narrow")
    if grey.size != size:
        # The gap has most of a large reduction done by plain averages, with the same result to the eye.
        grey = grey.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    pixels = grey_lib.to_pixels(grey)
    check_not_flat(pixels)
    if source.is_plain and scale == 1.0:
        return StoredImage(data, pixels, height, width, source.minimum, source.maximum)
    stream = io.BytesIO()
    if encoding == "png":
        Image.fromarray(pixels).save(stream, "PNG")
    elif encoding == "jpeg":
        Image.fromarray(pixels).save(stream, "JPEG", quality=95)
        with open_stored(stream.getvalue()) as opened:
            pixels = np.asarray(opened)
    else:
        raise UserError(f"unknown encoding {encoding!r}: jpeg or png")
    return StoredImage(stream.getvalue(), pixels, height, width, source.minimum, source.maximum, source.note)


def check_not_flat(pixels: np.ndarray) -> None:
    """Refuses an image that shows nothing."""
    if pixels.min() == pixels.max():
        raise UserError(f"the image is empty: every pixel has the value {int(pixels.flat[0])}")
