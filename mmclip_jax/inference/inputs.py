"""What a user hands to a model, in the form that compiled functions take: pixels, and batches of one fixed size."""

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
from mmclip_jax.data.images.store import check_not_flat
from mmclip_jax.errors import UserError

BATCH = 64


def batches(*columns: Sequence[Any]) -> Iterator[tuple[Sequence[Any], ...]]:
    """Cuts columns of equal length into batches of at most `BATCH` rows."""
    for start in range(0, len(columns[0]), BATCH):
        yield tuple(column[start : start + BATCH] for column in columns)


def pad(array: np.ndarray) -> np.ndarray:
    """Repeats the last row up to the fixed batch size."""
    return np.concatenate([array, np.repeat(array[-1:], BATCH - len(array), axis=0)]) if len(array) < BATCH else array


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

    image: a path, a file's bytes (or a stream of them), a PIL image of any mode, or an array [H,W], [H,W,1], [H,W,3] or
    [H,W,4] (alpha): uint8; wider integers, which are what a 16-bit file holds; or floats from 0 to 1. An array uint8
    [H,W] is pixels as records hold them: it alone may be of one value, as the grey images of an evaluation are.

    Raises:
      UserError: it cannot be read, or shows one value alone; the message names the file.
    """
    as_stored = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 2
    try:
        pixels = grey.to_pixels(_source(image).grey)
        if not as_stored:
            check_not_flat(pixels)
    except UserError as error:
        if isinstance(image, str | os.PathLike):
            raise UserError(f"{' '.join(str(os.fspath(image)).splitlines())}: {error}") from error
        raise
    return pixels


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
    if isinstance(image, io.IOBase):
        return grey.read_file(image.read())
    if image is None:
        raise UserError("an image is a path, a file's bytes, a PIL image or an array, not None")
    try:
        array = np.asarray(image)
    except Exception as error:  # whatever an object's own conversion raises
        raise UserError(f"an image is a path, a file's bytes, a PIL image or an array, not {type(image)}") from error
    return grey.read_array(array)
