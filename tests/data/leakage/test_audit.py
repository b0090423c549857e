import io
import pathlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import train_test_split

from mmclip_jax import cli
from mmclip_jax.config import default_config
from mmclip_jax.data import records
from mmclip_jax.data.leakage import audit, overlaps
from mmclip_jax.data.leakage import likeness as likeness_lib
from mmclip_jax.data.schema import Example
from mmclip_jax.errors import LeakageError, UserError
from mmclip_jax.train.manifest import audit_validation


def pixels_of(seed: int) -> np.ndarray:
    """A smooth picture, as unlike another seed's as two radiographs of different bodies or more."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (7, 9), dtype=np.uint8))
    return np.asarray(small.resize((96, 128), Image.Resampling.BICUBIC))


class Given(records.RecordsBuilder):
    """A data set of given examples."""

    def __init__(self, name: str, data_dir: pathlib.Path, given: list[Example]):
        super().__init__(data_dir)
        self.name = name
        self.given = given

    def examples(self, split: str) -> Iterator[Example]:
        return (example for example in self.given if example.split == split)


def make(number: int, split: str, source: str = "mine", **more: Any) -> Example:
    fields: dict[str, Any] = {
        "id": f"{number}.png", "patient": f"p{number}", "study": f"s{number}", "pixels": pixels_of(number),
        "findings": f"Effusion of {number} ml in the left pleural space.",
    }  # fmt: skip
    return records.finish_example(split=split, source=source, **(fields | more))


def build(tmp_path: pathlib.Path, name: str, given: list[Example]) -> str:
    return str(records.build(Given(name, tmp_path, given)))


def audited(train: str, test: str, **options: Any) -> dict[str, audit.Overlap]:
    one, other = audit.read_set(train, ("train",), **options), audit.read_set(test, ("test",), **options)
    found = audit.audit([one], [other])
    assert len({each.kind for each in found}) == len(found)
    return {each.kind: each for each in found}


def jpeg(pixels: np.ndarray, quality: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def test_each_planted_leak_is_found_and_nothing_else(tmp_path: pathlib.Path) -> None:
    train = build(tmp_path, "a", [make(n, "train") for n in range(20)])
    dark = np.clip(pixels_of(5) * 0.8, 0, 255).astype(np.uint8)
    half = np.asarray(Image.fromarray(pixels_of(6)).resize((48, 64), Image.Resampling.BOX))
    test = build(
        tmp_path,
        "b",
        [make(n, "test") for n in range(100, 113)]
        + [
            make(1, "test", id="x1", study="x1", pixels=pixels_of(201), findings="Other one."),  # the patient
            make(2, "test", id="x2", patient="x2", pixels=pixels_of(202), findings="Other two."),  # the study
            make(3, "test", patient="x3", study="x3", pixels=pixels_of(203), findings="Other three."),  # the id
            make(4, "test", id="x4", patient="x4", study="x4", findings="Other four."),  # the pixels
            make(5, "test", id="x5", patient="x5", study="x5", pixels=dark, findings="Other five."),
            make(6, "test", id="x6", patient="x6", study="x6", pixels=half, findings="Other six."),
            make(7, "test", id="x7", patient="x7", study="x7", pixels=None, image=jpeg(pixels_of(7), 50), findings=""),
            make(8, "test", id="x8", patient="x8", study="x8", pixels=pixels_of(208),
                 findings="effusion OF 8 ml, in the left pleural space"),  # the report
        ],
    )  # fmt: skip
    found = audited(train, test)
    one, other = audit.read_set(train, ("train",)), audit.read_set(test, ("test",))
    shared = {
        kind: sorted((one.rows[a].id, other.rows[b].id) for a, b in each.pairs) for kind, each in found.items()
    }  # fmt: skip
    assert shared == {
        "patient": [("1.png", "x1")],
        "study": [("2.png", "x2")],
        "image id": [("3.png", "3.png")],
        "pixels": [("4.png", "x4")],
        "alike": [("5.png", "x5"), ("6.png", "x6"), ("7.png", "x7")],
        "report": [("8.png", "x8")],
    }
    assert {kind for kind, each in found.items() if not each.is_leak} == {"report"}


def test_ids_of_other_sources_mean_nothing_and_kin_is_told(tmp_path: pathlib.Path) -> None:
    train = build(tmp_path, "a", [make(n, "train", "rsna") for n in range(5)])
    test = [make(n, "test", "chestxray14", pixels=pixels_of(n + 50), findings=f"Words {n}.") for n in range(5)]
    found = audited(train, build(tmp_path, "b", test))
    assert set(found) == {"kin"}
    assert "all images of the challenge are from ChestX-ray14" in found["kin"].note
    assert not found["kin"].is_leak


def test_frequent_reports_are_phrases(tmp_path: pathlib.Path) -> None:
    train = build(tmp_path, "a", [make(n, "train", findings="Normal chest.") for n in range(overlaps._COMMON_REPORT)])
    test = [make(n + 50, "test", findings="Normal chest.") for n in range(3)]
    assert audited(train, build(tmp_path, "b", test)) == {}
    one = build(tmp_path, "c", [make(0, "train", findings="Normal chest.")])
    assert len(audited(one, str(tmp_path / "b"))["report"].pairs) == 3


@settings(max_examples=50)
@given(st.integers(0, 40), st.integers(1, 40), st.integers(0, 20), st.integers(0, 20), st.randoms())
def test_planted_counts_are_exact(train: int, test: int, patients: int, pixels: int, rng: random.Random) -> None:
    patients, pixels = min(patients, train, test), min(pixels, train, test)
    ours = [audit.Row(f"a{n}", "s", f"p{n}", f"t{n}", f"x{n}", f"r{n}") for n in range(train)]
    theirs = [
        audit.Row(f"b{n}", "s", f"p{n}" if n < patients else f"q{n}", f"u{n}", f"x{n}" if n < pixels else f"y{n}", "")
        for n in range(test)
    ]
    rng.shuffle(ours)
    rng.shuffle(theirs)
    found = {each.kind: each for each in audit.audit([audit.AuditSet("a", ours)], [audit.AuditSet("b", theirs)])}
    assert {kind: len(each.pairs) for kind, each in found.items()} == {
        kind: number for kind, number in (("patient", patients), ("pixels", pixels)) if number
    }
    for kind, field in (("patient", "patient"), ("pixels", "pixels")):
        for a, b in found[kind].pairs if kind in found else ():
            assert getattr(ours[a], field) == getattr(theirs[b], field)


# The command


def test_command(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = build(tmp_path, "a", [make(n, "train" if n < 5 else "test") for n in range(9)])
    assert cli.main(["data", "audit", both, "--against", both]) == 0
    assert "no leak found" in capsys.readouterr().out
    assert cli.main(["data", "audit", both, "--against", f"{both}:train", "--out", str(tmp_path / "o.csv")]) == 1
    output = capsys.readouterr()
    assert "LEAK  pixels" in output.out
    assert "5 of 5 test images (100.0 %)" in output.out
    assert "0.png" not in output.out, "ids only where they are asked for"
    assert len(output.err.splitlines()) == 1
    listed = pd.read_csv(tmp_path / "o.csv")
    assert set(listed.loc[listed["kind"] == "pixels", "test_id"]) == {f"{n}.png" for n in range(5)}
    assert cli.main(["data", "audit", both, "--against", f"{both}:train", "--show-ids", "--no-pixels"]) == 1
    assert ".png and " in capsys.readouterr().out
    assert cli.main(["data", "audit", both, "--against", f"{both}:dev"]) == 2
    assert cli.main(["data", "audit", both, "--against", str(tmp_path / "nothing.csv")]) == 2


def test_lists_of_ids(tmp_path: pathlib.Path) -> None:
    (tmp_path / "train.csv").write_text("n,Path\n1,train/patient1/a.jpg\n2,train/patient2/b.jpg\n")
    (tmp_path / "test.txt").write_text("train/patient2/c.jpg\ntrain/patient3/b.jpg\n")
    options = {"patient_pattern": r"patient\d+"}
    found = audited(f"{tmp_path / 'train.csv'}:Path", str(tmp_path / "test.txt"), **options)
    assert {kind: each.pairs for kind, each in found.items()} == {"patient": ((1, 0),)}
    with pytest.raises(UserError, match=r"train.csv row 2: the id has no patient"):
        audited(f"{tmp_path / 'train.csv'}:Path", str(tmp_path / "test.txt"), patient_pattern=r"subject\d+")
    with pytest.raises(UserError, match="no column 'Name' among n, Path"):
        audited(f"{tmp_path / 'train.csv'}:Name", str(tmp_path / "test.txt"))


@pytest.mark.parametrize(
    "content",
    [
        b"n,Path\n1,train/patient2/c.jpg\n",
        b"n;Path\n",
        b"1\ttrain/patient2/c.jpg\n",
        b'{"ids": 3}',
        b"patient2 c.jpg positive cohen\npatient3 b.jpg negative rsna\n",
        b"PK\x03\x04\xff\xfe",
        b"\n \n",
    ],
)
def test_a_table_is_no_list_of_ids_that_match_nothing(tmp_path: pathlib.Path, content: bytes) -> None:
    (tmp_path / "train.txt").write_text("train/patient2/c.jpg\n")
    (tmp_path / "test.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"test\.csv.* id"):
        audited(str(tmp_path / "train.txt"), str(tmp_path / "test.csv"))


# The check of training and evaluation


def test_check_refuses_a_leak_unless_told_why(tmp_path: pathlib.Path) -> None:
    train = build(tmp_path, "a", [make(n, "train") for n in range(5)])
    test = build(tmp_path, "b", [make(n, "test") for n in (3, 4, 50)])
    with pytest.raises(LeakageError, match=r"patient: 2 of 3 images of b:test in a:train.*--allow-leakage REASON"):
        audit.check([train], [test], "test")
    told = audit.check([train], [test], "test", "it is a drill")
    assert (told["status"], told["allowed"]) == ("leaks", "it is a drill")
    assert {each["kind"]: each["rows"] for each in told["overlaps"]} == {
        "patient": 2, "study": 2, "image id": 2, "pixels": 2, "report": 2,
    }  # fmt: skip
    other = build(tmp_path, "c", [make(n, "test") for n in (50, 51)])
    assert audit.check([train], [other], "test", "unneeded") == {
        "status": "clean", "missing": [], "allowed": "", "told": {"same": [], "other": []}, "alike": "run",
        "problems": [], "overlaps": [],
    }  # fmt: skip
    gone = str(tmp_path / "gone" / "1.0.0")
    assert audit.check([train, gone], [other], "test")["missing"] == ["gone"]
    assert audit.check([train, gone], [other], "test")["status"] == "not audited"


def test_training_refuses_validation_data_that_it_learns_from(tmp_path: pathlib.Path) -> None:
    train = build(tmp_path, "a", [make(n, "train") for n in range(5)])
    validation = build(tmp_path, "b", [make(n, "validation") for n in (3, 4, 50)])
    config = default_config()
    config.data.train, config.data.evaluate = (train,), (validation,)
    with pytest.raises(LeakageError, match="patient: 2 of 3 images of b:validation in a:train"):
        audit_validation(config)
    config.data.allow_leakage = "a drill"
    told = audit_validation(config)
    assert told["allowed"] == "a drill"
    config.data.evaluate = ()
    assert audit_validation(config)["status"] == "clean"


# Real leaks


@pytest.mark.wheel
@pytest.mark.slow
def test_siim_split_by_row_is_a_leak(wheel_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """70 / 15 / 15 % of the rows, as published splits were made: positive images have several rows."""
    table = pd.read_csv(wheel_dir / "siim-pneumothorax-train-rle.csv.gz")
    train, rest = train_test_split(table, test_size=0.3, random_state=0)
    test, _ = train_test_split(rest, test_size=0.5, random_state=0)
    for name, rows in (("train", train), ("test", test)):
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
    found = audited(f"{tmp_path / 'train.csv'}:ImageId", f"{tmp_path / 'test.csv'}:ImageId")
    shared = {test["ImageId"].iloc[b] for _, b in found["image id"].pairs}
    assert shared == set(train["ImageId"]) & set(test["ImageId"])
    images = test["ImageId"].nunique()
    assert 1_880 < images < 1_940
    assert 120 < len(shared) < 190
    print(f"SIIM by row: {len(shared)} of {images} test images are in train")


@pytest.mark.wheel
@pytest.mark.slow
def test_chexpert_random_rows_share_patients(wheel_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    table = pd.read_csv(wheel_dir / "chexpert_train.csv.gz", usecols=["Path"])
    train, test = train_test_split(table, test_size=5_000, random_state=0)
    for name, rows in (("train", train), ("test", test)):
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
    found = audited(f"{tmp_path / 'train.csv'}:Path", f"{tmp_path / 'test.csv'}:Path", patient_pattern=r"patient\d+")
    share = len(found["patient"].pairs) / len(test)
    assert 0.87 < share < 0.91
    assert set(found) == {"patient"}
    print(f"CheXpert by row: {100 * share:.1f} % of validation images share a patient")


@pytest.mark.shared
@pytest.mark.slow
def test_real_images_are_alike_only_if_they_are_the_same(shared_dir: pathlib.Path) -> None:
    names = ["kermany_pediatric", "nih_chestxray14_subset", "ieee8023_covid"]
    seen, changed = [], []
    for name in names:
        table = pd.read_csv(shared_dir / name / "metadata.csv", dtype=str).drop_duplicates("patient_id").head(300)
        for image in table["image"]:
            data = (shared_dir / name / "images" / image).read_bytes()
            seen.append(likeness_lib.look_of(data))
            with Image.open(io.BytesIO(data)) as opened:
                pixels = np.asarray(opened.convert("L"))
            smaller = Image.fromarray(pixels).resize((pixels.shape[1] // 2, pixels.shape[0] // 2))
            other = np.clip(np.asarray(smaller) * 0.8 + 20, 0, 255).astype(np.uint8)
            changed.append(likeness_lib.look_of(jpeg(other, 50)))
    rows, again = np.array(seen), np.array(changed)
    recalled = sum(a == b for a, b in likeness_lib.alike(rows, again))
    assert recalled >= 0.99 * len(rows)
    half = len(rows) // 2
    order = np.random.default_rng(0).permutation(len(rows))
    strangers = likeness_lib.alike(rows[order[:half]], rows[order[half:]])
    print(f"alike: recall {recalled / len(rows):.3f}, false {len(strangers)} of {len(rows) - half} against {half}")
    assert len(strangers) <= 0.005 * half


def test_lists_and_patterns_that_are_none_are_one_line(tmp_path: pathlib.Path) -> None:
    (tmp_path / "ids.txt").write_bytes(b"\xe9\xe9\n")
    with pytest.raises(UserError, match=r"ids\.txt is not UTF-8"):
        audit.read_set(str(tmp_path / "ids.txt"), ("train",))
    (tmp_path / "ids.txt").write_text("a1\n")
    with pytest.raises(UserError, match="is no regular expression"):
        audit.read_set(str(tmp_path / "ids.txt"), ("train",), patient_pattern="(")
