import csv
import hashlib
import io
import json
import math
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmclip_jax.data import records
from mmclip_jax.data.builders import cells
from mmclip_jax.data.builders.collection import split_of_patient
from mmclip_jax.data.builders.summary import TableSummary
from mmclip_jax.data.builders.table import build_table
from mmclip_jax.data.builders.table_options import TableOptions
from mmclip_jax.data.schema import PARTS, SPLITS, Example, LabelState
from mmclip_jax.errors import UserError

P, A, U = LabelState.PRESENT, LabelState.ABSENT, LabelState.UNCERTAIN
Rows = Sequence[Mapping[str, Any]]


class Workbench:
    """A folder with a table and images, and the builds made of it."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.images = folder / "images"
        self.images.mkdir()
        self.out = folder / "out"

    def image(self, name: str, seed: int = 0, shape: tuple[int, int] = (31, 43)) -> None:
        file = self.images / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(file)

    def table(self, rows: Rows, name: str = "metadata.csv", **dialect: Any) -> str:
        """Writes rows as CSV, and an image for each that has none yet and whose name does not say it should not."""
        header = list(dict.fromkeys(key for row in rows for key in row))
        with open(self.folder / name, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, header, **dialect)
            writer.writeheader()
            writer.writerows(rows)
        for number, row in enumerate(rows):
            image = str(row.get("image", ""))
            if image and "missing" not in image and not (self.images / image).exists():
                self.image(image, seed=number)
        return str(self.folder / name)

    def build(self, rows: Rows | None = None, /, **options: Any) -> TableSummary:
        if rows is not None:
            options["table"] = self.table(rows)
        given = {"table": str(self.folder / "metadata.csv"), "images": str(self.images), "name": "mine"} | options
        return build_table(TableOptions(**given), self.out, overwrite=True)

    def examples(self, rows: Rows | None = None, /, **options: Any) -> dict[str, Example]:
        return read(self.build(rows, **options).path)

    def rejects(self, place: pathlib.Path | None = None) -> list[dict[str, str]]:
        with open((place or self.out / "mine") / "rejects.csv", newline="") as stream:
            return list(csv.DictReader(stream))


def read(path: pathlib.Path) -> dict[str, Example]:
    return {e.id: e for split in SPLITS for part in PARTS for e in records.open_records(path, split, part)}


@pytest.fixture
def bench(tmp_path: pathlib.Path) -> Workbench:
    return Workbench(tmp_path)


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"image": f"{number}.png", "patient_id": f"00{number}", "labels": "Edema"} | more


# Columns


def test_columns_are_found_by_their_usual_names(bench: Workbench) -> None:
    bench.image("a/1.png")
    rows = [
        {
            "Image Index": "a/1.png",
            "Patient ID": "007",
            "StudyUID": "s1",
            "View Position": "pa",
            "Patient Gender": "Female",
            "Patient Age": "058Y",
            "Finding Labels": "Effusion|Mass",
            "Notes": "Small effusion.",
            "Hospital": "X",
        }
    ]
    summary = bench.build(rows, split="test")
    example = read(summary.path)["a/1.png"]
    assert (example.patient, example.study, example.view) == ("007", "s1", "PA")
    assert (example.sex, example.age, example.split) == ("F", 58.0, "test")
    assert example.findings == "Small effusion."
    assert example.source == "mine"
    assert {k for k, state in example.labels.items() if state == P} == {"pleural_effusion", "mass"}
    assert [e.text for e in example.entities if e.kind] == ["effusion"]
    assert summary.facts["tables"][0]["columns_not_used"] == ["Hospital"]
    assert "not used: Hospital" in str(summary)


def test_columns_can_be_named_and_turned_off(bench: Workbench) -> None:
    rows = [row(1, text="Clear lungs.", who="p9", sex="Klingon")]
    example = bench.examples(rows, patient_column="who", report_column="-", sex_column="-")["1.png"]
    assert (example.patient, example.text, example.sex) == ("p9", "", "")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"picture": "1.png", "patient": "1"}], {}, r"no column of images among picture, patient; .*--image-column"),
        ([{"image": "1.png", "labels": "Edema"}], {}, r"no column of patients.*--patient-column"),
        ([row(1)], {"sex_column": "gendr"}, r"no column 'gendr' among image, patient_id, labels"),
        (
            [row(1, Effusion=1, **{"Pleural Effusion": 1})],
            {},
            "'Effusion' and 'Pleural Effusion' both mean pleural_effusion",
        ),
        ([row(1, Sniffles=1)], {"label_columns": "Sniffles"}, "'Sniffles' is not the name of a known finding"),
        ([row(1)], {"label_map": "Edema=sniffles"}, "'sniffles' is not one of .*edema"),
        ([], {}, "has no rows"),
    ],
)
def test_tables_that_do_not_tell_enough(bench: Workbench, rows: Rows, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bench.build(rows, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "My Data"},
        {"shares": (0.5, 0.6, 0.1)},
        {"shares": "a,b,c"},
        {"split": "dev"},
        {"encoding": "webp"},
        {"value_range": "0"},
        {"value_range": "twelve bits"},
        {"box_format": "yolo"},
        {"box_columns": "x,y"},
        {"box_frame": "big"},
        {"max_reject_share": 2.0},
        {"label_map": "NORMAL"},
        {"shorter_side": 3},
    ],
)
def test_options_are_checked(options: Any) -> None:
    with pytest.raises(UserError):
        TableOptions(**({"table": "t.csv", "images": "i", "name": "mine"} | options))


def test_lists_may_be_one_string() -> None:
    options = TableOptions("t.csv", "i", "mine", views="PA, AP", shares="0.5,0.25,0.25", label_map="A=edema,B=mass")  # type: ignore[arg-type]
    assert options.views == ("PA", "AP")
    assert options.shares == (0.5, 0.25, 0.25)
    assert options.label_map == ("A=edema", "B=mass")


# Kinds of table files


def test_csv_and_parquet_give_the_same(bench: Workbench) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [row(1, age=57.0, sex="M", text="No mass.\nNo edema."), row(2, age=None, sex="", text=None)]
    facts = bench.build(rows).facts
    parquet = bench.folder / "metadata.parquet"
    columns: dict[str, list[Any]] = {name: [r[name] for r in rows] for name in rows[0]}
    columns["labels"] = [[label] for label in columns["labels"]]  # a column of lists
    pyarrow.parquet.write_table(pyarrow.table(columns), parquet)
    again = bench.build(table=str(parquet)).facts
    assert again["fingerprint"] == facts["fingerprint"]
    assert again["examples"] == 2


def test_dialects_of_csv(bench: Workbench) -> None:
    rows = [row(1, text='Said: "clear";\nstable.'), row(2, text="Œdème, mild")]
    expected = bench.build(rows).facts["fingerprint"]
    for delimiter in ";\t":
        table = bench.table(rows, delimiter=delimiter)
        assert bench.build(table=table).facts["fingerprint"] == expected
    marked = bench.folder / "marked.csv"
    marked.write_bytes(b"\xef\xbb\xbf" + pathlib.Path(bench.table(rows)).read_bytes())
    assert bench.build(table=str(marked)).facts["fingerprint"] == expected


def test_other_encodings_are_not_guessed(bench: Workbench) -> None:
    table = pathlib.Path(bench.table([row(1, text="Épanchement pleural")]))
    table.write_text(table.read_text("utf-8"), "latin-1")
    with pytest.raises(UserError, match=r"is not utf-8; .*--csv-encoding"):
        bench.build()
    assert bench.examples(csv_encoding="latin-1", language="fr")["1.png"].findings == "Épanchement pleural"


def test_rows_of_another_length_are_rejected(bench: Workbench) -> None:
    table = pathlib.Path(bench.table([row(n) for n in range(1, 4)]))
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], lines[1] + ",extra", "", lines[2], lines[3].rsplit(",", 1)[0]]))
    assert bench.examples(max_reject_share=1.0).keys() == {"2.png"}
    found = bench.rejects(bench.out / "mine" / "1.0.0")
    assert [(r["row"], r["reason"]) for r in found] == [
        ("2", "4 cells where the header has 3"),
        ("5", "2 cells where the header has 3"),
    ]


# Labels


def test_listed_labels_and_what_is_not_listed(bench: Workbench) -> None:
    rows = [
        row(1, labels="Edema|Effusion"),
        row(2, labels="No Finding"),
        row(3, labels="", text="Clear."),
        row(4, labels="mass"),
    ]
    labels = {id: e.labels for id, e in bench.examples(rows).items()}
    assert labels["1.png"] == {"edema": P, "pleural_effusion": P, "mass": A, "no_finding": A}
    assert labels["2.png"] == {"edema": A, "pleural_effusion": A, "mass": A, "no_finding": P}
    assert labels["3.png"] == {}, "a blank cell says nothing"
    assert labels["4.png"] == {"edema": A, "pleural_effusion": A, "mass": P, "no_finding": A}
    labels = {id: e.labels for id, e in bench.examples(rows, absent_if_unlisted=False).items()}
    assert labels["1.png"] == {"edema": P, "pleural_effusion": P}
    labels = {id: e.labels for id, e in bench.examples(rows, label_universe="Mass,Hernia").items()}
    assert labels["1.png"] == {"edema": P, "pleural_effusion": P, "mass": A, "hernia": A}


def test_a_special_case_says_nothing_against_the_broader_kind(bench: Workbench) -> None:
    rows = [row(1, labels="COVID-19"), row(2, labels="Pneumonia"), row(3, labels="Edema")]
    labels = {id: e.labels for id, e in bench.examples(rows).items()}
    assert labels["1.png"] == {"covid_19": P, "edema": A}
    assert labels["2.png"] == {"pneumonia": P, "covid_19": A, "edema": A}
    assert labels["3.png"] == {"edema": P, "covid_19": A, "pneumonia": A}


def test_a_list_shows_the_broader_kind_and_leaves_open_what_it_does_not_deny(bench: Workbench) -> None:
    strings = ["consolidation", "calcified adenopathy", "increased density", "adenopathy", "calcified densities"]
    rows = [row(number, labels=string) for number, string in enumerate(strings)]
    rows += [row(5, labels="humeral fracture|surgery breast"), row(6, labels="mastectomy"), row(7, labels="pacemaker")]
    labels = {id: e.labels for id, e in bench.examples(rows, ignore_labels="surgery breast").items()}
    assert labels["0.png"]["lung_opacity"] == P
    assert labels["1.png"]["calcification"] == P
    assert "lymphadenopathy" not in labels["1.png"]
    assert labels["2.png"]["consolidation"] == labels["3.png"]["calcified_lymph_node"] == A
    assert labels["5.png"]["fracture"] == P
    assert "mastectomy" not in labels["5.png"]
    assert not any("fracture" in labels[f"{number}.png"] for number in (0, 1, 2, 3, 4, 6, 7))


def test_a_column_of_a_part_denies_the_whole_only_if_the_user_says_so(bench: Workbench) -> None:
    cells = [("1", "1"), ("0", "1"), ("0", "0")]
    rows = [
        {"image": f"{n}.png", "patient": "a", "Humeral fracture": fracture, "Edema": edema}
        for n, (fracture, edema) in enumerate(cells)
    ]
    found = [e.labels for _, e in sorted(bench.examples(rows).items())]
    assert found == [{"fracture": P, "edema": P}, {"edema": P}, {"edema": A}]
    found = [e.labels for _, e in sorted(bench.examples(rows, label_map="Humeral fracture=fracture").items())]
    assert found[1] == {"fracture": A, "edema": P}


@pytest.mark.parametrize(
    ("cells_", "separator"),
    [
        (["Edema|Mass", "Hernia"], "auto"),
        (["Edema; Mass", "Hernia"], "auto"),
        (["Edema, Mass", "Hernia"], "auto"),
        (["Edema/Mass", "Hernia"], "/"),
        (["['Edema', 'Mass']", '["Hernia"]'], "auto"),
    ],
)
def test_separators(bench: Workbench, cells_: list[str], separator: str) -> None:
    found = bench.examples([row(n, labels=cell) for n, cell in enumerate(cells_)], label_separator=separator)
    assert found["0.png"].labels == {"edema": P, "mass": P, "hernia": A}
    assert found["1.png"].labels == {"edema": A, "mass": A, "hernia": P}


def test_one_column_a_label(bench: Workbench) -> None:
    states = {"image": "1.png", "patient": "a", "Edema": "1.0", "Lung Opacity": "0", "Pneumonia": "-1.0", "Mass": ""}
    more = {"image": "2.png", "patient": "a", "Edema": "0.0", "Lung Opacity": "1", "Pneumonia": "-1", "Mass": "1"}
    found = bench.examples([states, more])
    assert found["1.png"].labels == {"edema": P, "lung_opacity": A, "pneumonia": U}
    assert found["2.png"].labels == {"edema": A, "lung_opacity": P, "pneumonia": U, "mass": P}
    found = bench.examples([states, more], label_columns="Edema,Mass")
    assert found["1.png"].labels == {"edema": P}


def test_unknown_labels_stop_the_build_and_are_all_named(bench: Workbench) -> None:
    rows = [row(1), row(2, labels="Sniffles|Edema"), row(3, labels="Sniffles"), row(4, labels="Blues")]
    with pytest.raises(UserError) as raised:
        bench.build(rows)
    assert "3 of 4 rows" in str(raised.value)
    assert "Unknown labels: 'Sniffles' (2 rows), 'Blues' (1 rows)" in str(raised.value)
    assert "--label-map" in str(raised.value)
    assert [(r["row"], r["image"], r["reason"]) for r in bench.rejects()] == [
        ("3", "2.png", "unknown label 'Sniffles'"),
        ("4", "3.png", "unknown label 'Sniffles'"),
        ("5", "4.png", "unknown label 'Blues'"),
    ]
    summary = bench.build(rows, label_map="sniffles=pneumonia,BLUES=no_finding")
    labels = {id: e.labels for id, e in read(summary.path).items()}
    assert labels["2.png"] == {"edema": P, "pneumonia": P, "no_finding": A}
    assert labels["4.png"] == {"edema": A, "pneumonia": A, "no_finding": P}
    assert not (bench.out / "mine" / "rejects.csv").exists(), "the list of the build that was stopped is out of date"
    assert summary.facts["label_strings"] == {"Blues": "no_finding", "Edema": "edema", "Sniffles": "pneumonia"}
    rows = [*rows[:2], row(3, labels="Sniffles", text="Clear.")]
    found = bench.examples(rows, ignore_labels="SNIFFLES")
    assert found["2.png"].labels == {"edema": P}
    assert found["3.png"].labels == {}


# Reports


def test_sections_and_whole_reports(bench: Workbench) -> None:
    sections = [row(1, findings="Lungs clear.", impression="Normal."), row(2, findings="", impression="Edema.")]
    found = bench.examples(sections)
    assert found["1.png"].text == "Lungs clear.\nNormal."
    assert (found["2.png"].findings, found["2.png"].impression) == ("", "Edema.")
    both = [row(1, report="FINDINGS: Lungs clear.", findings="Lungs clear.", impression="")]
    assert bench.examples(both)["1.png"].text == "Lungs clear."
    whole = [row(1, report="Lungs clear. Normal heart."), row(2, report="nan")]
    found = bench.examples(whole)
    assert found["1.png"].part == "paired"
    assert found["2.png"].part == "unpaired", "a table library's word for nothing is not a report"


def test_whole_reports_are_cut_into_sections(bench: Workbench) -> None:
    report = (
        "CLINICAL HISTORY: Known pneumonia and heart failure.\r\nCOMPARISON: Film with a left effusion.\r\n"
        "FINDINGS: no pneumothorax\r\nno edema\r\nIMPRESSION: Normal chest.\r\nElectronically signed by B. Hernia, MD"
    )
    table = bench.table(
        [row(1, report=report), row(2, report="Edema. No effusion."), row(3, report="XXXX", labels="Edema")]
    )
    summary = bench.build(table=table)
    found = {e.id: e for e in read(summary.path).values()}
    assert (found["1.png"].findings, found["1.png"].impression) == ("no pneumothorax\n\nno edema", "Normal chest.")
    assert all(entity.negated for entity in found["1.png"].entities if entity.label == "observation")
    assert found["2.png"].text == "Edema. No effusion."
    assert found["3.png"].part == "unpaired"
    assert summary.facts["reports"] == {"blank": 1, "cut into sections": 1, "whole": 1}
    assert summary.facts["sections_left_out"] == {
        "(placeholder)": 1, "COMPARISON": 1, "HISTORY": 1, "SIGNATURE": 1,
    }  # fmt: skip
    assert "reports: 1 blank, 1 cut into sections, 1 whole" in str(summary)
    assert "sections left out, in reports: (placeholder) 1, COMPARISON 1, HISTORY 1, SIGNATURE 1" in str(summary)


def test_sections_of_a_table_are_cleaned_too(bench: Workbench) -> None:
    rows = [row(1, findings="no effusion&lt;br&gt;edema~PLAN: CT for mass", impression="mild cardiomegaly")]
    found = bench.examples(rows)["1.png"]
    assert found.text == "no effusion\n\nedema\n\nmild cardiomegaly"
    assert [(e.text, e.negated) for e in found.entities if e.label == "observation"] == [
        ("effusion", True), ("edema", False), ("cardiomegaly", False),
    ]  # fmt: skip


def test_a_second_table_is_unpaired(bench: Workbench) -> None:
    paired = bench.table([row(1, text="Edema."), row(2, text="Clear.", labels="")], "paired.csv")
    unpaired = bench.table([row(3, text="ignored"), row(4)], "unpaired.csv")
    found = bench.examples(table=paired, unpaired_table=unpaired)
    assert {id: e.part for id, e in found.items()} == {
        "1.png": "paired",
        "2.png": "paired",
        "3.png": "unpaired",
        "4.png": "unpaired",
    }
    other = bench.folder / "other"
    other.mkdir()
    Image.fromarray(np.eye(20, dtype=np.uint8) * 200).save(other / "1.png")
    unpaired = bench.table([row(1)], "unpaired.csv")
    found = bench.examples(table=paired, unpaired_table=unpaired, unpaired_images=str(other))
    assert found.keys() == {"1.png", "2.png", "unpaired/1.png"}


def test_an_image_in_both_tables_is_rejected(bench: Workbench) -> None:
    paired = bench.table([row(1, text="Edema.")], "paired.csv")
    unpaired = bench.table([row(1), row(2)], "unpaired.csv")
    with pytest.raises(UserError, match=r"1 of 3 rows .*the image is in paired.csv row 2 too"):
        bench.build(table=paired, unpaired_table=unpaired)


# Splits


def test_splits_of_a_column(bench: Workbench) -> None:
    names = ["Train", "training", "val", "valid", "validation", "dev", "test", "Testing"]
    found = bench.examples([row(n, split=name) for n, name in enumerate(names)])
    assert [found[f"{n}.png"].split for n in range(8)] == ["train"] * 2 + ["validation"] * 4 + ["test"] * 2


def test_a_patient_in_two_splits_is_an_error_that_names_both_rows(bench: Workbench) -> None:
    rows = [row(1, split="train"), row(2, split="test"), row(3, split="test", patient_id="001")]
    with pytest.raises(UserError, match=r"a patient is in two splits: train \(.* row 2\) and test \(.* row 4\)"):
        bench.build(rows)
    splits = {e.patient: {o.split for o in bench.examples(rows, split_column="-").values() if o.patient == e.patient}
              for e in bench.examples(rows, split_column="-").values()}  # fmt: skip
    assert all(len(found) == 1 for found in splits.values())


def test_split_by_patient_is_a_plain_hash() -> None:
    """The rule of docs/data.md, worked out here anew: whoever has the ids can make the same split."""
    for patient in ("1", "007", "Ünal", "x" * 99):
        for salt in ("", "b"):
            place = int(hashlib.sha256((salt + "\0" + patient).encode("utf-8")).hexdigest()[:16], 16) / 16**16
            expected = "train" if place < 0.6 else "validation" if place < 0.7 else "test"
            assert split_of_patient(patient, (0.6, 0.1, 0.3), salt) == expected


def test_split_by_patient_keeps_the_shares() -> None:
    splits = [split_of_patient(str(n), (0.7, 0.1, 0.2)) for n in range(10_000)]
    for name, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        assert abs(splits.count(name) / 10_000 - share) < 0.015
    assert {split_of_patient(str(n), (0.7, 0.3, 0.0)) for n in range(1000)} == {"train", "validation"}
    assert {split_of_patient(str(n), (0.0, 0.0, 1.0)) for n in range(1000)} == {"test"}
    changed = [split_of_patient(str(n), (0.7, 0.1, 0.2), "other") for n in range(10_000)]
    assert 0.3 < np.mean([a != b for a, b in zip(splits, changed, strict=True)]) < 0.6


def test_patients_of_both_tables_stay_together(bench: Workbench) -> None:
    one = bench.table([row(n, text="Edema.", patient_id=f"p{n}") for n in range(30)], "one.csv")
    two = bench.table([row(n, patient_id=f"p{n % 30}") for n in range(30, 90)], "two.csv")
    found = bench.examples(table=one, unpaired_table=two, shares=(0.4, 0.3, 0.3))
    assert len(found) == 90
    splits: dict[str, set[str]] = {}
    for example in found.values():
        splits.setdefault(example.patient, set()).add(example.split)
    assert all(len(found) == 1 for found in splits.values())
    assert len({next(iter(found)) for found in splits.values()}) == 3


# Rejects


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"image": ""}, "no image is named"),
        ({"image": "missing.png"}, "there is no such image file"),
        ({"image": "1.png"}, "the image is in row 2 too"),
        ({"image": "./1.png"}, "the image is in metadata.csv row 2 too"),
        ({"patient_id": ""}, "no patient is named"),
        ({"labels": ""}, "no report and no label"),
        ({"labels": "", "Mass": "-1"}, "no report and no label that is present or absent"),
        ({"labels": "Sniffles"}, "unknown label 'Sniffles'"),
        ({"labels": "No Finding|Edema"}, "labelled as no finding and as edema"),
        ({"labels": "['Edema]"}, "cannot be read"),
        ({"labels": "Edema|Mass", "Mass": "0"}, "the list of labels has mass, its own column says absent"),
        ({"Mass": "5"}, "column 'Mass' has '5', not 1, 0, -1, yes, no or blank"),
        ({"split": "holdout"}, "split 'holdout' is not"),
        ({"split": ""}, "split '' is not"),
        ({"image": "damaged.png"}, "cannot be decoded"),
        ({"image": "empty.png"}, "empty"),
        ({"image": "flat.png"}, "every pixel"),
        ({"image": "text.png"}, "cannot be decoded"),
        ({"bbox": "[1, 2, 3]"}, "is not [label, x, y, width, height]"),
        ({"bbox": "nonsense"}, "are not a list"),
        ({"bbox": '[["Edema", 1, 2, 90, 4]]'}, "lies outside of 43 x 31"),
        ({"bbox": '[["Edema", 1, 2, 0, 4]]'}, "is empty"),
        ({"bbox": '[["Sniffles", 1, 2, 3, 4]]'}, "unknown label 'Sniffles'"),
        ({"bbox": "[[1, 2, 3, 4]]", "labels": "Edema|Mass"}, "do not tell which finding"),
    ],
)
def test_every_bad_row_is_listed_with_its_reason(bench: Workbench, bad: dict[str, Any], reason: str) -> None:
    usual = {"sex": "M", "split": "train", "Mass": "", "bbox": ""}
    bench.image("good.png")
    whole = (bench.images / "good.png").read_bytes()
    (bench.images / "damaged.png").write_bytes(whole[: len(whole) // 2])
    (bench.images / "empty.png").write_bytes(b"")
    (bench.images / "text.png").write_text("not an image")
    Image.new("L", (30, 30), 9).save(bench.images / "flat.png")
    rows = [row(1, **usual), row(2, **usual), row(3, **usual) | bad, row(4, **usual)]
    with pytest.raises(UserError) as raised:
        bench.build(rows)
    message = str(raised.value)
    assert "1 of 4 rows cannot be used, more than 0.1 %" in message
    assert "metadata.csv row 4" in message
    assert str(bench.out / "mine" / "rejects.csv") in message
    assert not (bench.out / "mine" / "1.0.0").exists()
    (stopped,) = bench.rejects()
    assert (stopped["row"], stopped["consequence"]) == ("4", "row left out")
    assert reason in stopped["reason"]
    # A quarter may be bad: the others are built, and the list lies beside them.
    summary = bench.build(rows, max_reject_share=0.25)
    assert read(summary.path).keys() == {"1.png", "2.png", "4.png"}
    assert bench.rejects(summary.path) == [stopped]
    assert summary.facts["rejects"] == 1
    assert "1 rows left out" in str(summary)


def test_rejects_of_rows_and_of_images_add_up(bench: Workbench) -> None:
    rows = [row(n) for n in range(10)]
    rows[3]["labels"] = "Sniffles"
    rows[5]["image"] = "flat.png"
    Image.new("L", (30, 30), 9).save(bench.images / "flat.png")
    with pytest.raises(UserError, match="2 of 10 rows"):
        bench.build(rows, max_reject_share=0.19)
    assert len(bench.rejects()) == 2
    assert len(bench.examples(rows, max_reject_share=0.2)) == 8


def test_other_views_are_counted_and_no_rejects(bench: Workbench) -> None:
    rows = [row(1, view="pa"), row(2, view="Lateral"), row(3, view="AP"), row(4, view="")]
    summary = bench.build(rows, views="PA,AP")
    assert {e.view for e in read(summary.path).values()} == {"PA", "AP"}
    assert summary.facts["tables"][0]["rows_of_other_views"] == 2
    assert summary.facts["rejects"] == 0
    assert "2 rows of other views" in str(summary)


@pytest.mark.parametrize(
    ("cell", "years"),
    [("58", 58), ("58.5", 58.5), ("058Y", 58), ("006M", 0.5), ("004W", 28 / 365.25), ("", math.nan), ("0", 0)],
)
def test_ages(cell: str, years: float) -> None:
    assert cells.parse_age(cell) == pytest.approx(years, nan_ok=True)


def test_an_impossible_age_is_left_out_and_listed(bench: Workbench) -> None:
    summary = bench.build([row(1, age="414"), row(2, age="-3"), row(3, age="old"), row(4, age="41")])
    assert len([e for e in read(summary.path).values() if math.isnan(e.age)]) == 3
    found = bench.rejects(summary.path)
    assert [(r["row"], r["consequence"]) for r in found] == [(str(n), "age left out") for n in (2, 3, 4)]
    assert (summary.facts["rejects"], summary.facts["cells_left_out"]) == (0, 3)


# Boxes


def boxes_of(example: Example) -> list[tuple[str, list[float]]]:
    return [(b.kind, [round(v, 5) for v in (b.x_min, b.y_min, b.x_max, b.y_max)]) for b in example.boxes]


def test_boxes_in_a_frame_that_the_column_names(bench: Workbench) -> None:
    bench.image("1.png", shape=(41, 41))
    cell = '[["Edema", 102.4, 204.8, 307.2, 409.6], ["Infiltrate", 0, 512, 1024, 512]]'
    found = bench.examples([row(1, bbox_1024=cell)])["1.png"]
    assert boxes_of(found) == [("edema", [0.1, 0.2, 0.4, 0.6]), ("infiltration", [0.0, 0.5, 1.0, 1.0])]


def test_a_square_frame_does_not_fit_an_oblong_image(bench: Workbench) -> None:
    rows = [row(1, bbox_1024='[["Edema", 0, 0, 512, 256]]'), row(2, bbox_1024="")]
    with pytest.raises(UserError, match=r"1 of 2 rows.*frame of 1024 x 1024, but the image has 43 x 31.*--box-frame"):
        bench.build(rows)
    assert boxes_of(bench.examples(rows, box_frame="1024x1024")["1.png"]) == [("edema", [0, 0, 0.5, 0.25])]


def test_boxes_in_pixels_of_the_original(bench: Workbench) -> None:
    bench.image("1.png", shape=(500, 1000))
    found = bench.examples([row(1, boxes="[[100, 50, 250, 450]]")], shorter_side=50)["1.png"]
    with Image.open(io.BytesIO(found.image)) as image:
        assert image.size == (100, 50)
    assert boxes_of(found) == [("edema", [0.1, 0.1, 0.35, 1.0])]
    corners = bench.examples([row(1, boxes="[[100, 50, 250, 450]]")], box_format="xyxy")["1.png"]
    assert boxes_of(corners) == [("edema", [0.1, 0.1, 0.25, 0.9])]
    fractions = bench.examples([row(1, boxes="[0.25, 0.5, 0.125, 0.25]")], box_frame="fraction")["1.png"]
    assert boxes_of(fractions) == [("edema", [0.25, 0.5, 0.375, 0.75])]


def test_a_row_for_each_box(bench: Workbench) -> None:
    bench.image("1.png", shape=(100, 200))
    rows = [
        row(1, x=20, y=10, width=40, height=50),
        row(2, x="", y="", width="", height=""),
        row(1, x=100, y=0, width=100, height=100),
    ]
    found = bench.examples(rows)
    assert boxes_of(found["1.png"]) == [("edema", [0.1, 0.1, 0.3, 0.6]), ("edema", [0.5, 0.0, 1.0, 1.0])]
    assert found["2.png"].boxes == ()
    kinds = [row(1, x=20, y=10, w=40, h=50, box_kind="Mass"), row(1, x=20, y=10, w=50, h=50, box_kind="Hernia")]
    assert [b.kind for b in bench.examples(kinds)["1.png"].boxes] == ["mass", "hernia"]
    rows[2]["patient_id"] = "someone else"
    with pytest.raises(UserError, match="the image is in row 2 too, but column 'patient_id' differs"):
        bench.build(rows)


def test_what_hardly_sticks_out_is_cut_off(bench: Workbench) -> None:
    bench.image("1.png", shape=(100, 200))
    found = bench.examples([row(1, boxes="[[-1, 0, 202, 100.5]]")])["1.png"]
    assert boxes_of(found) == [("edema", [0.0, 0.0, 1.0, 1.0])]


# Images


def test_images_are_stored_as_asked(bench: Workbench) -> None:
    small = np.random.default_rng(5).integers(0, 256, (31, 43), dtype=np.uint8)
    Image.fromarray(small).save(bench.images / "1.png")
    deep = np.random.default_rng(6).integers(0, 4096, (300, 400)).astype(np.uint16)
    Image.fromarray(deep).save(bench.images / "2.png")
    found = bench.examples([row(1), row(2)], shorter_side=64, encoding="png")
    assert found["1.png"].image == (bench.images / "1.png").read_bytes()
    with Image.open(io.BytesIO(found["2.png"].image)) as image:
        assert (image.size, image.mode) == ((85, 64), "L")
        assert abs(float(np.asarray(image).mean()) - 127.5) < 2
    assert (found["2.png"].original_height, found["2.png"].original_width) == (300, 400)
    with pytest.raises(UserError, match="above the given value range"):
        bench.build(value_range="1023")


def test_files_without_their_ending_are_found(bench: Workbench) -> None:
    table = pathlib.Path(bench.table([row(1)]))
    table.write_text(table.read_text().replace("1.png", "1"))
    assert bench.examples().keys() == {"1"}


# The result depends on nothing but the input


def contents(path: pathlib.Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_workers_and_hash_seeds_do_not_matter(bench: Workbench) -> None:
    rows = [row(n, text="No edema." if n % 3 else "", labels="Edema|Mass" if n % 2 else "Mass") for n in range(41)]
    rows[7]["image"] = "missing.png"
    rows[9]["labels"] = "Sniffles"
    one = contents(bench.build(rows, workers=1, max_reject_share=0.1).path)
    assert contents(bench.build(rows, workers=3, max_reject_share=0.1).path) == one
    program = (
        "from mmclip_jax.data.builders.table import build_table; "
        "from mmclip_jax.data.builders.table_options import TableOptions; "
        f"build_table(TableOptions({str(bench.folder / 'metadata.csv')!r}, {str(bench.images)!r}, 'mine', "
        f"max_reject_share=0.1), {str(bench.folder / 'again')!r})"
    )
    subprocess.run(
        [sys.executable, "-c", program], check=True, env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)}
    )
    assert contents(bench.folder / "again" / "mine" / "1.0.0") == one


def test_order_of_rows_does_not_matter(bench: Workbench) -> None:
    rows = [row(n, text=f"Edema {n}.") for n in range(13)]
    first = bench.build(rows)
    before = {name: data for name, data in contents(first.path).items() if "array_record" in name}
    second = bench.build(rows[::-1])
    after = {name: data for name, data in contents(second.path).items() if "array_record" in name}
    assert before == after
    assert first.facts["fingerprint"] == second.facts["fingerprint"]


def test_nothing_of_this_machine_is_in_the_facts(bench: Workbench) -> None:
    summary = bench.build([row(1)])
    assert str(bench.folder) not in json.dumps(summary.facts)
    assert summary.facts["options"]["table"] == "metadata.csv"


# Real collections


REAL = {
    "ieee8023_covid": {"images": 277, "patients": 176, "paired": 264, "boxes": 0},
    "nih_chestxray14_subset": {"images": 761, "patients": 544, "paired": 0, "boxes": 41},
    "kermany_pediatric": {"images": 1600, "patients": 1120, "paired": 0, "boxes": 0},
}


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_real_collections_need_no_options(name: str, shared_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = shared_dir / name
    options = TableOptions(table=str(folder / "metadata.csv"), images=str(folder / "images"), name=name)
    summary = build_table(options, tmp_path)
    examples = read(summary.path)
    with open(folder / "metadata.csv", newline="") as stream:
        rows = {r["image"]: r for r in csv.DictReader(stream)}
    assert examples.keys() == rows.keys()
    assert summary.facts["rejects"] == 0
    splits: dict[str, set[str]] = {}
    for image, example in examples.items():
        given = rows[image]
        assert example.patient == given["patient_id"]
        if ". CT findings: " in given["text"]:  # one note
            assert example.findings.split() == given["text"].partition("CT findings:")[2].split()
        else:
            # Letters of lists, "(a)", may become bullets.
            kept, wanted = ([w for w in re.split(r"\s+|\([a-d]\)|(?<=\s)-(?=\s)", text) if w] for text in
                            (example.findings, given["text"]))  # fmt: skip
            assert kept == wanted, "not a word is lost, and no heading seen"
        assert example.image == (folder / "images" / image).read_bytes()
        splits.setdefault(example.patient, set()).add(example.split)
    assert all(len(found) == 1 for found in splits.values())
    found = {
        "images": len(examples),
        "patients": len(splits),
        "paired": sum(e.part == "paired" for e in examples.values()),
        "boxes": sum(len(e.boxes) for e in examples.values()),
    }
    assert found == REAL[name]


@pytest.mark.shared
def test_real_labels_and_boxes(shared_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = shared_dir / "nih_chestxray14_subset"
    options = TableOptions(table=str(folder / "metadata.csv"), images=str(folder / "images"), name="nih")
    examples = read(build_table(options, tmp_path).path)
    with open(folder / "metadata.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for given in rows:
        example = examples[given["image"]]
        assert len(example.labels) == 15, "what the list lacks is absent"
        listed = given["labels"].split("|")
        assert sum(state == P for state in example.labels.values()) == len(listed)
        assert (example.labels["pleural_effusion"] == P) == ("Effusion" in listed)
        assert (example.labels["no_finding"] == P) == (listed == ["No Finding"])
        boxes = json.loads(given["bbox_1024"] or "[]")
        assert len(boxes) == len(example.boxes)
        for (_, x, y, width, height), box in zip(boxes, example.boxes, strict=True):
            # The originals are 1024 x 1024 and the files show all of them: fractions are the same in both.
            np.testing.assert_allclose(
                [box.x_min, box.y_min, box.x_max, box.y_max], np.array([x, y, x + width, y + height]) / 1024, atol=1e-6
            )
            assert example.labels[box.kind] == P
