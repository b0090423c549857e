"""Every published set, small and drawn, laid out as its download page shows it."""

import io
import json
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

from dicoms import dicom_file
from PIL import Image
from workbench import Bench, drawing, picture

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


def mapped(image: str, nih: str) -> dict[str, Any]:
    uid = "1.2.276.0.7230010.3.1.2.8323329.1"
    return {
        "subset_img_id": image, "img_id": nih, "orig_labels": ["No Finding"],
        "StudyInstanceUID": uid, "SeriesInstanceUID": uid, "SOPInstanceUID": uid,
    }  # fmt: skip


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
