"""Names of kinds against the label strings of real data sets; prompts against the finder of entities."""

import ast
import collections
import csv
import gzip
import pathlib
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmclip_jax.errors import UserError
from mmclip_jax.text import prompts, vocabulary
from mmclip_jax.text.entities import find_entities

DISEASES = [kind for kind in prompts.KINDS if kind != "no_finding"]

CHESTXRAY14 = {
    "Atelectasis": "atelectasis", "Cardiomegaly": "cardiomegaly", "Effusion": "pleural_effusion",
    "Infiltration": "infiltration", "Infiltrate": "infiltration", "Mass": "mass", "Nodule": "nodule",
    "Pneumonia": "pneumonia", "Pneumothorax": "pneumothorax", "Consolidation": "consolidation", "Edema": "edema",
    "Emphysema": "emphysema", "Fibrosis": "fibrosis", "Pleural_Thickening": "pleural_thickening", "Hernia": "hernia",
    "No Finding": "no_finding",
}  # fmt: skip
CHEXPERT = {
    "No Finding": "no_finding", "Enlarged Cardiomediastinum": "enlarged_cardiomediastinum",
    "Cardiomegaly": "cardiomegaly", "Lung Opacity": "lung_opacity", "Lung Lesion": "lung_lesion", "Edema": "edema",
    "Consolidation": "consolidation", "Pneumonia": "pneumonia", "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax", "Pleural Effusion": "pleural_effusion", "Pleural Other": "pleural_other",
    "Fracture": "fracture", "Support Devices": "support_device",
}  # fmt: skip
OTHERS = {
    "COVID-19": "covid_19", "covid19": "covid_19", "COVID-19, ARDS": "covid_19", "ARDS": "ards", "NORMAL": "no_finding",
    "PNEUMONIA": "pneumonia", "bacteria": "bacterial_pneumonia", "virus": "viral_pneumonia", "normal": "no_finding",
    "SARS": "viral_pneumonia", "Pneumocystis": "fungal_pneumonia", "E.Coli": "bacterial_pneumonia",
    "Nodule/Mass": "lung_lesion", "ILD": "interstitial_lung_disease", "Aortic enlargement": "aortic_enlargement",
    "pleural effusions": "pleural_effusion", "NSG tube": "nasogastric_tube", "aortic elongation": "aortic_elongation",
    "heart insufficiency": "heart_failure", "  Lung   opacities ": "lung_opacity", "No lung opacity / not normal": None,
    "zebra": None, "": None, "unchanged": None, "suboptimal study": None, "Other lesion": None,
}  # fmt: skip


@pytest.mark.parametrize(("label", "kind"), [*CHESTXRAY14.items(), *CHEXPERT.items(), *OTHERS.items()])
def test_label_strings(label: str, kind: str | None) -> None:
    assert prompts.kind_of(label) == kind


@pytest.mark.parametrize("kind", prompts.KINDS)
def test_each_kind_answers_to_its_own_names(kind: str) -> None:
    words = vocabulary.load().kinds[kind]
    for name in (
        kind,
        kind.upper(),
        words.display,
        words.display.title().replace(" ", "_"),
        *words.terms,
        *words.labels,
    ):
        assert prompts.kind_of(name) == kind
    assert prompts.display_name(kind) == words.display
    assert "_" not in words.display


def test_kinds_are_ordered_names() -> None:
    assert prompts.KINDS[0] == "no_finding"
    assert len(set(prompts.KINDS)) == len(prompts.KINDS)
    assert all(re.fullmatch("[a-z0-9_]+", kind) for kind in prompts.KINDS)
    assert set(CHESTXRAY14.values()) | set(CHEXPERT.values()) < set(prompts.KINDS)


def test_ancestors() -> None:
    assert prompts.ancestors("covid_19") == ("viral_pneumonia", "pneumonia", "lung_opacity")
    assert prompts.ancestors("hydropneumothorax") == ("pleural_effusion", "pneumothorax")
    assert prompts.ancestors("mass") == ("lung_lesion", "lung_opacity")
    assert prompts.ancestors("lung_opacity") == ()
    assert prompts.is_device("pacemaker")
    assert not prompts.is_device("edema")


@pytest.mark.shared
def test_labels_of_the_real_images_are_known(shared_dir: pathlib.Path) -> None:
    tables = sorted(shared_dir.glob("*/metadata.csv"))
    assert tables
    for table in tables:
        with table.open(newline="") as file:
            labels = {label for row in csv.DictReader(file) for label in row["labels"].split("|")}
        assert {label for label in labels if prompts.kind_of(label) is None} == set()


@pytest.mark.wheel
def test_labels_of_padchest_are_mostly_known(wheel_dir: pathlib.Path) -> None:
    counts: collections.Counter[str] = collections.Counter()
    with gzip.open(wheel_dir / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            if row["Labels"].startswith("["):
                counts.update({label.strip() for label in ast.literal_eval(row["Labels"])})
    for label in ("", "exclude", "suboptimal study", "unchanged"):
        counts.pop(label, None)
    known = sum(count for label, count in counts.items() if prompts.kind_of(label))
    assert known / counts.total() > 0.9
    unknown = [label for label, _ in counts.most_common(40) if prompts.kind_of(label) is None]
    assert sorted(unknown) == ["chronic changes", "pseudonodule", "suture material"]


@st.composite
def statements(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    chosen = draw(st.lists(st.sampled_from(DISEASES), min_size=1, max_size=8, unique=True))
    cut = draw(st.integers(0, len(chosen)))
    return chosen[:cut], chosen[cut:]


@given(statements(), st.integers(0, 2**32 - 1))
@settings(max_examples=400)
def test_entities_of_a_prompt_are_what_it_states(stated: tuple[list[str], list[str]], seed: int) -> None:
    present, absent = stated
    text = prompts.training_prompt(np.random.default_rng(seed), present, absent)
    found = [(entity.kind, entity.negated) for entity in find_entities(text) if entity.kind]
    assert sorted(found) == sorted([(kind, False) for kind in present] + [(kind, True) for kind in absent]), text


@given(statements(), st.integers(0, 2**32 - 1))
@settings(max_examples=100)
def test_prompts_are_sentences(stated: tuple[list[str], list[str]], seed: int) -> None:
    text = prompts.training_prompt(np.random.default_rng(seed), *stated)
    for sentence in text.split(". "):
        assert sentence[0].isupper() or sentence[0].isdigit()
    assert text.endswith(".")
    assert "  " not in text
    assert not set(text) & set("{}_")
    assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text


def test_prompts_depend_on_the_generator_alone_and_vary() -> None:
    def draw(seed: int, present: list[str]) -> str:
        return prompts.training_prompt(np.random.default_rng(seed), present, ["pneumothorax"])

    assert draw(7, ["edema", "mass"]) == draw(7, ["mass", "edema"])
    assert len({draw(seed, ["edema", "mass"]) for seed in range(100)}) > 50


@pytest.mark.parametrize("devices", [[], ["pacemaker"], ["pacemaker", "chest_tube"]])
def test_no_finding_prompts(devices: list[str]) -> None:
    texts = {
        prompts.training_prompt(np.random.default_rng(seed), ["no_finding", *devices], ["edema"]) for seed in range(50)
    }
    assert len(texts) > 10
    for text in texts:
        entities = find_entities(text)
        assert [e.text for e in entities if e.label == "observation" and not e.negated] == []
        assert sorted(e.kind for e in entities if e.label == "device") == sorted(devices)
        assert [e.kind for e in entities if e.negated and e.kind] == ["edema"]


def test_an_abnormal_chest_without_a_name() -> None:
    for seed in range(20):
        text = prompts.training_prompt(np.random.default_rng(seed), [], ["no_finding"])
        assert [e.kind for e in find_entities(text) if e.label == "observation" and not e.negated] == [""]


@pytest.mark.parametrize(
    ("present", "absent", "message"),
    [
        ([], [], "at least one"),
        (["edema"], ["edema"], "edema cannot be both"),
        (["no_finding", "edema"], [], "no_finding and edema"),
        (["zebra"], [], "unknown finding 'zebra'"),
        ([], ["Edema"], "unknown finding 'Edema'"),
    ],
)
def test_what_cannot_be_stated(present: list[str], absent: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prompts.training_prompt(np.random.default_rng(0), present, absent)
    with pytest.raises(UserError, match=message):
        prompts.meaning(present, absent)


@pytest.mark.parametrize(
    ("present", "absent", "expected"),
    [
        (["edema"], ["pneumothorax"], "+edema|-pneumothorax"),
        (["pneumothorax", "edema", "edema"], ["atelectasis"], "-atelectasis|+edema|+pneumothorax"),
        ([], ["edema"], "-edema"),
        (["no_finding"], [], "no_finding"),
        (["no_finding"], ["edema", "mass"], "no_finding"),
        (["no_finding", "pacemaker"], ["edema"], "+no_finding|+pacemaker"),
        (["no_finding"], ["pacemaker"], "+no_finding|-pacemaker"),
        ([], ["no_finding"], "-no_finding"),
    ],
)
def test_meaning(present: list[str], absent: list[str], expected: str) -> None:
    assert prompts.meaning(present, absent) == expected


@given(statements(), st.randoms())
@settings(max_examples=100)
def test_meaning_is_blind_to_order_and_tells_statements_apart(stated: tuple[list[str], list[str]], random) -> None:
    present, absent = stated
    expected = prompts.meaning(present, absent)
    random.shuffle(present)
    random.shuffle(absent)
    assert prompts.meaning(present, absent) == expected
    assert prompts.meaning(absent, present) != expected


@pytest.mark.parametrize("kind", DISEASES)
def test_zero_shot_prompts_state_the_finding(kind: str) -> None:
    positives, negatives = prompts.zero_shot_prompts(kind)
    assert len(positives) == len(set(positives)) >= 3
    assert len(negatives) == len(set(negatives)) >= 3
    for texts, negated in ((positives, False), (negatives, True)):
        for text in texts:
            assert [(e.kind, e.negated) for e in find_entities(text) if e.kind] == [(kind, negated)], text


@pytest.mark.parametrize("kind", ["pneumonia", "mass", "pacemaker", "no_finding"])
def test_zero_shot_prompts_are_among_the_training_prompts(kind: str) -> None:
    trained = set()
    for present, absent in (([kind], []), ([], [kind])):
        trained |= {prompts.training_prompt(np.random.default_rng(seed), present, absent) for seed in range(400)}
    positives, negatives = prompts.zero_shot_prompts(kind)
    assert {*positives, *negatives} <= trained


def test_zero_shot_prompts_take_any_name() -> None:
    assert prompts.zero_shot_prompts("Pleural_Thickening") == prompts.zero_shot_prompts("pleural thickening")
    assert "No pneumonia." in prompts.zero_shot_prompts("pneumonia")[1]
    with pytest.raises(UserError, match="unknown finding 'zebra'"):
        prompts.zero_shot_prompts("zebra")
    with pytest.raises(UserError, match="did you mean 'pleural effusion'"):
        prompts.zero_shot_prompts("pleural efusion")


def test_edited_prompts(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (vocabulary.PACKAGED / vocabulary.PROMPTS).read_text().replace('"{present}."', '"behold {present}."')
    (tmp_path / vocabulary.PROMPTS).write_text(text)
    assert "Behold edema." in prompts.zero_shot_prompts("edema", vocabulary.load(tmp_path))[0]
    assert "Behold edema." not in prompts.zero_shot_prompts("edema")[0]
    monkeypatch.setenv(vocabulary.ENVIRONMENT, str(tmp_path))
    assert "Behold edema." in prompts.zero_shot_prompts("edema")[0]
