"""From the cells of a user's table to values: which column is which, and what labels, boxes, ages and views say.

`BadRow` is raised with a reason, for a person, where a cell cannot be understood; nothing is guessed.
"""

import ast
import collections
import csv
import dataclasses
import gzip
import json
import math
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmclip_jax.data import prompts
from mmclip_jax.data.schema import Box, LabelState
from mmclip_jax.errors import UserError

UNUSED = "-"

# What columns are usually called, small letters and digits only.
USUAL_NAMES: dict[str, str] = {
    "image": "image imagepath imagefile imagefilename imagename imageindex path filepath filename file img imageid",
    "patient": "patient patientid patientnumber subject subjectid",
    "study": "study studyid studyuid studyinstanceuid accession accessionnumber",
    "view": "view viewposition viewclass projection",
    "sex": "sex gender patientsex patientgender",
    "age": "age patientage ageyears",
    "report": "report reporttext text notes clinicalnotes caption",
    "findings": "findings findingstext",
    "impression": "impression impressions conclusion",
    "labels": "labels label findinglabels diagnosis diagnoses",
    "split": "split subset partition",
    "box kind": "boxkind boxlabel bboxkind bboxlabel",
}
REPORT_ROLES = ("report", "findings", "impression")

_BLANK = frozenset({"", "nan", "null", "<na>", "n/a", "na"})


class BadRow(Exception):
    """Why a row cannot be used."""


# ---------------------------------------------------------------------------------------------------------------------
# The table


@dataclasses.dataclass(frozen=True)
class Row:
    """Cells of one row; `number` counts as a spreadsheet does, the header being row 1."""

    number: int
    cells: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Table:
    """`ragged`: rows whose number of cells is not the header's, as (row number, what is wrong)."""

    file: pathlib.Path
    header: Sequence[str]
    rows: Sequence[Row]
    ragged: Sequence[tuple[int, str]]


def read_table(path: str, encoding: str = "utf-8") -> Table:
    """Reads CSV, TSV (both may be gzipped) or Parquet.

    All cells become stripped text, so that ids keep their leading zeros; blanks are "".

    The separator of a CSV file is the one of comma, semicolon and tab that its first line has most of.

    Raises:
      UserError: no such file, no rows, unreadable, or two columns of one name.
    """
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"table {file} does not exist")
    read = _read_parquet if file.suffix.lower() in (".parquet", ".pq") else _read_csv
    table = read(file, encoding)
    if not table.header or not (table.rows or table.ragged):
        raise UserError(f"table {file} has no rows")
    twice = [name for name, count in collections.Counter(table.header).items() if count > 1]
    if twice:
        raise UserError(f"table {file}: two columns are named {twice[0]!r}")
    return table


def _read_parquet(file: pathlib.Path, encoding: str) -> Table:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except Exception as error:  # pyarrow raises several kinds for a damaged file
        raise UserError(f"table {file} cannot be read as Parquet: {error}") from error
    columns = [[_cell(value) for value in column.to_pylist()] for column in table.columns]
    rows = [Row(number, cells) for number, cells in enumerate(zip(*columns, strict=True), start=2)]
    return Table(file, [str(name).strip() for name in table.column_names], rows, [])


def _read_csv(file: pathlib.Path, encoding: str) -> Table:
    csv.field_size_limit(2**31 - 1)
    if encoding.lower() in ("utf-8", "utf8"):
        encoding = "utf-8-sig"  # spreadsheets put a mark in front
    rows: list[Row] = []
    ragged: list[tuple[int, str]] = []
    try:
        opened = gzip.open if file.suffix.lower() == ".gz" else open
        with opened(file, "rt", encoding=encoding, newline="") as stream:
            first = stream.readline()
            stream.seek(0)
            delimiter = max(",;\t", key=first.count)
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(reader, [])]
            while header and not header[-1]:  # commas at the end of lines make nameless columns
                header.pop()
            for number, cells in enumerate(reader, start=2):
                while len(cells) > len(header) and not cells[-1].strip():
                    cells.pop()
                if len(cells) == len(header):
                    rows.append(Row(number, [_cell(cell) for cell in cells]))
                elif cells:
                    ragged.append((number, f"{len(cells)} cells where the header has {len(header)}"))
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig")
        raise UserError(f"table {file} is not {name}; give its encoding, e.g. --csv-encoding latin-1") from error
    except (csv.Error, LookupError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"table {file} cannot be read as CSV near row {len(rows) + len(ragged) + 2}: {error}"
        ) from error
    return Table(file, header, rows, ragged)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer() and abs(value) < 2**53):
        value = int(value)
    text = (json.dumps(value) if isinstance(value, (list, dict)) else str(value)).strip()
    return "" if text.lower() in _BLANK else text


class Columns:
    """Which column of a table plays which role.

    Args:
      chosen: role -> column, for the roles of `USUAL_NAMES` that the user named; `UNUSED` turns a role off.
      label_columns, box_columns: likewise, for the roles that several columns share; () finds them.
      box_format: "xywh" or "xyxy", which tells the usual names of four box columns.

    Raises:
      UserError: a named column does not exist, there is none of images or patients, or two mean the same kind.
    """

    def __init__(
        self,
        table: Table,
        kinds: "Kinds",
        chosen: Mapping[str, str],
        label_columns: Sequence[str] = (),
        box_columns: Sequence[str] = (),
        box_format: str = "xywh",
    ):
        self._table = table
        self._index = {name: index for index, name in enumerate(table.header)}
        squashed: dict[str, str] = {}
        for name in table.header:
            squashed.setdefault(_squash(name), name)
        self.role: dict[str, str] = {}
        for role, usual in USUAL_NAMES.items():
            if chosen.get(role):
                if chosen[role] != UNUSED:
                    self.role[role] = self._existing(chosen[role])
                continue
            found = next((squashed[name] for name in usual.split() if name in squashed), None)
            if found is not None:
                self.role[role] = found
        if not chosen.get("report") and {"findings", "impression"} & self.role.keys():
            self.role.pop("report", None)  # the sections say the same, and say what is what
        for role, remedy in (
            ("image", "name it with --image-column"),
            ("patient", "name it with --patient-column (the image column will do if each image is another patient's)"),
        ):
            if role not in self.role:
                raise UserError(f"table {table.file}: no column of {role}s among {', '.join(table.header)}; {remedy}")
        self.boxes = self._find_boxes(box_columns, box_format, squashed)
        taken = set(self.role.values()) | set(self.boxes)
        self.labels = self._find_labels(label_columns, kinds, taken)
        self.unused = [name for name in table.header if name not in taken and name not in self.labels]

    def _existing(self, name: str) -> str:
        if name not in self._index:
            header = ", ".join(self._table.header)
            raise UserError(f"table {self._table.file}: there is no column {name!r} among {header}")
        return name

    def _find_labels(self, chosen: Sequence[str], kinds: "Kinds", taken: set[str]) -> dict[str, str]:
        """Columns of one label each -> their kind."""
        if tuple(chosen) == (UNUSED,):
            return {}
        if chosen:
            found = {self._existing(name): kinds.required(name) for name in chosen}
        else:
            found = {name: kind for name in self._table.header if name not in taken and (kind := kinds(name))}
        column_of: dict[str, str] = {}
        for name, kind in found.items():
            if kind in column_of:
                raise UserError(
                    f"table {self._table.file}: columns {column_of[kind]!r} and {name!r} both mean {kind}; "
                    f"leave one out with --ignore-labels"
                )
            column_of[kind] = name
        return found

    def _find_boxes(self, chosen: Sequence[str], box_format: str, squashed: Mapping[str, str]) -> tuple[str, ...]:
        if tuple(chosen) == (UNUSED,):
            return ()
        if chosen:
            return tuple(self._existing(name) for name in chosen)
        for key, name in squashed.items():
            if re.fullmatch(r"(b|bounding)?box(es)?\d*", key):
                return (name,)
        usual = ("x y width height", "x y w h") if box_format == "xywh" else ("xmin ymin xmax ymax", "x1 y1 x2 y2")
        for names in usual:
            if all(name in squashed for name in names.split()):
                return tuple(squashed[name] for name in names.split())
        return ()

    def get(self, row: Row, role: str) -> str:
        """The cell of a role, "" if no column has it."""
        return row.cells[self._index[self.role[role]]] if role in self.role else ""

    def cell(self, row: Row, column: str) -> str:
        """The cell of a column."""
        return row.cells[self._index[column]]

    def described(self) -> dict[str, str]:
        """Role -> column, for a person to check."""
        roles = dict(self.role)
        if self.boxes:
            roles["boxes"] = ", ".join(self.boxes)
        if self.labels:
            roles["label columns"] = ", ".join(self.labels)
        return roles


def _squash(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


# ---------------------------------------------------------------------------------------------------------------------
# Labels


class Kinds:
    """What a label string means: a kind of the vocabulary, "" to leave it out, None if nobody knows.

    Args:
      label_map: "LABEL=KIND" strings, stronger than the vocabulary.
      ignored: label strings to leave out.
    """

    def __init__(self, label_map: Sequence[str] = (), ignored: Sequence[str] = ()):
        self._known: dict[str, str | None] = {_plain(label): "" for label in ignored}
        for item in label_map:
            label, _, meaning = item.partition("=")
            kind = prompts.kind_of(meaning.strip())
            if kind is None:
                raise UserError(f"label map {item!r}: {meaning.strip()!r} is not one of {', '.join(prompts.KINDS)}")
            self._known[_plain(label)] = kind

    def __call__(self, label: str) -> str | None:
        """The meaning of `label`; see the class."""
        key = _plain(label)
        if key not in self._known:
            self._known[key] = prompts.kind_of(label)
        return self._known[key]

    def required(self, label: str) -> str:
        """The kind of a label that the user named; UserError if it has none."""
        kind = self(label)
        if not kind:
            raise UserError(
                f"{label!r} is not the name of a known kind; say what it means with --label-map {label}=KIND"
            )
        return kind


def _plain(label: str) -> str:
    return " ".join(label.replace("_", " ").split()).casefold()


LABEL_STATES = {"1": LabelState.PRESENT, "0": LabelState.ABSENT, "-1": LabelState.UNCERTAIN}


def label_state(column: str, cell: str) -> LabelState | None:
    """The state that the cell of a one-label column gives; None for a blank."""
    if not cell:
        return None
    state = LABEL_STATES.get(cell.removesuffix(".0"))
    if state is None:
        raise BadRow(
            f"column {column!r} has {cell!r}, not 1, 0, -1 or blank (--label-columns names the columns of labels)"
        )
    return state


def separator_of(cells: Sequence[str]) -> str:
    """What joins the labels of a column: "|" if any cell has one, else ";" likewise, else ","."""
    return next((mark for mark in "|;" if any(mark in cell for cell in cells)), ",")


def split_labels(cell: str, separator: str) -> list[str]:
    """The labels of one cell: joined by `separator`, or a list as Python or JSON write it."""
    if cell.startswith("[") and cell.endswith("]"):
        try:
            listed = ast.literal_eval(cell)
        except (ValueError, SyntaxError):
            raise BadRow(f"the list of labels {cell!r} cannot be read") from None
        return [str(label).strip() for label in listed if str(label).strip()]
    return [label.strip() for label in cell.split(separator) if label.strip()]


# ---------------------------------------------------------------------------------------------------------------------
# Boxes

Frame = tuple[float, float] | str


@dataclasses.dataclass(frozen=True)
class RawBox:
    """A box as the table gives it; label "" if it does not say what the box shows."""

    label: str
    numbers: tuple[float, float, float, float]


def parse_frame(text: str) -> Frame:
    """What box numbers are measured in: "" (not said), "pixels", "fraction", or (width, height) of the frame."""
    if text in ("", "pixels", "fraction"):
        return text
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match or int(match[1]) == 0 or int(match[2] or 1) == 0:
        raise UserError(f"box frame {text!r} is not pixels, fraction or WIDTHxHEIGHT")
    return float(match[1]), float(match[2] or match[1])


def parse_boxes(cells: Sequence[str], label: str) -> Iterator[RawBox]:
    """Boxes of a row: one cell with a list of [label, a, b, c, d] or [a, b, c, d], or four cells with a number each.

    Args:
      cells: those of the one or four box columns, "" where blank.
      label: what boxes without a label of their own show.
    """
    if not any(cells):
        return
    if len(cells) == 4:
        entries: Any = [list(cells)]
    else:
        try:
            entries = json.loads(cells[0])
        except ValueError:
            try:
                entries = ast.literal_eval(cells[0])
            except (ValueError, SyntaxError):
                entries = None
        if not isinstance(entries, (list, tuple)):
            raise BadRow(f"boxes {cells[0]!r} are not a list of [label, x, y, width, height]")
        if entries and not isinstance(entries[0], (list, tuple)):
            entries = [entries]
    for entry in entries:
        try:
            *own, a, b, c, d = entry
            numbers = (float(a), float(b), float(c), float(d))
            if len(own) > 1 or not all(map(math.isfinite, numbers)):
                raise ValueError
        except (TypeError, ValueError):
            raise BadRow(f"box {entry} is not [label, x, y, width, height] or [x, y, width, height]") from None
        yield RawBox(str(own[0]).strip() if own else label, numbers)


def fraction_box(kind: str, numbers: Sequence[float], frame: tuple[float, float], box_format: str) -> Box:
    """A box as fractions of the image. What sticks out by at most 1 % of the frame is cut off, more is a BadRow.

    Args:
      kind: what the box shows.
      numbers: four, in units of the frame; x to the right, y down.
      frame: (width, height) of the whole image in these units.
      box_format: "xywh": upper left corner, width, height; "xyxy": upper left and lower right corner.
    """
    x, y, third, fourth = numbers
    corners = (x, y, x + third, y + fourth) if box_format == "xywh" else (x, y, third, fourth)
    width, height = frame
    fractions = [corners[0] / width, corners[1] / height, corners[2] / width, corners[3] / height]
    if not all(-0.01 <= value <= 1.01 for value in fractions):
        raise BadRow(f"box {list(numbers)} lies outside of {width:g} x {height:g}")
    x_min, y_min, x_max, y_max = (min(max(value, 0.0), 1.0) for value in fractions)
    if not (x_min < x_max and y_min < y_max):
        raise BadRow(f"box {list(numbers)} is empty")
    return Box(kind, x_min, y_min, x_max, y_max)


# ---------------------------------------------------------------------------------------------------------------------
# Other cells

_VIEWS = {"pa": "PA", "ap": "AP", "lateral": "LATERAL", "lat": "LATERAL", "ll": "LATERAL"}

_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}

_YEARS = {"": 1.0, "y": 1.0, "m": 1 / 12, "w": 7 / 365.25, "d": 1 / 365.25}


def parse_split(cell: str) -> str:
    """One of train, validation, test, from their usual spellings."""
    split = _SPLITS.get(cell.lower())
    if split is None:
        raise BadRow(f"split {cell!r} is not train, validation or test")
    return split


def parse_view(cell: str) -> str:
    """PA, AP and LATERAL in one spelling, all else as it is."""
    return _VIEWS.get(cell.strip().lower(), cell.strip())


def parse_sex(cell: str) -> str:
    """Gives M, F, or "" where the table says that it is not known."""
    text = cell.lower()
    if text in ("m", "male"):
        return "M"
    if text in ("f", "female"):
        return "F"
    if text in ("", "u", "unknown", "o", "other", "x"):
        return ""
    raise BadRow(f"sex {cell!r} is not M, F or unknown")


def parse_age(cell: str) -> float | None:
    """Years of "58", "58.0" or DICOM's "058Y", "006M", "012W", "003D"; NaN for a blank, None if not 0 to 120 years."""
    if not cell:
        return math.nan
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([ymwd]?)", cell.lower())
    years = float(match[1]) * _YEARS[match[2]] if match else math.inf
    return years if years <= 120 else None
