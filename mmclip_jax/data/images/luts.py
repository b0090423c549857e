"""Look-up tables of DICOM files: modality, VOI and palette colour (PS3.3 C.11.1, C.11.2 and C.7.9).

A descriptor holds the number of entries (0 stands for 65,536), the first stored value that is mapped, and the bits of
an entry, 8 to 16. Files in use differ from it: the sign of the first value is wrong, entries of 8 bits stand one or two
in a word, and the stated bits are more than those of the values.
"""

from typing import Any, NamedTuple

import numpy as np

from mmclip_jax.errors import UserError

BIT_DEPTHS = (8, 10, 12, 14, 16)


class Table(NamedTuple):
    """entries: int64 [n], 0..65535; first: the value that the first of them stands for; bits: of an entry, 8..16."""

    entries: np.ndarray
    first: int
    bits: int

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """The entries of values of any shape; what lies beyond an end has the entry of that end."""
        return self.entries[np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1).astype(np.int64)]


def read_table(descriptor: Any, data: Any, little: bool, low: float, high: float) -> Table:
    """A look-up table from its two elements.

    Args:
      descriptor, data: LUTDescriptor and LUTData, or those of a palette, as pydicom reads them.
      little: whether the file is little-endian.
      low, high: the values that are looked up. They tell the sign of the first value, which files state wrongly.

    Raises:
      ValueError: the entries are fewer than the descriptor says.
    """
    count, first, bits = (int(number) for number in descriptor)
    count = count % 65536 or 65536  # a field that was read as signed is negative
    if first >= 32768 and first > high:
        first -= 65536
    elif first < 0 and first + count <= low:
        first += 65536
    entries = _entries(data, count, little)
    needed = next(depth for depth in BIT_DEPTHS if entries.max() < 2**depth)
    # Writers state 16 bits whatever their entries hold. Fewer are believed, if the entries fit.
    return Table(entries, first, bits if max(8, int(entries.max()).bit_length()) <= bits < 16 else needed)


def _entries(data: Any, count: int, little: bool) -> np.ndarray:
    """The numbers of a table: words as bytes or integers, each of one entry or two of 8 bits, the lower first."""
    if isinstance(data, bytes):
        # An odd byte at the end belongs to no word.
        words = np.frombuffer(data[: len(data) & ~1], "<u2" if little else ">u2").astype(np.int64)
    else:
        words = np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF
    if len(words) < count <= 2 * len(words):
        words = np.stack([words & 0xFF, words >> 8], axis=-1).ravel()
    if len(words) < count:
        raise ValueError("a look-up table that does not match its descriptor")
    return words[:count]


def modality(header: Any, numbers: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """What stored values mean: by the modality LUT, or by slope and intercept, or themselves.

    Args:
      header: the data set.
      numbers: the possible stored values [n]; present: bool [n], which of them the image has.

    Returns:
      Values [n], and the ends of the range that the file's bits can hold.

    Raises:
      UserError: the table is damaged, or slope or intercept are no finite numbers.
    """
    signed, bits = int(header.PixelRepresentation), int(header.BitsStored)
    ends = np.array([-signed << (bits - 1), (1 << (bits - signed)) - 1])
    if header.get("ModalityLUTSequence"):
        item = header.ModalityLUTSequence[0]
        try:
            seen = numbers[present]
            table = read_table(item.LUTDescriptor, item.LUTData, header.original_encoding[1], seen.min(), seen.max())
        except Exception as error:
            raise UserError("the DICOM file's modality LUT is damaged") from error
        return table(numbers), (0, 2**table.bits - 1)
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    if slope is None and intercept is None:
        return numbers.astype(np.int32), (int(ends[0]), int(ends[1]))
    slope, intercept = 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)
    values = numbers.astype(np.float64) * slope + intercept
    if not np.isfinite(values).all():
        raise UserError("the DICOM file's rescale slope or intercept is not a finite number")
    low, high = sorted(float(end) * slope + intercept for end in ends)
    return values, (low, high)


def palette(header: Any, numbers: np.ndarray, present: np.ndarray) -> np.ndarray:
    """The colours of stored values [n]: uint8 [n,3]. Where there is an alpha table, they lie on black.

    Raises:
      UserError: a table is missing or damaged.
    """
    from pydicom.pixels import apply_color_lut

    try:
        if "SegmentedRedPaletteColorLookupTableData" in header:
            colours = apply_color_lut(numbers, header).astype(np.float64)
            colours /= 2 ** (8 * apply_color_lut(numbers[:1], header).dtype.itemsize) - 1
        else:
            low, high, little = numbers[present].min(), numbers[present].max(), header.original_encoding[1]
            names = ["Red", "Green", "Blue"] + ["Alpha"] * ("AlphaPaletteColorLookupTableData" in header)
            # An alpha table has no descriptor of its own.
            described = {name: "Red" if name == "Alpha" else name for name in names}
            tables = [
                read_table(
                    header[f"{described[name]}PaletteColorLookupTableDescriptor"].value,
                    header[f"{name}PaletteColorLookupTableData"].value,
                    *(little, low, high),
                )
                for name in names
            ]
            bits = max(table.bits for table in tables[:3])
            depths = [bits] * 3 + [table.bits for table in tables[3:]]
            colours = np.stack(
                [table(numbers) / (2**depth - 1) for table, depth in zip(tables, depths, strict=True)], -1
            )
    except Exception as error:
        raise UserError("the DICOM file's palette is missing or damaged") from error
    if colours.shape[-1] == 4:
        colours = colours[:, :3] * colours[:, 3:]
    return np.rint(255 * np.clip(colours, 0, 1)).astype(np.uint8)
