"""The builders of data sets with reports, and COVIDx. Of MIMIC-CXR and COVIDx: invented, as published."""

import csv
import gzip
import io
import pathlib
import re
import tarfile
from typing import Any
from xml.etree import ElementTree

import pytest
from workbench import bench, picture

from mmclip_jax.data.builders import files
from mmclip_jax.data.builders.collection import split_of_patient
from mmclip_jax.data.schema import LabelState
from mmclip_jax.errors import UserError

FIXTURES = (bench,)

P, A, U = LabelState.PRESENT, LabelState.ABSENT, LabelState.UNCERTAIN


# MIMIC-CXR


def mimic(bench: Any, sectioned: bool) -> None:
    images = [("d1", "10000032", "50414267", "PA", "train"), ("d2", "10000032", "50414267", "LATERAL", "train"),
              ("d3", "10000764", "57375967", "AP", "validate"), ("d4", "19999987", "58621812", "AP", "test"),
              ("d5", "19999987", "58621813", "", "test")]  # fmt: skip
    bench.write(
        "mimic-cxr-2.0.0-metadata.csv.gz",
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate\n"
        + "".join(f"{d},{p},{s},CHEST (PA AND LAT),{v},37,53,21800506\n" for d, p, s, v, _ in images),
    )
    bench.write(
        "mimic-cxr-2.0.0-split.csv.gz",
        "dicom_id,study_id,subject_id,split\n" + "".join(f"{d},{s},{p},{split}\n" for d, p, s, _, split in images),
    )
    for labeller, edema in (("chexpert", "-1.0"), ("negbio", "1.0")):
        bench.write(
            f"mimic-cxr-2.0.0-{labeller}.csv.gz",
            "subject_id,study_id,Atelectasis,Edema,No Finding\n10000032,50414267,,,1.0\n"
            f"10000764,57375967,0.0,{edema},\n",
        )
    for number, (d, p, s, _, _) in enumerate(images):
        picture(bench.raw / "files" / f"p{p[:2]}" / f"p{p}" / f"s{s}" / f"{d}.jpg", number)
    texts = {"50414267": ("10000032", "Lungs are clear.", "No edema."), "57375967": ("10000764", "", "Edema."),
             "58621812": ("19999987", "", "")}  # fmt: skip
    if sectioned:
        stream = io.StringIO()
        writer = csv.writer(stream)
        writer.writerow(["study", "impression", "findings", "last_paragraph", "comparison"])
        writer.writerows(
            [f"s{study}", impression, findings, "", ""] for study, (_, findings, impression) in texts.items()
        )
        bench.write("mimic_cxr_sectioned.csv", stream.getvalue())
    else:
        for study, (p, findings, impression) in texts.items():
            body = "FINAL REPORT\n" + (f" FINDINGS: {findings}\n" if findings else "") + f" IMPRESSION: {impression}\n"
            bench.write(f"mimic-cxr-reports/files/p{p[:2]}/p{p}/s{study}.txt", body)


def test_mimic_tables_that_a_program_saved_with_floats(bench: Any) -> None:
    """Labels, splits and reports are joined by ids: 50414267.0 is 50414267, or the labels would be lost unseen."""
    mimic(bench, sectioned=True)
    before, _ = bench.build("mimic_cxr")
    for name in ("metadata", "split", "chexpert"):
        file = bench.raw / f"mimic-cxr-2.0.0-{name}.csv.gz"
        text = re.sub(r"(?<=,|\n)([15]\d{7})(?=,)", r"\1.0", gzip.decompress(file.read_bytes()).decode())
        assert "50414267.0" in text
        file.write_bytes(gzip.compress(text.encode()))
    after, _ = bench.build("mimic_cxr")
    assert {id: (e.patient, e.study, e.split, e.labels, e.text) for id, e in after.items()} == {
        id: (e.patient, e.study, e.split, e.labels, e.text) for id, e in before.items()
    }
    assert any(e.labels for e in after.values())


@pytest.mark.parametrize("sectioned", [True, False])
def test_mimic_cxr(bench: Any, sectioned: bool) -> None:
    mimic(bench, sectioned)
    examples, facts = bench.build("mimic_cxr")
    assert facts["left_out_on_purpose"] == {
        "view LATERAL": 1, "view UNKNOWN": 1, "the report has neither findings nor impression": 1,
    }  # fmt: skip
    assert {id: example.split for id, example in examples.items()} == {"d1": "train", "d3": "validation"}
    first, third = examples["d1"], examples["d3"]
    assert (first.findings, first.impression, first.part) == ("Lungs are clear.", "No edema.", "paired")
    assert [(e.text, e.negated) for e in first.entities if e.kind == "edema"] == [("edema", True)]
    assert (first.patient, first.study, first.labels) == ("10000032", "50414267", {"no_finding": P})
    assert third.labels == {"atelectasis": A, "edema": U}
    negbio, _ = bench.build("mimic_cxr", labels="negbio")
    assert negbio["d3"].labels == {"atelectasis": A, "edema": P}


MIMIC_REPORTS = {
    "50414267": """                                 FINAL REPORT
 PA AND LATERAL CHEST RADIOGRAPH:

 INDICATION:  ___-year-old woman with known pneumonia.

 FINDINGS:

 No pneumothorax
 Moderate cardiomegaly and a small
 effusion

 RECOMMENDATION(S):  CT to exclude a mass.

 IMPRESSION:

 1.  Small effusion.
 2.  no edema
""",
    "57375967": """                                 FINAL REPORT
 REASON FOR EXAMINATION:  Evaluation of the patient after extubation.

 Portable AP radiograph of the chest was reviewed.

 There is a large right pneumothorax.  The heart
 is enlarged.
""",
    "58621812": """                                 FINAL REPORT
 CHEST, TWO VIEWS:  There is an
 old fracture.

 CONCLUSION:  No change.
""",
}
# The same reports as the official scripts cut them: study, impression, findings, last_paragraph, comparison.
MIMIC_SECTIONED = [
    ["s50414267", "1.  Small effusion.\n 2.  no edema",
     "No pneumothorax\n Moderate cardiomegaly and a small\n effusion", "", ""],
    ["s57375967", "", "",
     "Portable AP radiograph of the chest was reviewed.\n \n There is a large right pneumothorax.  "
     "The heart\n is enlarged.",
     ""],
    ["s58621812", "No change.", "There is an\n old fracture.", "", ""],
]  # fmt: skip


def test_mimic_cxr_gives_the_same_texts_from_both_sources(bench: Any) -> None:
    found, told = {}, {}
    for sectioned in (False, True):
        mimic(bench, sectioned)
        patients = ("10000032", "10000764", "19999987")
        for p, (study, text) in zip(patients, MIMIC_REPORTS.items(), strict=True):
            bench.write(f"mimic-cxr-reports/files/p{p[:2]}/p{p}/s{study}.txt", text.replace("\n\n", "\n \n"))
        if sectioned:
            stream = io.StringIO()
            csv.writer(stream).writerows(
                [["study", "impression", "findings", "last_paragraph", "comparison"], *MIMIC_SECTIONED]
            )
            bench.write("mimic_cxr_sectioned.csv", stream.getvalue())
        examples, facts = bench.build("mimic_cxr")
        found[sectioned] = {e.study: (e.findings, e.impression, e.entities) for e in examples.values()}
        told[sectioned] = facts
    assert found[False] == found[True]
    assert {study: texts[:2] for study, texts in found[True].items()} == {
        "50414267": (
            "No pneumothorax\nModerate cardiomegaly and a small effusion", "1. Small effusion.\n2. no edema",
        ),
        "57375967": ("Portable AP radiograph of the chest was reviewed. There is a large right pneumothorax. "
                     "The heart is enlarged.", ""),
        "58621812": ("There is an old fracture.", "No change."),
    }  # fmt: skip
    assert told[False]["sections_left_out"] == {"(before the first heading)": 3, "INDICATION": 2, "RECOMMENDATIONS": 1}
    assert told[False]["reports"] == {"cut into sections": 3}
    assert told[True]["reports"] == {"whole": 3}
    denied = {entity.text for entity in found[True]["50414267"][2] if entity.negated}
    assert denied == {"pneumothorax", "edema"}


def test_mimic_cxr_without_something(bench: Any) -> None:
    mimic(bench, True)
    (bench.raw / "mimic_cxr_sectioned.csv").unlink()
    with pytest.raises(UserError, match=r"has no reports, neither mimic_cxr_sectioned\.csv"):
        bench.build("mimic_cxr")
    mimic(bench, False)
    (bench.raw / "files/p10/p10000764/s57375967/d3.jpg").unlink()
    with pytest.raises(UserError, match=r"metadata.csv.gz row 4: there is no such image file"):
        bench.build("mimic_cxr")
    (bench.raw / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    with pytest.raises(UserError, match=r"no mimic-cxr-2.0.0-split.csv.gz .* physionet.org"):
        bench.build("mimic_cxr")


# Open-I


def unpack_openi(bench: Any, wheel_dir: pathlib.Path) -> dict[str, bytes]:
    with tarfile.open(wheel_dir / "NLMCXR_reports.tgz") as archive:
        return {
            pathlib.Path(member.name).name: archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in archive.getmembers() if member.name.endswith(".xml")
        }  # fmt: skip


@pytest.mark.wheel
@pytest.mark.slow
def test_openi_all_reports(bench: Any, wheel_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.FileIndex, "find", lambda self, *wanted: wanted[0])
    reports = unpack_openi(bench, wheel_dir)
    for name, data in reports.items():
        (bench.raw / name).write_bytes(data)
    builder = bench.builder("openi", views="all")
    items = builder.items
    assert builder.rows == len(reports) == 3_955
    assert len({item.study for item in items}) == 3_826, "reports that have both an image and text"
    # These have a heading or HTML inside of a section; the texts of all others are as they were, but for line ends.
    changed = {"146", "1329", "2192", "2415", "3368", "3886"}
    expected = {}
    for data in reports.values():
        root = ElementTree.fromstring(data)
        texts = {str(e.get("Label")): "".join(e.itertext()).strip() for e in root.iter("AbstractText")}
        uid = root.find("uId")
        assert uid is not None
        expected[uid.attrib["id"].removeprefix("CXR")] = (texts.get("FINDINGS", ""), texts.get("IMPRESSION", ""), root)
    for item in items:
        findings, impression, root = expected[item.study]
        if item.study not in changed:
            assert (item.findings.split(), item.impression.split()) == (findings.split(), impression.split())
        majors = {str(e.text).strip() for e in root.findall("MeSH/major")}
        assert (item.labels.get("no_finding") == P) == (majors == {"normal"})


def test_openi_of_nlm_and_of_kaggle_agree(bench: Any, tmp_path: pathlib.Path) -> None:
    xml = """<eCitation><uId id="CXR{n}"/><MedlineCitation><Article><Abstract>
      <AbstractText Label="COMPARISON">None.</AbstractText><AbstractText Label="INDICATION">Cough</AbstractText>
      <AbstractText Label="FINDINGS">{findings}</AbstractText>
      <AbstractText Label="IMPRESSION">{impression}</AbstractText>
      </Abstract></Article></MedlineCitation><MeSH><major>{mesh}</major></MeSH>{images}</eCitation>"""
    studies = [
        (1, "The XXXX is clear.", "Normal chest.", "normal", ["1_IM-0001-4001", "1_IM-0001-3001"]),
        (2, "Heart is large.", "", "Cardiomegaly/mild", ["IM-0652-1001"]),
        (3, "", "", "No Indexing", ["IM-0700-1001"]),
        (4, "Clear.", "", "normal", []),
    ]
    rows, projections = (
        ["uid,MeSH,Problems,image,indication,comparison,findings,impression"],
        ["uid,filename,projection"],
    )
    for n, findings, impression, mesh, images in studies:
        parents = "".join(f'<parentImage id="CXR{n}_{name}"/>' for name in images)
        bench.write(
            f"ecgen-radiology/{n}.xml",
            xml.format(n=n, findings=findings, impression=impression, mesh=mesh, images=parents),
        )
        rows.append(f"{n},{mesh},,,Cough,None.,{findings},{impression}")
        for name in images:
            picture(bench.raw / "NLMCXR_png" / f"CXR{n}_{name}.png", n)
            projections.append(
                f"{n},{n}_{name.removeprefix('1_')}.dcm.png,{'Lateral' if '4001' in name else 'Frontal'}"
            )
    with pytest.raises(UserError, match=r"indiana_projections.csv, which alone tells .* --views all"):
        bench.build("openi")
    bench.write("indiana_projections.csv", "\n".join(projections) + "\n")
    nlm, facts = bench.build("openi")
    assert facts["left_out_on_purpose"] == {
        "the report has neither findings nor impression": 1, "the report has no image": 1, "view LATERAL": 1,
    }  # fmt: skip
    assert facts["reports"] == {"whole": 3}
    assert facts["sections_left_out"] == {"COMPARISON": 3, "INDICATION": 3}
    assert set(nlm) == {"CXR1_1_IM-0001-3001.png", "CXR2_IM-0652-1001.png"}
    bench.raw = tmp_path / "kaggle"
    bench.write("indiana_projections.csv", "\n".join(projections) + "\n")
    bench.write("indiana_reports.csv", "\n".join(rows) + "\n")
    for line in projections[1:]:
        uid, name, _ = line.split(",")
        picture(bench.raw / "images" / "images_normalized" / name, int(uid))
    kaggle, _ = bench.build("openi")
    fields = ("study", "split", "findings", "impression", "labels", "view", "pixels_sha256")

    def told(examples: Any) -> list[tuple[Any, ...]]:
        return sorted(tuple(str(getattr(example, field)) for field in fields) for example in examples.values())

    assert told(nlm) == told(kaggle)
    assert nlm["CXR2_IM-0652-1001.png"].labels == {"cardiomegaly": P}
    assert nlm["CXR2_IM-0652-1001.png"].split == split_of_patient("2", (0.8, 0.1, 0.1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<a><b></a>", "not valid XML"),
        ("", "not valid XML"),
        ("<eCitation/>", "no number"),
        ('<!DOCTYPE x [<!ENTITY a "b"><!ENTITY c "&a;&a;">]><eCitation>&c;</eCitation>', "declares a document type"),
        ("<eCitation>" + "x" * 1_000_000 + "</eCitation>", "more than 1000000"),
    ],
)
def test_openi_damaged_reports_are_listed(bench: Any, text: str, message: str) -> None:
    bench.write("1.xml", text)
    with pytest.raises(UserError, match=rf"1 of 1 rows .* 1.xml row 1: .*{message}"):
        bench.build("openi", views="all")


# COVIDx


def test_covidx(bench: Any) -> None:
    bench.write(
        "train_COVIDx9B.txt",
        "1 a.png positive cohen\n1 b c.png negative rsna\n2 d.png negative rsna\n3 e.png positive sirm\n",
    )
    bench.write("test_COVIDx9B.txt", "2 t.png negative rsna\n")
    for number, name in enumerate(("train/a.png", "train/b c.png", "train/d.png", "train/e.png", "test/t.png")):
        picture(bench.raw / name, number)
    examples, facts = bench.build("covidx")
    assert facts["left_out_on_purpose"] == {"in train, of a patient who is in test too": 1}
    assert set(examples) == {"train/a.png", "train/b c.png", "train/e.png", "test/t.png"}
    assert examples["train/a.png"].patient != examples["train/b c.png"].patient, "numbers are those of a source"
    assert examples["train/a.png"].labels == {"covid_19": P}
    for id in ("train/a.png", "train/e.png"):
        assert examples[id].split == split_of_patient(examples[id].patient, (0.9, 0.1, 0))
    other, facts = bench.build("covidx", shared_patients="out-of-test")
    assert "train/d.png" in other
    assert "test/t.png" not in other
    bench.write("train_COVIDx9A.txt", "1 a.png normal cohen\n")
    with pytest.raises(UserError, match=r"several lists .* --version"):
        bench.build("covidx")
    bench.write("test_COVIDx9A.txt", "2 t.png pneumonia rsna\n")
    bench.write("val_COVIDx9A.txt", "")
    three, _ = bench.build("covidx", version="9A")
    assert three["train/a.png"].labels == {"no_finding": P, "pneumonia": A, "covid_19": A}
    assert three["train/a.png"].split == "train"
    assert three["test/t.png"].labels == {"pneumonia": P, "covid_19": A, "no_finding": A}


@pytest.mark.parametrize("line", ["1 a.png positive", "1 a.png maybe cohen", "x"])
def test_covidx_bad_lines(bench: Any, line: str) -> None:
    bench.write("train.txt", line + "\n")
    bench.write("test.txt", "")
    with pytest.raises(UserError, match=r"train.txt row 1: the line is not: patient, file name, class, source"):
        bench.build("covidx")
