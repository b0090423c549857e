"""Tried as a hospital would: an Excel export, a folder of DICOM files, `inspect`, then the command that it printed."""

import collections
import contextlib
import io
import pathlib
import shlex

import hospital
import pytest

from mmclip_jax import cli
from mmclip_jax.data import records
from mmclip_jax.data.schema import PARTS, SPLITS, Example, LabelState

pytest.importorskip("python_calamine")


def run(*words: str) -> tuple[int, str]:
    """Status and output of the command."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = cli.main(words)
    return status, said.getvalue()


def examples(path: pathlib.Path) -> list[Example]:
    return [e for split in SPLITS for part in PARTS for e in records.open_records(path, split, part)]


def inspect_and_build(table: str, images: str, folder: pathlib.Path) -> tuple[str, str, list[Example]]:
    """What both commands said, and what the second, which is the one that the first printed, has built."""
    status, said = run("data", "inspect", table, "--images", images, "--data-dir", str(folder / "DATA"))
    assert status == 0, said
    words = shlex.split(said.strip().splitlines()[-1])
    assert words[:4] == ["mmclip", "data", "build", "table"]
    status, built = run(*words[1:], "--workers", "1")
    assert status == 0, built
    name = words[words.index("--name") + 1]
    return said, built, examples(folder / "DATA" / name)


def test_two_commands_build_an_export(tmp_path: pathlib.Path) -> None:
    table, images = hospital.export(tmp_path)
    said, _, found = inspect_and_build(table, images, tmp_path)
    assert len(found) == 34
    assert {e.view for e in found} <= {"PA", ""}, "laterals are left out"
    assert {(e.patient, e.sex, e.age) for e in found} == {
        (str(20000000 + n), ("F", "M")[n % 2], 20.0 + n) for n in range(29)
    }
    assert len({e.study for e in found}) == 34
    by_state = collections.Counter(e.labels["pneumothorax"] for e in found)
    assert by_state == {LabelState.PRESENT: 11, LabelState.ABSENT: 23}
    assert all(e.part == "paired" for e in found)
    splits = collections.defaultdict(set)
    for each in found:
        splits[each.patient].add(each.split)
    assert all(len(each) == 1 for each in splits.values())
    # What a person is told
    assert "34 left out on purpose: view LATERAL" in said
    assert "codes (ICD)" in said
    assert "--labels-column -" in said
    assert "Stauung" in said
    assert "--label-map Stauung=KIND" in said
    assert "weiblich 36, männlich 32" in said
    for secret in ("effusion", "siehe Vorbefund", "Cough"):
        assert secret not in said, "reports and notes are not shown"


def test_rows_of_studies_are_joined_by_accession_number(tmp_path: pathlib.Path) -> None:
    _, images = hospital.export(tmp_path, studies=31)
    rows: list[list[object]] = [["Accession Number", "PatID", "Geschlecht", "Befund"]]
    rows += [[4000 + n, f"p{n}", "w", hospital.REPORTS[n % 3]] for n in range(31)]  # the zeros in front were lost
    rows[1][2] = "?!"
    table = hospital.xlsx(tmp_path / "studies.xlsx", rows)
    said, built, found = inspect_and_build(table, images, tmp_path)
    assert "--join accession" in said
    assert len(found) == 31
    assert {e.study for e in found} == {str(4000 + n) for n in range(31)}
    status, built = run(*shlex.split(said.strip().splitlines()[-1])[1:], "--views", "all", "--overwrite")
    assert status == 0, built
    assert "0 rows left out, 1 cells left out" in built, "a cell counts once, however many images its row means"
    both = collections.Counter(e.study for e in examples(tmp_path / "DATA" / "studies"))
    assert len(both) == 31
    assert set(both.values()) == {2}, "one report with two images is one study"


def test_rows_are_joined_by_sop_instance_uid_and_by_folder(tmp_path: pathlib.Path) -> None:
    _, images = hospital.export(tmp_path, studies=8)
    lines = "".join(f"{hospital.SOP}.{2 * n},p{n},Clear lungs.\n" for n in range(8))
    (tmp_path / "sop.csv").write_text("SOPInstanceUID,patient,report\n" + lines)
    said, _, found = inspect_and_build(str(tmp_path / "sop.csv"), images, tmp_path)
    assert "--join sop" in said
    assert {e.study for e in found} == {f"{hospital.SOP}.77.{n}" for n in range(8)}, "the header's"
    (tmp_path / "folder.csv").write_text(
        "study,patient,report\n" + "".join(f"E{n:03d},p{n},Clear lungs.\n" for n in range(8))
    )
    said, _, found = inspect_and_build(str(tmp_path / "folder.csv"), images, tmp_path)
    assert "--join folder" in said
    assert {(e.study, e.patient) for e in found} == {(f"E{n:03d}", f"p{n}") for n in range(8)}


def test_a_row_for_each_image_of_a_study_without_paths(tmp_path: pathlib.Path) -> None:
    """Both rows of a study say the same: it is one study, not a repetition. If they do not, the row is listed."""
    _, images = hospital.export(tmp_path, studies=6)
    lines = [f"00{4000 + n // 2},p{n // 2},Clear lungs.\n" for n in range(12)]
    (tmp_path / "t.csv").write_text("accession,patient,report\n" + "".join(lines))
    _, _, found = inspect_and_build(str(tmp_path / "t.csv"), images, tmp_path)
    assert len(found) == 6
    (tmp_path / "t.csv").write_text(
        "accession,patient,report\n" + "".join([*lines[:11], lines[11].replace("p5", "p6")])
    )
    said, _, found = inspect_and_build(str(tmp_path / "t.csv"), images, tmp_path)
    assert "the study is in row … too, but column … differs" in said


def test_findings_beside_impressions_in_german(tmp_path: pathlib.Path) -> None:
    for n in range(3):
        hospital.film(tmp_path / "images" / f"{n}.dcm", n)
    text = "Datei;PatID;Befund;Beurteilung\n" + "".join(f"{n}.dcm;{n};Clear lungs.;Normal chest.\n" for n in range(3))
    (tmp_path / "t.csv").write_text(text)
    _, _, found = inspect_and_build(str(tmp_path / "t.csv"), str(tmp_path / "images"), tmp_path)
    assert {(e.findings, e.impression) for e in found} == {("Clear lungs.", "Normal chest.")}
