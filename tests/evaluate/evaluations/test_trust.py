"""Each probe against a toy whose answer is known: it reads planted scores, and its words are exact."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import toy
from sklearn.metrics import roc_auc_score

from mmclip_jax.data.schema import Example, LabelState
from mmclip_jax.evaluate import protocols
from mmclip_jax.evaluate.evaluations import subgroups, trust, zeroshot
from mmclip_jax.evaluate.rows import Embedded, Split, embed_images
from mmclip_jax.evaluate.stats import calibration
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap
from mmclip_jax.inference.inputs import as_pixels

P, A = LabelState.PRESENT, LabelState.ABSENT
ROWS = toy.collection(patients=120, paired_only=True)


def _scored(model: toy.ToyModel, rows: Sequence[Example] = ROWS, validation: bool = False) -> zeroshot.ZeroShot:
    split = Split.of(rows, "test")
    other = Split.of(toy.collection(patients=70, seed=5, split="validation", paired_only=True)) if validation else None
    return zeroshot.evaluate(
        model,
        split,
        embed_images(model, split),
        protocol=protocols.load("table"),
        validation=Embedded(other, embed_images(model, other)) if other else None,
        bootstrap=Bootstrap(resamples=20),
    )


def _trust(model: toy.ToyModel, rows: Sequence[Example] = ROWS, **options: Any) -> dict[str, Any]:
    found = trust.evaluate(model, _scored(model, rows, **options), bootstrap=Bootstrap(resamples=200))
    assert found is not None
    return found


def _planted(rows: Sequence[Example]) -> np.ndarray:
    return np.stack([toy.planted_scores(p) for p in Split.of(rows).pixels(range(len(rows)))])


def test_negation_rates_are_those_of_the_planted_scores() -> None:
    found = _trust(toy.ToyModel(toy.MANIFEST))["negation"]
    planted = _planted(ROWS)
    balanced = []
    for row in found["findings"]:
        k = toy.NAMES.index(row["name"])
        states = np.array([r.labels.get(toy.KINDS[k], LabelState.UNKNOWN) for r in ROWS])
        # "X" is nearer than "no X" where sin(angle) > cos(angle): in the upper half of the scores.
        above = planted[:, k] > toy.MOST / 2
        present, absent = above[states == P].mean(), (~above[states == A]).mean()
        assert (row["present"], row["absent"]) == (pytest.approx(present), pytest.approx(absent))
        assert row["balanced"] == pytest.approx((present + absent) / 2)
        angle = planted[:, k] / toy.MOST * np.pi / 2
        known = np.isin(states, (P, A))
        true = np.concatenate([states[known] == P, states[known] == A])
        area = roc_auc_score(true, np.concatenate([np.sin(angle[known]), np.cos(angle[known])]))
        # Images are normalised over all kinds, which reorders some pairs of different images.
        assert row["auroc"] == pytest.approx(area, abs=0.05)
        balanced.append(row["balanced"])
    assert found["overall"]["balanced"] == pytest.approx(np.mean(balanced))
    low, high = found["overall"]["balanced_interval"]
    assert 0.5 < low < found["overall"]["balanced"] < high


def test_a_model_that_overhears_the_no_gets_one_half() -> None:
    class Deaf(toy.ToyModel):
        def encode_text(self, texts: Sequence[str]) -> np.ndarray:
            return super().encode_text([t.replace("No ", "").replace("no ", "").replace("not ", "") for t in texts])

    class Optimist(toy.ToyModel):  # "no X" is always nearer
        def encode_text(self, texts: Sequence[str]) -> np.ndarray:
            out = super().encode_text(texts)
            return np.where(out[:, len(toy.KINDS) : -2].max(axis=1, keepdims=True) > 0.5, np.ones_like(out), out)

    for model, rate in ((Deaf(), 0.5), (Optimist(), 0.0)):
        overall = _trust(model)["negation"]["overall"]
        assert overall["balanced"] == pytest.approx(0.5)
        assert overall["present"] == pytest.approx(rate)
        if rate == 0.5:
            assert overall["auroc"] == pytest.approx(0.5)


def test_wording_matters_where_it_does_and_only_there() -> None:
    found = _trust(toy.ToyModel())["prompts"]
    assert [row["sd"] for row in found["findings"]] == [0.0] * len(toy.KINDS)
    assert len(found["templates"]) == 4

    class Contrary(toy.ToyModel):
        """Takes one of the four templates for its opposite."""

        def encode_text(self, texts: Sequence[str]) -> np.ndarray:
            flipped = {"Findings consistent with": "No evidence of", "No evidence of": "Findings consistent with"}
            return super().encode_text(
                [next((t.replace(a, b) for a, b in flipped.items() if a in t), t) for t in texts]
            )

    found = _trust(Contrary())["prompts"]
    for row in found["findings"]:
        assert row["lowest"] == pytest.approx(1 - row["highest"])
        assert row["sd"] == pytest.approx((row["highest"] - row["lowest"]) / 2)  # three of four are equal
        assert row["ensemble"] == pytest.approx(row["highest"], abs=1e-6)  # the majority decides
    macros = [template["macro"] for template in found["templates"]]
    assert (found["macro"]["lowest"], found["macro"]["highest"]) == (min(macros), max(macros))
    assert [m > 0.5 for m in macros] == [True, True, False, True]


def test_without_an_image_or_with_another_nothing_is_known() -> None:
    checks = {check["name"]: check for check in _trust(toy.ToyModel())["sanity"]}
    assert checks["blank image"]["auroc"] == 0.5
    assert checks["blank image"]["holds"]
    assert checks["another image"]["auroc"] == pytest.approx(0.5, abs=0.05)
    assert checks["another image"]["holds"]
    assert checks["another finding's prompts"]["auroc"] == pytest.approx(0.5, abs=0.1)
    assert checks["another finding's prompts"]["expected"] is None


def test_a_blank_image_can_be_read_as_users_images_are() -> None:
    class Reader(toy.ToyModel):
        """Reads its images as real models do, which refuse images that show nothing."""

        def encode_image(self, images: Sequence[np.ndarray]) -> np.ndarray:
            return super().encode_image([as_pixels(image) for image in images])

    (blank, *_) = _trust(Reader())["sanity"]
    assert blank["name"] == "blank image"
    assert blank["auroc"] == 0.5


def test_a_shape_that_gives_the_label_away_is_found() -> None:
    class Ruler(toy.ToyModel):
        """Sees nothing but how wide an image is."""

        def encode_image(self, images: Sequence[np.ndarray]) -> np.ndarray:
            return super().encode_image([toy.plant([9000 if p.shape[1] > 50 else 100] * 5) for p in images])

    rows = [
        toy.example(n, toy.plant([1] * 5, shape=(48, 60 if n % 3 else 48)), {"nodule": P if n % 3 else A})
        for n in range(60)
    ]
    (blank, *_) = _trust(Ruler(), rows)["sanity"]
    assert (blank["auroc"], blank["holds"]) == (1.0, False)


def test_no_finding_against_every_disease() -> None:
    class Normal(toy.ToyModel):
        """Knows "normal" as the absence of all five kinds."""

        def encode_text(self, texts: Sequence[str]) -> np.ndarray:
            out = super().encode_text(texts)
            for row, text in zip(out, texts, strict=True):
                if any(word in text.lower() for word in ("finding.", "normal", "clear")):
                    says_ill = "abnormal" in text.lower() and not text.startswith("No ")
                    row[:], row[slice(0, 5) if says_ill else slice(5, 10)] = 1e-6, 5**-0.5
            return out

    rows = []
    for row in ROWS:
        known = all(kind in row.labels for kind in toy.KINDS)
        diseased = any(state == P for state in row.labels.values())
        state = {"no_finding": A if diseased else P} if known else {}
        rows.append(dataclasses.replace(row, labels={**row.labels, **state}))
    found = _trust(Normal(), rows)["no_finding"]
    normal = np.array([row.labels.get("no_finding") == P for row in rows])
    assert found["normal"] == normal.sum() > 10
    angle = _planted(rows) / toy.MOST * np.pi / 2  # "normal" is nearer and "abnormal" farther without any kind
    healthy = (np.cos(angle) - np.sin(angle)).sum(axis=1)
    assert [row["name"] for row in found["findings"]] == [n for k, n in sorted(zip(toy.KINDS, toy.NAMES, strict=True),
                                                          key=lambda pair: _order(pair[0]))]  # fmt: skip
    for row in found["findings"]:
        kind = toy.KINDS[toy.NAMES.index(row["name"])]
        ill = np.array([r.labels.get(kind) == P for r in rows])
        assert row["abnormal"] == ill.sum()
        known = normal | ill
        assert row["auroc"] == pytest.approx(roc_auc_score(normal[known], healthy[known]), abs=1e-4)
        assert row["auroc"] > 0.6
        assert row["auroc_interval"][0] < row["auroc"] < row["auroc_interval"][1]
    assert _trust(Normal())["no_finding"] is None


def _order(kind: str) -> int:
    from mmclip_jax.text import prompts

    return prompts.KINDS.index(kind)


def test_calibration_uses_the_logit_scale_and_the_validation_rows() -> None:
    model = toy.ToyModel()
    scored = _scored(model, validation=True)
    found = trust.evaluate(model, scored, bootstrap=Bootstrap(resamples=50))
    assert found is not None
    assert scored.validation is not None
    expected = calibration.fit_temperature(scored.validation.labels, 10 * scored.validation.scores["difference"])
    assert found["calibration"]["temperature"] == pytest.approx(expected, rel=1e-6)
    chances = 1 / (1 + np.exp(-10 * scored.scores["difference"]))
    assert found["calibration"]["as_trained"]["ece"] == pytest.approx(calibration.ece(scored.labels, chances))
    fitted, before = found["calibration"]["fitted"], found["calibration"]["as_trained"]
    assert fitted["brier"] < before["brier"]
    assert before["brier_interval"][0] < before["brier"] < before["brier_interval"][1]
    assert sum(row["rows"] for row in before["reliability"]) == (~np.isnan(scored.labels)).sum()
    without = _trust(model)["calibration"]
    assert (without["fitted"], without["note"]) == (None, "no validation split to fit a temperature on")
    assert without["findings"][0]["ece_fitted"] is None


def test_nothing_to_trust_where_nothing_is_scored() -> None:
    model = toy.ToyModel()
    assert trust.evaluate(model, _scored(model, [toy.example(0, toy.plant([1] * 5), {"nodule": P})])) is None


def _people(count: int = 400, seed: int = 0) -> tuple[list[Example], np.ndarray, np.ndarray, np.ndarray]:
    """Women's scores are better than men's; ages of three bands, some unknown; two findings."""
    rng = np.random.default_rng(seed)
    base = toy.example(0, toy.plant([1] * 5), {})
    examples = [
        dataclasses.replace(base, sex="FM"[n % 2] if n % 10 else "", age=[25.0, 50.0, 70.0, np.nan][n // 2 % 4])
        for n in range(count)
    ]
    labels = (rng.random((count, 2)) < 0.4).astype(float)
    labels[rng.random((count, 2)) < 0.05] = np.nan
    effect = np.array([2.5 if example.sex == "F" else 0.7 for example in examples])
    scores = np.nan_to_num(labels) * effect[:, np.newaxis] + rng.normal(size=(count, 2))
    return examples, labels, scores, np.arange(count) // 2


def test_subgroups_have_their_own_auroc_and_gaps_with_intervals() -> None:
    examples, labels, scores, patients = _people()
    found = subgroups.evaluate(examples, labels, scores, ["a", "b"], Bootstrap(patients, 300))
    age, sex, view, _ = found
    assert [each["attribute"] for each in found] == ["age", "sex", "view", "scanner"]
    for attribute in (age, sex):
        key = subgroups.ATTRIBUTES[attribute["attribute"]]
        names = np.array([key(e) for e in examples])
        assert attribute["unknown"] == (names == "").sum()
        for group in attribute["groups"]:
            areas, rest = [], []
            for k in range(2):
                known = ~np.isnan(labels[:, k])
                inside = (names == group["group"]) & known
                outside = (names != group["group"]) & (names != "") & known
                areas.append(roc_auc_score(labels[inside, k], scores[inside, k]))
                rest.append(roc_auc_score(labels[outside, k], scores[outside, k]))
            assert group["rows"] == (names == group["group"]).sum()
            assert group["auroc"] == pytest.approx(np.mean(areas))
            assert group["difference"] == pytest.approx(np.mean(areas) - np.mean(rest))
            assert group["auroc_interval"][0] < group["auroc"] < group["auroc_interval"][1]
            assert group["difference_interval"][0] < group["difference"] < group["difference_interval"][1]
    assert [group["group"] for group in age["groups"]] == ["18-39", "40-59", "60-79"]
    assert [group["group"] for group in sex["groups"]] == ["F", "M"]
    assert sex["gap"] == pytest.approx(sex["groups"][0]["auroc"] - sex["groups"][1]["auroc"])
    assert sex["gap_interval"][0] > 0.1  # the true gap is 0.96 - 0.69
    assert view["note"].startswith("fewer than two groups")  # all are PA


def test_small_groups_and_rare_findings_are_named_not_dropped() -> None:
    examples, labels, scores, patients = _people()
    examples[:20] = [dataclasses.replace(example, age=10.0) for example in examples[:20]]
    labels[:, 1] = 0
    labels[:6, 1] = 1
    age, sex, *_ = subgroups.evaluate(examples, labels, scores, ["a", "b"], Bootstrap(patients, 20))
    assert age["left_out"] == {"0-17": 20}
    assert (age["findings"], sex["findings"]) == (["a"], ["a"])
    labels[:, 0] = 0
    assert subgroups.evaluate(examples, labels, scores, ["a", "b"], Bootstrap(patients))[1]["note"].startswith(
        "no finding has"
    )
    unknown = [dataclasses.replace(example, sex="") for example in examples]
    assert subgroups.evaluate(unknown, labels, scores, ["a", "b"], Bootstrap(patients))[1]["note"] == "not recorded"


@pytest.mark.parametrize(
    ("age", "band"),
    [(0, "0-17"), (17.9, "0-17"), (18, "18-39"), (79, "60-79"), (80, "80+"), (104, "80+"), (np.nan, "")],
)
def test_age_bands(age: float, band: str) -> None:
    assert subgroups.age_band(dataclasses.replace(toy.example(0, toy.plant([1] * 5), {}), age=age)) == band
