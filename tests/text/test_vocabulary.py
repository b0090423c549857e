"""What every label string of the published data sets means, as a radiologist reads it, and what a list of them says.

label_strings.csv is the judgement: a row for each string of each set (count: images of the real table, or reports),
with the finding it names, "-" for none. unmapped.yaml has the reasons of the latter.
"""

import ast
import collections
import csv
import gzip
import itertools
import pathlib
import tarfile
from collections.abc import Iterable
from xml.etree import ElementTree

import pandas as pd
import pytest

from mmclip_jax.data.builders.labels import CHESTXRAY14, listed_labels
from mmclip_jax.data.schema import LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.text import prompts, vocabulary, yaml_tree

P, A = LabelState.PRESENT, LabelState.ABSENT
IN_PADCHEST = {"mass": "mass of unspecified site"}


def judged() -> list[dict[str, str]]:
    with (pathlib.Path(__file__).parent / "label_strings.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def strings_of(name: str) -> dict[str, str]:
    """String -> count of one set."""
    return {row["string"]: row["count"] for row in judged() if row["set"] == name}


@pytest.mark.parametrize("name", sorted({row["set"] for row in judged()}))
def test_every_string_means_what_was_judged(name: str) -> None:
    rows = [row for row in judged() if row["set"] == name]
    assert len({row["string"] for row in rows}) == len(rows)
    for row in rows:
        string = IN_PADCHEST.get(row["string"], row["string"]) if name == "padchest" else row["string"]
        assert (prompts.kind_of(string) or "-") == row["finding"], string
        assert prompts.is_unmapped(string) == (row["finding"] == "-"), string


def test_a_string_that_nobody_judged_is_a_stranger() -> None:
    assert prompts.kind_of("sniffles") is None
    assert not prompts.is_unmapped("sniffles")


# The real tables


@pytest.mark.wheel
def test_every_string_of_padchest_is_judged(wheel_dir: pathlib.Path) -> None:
    counts: collections.Counter[str] = collections.Counter()
    with gzip.open(wheel_dir / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            if row["Labels"].startswith("["):
                counts.update({label.strip() for label in ast.literal_eval(row["Labels"])} - {""})
    assert {label: int(count) for label, count in strings_of("padchest").items()} == counts


@pytest.mark.wheel
def test_every_string_of_the_other_tables_is_judged(wheel_dir: pathlib.Path) -> None:
    def in_set(name: str, strings: Iterable[str]) -> None:
        assert not set(strings) - strings_of(name).keys()

    nih = pd.read_csv(wheel_dir / "Data_Entry_2017_v2020.csv.gz", dtype=str)["Finding Labels"]
    in_set("chestxray14", (label for cell in nih.unique() for label in cell.split("|")))
    in_set("chestxray14", pd.read_csv(wheel_dir / "BBox_List_2017.csv.gz", dtype=str)["Finding Label"])
    in_set("chexpert", pd.read_csv(wheel_dir / "chexpert_train.csv.gz", nrows=1).columns[5:])
    in_set("vindr", pd.read_csv(wheel_dir / "vinbigdata-train.csv.gz", dtype=str)["class_name"])
    google = pd.read_csv(wheel_dir / "google2019_nih-chest-xray-labels.csv.gz", nrows=1).columns
    in_set("nih_google", google[google.get_loc("Fracture") : google.get_loc("Set Id")])


@pytest.mark.wheel
def test_every_mesh_head_of_open_i_is_judged(wheel_dir: pathlib.Path) -> None:
    heads: collections.Counter[str] = collections.Counter()
    with tarfile.open(wheel_dir / "NLMCXR_reports.tgz") as archive:
        for member in archive:
            if member.name.endswith(".xml") and (stream := archive.extractfile(member)) is not None:
                majors = ElementTree.fromstring(stream.read()).findall("MeSH/major")
                heads.update(str(major.text).split("/")[0].strip() for major in majors)
    assert {head: int(count) for head, count in strings_of("openi").items()} == heads


# What a list says

PADCHEST = prompts.denied_by(strings_of("padchest"))


def of_padchest(*strings: str) -> dict[str, LabelState]:
    kinds = {kind for string in strings if (kind := prompts.kind_of(string)) is not None}
    return listed_labels(kinds, PADCHEST, strings)


@pytest.mark.parametrize(
    ("listed", "present", "open_", "absent"),
    [
        (["consolidation"], ["lung_opacity"], ["airspace_disease"], ["edema", "pneumothorax", "no_finding"]),
        (["pulmonary edema"], ["lung_opacity"], ["vascular_congestion"], ["consolidation", "pneumonia"]),
        (["pneumonia"], ["lung_opacity"], ["consolidation", "airspace_disease"], ["edema", "mass"]),
        (["pulmonary mass"], ["mass", "lung_opacity"], [], ["nodule", "mediastinal_mass"]),
        (["laminar atelectasis"], ["atelectasis", "lung_opacity"], ["volume_loss"], ["pleural_effusion"]),
        (["cardiomegaly"], ["enlarged_cardiomediastinum"], ["mediastinal_mass"], ["pericardial_effusion"]),
        (["calcified adenopathy"], ["calcification"], ["lymphadenopathy"], ["mediastinal_mass", "nodule"]),
        (["calcified granuloma"], ["granuloma", "calcification"], ["nodule", "lung_opacity"], ["mass"]),
        (["tuberculosis sequelae"], [], ["tuberculosis", "scar", "volume_loss"], ["cavitation"]),
        (["costophrenic angle blunting"], [], ["pleural_effusion", "pleural_thickening"], ["pneumothorax"]),
        (["COPD signs"], [], ["hyperinflation", "emphysema"], ["bronchiectasis"]),
        (["vertebral anterior compression"], [], ["fracture"], ["rib_fracture"]),
        (["callus rib fracture"], ["rib_fracture", "fracture"], [], ["vertebral_compression"]),
        (["vertebral fracture"], ["fracture"], ["vertebral_compression"], ["rib_fracture"]),
        (["hydropneumothorax"], ["pleural_effusion", "pneumothorax"], [], ["empyema"]),
        (["dai"], ["defibrillator"], ["pacemaker", "no_finding"], ["endotracheal_tube", "pneumonia"]),
        (["NSG tube", "nodule"], ["nasogastric_tube", "nodule"], [], ["no_finding"]),
        (["thoracic cage deformation"], ["chest_wall_deformity"], ["pectus_excavatum"], ["scoliosis"]),
        (["pectum carinatum"], ["chest_wall_deformity"], [], ["pectus_excavatum"]),
        (["miliary opacities"], ["lung_opacity"], ["nodule"], ["mass"]),
        (["cardiomegaly", "chronic changes"], ["cardiomegaly"], ["fibrosis", "scar"], ["pneumothorax", "mass"]),
        (["cardiomegaly", "goiter"], ["cardiomegaly"], ["mediastinal_mass"], ["pneumothorax"]),
        (["kyphosis", "pleural mass"], ["kyphosis"], ["malignancy"], ["pneumothorax", "mass"]),
        (["scoliosis", "supra aortic elongation"], ["scoliosis"], ["aortic_elongation"], ["aortic_enlargement"]),
        (["normal"], ["no_finding"], [], ["lung_opacity", "pacemaker", "scoliosis"]),
        (["normal", "surgery breast"], ["no_finding"], ["mastectomy"], ["nodule"]),
    ],
)
def test_what_a_list_of_padchest_says(
    listed: list[str], present: list[str], open_: list[str], absent: list[str]
) -> None:
    labels = of_padchest(*listed)
    assert {kind: labels.get(kind) for kind in (*present, *open_, *absent)} == (
        dict.fromkeys(present, P) | dict.fromkeys(open_, None) | dict.fromkeys(absent, A)
    )


def test_nothing_is_absent_beside_unchanged() -> None:
    assert of_padchest("unchanged", "cardiomegaly") == {"cardiomegaly": P, "enlarged_cardiomediastinum": P}


@pytest.mark.parametrize("string", strings_of("padchest"))
def test_no_list_says_what_contradicts_itself(string: str) -> None:
    labels = of_padchest(string)
    for kind, state in labels.items():
        for wider in prompts.implied({kind}):
            assert state != P or labels.get(wider) != A, (kind, wider)


def test_a_laboratory_does_not_make_a_radiograph_show_pneumonia() -> None:
    universe = {"covid_19", "viral_pneumonia", "pneumonia", "lung_opacity", "edema"}
    assert listed_labels({"covid_19"}, universe) == {"covid_19": P, "edema": A}
    shown = listed_labels({"viral_pneumonia"}, universe)
    assert shown == {"viral_pneumonia": P, "pneumonia": P, "lung_opacity": P, "covid_19": A, "edema": A}


def test_the_fourteen_of_the_benchmark_stay_closed() -> None:
    for kind in CHESTXRAY14:
        labels = listed_labels({kind}, CHESTXRAY14)
        assert labels.keys() == CHESTXRAY14
        assert [k for k, state in labels.items() if state == P] == [kind]
    assert prompts.denied_by(strings_of("chestxray14")) == CHESTXRAY14


def test_a_part_does_not_deny_the_whole() -> None:
    assert prompts.denied_by(["Humeral fracture", "Laminar_atelectasis", "Edema", "sniffles", "unchanged"]) == {"edema"}
    vindr = prompts.denied_by(strings_of("vindr"))
    assert {"rib_fracture", "clavicle_fracture"} < vindr
    assert "fracture" not in vindr, "VinDr's readers looked for two bones"


def test_no_finding_beside_a_disease() -> None:
    assert prompts.beside_no_finding(["no_finding", "pacemaker", "nodule", "edema"]) == ["edema", "nodule"]
    assert prompts.beside_no_finding(["no_finding", "pacemaker"]) == []
    assert prompts.beside_no_finding(["nodule"]) == []


@pytest.mark.parametrize(
    ("string", "untrue"),
    [
        ("pectum carinatum", "excavatum"),
        ("thoracic cage deformation", "pectus"),
        ("osteopenia", "osteoporosis"),
        ("granuloma", "calcified"),
        ("vertebral anterior compression", "fracture"),
        ("COVID-19", "pneumonia"),
        ("interstitial pattern", "disease"),
        ("Lung tumor", "malignan"),
        ("atherosclerosis", "aort"),
        ("Hernia, Diaphragmatic", "hiatal"),
        ("tuberculosis", "old"),
        ("tuberculosis sequelae", "active"),
    ],
)
def test_prompts_say_no_more_than_the_string(string: str, untrue: str) -> None:
    for text in itertools.chain(*prompts.zero_shot_prompts(string)):
        assert untrue not in text.lower()


def test_a_denied_pleural_other_does_not_deny_an_effusion() -> None:
    assert "No other pleural abnormality." in prompts.zero_shot_prompts("Pleural Other")[1]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (vocabulary.VOCABULARY, "a: {display: b, terms: [b], beside: [z]}", "beside z, which is no finding"),
        (
            vocabulary.VOCABULARY,
            "a: {display: b, terms: [b], narrow: [c]}",
            "narrow lists 'c', which is no term or label of a",
        ),
        (vocabulary.VOCABULARY, "a: {display: b, terms: [b], narrow: [b]}", "use it as the name of a: remove it"),
        (vocabulary.VOCABULARY, "a: {display: b, terms: [b], labels: [{c: [z]}]}", "'c' names z under 'leaves open'"),
        (vocabulary.VOCABULARY, "a: {display: b, terms: [b], labels: [{c: z}]}", "must be a list of words"),
        (vocabulary.UNMAPPED, "why: [{sniffles: [zebra]}]", "'sniffles' names zebra under 'leaves open'"),
        (vocabulary.UNMAPPED, "why: [pneumonia]", "is a name of pneumonia"),
        (vocabulary.UNMAPPED, "why: sniffles", "list of label strings"),
    ],
)
def test_mistakes_are_named(tmp_path: pathlib.Path, file: str, content: str, message: str) -> None:
    head = "no_finding: {display: none}\n" if file == vocabulary.VOCABULARY else ""
    (tmp_path / file).write_text(head + content)
    if file == vocabulary.VOCABULARY:  # the package's other files name its own kinds
        (tmp_path / vocabulary.LEXICON).write_text("observation: [x]\n")
        (tmp_path / vocabulary.UNMAPPED).write_text("why: [sniffles]\n")
    with pytest.raises(UserError) as error:
        vocabulary.load(tmp_path)
    assert message in str(error.value).replace("\n", " ")
    assert str(tmp_path / file) in str(error.value)


def test_edited_openness(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / vocabulary.UNMAPPED).write_text("why: [{sniffles: [edema]}, {sneezes: [everything]}]\n")
    monkeypatch.setenv(vocabulary.ENVIRONMENT, str(tmp_path))
    assert prompts.left_open((), ["Sniffles"]) == {"edema", "lung_opacity"}
    assert prompts.left_open((), ["sneezes"]) == set(prompts.KINDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 50_000, "nested more than 50 deep"),
        ("- " * 5_000, "nested more than 50 deep"),
        ("a: &a\n  b: *a", r"the alias \*a holds itself"),
        ("a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
            f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        ), "more than 1,000,000 values"),
        ("a: 2001-99-99", "not valid YAML"),
        ("a: !!python/object/apply:os.system [x]", "not valid YAML"),
    ],
)  # fmt: skip
def test_yaml_that_no_program_should_work_with_is_one_line(tmp_path: pathlib.Path, text: str, message: str) -> None:
    """The library crashes on deep trees, and writes out what aliases repeat."""
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        yaml_tree.read_mapping(file)
    assert "\n" not in str(caught.value)
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=r"mine\.yaml: Is a directory"):
        yaml_tree.read_mapping(file)


def test_aliases_within_reason_are_read(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("a: &a [x, y]\nb: {c: *a, d: *a}\n", encoding="utf-8")
    assert yaml_tree.read_mapping(file) == {"a": ["x", "y"], "b": {"c": ["x", "y"], "d": ["x", "y"]}}
