"""Which files the rows of a user's table mean: by path, or by what the files' DICOM headers say."""

import collections
import dataclasses
import functools
import os
import pathlib
import re
import unicodedata
from collections.abc import Sequence

from mmclip_jax.data import ids
from mmclip_jax.data.builders.cells import BadRow
from mmclip_jax.data.images import dicom_headers
from mmclip_jax.errors import shown

SUFFIXES = (".dcm", ".dicom", ".ima", ".png", ".jpg", ".jpeg", ".tif", ".tiff")
_OTHERS = """.csv .tsv .txt .xlsx .xls .ods .json .xml .html .htm .pdf .doc .docx .md .zip .gz .tar .7z .parquet .db
    .ini .log .yaml .yml .exe .dll .lnk .rtf""".split()  # noqa: SIM905 (no images, whatever they are called)
_LEFTOVERS = ("thumbs.db", "desktop.ini", "dicomdir")
AS_NAMED = "as named"


@dataclasses.dataclass(frozen=True)
class Found:
    """An image of a row: where it is (as `files.read_bytes` takes it), and its path within the folder."""

    place: str
    name: str


class TableImages:
    """Finds the image files of a table's rows below one folder.

    Args:
      folder: of the images.
      join: how a row finds its images, one of `columns.JOINS`.
      allow_outside: whether a path may lead out of the folder, by "..", from the root, or through a link.

    Attributes:
      how: how many images were found in which way.
    """

    def __init__(self, folder: pathlib.Path, join: str = "path", allow_outside: bool = False):
        self.folder = folder
        self.how: collections.Counter[str] = collections.Counter()
        self._as_header: collections.Counter[bool] = collections.Counter()
        self._other_patient = 0
        self._root = os.path.realpath(folder)
        self._join = join
        self._allow_outside = allow_outside
        self._prefix = ""

    def find(self, cell: str) -> Sequence[Found]:
        """The images that a cell of the join's column means: one where rows name files.

        Raises:
          BadRow: none, several where one is meant, or one outside of the folder.
        """
        if self._join == "path":
            return [self._find_path(cell)]
        if self._join == "folder":
            return self._find_folder(cell)
        return self._find_header(cell)

    def compare_patient(self, patient: str, header: dicom_headers.Header, row: int) -> None:
        """Counts whether table and header name one patient; `notes` tells where some do and some do not."""
        if not header.patient:
            return
        same = ids.alike_key(patient) == ids.alike_key(header.patient)
        self._as_header[same] += 1
        if not same and not self._other_patient:
            self._other_patient = row

    def strip_prefix(self, cells: Sequence[str]) -> str:
        """Leaves out the leading folders that all cells share, if no file is found with them; returns what is left out.

        Tables keep paths of the machine that they were made on. One rule for all rows, so that no row finds the file
        of another.
        """
        self._prefix = ""
        cells = [_slashes(cell) for cell in cells if cell]
        if self._join != "path" or not cells or any(self._is_there(cell) for cell in cells[:1000]):
            return ""
        folders = _common([cell.split("/")[:-1] for cell in cells])
        for count in range(1, len(folders) + 1):
            prefix = "/".join(folders[:count]) + "/"
            if any(self._is_there(cell.removeprefix(prefix)) for cell in cells[:1000]):
                self._prefix = prefix
                break
        return self._prefix

    def _is_there(self, name: str) -> bool:
        if os.path.isfile(os.path.join(self.folder, name)):
            return True
        return any(_folded(path) == _folded(name) for path in self._by_stem.get(_stem(_base(name)), ()))

    def notes(self) -> list[str]:
        """How images were found, where it was not just by their names; for a person."""
        ways = [f"{count} images {how}" for how, count in sorted(self.how.items()) if how != AS_NAMED and count]
        if self._as_header[True] and self._as_header[False]:  # else the table or the headers have pseudonyms
            ways.append(
                f"{self._as_header[False]} images whose DICOM header names another patient than the table (the first: "
                f"row {self._other_patient})"
            )
        if self._prefix:
            ways.append(f"{self._prefix!r} in front of all paths was left out")
        return ways

    # By path

    def _find_path(self, cell: str) -> Found:
        as_it_is = os.path.isfile(os.path.join(self.folder, cell))
        name = cell if as_it_is else _slashes(cell).removeprefix(self._prefix)
        direct = os.path.join(self.folder, name)
        how = AS_NAMED
        if not os.path.isfile(direct):  # names that are too long, or with a NUL, are no files
            name, how = self._search(name)
            direct = os.path.join(self.folder, name)
        elif self._prefix:
            how = "without the folders in front"
        self._check_inside(direct)
        self.how[how] += 1
        return Found(direct, name)

    def _check_inside(self, file: str) -> None:
        if self._allow_outside:
            return
        if os.path.commonpath([self._root, os.path.realpath(file)]) != self._root:
            raise BadRow("the path leads out of the image folder; --allow-outside takes such files")

    def _search(self, name: str) -> tuple[str, str]:
        """(path within the folder, how it was found) of a file that has not just the name of the table."""
        if ".." in name.split("/"):
            raise BadRow("there is no such image file")
        wanted = _folded(name)
        parent, _, base = wanted.rpartition("/")
        candidates = self._by_stem.get(_stem(base), [])
        here = [path for path in candidates if _folded(path).rpartition("/")[0] == parent]
        elsewhere = candidates if not parent and not here else []
        for group, how in ((here, "under another spelling or suffix"), (elsewhere, "in a folder below")):
            same = [path for path in group if _folded(path).rpartition("/")[2] == base]
            if found := same or group:
                if len(found) > 1:
                    raise BadRow(f"it may be {shown(found[0])} or {shown(found[1])}: write the path with its suffix")
                return found[0], how
        raise BadRow("there is no such image file")

    @functools.cached_property
    def files(self) -> list[str]:
        """Paths within the folder of all files that may be images, sorted; what operating systems leave is not."""
        found = []
        for where, folders, names in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
            inside = os.path.relpath(where, self.folder)
            for name in sorted(names):
                lower = name.lower()
                if name.startswith(".") or lower in _LEFTOVERS or _ending(lower) in _OTHERS:
                    continue
                found.append(name if inside == "." else f"{inside}/{name}".replace(os.sep, "/"))
        return found

    @functools.cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        """Name without its image suffix, folded -> paths."""
        found: dict[str, list[str]] = {}
        for path in self.files:
            found.setdefault(_stem(_base(path)), []).append(path)
        return found

    # By folder

    def _find_folder(self, cell: str) -> Sequence[Found]:
        wanted = _folded(_slashes(cell)).strip("/")
        found = self._by_folder.get(wanted, [])
        if not found and "/" not in wanted:
            places = [place for place in self._by_folder if place.rpartition("/")[2] == wanted]
            if len(places) > 1:
                raise BadRow(f"the folder may be {shown(places[0])} or {shown(places[1])}")
            found = self._by_folder[places[0]] if places else []
        if not found:
            raise BadRow("there is no such folder with images")
        return self._several(found)

    @functools.cached_property
    def _by_folder(self) -> dict[str, list[str]]:
        """Folder, folded -> the images in it and below."""
        found: dict[str, list[str]] = {}
        for path in self.files:
            if _ending(path.lower()) not in SUFFIXES and not dicom_headers.is_dicom_file(self.folder / path):
                continue
            parent = _folded(path).rpartition("/")[0]
            while parent:
                found.setdefault(parent, []).append(path)
                parent = parent.rpartition("/")[0]
        return found

    def _several(self, paths: Sequence[str]) -> Sequence[Found]:
        for path in paths:
            self._check_inside(os.path.join(self.folder, path))
        self.how[f"by {self._join}"] += len(paths)
        return [Found(os.path.join(self.folder, path), path) for path in paths]

    # By header

    def _find_header(self, cell: str) -> Sequence[Found]:
        exact, alike = self._by_header
        id = ids.clean_id(cell)
        found = exact.get(id, [])
        if not found:  # zeros that a spreadsheet lost
            keys = alike.get(ids.alike_key(id), set())
            if len(keys) > 1:
                raise BadRow(f"the headers have {' and '.join(map(shown, sorted(keys)[:2]))}: which is meant?")
            found = exact[next(iter(keys))] if keys else []
        if not found:
            what = "accession number" if self._join == "accession" else "SOP instance UID"
            raise BadRow(f"no DICOM file below the image folder has this {what}")
        if self._join == "sop" and len(found) > 1:
            raise BadRow(f"both {shown(found[0])} and {shown(found[1])} have this SOP instance UID")
        headers = [dicom_headers.read(os.path.join(self.folder, path)) for path in found]
        if len({ids.alike_key(header.patient) for header in headers if header is not None and header.patient}) > 1:
            raise BadRow("files of several patients have this accession number")
        return self._several(found)

    @functools.cached_property
    def _by_header(self) -> tuple[dict[str, list[str]], dict[str, set[str]]]:
        """(id -> paths, what is alike -> ids) of the images whose headers have the join's id."""
        exact: dict[str, list[str]] = {}
        alike: dict[str, set[str]] = {}
        for path in self.files:
            header = dicom_headers.read(os.path.join(self.folder, path))
            text = getattr(header, self._join, "") if header is not None and header.is_image else ""
            try:
                id = ids.clean_id(text)
            except ids.BadId:
                continue
            if id:
                exact.setdefault(id, []).append(path)
                alike.setdefault(ids.alike_key(id), set()).add(id)
        return exact, alike


def _common(paths: Sequence[Sequence[str]]) -> Sequence[str]:
    """The folders that all paths begin with."""
    listed = [list(path) for path in paths]
    first, last = min(listed), max(listed)
    same = [one == other for one, other in zip(first, last, strict=False)]
    return first[: [*same, False].index(False)]


def _slashes(cell: str) -> str:
    name = re.sub(r"^[A-Za-z]:(?=[\\/])", "", cell).replace("\\", "/")
    return name.removeprefix("./") if not name.startswith("/") else name


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold().strip()


def _ending(name: str) -> str:
    return os.path.splitext(name)[1]


def _stem(base: str) -> str:
    """A file's name without an image suffix, folded; what merely follows a dot (a UID's last number) stays."""
    folded = _folded(base)
    ending = _ending(folded)
    return folded.removesuffix(ending) if ending in SUFFIXES else folded
