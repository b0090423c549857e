"""What stands in a cell may be a report: messages and the list of rejects show 40 characters of it."""

import csv
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmclip_jax import errors
from mmclip_jax.data.builders.cells import BadRow
from mmclip_jax.data.builders.items import Reject
from mmclip_jax.data.builders.table import build_table
from mmclip_jax.data.builders.table_options import TableOptions
from mmclip_jax.errors import UserError

REPORT = 'Jane Doe, born 1950: it\'s a large "effusion" on the left,\nwith a mass. ' * 9


@given(st.text(min_size=41, max_size=200))
def test_quoted_cells_are_cut(cell: str) -> None:
    message = errors.shorten(f"the image's label {cell!r} of 'x' is no kind")
    assert message.startswith("the image's label ")
    assert message.endswith(" of 'x' is no kind")
    shown = message.removeprefix("the image's label ").removesuffix(" of 'x' is no kind")
    assert len(shown) <= errors.CELL + 2
    assert shown[1:-4] in repr(cell)


def test_what_is_short_or_no_quotation_stays() -> None:
    for message in (
        "label 'Edema' is unknown",
        "the image's maximum 4095 is above the given value range 0..3000, which is the table's or the file's",
        "the parent's report isn't there",
    ):
        assert errors.shorten(message) == message
    assert errors.listed(["a", "b" * 50, *"cde"], most=3) == "a, (50 characters), c and 2 others"
    assert errors.shown("a" * 40) == repr("a" * 40)
    assert len(errors.shown("a" * 5000)) <= errors.CELL + 2


def test_rejects_and_bad_rows_are_cut() -> None:
    for reason in (str(BadRow(f"sex {REPORT!r} is not M")), Reject("t", 2, "x", f"sex {REPORT!r} is not M").reason):
        assert "1950" in reason
        assert "effusion" not in reason
        assert reason.endswith("is not M")
        assert "\n" not in reason


@pytest.mark.parametrize("column", ["labels", "sex", "age", "split", "box", "edema", "patient_id", "header"])
def test_no_message_of_a_build_holds_a_report(
    column: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A report in the wrong column of every row, or in the place of the header."""
    (tmp_path / "images").mkdir()
    header = ["image", "patient_id", "labels", "sex", "age", "split", "box", "edema", "report"]
    rows = [[f"{n}.png", f"p{n}", "Mass", "F", "44", "train", "", "1", "Clear lungs."] for n in range(4)]
    for n in range(4):
        Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30).astype(np.uint8)).save(
            tmp_path / "images" / f"{n}.png"
        )
    if column == "header":
        header = [f"{REPORT} {n}" for n in range(len(header))]
    else:
        for row in rows:
            row[header.index(column)] = REPORT
    with open(tmp_path / "table.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    options = TableOptions(
        str(tmp_path / "table.csv"), str(tmp_path / "images"), "mine", workers=1, label_columns=("edema",)
    )
    said = ""
    try:
        build_table(options, tmp_path / "out")
    except UserError as error:
        said = str(error)
    reasons = ""
    for file in (tmp_path / "out").rglob("rejects.csv"):
        with open(file, newline="") as stream:
            reasons += " ".join(row["reason"] for row in csv.DictReader(stream))
    everything = said + "".join(capsys.readouterr()) + caplog.text + reasons
    assert "effusion" not in everything
    if column in ("age", "sex"):
        assert reasons, "those cost no row, and are listed"
    assert said or column in ("age", "sex", "patient_id"), "those cost no row"
