"""Evaluation and comparison of a classifier: a toy one with known outputs, and the guard against its own rows."""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import tiny
import toy
from sklearn.metrics import roc_auc_score

from mmclip_jax.data.records import RecordsBuilder, build
from mmclip_jax.data.schema import Example
from mmclip_jax.errors import LeakageError, UserError
from mmclip_jax.evaluate import protocols
from mmclip_jax.evaluate import run as evaluation
from mmclip_jax.evaluate.model import Foreign, Supervised
from mmclip_jax.evaluate.report import comparison
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap
from mmclip_jax.finetune import run as finetuning
from mmclip_jax.finetune.task import Settings

KNOWN = ("cardiomegaly", "nodule", "pneumothorax", "hernia")
CUT = {"youden": 0.5, "sensitivity_90": 0.4}


class ToyBuilder(RecordsBuilder):
    name = "toy"

    def examples(self, split: str) -> Iterator[Example]:
        if split in ("test", "validation"):
            other = int(split == "validation")
            yield from toy.collection(patients=90, split=split, seed=other, first=1000 * other)


class ToyClassifier:
    """Its features are the planted scores; a finding's logit is 10 (score / MOST - 0.5)."""

    logit_scale = 1.0
    step = 40
    description = "a toy"
    findings: Sequence[str] = KNOWN

    def __init__(self) -> None:
        self.thresholds: dict[str, dict[str, float | None]] = {finding: dict(CUT) for finding in KNOWN}
        self.thresholds["nodule"] = dict.fromkeys(CUT)
        notes = {"nodule": "3 patients of validation have it, fewer than 10"}
        told = {
            "mode": "full", "task": "multi-label", "fraction": 0.1, "seed": 2, "step": 40, "findings": list(KNOWN),
            "images": 120, "patients": 60, "uncertain": "left out", "checkpoint": {"run": "demo", "step": 1000},
            "data": {"/d": {"name": "phantom", "version": "1.0.0", "examples": 9, "fingerprint": "f" * 64}},
            "label_kinds": {"here": list(KNOWN)}, "sources": {"here": 120},
            "validation": {"images": 50, "patients": 25, "macro_auroc": 0.8},
            "thresholds": {"least_patients": 10, "findings": [
                {"finding": finding, "note": notes.get(finding, "")} for finding in KNOWN]},
        }  # fmt: skip
        self.manifest: dict[str, Any] = {**toy.MANIFEST, "classifier": told}

    def encode_image(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([toy.planted_scores(pixels) / toy.MOST for pixels in images]).astype(np.float32)

    def logits_of(self, features: np.ndarray) -> np.ndarray:
        columns = [toy.KINDS.index(kind) if kind in toy.KINDS else 0 for kind in KNOWN]
        return 10 * (np.asarray(features, np.float64)[:, columns] - 0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return build(ToyBuilder(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, data: pathlib.Path) -> pathlib.Path:
    """Folders "classifier" and "prompts" of two evaluations of the same rows."""
    folder = tmp_path_factory.mktemp("evaluations")
    models: dict[str, Any] = {"classifier": ToyClassifier(), "prompts": toy.ToyModel(toy.MANIFEST)}
    for name, model in models.items():
        options = evaluation.Options(
            bootstrap=Bootstrap(resamples=30), protocol=protocols.load("table"), run_name=name, cases=2, progress=False,
            without=() if name == "classifier" else ("trust", "counterfactual", "grounding", "entmlm"),
        )  # fmt: skip
        evaluation.evaluate_checkpoint(model, data, "test", folder / name, options)
    return folder


def _results(out: pathlib.Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "classifier" / "results.json").read_text())
    return found


def _column(out: pathlib.Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(label, score) of a finding in the source "here", known rows."""
    saved = comparison.SavedEvaluation.read(out / "classifier")
    k = saved.findings.index(name)
    rows = (saved.sources == "here") & ~np.isnan(saved.labels[:, k])
    return saved.labels[rows, k], saved.scores[rows, k]


def test_a_classifier_is_neither_a_model_with_texts_nor_a_foreign_one() -> None:
    assert isinstance(ToyClassifier(), Supervised)
    assert not isinstance(ToyClassifier(), Foreign)
    assert not isinstance(toy.ToyModel(), Supervised)


def test_scores_are_the_logits_of_what_it_learnt(out: pathlib.Path) -> None:
    results = _results(out)
    here = {row["finding"]: row for row in results["zero_shot"]["sources"]["here"]["findings"]}
    assert list(here) == ["cardiomegaly", "nodule", "pneumothorax"]
    assert results["zero_shot"]["not_learnt"] == ["pleural_effusion", "fibrosis"]
    for name, row in here.items():
        assert row["difference"]["auroc"] == pytest.approx(roc_auc_score(*_column(out, name)), abs=1e-12)
    assert results["checkpoint"]["step"] == 40
    assert results["headline"]["macro_auroc_called"] == "supervised"
    assert here["nodule"]["exposure"] == "fine-tuned on labels of this source"
    there = results["zero_shot"]["sources"]["there"]["findings"]
    assert {row["exposure"] for row in there} == {"fine-tuned on another source's labels"}


def test_what_needs_texts_is_left_out_and_the_rest_is_there(out: pathlib.Path) -> None:
    results = _results(out)
    assert results["contrastive"]["recall"] == []
    for name in ("counterfactual", "grounding", "entmlm"):
        assert not results[name]
    trust = results["trust"]
    assert trust["negation"] is None
    assert trust["prompts"] is None
    labels, scores = zip(*[_column(out, name) for name in KNOWN[:3]], strict=True)
    chance = 1 / (1 + np.exp(-np.concatenate(scores)))
    brier = np.mean((chance - np.concatenate(labels)) ** 2)
    assert trust["calibration"]["as_trained"]["brier"] == pytest.approx(brier, abs=1e-9)
    assert [check["name"] for check in trust["sanity"]][-1] == "another finding's output"


def test_its_own_thresholds_give_sensitivity_and_specificity(out: pathlib.Path) -> None:
    results = _results(out)
    found = {row["finding"]: row for row in results["operating"]["findings"]}
    labels, scores = _column(out, "cardiomegaly")
    for rule in found["cardiomegaly"]["rules"]:
        called = 1 / (1 + np.exp(-scores)) >= CUT[rule["rule"]]
        assert rule["sensitivity"] == pytest.approx(called[labels == 1].mean(), abs=1e-12)
        assert rule["specificity"] == pytest.approx((~called)[labels == 0].mean(), abs=1e-12)
        low, high = rule["sensitivity_interval"]
        assert low < rule["sensitivity"] < high
    assert found["nodule"]["rules"] == []


def test_page_and_card_say_that_it_is_a_classifier(out: pathlib.Path) -> None:
    page = (out / "classifier" / "report.html").read_text()
    card = (out / "classifier" / "model_card.md").read_text()
    for text in (page, card):
        assert "Macro AUROC of the classifier" in text
        assert "120 images of 60 patients of phantom" in text
        assert "none of its scores is zero-shot" in text
        assert "Youden" in text
    assert "Findings by the classifier" in page
    assert "no threshold: 3 patients of validation have it" in page
    assert "nearer to “X”" not in page
    assert "affirming only" not in page
    assert "no output for these findings of the protocol: pleural effusion, fibrosis" in card
    assert "no threshold for nodule (3 patients" in card


def test_it_is_compared_with_prompts_over_the_findings_of_both(out: pathlib.Path, tmp_path: pathlib.Path) -> None:
    text = comparison.run([out / "prompts", out / "classifier"], tmp_path, resamples=30)
    result = json.loads((tmp_path / "compare.json").read_text())
    rows = {row["finding"]: row for row in result["sources"]["here"]["findings"]}
    assert list(rows) == ["cardiomegaly", "nodule", "pneumothorax"]
    assert result["left_out"] == ["fibrosis", "pleural effusion"]
    # The toy's prompts rank images by the planted scores, and so does the classifier.
    for row in rows.values():
        assert row["auroc"]["differences"][1]["difference"] == pytest.approx(0, abs=1e-12)
    assert "B is a classifier that was trained on labels" in text
    assert "Not compared, since not all runs have them: fibrosis, pleural effusion" in text
    page = (tmp_path / "compare.html").read_text()
    assert "a classifier, trained on labels of 120 images" in page
    assert "two kinds of supervision" in page


def test_models_with_prompts_still_need_the_same_findings(out: pathlib.Path) -> None:
    both = [comparison.SavedEvaluation.read(out / "prompts") for _ in range(2)]
    with pytest.raises(UserError, match="do not hold the same findings"):
        comparison.in_common([both[0], both[1].only(["nodule"])])
    tuned = comparison.SavedEvaluation.read(out / "classifier")
    with pytest.raises(UserError, match="do not hold the same findings"):
        comparison.in_common([tuned, both[0].only(["fibrosis"])])


@pytest.mark.compiles
def test_rows_that_a_classifier_learnt_or_chose_from_are_refused(
    tmp_path: pathlib.Path, phantom_dir: pathlib.Path
) -> None:
    run = tiny.saved_run(tmp_path / "run", phantom_dir)
    settings = Settings(fractions=(1.0,), seeds=(0,), steps=2, batch=16, evaluations=1)
    finetuning.run(run, [phantom_dir], tmp_path / "tuned", settings, resamples=5, progress=False)
    folder = tmp_path / "tuned" / "probe" / "fraction_1" / "seed_0"
    for split in ("train", "validation"):
        with pytest.raises(LeakageError, match="images are known from training"):
            evaluation.run(folder, split=split, resamples=5, progress=False)
    text = evaluation.run(folder, resamples=5, progress=False)
    assert "Macro AUROC of the classifier" in text
    assert "Fine-tuned on: " in text
    results = json.loads((folder / "evaluation" / "2" / "results.json").read_text())
    assert results["audit"]["parts"]["validation of the fine-tuning"] == "clean"
    assert results["checkpoint"]["run"] == "run, probe on 100 %, seed 0"
    # The test rows are those of the fine-tuning's own table.
    own = json.loads((tmp_path / "tuned" / "probe" / "results.json").read_text())["fractions"][0]["sources"]
    here = results["zero_shot"]["sources"]["phantom-a"]["macro"]["difference"]["all"]["auroc"]
    assert here == pytest.approx(own["phantom-a"]["macro_auroc"]["mean"], abs=1e-6)
