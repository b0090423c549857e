import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import browser
import numpy as np
import pytest
import toy
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from mmclip_jax.data.records import RecordsBuilder, build
from mmclip_jax.data.schema import Example
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate import protocols
from mmclip_jax.evaluate import run as evaluation
from mmclip_jax.evaluate.report import comparison
from mmclip_jax.evaluate.report.comparison import SavedEvaluation
from mmclip_jax.evaluate.stats import metrics
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap


class ToyBuilder(RecordsBuilder):
    name = "toy"

    def examples(self, split: str) -> Iterator[Example]:
        if split in ("test", "validation"):
            other = int(split == "validation")
            yield from toy.collection(patients=90, split=split, seed=other, first=1000 * other)


class OtherBuilder(ToyBuilder):
    def examples(self, split: str) -> Iterator[Example]:
        if split == "test":
            yield from toy.collection(patients=90, seed=8)


class Noisy(toy.ToyModel):
    """Sees nothing of two of the five kinds."""

    def encode_image(self, images: Sequence[np.ndarray]) -> np.ndarray:
        blurred = []
        for pixels in images:
            scores = toy.planted_scores(pixels)
            rng = np.random.default_rng(scores.tolist())
            scores[:2] = rng.integers(0, toy.MOST, 2)
            blurred.append(toy.plant(scores.tolist(), source=min(int(pixels[3, 0]), 1)))
        return super().encode_image(blurred)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    data = build(ToyBuilder(tmp_path_factory.mktemp("data")))
    other = build(OtherBuilder(tmp_path_factory.mktemp("other")))
    out = tmp_path_factory.mktemp("evaluations")
    table = protocols.load("table")
    chexpert = protocols.load("chexpert-5")
    runs: list[tuple[str, toy.ToyModel, pathlib.Path, str, protocols.Protocol]] = [
        ("good", toy.ToyModel(toy.MANIFEST), data, "test", table),
        ("noisy", Noisy(toy.MANIFEST), data, "test", table),
        ("again", toy.ToyModel(toy.MANIFEST), data, "test", table),
        ("other", toy.ToyModel(toy.MANIFEST), other, "test", table),
        ("split", toy.ToyModel(toy.MANIFEST), data, "validation", table),
        ("protocol", toy.ToyModel(toy.MANIFEST), data, "test", chexpert),
    ]
    for name, model, where, split, protocol in runs:
        evaluation.evaluate_checkpoint(
            model,
            where,
            split,
            out / name,
            options=evaluation.Options(
                bootstrap=Bootstrap(resamples=20),
                protocol=protocol,
                run_name=name,
                without=("trust", "counterfactual"),
                cases=0,
                progress=False,
            ),
        )
    return {name: out / name for name, *_ in runs}


def _read(evaluated: dict[str, pathlib.Path], *names: str) -> list[SavedEvaluation]:
    return [SavedEvaluation.read(evaluated[name]) for name in names]


def test_differences_are_those_of_scikit_learn_and_of_copied_rows(evaluated: dict[str, pathlib.Path]) -> None:
    good, noisy = _read(evaluated, "good", "noisy")
    found = comparison.compare([good, noisy], resamples=200, seed=3)
    assert list(found["sources"]) == list(toy.SOURCES)
    for source, entry in found["sources"].items():
        rows = np.flatnonzero(good.sources == source)
        defined = []
        for k, row in enumerate(entry["findings"]):
            assert row["finding"] == good.findings[k]
            if row["note"]:
                assert (source, row["finding"]) == ("there", "fibrosis")
                assert np.isnan(row["auroc"]["values"]).all()
                continue
            known = rows[~np.isnan(good.labels[rows, k])]
            for metric, function in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
                expected = [function(good.labels[known, k], each.scores[known, k]) for each in (good, noisy)]
                np.testing.assert_allclose(row[metric]["values"], expected, atol=1e-12)
                assert row[metric]["differences"][0] is None
                change = row[metric]["differences"][1]
                assert change["difference"] == pytest.approx(expected[1] - expected[0])
                assert change["interval"][0] <= change["difference"] <= change["interval"][1]
            defined.append(row["auroc"])
        macro = entry["macro"]["auroc"]
        np.testing.assert_allclose(macro["values"], np.mean([each["values"] for each in defined], axis=0))
    # The bootstrap of one finding, done by hand: the same patients are drawn for both.
    rows = np.flatnonzero(good.sources == "here")
    labels, patients = good.labels[rows, 1], good.patients[rows]
    people = list(dict.fromkeys(patients.tolist()))
    rng, differences = np.random.default_rng(3), []
    for _ in range(200):
        drawn = rng.integers(0, len(people), len(people))
        copied = np.concatenate([np.flatnonzero(patients == people[i]) for i in drawn])
        copied = copied[~np.isnan(labels[copied])]
        areas = [roc_auc_score(labels[copied], each.scores[rows][copied, 1]) for each in (good, noisy)]
        differences.append(areas[1] - areas[0])
    change = found["sources"]["here"]["findings"][1]["auroc"]["differences"][1]
    fewest = min(len(set(patients[labels == value])) for value in (0, 1))
    deviation, apart = np.std(differences, ddof=1), change["difference"]
    reach = stats.t.ppf(0.975, fewest - 1) * deviation
    np.testing.assert_allclose(change["interval"], [apart - reach, apart + reach], atol=1e-9)
    assert change["p"] == pytest.approx(max(2 * stats.t.sf(abs(apart) / deviation, fewest - 1), 2 / 201))


def test_what_is_worse_is_found_and_what_is_equal_is_not(evaluated: dict[str, pathlib.Path]) -> None:
    found = comparison.compare(_read(evaluated, "good", "noisy", "again"), resamples=500)
    rows = {row["finding"]: row["auroc"] for row in found["sources"]["here"]["findings"]}
    blurred = [rows[kind]["differences"][1] for kind in toy.KINDS[:2]]
    assert all(change["difference"] < -0.1 and change["p_holm"] < 0.05 for change in blurred)
    for kind in toy.KINDS:
        same = rows[kind]["differences"][2]
        assert (same["difference"], same["p"], same["p_holm"]) == (0.0, 1.0, 1.0)


def test_paired_intervals_are_narrower_than_their_ends(evaluated: dict[str, pathlib.Path]) -> None:
    found = comparison.compare(_read(evaluated, "good", "noisy"), resamples=500)
    macro = found["sources"]["here"]["macro"]["auroc"]
    widths = [high - low for low, high in macro["intervals"]]
    low, high = macro["differences"][1]["interval"]
    assert high - low < np.hypot(*widths)
    assert np.isnan(macro["differences"][1]["p_holm"])  # not part of the family


def test_holm_on_the_textbooks_example() -> None:
    np.testing.assert_allclose(comparison.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(comparison.holm([0.6, 0.7]), [1.0, 1.0])
    assert comparison.holm([]) == []


@pytest.mark.parametrize("positive", [1, 2, 3, 5, 30])
def test_chance_is_called_a_difference_no_more_often_than_said(positive: int) -> None:
    """Two readings of the same images with noise of the same size. Percentiles err in 77 % with one patient."""
    rng, small, refused = np.random.default_rng(0), 0, 0
    groups = np.repeat(np.arange(100), 2)
    labels = (groups < positive).astype(float)
    for trial in range(200):
        shared = labels + rng.normal(size=100)[groups]
        scores = [shared + rng.normal(size=100)[groups] + rng.normal(size=200) for _ in range(2)]
        drawn = [Bootstrap(groups, 200, seed=trial).metric(labels, each) for each in scores]
        points = np.array([metrics.auroc(labels, each) for each in scores])
        change = comparison.Drawn(points, np.stack(drawn), positive).entry(Bootstrap(groups))["differences"][1]
        assert change is not None
        refused += np.isnan(change["p"])
        small += change["p"] < 0.05
    assert refused == (200 if positive < comparison.FEWEST_PATIENTS else 0)
    assert small <= 200 * 0.075  # 6 % and the noise of 200 trials
    assert positive < 30 or small > 200 * 0.015


@pytest.mark.parametrize(("positive", "shared"), [(4, True), (5, False), (5, True), (13, True)])
def test_chance_is_called_a_difference_of_means_no_more_often(positive: int, shared: bool) -> None:
    """Of three findings: other patients each and noise of their own, or the same patients and the same noise."""
    rng, small, refused = np.random.default_rng(0), 0, 0
    groups = np.repeat(np.arange(60), 2)
    labels = np.stack([((groups - (0 if shared else 20 * k)) % 60 < positive) * 1.0 for k in range(3)], axis=1)
    width = 1 if shared else 3
    for trial in range(100):
        base = labels + rng.normal(size=(60, width))[groups]
        scores = [base + rng.normal(size=(60, width))[groups] + rng.normal(size=(120, width)) for _ in range(2)]
        bootstrap = Bootstrap(groups, 100, seed=trial)
        found = comparison.compared(metrics.auroc, labels, scores, range(3), bootstrap)
        mean = comparison.mean_of(found, metrics.auroc, labels, scores, bootstrap)
        change = mean.entry(bootstrap)["differences"][1]
        assert change is not None
        refused += np.isnan(change["p"])
        small += change["p"] < 0.05
    assert refused == (100 if positive < comparison.FEWEST_OF_MEAN else 0)
    assert small <= 9  # 6 % and the noise of 100 trials


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("good",), "two evaluations or more"),
        (("good", "other"), r"their data sets differ \(toy "),
        (("good", "split"), r"their splits differ \(test and validation\)"),
        (("good", "protocol"), r"their protocols differ \(table .* and chexpert-5 "),
    ],
)
def test_what_cannot_be_compared_is_refused(
    evaluated: dict[str, pathlib.Path], names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        comparison.compare(_read(evaluated, *names))


def test_edited_files_are_refused(evaluated: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    good = SavedEvaluation.read(evaluated["good"])
    lines = (evaluated["good"] / "scores.csv").read_text().splitlines()
    for number, (edited, message) in enumerate(
        [
            ([lines[0], *lines[:0:-1]], "the same images in the same order"),
            ([line.replace(",1,", ",0,") for line in lines], "labels in their scores.csv differ"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "results.json").write_text((evaluated["good"] / "results.json").read_text())
        (folder / "scores.csv").write_text("\n".join(edited) + "\n")
        with pytest.raises(UserError, match=message):
            comparison.compare([good, SavedEvaluation.read(folder)])
    old = json.loads((evaluated["good"] / "results.json").read_text())
    del old["zero_shot"]["protocol"]
    (tmp_path / "0" / "results.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match="has no protocol: evaluate the checkpoint again"):
        SavedEvaluation.read(tmp_path / "0")
    with pytest.raises(UserError, match=r"has no results\.json"):
        SavedEvaluation.read(tmp_path)


def test_a_training_run_stands_for_its_newest_evaluation(tmp_path: pathlib.Path) -> None:
    for step in (9, 10):
        (tmp_path / "evaluation" / str(step)).mkdir(parents=True)
        (tmp_path / "evaluation" / str(step) / "results.json").write_text("{}")
    assert comparison.newest_evaluation(tmp_path).name == "10"


def test_the_files_and_the_page(evaluated: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    text = comparison.run([evaluated["good"], evaluated["noisy"], evaluated["again"]], tmp_path, resamples=100)
    assert str(tmp_path / "compare.html") in text
    assert "Protocol: the data set's own labels" in text
    read: dict[str, Any] = json.loads((tmp_path / "compare.json").read_text())
    assert [each["run"] for each in read["runs"]] == ["good", "noisy", "again"]
    page = (tmp_path / "compare.html").read_text()
    assert page.count('<th scope="rowgroup" colspan="6">nodule') == 4  # two sources, two metrics
    for name in ("good @ 7", "noisy @ 7", "Difference to A", "p (Holm)", "no known label"):
        assert name in page
    assert "http" not in page


@pytest.mark.browser
def test_the_corrected_p_is_seen_at_every_width_and_on_paper(
    evaluated: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    names = ("good", "noisy", "again", "noisy", "good", "noisy")
    comparison.run([evaluated[name] for name in names], tmp_path, resamples=20)
    corrected = "table.compared tbody tr:not(.total) > :last-child, table.compared thead th:last-child"
    with browser.opened() as chromium:
        for width in (320, browser.PHONE, 768, browser.LAPTOP, 1920):
            page = browser.show(chromium, tmp_path / "compare.html", width, "dark" if width == 768 else "light")
            assert browser.sideways(page) <= 0, width
            seen = browser.is_seen(page, corrected)
            assert len(seen) > 100
            assert all(seen), width
            page.close()
        page = browser.show(chromium, tmp_path / "compare.html")
        missing = browser.missing_cells(page, browser.print_a4(page, tmp_path / "compare.pdf"))
    assert missing == []
