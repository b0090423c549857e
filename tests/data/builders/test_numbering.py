"""Kinship with what builders really write: tiny downloads, laid out as published, through the real builders."""

import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence

import pandas as pd
import pytest
from workbench import Bench, picture, wheel_table

from mmclip_jax.data import records
from mmclip_jax.data.builders import table
from mmclip_jax.data.builders.table_options import TableOptions
from mmclip_jax.data.leakage import audit, numbering, overlaps
from mmclip_jax.text import yaml_tree

FIXTURES = (wheel_table,)

Layout = Callable[[Bench, Sequence[int], int], pathlib.Path]
"""Lays out and builds the data set of these patients, an image each; the last number makes its pictures its own."""


def uuid(number: int) -> str:
    return f"{number:08x}-14fd-4e49-80ba-63a80b6bdd{number:02x}"


def dicom_id(number: int) -> str:
    return f"{number:08x}-bde0afdd-112c0b34-7bc16630-4e38{number:04x}"


def build(bench: Bench, name: str, **options: object) -> pathlib.Path:
    return records.build(bench.builder(name, **options), overwrite=True)


def build_table(bench: Bench, name: str, text: str) -> pathlib.Path:
    file = bench.write("metadata.csv", text)
    options = TableOptions(str(file), str(bench.raw), name, split="train", workers=1)
    return table.build_table(options, bench.folder / "out").path


def chestxray14(bench: Bench, numbers: Sequence[int], seed: int) -> pathlib.Path:
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"
    rows = [f"{1299 + n:08d}_003.png,No Finding,3,{1299 + n},58,M,PA\n" for n in numbers]
    bench.write("Data_Entry_2017.csv", header + "".join(rows))
    for n in numbers:
        picture(bench.raw / f"images_{n % 3:03d}" / "images" / f"{1299 + n:08d}_003.png", 100 * seed + n)
    return build(bench, "chestxray14")


def nih(bench: Bench, numbers: Sequence[int], seed: int) -> pathlib.Path:
    """As docs/data.md shows the subset: padded numbers, JPEG files."""
    rows = [f"{1299 + n:08d}_003.jpg,{1299 + n:08d},frontal,No Finding,\n" for n in numbers]
    for n in numbers:
        picture(bench.raw / f"{1299 + n:08d}_003.jpg", 100 * seed + n)
    return build_table(bench, "nih", "image,patient_id,view_class,labels,text\n" + "".join(rows))


def rsna(bench: Bench, numbers: Sequence[int], seed: int) -> pathlib.Path:
    rows = [f"{uuid(n)},,,,,0\n" for n in numbers]
    bench.write("stage_2_train_labels.csv", "patientId,x,y,width,height,Target\n" + "".join(rows))
    for n in numbers:
        picture(bench.raw / "stage_2_train_images" / f"{uuid(n)}.png", 100 * seed + n)
    return build(bench, "rsna")


def covidx(bench: Bench, numbers: Sequence[int], seed: int) -> pathlib.Path:
    """Negative images of the RSNA challenge, positive ones of ieee8023/covid-chestxray-dataset."""
    lines = [f"{uuid(n)} {uuid(n)}.png negative rsna\n" for n in numbers]
    lines += [f"{n} SARS-10.1148rg.{n:06d}-day0.jpeg positive cohen\n" for n in numbers]
    for part in ("train", "test"):
        there = lines if part == "train" else ["sub-S1 sub-S1_ses-E1_run-1_bp-chest_vp-ap.png positive bimcv\n"]
        bench.write(f"{part}_COVIDx9B.txt", "".join(there))
        for line in there:
            name = line.split()[1]
            picture(bench.raw / part / name, 100 * seed + len(list((bench.raw / part).glob("*"))) + 50)
    return build(bench, "covidx")


def covid(bench: Bench, numbers: Sequence[int], seed: int) -> pathlib.Path:
    rows = [f"SARS-10.1148rg.{n:06d}-day0.jpg,{n},frontal,COVID-19,\n" for n in numbers]
    for n in numbers:
        picture(bench.raw / f"SARS-10.1148rg.{n:06d}-day0.jpg", 100 * seed + n)
    return build_table(bench, "covid", "image,patient_id,view_class,labels,text\n" + "".join(rows))


def siim(bench: Bench, numbers: Sequence[int], seed: int) -> pathlib.Path:
    names = [f"1.2.276.0.7230010.3.1.4.8323329.{n}.1517875201.850819" for n in numbers]
    bench.write("train-rle.csv", "ImageId, EncodedPixels\n" + "".join(f"{name}, -1\n" for name in names))
    for n, name in zip(numbers, names, strict=True):
        picture(bench.raw / "dicom-images-train" / "a" / f"{name}.png", 100 * seed + n)
    return build(bench, "siim")


def hexadecimal(number: int) -> str:
    return f"{number:02x}34fda4bfa1b2c3d4e5f60718293a4b"[:32].ljust(32, "0")


def vindr(bench: Bench, numbers: Sequence[int], seed: int) -> pathlib.Path:
    labels = [f"{hexadecimal(n)},R{r},0,1\n" for n in numbers for r in (8, 9, 10)]
    boxes = [f"{hexadecimal(n)},R{r},No finding,,,,\n" for n in numbers for r in (8, 9, 10)]
    bench.write("annotations/image_labels_train.csv", "image_id,rad_id,Cardiomegaly,No finding\n" + "".join(labels))
    bench.write(
        "annotations/annotations_train.csv", "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\n" + "".join(boxes)
    )
    for n in numbers:
        picture(bench.raw / "train" / f"{hexadecimal(n)}.png", 100 * seed + n)
    return build(bench, "vindr")


def vinbigdata(bench: Bench, numbers: Sequence[int], seed: int) -> pathlib.Path:
    rows = [f"train/{hexadecimal(n)}.jpg,train/{hexadecimal(n)}.jpg,No finding\n" for n in numbers]
    for n in numbers:
        picture(bench.raw / "train" / f"{hexadecimal(n)}.jpg", 100 * seed + n)
    return build_table(bench, "vinbigdata", "image,patient_id,labels\n" + "".join(rows))


def mimic_cxr(bench: Bench, numbers: Sequence[int], seed: int) -> pathlib.Path:
    ids = [(dicom_id(n), f"{10000032 + n}", f"{50414267 + n}") for n in numbers]
    bench.write(
        "mimic-cxr-2.0.0-metadata.csv.gz",
        "dicom_id,subject_id,study_id,ViewPosition\n" + "".join(f"{d},{p},{s},PA\n" for d, p, s in ids),
    )
    bench.write(
        "mimic-cxr-2.0.0-split.csv.gz",
        "dicom_id,study_id,subject_id,split\n" + "".join(f"{d},{s},{p},train\n" for d, p, s in ids),
    )
    bench.write(
        "mimic-cxr-2.0.0-chexpert.csv.gz",
        "subject_id,study_id,Edema\n" + "".join(f"{p},{s},1.0\n" for _, p, s in ids),
    )
    for n, (d, p, s) in zip(numbers, ids, strict=True):
        picture(bench.raw / "files" / f"p{p[:2]}" / f"p{p}" / f"s{s}" / f"{d}.jpg", 100 * seed + n)
        bench.write(f"mimic-cxr-reports/files/p{p[:2]}/p{p}/s{s}.txt", f" FINDINGS: Edema {n + 3} cm wide.\n")
    return build(bench, "mimic_cxr")


def ms_cxr(bench: Bench, numbers: Sequence[int], seed: int) -> pathlib.Path:
    """By the paths that its table has."""
    rows = []
    for n in numbers:
        path = f"files/p10/p{10000032 + n}/s{50414267 + n}/{dicom_id(n)}.jpg"
        picture(bench.raw / path, 100 * seed + n)
        rows.append(f"{path},p{10000032 + n},s{50414267 + n},Edema\n")
    return build_table(bench, "ms_cxr", "image,patient_id,study_id,labels\n" + "".join(rows))


def chexpert(bench: Bench, numbers: Sequence[int], seed: int) -> pathlib.Path:
    paths = [f"train/patient{n + 1:05d}/study1/view1_frontal.jpg" for n in numbers]
    header = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema\n"
    rows = [f"CheXpert-v1.0-small/{path},Male,60,Frontal,AP,,1.0\n" for path in paths]
    bench.write("train.csv", header + "".join(rows))
    for n, path in zip(numbers, paths, strict=True):
        picture(bench.raw / path, 100 * seed + n)
    return build(bench, "chexpert")


def chexlocalize(bench: Bench, numbers: Sequence[int], seed: int) -> pathlib.Path:
    """By the keys of its annotations."""
    rows = [f"patient{n + 1:05d}_study1_view1_frontal.png,patient{n + 1:05d},Edema\n" for n in numbers]
    for n in numbers:
        picture(bench.raw / f"patient{n + 1:05d}_study1_view1_frontal.png", 100 * seed + n)
    return build_table(bench, "chexlocalize", "image,patient_id,labels\n" + "".join(rows))


FAMILIES: dict[str, tuple[Layout, ...]] = {
    "nih": (chestxray14, nih),
    "rsna": (rsna, covidx),
    "covid": (covid, covidx),
    "vindr": (vindr, vinbigdata),
    "mimic": (mimic_cxr, ms_cxr),
    "chexpert": (chexpert, chexlocalize),
}
NO_PATIENTS = {"rsna", "vindr"}


def made(tmp_path: pathlib.Path, layout: Layout, numbers: Sequence[int], seed: int) -> audit.AuditSet:
    folder = tmp_path / f"{layout.__name__}_{seed}"
    folder.mkdir()
    path = layout(Bench(folder), numbers, seed)
    read = audit.read_set(f"{path}:train", ("train",), looks=False)
    validation = audit.read_set(f"{path}:validation", ("validation",), looks=False)
    return audit.AuditSet(layout.__name__, [*read.rows, *validation.rows], place=read.place)


def kinds(found: Iterable[audit.Overlap]) -> dict[str, int]:
    return {each.kind: len(each.pairs) for each in found}


@pytest.mark.parametrize(
    ("family", "one", "other"),
    [(family, *pair) for family, layouts in FAMILIES.items() for pair in itertools.permutations(layouts)],
)
def test_images_of_one_family_are_found_under_each_others_spelling(
    tmp_path: pathlib.Path, family: str, one: Layout, other: Layout
) -> None:
    train = made(tmp_path, one, range(6), 1)
    test = made(tmp_path, other, range(3, 9), 2)
    found = kinds(audit.audit([train], [test]))
    assert found["patient"] == found["image id"] == 3
    assert "kin" not in found or family in ("rsna", "covid")
    result = audit.judge([train], [test], allowed="a drill")
    assert result["status"] == "leaks"
    apart = made(tmp_path, other, range(20, 24), 3)
    assert not {each.kind for each in audit.audit([train], [apart])} & {*overlaps.LEAKS, *overlaps.LOOKS}
    assert ("no patients" in kinds(audit.audit([train], [apart]))) == (family in NO_PATIENTS)


@pytest.mark.parametrize(("one", "other"), [(rsna, chestxray14), (siim, chestxray14), (siim, rsna), (nih, covidx)])
def test_of_kin_under_other_ids_nothing_is_called_clean(tmp_path: pathlib.Path, one: Layout, other: Layout) -> None:
    train, test = made(tmp_path, one, range(4), 1), made(tmp_path, other, range(4), 2)
    result = audit.judge([train], [test])
    assert result["status"] == "not comparable"
    said = audit.text(result)
    assert "no patient" not in said.replace("no patients", "")
    assert "patients could not be compared" in said


def test_families_that_are_no_kin_are_clean_whatever_their_numbers(tmp_path: pathlib.Path) -> None:
    """Patient 1 of CheXpert is not patient 1 of the collection of COVID-19."""
    sets = [made(tmp_path, layout, range(1, 5), seed) for seed, layout in enumerate((chexpert, covid, mimic_cxr))]
    for one, other in itertools.permutations(sets, 2):
        assert audit.judge([one], [other])["status"] == "clean"


def test_with_the_published_mapping_rsna_has_the_patients_of_chestxray14(tmp_path: pathlib.Path) -> None:
    """Its fields are those of the RSNA's file: img_id of ChestX-ray14, subset_img_id of the challenge."""
    (tmp_path / "mapped").mkdir()
    bench = Bench(tmp_path / "mapped")
    mapping = [{"img_id": f"{1299 + n:08d}_00{n}.png", "subset_img_id": uuid(n)} for n in range(4)]
    bench.write("pneumonia-challenge-dataset-mappings_2018.json", json.dumps(mapping))
    path = rsna(bench, range(4), 1)
    if records.dataset_facts(path).get("patient_ids", {}).get("of") != "chestxray14":
        pytest.skip("the builder does not read the mapping")
    read = [audit.read_set(f"{path}:{split}", (split,), looks=False) for split in ("train", "validation", "test")]
    train = audit.AuditSet("rsna", [row for one in read for row in one.rows])
    test = made(tmp_path, chestxray14, range(2, 8), 2)
    found = kinds(audit.audit([train], [test]))
    assert found == {"patient": 2}
    assert audit.judge([train], [made(tmp_path, chestxray14, range(20, 24), 3)])["status"] == "clean"


def test_every_pair_of_the_file_is_tried_here() -> None:
    """A new source or kin needs a layout above, or a line below that says why it has none."""
    without = {
        "nih_chestxray14": "nih by another name", "bimcv": "no builder", "ricord": "no builder",
        "mimic_cxr_jpg": "mimic_cxr by another name", "chexpert_plus": "chexpert's ids", "padchest": "alone",
        "openi": "test_spellings", "indiana": "test_spellings", "iu_xray": "test_spellings", "kermany": "alone",
    }  # fmt: skip
    told = yaml_tree.read_mapping(pathlib.Path(numbering.__file__).with_suffix(".yaml"))
    tried = {layout.__name__ for layouts in FAMILIES.values() for layout in layouts} | {"siim"}
    assert set(told["sources"]) == tried | set(without)
    assert {(a, b) for a, others in told["kin"].items() for b in others} == {
        ("rsna", "nih"), ("siim", "nih"), ("siim", "rsna"), ("bimcv", "padchest"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("what", "spellings"),
    [
        ("image", [("openi", "CXR1_1_IM-0001-4001.png"), ("indiana", "1_IM-0001-4001.dcm.png"),
                   ("openi", "CXR1_IM-0001-4001.dcm"),
                   ("iu_xray", "images/CXR1_1_IM-0001-4001.PNG")]),
        ("patient", [("openi", "1"), ("indiana", "CXR1"), ("iu_xray", "0001")]),
        ("image", [("bimcv", "sub-S03047_ses-E07985_run-1_bp-chest_vp-ap_dx.png"),
                   ("covidx", "test/sub-S03047_ses-E07985_run-1_bp-chest_vp-ap_dx-corrected.png")]),
        ("patient", [("bimcv", "sub-S03047"), ("covidx", "bimcv:sub-S03047")]),
        ("patient", [("ricord", "MIDRC-RICORD-1C-419639-000082"), ("covidx", "ricord:MIDRC-RICORD-1C-419639-000082")]),
        ("study", [("chestxray14", "1299_3"), ("nih", "00001299_003.jpg"), ("nih", "1299_003")]),
        ("image", [("chexpert", "valid/patient64541/study1/view1_frontal.jpg"),
                   ("chexpert_plus", "valid/patient64541/study1/view1_frontal.png"),
                   ("chexlocalize", "CheXpert-v1.0/valid/patient64541/study1/view1_frontal.jpg")]),
    ],
)  # fmt: skip
def test_spellings(what: str, spellings: list[tuple[str, str]]) -> None:
    keys = {numbering.canonical_id(source, id, what) for source, id in spellings}
    assert len(keys) == 1


@pytest.mark.wheel
@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "source", "columns"),
    [
        ("Data_Entry_2017_v2020.csv.gz", "chestxray14", {"Image Index": "image", "Patient ID": "patient"}),
        ("kaggle_stage_2_train_labels.csv.zip", "rsna", {"patientId": "image"}),
        ("siim-pneumothorax-train-rle.csv.gz", "siim", {"ImageId": "image"}),
        ("chexpert_train.csv.gz", "chexpert", {"Path": "image"}),
        ("vinbigdata-train.csv.gz", "vindr", {"image_id": "image"}),
        ("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz", "padchest",
         {"ImageID": "image", "StudyID": "study", "PatientID": "patient"}),
        ("nlmcxr_dicom_metadata.csv.gz", "openi", {"imageid": "image"}),
    ],
)  # fmt: skip
def test_patterns_fit_every_real_id_and_keep_all_apart(
    wheel_table: Callable[[str], pd.DataFrame], file: str, source: str, columns: dict[str, str]
) -> None:
    table = wheel_table(file)
    own = numbering.families(source)[0]
    for column, what in columns.items():
        names = set(table[column]) - {""}
        assert names, column
        pattern = numbering._kinship().patterns[own][what]
        unlike = [name for name in names if not pattern.fullmatch(numbering._SUFFIX.sub("", name.casefold()))]
        assert len(unlike) <= 0.001 * len(names), unlike[:5]
        assert len({numbering.canonical_id(source, name, what) for name in names}) == len(names)
