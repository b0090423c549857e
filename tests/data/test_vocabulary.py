"""Every label string of the published data sets is a kind, or deliberately none."""

import ast
import gzip
import pathlib
import tarfile
from collections.abc import Iterable
from xml.etree import ElementTree

import pandas as pd
import pytest

from mmclip_jax.data import prompts

CHEXPERT = [
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
]  # fmt: skip
VINDR = [  # the 28 columns of image_labels_train.csv (physionet.org, vindr-cxr 1.0.0)
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation", "Edema",
    "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst", "Mediastinal shift",
    "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax", "Pulmonary fibrosis", "Rib fracture",
    "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis", "Other diseases", "No finding",
]  # fmt: skip
RSNA_AND_COVIDX = ["Normal", "No Lung Opacity / Not Normal", "Lung Opacity", "Pneumonia", "COVID-19", "Pneumothorax"]


def strangers(labels: Iterable[str]) -> set[str]:
    return {label for label in labels if prompts.kind_of(label) is None and not prompts.is_unmapped(label)}


def test_labels_of_sets_without_a_table_here() -> None:
    assert not strangers([*CHEXPERT, *VINDR, *RSNA_AND_COVIDX])
    assert strangers(["sniffles"]) == {"sniffles"}
    for one, other in (("Pleural thickening", "Pleural effusion"), ("Nodule/Mass", "Granuloma"), ("ILD", "Edema")):
        assert prompts.kind_of(one) != prompts.kind_of(other)


@pytest.mark.wheel
def test_labels_of_real_tables(wheel_dir: pathlib.Path) -> None:
    nih = pd.read_csv(wheel_dir / "Data_Entry_2017_v2020.csv.gz", dtype=str)["Finding Labels"]
    assert not strangers(label for cell in nih.unique() for label in cell.split("|"))
    boxes = pd.read_csv(wheel_dir / "BBox_List_2017.csv.gz", dtype=str)["Finding Label"]
    assert not strangers(boxes.unique())
    chexpert = pd.read_csv(wheel_dir / "chexpert_train.csv.gz", nrows=1)
    assert not strangers(list(chexpert.columns[5:]))
    vinbigdata = pd.read_csv(wheel_dir / "vinbigdata-train.csv.gz", dtype=str)["class_name"]
    assert not strangers(vinbigdata.unique())


@pytest.mark.wheel
def test_labels_of_padchest(wheel_dir: pathlib.Path) -> None:
    file = wheel_dir / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz"
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        cells = pd.read_csv(stream, usecols=["Labels"], dtype=str)["Labels"].dropna().unique()
    labels = {
        label.strip()
        for cell in cells
        if cell.startswith("[") and "nan" not in cell
        for label in ast.literal_eval(cell)
    }
    assert len(labels) > 170
    # Of a few labels of the table that occur once or twice nothing is known.
    assert not {label for label in strangers(labels) if "loc" not in label}


@pytest.mark.wheel
def test_mesh_heads_of_open_i(wheel_dir: pathlib.Path) -> None:
    heads = set()
    with tarfile.open(wheel_dir / "NLMCXR_reports.tgz") as archive:
        for member in archive:
            if member.name.endswith(".xml") and (stream := archive.extractfile(member)) is not None:
                majors = ElementTree.fromstring(stream.read()).findall("MeSH/major")
                heads |= {str(major.text).split("/")[0].strip() for major in majors}
    assert len(heads) > 100
    assert not strangers(heads)
