"""The builders of published data sets on the real tables, joined with drawn images where the sets have theirs."""

import ast
import collections
import io
import pathlib
import shutil
import zipfile
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dicoms import dicom_file
from PIL import Image
from workbench import all_images_exist, bench, picture, wheel_table

from mmclip_jax.data.builders import files
from mmclip_jax.data.builders.collection import split_of_patient
from mmclip_jax.data.builders.items import ON_PURPOSE
from mmclip_jax.data.schema import LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.text import prompts

FIXTURES = (
    all_images_exist,
    bench,
    wheel_table,
)

P, A, U = LabelState.PRESENT, LabelState.ABSENT, LabelState.UNCERTAIN
PADCHEST = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"


def reasons(builder: Any) -> dict[str, int]:
    return dict(collections.Counter(each.reason for each in builder.rejects if each.consequence == ON_PURPOSE))


def unknown(builder: Any) -> set[str]:
    return {each.reason for each in builder.rejects if "unknown" in each.reason}


# ChestX-ray14


@pytest.mark.wheel
@pytest.mark.slow
def test_chestxray14_whole_table(bench: Any, wheel_dir: pathlib.Path, wheel_table: Any, all_images_exist: None) -> None:
    shutil.copy(wheel_dir / "Data_Entry_2017_v2020.csv.gz", bench.raw)
    shutil.copy(wheel_dir / "BBox_List_2017.csv.gz", bench.raw)
    table = wheel_table("Data_Entry_2017_v2020.csv.gz")
    patients = sorted(set(table["Patient ID"]), key=int)
    # The official list is not in the wheel: one of its size, of whole patients, takes its place.
    test: list[str] = []
    by_patient = table.groupby("Patient ID")["Image Index"].apply(list)
    for patient in patients:
        images = by_patient[patient]
        if len(test) + len(images) <= 25_596:
            test += images
    assert len(test) == 25_596
    bench.write("test_list.txt", "\n".join(test))
    bench.write("train_val_list.txt", "\n".join(sorted(set(table["Image Index"]) - set(test))))
    builder = bench.builder("chestxray14")
    items = builder.items
    assert len(items) == builder.rows == 112_120
    assert {item.id for item in items if item.split == "test"} == set(test)
    assert not unknown(builder)
    for label, kind in (("Hernia", "hernia"), ("Effusion", "pleural_effusion"), ("No Finding", "no_finding")):
        expected = set(
            table.loc[table["Finding Labels"].str.split("|").apply(lambda x, w=label: w in x), "Image Index"]
        )
        assert {item.id for item in items if item.labels[kind] == P} == expected
    boxes = wheel_table("BBox_List_2017.csv.gz")
    assert sum(len(item.boxes) for item in items) == len(boxes) == 984
    ages = table.set_index("Image Index")["Patient Age"].astype(float)
    assert all(item.age == ages[item.id] for item in items if not np.isnan(item.age))


@pytest.mark.wheel
def test_chestxray14_end_to_end(bench: Any, wheel_table: Any) -> None:
    boxes = wheel_table("BBox_List_2017.csv.gz").head(7)
    table = wheel_table("Data_Entry_2017_v2020.csv.gz")
    some = pd.concat([table[table["Image Index"].isin(boxes["Image Index"])], table.head(13)]).drop_duplicates()
    bench.write("Data_Entry_2017_v2020.csv", some.to_csv(index=False))
    header = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
    bench.write("BBox_List_2017.csv", header + boxes.iloc[:, :6].to_csv(index=False, header=False))
    for number, image in enumerate(some["Image Index"]):
        picture(bench.raw / f"images_{number % 12 + 1:03d}" / "images" / image, number, 64, 64)
    examples, facts = bench.build("chestxray14")
    assert set(examples) == set(some["Image Index"])
    assert facts["rejects"] == 0
    for row in some.to_dict("records"):
        example = examples[row["Image Index"]]
        present = {kind for kind, state in example.labels.items() if state == P}
        assert present == {prompts.kind_of(label) for label in row["Finding Labels"].split("|")}
        assert (example.patient, example.sex, example.view) == (
            row["Patient ID"], row["Patient Gender"], row["View Position"],
        )  # fmt: skip
    for row in boxes.to_dict("records"):
        x, y, width, height = (float(row[column]) / 1024 for column in ("Bbox [x", "y", "w", "h]"))
        kind = prompts.kind_of(row["Finding Label"])
        near = [
            box for box in examples[row["Image Index"]].boxes
            if box.kind == kind and np.allclose([box.x_min, box.y_min, box.x_max - box.x_min, box.y_max - box.y_min],
                                                [x, y, width, height], atol=1e-5)
        ]  # fmt: skip
        assert len(near) == 1


def test_chestxray14_lists_and_ages(bench: Any) -> None:
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"
    rows = [f"{n}.png,No Finding,0,{n // 2},{'058Y' if n else '414Y'},M,PA\n" for n in range(40)]
    bench.write("Data_Entry_2017.csv", header + "".join(rows))
    for number in range(40):
        picture(bench.raw / "images" / f"{number}.png", number)
    bench.write("test_list.txt", "".join(f"{n}.png\n" for n in range(30, 40)))
    with pytest.raises(UserError, match=r"test_list.txt without the other list"):
        bench.build("chestxray14")
    bench.write("train_val_list.txt", "".join(f"{n}.png\n" for n in range(30)))
    examples, facts = bench.build("chestxray14")
    assert facts["cells_left_out"] == 1
    assert np.isnan(examples["0.png"].age)
    assert examples["1.png"].age == 58
    for id, example in examples.items():
        number = int(id.removesuffix(".png"))
        assert example.split == ("test" if number >= 30 else split_of_patient(str(number // 2), (0.9, 0.1, 0)))
    bench.write("train_val_list.txt", "".join(f"{n}.png\n" for n in range(29)))
    with pytest.raises(UserError, match=r"row 31: the image is in neither"):
        bench.build("chestxray14")
    bench.write("train_val_list.txt", "".join(f"{n}.png\n" for n in [*range(29), 30]))
    bench.write("test_list.txt", "".join(f"{n}.png\n" for n in [29, *range(31, 40)]))
    with pytest.raises(UserError, match="a patient is in two splits"):
        bench.build("chestxray14")


# CheXpert


@pytest.mark.wheel
@pytest.mark.slow
def test_chexpert_whole_table(
    bench: Any, wheel_dir: pathlib.Path, wheel_table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(wheel_dir / "chexpert_train.csv.gz", bench.raw / "train.csv.gz")
    monkeypatch.setattr(files.FileIndex, "find", lambda self, *wanted: wanted[0])
    table = wheel_table("chexpert_train.csv.gz")
    builder = bench.builder("chexpert")
    frontal = table[table["Frontal/Lateral"] == "Frontal"]
    assert builder.rows == 0
    items = builder.items
    assert builder.rows == len(table) == 223_414
    contradictions = sum("labelled as no finding" in each.reason for each in builder.rejects)
    assert len(items) == len(frontal) - contradictions
    assert contradictions <= 5
    assert reasons(builder) == {"view LATERAL": len(table) - len(frontal)}
    uncertain = sum(item.labels.get("edema") == U for item in items)
    assert uncertain == (frontal["Edema"] == "-1.0").sum()
    assert {item.view for item in items} <= {"AP", "PA", ""}
    assert {item.split for item in items} == {"train"}


def test_chexpert_end_to_end(bench: Any) -> None:
    header = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Pneumothorax,Cardiomegaly,Support Devices\n"
    bench.write(
        "train.csv",
        header
        + "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,0.0,,1.0\n"
        + "CheXpert-v1.0-small/train/patient00002/study2/view1_frontal.jpg,Unknown,8,Frontal,PA,,-1.0,1.0,-1.0,\n"
        + "CheXpert-v1.0-small/train/patient00002/study2/view2_lateral.jpg,Male,8,Lateral,,,-1.0,1.0,,\n",
    )
    bench.write(
        "valid.csv",
        header + "CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,0.0,1.0,0.0,0,0\n",
    )
    bench.write("test_labels.csv", "Path,No Finding,Edema\ntest/patient64741/study1/view1_frontal.jpg,1,0\n")
    for number, path in enumerate(
        ["train/patient00001/study1/view1_frontal", "train/patient00002/study2/view1_frontal",
         "train/patient00002/study2/view2_lateral", "valid/patient64541/study1/view1_frontal",
         "test/patient64741/study1/view1_frontal"]
    ):  # fmt: skip
        picture(bench.raw / f"{path}.jpg", number)
    examples, facts = bench.build("chexpert")
    assert facts["left_out_on_purpose"] == {"view LATERAL": 1}
    second = examples["train/patient00002/study2/view1_frontal.jpg"]
    assert second.labels == {"edema": U, "pneumothorax": P, "cardiomegaly": U}
    assert (second.sex, second.age, second.view, second.patient) == ("", 8, "PA", "patient00002")
    assert {id.split("/")[0]: example.split for id, example in examples.items()} == {
        "train": "train", "valid": "validation", "test": "test",
    }  # fmt: skip
    mixed, facts = bench.build("chexpert", uncertain="mixed", views="all")
    assert facts["options"]["uncertain"] == "mixed"
    assert mixed["train/patient00002/study2/view1_frontal.jpg"].labels == {
        "edema": P, "pneumothorax": P, "cardiomegaly": A,
    }  # fmt: skip
    assert mixed["train/patient00002/study2/view2_lateral.jpg"].view == "LATERAL"


# PadChest


@pytest.mark.wheel
@pytest.mark.slow
def test_padchest_whole_table(bench: Any, wheel_dir: pathlib.Path, wheel_table: Any, all_images_exist: None) -> None:
    shutil.copy(wheel_dir / f"{PADCHEST}.gz", bench.raw)
    table = wheel_table(f"{PADCHEST}.gz")
    assert len(table) == 160_861
    assert (table["MethodLabel"] == "Physician").sum() == 39_053
    frontal = table[table["Projection"].isin(["PA", "AP", "AP_horizontal"])]
    assert len(frontal) == 110_633
    builder = bench.builder("padchest", on_bad="skip")
    items = {item.id: item for item in builder.items}
    assert builder.rows == 160_861
    left_out = reasons(builder)
    assert sum(count for reason, count in left_out.items() if reason.startswith("view ")) == 160_861 - 110_633 - sum(
        each.consequence == "row left out" for each in builder.rejects
    )
    physicians = set(table.loc[table["MethodLabel"] == "Physician", "PatientID"])
    rows = {row["ImageID"]: row for row in frontal.to_dict("records")}
    for item in items.values():
        row = rows[item.id]
        assert (item.split == "test") == (row["PatientID"] in physicians)
        assert item.split != "test" or row["MethodLabel"] == "Physician"
        labels = {label.strip() for label in ast.literal_eval(row["Labels"])}
        assert not labels & {"exclude", "suboptimal study"}
        if "pneumothorax" in labels:
            assert item.labels["pneumothorax"] == P
        assert item.patient == row["PatientID"]
    assert len(items) > 70_000


def test_padchest_end_to_end(bench: Any) -> None:
    header = "ImageID,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,Projection,MethodLabel,Labels\n"
    rows = [
        "a.png,20140915,s1,839860488694292331637988235681460987,1930.0,F,PA,Physician,\"['normal']\"",
        "b.png,20140915,s2,839860488694292331637988235681460987,1930.0,F,PA,RNN_model,\"['pneumonia']\"",
        "c.png,20150101,s3,2,None,M,AP_horizontal,RNN_model,\"['pneumothorax ', 'nipple shadow', 'loc basal']\"",
        "d.png,20150101,s4,3,1950.0,M,L,RNN_model,\"['normal']\"",
        "e.png,20150101,s5,4,1950.0,M,PA,RNN_model,\"['exclude']\"",
        "f.png,20150101,s6,5,1950.0,M,PA,RNN_model,\"['unchanged']\"",
    ]
    bench.write(f"{PADCHEST}.gz", header + "\n".join(rows) + "\n")
    sixteen = np.add.outer(np.arange(41) * 500, np.arange(43) * 900).astype(np.uint16)
    stream = io.BytesIO()
    Image.fromarray(sixteen).save(stream, "PNG")
    with zipfile.ZipFile(bench.raw / "0.zip", "w") as archive:
        for name in "abcdef":
            archive.writestr(f"{name}.png", stream.getvalue())
    examples, facts = bench.build("padchest")
    assert set(examples) == {"a.png", "c.png"}
    assert facts["left_out_on_purpose"] == {
        "view LATERAL": 1, "labelled exclude": 1, "no label is a finding of the vocabulary": 1,
        "not labelled by physicians, of a patient in the test split": 1,
    }  # fmt: skip
    assert facts["cells_left_out"] == 1, "'loc basal' is known to nobody"
    a, c = examples["a.png"], examples["c.png"]
    assert (a.split, a.sex, a.age, a.part) == ("test", "F", 84, "unpaired")
    assert a.labels == {"no_finding": P, "pneumonia": A, "pneumothorax": A}
    assert c.labels == {"no_finding": A, "pneumonia": A, "pneumothorax": P}
    assert np.isnan(c.age)
    assert (c.original_min, c.original_max) == (0, sixteen.max())


def test_padchest_lists_deny_what_their_author_could_have_said(bench: Any) -> None:
    lists = [
        ("a", "1", "Physician", ["cyst", "mass"]),
        ("b", "2", "Physician", ["normal"]),
        ("c", "3", "RNN_model", ["consolidation", "mass"]),
        ("d", "4", "RNN_model", ["pleural effusion", "unchanged"]),
        ("e", "5", "RNN_model", ["increased density", "pulmonary mass"]),
        ("f", "6", "RNN_model", ["mass"]),
    ]
    rows = [f'{i}.png,20140915,s{i},{patient},1930.0,F,PA,{who},"{named}"' for i, patient, who, named in lists]
    header = "ImageID,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,Projection,MethodLabel,Labels\n"
    bench.write(f"{PADCHEST}.gz", header + "\n".join(rows) + "\n")
    for number, name in enumerate("abcdef"):
        picture(bench.raw / f"{name}.png", number)
    examples, facts = bench.build("padchest")
    rest = {"consolidation": A, "pleural_effusion": A}
    # "mass" may be one of the lung or of the mediastinum; and the network never says "cyst", so that it denies none.
    assert examples["a.png"].labels == rest | {"cyst": P, "no_finding": A}
    assert examples["b.png"].labels == rest | {"cyst": A, "mass": A, "lung_opacity": A, "no_finding": P}
    assert examples["c.png"].labels == {"consolidation": P, "lung_opacity": P, "pleural_effusion": A}
    assert examples["d.png"].labels == {"pleural_effusion": P}
    assert examples["e.png"].labels == {
        "mass": P, "lung_opacity": P, "consolidation": A, "pleural_effusion": A,
    }  # fmt: skip
    assert facts["left_out_on_purpose"] == {"no label is a finding of the vocabulary": 1}


# RSNA


@pytest.mark.wheel
@pytest.mark.slow
def test_rsna_whole_table(bench: Any, wheel_table: Any, all_images_exist: None) -> None:
    table = wheel_table("kaggle_stage_2_train_labels.csv.zip")
    bench.write("stage_2_train_labels.csv", table.to_csv(index=False))
    builder = bench.builder("rsna")
    items = builder.items
    assert builder.rows == len(table) == 30_227
    assert len(items) == 26_684
    assert sum(item.labels["pneumonia"] == P for item in items) == 6_012
    assert sum(len(item.boxes) for item in items) == (table["Target"] == "1").sum()
    assert not builder.rejects


def test_rsna_end_to_end(bench: Any) -> None:
    bench.write(
        "stage_2_train_labels.csv",
        "patientId,x,y,width,height,Target\nn,,,,,0\np,256.0,128.0,512.0,64.0,1\np,0,0,1024,1024,1\no,,,,,0\nbad,,,,,1\n",
    )
    bench.write(
        "stage_2_detailed_class_info.csv",
        "patientId,class\nn,Normal\np,Lung Opacity\np,Lung Opacity\no,No Lung Opacity / Not Normal\n",
    )
    for number, name in enumerate("npo"):
        picture(bench.raw / "stage_2_train_images" / f"{name}.png", number, 64, 64)
    with pytest.raises(UserError, match=r"row 6: Target and box do not fit"):
        bench.build("rsna")
    examples, facts = bench.build("rsna", on_bad="skip")
    assert facts["rejects"] == 1
    assert {id: example.labels for id, example in examples.items()} == {
        "n": {"pneumonia": A, "no_finding": P},
        "p": {"pneumonia": P, "no_finding": A},
        "o": {"pneumonia": A, "no_finding": A},
    }
    first, second = examples["p"].boxes
    assert (first.x_min, first.y_min, first.x_max, first.y_max) == (0.25, 0.125, 0.75, 0.1875)
    assert (second.x_min, second.y_max) == (0, 1)


# SIIM


@pytest.mark.wheel
@pytest.mark.slow
def test_siim_whole_table(bench: Any, wheel_dir: pathlib.Path, wheel_table: Any, all_images_exist: None) -> None:
    shutil.copy(wheel_dir / "siim-pneumothorax-train-rle.csv.gz", bench.raw / "train-rle.csv.gz")
    table = wheel_table("siim-pneumothorax-train-rle.csv.gz")
    builder = bench.builder("siim")
    items = {item.id: item for item in builder.items}
    assert builder.rows == len(table) == 12_954
    assert len(items) == 12_047
    positive = set(table.loc[table[" EncodedPixels"].str.strip() != "-1", "ImageId"])
    assert {id for id, item in items.items() if item.labels["pneumothorax"] == P} == positive
    assert sum(len(item.masks) for item in items.values()) == (table[" EncodedPixels"].str.strip() != "-1").sum()


@pytest.mark.wheel
def test_siim_end_to_end(bench: Any, wheel_table: Any) -> None:
    from mmclip_jax.data.builders.masks import decode

    table = wheel_table("siim-pneumothorax-train-rle.csv.gz")
    positive = table[table[" EncodedPixels"].str.strip() != "-1"]
    twice = positive["ImageId"].value_counts().index[0]
    some = pd.concat([table[table["ImageId"] == twice], table.head(9)]).drop_duplicates()
    bench.write("train-rle.csv", some.to_csv(index=False))
    for number, image in enumerate(sorted(set(some["ImageId"]))):
        picture(bench.raw / "dicom-images-train" / "a" / "b" / f"{image}.png", number, 64, 64)
    examples, _ = bench.build("siim")
    example = examples[twice]
    runs = some.loc[some["ImageId"] == twice, " EncodedPixels"]
    assert len(example.boxes) == len(runs) > 1
    assert len(example.masks) == 1
    (item,) = [item for item in bench.builder("siim").items if item.id == twice]
    for runs_of_one, mask in zip(runs, item.masks, strict=True):
        expected, place = np.zeros(1024 * 1024, bool), 0
        numbers = list(map(int, runs_of_one.split()))
        for gap, run in zip(numbers[::2], numbers[1::2], strict=True):
            place += gap
            expected[place : place + run] = True
            place += run
        np.testing.assert_array_equal(decode(mask), expected.reshape(1024, 1024).T)


# VinDr-CXR


@pytest.mark.wheel
@pytest.mark.slow
def test_vinbigdata_whole_table(bench: Any, wheel_table: Any, all_images_exist: None) -> None:
    table = wheel_table("vinbigdata-train.csv.gz")
    bench.write("train.csv", table.to_csv(index=False))
    builder = bench.builder("vindr")
    items = {item.id: item for item in builder.items}
    assert len(items) == table["image_id"].nunique() == 15_000
    assert not unknown(builder)
    readers = table.groupby("image_id")["rad_id"].nunique()
    assert set(readers) == {3}
    votes = table[table["class_name"] == "Cardiomegaly"].groupby("image_id")["rad_id"].nunique()
    for id, item in items.items():
        number = votes.get(id, 0)
        assert item.labels["cardiomegaly"] == (P if number >= 2 else U if number == 1 else A)
        assert all(item.labels[kind] == P for kind, _ in item.boxes)


def test_vindr_of_physionet(bench: Any) -> None:
    labels = "image_id,rad_id,Cardiomegaly,Pleural effusion,Other diseases,No finding\n"
    rows = ["a,R1,1,0,0,0", "a,R2,1,1,0,0", "a,R3,0,0,1,0", "b,R1,0,0,0,1", "b,R2,0,0,0,1", "b,R3,0,0,0,1"]
    bench.write("annotations/image_labels_train.csv", labels + "\n".join(rows) + "\n")
    bench.write(
        "annotations/annotations_train.csv",
        "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\na,R1,Cardiomegaly,10,5,30,35\n"
        "a,R2,Pleural effusion,1,1,9,9\nb,R1,No finding,,,,\n",
    )
    bench.write(
        "annotations/image_labels_test.csv",
        "image_id,Cardiomegaly,Pleural effusion,Other diseases,No finding\nt,0,1,0,0\n",
    )
    bench.write(
        "annotations/annotations_test.csv",
        "image_id,class_name,x_min,y_min,x_max,y_max\nt,Pleural effusion,0,0,53,37\n",
    )
    for number, name in enumerate(("train/a", "train/b", "test/t")):
        picture(bench.raw / f"{name}.png", number)
    examples, _ = bench.build("vindr", box_frame="pixels")
    assert examples["a"].labels == {"cardiomegaly": P, "pleural_effusion": U, "no_finding": A}
    assert examples["b"].labels == {"cardiomegaly": A, "pleural_effusion": A, "no_finding": P}
    assert examples["t"].labels == {"cardiomegaly": A, "pleural_effusion": P, "no_finding": A}
    (box,) = examples["a"].boxes
    np.testing.assert_allclose(
        [box.x_min, box.y_min, box.x_max, box.y_max], [10 / 53, 5 / 37, 30 / 53, 35 / 37], rtol=1e-6
    )
    assert examples["t"].split == "test"
    assert examples["a"].split in ("train", "validation")


def test_vindr_readers_who_name_a_kind_name_the_broader_one(bench: Any) -> None:
    rows = [
        f"{image},{reader},{name},,,,"
        for image, named in (
            ("a", ["Consolidation", "Nodule/Mass", "No finding"]),
            ("b", ["Rib fracture", "Rib fracture", "Clavicle fracture"]),
            ("c", ["Lung Opacity", "Lung Opacity", "Lung Opacity"]),
        )
        for reader, name in zip(("R1", "R2", "R3"), named, strict=True)
    ]
    bench.write("train.csv", "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\n" + "\n".join(rows) + "\n")
    for number, name in enumerate("abc"):
        picture(bench.raw / f"train/{name}.png", number)
    examples, _ = bench.build("vindr")
    rest = dict.fromkeys(("clavicle_fracture", "consolidation", "lung_lesion", "no_finding", "rib_fracture"), A)
    a = {"consolidation": U, "lung_lesion": U, "no_finding": U, "lung_opacity": P}
    assert examples["a"].labels == rest | a, "two of three saw an opacity of some kind"
    assert examples["b"].labels == rest | {"rib_fracture": P, "clavicle_fracture": U, "lung_opacity": A}
    assert examples["c"].labels == rest | {"lung_opacity": P}


# Of all


@pytest.mark.parametrize("name", ["chestxray14", "chexpert", "padchest", "rsna", "siim", "vindr"])
def test_what_is_missing_is_said_with_the_way_to_get_it(bench: Any, name: str) -> None:
    with pytest.raises(UserError, match=f"how to get {name}"):
        bench.build(name)


def test_siims_second_spelling_of_no_mask(bench: Any) -> None:
    bench.write("train-rle.csv", "ImageId, EncodedPixels\nx, -1\n")
    picture(bench.raw / "x.png")
    (item,) = bench.builder("siim").items
    assert item.labels == {"pneumothorax": A}


def test_rsna_dicom_files(bench: Any) -> None:
    pixels = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    folder = bench.raw / "stage_2_train_images"
    folder.mkdir()
    grey = {"bits": 8, "PhotometricInterpretation": "MONOCHROME1"}
    (folder / "n.dcm").write_bytes(dicom_file(pixels, WindowCenter=64, WindowWidth=128, **grey))
    (folder / "m.dcm").write_bytes(dicom_file(pixels, WindowCenter=64, WindowWidth=0, **grey))
    bench.write("stage_2_train_labels.csv", "patientId,x,y,width,height,Target\nn,,,,,0\nm,,,,,0\n")
    examples, _ = bench.build("rsna", encoding="png")
    for name, white in (("n", 127), ("m", 126)):
        stored = np.asarray(Image.open(io.BytesIO(examples[name].image)))
        np.testing.assert_allclose(stored, 255 - np.clip((pixels / white) * 255, 0, 255), atol=1.5)
    (listed,) = (bench.folder / "out").rglob("rejects.csv")
    assert pd.read_csv(listed)[["row", "image", "reason", "consequence"]].to_numpy().tolist() == [
        [
            3,
            "m",
            "the window was ignored: its centre or width is not a usable number",
            "its values span black to white",
        ]
    ]
