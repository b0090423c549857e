"""DICOM radiographs to grey values in 0..255, in the order that the standard prescribes.

Transfer syntax, then modality LUT or rescale, then VOI LUT or window, then inversion of MONOCHROME1 (DICOM PS3.3, C.11
and C.7.6.3). pydicom does each of them; GDCM decodes the compressed transfer syntaxes.
"""

import dataclasses
import io
import logging
import math
import warnings
from typing import Any

import numpy as np

from mmclip_jax.errors import UserError

MAX_PIXELS = 89_478_485
"""An image of more pixels is refused: the limit that Pillow has for other files. Radiographs have up to 20 million."""

# Its warnings quote values of the file, which may identify a patient; what cannot be used is said by an error instead.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


@dataclasses.dataclass(frozen=True)
class DicomImage:
    """grey: float32 [H, W] in 0..255, 255 white; low, high: the least and greatest value after the modality LUT."""

    grey: np.ndarray
    low: float
    high: float


def is_dicom(data: bytes) -> bool:
    """Whether this is a DICOM file: by its mark, or, where it has no preamble, by its first group."""
    return data[128:132] == b"DICM" or (data[:2] in (b"\x02\x00", b"\x08\x00") and data[3:4] == b"\x00")


def decode_dicom(data: bytes) -> DicomImage:
    """Reads a radiograph.

    White is what its VOI LUT or first window says; where it has neither, the values that occur span black to white.
    Padding (PixelPaddingValue) is black and does not count.

    Raises:
      UserError: it is damaged, has several frames, no pixels or too many, is compressed in a way that cannot be read,
        or its window makes no sense; the message leaves the file's name to the caller.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(data)
    except UserError:
        raise
    except Exception as error:  # pydicom and its decoders raise every kind for damaged files
        reason = type(error).__name__
        raise UserError(f"the DICOM file cannot be decoded ({reason}): it is damaged or incomplete") from error


def _decode(data: bytes) -> DicomImage:
    import pydicom
    from pydicom import pixels

    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    if "PixelData" not in dataset:
        raise UserError("the DICOM file has no pixels (it may be a structured report, or a download that broke off)")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if frames > 1:
        raise UserError(f"the DICOM file has {frames} frames: a radiograph has one")
    if rows * columns > MAX_PIXELS:
        raise UserError(f"the DICOM file claims {columns} x {rows} pixels, more than {MAX_PIXELS} can be")
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    # Some files of old converters lack a preamble and with it the statement of how they are written.
    if not hasattr(dataset, "file_meta") or "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        _check_codec(dataset.file_meta.TransferSyntaxUID)
    stored = pixels.pixel_array(dataset)
    if photometric.startswith(("RGB", "YBR")):
        return _from_colour(stored)
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UserError(f"photometric interpretation {photometric!r} is not that of a radiograph")
    values = pixels.apply_modality_lut(stored, dataset)
    inside = ~_padding(stored, dataset)
    if not inside.any():
        raise UserError("the image is empty: every pixel is padding")
    low, high = float(values[inside].min()), float(values[inside].max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError("the DICOM file's rescale slope or intercept makes no sense")
    shown, black, white = _windowed(values, dataset, low, high)
    grey = np.clip((np.asarray(shown, np.float32) - np.float32(black)) * np.float32(255 / (white - black)), 0, 255)
    if photometric == "MONOCHROME1":
        grey = 255 - grey
    grey[~inside] = 0
    return DicomImage(grey, low, high)


def _check_codec(syntax: Any) -> None:
    from pydicom.pixels import get_decoder

    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise UserError(f"the DICOM file is compressed as {syntax.name!r}, which cannot be read: decompress it first")


def _from_colour(stored: np.ndarray) -> DicomImage:
    from PIL import Image

    if stored.dtype != np.uint8 or stored.ndim != 3 or stored.shape[2] != 3:
        raise UserError("a colour DICOM file that does not have 8 bits a sample: convert it to grey")
    grey = np.asarray(Image.fromarray(stored).convert("L"), np.float32)
    return DicomImage(grey, float(grey.min()), float(grey.max()))


def _padding(stored: np.ndarray, dataset: Any) -> np.ndarray:
    """Which pixels, bool [H, W], are no part of the image."""
    if "PixelPaddingValue" not in dataset:
        return np.zeros(stored.shape, bool)
    first = int(dataset.PixelPaddingValue)
    last = int(dataset.get("PixelPaddingRangeLimit", first))
    return (stored >= min(first, last)) & (stored <= max(first, last))


def _windowed(values: np.ndarray, dataset: Any, low: float, high: float) -> tuple[np.ndarray, float, float]:
    """(values after the VOI LUT or window, what is black then, what is white)."""
    from pydicom import pixels

    if "VOILUTSequence" in dataset and len(dataset.VOILUTSequence):
        entry_bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return pixels.apply_voi(values, dataset), 0.0, float(2**entry_bits - 1)
    if "WindowCenter" in dataset and "WindowWidth" in dataset:
        centre, width = _first(dataset.WindowCenter), _first(dataset.WindowWidth)
        if centre is not None and width is not None:
            function = str(dataset.get("VOILUTFunction", "LINEAR")).upper()
            if not (math.isfinite(centre) and math.isfinite(width) and width > 0) or (
                function == "LINEAR" and width < 1
            ):
                raise UserError(f"the DICOM file's window makes no sense (centre {centre}, width {width})")
            shown = pixels.apply_windowing(values, dataset)
            # Far beyond the window lie black and white, whatever the function and the bits are.
            far = np.array([[centre - 1e6 * width, centre + 1e6 * width]])
            black, white = pixels.apply_windowing(far, dataset)[0]
            return shown, float(black), float(white)
    return values, low, high if high > low else low + 1


def _first(value: Any) -> float | None:
    """The first number of an element that may hold several, none, or an empty string."""
    if value is None or value == "":
        return None
    return float(value[0] if isinstance(value, (list, tuple)) or hasattr(value, "append") else value)
