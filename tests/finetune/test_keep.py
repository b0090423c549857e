"""What is kept of a fine-tuning run: thresholds, and a classifier that scores as the run did."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import tiny
from sklearn import metrics as oracle

import mmclip_jax
from mmclip_jax.checkpoints import find_checkpoint
from mmclip_jax.data.records import open_records
from mmclip_jax.errors import DamagedCheckpointError, UserError
from mmclip_jax.evaluate.rows import Split
from mmclip_jax.evaluate.stats import thresholds
from mmclip_jax.finetune import keep
from mmclip_jax.finetune import run as finetuning
from mmclip_jax.finetune.task import Settings

FEWEST = 4  # the small phantom has few validation patients
PROBE = Settings(fractions=(1.0,), seeds=(0,), steps=12, batch=16, evaluations=3)
CLASSES = Settings(
    mode="full", task="multi-class", findings=("no_finding", "cardiomegaly", "edema"), fractions=(0.25,), seeds=(3,),
    steps=4, batch=8, evaluations=2,
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Thresholds


@pytest.mark.parametrize("least", [0.9, 0.5, 1.0])
def test_the_threshold_of_a_sensitivity_is_the_largest_that_reaches_it(least: float) -> None:
    rng = np.random.default_rng(int(100 * least))
    labels = rng.integers(0, 2, 90).astype(float)
    scores = np.round(rng.normal(size=90) + labels, 1)  # with ties
    found = thresholds.threshold_of_sensitivity(labels, scores, least)
    _, reached, cuts = oracle.roc_curve(labels, scores, drop_intermediate=False)
    assert found == cuts[reached >= least].max()
    labels[::7] = np.nan
    known = ~np.isnan(labels)
    assert thresholds.threshold_of_sensitivity(labels, scores, least) == thresholds.threshold_of_sensitivity(
        labels[known], scores[known], least
    )


def test_nine_of_ten_positives_are_a_sensitivity_of_nine_tenths() -> None:
    assert thresholds.threshold_of_sensitivity(np.ones(10), np.arange(10.0)) == 1.0
    assert np.isnan(thresholds.threshold_of_sensitivity(np.zeros(3), np.arange(3.0)))
    with pytest.raises(ValueError, match="not in"):
        thresholds.threshold_of_sensitivity(np.ones(2), np.arange(2.0), 0.0)


def test_thresholds_are_refused_where_few_patients_have_the_finding() -> None:
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(40), 2)  # two images each
    labels = np.stack([people < 10, people < 9, people < 35, np.full(80, np.nan)], axis=1).astype(float)
    labels[:, 3] = np.nan
    chances = rng.random((80, 4))
    rows = keep.choose_thresholds(labels, chances, people.tolist(), ("edema", "nodule", "mass", "hernia"))
    enough, few, few_without, nobody = rows
    assert (enough["positive_patients"], enough["negative_patients"], enough["note"]) == (10, 30, "")
    called = chances[:, 0] >= enough["rules"]["youden"]["threshold"]
    assert enough["rules"]["youden"]["sensitivity"] == called[labels[:, 0] == 1].mean()
    assert enough["rules"]["youden"]["specificity"] == (~called)[labels[:, 0] == 0].mean()
    false, true, cuts = oracle.roc_curve(labels[:, 0], chances[:, 0], drop_intermediate=False)
    assert enough["rules"]["youden"]["threshold"] == cuts[np.argmax(true - false)]
    assert enough["rules"]["sensitivity_90"]["sensitivity"] >= 0.9
    for row, words in ((few, "9 patients of validation have it"), (few_without, "5 patients of validation are known")):
        assert row["rules"] == {"youden": None, "sensitivity_90": None}
        assert words in row["note"]
    assert "0 patients of validation have it and 0" in nobody["note"]
    assert keep.refused_text(rows).startswith("No threshold is chosen for nodule (9 patients")
    assert keep.refused_text([enough]) == ""


def test_a_folded_layer_does_what_the_layer_did_on_standardised_features() -> None:
    rng = np.random.default_rng(1)
    features, mean, sd = 5 * rng.normal(size=(9, 4)) + 3, rng.normal(size=4), rng.random(4) + 0.1
    head = {"kernel": rng.normal(size=(4, 2)), "bias": rng.normal(size=2)}
    folded = keep.fold(head, mean, sd)
    before = (features - mean) / sd @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(features @ folded["kernel"] + folded["bias"], before, atol=2e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, phantom_dir: pathlib.Path) -> pathlib.Path:
    return tiny.saved_run(tmp_path_factory.mktemp("pretrained") / "run", phantom_dir)


def _tuned(checkpoint: pathlib.Path, data: pathlib.Path, out: pathlib.Path, settings: Settings) -> pathlib.Path:
    finetuning.run(checkpoint, [data], out, settings, resamples=20, progress=False)
    return out / settings.mode / f"fraction_{settings.fractions[0]:g}" / f"seed_{settings.seeds[0]}"


@pytest.fixture(scope="module")
def probe(
    tmp_path_factory: pytest.TempPathFactory, pretrained: pathlib.Path, phantom_dir: pathlib.Path
) -> pathlib.Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keep, "FEWEST_PATIENTS", FEWEST)
        return _tuned(pretrained, phantom_dir, tmp_path_factory.mktemp("tuned"), PROBE)


@pytest.fixture(scope="module")
def classes(
    tmp_path_factory: pytest.TempPathFactory, pretrained: pathlib.Path, phantom_dir: pathlib.Path
) -> pathlib.Path:
    return _tuned(pretrained, phantom_dir, tmp_path_factory.mktemp("classes"), CLASSES)


def _scored(folder: pathlib.Path, data: pathlib.Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    saved = dict(np.load(folder / "scores.npz"))
    split = Split.load([data], "test")
    row_of = {example.id: row for row, example in enumerate(split.examples)}
    return saved, split.pixels([row_of[id] for id in saved["ids"].tolist()])


@pytest.mark.compiles
def test_a_loaded_probe_gives_the_scores_of_its_run(probe: pathlib.Path, phantom_dir: pathlib.Path) -> None:
    saved, images = _scored(probe, phantom_dir)
    classifier = mmclip_jax.load(probe)
    assert isinstance(classifier, mmclip_jax.Classifier)
    found = classifier.predict(images)
    assert tuple(found) == classifier.findings
    chances = np.stack(list(found.values()), axis=1)
    np.testing.assert_allclose(chances, 1 / (1 + np.exp(-saved["scores"])), atol=2e-6)
    assert np.ptp(chances) > 0.05
    # One image alone, and all devices, are the same; nothing at all is nothing.
    np.testing.assert_allclose(classifier.predict(images[:1])["edema"], found["edema"][:1], atol=1e-6)
    np.testing.assert_allclose(
        mmclip_jax.load(probe, all_devices=True).predict(images)["edema"], found["edema"], atol=1e-6
    )
    assert classifier.predict([])["edema"].shape == (0,)


@pytest.mark.compiles
def test_thresholds_are_those_of_the_validation_rows(probe: pathlib.Path, phantom_dir: pathlib.Path) -> None:
    classifier = mmclip_jax.load(probe)
    split = Split.load([phantom_dir], "validation")
    found = classifier.predict(split.pixels(range(len(split))))
    refused = 0
    for finding in classifier.findings:
        labels = np.array([{"PRESENT": 1.0, "ABSENT": 0.0}.get(
            e.labels[finding].name if finding in e.labels else "", np.nan) for e in split.examples])  # fmt: skip
        people = [len({split.patients[row] for row in np.flatnonzero(labels == value)}) for value in (1, 0)]
        rules = classifier.thresholds[finding]
        if min(people) < FEWEST:
            refused += 1
            assert rules == {"youden": None, "sensitivity_90": None}
            assert finding in classifier.without_threshold
            continue
        known = ~np.isnan(labels)
        false, true, cuts = oracle.roc_curve(labels[known], found[finding][known], drop_intermediate=False)
        assert rules["youden"] == pytest.approx(cuts[np.argmax(true - false)], abs=1e-5)
        assert rules["sensitivity_90"] == pytest.approx(cuts[true >= 0.9].max(), abs=1e-5)
    assert 0 < refused < len(classifier.findings)


@pytest.mark.compiles
def test_a_classifier_says_what_it_is(probe: pathlib.Path, phantom_dir: pathlib.Path) -> None:
    classifier = mmclip_jax.load(probe)
    learnt = open_records(phantom_dir, "train", "paired")
    told = classifier.manifest["classifier"]
    assert 0 < told["images"] <= len(learnt) + len(open_records(phantom_dir, "train", "unpaired"))
    assert told["checkpoint"]["step"] == 5
    assert set(told["label_kinds"]) == {"phantom-a", "phantom-b"}
    assert {entry["name"] for entry in classifier.manifest["data"].values()} == {"phantom"}
    text = repr(classifier)
    for words in ("mmclip_jax.Classifier, step", "12 findings", "edema", "labels of artificial X-rays alone",
                  "phantom-a (", "a linear layer, on 100 % of training", "say nothing about real"):  # fmt: skip
        assert words in text
    assert classifier.stamp.is_artificial
    assert classifier.stamp.of("edema") == "fine-tuned on its labels"


@pytest.mark.compiles
def test_predict_takes_a_classifier(
    probe: pathlib.Path, phantom_dir: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    from mmclip_jax import cli

    image = tmp_path / "one.png"
    pixels = Split.load([phantom_dir], "test").pixels([3])
    Image.fromarray(pixels[0]).save(image)
    classifier = mmclip_jax.load(probe)
    assert cli.main(["predict", str(probe), str(image), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "artificial X-rays" in found["domain"]
    said = found["images"][0]["findings"]
    assert tuple(said) == classifier.findings
    for finding, values in classifier.predict(pixels).items():
        assert said[finding]["probability"] == pytest.approx(float(values[0]), abs=1e-4)
        cut = classifier.thresholds[finding]["youden"]
        assert ("positive" in said[finding]) == (cut is not None)
        assert said[finding]["exposure"] == "fine-tuned on its labels"
    assert cli.main(["predict", str(probe), str(image), "--heatmaps", str(tmp_path / "maps")]) == 2
    assert "--heatmaps is of models that read text" in capsys.readouterr().err
    assert cli.main(["predict", str(probe), str(image), "--findings", "covid_19"]) == 2
    assert "has no output for 'covid_19'" in capsys.readouterr().err
    assert cli.main(["embed", str(probe), str(image), "--out", str(tmp_path / "e.npz")]) == 2
    assert "is a classifier, which has no embeddings" in capsys.readouterr().err


@pytest.mark.compiles
def test_classes_share_one_probability(classes: pathlib.Path, phantom_dir: pathlib.Path) -> None:
    saved, images = _scored(classes, phantom_dir)
    classifier = mmclip_jax.load(classes)
    found = np.stack(list(classifier.predict(images).values()), axis=1)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(found, saved["scores"], atol=2e-6)


@pytest.mark.compiles
def test_the_way_to_a_classifier_is_named(
    probe: pathlib.Path, classes: pathlib.Path, pretrained: pathlib.Path, phantom_dir: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:  # fmt: skip
    assert mmclip_jax.load(probe / "classifier").step == mmclip_jax.load(probe).step
    with pytest.raises(UserError, match=r"holds 1 classifiers: name the folder of one \(probe/fraction_1/seed_0\)"):
        mmclip_jax.load(probe.parents[2])
    bare = _tuned(pretrained, phantom_dir, tmp_path, Settings(
        fractions=(1.0,), seeds=(0,), steps=2, batch=16, evaluations=1, discard_classifiers=True))  # fmt: skip
    assert not (bare / "classifier").exists()
    with pytest.raises(UserError, match="kept no classifier"):
        mmclip_jax.load(bare)
    with pytest.raises(UserError, match="is a fine-tuned classifier: give --model the run"):
        finetuning.run(probe / "classifier", [phantom_dir], tmp_path / "again", PROBE, progress=False)
    with pytest.raises(UserError, match="is a fine-tuned classifier"):
        finetuning.run(probe, [phantom_dir], tmp_path / "again", PROBE, progress=False)


@pytest.mark.compiles
def test_a_damaged_classifier_is_refused(probe: pathlib.Path, tmp_path: pathlib.Path) -> None:
    import shutil

    copy = tmp_path / "classifier"
    shutil.copytree(probe / "classifier", copy)
    # Which of the files holds what is read differs from run to run, and much in them is not read.
    for file in (copy / "params").glob("**/d/*"):
        data = bytearray(file.read_bytes())
        for place in range(0, len(data), 997):
            data[place] ^= 1
        file.write_bytes(bytes(data))
    with pytest.raises(DamagedCheckpointError, match="damaged"):
        mmclip_jax.load(copy)
    assert find_checkpoint(probe / "classifier").manifest["classifier"]["mode"] == "probe"


# ---------------------------------------------------------------------------------------------------------------------
# Exports


@pytest.mark.compiles
def test_an_exported_classifier_stands_for_it(
    probe: pathlib.Path, phantom_dir: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    from mmclip_jax import cli

    out, image = tmp_path / "out", tmp_path / "one.png"
    assert cli.main(["export", str(probe), "--to", "numpy", str(out)]) == 0
    pixels = Split.load([phantom_dir], "test").pixels([3])
    ours, back = mmclip_jax.load(probe), mmclip_jax.load(out)
    assert isinstance(back, mmclip_jax.Classifier)
    assert (back.step, back.thresholds) == (ours.step, ours.thresholds)
    assert find_checkpoint(out, ours.step).step == ours.step
    np.testing.assert_array_equal(back.encode_image(pixels), ours.encode_image(pixels))
    said = json.loads((out / "classifier.json").read_text())
    assert (tuple(said["findings"]), said["thresholds"]) == (ours.findings, ours.thresholds)
    assert said["probabilities"] == "sigmoid"
    assert not (out / "tokenizer.json").exists()
    card = (out / "model_card.md").read_text()
    assert card.startswith(f"# Model card: run, probe on 100 %, seed 0, step {ours.step}\n")
    assert "Research on classification" in card
    assert "linear layer to 12 findings" in card
    Image.fromarray(pixels[0]).save(image)
    capsys.readouterr()
    assert cli.main(["predict", str(out), str(image), "--findings", "edema", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)["images"][0]["findings"]["edema"]
    assert found["probability"] == pytest.approx(float(ours.predict(pixels)["edema"][0]), abs=1e-4)
    for form in ("onnx", "open_clip"):
        assert cli.main(["export", str(probe), "--to", form, str(tmp_path / form)]) == 2
        assert "is exported to huggingface, stablehlo, numpy" in capsys.readouterr().err
    assert cli.main(["export", str(probe), "--to", "huggingface", str(tmp_path / "vit")]) == 2
    assert "ViTForImageClassification has no counterpart of model.stem='conv'" in capsys.readouterr().err
    assert cli.main(["predict", str(probe), str(image), "--step", "99"]) == 2
    assert "is a single checkpoint, not the one of step 99: leave the step out" in capsys.readouterr().err


@pytest.mark.compiles
def test_a_classifiers_program_gives_its_probabilities(
    probe: pathlib.Path, classes: pathlib.Path, phantom_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    from jax import export as jax_export

    from mmclip_jax.data.images import transforms
    from mmclip_jax.export import run as export

    images = Split.load([phantom_dir], "test").pixels([3, 5, 8])
    for folder in (probe, classes):
        out = tmp_path / folder.parts[-3]
        export.run(folder, "stablehlo", out)
        classifier = mmclip_jax.load(folder)
        size = classifier.config.model.image_size
        fitted = np.stack([transforms.fit_image(each, size) for each in images])
        with np.load(out / "params.npz") as stored:
            params = dict(stored)
        wanted = np.stack(list(classifier.predict(images).values()), axis=1)
        for ending, rows in (("any", fitted), ("1", fitted[:1])):
            program = jax_export.deserialize(bytearray((out / f"classify.{ending}.jax_export").read_bytes()))
            np.testing.assert_allclose(program.call(params, rows), wanted[: len(rows)], atol=2e-6)
        assert json.loads((out / "classifier.json").read_text())["findings"] == list(classifier.findings)
