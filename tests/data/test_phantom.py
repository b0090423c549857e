import collections
import dataclasses
import io
import pathlib
import re
import time

import numpy as np
import pytest
from PIL import Image

from mmclip_jax.data.builders.phantom import Phantom, small_phantom
from mmclip_jax.data.phantom import PhantomConfig, describe, generate, scaled_patients, words
from mmclip_jax.data.phantom.findings import DISEASES, KINDS, draw_findings
from mmclip_jax.data.phantom.generate import (
    PAIRED_SOURCE,
    SOURCES,
    UNLABELLED,
    UNPAIRED_SOURCE,
    generate_patient,
    patient_of,
)
from mmclip_jax.data.phantom.render import render
from mmclip_jax.data.records import open_records
from mmclip_jax.data.schema import PARTS, SPLITS, Example, LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.text import entities, prompts

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "data.md"
DEVICES = {"pacemaker", "central_venous_catheter", "endotracheal_tube"}  # kinds that the label sums up as one
CONFIG = PhantomConfig(seed=3, patients={source: dict.fromkeys(SPLITS, 400) for source in SOURCES})


@pytest.fixture(scope="module")
def paired() -> list[Example]:
    return list(generate(CONFIG, "train", PAIRED_SOURCE))


def pixels_of(example: Example) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(example.image)))


def in_sentence(text: str, position: int) -> str:
    for match in re.finditer(r"[^.\n]+", text):
        if match.start() <= position < match.end():
            return match[0]
    raise AssertionError(f"{position} is in no sentence of {text!r}")


# ---------------------------------------------------------------------------------------------------------------------
# Order, seeds, splits


def test_a_patient_depends_on_nothing_but_its_key(paired: list[Example]) -> None:
    by_patient = collections.defaultdict(list)
    for example in paired[:60]:
        by_patient[example.patient].append(example)
    for patient in reversed(list(by_patient)[:-1]):
        number = int(patient.rsplit("-", 1)[1])
        assert list(generate_patient(CONFIG, "train", PAIRED_SOURCE, number)) == by_patient[patient]
    fewer = dataclasses.replace(CONFIG, patients={PAIRED_SOURCE: {"train": 5}})
    some = list(generate(fewer, "train", PAIRED_SOURCE))
    assert some == paired[: len(some)]
    assert not list(generate(fewer, "test", PAIRED_SOURCE))


def test_seed_source_and_split_each_give_other_patients() -> None:
    drawn = [
        next(generate(dataclasses.replace(CONFIG, seed=seed), split, source)).pixels_sha256
        for seed in (0, 3)
        for split in SPLITS
        for source in SOURCES
    ]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.slow
def test_worker_processes_change_nothing(tmp_path: pathlib.Path) -> None:
    config = PhantomConfig(patients={PAIRED_SOURCE: {"test": 103}, UNPAIRED_SOURCE: {"test": 7}})
    alone = list(Phantom(tmp_path, config).examples("test"))
    together = list(Phantom(tmp_path, config, workers=2).examples("test"))
    assert alone == together


def test_larger_images_show_the_same_patient() -> None:
    for source in SOURCES:
        for number in range(12):
            small, large = (
                list(generate_patient(dataclasses.replace(CONFIG, image_size=size), "test", source, number))
                for size in (64, 192)
            )
            for one, other in zip(small, large, strict=True):
                assert (one.text, one.labels, one.id) == (other.text, other.labels, other.id)
                assert [box.kind for box in one.boxes] == [box.kind for box in other.boxes]
                shrunk = pixels_of(other).reshape(64, 3, 64, 3).mean((1, 3))
                assert np.corrcoef(shrunk.ravel(), pixels_of(one).ravel())[0, 1] > 0.97


def test_splits_share_no_patient(tmp_path: pathlib.Path) -> None:
    builder = small_phantom(tmp_path)
    splits = {split: list(builder.examples(split)) for split in SPLITS}
    everything = [example for examples in splits.values() for example in examples]
    assert 130 <= len(everything) == builder.total() <= 190
    for name in ("patient", "id", "pixels_sha256"):
        values = [{getattr(example, name) for example in examples} for examples in splits.values()]
        assert len(set.union(*values)) == sum(map(len, values)), name
    for split, examples in splits.items():
        assert {example.split for example in examples} == {split}
        assert {(example.source, example.part) for example in examples} == set(zip(SOURCES, PARTS, strict=True))
    studies = collections.Counter((example.source, example.patient) for example in everything)
    assert set(studies.values()) == {1, 2, 3}


def test_built_data_set_can_be_read(phantom_dir: pathlib.Path) -> None:
    wanted = {example.id: example for example in small_phantom(phantom_dir).examples("test")}
    read = [example for part in PARTS for example in open_records(phantom_dir, "test", part)]
    assert {example.id for example in read} == set(wanted)
    for example in read:
        assert (pixels_of(example) == pixels_of(wanted[example.id])).all()
        assert pixels_of(example).shape == (64, 64)
        assert (example.text, example.labels) == (wanted[example.id].text, wanted[example.id].labels)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures and boxes


def test_boxes_bound_what_changes_when_the_finding_is_taken_away() -> None:
    seen: collections.Counter[str] = collections.Counter()
    for number in range(150):
        patient = patient_of(5, "train", PAIRED_SOURCE, number)
        findings = draw_findings(patient, 1)
        pixels, boxes = render(patient, 1, findings, PAIRED_SOURCE, 64)
        for finding in findings:
            bare, _ = render(patient, 1, [other for other in findings if other != finding], PAIRED_SOURCE, 64)
            change = np.abs(pixels.astype(int) - bare)
            own = [box for box in boxes if box.kind == finding.kind]
            assert len(own) == max(1, len(finding.sides)), finding
            inside = np.zeros((64, 64), bool)
            for box in own:
                top, bottom, start, end = (round(64 * value) for value in (box.y_min, box.y_max, box.x_min, box.x_max))
                inside[top:bottom, start:end] = True
                part = change[top:bottom, start:end]
                limit = max(3, 0.2 * part.max())
                # Each of the four edges touches the change, give or take rounding.
                for edge in (part[0], part[-1], part[:, 0], part[:, -1]):
                    assert edge.max() >= limit - 2, (finding, box)
            limit = max(3, 0.2 * change.max())
            assert change[~inside].max() < limit + 2, finding
            seen[finding.kind] += 1
    assert set(seen) == set(KINDS)


def test_every_present_kind_of_the_paired_part_has_a_box(paired: list[Example]) -> None:
    for example in paired:
        present = {kind for kind, state in example.labels.items() if state == LabelState.PRESENT} - {"no_finding"}
        assert {box.kind for box in example.boxes} == present, example.id


def test_right_is_on_the_image_left() -> None:
    seen: collections.Counter[tuple[str, str]] = collections.Counter()
    for number in range(500):
        patient = patient_of(7, "test", PAIRED_SOURCE, number)
        findings = draw_findings(patient, 1)
        for finding in findings:
            if len(finding.sides) != 1:
                continue
            pixels, _ = render(patient, 1, findings, PAIRED_SOURCE, 64)
            bare, _ = render(patient, 1, [other for other in findings if other != finding], PAIRED_SOURCE, 64)
            change = np.abs(pixels.astype(float) - bare).sum(0)
            centre = (change * np.arange(64)).sum() / change.sum()
            assert (centre < 32) == (finding.sides == ("right",)), finding
            seen[finding.kind, finding.sides[0]] += 1
    assert {("pleural_effusion", "right"), ("pleural_effusion", "left"), ("nodule", "right")} <= set(seen)


def test_reports_name_the_side(paired: list[Example]) -> None:
    named: collections.Counter[str] = collections.Counter()
    for example in paired:
        kinds_of, centres = collections.defaultdict(set), collections.defaultdict(list)
        for entity in example.entities:
            if entity.kind and not entity.negated:
                kinds_of[in_sentence(example.text, entity.start)].add(entity.kind)
        for box in example.boxes:
            centres[box.kind].append((box.x_min + box.x_max) / 2)
        for sentence, kinds in kinds_of.items():
            sides = re.findall(r"\b(?:right|left)\b", sentence.lower())
            kind = next(iter(kinds))
            if len(kinds) > 1 or len(sides) != 1 or kind not in centres:
                continue
            assert [centre < 0.5 for centre in centres[kind]] == [sides == ["right"]], (sentence, centres)
            named[kind] += 1
    assert min(named[kind] for kind in ("pleural_effusion", "pneumothorax", "nodule", "atelectasis")) > 20


def test_the_heart_bulges_to_the_image_right_and_the_air_is_dark() -> None:
    healthy = []
    for number in range(40):
        patient = patient_of(11, "train", PAIRED_SOURCE, number)
        healthy.append(render(patient, 1, (), PAIRED_SOURCE, 64)[0].astype(float))
    mean = np.mean(healthy, axis=0)
    heart = mean[40:44]
    assert heart[:, 39:44].mean() > heart[:, 20:25].mean() + 25
    lungs = np.concatenate([mean[20:30, 13:20], mean[20:30, 44:51]])
    assert lungs.mean() + 60 < mean[40:44, 33:38].mean()
    assert mean[:4, :8].mean() < 25 > mean[:4, -8:].mean()


def test_cardiomegaly_widens_the_heart() -> None:
    ratios: dict[bool, list[float]] = {True: [], False: []}
    for number in range(250):
        patient = patient_of(13, "train", PAIRED_SOURCE, number)
        large = [finding for finding in draw_findings(patient, 1) if finding.kind == "cardiomegaly"]
        pixels, _ = render(patient, 1, large, PAIRED_SOURCE, 128)
        # In the rows of the heart: the longest run of bright pixels between the lungs.
        band = pixels[74:92, 16:-16].astype(float)
        bright = band > (band.min(1, keepdims=True) + band.max(1, keepdims=True)) / 2
        run = [max(map(len, "".join("01"[int(b)] for b in row).split("0"))) for row in bright]
        ratios[bool(large)].append(float(np.median(run)))
    assert len(ratios[True]) > 25
    assert np.median(ratios[True]) > 1.12 * np.median(ratios[False])


# ---------------------------------------------------------------------------------------------------------------------
# Labels and reports


def test_reports_say_nothing_untrue(paired: list[Example]) -> None:
    stated: collections.Counter[tuple[str, bool]] = collections.Counter()
    hedges: collections.Counter[bool] = collections.Counter()
    for example in paired:
        for entity in example.entities:
            kind = "support_device" if entity.kind in DEVICES else entity.kind
            if kind not in example.labels:
                assert kind in ("", "scoliosis", "degenerative_change"), (entity, example.text)
                continue
            present = example.labels[kind] == LabelState.PRESENT
            if any(word in in_sentence(example.text, entity.start).lower() for word in words.HEDGE_WORDS):
                hedges[present] += 1
                continue
            assert entity.negated != present, (entity, example.text)
            stated[kind, entity.negated] += 1
    for kind in DISEASES:
        assert stated[kind, False] > 20, kind
        assert stated[kind, True] > 5, kind
    assert hedges[True] > hedges[False] > 0


def test_reports_are_not_labels_in_disguise(paired: list[Example]) -> None:
    told = silent = missed = 0
    for example in paired:
        kinds = {entity.kind for entity in example.entities if not entity.negated}
        denied = {entity.kind for entity in example.entities if entity.negated}
        for kind in DISEASES:
            if example.labels[kind] == LabelState.PRESENT:
                told += kind in kinds
                missed += kind not in kinds
            else:
                silent += kind not in denied
    assert 0.9 < told / (told + missed) < 1.0
    assert silent > len(paired) * len(DISEASES) * 0.4
    texts = [example.text for example in paired]
    assert len(set(texts)) > 0.97 * len(texts)
    assert all(texts)
    assert 0.03 < np.mean([not example.impression for example in paired]) < 0.3
    assert 0.02 < np.mean([not example.findings for example in paired]) < 0.15
    assert np.percentile([len(text.split()) for text in texts], 95) <= 60


def test_a_masked_name_cannot_be_guessed_from_its_sentence(paired: list[Example]) -> None:
    sentences = []
    for example in [*paired, *generate(CONFIG, "test", PAIRED_SOURCE), *generate(CONFIG, "validation", PAIRED_SOURCE)]:
        for entity in example.entities:
            if entity.negated or entity.kind not in DISEASES:
                continue
            sentence = in_sentence(example.text, entity.start)
            sentences.append((sentence.replace(entity.text, "[X]"), entity.kind))
    half = len(sentences) // 2
    guesses: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for sentence, kind in sentences[:half]:
        guesses[sentence][kind] += 1
    known = [(guesses[sentence].most_common(1)[0][0], kind) for sentence, kind in sentences[half:] if guesses[sentence]]
    assert len(known) > 300
    assert np.mean([guess == kind for guess, kind in known]) < 0.5


@pytest.mark.parametrize("kind", sorted(words.TERMS))
def test_terms_belong_to_their_kind(kind: str) -> None:
    names = [term for term, _ in words.TERMS[kind]]
    if kind == "pleural_effusion":  # the only one that reports put in the plural
        names += [f"{name}s" for name in names]
    for name in names:
        (found,) = [entity for entity in entities.find_entities(f"There is {name}.") if entity.kind]
        assert (found.text, found.kind, found.negated) == (name, kind, False)
    assert kind in prompts.KINDS


def test_labels_of_the_two_hospitals(paired: list[Example]) -> None:
    for example in paired:
        assert set(example.labels) == {*KINDS, "no_finding"}
        assert set(example.labels.values()) <= {LabelState.PRESENT, LabelState.ABSENT}
        diseased = any(example.labels[kind] == LabelState.PRESENT for kind in DISEASES)
        assert (example.labels["no_finding"] == LabelState.PRESENT) != diseased
    unknown = 0
    for number, example in enumerate(generate(CONFIG, "train", UNPAIRED_SOURCE)):
        assert (example.text, example.boxes, example.entities) == ("", (), ())
        assert not set(UNLABELLED) & set(example.labels)
        assert set(KINDS) - set(UNLABELLED) <= set(example.labels)
        if "no_finding" not in example.labels:
            unknown += 1
            assert not any(example.labels[kind] == LabelState.PRESENT for kind in set(DISEASES) - set(UNLABELLED))
        assert number < 1000
    assert unknown > 5


def test_long_standing_findings_stay() -> None:
    for number in range(300):
        patient = patient_of(17, "train", PAIRED_SOURCE, number)
        chronic = {finding.kind for finding in patient.chronic}
        for study in range(1, patient.studies + 1):
            findings = draw_findings(patient, study)
            assert {f.kind for f in findings} & {"fibrosis", "hernia", "nodule", "mass"} == chronic & {
                "fibrosis",
                "hernia",
                "nodule",
                "mass",
            }
            assert len({finding.kind for finding in findings}) == len(findings)


# ---------------------------------------------------------------------------------------------------------------------
# Difficulty


def documented() -> dict[str, list[float]]:
    rows = re.findall(
        r"^\| ([a-z_]+) \| ([\d.]+) \| (\d+) \| ([\d.]+), ([\d.]+), ([\d.]+) \| ([\d.]+) \|$", DOCS.read_text(), re.M
    )
    return {kind: [float(value) for value in values] for kind, *values in rows}


@pytest.mark.slow
def test_difficulty_is_what_the_documentation_says() -> None:
    table = documented()
    assert set(table) == set(KINDS)
    config = PhantomConfig(seed=101, patients={PAIRED_SOURCE: {"train": 1500}})
    facts = describe.measure(config)
    for kind, (prevalence, _, _, area, _, contrast) in table.items():
        measured = facts.kinds[kind]
        assert 8 <= prevalence <= 25
        assert 100 * measured.prevalence == pytest.approx(prevalence, abs=4), kind
        assert 100 * np.median(measured.areas) == pytest.approx(area, rel=0.2), kind
        assert measured.contrast == pytest.approx(contrast, rel=0.2), kind
    assert 0.26 < facts.normal < 0.36
    everything = np.concatenate([kind.areas for kind in facts.kinds.values()])
    assert 0.04 < np.median(everything) < 0.09
    assert kind in describe.table(facts)


def test_nodules_are_at_least_five_pixels_wide(paired: list[Example]) -> None:
    sizes = [
        64 * min(box.x_max - box.x_min, box.y_max - box.y_min)
        for example in paired
        for box in example.boxes
        if box.kind == "nodule"
    ]
    assert len(sizes) > 30
    assert min(sizes) >= 5


def test_defaults_are_as_large_as_documented() -> None:
    for source, split, studies in (
        (PAIRED_SOURCE, "train", 6000),
        (UNPAIRED_SOURCE, "train", 6000),
        (PAIRED_SOURCE, "test", 1200),
    ):
        patients = PhantomConfig().patients[source][split]
        drawn = sum(patient_of(0, split, source, number).studies for number in range(patients))
        assert drawn == pytest.approx(studies, rel=0.05)
        assert scaled_patients(0.5)[source][split] == patients / 2


def test_drawing_is_fast() -> None:
    config = PhantomConfig(patients={PAIRED_SOURCE: {"train": 60}})
    next(generate(config, "train", PAIRED_SOURCE))
    start = time.process_time()
    number = len(list(generate(config, "train", PAIRED_SOURCE)))
    assert number / (time.process_time() - start) > 60


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"seed": -1}, "seed"),
        ({"image_size": 8}, "image_size"),
        ({"patients": {"phantom-c": {"train": 1}}}, "phantom-c"),
        ({"patients": {"phantom-a": {"dev": 1}}}, "dev"),
    ],
)
def test_bad_options_are_named(options: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        PhantomConfig(**options)
    with pytest.raises(UserError, match="scale"):
        scaled_patients(0.0)
