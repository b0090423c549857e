"""What a user hands to a model, in the form that compiled functions take: pixels, and batches of a few sizes."""

import io
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np
import PIL.Image
from jax.experimental import multihost_utils

from mmclip_jax.data.images import grey
from mmclip_jax.data.images.dicom import check_pixels
from mmclip_jax.data.images.store import check_not_flat
from mmclip_jax.errors import UserError

BATCH = 64  # rows at most


def batch_size(rows: int, least: int = 1) -> int:
    """The rows that batches of a call are padded to: of a small call a power of two, so that one image costs one image.

    The rest of a call of more than `BATCH` rows is padded to `BATCH`, for which a program is there already: seven
    programs are all that is ever compiled of a function.

    least: of the sizes, a power of two: the devices that share a batch.
    """
    return min(BATCH, max(least, 1 << max(rows - 1, 0).bit_length()))


def batches(*columns: Sequence[Any]) -> Iterator[tuple[Sequence[Any], ...]]:
    """Cuts columns of equal length into batches of at most `BATCH` rows."""
    for start in range(0, len(columns[0]), BATCH):
        yield tuple(column[start : start + BATCH] for column in columns)


def pad(array: np.ndarray, size: int) -> np.ndarray:
    """Repeats the last row up to `size` rows."""
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)]) if len(array) < size else array


def shared(
    items: Sequence[Any], encode: Callable[[Sequence[Any]], np.ndarray], width: int, processes: int
) -> np.ndarray:
    """encode(items) -> [n,width], each process doing its share; all of them get all rows."""
    if processes <= 1 or not len(items):
        return encode(items)
    share = -(-len(items) // processes)
    mine = items[jax.process_index() * share :][:share]
    rows = np.zeros((share, width), np.float32)
    rows[: len(mine)] = encode(mine)
    every: np.ndarray = multihost_utils.process_allgather(rows)
    return every.reshape(-1, width)[: len(items)]


def check_several(name: str, items: Any) -> None:
    """Refuses what is no list of images or texts, by the name of the argument.

    Raises:
      UserError: it is one alone, or None, or no sequence; or a text is no string.
    """
    shape: Sequence[int] = getattr(items, "shape", ())
    if name == "images" and (len(shape) == 2 or (len(shape) == 3 and shape[-1] <= 4)):
        # Its rows would be taken for images, and those of a colour image can be read as such.
        raise UserError(f"images must be a list: an array {list(shape)} is one image, give [image]")
    if isinstance(items, str | bytes | bytearray | os.PathLike | PIL.Image.Image):
        raise UserError(f"{name} must be a list: give [{name[:-1]}], not one alone")
    if not (hasattr(items, "__len__") and hasattr(items, "__getitem__")) or isinstance(items, Mapping | Set):
        raise UserError(f"{name} must be a list, not {type(items).__name__}")
    if getattr(items, "ndim", 1) == 0:
        raise UserError(f"{name} must be a list, not a single number")
    if name in ("texts", "findings"):
        for number, item in enumerate(items):
            if not isinstance(item, str):
                raise UserError(f"{name}[{number}] must be a string, not {type(item).__name__}")


def check_equal(**columns: Any) -> None:
    """Refuses arguments that are no lists, or not of one length.

    Raises:
      UserError: the message names them with their lengths.
    """
    for name, items in columns.items():
        check_several(name, items)
    if len({len(items) for items in columns.values()}) > 1:
        raise UserError(f"as many of each are needed: {', '.join(f'{len(v)} {k}' for k, v in columns.items())}")


def check_numbers(name: str, numbers: Any, count: int) -> None:
    """Refuses what is no list of numbers below `count`.

    Raises:
      UserError: it is not.
    """
    check_several(name, numbers)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or not 0 <= number < count:
            raise UserError(f"{name} has {number!r:.40}, which is no entity's number: its text has {count}, from 0")


def as_pixels(image: Any) -> np.ndarray:
    """uint8 [H,W] of one image, by the same rules whatever its form (`data.grey`).

    image: a path, a file's bytes (or a stream of them), a PIL image of any mode, a pydicom data set, or an array [H,W],
    [H,W,1], [H,W,3] or [H,W,4] (alpha): uint8; wider integers, which are what a 16-bit file holds; bool; or floats from
    0 to 1. An array uint8 [H,W] is pixels as records hold them, and is given back, not copied: it alone may be of one
    value, as the grey images of an evaluation are.

    Raises:
      UserError: it cannot be read, or shows one value alone, or is an array of numbers that are black but for rounding
        (integers 0 and 1, which may have been meant as floats; floats of at most 1/16); the message names the file.
    """
    as_stored = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 2
    try:
        if as_stored:
            check_pixels(image.shape[1], image.shape[0])
            pixels = np.asarray(image)
        else:
            pixels = grey.to_pixels(_source(image).grey)
            check_not_flat(pixels)
        if hasattr(image, "dtype"):
            _check_not_black(image, pixels)
    except UserError as error:
        if isinstance(image, str | os.PathLike):
            raise UserError(f"{' '.join(str(os.fspath(image)).splitlines())}: {error}") from error
        raise
    return pixels


def _check_not_black(array: Any, pixels: np.ndarray) -> None:
    """Refuses an array whose range is another than its type says: shown as it is, it would be black."""
    values = np.asarray(array)
    # Floats: also 12 bits that were divided by the highest value of 16.
    if 0 < pixels.max() <= (16 if values.dtype.kind == "f" else 1):
        white = 1 if values.dtype.kind == "f" else 255 if values.dtype == np.uint8 else 65535
        raise UserError(
            f"{values.dtype} from {values.min():g} to {values.max():g} is all but black, where white is {white}: give "
            "floats from 0 to 1, integers of the range of their type, or bool for a bitmap"
        )


def _source(image: Any) -> grey.Source:
    if isinstance(image, str | os.PathLike):
        try:
            data = pathlib.Path(os.fspath(image)).read_bytes()
        except (OSError, TypeError, ValueError) as error:
            raise UserError(getattr(error, "strerror", "") or f"it is no path ({error})") from error
        return grey.read_file(data)
    if isinstance(image, bytes | bytearray | memoryview):
        return grey.read_file(bytes(image))
    if isinstance(image, PIL.Image.Image):
        return grey.read_picture(image)
    if type(image).__module__.partition(".")[0] == "pydicom":
        return grey.read_file(_dicom_bytes(image))
    if isinstance(image, io.IOBase):
        return grey.read_file(image.read())
    if image is None:
        raise UserError("an image is a path, a file's bytes, a PIL image or an array, not None")
    try:
        array = np.asarray(image)
    except Exception as error:  # whatever an object's own conversion raises
        raise UserError(f"an image is a path, a file's bytes, a PIL image or an array, not {type(image)}") from error
    return grey.read_array(array)


def _dicom_bytes(dataset: Any) -> bytes:
    """The file of a pydicom data set, so that one reader reads both."""
    import pydicom

    stream = io.BytesIO()
    try:
        pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    except Exception as error:  # pydicom raises what the missing element happens to cause
        said = " ".join(str(error).split())[:120]
        raise UserError(f"the pydicom data set cannot be written as a file ({said}): give the file") from error
    return stream.getvalue()
