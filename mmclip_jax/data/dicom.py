"""From a DICOM file to 8-bit grey, in the standard's order.

Transfer syntax, modality LUT or rescaling, VOI LUT or window, and last the inversion of MONOCHROME1. All of it but the
first depends on a stored value alone, so it is computed once for each possible value (65,536 at most) by pydicom, and
looked up for each pixel.
"""

import dataclasses
import io
import struct
import zlib
from typing import Any

import numpy as np

from mmclip_jax.data.quiet import quiet
from mmclip_jax.errors import UserError

MAX_PIXELS = 150_000_000  # the largest radiographs have about 30 million
MAX_INFLATED = 320 << 20  # bytes: two for each of these pixels, and the header
DEFLATED = b"1.2.840.10008.1.2.1.99"
EXPLICIT = b"1.2.840.10008.1.2.1\0\0\0"  # padded to the same length
BIT_DEPTHS = (8, 10, 12, 14, 16)
JPEG_FRAMES = frozenset([0xC0, 0xC1, 0xC2, 0xC3, 0xF7])  # baseline, extended, progressive, lossless, JPEG-LS

# Which decoder reads what. Those of "gdcm" run in a child process.
DECODERS = {
    "1.2.840.10008.1.2": "",
    "1.2.840.10008.1.2.1": "",
    "1.2.840.10008.1.2.2": "",
    "1.2.840.10008.1.2.4.50": "pillow",
    "1.2.840.10008.1.2.4.51": "pillow",
    "1.2.840.10008.1.2.4.57": "gdcm",
    "1.2.840.10008.1.2.4.70": "gdcm",
    "1.2.840.10008.1.2.4.80": "gdcm",
    "1.2.840.10008.1.2.4.81": "gdcm",
    "1.2.840.10008.1.2.4.90": "gdcm",
    "1.2.840.10008.1.2.4.91": "gdcm",
    "1.2.840.10008.1.2.5": "pydicom",
}


@dataclasses.dataclass(frozen=True)
class Decoded:
    """pixels: uint8 [H, W]; minimum, maximum: of the values before scaling, no padding; note: what was ignored."""

    pixels: np.ndarray
    minimum: float
    maximum: float
    note: str = ""


def is_dicom(data: bytes) -> bool:
    """Whether a file is DICOM by its content: the magic word, or a first element as in files without preamble."""
    if data[128:132] == b"DICM":
        return True
    # The first element of a data set without preamble belongs to group 2 or 8, little-endian.
    return len(data) > 8 and data[:2] in (b"\x02\x00", b"\x08\x00") and data[2:4] <= b"\x20\xff"


def decode_dicom(data: bytes, value_range: str | int = "auto") -> Decoded:
    """Grey pixels of a DICOM file.

    Args:
      data: the file.
      value_range: "auto", what the file's VOI LUT or its first window shows, else the values that are present (a
        window that shows nothing is ignored, and noted); "full", what the file's bits can hold; or the value after the
        modality LUT that is white, 0 being black. Colour depends on none of them.

    Raises:
      UserError: the file is damaged, too large, of several frames, of a kind that is not supported, or has values
        beyond `value_range`. No message quotes the file.
    """
    with quiet():
        header = read_header(data)
        if DECODERS[header.file_meta.TransferSyntaxUID] == "gdcm":
            from mmclip_jax.data.codec import decode_apart

            stored = decode_apart(data)
        else:
            stored = decode_here(header, plugin=DECODERS[header.file_meta.TransferSyntaxUID])
        try:
            with np.errstate(all="ignore"):
                if stored.ndim == 3 or header.PhotometricInterpretation == "PALETTE COLOR":
                    return _colour(header, stored)
                return _grey(header, stored, value_range)
        except UserError:
            raise
        except Exception as error:  # pydicom raises whatever a damaged header leads to
            raise UserError(f"the DICOM header cannot be used ({type(error).__name__})") from error


def read_header(data: bytes) -> Any:
    """The data set of a file, pixels still encoded, after all checks that need no decoding.

    Raises:
      UserError: see `decode_dicom`.
    """
    import pydicom

    with quiet():
        try:
            header = pydicom.dcmread(io.BytesIO(_inflate(data)), force=True)
            kind = header.file_meta.get("TransferSyntaxUID")
            if kind is None:  # without it, pydicom finds out how the data set is written
                little, implicit = header.original_encoding[::-1]
                kind = "1.2.840.10008.1.2" if implicit else ("1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2")
            kind = str(kind)
            header.file_meta.TransferSyntaxUID = pydicom.uid.UID(kind)
            if "PixelData" not in header:
                raise UserError("the DICOM file has no pixel data, or it is truncated")
            rows, columns, samples = int(header.Rows), int(header.Columns), int(header.SamplesPerPixel)
            frames = int(header.get("NumberOfFrames") or 1)
            allocated = int(header.BitsAllocated)
            stored, high = int(header.BitsStored), int(header.HighBit)
            header.PhotometricInterpretation = str(header.PhotometricInterpretation)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"the DICOM file cannot be read: it is damaged ({type(error).__name__})") from error
    if kind not in DECODERS:
        raise UserError("the DICOM file's transfer syntax is not supported: convert it to an uncompressed one")
    if kind == "1.2.840.10008.1.2.4.51" and stored > 8:
        raise UserError("lossy 12-bit JPEG in DICOM is not supported: convert the file to an uncompressed one")
    if frames != 1:
        raise UserError(f"the DICOM file has {frames} frames: an image is one; extract the one to use")
    check_pixels(columns, rows)
    if samples not in (1, 3) or allocated not in (8, 16) or not 1 <= stored <= allocated or high != stored - 1:
        raise UserError(
            f"DICOM pixels of {samples} samples, {allocated} bits allocated, {stored} stored, high bit {high} are not "
            "supported: 1 or 3 samples of 8 or 16 bits, the lowest of them stored"
        )
    if samples == 1 and header.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"):
        raise UserError("the DICOM file's photometric interpretation does not go with one sample a pixel")
    return header


def check_pixels(width: int, height: int) -> None:
    """Refuses images of no pixels or of more than `MAX_PIXELS`, before memory is spent on them."""
    if width < 1 or height < 1:
        raise UserError(f"the image claims a size of {width} x {height} pixels: it is damaged")
    if width * height > MAX_PIXELS:
        raise UserError(
            f"the image claims a size of {width} x {height} pixels, more than {MAX_PIXELS // 10**6} megapixels: "
            "it is damaged, or no radiograph"
        )


def _inflate(data: bytes) -> bytes:
    """A deflated file as an uncompressed one: zlib's own limit on the size is needed, which pydicom does not set."""
    at = data.find(DEFLATED, 0, 4096)
    if data[128:132] != b"DICM" or at < 0:
        return data
    (length,) = struct.unpack_from("<I", data, 140)
    start = 144 + length
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(data[start:], MAX_INFLATED)
    if not inflater.eof:
        raise UserError(f"the deflated DICOM file is truncated, or has more than {MAX_INFLATED >> 20} MiB")
    return data[:at] + EXPLICIT + data[at + len(DEFLATED) : start] + inflated


def decode_here(header: Any, plugin: str) -> np.ndarray:
    """Stored values [H, W], or RGB [H, W, 3], integers of 8 or 16 bits.

    Raises:
      UserError: the pixels are truncated or damaged, or their size is not the header's.
    """
    from pydicom.encaps import get_frame
    from pydicom.pixels import pixel_array

    with quiet():
        try:
            if plugin in ("gdcm", "pillow"):
                frame = get_frame(header.PixelData, 0, number_of_frames=1)
                if _coded_size(frame) != (header.Columns, header.Rows):
                    raise UserError("the DICOM file is damaged: its compressed image has not the header's size")
                if b"\xff\xd9" not in frame[-64:]:  # some writers pad
                    raise UserError("the image cannot be decoded (its compressed data are truncated)")
            stored = pixel_array(header, decoding_plugin=plugin)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"the image cannot be decoded (damaged or truncated: {type(error).__name__})") from error
    if stored.dtype.itemsize > 2 or stored.shape[:2] != (header.Rows, header.Columns):
        raise UserError("the DICOM file is damaged: its pixels are not what the header says")
    return stored.astype(stored.dtype.newbyteorder("="), copy=False)


def _coded_size(frame: bytes) -> tuple[int, int]:
    """(width, height) that a JPEG, JPEG-LS or JPEG 2000 stream states; (0, 0) if it states none."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start >= 0:
        right, bottom, left, top = struct.unpack_from(">IIII", frame, start + 8)
        return right - left, bottom - top
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        if frame[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        if frame[at + 1] in JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", frame, at + 5)
            return width, height
        at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    return 0, 0


def _colour(header: Any, stored: np.ndarray) -> Decoded:
    from PIL import Image
    from pydicom.pixels import apply_color_lut

    bits = int(header.BitsStored)
    if stored.ndim == 2:
        stored = apply_color_lut(stored, header)
        bits = 8 * stored.dtype.itemsize
    if bits != 8:
        stored = (stored.astype(np.float32) * np.float32(255 / (2**bits - 1))).clip(0, 255).astype(np.uint8)
    pixels = np.asarray(Image.fromarray(np.ascontiguousarray(stored.astype(np.uint8))).convert("L"))
    return Decoded(pixels, float(pixels.min()), float(pixels.max()))


def _grey(header: Any, stored: np.ndarray, value_range: str | int) -> Decoded:
    from pydicom.pixels import apply_modality_lut

    bits = 8 * stored.dtype.itemsize
    patterns = stored.view(f"u{bits // 8}")
    numbers = np.arange(2**bits, dtype=patterns.dtype).view(stored.dtype)  # what each bit pattern means
    padding = _padding(header, numbers)
    if padding.any() or header.get("ModalityLUTSequence"):
        present = np.zeros(2**bits, bool)
        present[patterns] = True
    else:  # all between the ends: rescaling makes the same range of them, and looking at each pixel takes longer
        present = (numbers >= stored.min()) & (numbers <= stored.max())
    if not (present & ~padding).any():
        raise UserError("the image is empty: every pixel is padding")
    present &= ~padding
    values = apply_modality_lut(numbers.astype(np.int32), header)
    if not np.isfinite(values).all():
        raise UserError("the DICOM file's rescale slope or intercept is not a finite number")
    low, high = values[present].min(), values[present].max()
    shown, note = None, ""
    if value_range == "auto":
        shown, note = _voi(header, values, present)
        black, white = low, high
    elif value_range == "full":
        signed = int(header.PixelRepresentation)
        ends = np.array([-signed << (header.BitsStored - 1), (1 << (header.BitsStored - signed)) - 1])
        black, white = np.sort(apply_modality_lut(ends, header))
    else:
        black, white = 0, int(value_range)
        if low < black or high > white:
            raise UserError(f"the image's values {low:g} to {high:g} are beyond the given value range 0..{white}")
    if shown is None:
        shown = (values.astype(np.float64) - black) / max(float(white) - float(black), 1e-9)
    table = np.rint(np.clip(shown, 0, 1) * 255).astype(np.uint8)
    if header.PhotometricInterpretation == "MONOCHROME1":
        table = 255 - table
    table[padding] = 0
    return Decoded(table[patterns], float(low), float(high), note)


def _padding(header: Any, numbers: np.ndarray) -> np.ndarray:
    """bool [patterns], which stored values are padding."""
    first = header.get("PixelPaddingValue")
    if first is None:
        return np.zeros(numbers.shape, bool)
    last = header.get("PixelPaddingRangeLimit")
    # Bits beyond those that count are cleared, as the decoder does with the pixels, and the sign is the pixels' own.
    unused = 8 * numbers.dtype.itemsize - int(header.BitsStored)
    ends = [
        (np.array(int(end) & 0xFFFF).astype(numbers.dtype) << unused) >> unused
        for end in (first, first if last is None else last)
    ]
    return (numbers >= min(ends)) & (numbers <= max(ends))


def _voi(header: Any, values: np.ndarray, present: np.ndarray) -> tuple[np.ndarray | None, str]:
    """(values shown, 0..1, [patterns], or None where the file does not say; what was wrong with what it says)."""
    from pydicom.pixels import apply_windowing

    varies = values[present].min() < values[present].max()
    if header.get("VOILUTSequence"):
        try:
            entries, first = _lut(header.VOILUTSequence[0], little=header.original_encoding[1])
        except Exception:
            return None, "the VOI LUT was ignored: it is damaged"
        # The output's depth is that of its values: what the descriptor says is often wrong.
        white = next(2**bits - 1 for bits in BIT_DEPTHS if entries.max() < 2**bits)
        shown = entries[np.clip(np.rint(values) - first, 0, len(entries) - 1).astype(np.int64)] / white
        if varies and np.ptp(shown[present]) == 0:
            return None, "the VOI LUT was ignored: it shows one value"
        return shown, ""
    if header.get("WindowWidth") is None and header.get("WindowCenter") is None:
        return None, ""
    try:
        shown = apply_windowing(values, header)
        # What the window makes black and white, for which far values stand.
        black, white = apply_windowing(np.array([-1e12, 1e12]), header)
        if not (np.isfinite(shown).all() and np.isfinite([black, white]).all() and black != white):
            return None, "the window was ignored: its centre or width is not a usable number"
        shown = (shown - black) / (white - black)
    except Exception:
        return None, "the window was ignored: its centre or width is not a usable number"
    if varies and np.ptp(shown[present]) == 0:
        return None, "the window was ignored: it shows one value"
    return shown, ""


def _lut(item: Any, little: bool) -> tuple[np.ndarray, int]:
    """(entries, the value that the first of them stands for); pydicom's own look-up wraps where entries are 8-bit."""
    count, first, _ = (int(number) for number in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        width = 2 if len(data) >= 2 * (count or 65536) else 1
        data = np.frombuffer(data, f"{'<' if little else '>'}u{width}")
    entries = np.asarray(data, np.int64)[: count or 65536]
    if entries.size < (count or 65536) or entries.min() < 0 or entries.max() > 65535:
        raise ValueError("a look-up table that does not match its descriptor")
    return entries, first
