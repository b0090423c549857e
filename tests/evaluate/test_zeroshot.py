import numpy as np
import pytest
import toy
from sklearn.metrics import roc_auc_score

from mmclip_jax.data.schema import Example, LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate import zeroshot
from mmclip_jax.evaluate.base import Split, embed_images, labels_of

P, A, U = LabelState.PRESENT, LabelState.ABSENT, LabelState.UNCERTAIN


@pytest.fixture(scope="module")
def rows() -> list[Example]:
    return toy.collection(patients=60)


def _evaluate(rows: list[Example], manifest: dict | None = None) -> zeroshot.ZeroShot:
    model, split = toy.ToyModel(toy.MANIFEST if manifest is None else manifest), Split.of(rows, "test")
    return zeroshot.evaluate(model, split, embed_images(model, split), resamples=97)


def test_auroc_is_that_of_the_planted_scores(rows: list[Example]) -> None:
    scored = _evaluate(rows)
    assert set(scored.findings) == set(toy.KINDS)
    pixels = Split.of(rows).pixels(range(len(rows)))
    for source in toy.SOURCES:
        findings = scored.summary["sources"][source]["findings"]
        # The second source does not label fibrosis: it is not evaluated there.
        assert {f["finding"] for f in findings} == set(toy.KINDS) - ({"fibrosis"} if source == "there" else set())
        for finding in findings:
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
    assert macro["all"]["auroc"] == pytest.approx(np.mean(list(areas.values())))
    many = [f["finding"] for f in entry["findings"] if f["positives"] >= 30]
    assert macro["min_positives"]["findings"] == len(many)
    if many:
        assert macro["min_positives"]["auroc"] == pytest.approx(np.mean([areas[kind] for kind in many]))
    else:
        assert macro["min_positives"]["auroc"] is None
    assert macro[zeroshot.REPORT_ONLY]["auroc"] == pytest.approx(areas["fibrosis"])
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
    assert stamp["here"]["fibrosis"] == zeroshot.REPORT_ONLY
    assert stamp["here"]["nodule"] == zeroshot.OTHER_SOURCE
    assert stamp["there"]["nodule"] == zeroshot.SAME_SOURCE
    called = {f["finding"]: f["called"] for f in sources["here"]["findings"]}
    assert (called["fibrosis"], called["nodule"]) == ("zero-shot", "prompt-supervised")
    assert sources["here"]["macro"]["difference"]["all"]["called"] == "partly prompt-supervised"
    assert sources["there"]["macro"]["difference"]["all"]["called"] == "prompt-supervised"
    assert sources["here"]["macro"]["difference"]["all"]["exposures"] == {
        zeroshot.REPORT_ONLY: 1,
        zeroshot.OTHER_SOURCE: 4,
    }


def test_a_narrower_label_exposes_the_broader_kind() -> None:
    manifest = {"exposure": {"label_kinds": {"elsewhere": ["viral_pneumonia"]}}}
    assert zeroshot.exposure("pneumonia", "here", manifest) == zeroshot.OTHER_SOURCE
    assert zeroshot.exposure("bacterial_pneumonia", "here", manifest) == zeroshot.REPORT_ONLY


def test_without_a_record_nothing_is_called_zero_shot(rows: list[Example]) -> None:
    entry = _evaluate(rows, {}).summary["sources"]["here"]
    assert {f["exposure"] for f in entry["findings"]} == {zeroshot.UNKNOWN_EXPOSURE}
    assert "zero-shot" not in {f["called"] for f in entry["findings"]}


def test_the_headline_is_of_the_source_with_reports(rows: list[Example]) -> None:
    assert _evaluate(rows).summary["primary"] == "here"
    only = [r for r in rows if r.source == "there"]
    assert _evaluate(only).summary["primary"] == "there"


def test_rows_without_usable_labels_give_no_findings() -> None:
    rows = [toy.example(n, toy.plant([n] * 5), {"nodule": P}) for n in range(3)]
    scored = _evaluate(rows)
    assert scored.findings == []
    assert scored.summary["primary"] is None
    assert scored.summary["sources"]["here"]["macro"]["difference"]["all"]["auroc"] is None


def test_prompts_are_averaged_and_normalised() -> None:
    model = toy.ToyModel()
    positive, negative = zeroshot.prompt_embeddings(model, toy.KINDS[:3])
    np.testing.assert_allclose(np.linalg.norm(positive, axis=1), 1.0)
    images = model.encode_image([toy.plant([9999, 0, 5000, 7, 9])])
    scores = zeroshot.score_images(images, positive, negative)
    np.testing.assert_allclose(scores["difference"], images @ (positive - negative).T, atol=1e-7)
    assert scores["difference"][0, 0] > scores["difference"][0, 2] > scores["difference"][0, 1]


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
