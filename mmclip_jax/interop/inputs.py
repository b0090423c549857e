"""What a user hands to a model, in the form that compiled functions take: pixels, and batches of one fixed size."""

import io
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import PIL.Image
from jax.experimental import multihost_utils

from mmclip_jax.data.images import store_image
from mmclip_jax.errors import UserError

BATCH = 64
_ANY_SIZE = 1 << 30


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
    """Refuses one image or text where a list belongs.

    Raises:
      UserError: it is one alone.
    """
    if isinstance(items, str | os.PathLike | PIL.Image.Image):
        raise UserError(f"{name} must be a list: give [{name[:-1]}], not one alone")


def as_pixels(image: Any) -> np.ndarray:
    """uint8 [H,W] of a path, a PIL image or an array.

    Raises:
      UserError: a file that cannot be read, an array that is not uint8 grey.
    """
    if isinstance(image, (str, pathlib.Path)):
        path = pathlib.Path(image)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}") from error
        try:
            return store_image(data, shorter_side=_ANY_SIZE, encoding="png").pixels
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    if hasattr(image, "convert"):
        stream = io.BytesIO()
        (image.convert("RGB") if image.mode in ("CMYK", "YCbCr", "LAB", "HSV") else image).save(stream, "PNG")
        return store_image(stream.getvalue(), shorter_side=_ANY_SIZE, encoding="png").pixels
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 or array.dtype != np.uint8:
        raise UserError(f"images are uint8 [H,W] or [H,W,1], not {array.dtype} {array.shape}")
    return array
