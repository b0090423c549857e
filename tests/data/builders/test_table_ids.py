"""One patient stays one, however tables and programs wrote the id."""

import csv
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmclip_jax.data import records
from mmclip_jax.data.builders.summary import TableSummary
from mmclip_jax.data.builders.table import build_table
from mmclip_jax.data.builders.table_options import TableOptions
from mmclip_jax.data.schema import PARTS, SPLITS, Example
from mmclip_jax.errors import UserError


class Folder:
    """A folder of images, and the builds of tables that name them."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        for n in range(40):
            self.image(f"{n}.png", n)

    def image(self, name: str, seed: int) -> None:
        file = self.path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30), dtype=np.uint8)).save(file)

    def table(self, name: str, text: str) -> str:
        (self.path / name).write_text(text, encoding="utf-8", newline="")
        return str(self.path / name)

    def build(self, table: str, **options: Any) -> TableSummary:
        given: dict[str, Any] = {
            "table": table,
            "images": str(self.path / "images"),
            "name": "mine",
            "workers": 1,
        } | options
        return build_table(TableOptions(**given), self.path / "out", overwrite=True)

    def examples(self, table: str, **options: Any) -> dict[str, Example]:
        path = self.build(table, **options).path
        return {e.id: e for split in SPLITS for part in PARTS for e in records.open_records(path, split, part)}


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> Folder:
    return Folder(tmp_path)


def lines(header: str, patients: list[str], first: int = 0, rest: str = "Edema") -> str:
    return header + "\n" + "".join(f"{first + n}.png,{patient},{rest}\n" for n, patient in enumerate(patients))


def test_floats_and_whole_numbers_are_one_patient(folder: Folder) -> None:
    pairs = folder.table("pairs.csv", lines("image,patient,report", [str(10000000 + n) for n in range(20)]))
    labels = folder.table("labels.csv", lines("image,patient,labels", [f"{10000000 + n}.0" for n in range(20)], 20))
    found = folder.examples(pairs, unpaired_table=labels, shares="0.5,0,0.5")
    assert {e.patient for e in found.values()} == {str(10000000 + n) for n in range(20)}
    assert all(found[f"{n}.png"].split == found[f"{n + 20}.png"].split for n in range(20))


def test_csv_and_parquet_give_one_patient(folder: Folder) -> None:
    import pyarrow
    import pyarrow.parquet

    pairs = folder.table("pairs.csv", lines("image,patient,report", ["10000032", "10000033"]))
    for kind in (pyarrow.float64(), pyarrow.int64(), pyarrow.decimal128(24, 2), pyarrow.string(), pyarrow.binary()):
        patients: list[Any] = ["10000032", "10000033"] if kind in (pyarrow.string(),) else [10000032, 10000033]
        if kind == pyarrow.binary():
            patients = [b"10000032", b"10000033"]
        columns = {"image": ["2.png", "3.png"], "patient": pyarrow.array(patients).cast(kind), "labels": ["Edema"] * 2}
        pyarrow.parquet.write_table(pyarrow.table(columns), folder.path / "labels.parquet")
        found = folder.examples(pairs, unpaired_table=str(folder.path / "labels.parquet"))
        assert [found[f"{n}.png"].patient for n in range(4)] == ["10000032", "10000033"] * 2, kind


@pytest.mark.parametrize(
    ("one", "other", "kept"),
    [
        ("1299", "00001299", "00001299"),
        ("p7", "P7", "P7"),
        ("\uff17", "7", "7"),
        ("10,000,032", "10000032", "10,000,032"),
    ],
)
def test_ids_that_may_be_one_are_refused_until_told(folder: Folder, one: str, other: str, kept: str) -> None:
    text = f'image,patient,labels\n0.png,"{one}",Edema\n1.png,x,Mass\n2.png,"{other}",Edema\n'
    table = folder.table("t.csv", text)
    with pytest.raises(UserError, match=r"t.csv row 2\) and .*t.csv row 4|t.csv row 4\) and .*t.csv row 2") as raised:
        folder.build(table)
    assert "--alike-ids same" in str(raised.value)
    found = folder.examples(table, alike_ids="same")
    assert found["0.png"].patient == found["2.png"].patient == kept
    with open(folder.path / "out" / "mine" / "1.0.0" / "rejects.csv", newline="") as stream:
        assert [r["consequence"] for r in csv.DictReader(stream)] == ["taken for another spelling of the id"]
    found = folder.examples(table, alike_ids="other")
    assert {found["0.png"].patient, found["2.png"].patient} == {one, other}


def test_normal_forms_of_unicode_are_one_patient(folder: Folder) -> None:
    table = folder.table("t.csv", "image,patient,labels\n0.png,Mu\u0308ller,Edema\n1.png,M\u00fcller,Mass\n")
    assert {e.patient for e in folder.examples(table).values()} == {"M\u00fcller"}


def test_studies_are_compared_within_a_patient(folder: Folder) -> None:
    text = "image,patient,study,labels\n0.png,a,1,Edema\n1.png,b,01,Mass\n2.png,a,2.0,Edema\n3.png,a,2,Edema\n"
    assert [e.study for _, e in sorted(folder.examples(folder.table("t.csv", text)).items())] == ["1", "01", "2", "2"]
    with pytest.raises(UserError, match=r"'1' .*'01' .*may be the same study"):
        folder.build(folder.table("t.csv", text.replace("b,01", "a,01")))


def test_ids_that_lost_digits_cost_their_rows(folder: Folder) -> None:
    table = folder.table("t.csv", lines("image,patient,labels", ["1.0E+07", "2", "3"]))
    with pytest.raises(UserError, match=r"t.csv row 2: id '1.0E\+07' .* lost digits"):
        folder.build(table)


def test_two_spellings_of_one_image_are_listed(folder: Folder) -> None:
    folder.image("7 .png", 8)
    table = folder.table("t.csv", "image,patient,labels\n7 .png,1,Edema\n7\u00a0.png,2,Mass\n8.png,3,Mass\n")
    folder.image("7\u00a0.png", 9)
    with pytest.raises(UserError, match=r"row 3: the image's id is that of .*t.csv row 2 too"):
        folder.build(table)
