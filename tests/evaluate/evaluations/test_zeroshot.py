import dataclasses
from typing import Any

import numpy as np
import pytest
import toy
from sklearn.metrics import f1_score, roc_auc_score

from mmclip_jax.data.schema import Example, LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate import protocols
from mmclip_jax.evaluate.evaluations import zeroshot
from mmclip_jax.evaluate.evaluations.scored import score_by_protocol
from mmclip_jax.evaluate.report import page as page_lib
from mmclip_jax.evaluate.rows import Embedded, Split, embed_images, labels_of, uncertain_text
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap
from mmclip_jax.inference import exposure, scoring

P, A, U = LabelState.PRESENT, LabelState.ABSENT, LabelState.UNCERTAIN


@pytest.fixture(scope="module")
def rows() -> list[Example]:
    return toy.collection(patients=60)


def _evaluate(rows: list[Example], manifest: dict | None = None) -> zeroshot.ZeroShot:
    model, split = toy.ToyModel(toy.MANIFEST if manifest is None else manifest), Split.of(rows, "test")
    return zeroshot.evaluate(model, split, embed_images(model, split), bootstrap=Bootstrap(resamples=97))


def test_auroc_is_that_of_the_planted_scores(rows: list[Example]) -> None:
    scored = _evaluate(rows)
    assert set(scored.findings) == set(toy.KINDS)
    pixels = Split.of(rows).pixels(range(len(rows)))
    for source in toy.SOURCES:
        findings = scored.summary["sources"][source]["findings"]
        assert {f["finding"] for f in findings} == set(toy.KINDS)
        for finding in findings:
            if (source, finding["finding"]) == ("there", "fibrosis"):  # the second source does not label it
                assert finding["note"] == "no known label"
                assert np.isnan([finding["difference"]["auroc"], *finding["difference"]["auprc_interval"]]).all()
                continue
            assert finding["note"] == ""
            k = toy.KINDS.index(finding["finding"])
            known = [
                (int(r.labels[toy.KINDS[k]] == P), toy.planted_scores(p)[k])
                for r, p in zip(rows, pixels, strict=True)
                if r.source == source and r.labels.get(toy.KINDS[k]) in (P, A)
            ]
            truth, planted = np.array(known).T
            assert finding["difference"]["auroc"] == pytest.approx(roc_auc_score(truth, planted), abs=1e-9)
            assert finding["positive"]["auroc"] == pytest.approx(roc_auc_score(truth, planted), abs=1e-9)
            assert (finding["positives"], finding["negatives"]) == (truth.sum(), (1 - truth).sum())


def test_uncertain_and_unknown_are_counted_and_left_out(rows: list[Example]) -> None:
    entry = _evaluate(rows).summary["sources"]["here"]
    counts = {f["finding"]: f for f in entry["findings"]}
    here = [r for r in rows if r.source == "here"]
    assert counts["nodule"]["uncertain"] == sum(r.labels.get("nodule") == U for r in here) > 0
    assert counts["cardiomegaly"]["unknown"] == sum("cardiomegaly" not in r.labels for r in here) > 0
    for f in counts.values():
        assert f["positives"] + f["negatives"] + f["unknown"] + f["uncertain"] == len(here) == entry["rows"]


def test_macros_are_means_of_their_findings(rows: list[Example]) -> None:
    entry = _evaluate(rows).summary["sources"]["here"]
    macro = entry["macro"]["difference"]
    areas = {f["finding"]: f["difference"]["auroc"] for f in entry["findings"]}
    assert (macro["all"]["findings"], macro["all"]["undefined"]) == (5, [])
    assert macro["all"]["auroc"] == pytest.approx(np.mean(list(areas.values())))
    many = [f["finding"] for f in entry["findings"] if f["positives"] >= 30]
    assert macro["min_positives"]["findings"] == len(many)
    if many:
        assert macro["min_positives"]["auroc"] == pytest.approx(np.mean([areas[kind] for kind in many]))
    else:
        assert macro["min_positives"]["auroc"] is None
    assert macro[exposure.REPORT_ONLY]["auroc"] == pytest.approx(areas["fibrosis"])
    low, high = macro["all"]["auroc_interval"]
    assert low < macro["all"]["auroc"] < high
    widths = [f["difference"]["auroc_interval"][1] - f["difference"]["auroc_interval"][0] for f in entry["findings"]]
    assert high - low < min(widths)


def test_min_positives_counts_from_thirty() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for n in range(79):
        labels = {"nodule": P if n < 30 else A, "pneumothorax": P if n < 29 else A}
        rows.append(toy.example(n, toy.plant(rng.integers(0, toy.MOST, 5).tolist()), labels))
    macro = _evaluate(rows).summary["sources"]["here"]["macro"]["difference"]
    assert (macro["all"]["findings"], macro["min_positives"]["findings"]) == (2, 1)


def test_stamps(rows: list[Example]) -> None:
    sources = _evaluate(rows).summary["sources"]
    stamp = {s: {f["finding"]: f["exposure"] for f in sources[s]["findings"]} for s in toy.SOURCES}
    assert stamp["here"]["fibrosis"] == exposure.REPORT_ONLY
    assert stamp["here"]["nodule"] == exposure.OTHER_SOURCE
    assert stamp["there"]["nodule"] == exposure.SAME_SOURCE
    called = {f["finding"]: f["called"] for f in sources["here"]["findings"]}
    assert (called["fibrosis"], called["nodule"]) == ("zero-shot", "prompt-supervised")
    assert sources["here"]["macro"]["difference"]["all"]["called"] == "partly prompt-supervised"
    assert sources["there"]["macro"]["difference"]["all"]["called"] == "prompt-supervised"
    assert sources["here"]["macro"]["difference"]["all"]["exposures"] == {
        exposure.REPORT_ONLY: 1,
        exposure.OTHER_SOURCE: 4,
    }


def test_a_narrower_label_exposes_the_broader_kind() -> None:
    manifest = {"exposure": {"label_kinds": {"elsewhere": ["viral_pneumonia"]}}}
    assert exposure.exposure("pneumonia", "here", manifest) == exposure.OTHER_SOURCE
    assert exposure.exposure("bacterial_pneumonia", "here", manifest) == exposure.REPORT_ONLY


def test_without_a_record_nothing_is_called_zero_shot(rows: list[Example]) -> None:
    entry = _evaluate(rows, {}).summary["sources"]["here"]
    assert {f["exposure"] for f in entry["findings"]} == {exposure.UNKNOWN_EXPOSURE}
    assert "zero-shot" not in {f["called"] for f in entry["findings"]}


def test_the_headline_is_of_the_source_with_reports(rows: list[Example]) -> None:
    assert _evaluate(rows).summary["primary"] == "here"
    only = [r for r in rows if r.source == "there"]
    assert _evaluate(only).summary["primary"] == "there"


def test_a_finding_of_uncertain_labels_alone_is_named_with_their_number() -> None:
    states = [
        {"nodule": P, "edema": U, "mass": U},
        {"nodule": A, "edema": U, "mass": A},
        {"nodule": A, "edema": LabelState.UNKNOWN},
    ]
    rows = [toy.example(n, toy.plant([n] * 5), labels) for n, labels in enumerate(states)]
    rows += [toy.example(9, toy.plant([9] * 5), {"edema": P, "mass": U}, source="there")]
    summary = _evaluate(rows).summary
    assert summary["sources"]["here"]["uncertain_only"] == {"edema": 2}
    assert summary["sources"]["there"]["uncertain_only"] == {"mass": 1}
    said = "every label is uncertain, so that nothing is scored, of: edema (2)"
    assert uncertain_text(summary["sources"]["here"]) == said
    assert f"In here {said}" in zeroshot.ZERO_SHOT.lines({"zero_shot": summary, "data": {"sets": []}})
    template = page_lib.page_environment().from_string("{{ entry | uncertain_text }}")
    assert template.render(entry=summary["sources"]["here"]) == said
    assert uncertain_text({}) == "", "of a file that an older version wrote"


def test_rows_without_usable_labels_give_no_findings() -> None:
    rows = [toy.example(n, toy.plant([n] * 5), {"nodule": P}) for n in range(3)]
    scored = _evaluate(rows)
    assert scored.summary["primary"] is None
    (finding,) = scored.summary["sources"]["here"]["findings"]
    assert (finding["finding"], finding["note"]) == ("nodule", "no negative label")
    assert np.isnan([finding["difference"]["auroc"], finding["difference"]["auprc"]]).all()
    macro = scored.summary["sources"]["here"]["macro"]["difference"]["all"]
    assert (macro["auroc"], macro["findings"], macro["undefined"]) == (None, 0, ["nodule"])
    assert _evaluate([toy.example(0, toy.plant([1] * 5), {})]).findings == []


def test_a_broken_checkpoint_is_refused() -> None:
    class Broken(toy.ToyModel):
        def encode_image(self, images):  # type: ignore[no-untyped-def]
            return super().encode_image(images) * np.nan

    with pytest.raises(UserError, match="not finite"):
        embed_images(Broken(), Split.of([toy.example(0, toy.plant([1] * 5), {})]))


def test_labels_as_numbers() -> None:
    row = toy.example(0, toy.plant([1] * 5), {"nodule": P, "fibrosis": A, "pneumothorax": U})
    got = labels_of([row], ["nodule", "fibrosis", "pneumothorax", "mass"])
    np.testing.assert_array_equal(got, [[1, 0, np.nan, np.nan]])


def _protocol(**changes: Any) -> protocols.Protocol:
    return dataclasses.replace(protocols.load("table"), **changes)


def _with(rows: list[Example], validation: list[Example] | None = None, **changes: Any) -> zeroshot.ZeroShot:
    model, split = toy.ToyModel(toy.MANIFEST), Split.of(rows, "test")
    other = Split.of(validation) if validation else None
    return zeroshot.evaluate(
        model,
        split,
        embed_images(model, split),
        protocol=_protocol(**changes),
        validation=Embedded(other, embed_images(model, other)) if other else None,
        bootstrap=Bootstrap(resamples=53),
    )


def test_a_listed_finding_without_labels_is_nan_with_a_note_and_counted(rows: list[Example]) -> None:
    scored = _with(rows, findings=("nodule", "mass", "pneumothorax"), groups={"two": ("nodule", "mass")})
    assert scored.findings == ["nodule", "mass", "pneumothorax"]
    for source in toy.SOURCES:
        entry = scored.summary["sources"][source]
        mass = entry["findings"][1]
        assert (mass["finding"], mass["note"], mass["unknown"]) == ("mass", "no known label", entry["rows"])
        assert np.isnan(mass["difference"]["auroc"])
        areas = [f["difference"]["auroc"] for f in entry["findings"]]
        every, two = (entry["macro"]["difference"][key] for key in ("all", "two"))
        assert (every["findings"], every["undefined"]) == (2, ["mass"])
        assert every["auroc"] == pytest.approx((areas[0] + areas[2]) / 2)
        assert (two["findings"], two["undefined"], two["auroc"]) == (1, ["mass"], pytest.approx(areas[0]))


@pytest.mark.parametrize(("policy", "value"), [("ignore", np.nan), ("present", 1.0), ("absent", 0.0)])
def test_uncertain_labels_count_as_the_protocol_says(rows: list[Example], policy: str, value: float) -> None:
    scored = _with(rows, uncertain={"nodule": policy, "fibrosis": "present"})
    k = scored.findings.index("nodule")
    uncertain = [i for i, r in enumerate(rows) if r.labels.get("nodule") == U]
    np.testing.assert_array_equal(scored.labels[uncertain, k], value)
    for source in toy.SOURCES:
        f = next(f for f in scored.summary["sources"][source]["findings"] if f["finding"] == "nodule")
        here = [r for r in rows if r.source == source]
        assert f["uncertain"] == sum(r.labels.get("nodule") == U for r in here)
        left_out = f["uncertain"] if policy == "ignore" else 0
        assert f["positives"] + f["negatives"] + f["unknown"] + left_out == len(here)


def test_thresholds_come_from_validation_and_the_other_column_says_so(rows: list[Example]) -> None:
    validation = toy.collection(patients=50, seed=9, split="validation")
    scored = _with(rows, validation)
    for source in toy.SOURCES:
        here = [i for i, r in enumerate(rows) if r.source == source]
        there = [i for i, r in enumerate(validation) if r.source == source]
        assert scored.validation is not None
        for k, f in enumerate(scored.summary["sources"][source]["findings"]):
            decision = f["decision"]
            if f["note"]:
                assert np.isnan(decision["f1"])
                assert decision["note"] == f["note"]
                continue
            y, s = scored.validation.labels[there, k], scored.validation.scores["difference"][there, k]
            candidates = {t: f1_score(y[~np.isnan(y)], s[~np.isnan(y)] >= t) for t in s[~np.isnan(y)]}
            assert candidates[decision["threshold"]] == max(candidates.values())
            y, s = scored.labels[here, k], scored.scores["difference"][here, k]
            y, s = y[~np.isnan(y)], s[~np.isnan(y)]
            assert decision["f1"] == pytest.approx(f1_score(y, s >= decision["threshold"]), abs=1e-12)
            assert decision["max_f1_test"] == pytest.approx(max(f1_score(y, s >= t) for t in s), abs=1e-12)
            assert decision["max_f1_test"] >= decision["f1"]
            assert decision["f1_interval"][0] < decision["f1"] < decision["f1_interval"][1]
        macro = scored.summary["sources"][source]["macro"]["difference"]["all"]
        kept = [f for f in scored.summary["sources"][source]["findings"] if not f["note"]]
        assert macro["max_f1_test"] == pytest.approx(np.mean([f["decision"]["max_f1_test"] for f in kept]))
        assert macro["sensitivity"] == pytest.approx(np.mean([f["decision"]["sensitivity"] for f in kept]))


def test_without_validation_there_is_no_threshold(rows: list[Example]) -> None:
    for f in _with(rows).summary["sources"]["here"]["findings"]:
        assert f["decision"]["note"] == "no validation split to choose a threshold on"
        assert np.isnan([f["decision"]["threshold"], f["decision"]["f1"]]).all()
        assert f["decision"]["max_f1_test"] > 0
    only = [r for r in toy.collection(patients=50, seed=9) if r.source == "there"]
    decisions = [f["decision"] for f in _with(rows, only).summary["sources"]["here"]["findings"]]
    assert {d["note"] for d in decisions} == {"validation: no known label"}


def test_an_ensemble_of_scores_is_the_mean_of_softmax_probabilities() -> None:
    rng = np.random.default_rng(0)

    class Drawn(toy.ToyModel):
        def encode_text(self, texts: Any) -> np.ndarray:
            out = rng.normal(size=(len(texts), 12))
            return (out / np.linalg.norm(out, axis=1, keepdims=True)).astype(np.float32)

    model = Drawn()
    images = rng.normal(size=(7, 12)).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    state = rng.bit_generator.state
    pairs = scoring.embed_prompts(model, ["nodule", "no_finding"], _protocol().prompts_of)
    rng.bit_generator.state = state
    scores = score_by_protocol(model, images, ["nodule", "no_finding"], _protocol(ensemble="scores"))
    for k, (positive, negative) in enumerate(pairs):
        for n, image in enumerate(images.astype(np.float64)):
            chances = [1 / (1 + np.exp(-10 * (image @ p - image @ q))) for p in positive for q in negative]
            got = 1 / (1 + np.exp(-10 * scores["difference"][n, k]))
            assert got == pytest.approx(np.mean(chances), abs=1e-12)
            assert scores["positive"][n, k] == pytest.approx(np.mean(positive @ image), abs=1e-12)


def test_softmax_no_finding_is_the_chance_among_three_texts() -> None:
    """Not for "no finding" itself, and not for devices, which a normal image may have."""
    rng, findings = np.random.default_rng(3), ["nodule", "no_finding", "support_device", "edema"]
    vectors: dict[str, np.ndarray] = {}

    class Fixed(toy.ToyModel):
        def encode_text(self, texts: Any) -> np.ndarray:
            drawn = [vectors.setdefault(text, rng.normal(size=12)) for text in texts]
            return np.stack([each / np.linalg.norm(each) for each in drawn])

    model, images = Fixed(), rng.normal(size=(7, 12)) / 5
    scores = score_by_protocol(model, images, findings, _protocol(score="softmax_no_finding"))["difference"]

    def similarity(finding: str, polarity: int) -> np.ndarray:
        mean = model.encode_text(_protocol().prompts_of(finding)[polarity]).mean(axis=0)
        return 10.0 * images @ (mean / np.linalg.norm(mean))

    for k, finding in enumerate(findings):
        against = [similarity(finding, 1)]
        if k in (0, 3):
            against.append(similarity("no_finding", 0))
        odds = np.exp(similarity(finding, 0)) / np.exp(against).sum(axis=0)
        np.testing.assert_allclose(scores[:, k], np.log(odds) / 10.0, atol=1e-9)


def test_cosine_is_the_similarity_to_the_affirming_prompts(rows: list[Example]) -> None:
    scored = _with(rows, score="cosine")
    assert (scored.score, scored.summary["score"]) == ("positive", "positive")


def test_seen_findings_are_those_of_the_runs_texts(rows: list[Example]) -> None:
    model = toy.ToyModel({"exposure": {"label_kinds": {"x": ["nodule"]}, "report_kinds": {"y": ["fibrosis"]}}})
    split = Split.of(rows, "test")
    scored = zeroshot.evaluate(
        model, split, embed_images(model, split), protocol=_protocol(seen=True), bootstrap=Bootstrap(resamples=11)
    )
    entry = scored.summary["sources"]["here"]
    areas = {f["finding"]: f["difference"]["auroc"] for f in entry["findings"]}
    macro = entry["macro"]["difference"]
    assert macro["seen"]["auroc"] == pytest.approx(np.mean([areas["nodule"], areas["fibrosis"]]))
    assert (macro["seen"]["findings"], macro["unseen"]["findings"]) == (2, 3)
