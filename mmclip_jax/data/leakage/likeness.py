"""Finds copies of images that were resized, recompressed or made darker.

A look is a perceptual hash of 63 bits and a thumbnail of 64 x 64 grey levels. Two images are alike if their hashes
differ in few bits and their thumbnails correlate. Looks are held as a file of 4,104 bytes an image and compared block
by block, so that memory stays bounded however many images there are.
"""

import contextlib
import dataclasses
import mmap
import os
import pathlib
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath

from mmclip_jax import files
from mmclip_jax.data.images.stored import open_stored

HASH_BITS = 12
"""Perceptual hashes that differ in at most this many of 63 bits are compared by their thumbnails."""

ALIKE = 0.985
"""Two images are alike if their thumbnails correlate at least so much."""

_SIDE = 64
TYPE = np.dtype([("bits", "<u8"), ("thumbnail", "u1", (_SIDE * _SIDE,))])
"""A look; the thumbnail's grey levels row by row."""

Images = Callable[[], Iterable[bytes]]
"""Gives the images of a split, from the first on at every call."""

UNREADABLE = np.uint64(2**64 - 1)
"""The hash of an image that cannot be read; no other has its lowest bit."""

_TRAIN_BLOCK = 16_384  # looks that are read at a time: 67 MB
_TEST_BLOCK = 64
_PAIRS = 2_048  # thumbnails that are compared at a time, as float32: 34 MB
_COARSE_APART = 2 - 2 * ALIKE + 1e-3  # of unit vectors, squared; and what rounding may add


def look_of(image: bytes) -> np.ndarray:
    """The look of a stored image, a scalar of `TYPE`; resizing and recompression hardly change it.

    Raises:
      UserError: the image cannot be read.
    """
    import scipy.fft
    from PIL import Image

    with open_stored(image) as opened:
        small = opened.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small)
    low = scipy.fft.dctn(pixels.astype(np.float32))[:8, :8].ravel()[1:]
    bits = int.from_bytes(np.packbits(np.append(low > np.median(low), False)).tobytes(), "big")
    return np.array((bits, pixels.ravel()), TYPE)


def _unit(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails uint8 [n, 4096] as float32 of mean 0 and norm 1, so that products are correlations."""
    centred = thumbnails.astype(np.float32)
    centred -= centred.mean(axis=1, keepdims=True)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    return centred


def alike(train: np.ndarray, test: np.ndarray) -> list[tuple[int, int]]:
    """(row of train, row of test) of the most similar training image, for each test image that has one alike.

    Args:
      train: looks [n] of `TYPE`; may be a file mapped into memory.
      test: looks [m].
    """
    best = np.full(len(test), -1.0, np.float32)
    twin = np.zeros(len(test), np.int64)
    test_coarse = _coarse(test["thumbnail"])
    for start in range(0, len(train), _TRAIN_BLOCK):
        block = np.array(train[start : start + _TRAIN_BLOCK])
        _let_go(train)
        bits, coarse = np.ascontiguousarray(block["bits"]), _coarse(block["thumbnail"])
        for first in range(0, len(test), _TEST_BLOCK):
            some = test[first : first + _TEST_BLOCK]
            rows, places = np.nonzero(np.bitwise_count(bits[None] ^ some["bits"][:, None]) <= HASH_BITS)
            apart = coarse[places] - test_coarse[first + rows]
            close = np.einsum("ij,ij->i", apart, apart) <= _COARSE_APART
            rows, places = rows[close], places[close]
            for chunk in range(0, len(rows), _PAIRS):
                a, b = places[chunk : chunk + _PAIRS], rows[chunk : chunk + _PAIRS]
                found = np.einsum("ij,ij->i", _unit(block["thumbnail"][a]), _unit(some["thumbnail"][b]))
                for value, place, row in zip(found, a, first + b, strict=True):
                    if value > best[row]:
                        best[row], twin[row] = value, start + place
    return [(int(twin[row]), int(row)) for row in np.flatnonzero(best >= ALIKE)]


def _let_go(looks: np.ndarray) -> None:
    """Drops what was read of a mapped file from this process's memory; the file, and what was written, stay."""
    mapped = getattr(looks, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _coarse(thumbnails: np.ndarray) -> np.ndarray:
    """Unit thumbnails summed over squares of 8 x 8 pixels: float32 [n, 64].

    It is a projection, so two of these are no farther apart than the thumbnails are: what is too far is not alike.
    """
    made = np.empty((len(thumbnails), 64), np.float32)
    for start in range(0, len(thumbnails), _PAIRS):
        unit = _unit(thumbnails[start : start + _PAIRS])
        made[start : start + _PAIRS] = unit.reshape(-1, 8, 8, 8, 8).sum(axis=(2, 4)).reshape(-1, 64) / 8
    return made


# ---------------------------------------------------------------------------------------------------------------------
# Stored looks


@dataclasses.dataclass(frozen=True)
class Store:
    """The looks of one split of a data set: in a file beside its records, if the folder can be written.

    directory: of the data set; split: its name; fingerprint: of its contents; count: images of the split, paired ones
    first.
    """

    directory: epath.Path
    split: str
    fingerprint: str
    count: int

    @property
    def file(self) -> epath.Path:
        """Where they are kept. Thumbnails are pictures of patients: as confidential as the records."""
        return self.directory / f"looks-{self.split}-{self.fingerprint[:16]}.npy"

    def stored(self) -> np.ndarray | None:
        """The looks that an earlier audit stored, mapped into memory; None if there are none of these contents."""
        if files.in_bucket(self.directory) or not self.file.is_file():
            return None
        try:
            looks = np.load(self.file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):  # cut off: made again
            return None
        return looks if looks.dtype == TYPE and looks.shape == (self.count,) else None

    def make(self, images: Images, map_in_order: Callable[..., Iterator[Any]] = map) -> np.ndarray:
        """The looks of these images, stored for the next time; where nothing can be written there, for this time only.

        Args:
          images: gives all of the split, in the order of its records.
          map_in_order: as `map`, perhaps on several threads.
        """
        if not self.count:
            return np.zeros(0, TYPE)
        if not files.in_bucket(self.directory):
            with contextlib.suppress(OSError):  # a folder that is read only, or full
                return self._write(pathlib.Path(self.directory), images, map_in_order)
        with tempfile.TemporaryFile() as file:
            looks = np.memmap(file, TYPE, "w+", shape=(self.count,))
            _fill(looks, map_in_order(_look_if_any, images()))
        return looks

    def _write(self, place: pathlib.Path, images: Images, map_in_order: Callable[..., Iterator[Any]]) -> np.ndarray:
        handle, name = tempfile.mkstemp(prefix=".looks-", suffix=".unfinished", dir=place)
        os.close(handle)
        try:
            looks = np.lib.format.open_memmap(name, "w+", TYPE, (self.count,))
            _fill(looks, map_in_order(_look_if_any, images()))
            looks.flush()
            os.chmod(name, stat.S_IMODE(place.stat().st_mode) & 0o666)  # whoever may read the records may read these
            os.replace(name, self.file)
        finally:
            pathlib.Path(name).unlink(missing_ok=True)
        return looks


def _look_if_any(image: bytes) -> np.ndarray:
    try:
        return look_of(image)
    except Exception:  # Pillow raises many types on damage
        return np.array((UNREADABLE, np.zeros(_SIDE * _SIDE, np.uint8)), TYPE)


def unreadable(looks: np.ndarray) -> int:
    """How many of the images could not be read; they are alike to no other."""
    return int((looks["bits"] == UNREADABLE).sum())


def _fill(looks: np.ndarray, made: Iterable[np.ndarray]) -> None:
    for row, look in enumerate(made):
        looks[row] = look
        if row % _TRAIN_BLOCK == 0:
            _let_go(looks)
