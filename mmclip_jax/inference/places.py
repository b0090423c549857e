"""Images of a user's files, folders and patterns: which there are, and their pixels one after the other."""

import concurrent.futures
import glob
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mmclip_jax.data.builders.files import IMAGE_SUFFIXES, companion
from mmclip_jax.data.images import transforms
from mmclip_jax.data.images.dicom_headers import is_dicom_file
from mmclip_jax.errors import UserError
from mmclip_jax.inference.inputs import as_pixels

_SUFFIXES = (*IMAGE_SUFFIXES, ".bmp")
_AHEAD = 64  # images that are read at a time


class Found(NamedTuple):
    """images: files, each once, in the order in which they were named; others: how many files of folders are none."""

    images: list[pathlib.Path]
    others: int


class Unreadable(NamedTuple):
    """An image that could not be read, and why, in a line."""

    path: pathlib.Path
    reason: str


def find_images(places: Sequence[str | os.PathLike[str]]) -> Found:
    """The images at some places.

    places: files, taken whatever their name; folders, of which the files count, at any depth, whose name ends like an
    image's or that are DICOM without such a name; patterns with *, ? and [ ] ("a/*.png", "a/**/*.dcm"): the files that
    they match or, where they match none, the folders. Hidden files, and what operating systems leave beside files, are
    passed over.

    Raises:
      UserError: a place is not there, or has no image; the message names it.
    """
    images: dict[str, pathlib.Path] = {}
    others = 0
    for place in places:
        for path in _matches(place):
            inside, left = _images_in(path) if path.is_dir() else ([path], 0)
            others += left
            for image in inside:
                images.setdefault(os.path.realpath(image), image)
            if not inside:
                raise UserError(f"{path} holds no image (JPEG, PNG, TIFF, BMP or DICOM) among its {left} other files")
    return Found(list(images.values()), others)


def _matches(place: str | os.PathLike[str]) -> list[pathlib.Path]:
    """The path itself, or what a pattern matches."""
    path = pathlib.Path(place).expanduser()
    if path.exists():
        return [path]
    if not glob.has_magic(str(path)):
        raise UserError(f"{path} does not exist")
    found = sorted(pathlib.Path(each) for each in glob.glob(str(path), recursive=True))
    if not found:
        raise UserError(f"{path} matches nothing")
    return [each for each in found if not each.is_dir()] or found


def _images_in(folder: pathlib.Path) -> tuple[list[pathlib.Path], int]:
    """(its images, how many other files there are), at any depth, in the order of their names."""
    images, others = [], 0
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = pathlib.Path(root, name)
            if companion(path.relative_to(folder).parts):
                continue
            if name.lower().endswith(_SUFFIXES) or (not path.suffix and is_dicom_file(path)):
                images.append(path)
            else:
                others += 1
    return images, others


def read_images(
    paths: Sequence[pathlib.Path], size: int
) -> Iterator[tuple[list[pathlib.Path], list[np.ndarray], list[Unreadable]]]:
    """Reads images, some at a time and on all cores.

    Yields:
      (paths, the pixels of each, uint8 [size, size] as the model sees them, and those that could not be read).
    """

    def read(path: pathlib.Path) -> np.ndarray | Unreadable:
        try:
            # Looked at twice: what is no image after it was resized would stop the batch that it is in.
            return as_pixels(transforms.fit_image(as_pixels(path), size)[..., 0])
        except UserError as error:
            return Unreadable(path, str(error).removeprefix(f"{path}: "))

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), _AHEAD):
            part = paths[start : start + _AHEAD]
            done = list(zip(part, pool.map(read, part), strict=True))
            there = [(path, pixels) for path, pixels in done if not isinstance(pixels, Unreadable)]
            lost = [pixels for _, pixels in done if isinstance(pixels, Unreadable)]
            yield [path for path, _ in there], [pixels for _, pixels in there], lost
