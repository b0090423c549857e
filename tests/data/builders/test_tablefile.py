"""Tables as programs write them."""

import codecs
import contextlib
import datetime
import decimal
import gzip
import io
import json
import pathlib
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from mmclip_jax.data.builders import cells, files, tablefile
from mmclip_jax.data.schema import LabelState
from mmclip_jax.errors import UserError

ROWS = [["image", "patient", "report"], ["1.png", "007", "Größe; 3,5 cm"], ["2.png", "8", 'said "clear"\nstable']]


def text(separator: str, rows: list[list[str]] = ROWS) -> str:
    import csv

    stream = io.StringIO()
    csv.writer(stream, delimiter=separator, lineterminator="\r\n").writerows(rows)
    return stream.getvalue()


def read(folder: pathlib.Path, data: bytes, name: str = "t.csv", **options: str) -> tablefile.Table:
    (folder / name).write_bytes(data)
    return tablefile.read_table(str(folder / name), **options)


def contents(table: tablefile.Table) -> list[list[str]]:
    return [list(table.header), *(list(row.cells) for row in table.rows)]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    "encode",
    [
        lambda t: t.encode(),
        lambda t: codecs.BOM_UTF8 + t.encode(),
        lambda t: t.encode("utf-16"),
        lambda t: codecs.BOM_UTF16_BE + t.encode("utf-16-be"),
        lambda t: t.encode("utf-16-le"),
        lambda t: t.encode("utf-32"),
        lambda t: gzip.compress(t.encode()),
        lambda t: b"\xef\xbb\xbfsep=" + t[5:6].encode() + b"\r\n" + t.encode(),
        lambda t: t.encode() + b"\x1a",
        lambda t: b"\r\n\r\n" + t.encode(),
    ],
)
def test_one_table_in_many_forms(tmp_path: pathlib.Path, separator: str, encode: Any) -> None:
    assert contents(read(tmp_path, encode(text(separator)))) == ROWS


@hypothesis.given(
    st.lists(st.lists(st.text(alphabet=',;|\t"\n abä1', max_size=8), min_size=3, max_size=3), min_size=1, max_size=6),
    st.sampled_from(",;\t|"),
)
@hypothesis.settings(max_examples=60)
def test_cells_come_back_whatever_they_hold(tmp_path: pathlib.Path, rows: list[list[str]], separator: str) -> None:
    filled = [[f"x{cell}y" for cell in row] for row in rows]
    table = read(tmp_path, text(separator, [["image", "patient", "report"], *filled]).encode(), separator=separator)
    assert [list(row.cells) for row in table.rows] == [[cell.replace("\r", "\n") for cell in row] for row in filled]


def test_reports_with_the_other_separator_do_not_hide_the_right_one(tmp_path: pathlib.Path) -> None:
    rows = [["image", "patient", "report"]] + [
        [f"{n}.png", str(n), "Clear; normal; no edema; stable"] for n in range(9)
    ]
    for separator, other in ((",", ";"), (";", ","), ("\t", ","), ("|", ";")):
        swapped = [[cell.replace(";", other) for cell in row] for row in rows]
        assert contents(read(tmp_path, text(separator, swapped).encode())) == swapped


def test_latin_1_is_guessed_for_inspection_only(tmp_path: pathlib.Path) -> None:
    data = text(";").encode("cp1252")
    with pytest.raises(UserError, match=r"is not utf-8; give its encoding, e.g. --csv-encoding cp1252 \(line 2"):
        read(tmp_path, data)
    assert tablefile.guess_encoding(data) == "cp1252"
    assert contents(read(tmp_path, data, encoding="cp1252")) == ROWS
    assert tablefile.guess_encoding(b"a,\x81\n") == "latin-1"


def test_titles_above_the_header_are_left_out_and_told(tmp_path: pathlib.Path) -> None:
    table = read(tmp_path, b"Export of 2024;;\r\n\r\n" + text(";").encode())
    assert contents(table) == ROWS
    assert table.rows[0].number == 4
    assert "row 3" in table.notes[0]


def test_nul_bytes_are_left_out_and_told(tmp_path: pathlib.Path) -> None:
    table = read(tmp_path, b"image,patient,report\n1.png,00\x007,clear and stable\n" * 1)
    assert table.rows[0].cells == ["1.png", "007", "clear and stable"]
    assert table.notes == ["1 NUL characters were left out"]


def test_columns_without_a_name_get_one(tmp_path: pathlib.Path) -> None:
    table = read(tmp_path, b",image,,patient\n0,1.png,,7\n")
    assert table.header == ["(column 1)", "image", "(column 3)", "patient"]


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (b"", "t.csv", "has no rows"),
        (b"\n\n", "t.csv", "has no rows"),
        (b"a,b\n", "t.csv", "has no rows"),
        (b'a,b\n1,"2\n', "t.csv", "near row 2"),
        (b'a,b\n1,"2"3\n', "t.csv", "near row 2"),
        (b"a,a\n1,2\n", "t.csv", "two columns are named a; rename one"),
        (b"PK\x03\x04zip", "t.csv", "is an Excel file: name it .xlsx"),
        (b"\x1f\x8bcut", "t.csv.gz", "cannot be read as CSV"),
        (b"no parquet", "t.parquet", "cannot be read as Parquet"),
        (b"no excel", "t.xlsx", "cannot be read as an Excel file"),
    ],
)
def test_what_is_no_table_is_one_line(tmp_path: pathlib.Path, data: bytes, name: str, message: str) -> None:
    if name.endswith("xlsx"):
        pytest.importorskip("python_calamine")
    with pytest.raises(UserError, match=message) as raised:
        read(tmp_path, data, name)
    assert "\n" not in str(raised.value)


@hypothesis.given(st.binary(max_size=300), st.sampled_from(["t.csv", "t.tsv", "t.csv.gz", "t.parquet", "t.xlsx"]))
@hypothesis.settings(max_examples=150)
def test_any_bytes_are_a_table_or_one_line(tmp_path: pathlib.Path, data: bytes, name: str) -> None:
    with contextlib.suppress(UserError):
        read(tmp_path, data, name)


# Excel


def test_excel_cells(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("python_calamine")
    import hospital

    from mmclip_jax.data import ids

    rows = [["Liste", None, None], ["image", "patient", "x"], ["1.png", 10000032, 1.5], ["2.png", 1234567890123456, 2]]
    table = tablefile.read_table(hospital.xlsx(tmp_path / "t.xlsx", rows))
    assert contents(table)[:2] == [["image", "patient", "x"], ["1.png", "10000032", "1.5"]]
    assert "row 2" in table.notes[0]
    with pytest.raises(ids.BadId, match="digits"):  # Excel keeps fifteen
        ids.clean_id(table.rows[1].cells[1])
    with pytest.raises(UserError, match="no sheet 'Other' among Export"):
        tablefile.read_table(str(tmp_path / "t.xlsx"), sheet="Other")


def test_a_stray_cell_at_the_end_of_a_sheet_is_one_line(tmp_path: pathlib.Path) -> None:
    """The reader would ask for 400 GB, and end the process."""
    pytest.importorskip("python_calamine")
    import zipfile

    import hospital

    hospital.xlsx(tmp_path / "t.xlsx", [["image", "patient"], ["1.png", 7]])
    with zipfile.ZipFile(tmp_path / "t.xlsx") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    parts[sheet] = parts[sheet].replace(
        b"</sheetData>", b'<row r="1048576"><c r="XFD1048576"><v>1</v></c></row></sheetData>'
    )
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    with pytest.raises(UserError, match="reaches to row 1048576, column 16384; delete the empty rows"):
        tablefile.read_table(str(tmp_path / "t.xlsx"))


# Parquet


def picture(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 8), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def test_images_inside_parquet(tmp_path: pathlib.Path) -> None:
    import pyarrow
    import pyarrow.parquet

    images = [{"bytes": picture(n), "path": f"{n}.png"} for n in range(5)] + [{"bytes": None, "path": "5.png"}]
    names = {"label": {"names": ["No Finding", "Edema"], "_type": "ClassLabel"}}
    table = pyarrow.table({"image": images, "patient": [1, 2, 3, 4, 5, 6], "label": [0, 1, 1, 0, 1, 0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": names}})})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    found = tablefile.read_table(str(tmp_path / "t.parquet"))
    assert [row.cells[0] for row in found.rows] == [f"{n}.png" for n in range(6)]
    assert [row.cells[2] for row in found.rows] == ["No Finding", "Edema", "Edema", "No Finding", "Edema", "No Finding"]
    places = found.pictures["image"]
    assert [files.read_bytes(place) for place in places[:5]] == [picture(n) for n in range(5)]
    assert places[5] == "", "a path alone means a file"
    assert files.stamp(places[0]) == files.stamp(str(tmp_path / "t.parquet"))


def test_parquet_builds_with_its_own_images(tmp_path: pathlib.Path) -> None:
    import pyarrow
    import pyarrow.parquet

    from mmclip_jax.data import records
    from mmclip_jax.data.builders.table import build_table
    from mmclip_jax.data.builders.table_options import TableOptions

    images = [{"bytes": picture(n), "path": None} for n in range(4)]
    columns = {"image": images, "patient": [1.0, 2.0, 3.0, 4.0], "labels": ["Edema"] * 4}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    options = TableOptions(str(tmp_path / "t.parquet"), str(tmp_path), "mine", split="train", workers=1)
    opened = records.open_records(build_table(options, tmp_path / "out").path, "train", "unpaired")
    assert {opened[n].image for n in range(4)} == {picture(n) for n in range(4)}
    assert {opened[n].patient for n in range(4)} == {"1", "2", "3", "4"}


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (None, ""),
        (float("nan"), ""),
        (decimal.Decimal("58.00"), "58"),
        (decimal.Decimal("1.5"), "1.5"),
        (datetime.date(2020, 1, 2), "2020-01-02"),
        (datetime.datetime(2020, 1, 2), "2020-01-02"),
        (b"abc", "abc"),
        (b"\xff\xfe", "fffe"),
        (True, "1"),
        (10**400, "1" + "0" * 400),
        (["a", None], '["a", null]'),
        ([datetime.date(2020, 1, 2)], '["2020-01-02"]'),
        (float("inf"), "inf"),
        (" None ", ""),
        ("#N/A", ""),
    ],
)
def test_cells_of_any_type(value: Any, cell: str) -> None:
    assert tablefile.text_of(value) == cell


# Words


@pytest.mark.parametrize(
    ("words", "state"),
    [
        ("1 1.0 1,0 ja Ja oui Sí si yes TRUE positiv vorhanden +", LabelState.PRESENT),
        ("0 0.0 nein NON no false negativ absent", LabelState.ABSENT),
        ("-1 -1.0 ? unklar incertain dudoso möglich", LabelState.UNCERTAIN),
    ],
)
def test_yes_and_no_in_four_languages(words: str, state: LabelState) -> None:
    assert {cells.label_state("x", word) for word in words.split()} == {state}


@pytest.mark.parametrize(
    ("column", "sexes"),
    [
        ("M F m f", "MFMF"),
        ("männlich weiblich", "MF"),
        ("W M", "FM"),
        ("homme femme", "MF"),
        ("hombre mujer", "MF"),
        ("H F", "MF"),
        ("H M", "MF"),  # hombre, mujer
        ("1 2 0 9", "MF  "),  # ISO 5218
        ("1.0 2.0", "MF"),
    ],
)
def test_sexes_in_four_languages(column: str, sexes: str) -> None:
    words = column.split()
    meanings = cells.sex_meanings(words)
    assert [cells.sex_of(word, meanings) for word in words] == [sex.strip() for sex in sexes]


def test_zero_and_one_are_no_sexes() -> None:
    assert cells.sex_meanings(["0", "1"]) == {}
    assert cells.sex_of("1") is None


@pytest.mark.parametrize(
    ("cell", "years"),
    [("45 Jahre", 45), ("045Y", 45), ("6 mois", 0.5), ("58,5", 58.5), ("3 años", 3), ("45 years old", 45)],
)
def test_ages_in_four_languages(cell: str, years: float) -> None:
    assert cells.parse_age(cell) == pytest.approx(years)


@pytest.mark.parametrize("cell", ["9" * 400, "1960-01-01", "90+", "1e5", "-3", "12 apples", "121"])
def test_what_is_no_age(cell: str) -> None:
    assert cells.parse_age(cell) is None


@pytest.mark.parametrize(
    "cell", ["[" * 100_000, "[" * 50 + "]" * 49, "['a", "[1, " + "9" * 5000 + "]", "[[nan]]", "{}", "["]
)
def test_malformed_lists_are_one_line(cell: str) -> None:
    for parse in (lambda: list(cells.parse_boxes([cell], "")), lambda: cells.split_labels(cell + "]", ",")):
        with contextlib.suppress(cells.BadRow):
            parse()
    with pytest.raises(cells.BadRow) as raised:
        list(cells.parse_boxes([cell], ""))
    assert len(str(raised.value)) < 150, "messages show little of a cell"


@hypothesis.given(st.text(max_size=60))
def test_no_cell_is_a_traceback(cell: str) -> None:
    for parse in (
        lambda: cells.label_state("x", cell),
        lambda: cells.split_labels(f"[{cell}]", ","),
        lambda: list(cells.parse_boxes([cell], "")),
        lambda: list(cells.parse_boxes([cell, cell, cell, cell], "")),
        lambda: cells.parse_age(cell),
        lambda: cells.sex_of(cell),
        lambda: cells.parse_split(cell),
    ):
        with contextlib.suppress(cells.BadRow):
            parse()


def test_pictures_as_plain_bytes_and_names_that_repeat(tmp_path: pathlib.Path) -> None:
    import pyarrow
    import pyarrow.parquet

    structs = [{"bytes": picture(n), "path": "image.png"} for n in range(3)]
    table = pyarrow.table({"image": [picture(n) for n in range(3)], "img": structs, "hash": [b"\1\2", b"\3", b"x"]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    found = tablefile.read_table(str(tmp_path / "t.parquet"))
    assert found.pictures.keys() == {"image", "img"}
    for places in found.pictures.values():
        assert [files.read_bytes(place) for place in places] == [picture(n) for n in range(3)]
    assert [row.cells[1] for row in found.rows] == ["row-2/image.png", "row-3/image.png", "row-4/image.png"]


@hypothesis.given(
    st.lists(
        st.one_of(st.sampled_from(["NaN", " n/A\t", "#Div/0!", "", "\ufeffx", "\u200b", "a\0"]), st.text(max_size=8))
    )
)
def test_cells_of_a_row_are_trimmed_as_single_ones(cells: list[str]) -> None:
    assert tablefile._trimmed_all(cells) == [tablefile.text_of(cell) for cell in cells]


def test_rows_behind_those_that_are_looked_at_are_read(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("a,b\n" + "".join(f"{n},x\n,\n" for n in range(500)))
    table = tablefile.read_table(str(file))
    assert [row.cells for row in table.rows] == [[str(n), "x"] for n in range(500)]
    assert [row.number for row in table.rows] == [2 * n + 2 for n in range(500)]
