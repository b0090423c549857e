"""Image files of a published data set: in folders, or still inside the ZIP archives that they were downloaded in."""

import functools
import os
import pathlib
import zipfile
from collections.abc import Iterable
from typing import Any

from mmclip_jax.errors import UserError

_INSIDE = "!"
_IN_PARQUET = "!parquet!"


class ImageFiles:
    """Finds image files by name below a folder, and in the ZIP archives that lie there.

    Data sets come unpacked in several ways (`images_001/images/x.png`, `images/x.png`, `0.zip`); names are unique in
    those that this is for, so that the name is enough. A file in a folder is preferred to one in an archive.

    Args:
      folders: where to look, at any depth.
      suffixes: of image files; others are not listed.
      archives: whether to look into ZIP files too.

    Raises:
      UserError: none of the folders exists, or an archive is damaged.
    """

    def __init__(
        self,
        folders: Iterable[pathlib.Path],
        suffixes: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".dcm", ".dicom"),
        archives: bool = True,
    ):
        folders = list(folders)
        existing = [folder for folder in folders if folder.is_dir()]
        if not existing:
            raise UserError(f"none of these image folders exists: {', '.join(map(str, folders))}")
        self._places: dict[str, str] = {}
        for folder in existing:
            self._add(folder, suffixes, archives)

    def _add(self, folder: pathlib.Path, suffixes: tuple[str, ...], archives: bool) -> None:
        inside: list[str] = []
        for where, subfolders, names in os.walk(folder, followlinks=True):
            subfolders.sort()
            for name in sorted(names):
                if name.lower().endswith(suffixes):
                    self._places.setdefault(name, os.path.join(where, name))
                elif archives and name.lower().endswith(".zip"):
                    inside.append(os.path.join(where, name))
        for archive in inside:
            for member in _open_archive(archive).namelist():
                if member.lower().endswith(suffixes):
                    self._places.setdefault(member.rpartition("/")[2], f"{archive}{_INSIDE}{member}")

    def __len__(self) -> int:
        return len(self._places)

    def find(self, name: str) -> str | None:
        """Where the image of this file name is, as `read_bytes` takes it; None if it is nowhere."""
        return self._places.get(name)

    def find_any(self, stem: str) -> str:
        """Where the image of this name without a suffix is, DICOM first; "" if it is nowhere."""
        found = (self.find(stem + suffix) for suffix in (".dcm", ".dicom", ".png", ".jpg", ".jpeg"))
        return next(filter(None, found), "")


def read_bytes(place: str) -> bytes:
    """The bytes of an image file, given as a path or as "ARCHIVE.zip!MEMBER".

    Raises:
      OSError: there is no such file.
      UserError: the archive is damaged.
    """
    archive, inside, member = place.partition(f".zip{_INSIDE}")
    if not inside:
        return _embedded(place) if _IN_PARQUET in place else pathlib.Path(place).read_bytes()
    try:
        return _open_archive(f"{archive}.zip").read(member)
    except (zipfile.BadZipFile, KeyError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"the image cannot be read from {pathlib.Path(archive).name}.zip ({error})") from error


def parquet_place(file: pathlib.Path, column: str, row: int) -> str:
    """The place of an image whose bytes are in a column of structs {bytes, path} of a Parquet file; rows from 0."""
    return f"{file}{_IN_PARQUET}{row}{_INSIDE}{column}"


def _embedded(place: str) -> bytes:
    file, _, rest = place.partition(_IN_PARQUET)
    row, _, column = rest.partition(_INSIDE)
    try:
        return _row_group(file, column, int(row))
    except (OSError, UserError):
        raise
    except Exception as error:  # pyarrow raises several kinds for a damaged file
        raise UserError(f"the image cannot be read from {pathlib.Path(file).name} ({type(error).__name__})") from error


def _row_group(file: str, column: str, row: int) -> bytes:
    import pyarrow.parquet

    metadata = pyarrow.parquet.read_metadata(file)
    for group in range(metadata.num_row_groups):
        if row < metadata.row_group(group).num_rows:
            return _pictures(file, column, group, os.stat(file).st_mtime_ns)[row].as_py() or b""
        row -= metadata.row_group(group).num_rows
    raise UserError(f"{pathlib.Path(file).name} has no such row")


@functools.lru_cache(maxsize=1)
def _pictures(file: str, column: str, group: int, changed: int) -> Any:
    """The encoded images of a row group; rows are read in their order, so one group is kept."""
    import pyarrow.parquet

    del changed  # tells a file that was written anew
    read = pyarrow.parquet.ParquetFile(file).read_row_group(group, columns=[column]).column(0).combine_chunks()
    return read.field("bytes") if pyarrow.types.is_struct(read.type) else read


def stamp(place: str) -> tuple[int, int]:
    """Size and time of change of an image file (or of its archive), which tell a changed file; (0, 0) if missing."""
    archive, inside, _ = place.partition(f".zip{_INSIDE}")
    try:
        status = os.stat(f"{archive}.zip" if inside else place.partition(_IN_PARQUET)[0])
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=64)
def _open_archive(file: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"archive {file} cannot be read ({error}): download it again") from error
