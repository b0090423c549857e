"""Which files the rows of a table mean, and what headers add to them."""

import os
import pathlib
import unicodedata
import zlib
from typing import Any

import hospital
import numpy as np
import pytest
from dicoms import dataset, written
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from mmclip_jax.data import records
from mmclip_jax.data.builders.cells import BadRow
from mmclip_jax.data.builders.table import build_table
from mmclip_jax.data.builders.table_images import TableImages
from mmclip_jax.data.builders.table_options import TableOptions
from mmclip_jax.data.images import dicom_headers, views
from mmclip_jax.data.schema import PARTS, SPLITS, Example
from mmclip_jax.errors import UserError


def touched(folder: pathlib.Path, *names: str) -> TableImages:
    for name in names:
        file = folder / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return TableImages(folder / "images")


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        ("a/1.png", "a/1.png"),
        ("./a/1.png", "a/1.png"),
        ("a\\1.png", "a/1.png"),
        ("a/1", "a/1.png"),
        ("A/1.PNG", "a/1.png"),
        ("a/2", "a/2.DCM"),
        ("a/2.dcm", "a/2.DCM"),
        ("a/3.dcm", "a/3"),  # no suffix on disk
        ("1.2.840.7", "u/1.2.840.7"),  # no image suffix: the number belongs to the name
        ("v1.5.scan", "u/v1.5.scan.jpeg"),
        ("2.dcm", "a/2.DCM"),  # the name alone, in a folder below
    ],
)
def test_other_spellings_are_found(tmp_path: pathlib.Path, cell: str, name: str) -> None:
    found = touched(tmp_path, "a/1.png", "a/2.DCM", "a/3", "u/1.2.840.7", "u/v1.5.scan.jpeg").find(cell)
    assert [os.path.normpath(each.place) for each in found] == [str(tmp_path / "images" / name)]


def test_normal_forms_of_names(tmp_path: pathlib.Path) -> None:
    composed, apart = (unicodedata.normalize(form, "Rö.png") for form in ("NFC", "NFD"))
    assert touched(tmp_path, apart).find(composed)[0].name == apart


@pytest.mark.parametrize("cell", ["b/1.png", "c.png", "x" * 5000, "a\0b", "a/" * 3000, "..", "", "a", "notes"])
def test_what_is_not_there(tmp_path: pathlib.Path, cell: str) -> None:
    images = touched(tmp_path, "a/1.png", "notes.txt", "._c.png", "__MACOSX/c.png")
    with pytest.raises(BadRow, match="no such image file"):
        images.find(cell)


def test_a_file_of_another_folder_is_not_taken(tmp_path: pathlib.Path) -> None:
    """p1/1.png is missing; that p2 has a file of its name must not give p1's row that film."""
    with pytest.raises(BadRow, match="no such image file"):
        touched(tmp_path, "p2/1.png").find("p1/1.png")


def test_two_files_of_one_stem_or_name_are_named(tmp_path: pathlib.Path) -> None:
    images = touched(tmp_path, "a.png", "a.dcm", "x/b.png", "y/b.png")
    with pytest.raises(BadRow, match=r"it may be 'a.dcm' or 'a.png'"):
        images.find("a")
    assert images.find("a.png")[0].name == "a.png"
    with pytest.raises(BadRow, match=r"it may be 'x/b.png' or 'y/b.png'"):
        images.find("b.png")


def test_folders_of_another_machine_in_front_of_all_paths(tmp_path: pathlib.Path) -> None:
    images = touched(tmp_path, "s/1.png", "s/2.png", "t/1.png")
    cells = ["D:\\export\\2024\\s\\1.png", "D:\\export\\2024\\s\\2.png", "D:\\export\\2024\\t\\1.png"]
    assert images.strip_prefix(cells) == "/export/2024/"
    assert [images.find(cell)[0].name for cell in cells] == ["s/1.png", "s/2.png", "t/1.png"]
    assert images.strip_prefix(["s/1.png", "s/9.png"]) == "", "some are there: the others are missing"


def test_paths_that_lead_out_of_the_folder_are_refused(tmp_path: pathlib.Path) -> None:
    images = touched(tmp_path, "in.png")
    (tmp_path / "secret.png").write_bytes(b"x")
    os.symlink(tmp_path / "secret.png", tmp_path / "images" / "link.png")
    os.symlink(tmp_path, tmp_path / "images" / "up")
    os.symlink("in.png", tmp_path / "images" / "inside.png")
    outside = ["../secret.png", str(tmp_path / "secret.png"), "link.png", "link", "up/secret.png", "x/../../secret.png"]
    (tmp_path / "images" / "x").mkdir()
    for cell in outside:
        with pytest.raises(BadRow, match="--allow-outside"):
            images.find(cell)
        assert TableImages(tmp_path / "images", allow_outside=True).find(cell)
    assert images.find("inside.png")
    os.symlink(tmp_path / "images", tmp_path / "linked")
    assert TableImages(tmp_path / "linked").find("in.png"), "the folder itself may be a link"


# Headers


def header(tmp_path: pathlib.Path, **elements: Any) -> dicom_headers.Header:
    file = tmp_path / f"{len(list(tmp_path.iterdir()))}.dcm"
    ds = dataset(np.zeros((4, 4), np.uint16), 12)
    for name, value in elements.items():
        setattr(ds, name, value)
    file.write_bytes(written(ds))
    found = dicom_headers.read(str(file))
    assert found is not None
    return found


def coded(value: str, meaning: str = "") -> Any:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SRT", meaning
    return Sequence([item])


@pytest.mark.parametrize(
    ("elements", "view"),
    [
        ({}, ""),
        ({"ViewPosition": "PA"}, "PA"),
        ({"ViewPosition": "LL"}, "LATERAL"),
        ({"ViewPosition": "RL"}, "LATERAL"),
        ({"ViewPosition": "LATERAL"}, "LATERAL"),
        ({"ViewPosition": "LLD"}, "LLD"),  # a decubitus is a view of its own
        ({"ViewCodeSequence": coded("R-10206")}, "AP"),
        ({"ViewCodeSequence": coded("399173006")}, "LATERAL"),
        ({"ViewCodeSequence": coded("99", "postero-anterior")}, "PA"),
        ({"ViewCodeSequence": coded("99", "left anterior oblique")}, ""),
        ({"PatientOrientation": ["A", "F"]}, "LATERAL"),
        ({"PatientOrientation": ["L", "F"]}, ""),
        ({"SeriesDescription": "Thorax seitlich"}, "LATERAL"),
        ({"SeriesDescription": "W033 Chest AP portable"}, "AP"),
        ({"SeriesDescription": "Chest PA/LAT"}, ""),
        ({"ViewPosition": "PA", "SeriesDescription": "Thorax lat"}, "PA"),
        ({"ProtocolName": "THORAX LAT."}, "LATERAL"),
    ],
)
def test_views_of_headers(tmp_path: pathlib.Path, elements: dict[str, Any], view: str) -> None:
    assert header(tmp_path, **elements).view == view


def test_ids_of_headers(tmp_path: pathlib.Path) -> None:
    found = header(
        tmp_path, AccessionNumber=" 0042", StudyInstanceUID="1.2.3", PatientID="p ", PatientSex="F", PatientAge="045Y",
        ImageLaterality="U",
    )  # fmt: skip
    assert (found.accession, found.study, found.patient, found.sex) == ("0042", "1.2.3", "p", "F")
    assert (found.age, found.laterality, found.is_image) == ("045Y", "U", True)
    assert header(tmp_path, PatientAge="000Y").age == "", "what de-identification leaves"


def test_damaged_and_deflated_headers(tmp_path: pathlib.Path) -> None:
    data = written(dataset(np.zeros((4, 4), np.uint16), 12, ViewPosition="PA"))
    start = 144 + int.from_bytes(data[140:144], "little")
    syntax = b"1.2.840.10008.1.2.1\0"
    pressed = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = pressed.compress(data[start:]) + pressed.flush()
    meta = data[:start].replace(syntax, b"1.2.840.10008.1.2.1.99")
    meta = meta.replace(b"UI\x14\x001.2.840.10008.1.2.1.99", b"UI\x16\x001.2.840.10008.1.2.1.99")
    meta = meta[:140] + (len(meta) - 144).to_bytes(4, "little") + meta[144:]
    (tmp_path / "deflated.dcm").write_bytes(meta + body)
    found = dicom_headers.read(str(tmp_path / "deflated.dcm"))
    assert found is not None
    assert found.view == "PA"
    for cut in (0, 100, 132, 150, 200):
        (tmp_path / f"{cut}.dcm").write_bytes(data[:cut])
        dicom_headers.read(str(tmp_path / f"{cut}.dcm"))
    assert dicom_headers.read(str(tmp_path / "nowhere.dcm")) is None


@pytest.mark.parametrize(
    ("cell", "view"),
    [("a.p.", "AP"), ("Thorax p.a. stehend", "PA"), ("seitl.", "LATERAL"), ("L", "LATERAL"), ("AP axial", "AP axial"),
     ("de profil", "LATERAL"), ("pa/lat", "pa/lat"), ("LAO", "LAO"), ("antero-posterior", "AP"), ("", "")],
)  # fmt: skip
def test_words_for_views(cell: str, view: str) -> None:
    assert views.view_of(cell) == view


# Builds


def build(folder: pathlib.Path, text: str, **options: Any) -> dict[str, Example]:
    (folder / "t.csv").write_text(text)
    given: dict[str, Any] = {
        "table": str(folder / "t.csv"),
        "images": str(folder / "images"),
        "name": "mine",
        "workers": 1,
    } | options
    path = build_table(TableOptions(**given), folder / "out", overwrite=True).path
    return {e.id: e for split in SPLITS for part in PARTS for e in records.open_records(path, split, part)}


def test_headers_fill_what_the_table_leaves_open(tmp_path: pathlib.Path) -> None:
    elements = {"PatientSex": "F", "PatientAge": "045Y", "StudyInstanceUID": "1.9", "ViewPosition": "PA"}
    elements["ImageLaterality"] = "L"
    for n in range(3):
        hospital.film(tmp_path / "images" / f"{n}.dcm", n, **elements)
    found = build(tmp_path, "image,patient,report\n0.dcm,a,Clear.\n1.dcm,b,Clear.\n2.dcm,c,Clear.\n")
    assert {(e.sex, e.age, e.study, e.view) for e in found.values()} == {("F", 45.0, "1.9", "PA")}
    assert {e.laterality for e in found.values()} == {"L"}
    text = "image,patient,report,sex,age,view,study\n0.dcm,a,x,M,30,AP,s\n1.dcm,b,x,M,,,s\n2.dcm,c,x,,31,pa,\n"
    found = build(tmp_path, text)
    assert (found["0.dcm"].sex, found["0.dcm"].age, found["0.dcm"].view, found["0.dcm"].study) == ("M", 30.0, "AP", "s")
    assert found["0.dcm"].laterality == "L"  # no column tells it
    assert (found["1.dcm"].sex, found["1.dcm"].age, found["1.dcm"].view) == ("M", 45.0, "PA")
    assert (found["2.dcm"].sex, found["2.dcm"].age, found["2.dcm"].study) == ("F", 31.0, "1.9")


def test_cells_that_cannot_be_read_cost_no_row(tmp_path: pathlib.Path) -> None:
    for n in range(3):
        hospital.film(tmp_path / "images" / f"{n}.dcm", n)
    text = "image,patient,report,sex,age,view\n0.dcm,a,x,Klingon,old,whatever\n1.dcm,b,x,F,5,pa\n2.dcm,c,x,0,6,ap\n"
    found = build(tmp_path, text)
    assert [(e.sex, e.view) for _, e in sorted(found.items())] == [("", "whatever"), ("F", "PA"), ("", "AP")]
    listed = (tmp_path / "out" / "mine" / "1.0.0" / "rejects.csv").read_text()
    assert listed.count("sex left out") == 2
    assert listed.count("age left out") == 1
    assert build(tmp_path, text, sex_map="Klingon=M,0=F")["2.dcm"].sex == "F"


def test_laterals_are_left_out_as_everywhere(tmp_path: pathlib.Path) -> None:
    hospital.film(tmp_path / "images" / "0.dcm", 0, ViewPosition="LL")
    hospital.film(tmp_path / "images" / "1.dcm", 1, ViewPosition="AP")
    text = "image,patient,report\n0.dcm,a,Clear.\n1.dcm,b,Clear.\n"
    assert build(tmp_path, text).keys() == {"1.dcm"}
    assert build(tmp_path, text, views="all").keys() == {"0.dcm", "1.dcm"}
    assert build(tmp_path, text, views="lateral").keys() == {"0.dcm"}


def test_faults_of_views_that_are_left_out_do_not_count(tmp_path: pathlib.Path) -> None:
    """The lateral of a study often has no report of its own."""
    for n, view in enumerate(("PA", "LL", "PA")):
        hospital.film(tmp_path / "images" / f"{n}.dcm", n, ViewPosition=view)
    text = "image,patient,report,view\n0.dcm,a,Clear.,pa\n1.dcm,a,,\n2.dcm,a,,seitlich\n"
    assert build(tmp_path, text).keys() == {"0.dcm"}
    with pytest.raises(UserError, match=r"2 of 3 rows cannot be used.*no report"):
        build(tmp_path, text, views="all")


def test_all_faults_of_a_row_are_found_at_once(tmp_path: pathlib.Path) -> None:
    hospital.film(tmp_path / "images" / "0.dcm", 0)
    text = "image,patient,labels,split\nnone.png,,Sniffles,holdout\n0.dcm,a,Edema,train\nno.png,b,Edema,train\n"
    with pytest.raises(UserError) as raised:
        build(tmp_path, text)
    said = str(raised.value)
    for fault in ("no such image file", "no patient is named", "unknown label 'Sniffles'", "split 'holdout'"):
        assert fault in said
    assert "2 x there is no such image file" in said
    assert "--labels-column -" in said


def test_headers_that_name_another_patient_are_told(tmp_path: pathlib.Path) -> None:
    for n in range(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        ds = dataset(np.arange(16, dtype=np.uint16).reshape(4, 4), 12, PatientID=f"0{n}" if n < 3 else "9")
        (tmp_path / "images" / f"{n}.dcm").write_bytes(written(ds))
    text = "image,patient,report\n" + "".join(f"{n}.dcm,{n},Clear.\n" for n in range(4))
    build(tmp_path, text)
    facts = records.dataset_facts(tmp_path / "out" / "mine" / "1.0.0")
    note = "1 images whose DICOM header names another patient than the table (the first: row 5)"
    assert note in facts["tables"][0]["notes"]
    build(tmp_path, text.replace(",0,", ",p0,").replace(",1,", ",p1,").replace(",2,", ",p2,"))
    facts = records.dataset_facts(tmp_path / "out" / "mine" / "1.0.0")
    assert "another patient" not in str(facts["tables"][0]["notes"]), "pseudonyms differ everywhere"


def test_one_accession_number_of_two_patients_is_refused(tmp_path: pathlib.Path) -> None:
    for n, patient in enumerate(("a", "b", "c", "c")):
        ds = dataset(np.arange(16, dtype=np.uint16).reshape(4, 4), 12, PatientID=patient, AccessionNumber=f"A{n // 2}")
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.{n}"
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{n}.dcm").write_bytes(written(ds))
    images = TableImages(tmp_path / "images", "accession")
    assert len(images.find("A1")) == 2
    with pytest.raises(BadRow, match="of several patients"):
        images.find("A0")
    with pytest.raises(BadRow, match="no DICOM file below the image folder has this accession number"):
        images.find("A7")
