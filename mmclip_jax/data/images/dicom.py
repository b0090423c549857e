"""From a DICOM file to 8-bit grey, in the standard's order.

Transfer syntax, modality LUT or rescaling, VOI LUT or window, and last the inversion of MONOCHROME1. All of it but the
first depends on a stored value alone, so it is computed once for each possible value, 65,536 at most, and looked up
for each pixel.
"""

import dataclasses
import io
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from mmclip_jax.data.images import luts
from mmclip_jax.data.images.quiet import quiet
from mmclip_jax.errors import UserError

MAX_PIXELS = 150_000_000  # the largest radiographs have about 30 million
MAX_INFLATED = 320 << 20  # bytes: two for each of these pixels, and the header
MAX_HEADER = 1 << 20  # bytes of a deflated file that are inflated for its header: what identifies it stands first
EXPLICIT = b"1.2.840.10008.1.2.1\0"
JPEG_FRAMES = frozenset([*range(0xC0, 0xD0), 0xF7]) - {0xC4, 0xC8, 0xCC}  # all that start a frame; the last is JPEG-LS

# Which decoder reads what.
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
APART = ("gdcm", "pydicom")  # decoders that run in a child process: one can crash, the other's output has no bound
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


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
        if DECODERS[header.file_meta.TransferSyntaxUID] in APART:
            from mmclip_jax.data.images.codec import decode_apart

            stored = decode_apart(data)
        else:
            stored = decode_here(header)
        try:
            with np.errstate(all="ignore"):
                if stored.ndim == 3:
                    return _colour(header, stored)
                if header.PhotometricInterpretation == "PALETTE COLOR":
                    return _palette(header, stored)
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
            try:
                header = pydicom.dcmread(_File(data), force=True)
            except _IsDeflated as deflated:
                header = pydicom.dcmread(_File(_inflate(data, deflated.start)), force=True)
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
            stored, high, signed = int(header.BitsStored), int(header.HighBit), int(header.PixelRepresentation)
            header.PhotometricInterpretation = str(header.PhotometricInterpretation).strip().upper()
            _raise_groups(header)
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
    fits = 1 <= stored <= allocated and stored - 1 <= high < allocated
    if signed not in (0, 1):
        raise UserError("the DICOM file's pixel representation is neither 0 nor 1: it is damaged")
    if samples not in (1, 3) or allocated not in (8, 16) or not fits:
        raise UserError(
            f"DICOM pixels of {samples} samples, {allocated} bits allocated, {stored} stored, high bit {high} are not "
            "supported: 1 or 3 samples of 8 or 16 bits"
        )
    greys = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    if header.PhotometricInterpretation not in (greys if samples == 1 else COLOURS):
        which = "one sample" if samples == 1 else "three samples"
        raise UserError(f"the DICOM file's photometric interpretation is not one of those of {which} a pixel")
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


class _IsDeflated(Exception):
    """The data set from the byte `start` on is deflated."""

    def __init__(self, start: int):
        super().__init__()
        self.start = start


class _File(io.BytesIO):
    """A file of which pydicom does not take all the rest at once: this is what it does to inflate it, without limit."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            raise _IsDeflated(self.tell())
        return super().read(size)


class _FileOnDisk(io.BufferedReader):
    """The same for a file that is not in memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            raise _IsDeflated(self.tell())
        return super().read(size)


def read_elements(file: str | os.PathLike[str], tags: list[str]) -> Any:
    """The elements of a file with these keywords, as a pydicom data set, without reading its pixels.

    Of a deflated file the first `MAX_HEADER` bytes are inflated, whatever stands before them.

    Raises:
      OSError: there is no such file.
      Exception: whatever pydicom raises for a damaged one.
    """
    import pydicom

    options: dict[str, Any] = {"force": True, "stop_before_pixels": True, "specific_tags": tags}
    with quiet(), open(file, "rb", buffering=0) as raw:
        try:
            return pydicom.dcmread(_FileOnDisk(raw), **options)
        except _IsDeflated as deflated:
            raw.seek(0)
            data = raw.read(deflated.start + MAX_HEADER)  # what is compressed is no longer than what comes of it
            return pydicom.dcmread(_File(_inflate(data, deflated.start, MAX_HEADER, whole=False)), **options)


def _inflate(data: bytes, start: int, most: int = MAX_INFLATED, whole: bool = True) -> bytes:
    """A deflated file as an uncompressed one, of `most` bytes at most; whole: more of them are an error."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(memoryview(data)[start:], most)
    if whole and not inflater.eof:
        raise UserError(f"the deflated DICOM file is truncated, or has more than {MAX_INFLATED >> 20} MiB")
    syntax = b"\x02\x00\x10\x00UI" + struct.pack("<H", len(EXPLICIT)) + EXPLICIT
    return b"".join([bytes(128), b"DICM", syntax, inflated])


def _raise_groups(header: Any) -> None:
    """Enhanced objects keep rescaling and window in functional groups: those of the one frame, where plain ones do."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in [part for group in header.get(groups) or () for part in group.get(name) or ()][:1]:
                for element in item:
                    if element.keyword and element.keyword not in header:
                        header.add(element)


def decode_here(header: Any) -> np.ndarray:
    """Stored values [H, W], or RGB [H, W, 3], integers of 8 or 16 bits.

    Raises:
      UserError: the pixels are truncated or damaged, or their size is not the header's.
    """
    from pydicom.pixels import pixel_array

    plugin = DECODERS[header.file_meta.TransferSyntaxUID]
    stored_bits, high, signed = int(header.BitsStored), int(header.HighBit), int(header.PixelRepresentation)
    is_shifted, stream_bits = high != stored_bits - 1, 0
    with quiet():
        try:
            if plugin:
                stream_bits = _check_stream(header, plugin)
            if stream_bits:
                is_shifted = False  # the compressed stream has its own bits, the lowest
            if plugin == "pillow":  # some writers state 16 bits allocated all the same
                header.BitsAllocated, header.BitsStored = 8, min(8, stored_bits)
            if is_shifted:
                header.BitsStored, header.PixelRepresentation = header.BitsAllocated, 0
            header.HighBit = header.BitsStored - 1
            stored = pixel_array(header, decoding_plugin=plugin)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"the image cannot be decoded (damaged or truncated: {type(error).__name__})") from error
    if stored.dtype.itemsize > 2 or stored.shape[:2] != (header.Rows, header.Columns):
        raise UserError("the DICOM file is damaged: its pixels are not what the header says")
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if signed and stream_bits:
        stored = _with_sign(stored, stored_bits, stream_bits)
    if is_shifted:
        header.BitsStored, header.PixelRepresentation = stored_bits, signed
        stored = _shifted(stored, stored_bits, high, signed)
    return stored


def _check_stream(header: Any, plugin: str) -> int:
    """The bits a sample that a compressed stream states, 0 for run lengths; before memory is spent on it.

    Raises:
      UserError: it is not of the header's size, truncated, of a kind that is not supported, or would expand too far.
    """
    from pydicom.encaps import get_frame

    if plugin == "pydicom":
        # Run lengths never take much more than the pixels; what takes twice of them may expand without bound.
        most = int(header.SamplesPerPixel) * 2 * (2 * int(header.Rows) * int(header.Columns) + 256)
        if len(header.PixelData) > most:
            raise UserError("the image cannot be decoded (it has more compressed data than pixels: it is damaged)")
        return 0
    frame = get_frame(header.PixelData, 0, number_of_frames=1)
    width, height, precision = coded_frame(frame)
    if (width, height) != (header.Columns, header.Rows):
        raise UserError("the DICOM file is damaged: its compressed image has not the header's size")
    if plugin == "pillow" and precision != 8:
        raise UserError("lossy 12-bit JPEG in DICOM is not supported: convert the file to an uncompressed one")
    if b"\xff\xd9" not in frame[-64:]:  # some writers pad
        raise UserError("the image cannot be decoded (its compressed data are truncated)")
    return precision


def _with_sign(stored: np.ndarray, stored_bits: int, stream_bits: int) -> np.ndarray:
    """Signed values of a stream that may say that it has no sign: two's complement in the bits that are in use."""
    values = stored.view(f"i{stored.dtype.itemsize}")
    fits = -(1 << (stored_bits - 1)) <= int(values.min()) and int(values.max()) < 1 << stored_bits
    unused = max(0, 8 * stored.dtype.itemsize - (stored_bits if fits else stream_bits))
    return (values << unused) >> unused


def _shifted(raw: np.ndarray, bits: int, high: int, signed: int) -> np.ndarray:
    """The values that lie in the bits below and including `high`, in place of the lowest, as old writers put them."""
    shift = high + 1 - bits
    if (raw & ((1 << shift) - 1)).any() and not (raw >> bits).any():
        raise UserError(f"the DICOM file's high bit {high} contradicts its pixels, which use the lowest {bits} bits")
    unused = 8 * raw.dtype.itemsize - bits
    values = raw << (unused - shift)
    return (values.view(f"i{raw.dtype.itemsize}") if signed else values) >> unused


def coded_frame(frame: bytes) -> tuple[int, int, int]:
    """(width, height, bits a sample) that a JPEG, JPEG-LS or JPEG 2000 stream states; zeros if it states none."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start >= 0:
        right, bottom, left, top = struct.unpack_from(">IIII", frame, start + 8)
        return right - left, bottom - top, (frame[start + 42] & 0x7F) + 1
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        if frame[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        if frame[at + 1] in JPEG_FRAMES:
            precision, height, width = struct.unpack_from(">BHH", frame, at + 4)
            return width, height, precision
        at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    return 0, 0, 0


def _colour(header: Any, stored: np.ndarray) -> Decoded:
    white = 2 ** int(header.BitsStored) - 1
    if stored.dtype != np.uint8 and not header.PhotometricInterpretation.startswith("RGB"):
        raise UserError("YBR colour of more than 8 bits in DICOM is not supported: convert the file to RGB")
    pixels = np.empty(stored.shape[:2], np.uint8)
    for rows in _bands(stored):
        part = stored[rows]
        if part.dtype != np.uint8:
            part = (part.astype(np.float32) * np.float32(255 / white)).clip(0, 255).astype(np.uint8)
        pixels[rows] = luminance(part)
    return Decoded(pixels, float(pixels.min()), float(pixels.max()))


def _palette(header: Any, stored: np.ndarray) -> Decoded:
    patterns, numbers, present = _numbers(stored)
    pixels = _look_up(luminance(luts.palette(header, numbers, present)[np.newaxis])[0], patterns)
    return Decoded(pixels, float(pixels.min()), float(pixels.max()))


def luminance(colours: np.ndarray) -> np.ndarray:
    """Grey [H, W] of RGB [H, W, 3], both uint8."""
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(colours)).convert("L"))


def _bands(pixels: np.ndarray) -> Iterator[slice]:
    """Rows at a time: indexing makes eight bytes of each pixel."""
    step = max(1, (1 << 22) // pixels.shape[1])
    return (slice(top, top + step) for top in range(0, pixels.shape[0], step))


def _look_up(table: np.ndarray, patterns: np.ndarray) -> np.ndarray:
    """table[patterns], without much memory."""
    found = np.empty(patterns.shape, table.dtype)
    for rows in _bands(patterns):
        found[rows] = table[patterns[rows]]
    return found


def _numbers(stored: np.ndarray, exact: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the pixels as bit patterns, what each pattern means, bool: which of them are there, or lie between others)."""
    bits = 8 * stored.dtype.itemsize
    patterns = stored.view(f"u{bits // 8}")
    numbers = np.arange(2**bits, dtype=patterns.dtype).view(stored.dtype)
    if exact:
        present = np.zeros(2**bits, bool)
        for rows in _bands(patterns):
            present[patterns[rows]] = True
    else:
        present = (numbers >= stored.min()) & (numbers <= stored.max())
    return patterns, numbers.astype(np.int32), present


def _grey(header: Any, stored: np.ndarray, value_range: str | int) -> Decoded:
    has_padding = header.get("PixelPaddingValue") is not None
    # Rescaling makes the same range of all values between the ends, and looking at each pixel takes longer.
    exact = has_padding or bool(header.get("ModalityLUTSequence"))
    patterns, numbers, present = _numbers(stored, exact)
    padding = _padding(header, numbers.astype(stored.dtype))
    if not (present & ~padding).any():
        raise UserError("the image is empty: every pixel is padding")
    present &= ~padding
    values, ends = luts.modality(header, numbers, present)
    low, high = values[present].min(), values[present].max()
    shown, note = None, ""
    if value_range == "auto":
        shown, note = _voi(header, values, present)
        black, white = low, high
    elif value_range == "full":
        black, white = ends
    else:
        black, white = 0, int(value_range)
        if low < black or high > white:
            raise UserError(f"the image's values {low:g} to {high:g} are beyond the given value range 0..{white}")
    if shown is None:
        shown = (values.astype(np.float64) - black) / max(float(white) - float(black), 1e-9)
    table = np.rint(np.clip(shown, 0, 1) * 255).astype(np.uint8)
    # A shape goes with MONOCHROME1 and says the same once more; beside MONOCHROME2 it is what viewers follow.
    if header.PhotometricInterpretation == "MONOCHROME1" or header.get("PresentationLUTShape") == "INVERSE":
        table = 255 - table
    table[padding] = 0
    return Decoded(_look_up(table, patterns), float(low), float(high), note)


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
            item, little = header.VOILUTSequence[0], header.original_encoding[1]
            seen = values[present]
            table = luts.read_table(item.LUTDescriptor, item.LUTData, little, seen.min(), seen.max())
        except Exception:
            return None, "the VOI LUT was ignored: it is damaged"
        shown = table(values) / (2**table.bits - 1)
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
