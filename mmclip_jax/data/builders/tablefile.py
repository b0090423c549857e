"""Reading a table of text cells from CSV, TSV, Excel or Parquet files, as programs really write them.

What a file says with certainty is believed: byte order marks, Excel's `sep=` line, the separator that gives rows of one
length. What would be a guess (latin-1 or not?) is left to the user; `guess_encoding` serves `mmclip data inspect`.
"""

import codecs
import collections
import csv
import dataclasses
import datetime
import decimal
import functools
import gzip
import io
import itertools
import json
import math
import pathlib
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmclip_jax.data.builders.files import parquet_place
from mmclip_jax.data.images.dicom import is_dicom
from mmclip_jax.errors import UserError, brief, extra, shown

SEPARATORS = ",;\t|"
PARQUET = (".parquet", ".pq")
EXCEL = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")

_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*")
_BLANKS = "nan null none <na> n/a na nat #n/a #value! #ref! #name? #div/0! #null! #num!"
_BLANK = frozenset(["", *_BLANKS.split()])
_BLANK_SPELLINGS = frozenset(
    "".join(spelling) for word in _BLANK for spelling in itertools.product(*(c.upper() + c.lower() for c in word))
)
_LONGEST_BLANK = max(map(len, _BLANK))
_INVISIBLE = "\0\ufeff\u200b"
_REFERENCE = re.compile(rb'<c r="([A-Z]{1,3})(\d{1,7})"')
_MOST_CELLS = 100_000_000
_LARGEST_PART = 2 << 30  # bytes of a workbook's part
_MARKS = (  # the longer first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LOOK = 200  # records that the separator is found by
_LOOK_AT = 4 << 20  # characters likewise
_TITLES = 10  # lines above the header at most


@dataclasses.dataclass(frozen=True)
class Row:
    """Cells of one row; `number` counts as a spreadsheet does, the first row of the file being 1."""

    number: int
    cells: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Table:
    """`ragged`: rows whose number of cells is not the header's, as (row number, what is wrong).

    encoding, separator: "" where the format has none; notes: what a person should know of how it was read.
    pictures: column -> place of each row's image inside a Parquet file ("" for none), see `files.read_bytes`.
    """

    file: pathlib.Path
    header: Sequence[str]
    rows: Sequence[Row]
    ragged: Sequence[tuple[int, str]]
    encoding: str = ""
    separator: str = ""
    notes: Sequence[str] = ()
    pictures: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)


def read_table(path: str, encoding: str = "utf-8", separator: str = "", sheet: str = "") -> Table:
    """Reads CSV or TSV (both may be gzipped), Excel or Parquet.

    All cells become stripped text, so that ids keep their leading zeros; blanks are "".

    Args:
      path: the file; its suffix tells the format.
      encoding: of CSV; a byte order mark in the file is stronger.
      separator: of CSV; "" finds it.
      sheet: of Excel; "" takes the first that is not empty.

    Raises:
      UserError: no such file, no rows, unreadable, or two columns of one name.
    """
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"table {file} does not exist")
    suffix = file.suffix.lower()
    if suffix in PARQUET:
        table = _read_parquet(file)
    elif suffix in EXCEL:
        table = _read_excel(file, sheet)
    else:
        table = _read_csv(file, encoding, separator)
    if not table.header or not (table.rows or table.ragged):
        raise UserError(f"table {file} has no rows")
    twice = [name for name, count in collections.Counter(table.header).items() if count > 1]
    if twice:
        raise UserError(f"table {file}: two columns are named {brief(twice[0])}; rename one")
    return table


def text_of(value: Any) -> str:
    """A cell of any library as text; "" for a blank. Whole numbers lose their ".0", if a float can hold them."""
    if isinstance(value, str):
        return _trimmed(value)
    if value is None or (isinstance(value, float | decimal.Decimal) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            value = value.hex()  # what is different stays so
    elif isinstance(value, bool) or (
        isinstance(value, float | decimal.Decimal) and math.isfinite(value) and value == int(value) < 2**53
    ):
        value = int(value)
    elif isinstance(value, datetime.datetime) and value.time() == datetime.time():
        value = value.date()
    text = json.dumps(value, default=text_of) if isinstance(value, list | dict) else str(value)
    return _trimmed(text)


def _trimmed(text: str) -> str:
    text = text.strip()
    if text and (text[0] in _INVISIBLE or text[-1] in _INVISIBLE or "\0" in text):
        text = text.replace("\0", "").strip(_INVISIBLE).strip()
    return "" if len(text) <= _LONGEST_BLANK and text.lower() in _BLANK else text


def _trimmed_all(cells: Sequence[str]) -> list[str]:
    """`_trimmed` of each, at half the cost: this is most of the time that a large table takes."""
    stripped = list(map(str.strip, cells))
    joined = "".join(stripped)
    if joined.isascii() and "\0" not in joined:  # nothing invisible
        return ["" if cell in _BLANK_SPELLINGS else cell for cell in stripped]
    return list(map(_trimmed, stripped))


# ---------------------------------------------------------------------------------------------------------------------
# CSV


def guess_encoding(data: bytes) -> str:
    """What the text of a CSV file is most likely encoded as."""
    for mark, name in _MARKS:
        if data.startswith(mark):
            return name
    if wide := _wide(data):
        return wide
    try:
        data.decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError:
        pass
    try:
        data.decode("cp1252")
        return "cp1252"
    except UnicodeDecodeError:
        return "latin-1"


def _wide(data: bytes) -> str:
    """UTF-16 without a mark: every other byte of Latin text is zero."""
    start = data[:2000]
    if len(start) < 4:
        return ""
    even, odd = start[0::2].count(0) / len(start) * 2, start[1::2].count(0) / len(start) * 2
    if max(even, odd) < 0.5 or min(even, odd) > 0.1:
        return ""
    return "utf-16-le" if odd > even else "utf-16-be"


def load_bytes(file: pathlib.Path) -> bytes:
    """The bytes of a CSV file, unpacked; UserError where it cannot be read."""
    try:
        data = file.read_bytes()
        return gzip.decompress(data) if file.suffix.lower() == ".gz" or data[:2] == b"\x1f\x8b" else data
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"table {file} cannot be read as CSV: {error}") from error
    except OSError as error:
        raise UserError(f"table {file} cannot be read: {error.strerror or error}") from error


def _read_csv(file: pathlib.Path, encoding: str, separator: str) -> Table:
    csv.field_size_limit(2**31 - 1)
    data = load_bytes(file)
    if data[:4] == b"PK\x03\x04" or data[:8] == b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1":
        raise UserError(f"table {file} is an Excel file: name it .xlsx or .xls")
    told = encoding
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), _wide(data) or encoding)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        guess = guess_encoding(data)
        raise UserError(
            f"table {file} is not {encoding.removesuffix('-sig')}; give its encoding, e.g. --csv-encoding "
            f"{'latin-1' if guess == 'utf-8' else guess} (line {line} has other characters)"
        ) from error
    except LookupError as error:
        raise UserError(f"table {file}: there is no encoding {told!r}; e.g. --csv-encoding latin-1") from error
    notes = []
    if zeros := text.count("\0"):
        notes.append(f"{zeros} NUL characters were left out")
        text = text.replace("\0", "")
    text = text.removeprefix("\ufeff").rstrip("\x1a")
    first, _, rest = text.partition("\n")
    if first.strip().lower().startswith("sep=") and len(first.strip("\r")) == 5:
        separator, text = first.strip("\r")[4], rest
    separator = separator or _find_separator(text)
    if len(separator) != 1:
        raise UserError(f"CSV separator {separator!r} is not one character")
    table = _with_header(file, _records(file, text, separator))
    return dataclasses.replace(table, encoding=encoding, separator=separator, notes=[*notes, *table.notes])


def _records(file: pathlib.Path, text: str, separator: str) -> Iterator[tuple[int, Sequence[str]]]:
    number = 0
    try:
        for number, cells in enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), 1):
            yield number, cells
    except csv.Error as error:
        raise UserError(f"table {file} cannot be read as CSV near row {number + 1}: {error}") from error


def _find_separator(text: str) -> str:
    """The separator that gives most rows as many cells as the first, more than one; of several, the most cells."""
    best, found = (False, False, 0.0, 0), ","
    text = text[:_LOOK_AT]
    for mark in SEPARATORS:
        widths: list[int] = []
        try:
            for cells in csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True):
                if cells:
                    widths.append(len(cells))
                if len(widths) == _LOOK:
                    break
        except csv.Error:
            pass  # this separator or another, the whole table is read with the right one later
        if not widths:
            continue
        width = widths[0] if widths[0] > 1 else max(widths[:_TITLES])  # else the first line is a title
        score = (widths[0] > 1, width > 1, round(widths.count(width) / len(widths), 1), width)
        if score > best:
            best, found = score, mark
    return found


def _with_header(file: pathlib.Path, found: Iterable[tuple[int, Sequence[str]]]) -> Table:
    """The table of records, the first of which that is no title is the header."""
    filled = (each for each in found if each[1] and (each[1][0].strip() or any(map(str.strip, each[1]))))
    records = list(itertools.islice(filled, _LOOK))
    start = _header_at(records)
    notes = []
    if start:
        notes.append(f"the columns' names are taken from row {records[start][0]}; what stands above is left out")
    header = [" ".join(name.replace("\ufeff", "").split()) for name in records[start][1]] if records else []
    while header and not header[-1]:  # commas at the end of lines make nameless columns
        header.pop()
    header = [name or f"(column {n})" for n, name in enumerate(header, 1)]
    rows: list[Row] = []
    ragged: list[tuple[int, str]] = []
    for number, cells in itertools.chain(records[start + 1 :], filled):  # one by one: lists live on in `rows` alone
        width = len(cells)
        while width > len(header) and not cells[width - 1].strip():
            width -= 1
        if width == len(header):
            rows.append(Row(number, _trimmed_all(cells if width == len(cells) else cells[:width])))
        else:
            ragged.append((number, f"{width} cells where the header has {len(header)}"))
    return Table(file, header, rows, ragged, notes=notes)


def _header_at(records: Sequence[tuple[int, Sequence[str]]]) -> int:
    """Where the header is: below titles, that is rows of one cell where most rows have three or more."""
    filled = [sum(bool(cell.strip()) for cell in cells) for _, cells in records[:_LOOK]]
    if not filled or sorted(filled)[len(filled) // 2] < 3:
        return 0
    return next((n for n, count in enumerate(filled[:_TITLES]) if count > 1), 0)


# ---------------------------------------------------------------------------------------------------------------------
# Excel and Parquet


def _read_excel(file: pathlib.Path, sheet: str) -> Table:
    try:
        import python_calamine
    except ImportError as error:
        raise UserError(f"table {file}: Excel files need {extra('excel')}; or save it as CSV") from error
    _check_extent(file)
    notes = []
    try:
        book = python_calamine.CalamineWorkbook.from_path(str(file))
        sheets = {name: book.get_sheet_by_name(name).to_python(skip_empty_area=False) for name in book.sheet_names}
    except Exception as error:  # calamine raises several kinds for a damaged file
        raise UserError(f"table {file} cannot be read as an Excel file: {shown(error)}") from error
    filled = [name for name, cells in sheets.items() if any(any(cell != "" for cell in row) for row in cells)]
    if sheet and sheet not in sheets:
        raise UserError(f"table {file}: there is no sheet {sheet!r} among {', '.join(sheets)}")
    name = sheet or next(iter(filled), "")
    if not name:
        raise UserError(f"table {file} has no rows")
    if not sheet and len(filled) > 1:
        notes.append(f"sheet {name!r} is read, of {', '.join(map(repr, filled))}; --sheet NAME takes another")
    records = [(number, [_excel_cell(cell) for cell in row]) for number, row in enumerate(sheets[name], 1)]
    table = _with_header(file, records)
    return dataclasses.replace(table, notes=[*notes, *table.notes])


def _check_extent(file: pathlib.Path) -> None:
    """Refuses workbooks that would not fit in memory: the reader keeps every cell up to the last, empty or not."""
    try:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if not info.filename.startswith("xl/") or not info.filename.endswith(".xml"):
                    continue
                rows = columns = size = 0
                with archive.open(info) as stream:
                    rest = b""
                    while (piece := stream.read(1 << 20)) and size <= _LARGEST_PART:
                        size += len(piece)
                        for letters, number in _REFERENCE.findall(rest + piece):
                            columns = max(columns, functools.reduce(lambda n, c: 26 * n + c - 64, letters, 0))
                            rows = max(rows, int(number))
                        rest = piece[-20:]
                if size > _LARGEST_PART or rows * columns > _MOST_CELLS:
                    raise UserError(
                        f"table {file}: a sheet of it reaches to row {rows}, column {columns}; delete the empty rows "
                        f"and columns behind the table, or save it as CSV"
                    )
    except (zipfile.BadZipFile, zlib.error, OSError, NotImplementedError, RuntimeError, EOFError):
        return  # .xls, or damaged: the reader says so


def _excel_cell(value: Any) -> str:
    """Excel keeps 15 digits of a number: longer ones are written so that no id is made of them."""
    if isinstance(value, float | int) and not isinstance(value, bool) and abs(value) >= 10**15:
        return f"{float(value):.14e}"
    return text_of(value)


def _read_parquet(file: pathlib.Path) -> Table:
    import pyarrow.parquet

    columns: list[list[str]] = []
    pictures: dict[str, list[str]] = {}
    try:
        source = pyarrow.parquet.ParquetFile(file)
        schema = source.schema_arrow
        classes = _class_names(schema.metadata or {})
        for field in schema:
            within = [field.type.field(n).name for n in range(field.type.num_fields)] if _is_struct(field) else []
            if {"bytes", "path"} <= set(within):  # an image as Hugging Face's data sets keep it
                paths, places = _embedded(source, file, field.name)
                columns.append(paths)
                pictures[str(field.name)] = places
                continue
            if _holds_pictures(source, field):
                columns.append([f"row-{row + 2}" for row in range(source.metadata.num_rows)])
                pictures[str(field.name)] = [
                    parquet_place(file, field.name, row) for row in range(source.metadata.num_rows)
                ]
                continue
            values = source.read(columns=[field.name]).column(0).to_pylist()
            columns.append([_named(value, classes.get(field.name, ())) for value in values])
    except Exception as error:  # pyarrow raises several kinds for a damaged file
        raise UserError(f"table {file} cannot be read as Parquet: {' '.join(str(error).split())[:200]}") from error
    rows = [Row(number, cells) for number, cells in enumerate(zip(*columns, strict=True), start=2)]
    header = [str(name).strip() or f"(column {n})" for n, name in enumerate(schema.names, 1)]
    return Table(file, header, rows, [], pictures={name.strip(): places for name, places in pictures.items()})


def _is_struct(field: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_struct(field.type))


def _holds_pictures(source: Any, field: Any) -> bool:
    """Whether a column of bytes begins with an image."""
    import pyarrow

    if not (pyarrow.types.is_binary(field.type) or pyarrow.types.is_large_binary(field.type)):
        return False
    first = next(source.iter_batches(batch_size=1, columns=[field.name]), None)
    value = first.column(0)[0].as_py() if first is not None and first.num_rows else None
    return isinstance(value, bytes) and (value.startswith(_PICTURES) or is_dicom(value))


def _embedded(source: Any, file: pathlib.Path, column: str) -> tuple[list[str], list[str]]:
    """(names of the images, their places inside the file, "" where there are no bytes), without reading pixels."""
    paths: list[str] = []
    places: list[str] = []
    row = 0
    for group in range(source.num_row_groups):
        read = source.read_row_group(group, columns=[column]).column(0)
        for chunk in read.chunks:
            has_bytes = chunk.field("bytes").is_valid().to_pylist()
            names = chunk.field("path").to_pylist()
            for name, has in zip(names, has_bytes, strict=True):
                paths.append(text_of(name) or f"row-{row + 2}")
                places.append(parquet_place(file, column, row) if has else "")
                row += 1
    if len(set(paths)) < len(paths):  # names without folders, of one file a folder
        paths = [f"row-{n}/{name}" for n, name in enumerate(paths, 2)]
    return paths, places


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, Sequence[str]]:
    """The names of numbered classes, where Hugging Face's description of the columns has them."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {name: tuple(each["names"]) for name, each in features.items() if each.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _named(value: Any, classes: Sequence[str]) -> str:
    if classes and isinstance(value, int) and 0 <= value < len(classes):
        return str(classes[value])
    return text_of(value)
