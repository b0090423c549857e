import csv
import io
import pathlib
import re

import hypothesis
import pytest
from hypothesis import strategies as st

import mmclip_jax
from mmclip_jax import spreadsheet
from mmclip_jax.data import ids


@pytest.mark.parametrize("cell", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", " =1", "\uff1d1"])
def test_formulas_are_not_run(cell: str) -> None:
    assert spreadsheet.safe(cell) == "'" + cell


@pytest.mark.parametrize("cell", ["-0.5", "+3", "-1e-05", "-inf", "nan", "a=b", "x", "", "007", -3, 2.5, None])
def test_what_is_no_formula_stays(cell: object) -> None:
    assert spreadsheet.safe(cell) is cell


@hypothesis.given(st.lists(st.text(alphabet="=+-@\t\r\n \"',ab1", max_size=6), min_size=1, max_size=4))
def test_no_cell_of_a_file_begins_as_a_formula(cells: list[str]) -> None:
    stream = io.StringIO(newline="")
    spreadsheet.Writer(stream).writerow(["x", *cells])
    (row,) = csv.reader(io.StringIO(stream.getvalue(), newline=""))
    for before, after in zip(cells, row[1:], strict=True):
        before = before.replace("\r\n", "\n").replace("\r", "\n")
        assert after in (before, f"'{before}")
        assert not re.match(r"\s*[=@]", after)


def test_an_id_that_was_escaped_is_the_id() -> None:
    for id in ("=1", "@a", "-b"):
        assert ids.clean_id(spreadsheet.safe(id)) == id


def test_the_package_writes_csv_in_one_place() -> None:
    root = pathlib.Path(mmclip_jax.__file__).parent
    files = [
        str(file.relative_to(root))
        for file in root.rglob("*.py")
        if re.search(r"csv\.(Dict)?[wW]riter\(|to_csv\(", file.read_text())
    ]
    assert files == ["spreadsheet.py"]
