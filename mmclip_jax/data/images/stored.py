"""Pictures as records hold them, 8-bit grey PNG or JPEG: how they are opened, and how their metadata are stripped."""

import contextlib
import io
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from mmclip_jax.data.images.dicom import check_pixels
from mmclip_jax.data.images.quiet import quiet
from mmclip_jax.errors import UserError

try:
    import simplejpeg
except ImportError:  # no wheel for this platform: Pillow gives the same pixels
    simplejpeg = None

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG")
"""What a stored picture may be. Otherwise Pillow would open any of its formats, and one of them starts Ghostscript."""
_PNG = b"\x89PNG\r\n\x1a\n"
_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


@contextlib.contextmanager
def open_stored(data: bytes) -> Iterator["Image.Image"]:
    """The Pillow image of a stored picture, not yet decoded.

    Raises:
      UserError: it is no PNG or JPEG, too large, or found to be damaged while it is open.
    """
    from PIL import Image

    with quiet():
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                check_pixels(*opened.size)
                yield opened
        except UserError:
            raise
        # Pillow raises a dozen kinds for damaged files
        except (OSError, SyntaxError, ValueError, ArithmeticError, LookupError, Image.DecompressionBombError) as error:
            raise UserError(f"the image cannot be decoded ({' '.join(str(error).split())[:120]})") from error


def decode_grey_jpeg(data: bytes) -> np.ndarray | None:
    """The pixels uint8 [H, W] of a whole JPEG of grey alone, by libjpeg-turbo without Pillow; None for any other file.

    They are Pillow's to the bit, in about half of its time. Colours and damaged files are left to Pillow, which
    converts the ones and says what is wrong with the others.
    """
    if simplejpeg is None or data[:2] != b"\xff\xd8":
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours != "Gray":
            return None
        check_pixels(width, height)
        return simplejpeg.decode_jpeg(data, colorspace="GRAY")[:, :, 0]
    except (ValueError, RuntimeError, UserError):
        return None


def strip_metadata(data: bytes) -> bytes:
    """The file without all that is no pixel: texts, dates, places, profiles, thumbnails, and what follows its end.

    Raises:
      ValueError: it is no PNG or JPEG, or is not whole.
    """
    return _stripped_png(data) if data.startswith(_PNG) else _stripped_jpeg(data)


def _stripped_png(data: bytes) -> bytes:
    parts, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        name, piece = data[at + 4 : at + 8], data[at:end]
        if name in _CHUNKS:
            if len(piece) < 12 or zlib.crc32(piece[4:-4]) != int.from_bytes(piece[-4:], "big"):
                raise ValueError("a damaged PNG file")
            parts.append(piece)
        if name == b"IEND":
            return b"".join(parts)
        at = end
    raise ValueError("a PNG file without an end")


def _stripped_jpeg(data: bytes) -> bytes:
    if data[:2] != b"\xff\xd8":
        raise ValueError("neither PNG nor JPEG")
    parts, at = [data[:2]], 2
    while at + 4 <= len(data) or data[at : at + 2] == b"\xff\xd9":
        marker = data[at + 1]
        if data[at] != 0xFF:
            break
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xD9:
            return b"".join([*parts, b"\xff\xd9"])
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        piece = data[at:end]
        # JFIF without a thumbnail, and Adobe's word on the colours.
        is_needed = (piece[4:9] == b"JFIF\0" and len(piece) == 18) or (piece[4:9] == b"Adobe" and len(piece) == 16)
        if is_needed or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            parts.append(piece)
        at = end
        if marker == 0xDA:
            at = _end_of_scan(data, at)
            parts.append(data[end:at])
    raise ValueError("a JPEG file without an end")


def _end_of_scan(data: bytes, at: int) -> int:
    """Where the next marker stands that is no part of the compressed data."""
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            return len(data)
        if data[at + 1] == 0 or 0xD0 <= data[at + 1] <= 0xD7:
            at += 2
        elif data[at + 1] == 0xFF:
            at += 1
        else:
            return at
