"""The files of a downloaded data set: in folders, or still inside the ZIP archives that they came in.

One index serves all collections. It passes over what operating systems leave behind (`companion`) and folders that hold
masks, counts both, and never chooses between two different files of one name.
"""

import collections
import contextlib
import dataclasses
import functools
import lzma
import os
import pathlib
import re
import stat
import struct
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from mmclip_jax.errors import UserError

DICOM_SUFFIXES = (".dcm", ".dicom")
OTHER_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
IMAGE_SUFFIXES = (*DICOM_SUFFIXES, *OTHER_SUFFIXES)
TABLE_PACKINGS = ("", ".gz", ".zip")
MAX_BYTES = 512 << 20
"""Of one file or member: an uncompressed DICOM file of the largest image that is read has 300 MB."""
MAX_TABLE_BYTES = 1 << 30

_INSIDE = "!"
_IN_PARQUET = "!parquet!"
_TARS = (".tar", ".tar.gz", ".tgz")
_COMPANION_FILES = frozenset({"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"})
_COMPANION_FOLDERS = frozenset(
    {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"}
    | {"thumbnail", "thumbnails", "thumbs"}
)
_MASKS = re.compile(r"(?:.*[^a-z])?masks?(?:[^a-z].*)?|(?:gt_)?segmentations?|segs?")
_IMAGES = re.compile(r"(?<![a-z])(?:images?|imgs?|and|with|x-?rays?|cxrs?|dicoms?)(?![a-z])")


def companion(parts: Sequence[str]) -> bool:
    """Whether a relative path is what an operating system or viewer leaves beside files.

    That are hidden files and folders (AppleDouble's "._x.png", ".DS_Store", ".thumbnails"), Thumbs.db, desktop.ini,
    folders of thumbnails, and the "__MACOSX" of archives.
    """
    *folders, name = [part.casefold() for part in parts]
    return (
        name in _COMPANION_FILES
        or name.startswith((".", "~$"))
        or name.endswith(":zone.identifier")
        or any(folder in _COMPANION_FOLDERS or folder.startswith(".") for folder in folders)
    )


def holds_masks(folder: str) -> bool:
    """Whether the name of a folder or archive says that masks are in it, and no images ("masks", "png_masks")."""
    name = folder.casefold().removesuffix(".zip")
    return bool(_MASKS.fullmatch(name)) and not _IMAGES.search(name)


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A file: its path below the folder (an archive counts as a folder), and how `read_bytes` finds it.

    size, crc: of a member of an archive; None for a file in a folder.
    """

    parts: tuple[str, ...]
    place: str
    size: int | None = None
    crc: int | None = None

    @property
    def shown(self) -> str:
        return _shown("/".join(self.parts))


class NotFound(str):
    """In place of a file's place: why there is none; "" if nothing is known. Always false."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False


class FileIndex:
    """Finds images and tables below a folder, at any depth, and in the ZIP archives that lie there.

    Data sets come unpacked in several ways (`images_001/images/x.png`, `images/x.png`, `0.zip`). An image is looked up
    by the end of its path. Where several paths fit, the one that agrees longest with the wanted one is meant; where
    this leaves several different files, none is taken, and two are named. A file in a folder goes before the same file
    in an archive.

    Args:
      folder: where to look.
      depth: how many parts of a path are compared at least; 1 where names are unique in a data set.
      top: regular expression of the names in `folder` itself that belong to the data set.

    Attributes:
      companions: how many files were passed over, see `companion`.
      masks: how many images were passed over because their folder or archive holds masks.
      packed: archives that are not read, but may hold what is looked for (.tar.gz).

    Raises:
      UserError: there is no such folder, or an archive is damaged.
    """

    def __init__(self, folder: pathlib.Path, depth: int = 1, top: str = ".*"):
        if not folder.is_dir():
            raise UserError(f"folder {folder} does not exist")
        self.folder, self.depth = folder, depth
        self.companions = self.masks = 0
        self.packed: list[str] = []
        self._images: dict[tuple[str, ...], list[_Entry]] = collections.defaultdict(list)
        self._others: dict[str, list[_Entry]] = collections.defaultdict(list)
        for entry in _walk(folder, top):
            self._add(entry)
            if entry.parts[-1].lower().endswith(".zip") and not companion(entry.parts):
                for member in _members(entry):
                    self._add(member)

    def _add(self, entry: _Entry) -> None:
        name = entry.parts[-1].lower()
        if companion(entry.parts):
            self.companions += 1
        elif not name.endswith(IMAGE_SUFFIXES):
            self._others[_folded(entry.parts[-1:])[0]].append(entry)
            if name.endswith(_TARS):
                self.packed.append(entry.shown)
        elif any(holds_masks(part) for part in entry.parts[:-1]):
            self.masks += 1
        elif len(entry.parts) >= self.depth:
            self._images[_folded(entry.parts[-self.depth :])].append(entry)

    def __len__(self) -> int:
        return sum(map(len, self._images.values()))

    def find(self, *wanted: str) -> str:
        """Where the first of these images is, by name or relative path, as `read_bytes` takes it.

        Returns:
          A `NotFound` if it is nowhere, or if several different files fit; its text then names two of them.
        """
        for path in wanted:
            parts = tuple(part for part in path.split("/") if part not in ("", "."))
            if len(parts) < self.depth:
                continue
            found = _choose(self._images.get(_folded(parts[-self.depth :]), []), parts)
            if found or str(found):
                return found
        return NotFound("")

    def find_any(self, stem: str) -> str:
        """As `find`, by a name without suffix. DICOM goes first; two other files that differ in it are several."""
        for suffixes in (DICOM_SUFFIXES, IMAGE_SUFFIXES[len(DICOM_SUFFIXES) :]):
            found = [self.find(stem + suffix) for suffix in suffixes]
            found = [place for place in found if place or str(place)]
            if len(found) > 1 and all(found):
                return NotFound(_ambiguity(stem, *(_shown(os.path.relpath(place, self.folder)) for place in found[:2])))
            if found:
                return next((place for place in found if not place), found[0])
        return NotFound("")

    def find_table(self, name: str) -> pathlib.Path | None:
        """Where the file of this name is that is no image (a table, a list); None if it is nowhere.

        Raises:
          UserError: several different files have this name.
        """
        place = _choose(self._others.get(_folded((name,))[0], []), (name,))
        if not place and str(place):
            raise UserError(f"{self.folder}: {place}")
        return pathlib.Path(place) if place else None

    def tables(self, pattern: str) -> list[pathlib.Path]:
        """All files that are no images and whose names match a regular expression, in the order of their paths.

        Raises:
          UserError: several different files have one name.
        """
        names = [name for name in self._others if re.fullmatch(pattern, name, re.IGNORECASE)]
        found = [file for name in names if (file := self.find_table(name)) is not None]
        return sorted(found)


def _shown(path: str) -> str:
    """A path for messages: a name that is not UTF-8 would stop the list of rejects."""
    return os.fsencode(path).decode("utf-8", "replace")


def _folded(parts: Sequence[str]) -> tuple[str, ...]:
    """Parts of a path by which files are looked up: file systems differ in case and in how they write accents."""
    return tuple(unicodedata.normalize("NFC", part).casefold() for part in parts)


def _walk(folder: pathlib.Path, top: str) -> Iterator[_Entry]:
    """All files below a folder, in the order of their names. Links are followed, but no folder is entered twice."""
    seen: set[tuple[int, int]] = set()

    def unreadable(error: OSError) -> None:
        if not companion((*pathlib.Path(error.filename).relative_to(folder).parts, "any")):
            raise UserError(f"folder {error.filename} cannot be read: {error.strerror}")

    for where, subfolders, names in os.walk(str(folder), followlinks=True, onerror=unreadable):
        status = os.stat(where)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if where == str(folder):
            subfolders[:] = [name for name in subfolders if re.fullmatch(top, name)]
            names = [name for name in names if re.fullmatch(top, name)]
        subfolders.sort()
        above = pathlib.Path(where).relative_to(folder).parts
        for name in sorted(names):
            yield _Entry((*above, name), os.path.join(where, name))


def _members(archive: _Entry) -> Iterator[_Entry]:
    for member in _open_archive(archive.place).infolist():
        slashed = member.filename.replace("\\", "/")  # programs on Windows wrote the others
        parts = tuple(part for part in slashed.split("/") if part not in ("", "."))
        if parts and not member.is_dir():
            place = f"{archive.place}{_INSIDE}{member.filename}"
            yield _Entry((*archive.parts[:-1], archive.parts[-1], *parts), place, member.file_size, member.CRC)


def _choose(entries: list[_Entry], wanted: tuple[str, ...]) -> str:
    """The place of the one entry that is meant by a relative path; a `NotFound` if there is none, or several."""
    if not entries:
        return NotFound("")

    def agreement(entry: _Entry) -> int:
        pairs = zip(_folded(entry.parts[::-1]), _folded(wanted[::-1]), strict=False)
        shorter = min(len(entry.parts), len(wanted))
        return next((n for n, (ours, theirs) in enumerate(pairs) if ours != theirs), shorter)

    best = max(map(agreement, entries))
    fitting = [entry for entry in entries if agreement(entry) == best]
    fitting = [entry for entry in fitting if entry.parts[-1] == wanted[-1]] or fitting
    loose = [entry for entry in fitting if entry.crc is None]
    first = (loose or fitting)[0]
    for other in fitting:
        if other is not first and not _same(first, other):
            return NotFound(_ambiguity(wanted[-1], first.shown, other.shown))
    return first.place


def _same(first: _Entry, other: _Entry) -> bool:
    """Whether two entries surely are one file: linked, or packed again."""
    try:
        if first.crc is None and other.crc is None:
            return os.path.samefile(first.place, other.place)
        if first.crc is None:
            return os.path.getsize(first.place) == other.size
    except OSError:  # a link that leads nowhere
        return False
    return (first.size, first.crc) == (other.size, other.crc)


def _ambiguity(name: str, first: str, second: str) -> str:
    return f"two files are named {name}: {first} and {second}; remove or rename one of them"


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_bytes(place: str | os.PathLike[str], limit: int = MAX_BYTES) -> bytes:
    """The bytes of a file, given as a path or as "ARCHIVE.zip!MEMBER"; at most `limit`, whatever an archive claims.

    Raises:
      OSError: there is no such file.
      UserError: the archive or its member is damaged, or the file is larger than `limit`.
    """
    archive, member = _split(place)
    if _IN_PARQUET in archive:
        data = _embedded(archive)
    elif not member:
        if not stat.S_ISREG(os.stat(archive).st_mode):
            raise UserError("it is no ordinary file")
        with open(archive, "rb") as stream:
            data = stream.read(limit + 1)
    else:
        data = _read_member(archive, member, limit)
    if len(data) > limit:
        raise UserError(f"the file has more than {limit >> 20} MiB")
    return data


def read_text(place: str | os.PathLike[str]) -> str:
    """The text of a list or table, UTF-8.

    Raises:
      UserError: it is not UTF-8, cannot be read, or is larger than `MAX_BYTES`.
    """
    try:
        return read_bytes(place).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{place} cannot be read: {error.strerror or error}") from error


def _split(place: str | os.PathLike[str]) -> tuple[str, str]:
    """(path, "") of a file in a folder, (path of the archive, member) of one in an archive."""
    text = os.fspath(place)
    for match in re.finditer(rf"\.zip{_INSIDE}", text, re.IGNORECASE):
        archive = text[: match.end() - 1]
        if os.path.isfile(archive):
            return archive, text[match.end() :]
    return text, ""


def _read_member(archive: str, member: str, limit: int) -> bytes:
    name = os.path.basename(archive)
    try:
        with _open_archive(archive).open(member) as stream:
            return stream.read(limit + 1)
    except (
        *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, KeyError, RuntimeError),
        *(NotImplementedError, OSError, ValueError, OverflowError, MemoryError),
    ) as error:
        reason = str(error).strip("'\"")[:100] or type(error).__name__
        raise UserError(f"the file cannot be read from {name}, which is damaged there ({reason})") from error


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
    try:
        status = os.stat(_split(place)[0].partition(_IN_PARQUET)[0])
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=64)
def _open_archive(file: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError, OverflowError) as error:
        raise UserError(f"archive {file} cannot be read ({error}): download it again") from error


@contextlib.contextmanager
def plain_table(place: pathlib.Path) -> Iterator[pathlib.Path]:
    """The path of a table as a file of its own; one that is packed as ZIP (Kaggle's "x.csv.zip") is unpacked meanwhile.

    Raises:
      UserError: the archive is damaged, or does not hold one table.
    """
    archive, member = _split(place)
    if not member and not archive.lower().endswith(".zip"):
        yield place
        return
    if not member:
        inside = [each for each in _members(_Entry((place.name,), archive)) if not companion(each.parts[1:])]
        if len(inside) != 1:
            raise UserError(f"archive {archive} holds {len(inside)} files where one table is expected: unpack it")
        member = inside[0].place.partition(f"{archive}{_INSIDE}")[2]
    with tempfile.TemporaryDirectory() as scratch:
        unpacked = pathlib.Path(scratch) / "table.csv"
        unpacked = unpacked.with_name(member.rpartition("/")[2][-100:] or unpacked.name)
        unpacked.write_bytes(read_bytes(f"{archive}{_INSIDE}{member}", MAX_TABLE_BYTES))
        yield unpacked
