"""Published sets as they are downloaded (layouts.py), and what stands beside the files on real disks."""

import dataclasses
import gzip
import io
import json
import os
import pathlib
import re
import shutil
import zipfile
from typing import Any

import numpy as np
import pytest
from layouts import (
    LAYOUTS,
    MAPPING,
    NIH_HEADER,
    RSNA_HEADER,
    chexpert_full,
    chexpert_small,
    covidx_2,
    covidx_4,
    dicom,
    mapped,
    mimic,
    nih_box,
    padchest,
    png,
    put,
    siim_png,
    siim_table,
    zipped,
)
from PIL import Image
from workbench import Bench, bench, drawing, picture

from mmclip_jax.data import info
from mmclip_jax.data.builders import registry, summary
from mmclip_jax.data.builders.files import FileIndex, read_bytes
from mmclip_jax.data.schema import LabelState
from mmclip_jax.errors import UserError

FIXTURES = (bench,)

P, A, U = LabelState.PRESENT, LabelState.ABSENT, LabelState.UNCERTAIN


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


def test_rsna_copies_have_sex_and_age_of_chestxray14(bench: Bench) -> None:
    bench.write("stage_2_train_labels.csv", RSNA_HEADER + "a,,,,,0\nb,,,,,0\n")
    bench.write(MAPPING, json.dumps([mapped("a", "00000013_005.png"), mapped("b", "00000002_001.png")]))
    bench.write("Data_Entry_2017.csv", NIH_HEADER + "00000013_005.png,Mass,5,13,058Y,F,AP\n")
    for n, name in enumerate("ab"):
        picture(bench.raw / "png" / f"{name}.png", n, 64, 64)
    examples, _ = bench.build("rsna")
    a, b = examples["a"], examples["b"]
    assert (a.patient, a.sex, a.age, a.view) == ("13", "F", 58, "AP")
    assert (b.patient, b.sex, b.view) == ("2", "", "")
    assert np.isnan(b.age)


def test_rsna_without_its_mapping_says_so(bench: Bench) -> None:
    rsna_of_few_patients(bench, mapping=False)
    examples, facts = bench.build("rsna")
    assert all(example.patient == id for id, example in examples.items())
    assert facts["patient_ids"] == {"of": "rsna", "mapped": 0, "not_mapped": 30}
    (note,) = facts["notes"]
    assert note.startswith("PATIENTS ARE UNKNOWN")
    assert MAPPING in note
    built = summary.CollectionSummary(bench.folder, {**facts}, 0.0)
    assert "NOTE: PATIENTS ARE UNKNOWN" in str(built)
    assert "NOTE: PATIENTS ARE UNKNOWN" in info.describe(bench.folder / "out" / "rsna")


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
    from mmclip_jax.evaluate.evaluations import subgroups

    padchest(bench)
    examples, _ = bench.build("padchest")
    assert {subgroups.ATTRIBUTES["scanner"](example) for example in examples.values()} == {"PhilipsMedicalSystems"}


def test_chexlocalize_by_its_other_heading(bench: Bench) -> None:
    path = "CheXpert/val/patient64541/study1/view1_frontal.jpg"
    bench.write("CheXpert/val_labels.csv", f"Path,No Finding,Airspace Opacity\n{path},0,1\n")
    picture(bench.raw / path)
    examples, _ = bench.build("chexpert")
    (example,) = examples.values()
    assert (example.id, example.split) == ("valid/patient64541/study1/view1_frontal.jpg", "validation")
    assert example.labels == {"no_finding": A, "lung_opacity": P}


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


def test_chexpert_is_read_from_its_archives(bench: Bench) -> None:
    expected = chexpert_full(bench)
    for folder in [folder for folder in sorted(bench.raw.iterdir()) if folder.is_dir()]:
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        zipped(folder.with_name(f"{folder.name}.zip"), {str(f.relative_to(folder)): f.read_bytes() for f in files})
        shutil.rmtree(folder)
    assert {entry.suffix for entry in bench.raw.iterdir()} == {".zip", ".csv", ".md"}
    examples, _ = bench.build("chexpert")
    assert set(examples) == expected


def test_links_in_a_circle_end(bench: Bench) -> None:
    expected = nih_box(bench)
    (bench.raw / "images" / "round").symlink_to(bench.raw)
    (bench.raw / "again").symlink_to(bench.raw / "images")
    (bench.raw / "images" / "00000009_000.png").symlink_to(bench.raw / "nowhere")
    examples, _ = bench.build("chestxray14")
    assert set(examples) == expected


def test_what_is_no_ordinary_file_is_not_waited_for(bench: Bench) -> None:
    nih_box(bench)
    (bench.raw / "images" / "00000001_000.png").unlink()
    os.mkfifo(bench.raw / "images" / "00000001_000.png")
    with pytest.raises(UserError, match="no ordinary file"):
        bench.build("chestxray14")


@pytest.mark.parametrize(
    ("folder", "masks"),
    [
        *(("mask", True), ("Masks", True), ("png_masks", True), ("train-mask", True), ("masks256", True)),
        *(("segmentation", True), ("gt_segmentations", True), ("masks.zip", True), ("masks/train", True)),
        *(("siim-acr-pneumothorax-segmentation", False), ("images-and-masks", False), ("unmasked", False)),
        *(("train", False), ("dicom-images-train", False), ("maskrcnn", False)),
    ],
)
def test_folders_of_masks_are_known_by_name(tmp_path: pathlib.Path, folder: str, masks: bool) -> None:
    if folder.endswith(".zip"):
        zipped(tmp_path / folder, {"x.png": b"x"})
    else:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.png").write_bytes(b"x")
    index = FileIndex(tmp_path)
    assert (index.masks, len(index), bool(index.find("x.png"))) == ((1, 0, False) if masks else (0, 1, True))


def test_archives_of_other_systems(tmp_path: pathlib.Path) -> None:
    zipped(tmp_path / "a.zip", {"train\\x.png": b"one", "__MACOSX\\train\\._x.png": b"", "masks\\y.png": b"mask"})
    (tmp_path / "x.png:Zone.Identifier").write_bytes(b"[ZoneTransfer]")
    index = FileIndex(tmp_path, depth=2)
    assert read_bytes(index.find("train/x.png")) == b"one"
    assert (index.companions, index.masks, len(index)) == (2, 1, 1)


@pytest.mark.parametrize("kind", ["encrypted", "unknown compression", "longer than told"])
def test_members_that_cannot_be_read_are_one_clear_error(tmp_path: pathlib.Path, kind: str) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.png", png(1))
        size = archive.getinfo("x.png").file_size
    data = bytearray(file.read_bytes())
    centre = data.index(b"PK\1\2")
    if kind == "encrypted":
        data[6] |= 1
        data[centre + 8] |= 1
    elif kind == "unknown compression":
        data[8] = data[centre + 10] = 97
    else:
        data[22:26] = data[centre + 24 : centre + 28] = (size // 2).to_bytes(4, "little")
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"cannot be read from a\.zip"):
        read_bytes(FileIndex(tmp_path).find("x.png"))


def test_names_in_other_letters(tmp_path: pathlib.Path) -> None:
    for name in ("A.PNG", "u\u0308.png", "b.png", "B.png"):
        (tmp_path / name).write_bytes(b"x")
    index = FileIndex(tmp_path)
    assert index.find("a.png").endswith("A.PNG")
    assert index.find("\u00fc.png").endswith("u\u0308.png"), "accents as macOS writes them"
    assert index.find("b.png").endswith("/b.png")
    assert index.find("B.png").endswith("/B.png")
    assert not index.find("b.PNG"), "which of the two is meant?"
    assert "two files are named b.PNG" in str(index.find("b.PNG"))


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
    with pytest.raises(UserError, match=r"Give the original size; see --box-frame") as caught:
        bench.build("vindr")
    assert "--box-format" not in str(caught.value)
    assert not bench.builder("vindr", on_bad="skip").items, "before any image is read"


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
    with pytest.raises(UserError, match=r"Give the original size"):
        bench.build("vindr")


def test_vindr_copy_under_a_dicom_name(bench: Bench) -> None:
    bench.write("train.csv", f"{VINDR}\na,Nodule/Mass,8,R1,20,30,40,50\n")
    put(bench, "train/a.dicom", png(1, 64, 64))
    with pytest.raises(UserError, match=r"Give the original size; see --box-frame"):
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
    odd = Bench(tmp_path / folder, tmp_path / "built")
    expected = covidx_4(odd)
    examples, _ = odd.build("covidx")
    assert set(examples) == expected
    if set(folder) & set("[]*?\\"):  # where data sets are written, libraries would take them for patterns
        odd.out = tmp_path / folder / "out"
        with pytest.raises(UserError, match="in its name"):
            odd.build("covidx")
        assert not odd.out.exists()


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


@pytest.mark.parametrize(("name", "how"), LAYOUTS)
def test_messages_name_only_flags_that_are_there(bench: Bench, name: str, how: str) -> None:
    LAYOUTS[name, how](bench)
    flags = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(registry.load(name).Options)}
    tables = [file for suffix in ("csv", "txt") for file in sorted(bench.raw.rglob(f"*.{suffix}"))]
    if not tables:
        pytest.skip("all tables are packed")
    table = next((file for file in tables if "submission" not in file.name and "cheXbert" not in file.name), tables[0])
    original = table.read_bytes()
    lines = original.splitlines(keepends=True)
    seen = []
    for damaged in (
        *(b"\xe9" + original, original.decode().encode("utf-16"), b"", b"x\n", lines[0], b"x," + original),
        *(original.replace(b",", b";"), original.replace(b"1", b"\xc2\xb2"), b"".join([*lines, lines[-1]])),
    ):
        table.write_bytes(damaged)
        try:
            bench.build(name, max_reject_share=0.0)
        except UserError as error:
            seen.append(str(error))
    assert seen
    for message in seen:
        assert set(re.findall(r"--[a-z][a-z-]+", message)) <= flags, message
        assert "\n" not in message
