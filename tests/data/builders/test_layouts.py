"""Every published set laid out as its download page shows it, and what stands beside the files on real disks."""

import gzip
import io
import json
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from dicoms import dicom_file
from PIL import Image
from workbench import Bench, bench, drawing, picture

from mmclip_jax.data.builders import registry
from mmclip_jax.data.schema import LabelState
from mmclip_jax.errors import UserError

FIXTURES = (bench,)

P, A, U = LabelState.PRESENT, LabelState.ABSENT, LabelState.UNCERTAIN
PADCHEST = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
NIH_HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"
CHEXPERT_HEADER = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Lung Opacity,Edema,Support Devices\n"
RSNA_HEADER = "patientId,x,y,width,height,Target\n"
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"


def png(seed: int, height: int = 37, width: int = 53) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(drawing(seed, height, width)).save(stream, "PNG")
    return stream.getvalue()


def dicom(seed: int, **elements: Any) -> bytes:
    return dicom_file(drawing(seed, 64, 64), 8, **elements)


def zipped(file: pathlib.Path, members: Mapping[str, str | bytes]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def put(bench: Bench, name: str, data: bytes) -> None:
    file = bench.raw / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


# ---------------------------------------------------------------------------------------------------------------------
# The downloads


def nih_box(bench: Bench) -> set[str]:
    rows = "00000001_000.png,Cardiomegaly|Emphysema,0,1,57,M,PA\n00000002_000.png,No Finding,0,2,80,F,AP\n"
    bench.write("Data_Entry_2017_v2020.csv", NIH_HEADER + rows)
    bench.write("BBox_List_2017.csv", "Image Index,Finding Label,Bbox [x,y,w,h],,,\n00000001_000.png,Mass,1,2,3,4,,,\n")
    bench.write("train_val_list.txt", "00000001_000.png\r\n")
    bench.write("test_list.txt", "00000002_000.png\r\n")
    put(bench, "README_CHESTXRAY.pdf", b"%PDF")
    for n in (1, 2):
        picture(bench.raw / "images" / f"0000000{n}_000.png", n, 64, 64)
    return {"00000001_000.png", "00000002_000.png"}


def nih_kaggle(bench: Bench) -> set[str]:
    rows = (
        "00000001_000.png,Cardiomegaly|Emphysema,000,00001,058Y,M,PA\n00000002_000.png,No Finding,000,00002,081Y,F,PA\n"
    )
    bench.write("Data_Entry_2017.csv", NIH_HEADER + rows)
    for n in (1, 2):
        picture(bench.raw / f"images_00{n}" / "images" / f"0000000{n}_000.png", n, 64, 64)
    return {"00000001_000.png", "00000002_000.png"}


def chexpert_small(bench: Bench) -> set[str]:
    at = "CheXpert-v1.0-small"
    bench.write(
        f"{at}/train.csv",
        CHEXPERT_HEADER + f"{at}/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,1.0\n",
    )
    bench.write(
        f"{at}/valid.csv",
        CHEXPERT_HEADER + f"{at}/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,0.0,1.0,0.0,0.0\n",
    )
    for n, name in enumerate(("train/patient00001", "valid/patient64541")):
        picture(bench.raw / at / name / "study1" / "view1_frontal.jpg", n)
    return {f"{name}/study1/view1_frontal.jpg" for name in ("train/patient00001", "valid/patient64541")}


def chexpert_full(bench: Bench) -> set[str]:
    first = "CheXpert-v1.0 batch 1 (validate & csv)"
    at = "CheXpert-v1.0"
    rows = [f"{at}/train/patient0000{n}/study1/view1_frontal.jpg,Male,6{n},Frontal,PA,,1.0,-1.0," for n in (1, 2, 3)]
    bench.write(f"{first}/train.csv", CHEXPERT_HEADER + "\n".join(rows) + "\n")
    row = f"{at}/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,0.0,1.0,0.0,0.0\n"
    bench.write(f"{first}/valid.csv", CHEXPERT_HEADER + row)
    bench.write("train_cheXbert.csv", CHEXPERT_HEADER + "\n".join(rows) + "\n")
    bench.write("README.md", "CheXpert")
    for n in (1, 2):
        batch = f"CheXpert-v1.0 batch {n + 1} (train {n})"
        picture(bench.raw / batch / f"patient0000{n}/study1/view1_frontal.jpg", n)
    stream = io.BytesIO()
    Image.fromarray(drawing(3)).save(stream, "JPEG")
    last = "CheXpert-v1.0 batch 4 (train 3)"
    zipped(bench.raw / f"{last}.zip", {f"{last}/patient00003/study1/view1_frontal.jpg": stream.getvalue()})
    picture(bench.raw / first / "valid/patient64541/study1/view1_frontal.jpg", 99)
    return {f"train/patient0000{n}/study1/view1_frontal.jpg" for n in (1, 2, 3)} | {
        "valid/patient64541/study1/view1_frontal.jpg"
    }


def chexlocalize(bench: Bench) -> set[str]:
    header = "Path,No Finding,Lung Opacity,Edema,Support Devices\n"
    for part, patient, prefix in (("val", "patient64541", "CheXpert-v1.0/"), ("test", "patient64741", "")):
        path = f"{part}/{patient}/study1/view1_frontal.jpg"
        bench.write(f"CheXpert/{part}_labels.csv", f"{header}{prefix}{path},0,1,0,0\n")
        picture(bench.raw / "CheXpert" / path, len(part))
    bench.write("CheXlocalize/gt_segmentations_val.json", "{}")
    return {f"{name}/study1/view1_frontal.jpg" for name in ("valid/patient64541", "test/patient64741")}


def padchest(bench: Bench) -> set[str]:
    header = "ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,Projection,MethodLabel,"
    names = [f"{n}0536686640136348236148679891455886468_k6ga2{n}.png" for n in (1, 2)]
    rows = [
        f"{name},{n},20140915,{n}0536686640136348236148679891455886468,83986048869429233163798823568146098{n},1930.0,F,PA,"
        f"Physician,\"['pneumothorax']\",PhilipsMedicalSystems\n"
        for n, name in enumerate(names)
    ]
    bench.write(f"{PADCHEST}.gz", f"{header}Labels,Manufacturer_DICOM\n" + "".join(rows))
    for n, name in enumerate(names):
        zipped(bench.raw / f"{n}.zip", {name: png(n)})
    return set(names)


def openi_nlm(bench: Bench) -> set[str]:
    openi_reports(bench)
    bench.write("indiana_projections.csv", "uid,filename,projection\n1,1_IM-0001-4001.dcm.png,Frontal\n")
    picture(bench.raw / "NLMCXR_png" / "CXR1_1_IM-0001-4001.png", 1)
    return {"CXR1_1_IM-0001-4001.png"}


def openi_dicom(bench: Bench) -> set[str]:
    openi_reports(bench)
    bench.write("indiana_projections.csv", "uid,filename,projection\n1,1_IM-0001-4001.dcm.png,Frontal\n")
    put(bench, "NLMCXR_dcm/1/1_IM-0001-4001.dcm", dicom(1))
    return {"CXR1_1_IM-0001-4001.png"}


def openi_reports(bench: Bench) -> None:
    bench.write(
        "ecgen-radiology/1.xml",
        '<eCitation><uId id="CXR1"/><AbstractText Label="FINDINGS">Lungs are clear.</AbstractText><MeSH><major>normal'
        '</major></MeSH><parentImage id="CXR1_1_IM-0001-4001"/></eCitation>',
    )


def openi_kaggle(bench: Bench) -> set[str]:
    bench.write("indiana_projections.csv", "uid,filename,projection\n1,1_IM-0001-4001.dcm.png,Frontal\n")
    bench.write("indiana_reports.csv", "uid,MeSH,Problems,findings,impression\n1,normal,normal,Lungs are clear.,\n")
    picture(bench.raw / "images" / "images_normalized" / "1_IM-0001-4001.dcm.png", 1)
    return {"1_IM-0001-4001.dcm.png"}


def rsna_kaggle(bench: Bench) -> set[str]:
    bench.write("stage_2_train_labels.csv", RSNA_HEADER + "a-1,,,,,0\nb-2,264.0,152.0,213.0,379.0,1\n")
    bench.write("stage_2_detailed_class_info.csv", "patientId,class\na-1,Normal\nb-2,Lung Opacity\n")
    bench.write(MAPPING, json.dumps([mapped("a-1", "00000001_000.png"), mapped("b-2", "00000002_001.png")]))
    for n, name in enumerate(("a-1", "b-2")):
        put(bench, f"stage_2_train_images/{name}.dcm", dicom(n))
    put(bench, "stage_2_test_images/c-3.dcm", dicom(9))
    return {"a-1", "b-2"}


def rsna_zipped(bench: Bench) -> set[str]:
    table = RSNA_HEADER + "a-1,,,,,0\nb-2,264.0,152.0,213.0,379.0,1\n"
    zipped(bench.raw / "stage_2_train_labels.csv.zip", {"stage_2_train_labels.csv": table})
    classes = "patientId,class\na-1,Normal\nb-2,Lung Opacity\n"
    zipped(
        bench.raw / "stage_2_detailed_class_info.csv.zip",
        {"stage_2_detailed_class_info.csv": classes, "__MACOSX/._stage_2_detailed_class_info.csv": b"\0\5\x16\7"},
    )
    zipped(bench.raw / "stage_2_train_images.zip", {f"{name}.dcm": dicom(n) for n, name in enumerate(("a-1", "b-2"))})
    return {"a-1", "b-2"}


def rsna_whole_archive(bench: Bench) -> set[str]:
    zipped(
        bench.raw / "rsna-pneumonia-detection-challenge.zip",
        {
            "stage_2_train_labels.csv": RSNA_HEADER + "a-1,,,,,0\n",
            "stage_2_detailed_class_info.csv": "patientId,class\na-1,Normal\n",
            "stage_2_train_images/a-1.dcm": dicom(1),
        },
    )
    return {"a-1"}


def siim_table(ids: list[str]) -> str:
    return "ImageId, EncodedPixels\n" + "".join(f"{id}, {'-1' if n % 2 else '30740 40'}\n" for n, id in enumerate(ids))


def siim_healthcare(bench: Bench) -> set[str]:
    ids = [f"1.2.276.0.7230010.3.1.4.8323329.{n}.1517875163.94773{n}" for n in range(2)]
    bench.write("train-rle.csv", siim_table(ids))
    for n, id in enumerate(ids):
        put(bench, f"dicom-images-train/1.2.{n}/1.3.{n}/{id}.dcm", dicom(n))
    return set(ids)


def siim_stage_2(bench: Bench) -> set[str]:
    ids = [f"1.2.276.0.7230010.3.1.4.8323329.{n}.1517875163.94773{n}" for n in range(2)]
    bench.write("stage_2_train.csv", siim_table(ids).replace(", ", ","))
    for n, id in enumerate(ids):
        put(bench, f"stage_2_images/{id}.dcm", dicom(n))
    return set(ids)


def siim_png(bench: Bench) -> set[str]:
    ids = [f"1.2.276.0.7230010.3.1.4.8323329.{n}.1" for n in range(2)]
    bench.write("train-rle.csv", siim_table(ids))
    for n, id in enumerate(ids):
        picture(bench.raw / "train" / f"{id}.png", n, 128, 128)
        picture(bench.raw / "masks" / f"{id}.png", n + 50, 128, 128)
    return set(ids)


def covidx_2(bench: Bench) -> set[str]:
    bench.write(
        "train.txt",
        "419639-003251 MIDRC-RICORD-1C-419639-003251-46647-0.png positive ricord\n"
        "b32dc4d1 b32dc4d1.png negative rsna\n"
        "sub-S03047 sub-S03047_ses-E07985_run-1_bp-chest_vp-ap_dx.png positive bimcv\n",
    )
    bench.write("test.txt", "7 ARDSSevere.png negative cohen\n")
    names = [
        "train/MIDRC-RICORD-1C-419639-003251-46647-0.png", "train/b32dc4d1.png",
        "train/sub-S03047_ses-E07985_run-1_bp-chest_vp-ap_dx.png", "test/ARDSSevere.png",
    ]  # fmt: skip
    for n, name in enumerate(names):
        picture(bench.raw / name, n)
    return set(names)


def covidx_4(bench: Bench) -> set[str]:
    names = set()
    for n, part in enumerate(("train", "val", "test")):
        bench.write(f"{part}.txt", f"p{n} 1.png negative rsna\n")  # one name in each folder
        picture(bench.raw / part / "1.png", n)
        names.add(f"{part}/1.png")
    return names


def vindr_physionet(bench: Bench) -> set[str]:
    labels = "Cardiomegaly,Pleural effusion,Other diseases,No finding\n"
    bench.write("annotations/image_labels_train.csv", f"image_id,rad_id,{labels}a0,R1,1,0,0,0\na0,R2,1,0,0,0\n")
    bench.write(
        "annotations/annotations_train.csv",
        "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\na0,R1,Cardiomegaly,10,5,30,35\n",
    )
    bench.write("annotations/image_labels_test.csv", f"image_id,{labels}b0,0,1,0,0\n")
    bench.write(
        "annotations/annotations_test.csv",
        "image_id,class_name,x_min,y_min,x_max,y_max\nb0,Pleural effusion,0,0,32,32\n",
    )
    put(bench, "train/a0.dicom", dicom(1))
    put(bench, "test/b0.dicom", dicom(2))
    return {"a0", "b0"}


def vindr_kaggle(bench: Bench) -> set[str]:
    bench.write(
        "train.csv",
        "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\na0,No finding,14,R11,,,,\n"
        "b0,Cardiomegaly,3,R10,1,2,30,40\n",
    )
    bench.write("sample_submission.csv", "image_id,PredictionString\n")
    for n, name in enumerate(("train/a0", "train/b0", "test/c0")):
        put(bench, f"{name}.dicom", dicom(n))
    return {"a0", "b0"}


def mimic(bench: Bench) -> set[str]:
    metadata = "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns\n"
    splits, labels, images = "dicom_id,study_id,subject_id,split\n", "subject_id,study_id,Lung Opacity,Edema\n", []
    for n, split in enumerate(("train", "validate", "test", "test")):
        patient, study, image = f"1000003{n}", f"5041426{n}", f"02aa804e-bde0afdd-112c0b34-7bc16630-4e38401{n}"
        metadata += f"{image},{patient},{study},CHEST (PA AND LAT),PA,3056,2544\n"
        splits += f"{image},{study},{patient},{split}\n"
        labels += f"{patient},{study},1.0,\n"
        picture(bench.raw / f"files/p10/p{patient}/s{study}/{image}.jpg", n)
        bench.write(
            f"mimic-cxr-reports/files/p10/p{patient}/s{study}.txt",
            " FINAL REPORT\n FINDINGS: Lungs are clear.\n\n IMPRESSION: No pneumonia.\n",
        )
        images.append(image)
    bench.write("mimic-cxr-2.0.0-metadata.csv.gz", metadata)
    bench.write("mimic-cxr-2.0.0-split.csv.gz", splits)
    bench.write("mimic-cxr-2.0.0-chexpert.csv.gz", labels)
    bench.write("mimic-cxr-2.0.0-negbio.csv.gz", labels)
    bench.write(
        "mimic-cxr-2.1.0-test-set-labeled.csv", "study_id,Airspace Opacity,Edema,No Finding\n50414262.0,0.0,1.0,\n"
    )
    bench.write("IMAGE_FILENAMES", "")
    return set(images)


LAYOUTS: Mapping[tuple[str, str], Callable[[Bench], set[str]]] = {
    ("chestxray14", "Box"): nih_box,
    ("chestxray14", "Kaggle"): nih_kaggle,
    ("chexpert", "small"): chexpert_small,
    ("chexpert", "full"): chexpert_full,
    ("chexpert", "CheXlocalize"): chexlocalize,
    ("padchest", "zipped"): padchest,
    ("openi", "NLM PNG"): openi_nlm,
    ("openi", "NLM DICOM"): openi_dicom,
    ("openi", "Kaggle"): openi_kaggle,
    ("rsna", "Kaggle"): rsna_kaggle,
    ("rsna", "zipped"): rsna_zipped,
    ("rsna", "one archive"): rsna_whole_archive,
    ("siim", "Healthcare API"): siim_healthcare,
    ("siim", "stage 2"): siim_stage_2,
    ("siim", "PNG"): siim_png,
    ("covidx", "CXR-2"): covidx_2,
    ("covidx", "CXR-4"): covidx_4,
    ("vindr", "PhysioNet"): vindr_physionet,
    ("vindr", "Kaggle"): vindr_kaggle,
    ("mimic_cxr", "2.1.0"): mimic,
}


def test_every_builder_is_laid_out() -> None:
    assert {name for name, _ in LAYOUTS} == set(registry.COLLECTIONS)


COMPANIONS = {
    ".DS_Store": b"\0\0\0\1Bud1", "Thumbs.db": b"\xd0\xcf\x11\xe0", "desktop.ini": b"[.ShellClassInfo]",
}  # fmt: skip


def litter(folder: pathlib.Path) -> int:
    """Puts beside every file what macOS, Windows and viewers leave; returns how many files it put there."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    for parent in {file.parent for file in files}:
        for name, data in COMPANIONS.items():
            (parent / name).write_bytes(data)
        (parent / ".thumbnails").mkdir()
        (parent / "@eaDir").mkdir()
        (folder / "__MACOSX" / parent.relative_to(folder)).mkdir(parents=True, exist_ok=True)
    for file in files:
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
        (file.parent / ".thumbnails" / file.name).write_bytes(png(0, 20, 20))
        (file.parent / "@eaDir" / file.name).write_bytes(png(0, 20, 20))
        (folder / "__MACOSX" / file.relative_to(folder)).write_bytes(b"\0\5\x16\7")
    return 4 * len(files) + len(COMPANIONS) * len({file.parent for file in files})


@pytest.mark.parametrize(("name", "how"), LAYOUTS)
def test_a_download_is_built_as_it_comes(bench: Bench, name: str, how: str) -> None:
    expected = LAYOUTS[name, how](bench)
    examples, facts = bench.build(name)
    assert set(examples) == expected
    assert facts["rejects"] == 0
    assert len({example.pixels_sha256 for example in examples.values()}) == len(expected), "each its own image"
    count = litter(bench.raw)
    littered, facts = bench.build(name)
    assert repr(littered) == repr(examples)
    assert facts["rejects"] == 0
    if name != "mimic_cxr":  # whose images are found by their paths, without a search
        packed = 1 if how == "zipped" and name == "rsna" else 0
        assert facts["companions_passed_over"] == count + packed


@pytest.mark.parametrize(
    ("name", "how"), [key for key in LAYOUTS if key[0] not in ("mimic_cxr", "covidx") and key[1] != "one archive"]
)
def test_two_files_of_one_name_are_named(bench: Bench, name: str, how: str) -> None:
    LAYOUTS[name, how](bench)
    suffixes = (".png", ".jpg", ".dcm", ".dicom")
    images = [f for f in sorted(bench.raw.rglob("*")) if f.suffix in suffixes and "test" not in f.parts[-2]]
    images = [image for image in images if not {"masks", "stage_2_test_images"} & set(image.parts)]
    if images:
        tail = images[0].relative_to(bench.raw) if name == "chexpert" else images[0].name
        copy = bench.raw / "copy" / tail
        copy.parent.mkdir(parents=True)
        copy.write_bytes(images[0].read_bytes()[:-1] + b"\0")
    else:
        first = next(iter(sorted(bench.raw.glob("*.zip"), key=lambda f: "images" not in f.name)))
        with zipfile.ZipFile(first) as archive:
            copy = bench.raw / "copy" / archive.namelist()[0]
        copy.parent.mkdir()
        copy.write_bytes(b"another")
    with pytest.raises(UserError, match=rf"two files are named .*copy/.*{copy.name}"):
        bench.build(name)
    kept, facts = bench.build(name, on_bad="skip") if len(images) > 1 else ({}, {})
    assert facts.get("rejects", 1) == 1
    assert all(copy.name not in id or name == "chexpert" for id in kept)


def test_covidx_images_are_those_of_their_split(bench: Bench) -> None:
    covidx_4(bench)
    picture(bench.raw / "more" / "train" / "1.png", 8)
    with pytest.raises(UserError, match=r"two files are named 1.png: .*more/train/1.png"):
        bench.build("covidx")
    (bench.raw / "more" / "train" / "1.png").unlink()
    (bench.raw / "train" / "1.png").unlink()
    with pytest.raises(UserError, match=r"train.txt row 1: there is no such image file"):
        bench.build("covidx")


# ---------------------------------------------------------------------------------------------------------------------
# What the sets say


def mapped(image: str, nih: str) -> dict[str, Any]:
    uid = "1.2.276.0.7230010.3.1.2.8323329.1"
    return {
        "subset_img_id": image, "img_id": nih, "orig_labels": ["No Finding"],
        "StudyInstanceUID": uid, "SeriesInstanceUID": uid, "SOPInstanceUID": uid,
    }  # fmt: skip


def rsna_of_few_patients(bench: Bench, mapping: bool) -> None:
    """30 images of 10 patients, with what their headers say."""
    bench.write("stage_2_train_labels.csv", RSNA_HEADER + "".join(f"u{n:02d},,,,,0\n" for n in range(30)))
    if mapping:
        bench.write(MAPPING, json.dumps([mapped(f"u{n:02d}", f"{n // 3:08d}_{n % 3:03d}.png") for n in range(30)]))
    for n in range(30):
        header = {"PatientSex": "FM"[n % 2], "PatientAge": f"{40 + n}", "ViewPosition": "AP"}
        put(bench, f"stage_2_train_images/u{n:02d}.dcm", dicom(n, **header))


def test_rsna_patients_are_those_of_chestxray14(bench: Bench) -> None:
    rsna_of_few_patients(bench, mapping=True)
    examples, facts = bench.build("rsna")
    assert {id: example.patient for id, example in examples.items()} == {f"u{n:02d}": str(n // 3) for n in range(30)}
    splits = {(example.patient, example.split) for example in examples.values()}
    assert len(splits) == 10, "a patient is in one split"
    assert facts["patient_ids"] == {"of": "chestxray14", "mapped": 30, "not_mapped": 0}
    assert facts["notes"] == []
    assert (examples["u07"].sex, examples["u07"].age, examples["u07"].view) == ("M", 47, "AP")
    rows = "".join(f"{n // 3:08d}_{n % 3:03d}.png,No Finding,0,{n // 3},50,M,PA\n" for n in range(30))
    bench.raw = bench.folder / "nih"
    bench.write("Data_Entry_2017.csv", NIH_HEADER + rows)
    for n in range(30):
        picture(bench.raw / "images" / f"{n // 3:08d}_{n % 3:03d}.png", n, 64, 64)
    nih, _ = bench.build("chestxray14")
    assert {e.patient for e in nih.values()} == {e.patient for e in examples.values()}


def test_rsna_without_its_mapping_says_so(bench: Bench) -> None:
    rsna_of_few_patients(bench, mapping=False)
    examples, facts = bench.build("rsna")
    assert all(example.patient == id for id, example in examples.items())
    assert facts["patient_ids"] == {"of": "rsna", "mapped": 0, "not_mapped": 30}
    (note,) = facts["notes"]
    assert note.startswith("PATIENTS ARE UNKNOWN")
    assert MAPPING in note
    built = registry.Built(bench.folder, {**facts}, 0.0)
    assert "NOTE: PATIENTS ARE UNKNOWN" in str(built)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"subset_img_id": "a", "img_id": "x.png"}]', "[" * 100_000])
def test_rsna_mapping_that_is_none(bench: Bench, text: str) -> None:
    bench.write("stage_2_train_labels.csv", RSNA_HEADER + "a,,,,,0\n")
    put(bench, "a.dcm", dicom(1))
    bench.write(MAPPING, text)
    if text == "{}":
        assert bench.build("rsna")[1]["patient_ids"]["mapped"] == 0
        return
    with pytest.raises(UserError, match="download it again"):
        bench.build("rsna")


def test_mimic_test_labels_are_the_radiologists(bench: Bench) -> None:
    mimic(bench)
    examples, facts = bench.build("mimic_cxr")
    by_study = {example.study: example for example in examples.values()}
    assert by_study["50414262"].labels == {"lung_opacity": A, "edema": P}
    assert by_study["50414263"].labels == {}
    assert by_study["50414260"].labels == {"lung_opacity": P}
    assert facts["test_labels"]["labelled"] == facts["test_labels"]["without_labels"] == 1
    assert "1 images have them, 1 are left without labels" in facts["notes"][0]
    mined, facts = bench.build("mimic_cxr", test_labels="mined")
    assert all(example.labels == {"lung_opacity": P} for example in mined.values())
    assert facts["notes"] == []


def test_mimic_ids_lead_nowhere_else(bench: Bench) -> None:
    mimic(bench)
    file = bench.raw / "mimic-cxr-2.0.0-metadata.csv.gz"
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()).replace(b"10000031", b"../../x0")))
    with pytest.raises(UserError, match="an id has other characters"):
        bench.build("mimic_cxr")


def test_padchest_scanner(bench: Bench) -> None:
    from mmclip_jax.evaluate import subgroups

    padchest(bench)
    examples, _ = bench.build("padchest")
    assert {subgroups.ATTRIBUTES["scanner"](example) for example in examples.values()} == {"PhilipsMedicalSystems"}


def test_chexpert_first_batch_finds_its_siblings(bench: Bench) -> None:
    expected = chexpert_full(bench)
    around = bench.raw
    picture(around / "other" / "patient00001/study1/view1_frontal.jpg", 77)  # no batch of CheXpert
    bench.raw = around / "CheXpert-v1.0 batch 1 (validate & csv)"
    examples, _ = bench.build("chexpert")
    assert set(examples) == expected


def test_chexpert_two_sizes_are_not_mixed(bench: Bench) -> None:
    chexpert_small(bench)
    chexpert_full(bench)
    with pytest.raises(UserError, match=r"two files are named train.csv: .*batch 1.*train.csv and .*small/train.csv"):
        bench.build("chexpert")


def test_an_unpacked_archive_beside_its_contents_is_no_second_file(bench: Bench) -> None:
    expected = padchest(bench)
    with zipfile.ZipFile(bench.raw / "0.zip") as archive:
        archive.extractall(bench.raw / "0")
    examples, _ = bench.build("padchest")
    assert set(examples) == expected
    (name,) = (file.name for file in (bench.raw / "0").iterdir())
    put(bench, f"0/{name}", b"cut off")
    with pytest.raises(UserError, match=r"two files are named .*0/.* and 0.zip/"):
        bench.build("padchest")


def test_what_is_still_packed_is_named(bench: Bench) -> None:
    nih_box(bench)
    (bench.raw / "images" / "00000001_000.png").unlink()
    put(bench, "images_001.tar.gz", b"\x1f\x8b")
    with pytest.raises(UserError, match=r"images_001.tar.gz is not read: unpack it"):
        bench.build("chestxray14")


# ---------------------------------------------------------------------------------------------------------------------
# Masks and boxes


def test_masks_are_no_radiographs(bench: Bench) -> None:
    expected = siim_png(bench)
    examples, facts = bench.build("siim")
    assert facts["masks_passed_over"] == 2
    for n, id in enumerate(sorted(expected)):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(examples[id].image))), drawing(n, 128, 128))
        (bench.raw / "train" / f"{id}.png").unlink()
    with pytest.raises(UserError, match="2 images were passed over since their folders are named as masks"):
        bench.build("siim")


@pytest.mark.parametrize(("size", "encoding"), [(64, "png"), (300, "jpeg"), (1024, "jpeg")])
def test_a_mask_in_a_folder_of_images_is_refused(bench: Bench, size: int, encoding: str) -> None:
    bench.write("train-rle.csv", siim_table(["x"]))
    y, x = np.mgrid[:size, :size] / size
    mask = ((x - 0.4) ** 2 + (y - 0.5) ** 2 < 0.04) * np.uint8(255)
    (bench.raw / "gt").mkdir()
    Image.fromarray(mask).save(bench.raw / "gt" / "x.png")
    with pytest.raises(UserError, match="two values only: it is a mask"):
        bench.build("siim", encoding=encoding)


VINDR = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"


def vindr_copies(bench: Bench, columns: str = "", cells: str = "") -> None:
    """Originals of 2048 x 2560 pixels, resized to 64 x 64; a box that fits into the copy, and one that does not."""
    bench.write(
        "train.csv",
        f"{VINDR}{columns}\na,Nodule/Mass,8,R1,20,30,40,50{cells}\nb,Nodule/Mass,8,R1,1500,2000,1700,2200{cells}\n",
    )
    for n, name in enumerate("ab"):
        picture(bench.raw / "train" / f"{name}.png", n, 64, 64)


def vindr_right(bench: Bench, **options: Any) -> None:
    examples, _ = bench.build("vindr", **options)
    for name, corners in (("a", (20, 30, 40, 50)), ("b", (1500, 2000, 1700, 2200))):
        (box,) = examples[name].boxes
        frame = np.array([2048, 2560, 2048, 2560])
        np.testing.assert_allclose([box.x_min, box.y_min, box.x_max, box.y_max], corners / frame, rtol=1e-6)


def test_vindr_boxes_of_resized_copies_are_refused(bench: Bench) -> None:
    vindr_copies(bench)
    with pytest.raises(UserError, match=r"the size of the original must be told; see --box-frame") as caught:
        bench.build("vindr")
    assert "--box-format" not in str(caught.value)


def test_vindr_originals_sizes_are_taken_from_columns(bench: Bench) -> None:
    vindr_copies(bench, ",width,height", ",2048,2560")
    vindr_right(bench)


def test_vindr_originals_sizes_are_taken_from_the_copies_table(bench: Bench) -> None:
    vindr_copies(bench)
    bench.write("train_meta.csv", "image_id,dim0,dim1\na,2560,2048\nb,2560,2048\n")
    vindr_right(bench)


def test_vindr_originals_size_is_taken_from_the_flag(bench: Bench) -> None:
    vindr_copies(bench)
    vindr_right(bench, box_frame="2048x2560")
    with pytest.raises(UserError, match=r"lies outside of 64 x 64; see --box-frame"):
        bench.build("vindr", box_frame="pixels")


@pytest.mark.parametrize(("width", "height"), [("64px", "2560"), ("0", "0"), ("nan", "inf"), ("1_000", "9" * 400)])
def test_vindr_sizes_that_are_none(bench: Bench, width: str, height: str) -> None:
    vindr_copies(bench, ",width,height", f",{width},{height}")
    with pytest.raises(UserError, match=r"the size of the original must be told"):
        bench.build("vindr")


def test_vindr_copy_under_a_dicom_name(bench: Bench) -> None:
    bench.write("train.csv", f"{VINDR}\na,Nodule/Mass,8,R1,20,30,40,50\n")
    put(bench, "train/a.dicom", png(1, 64, 64))
    with pytest.raises(UserError, match=r"the size of the original must be told; see --box-frame"):
        bench.build("vindr")


@pytest.mark.parametrize("name", ["rsna", "siim", "chestxray14"])
def test_messages_about_boxes_name_no_flag_that_is_not_there(bench: Bench, name: str) -> None:
    if name == "rsna":
        bench.write("stage_2_train_labels.csv", RSNA_HEADER + "a,1,1,2000,1,1\n")
    elif name == "siim":
        bench.write("train-rle.csv", siim_table(["a"]))
    else:
        bench.write("Data_Entry_2017.csv", NIH_HEADER + "a.png,Mass,0,1,50,M,PA\n")
        bench.write("BBox_List_2017.csv", "Image Index,Finding Label,Bbox [x,y,w,h]\na.png,Mass,1,1,5,5\n")
    picture(bench.raw / "a.png", 1, 64, 32 if name != "rsna" else 64)
    with pytest.raises(UserError, match=r"lies outside|in a frame of 1024 x 1024, but the image has") as caught:
        bench.build(name)
    assert "--box" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Archives


def test_a_damaged_member_costs_its_row(bench: Bench) -> None:
    padchest(bench)
    file = bench.raw / "0.zip"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    examples, facts = bench.build("padchest", on_bad="skip")
    assert len(examples) == facts["rejects"] == 1
    with pytest.raises(UserError, match=r"cannot be read from 0.zip, which is damaged there"):
        bench.build("padchest")


def test_a_member_that_unpacks_to_too_much_costs_its_row(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmclip_jax.data.builders import files

    names = sorted(padchest(bench))
    zipped(bench.raw / "1.zip", {names[1]: b"\0" * (3 << 20)})
    read: list[int] = []
    original = zipfile.ZipExtFile.read

    def counted(self: Any, n: int = -1) -> bytes:
        data = original(self, n)
        read.append(len(data))
        return data

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counted)
    monkeypatch.setattr(files.read_bytes, "__defaults__", (1 << 20,))
    examples, facts = bench.build("padchest", on_bad="skip")
    assert set(examples) == {names[0]}
    assert facts["rejects"] == 1
    assert max(read) <= (1 << 20) + 1


@pytest.mark.parametrize("folder", ["a[b]c", "x*y", "q?z", "back\\slash", "{a,b}", "a.zip!b"])
def test_odd_folders_are_no_patterns(tmp_path: pathlib.Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    twin = tmp_path / "xzzy"
    twin.mkdir()
    (twin / "out").mkdir()
    odd = Bench(tmp_path / folder)
    expected = covidx_4(odd)
    examples, _ = odd.build("covidx")
    assert set(examples) == expected


# ---------------------------------------------------------------------------------------------------------------------
# Optional cells


def test_an_unreadable_sex_or_age_costs_no_row(bench: Bench) -> None:
    bench.write("Data_Entry_2017.csv", NIH_HEADER + "a.png,Mass,0,1,old,Woman,PA\n")
    picture(bench.raw / "a.png")
    examples, facts = bench.build("chestxray14")
    assert examples["a.png"].sex in ("", "F")  # "Woman" is a word that may be known
    assert np.isnan(examples["a.png"].age)
    assert facts["rejects"] == 0
    assert facts["cells_left_out"] >= 1


def test_covidx_negatives_say_nothing_of_other_findings(bench: Bench) -> None:
    covidx_2(bench)
    examples, _ = bench.build("covidx")
    assert examples["train/b32dc4d1.png"].labels == {"covid_19": A}
