import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from mmclip_jax.errors import UserError
from mmclip_jax.evaluate import metrics


@st.composite
def _labelled_scores(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Both classes; few distinct scores now and then, so that ties are common; infinities too."""
    count = draw(st.integers(2, 67))
    labels = np.array(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)), float)
    labels[0], labels[1] = 0, 1
    values = draw(st.sampled_from([st.integers(0, 3).map(float), st.floats(-1e3, 1e3)]))
    scores = np.array(draw(st.lists(values, min_size=count, max_size=count)))
    return labels, scores


@given(_labelled_scores())
@settings(max_examples=100, deadline=None)
def test_equal_to_scikit_learn(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = drawn
    assert abs(metrics.auroc(labels, scores) - roc_auc_score(labels, scores)) <= 1e-12
    assert abs(metrics.auprc(labels, scores) - average_precision_score(labels, scores)) <= 1e-12


@given(_labelled_scores())
@settings(max_examples=50, deadline=None)
def test_auroc_is_the_share_of_won_pairs(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = drawn
    positive, negative = scores[labels == 1, None], scores[labels == 0][None, :]
    won = (positive > negative).mean() + 0.5 * (positive == negative).mean()
    assert metrics.auroc(labels, scores) == pytest.approx(won, abs=1e-12)


def test_large_random_and_heavily_tied_inputs() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(20011) < 0.07).astype(float)
    for scores in (rng.normal(size=20011) + labels, np.round(rng.normal(size=20011) + labels, 1)):
        assert abs(metrics.auroc(labels, scores) - roc_auc_score(labels, scores)) <= 1e-12
        assert abs(metrics.auprc(labels, scores) - average_precision_score(labels, scores)) <= 1e-12


def test_unknown_labels_are_left_out_and_infinities_rank() -> None:
    nan, inf = np.nan, np.inf
    assert metrics.auroc([1, nan, 0, 0], [inf, 5, -inf, 2]) == 1.0
    assert metrics.auroc([0, 1, 0, nan], [inf, inf, -inf, 0]) == 0.75
    assert metrics.auroc([True, False], [0.2, 0.1]) == 1.0


@pytest.mark.parametrize("labels", [[1, 1], [0, 0], [np.nan, 1], []])
def test_one_class_is_nan(labels: list[float]) -> None:
    assert np.isnan(metrics.auroc(labels, np.arange(len(labels))))


def test_a_nan_score_is_an_error_even_of_a_row_of_unknown_label() -> None:
    with pytest.raises(UserError, match="1 of 3 scores are NaN"):
        metrics.auroc([1, 0, np.nan], [1, 0, np.nan])
    with pytest.raises(UserError, match="0, 1 or NaN"):
        metrics.auroc([1, 0, 2], [1, 0, 3])
    with pytest.raises(UserError, match="differ in shape"):
        metrics.auprc([1, 0], [1, 0, 3])
    with pytest.raises(UserError, match="2 rows but 3 groups"):
        metrics.bootstrap_ci([1, 0], [1, 0], ["a", "b", "c"])


@given(_labelled_scores())
@settings(max_examples=40, deadline=None)
def test_roc_curve_goes_through_scikit_learns_points(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = drawn
    x, y = metrics.roc_curve(labels, scores)
    assert np.trapezoid(y, x) == pytest.approx(metrics.auroc(labels, scores), abs=1e-12)
    sx, sy, _ = sklearn_roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose((x, y), (sx, sy), atol=1e-12)


def _clustered(patients: int = 41, seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    rng.shuffle(groups)
    labels = (rng.random(len(groups)) < 0.3).astype(float)
    labels[rng.random(len(groups)) < 0.1] = np.nan
    scores = np.round(np.nan_to_num(labels) + rng.normal(size=len(groups)), 1)
    return labels, scores, groups


@pytest.mark.parametrize("metric", [metrics.auroc, metrics.auprc])
def test_weighted_resamples_equal_copied_rows(metric: metrics.Metric) -> None:
    labels, scores, groups = _clustered()
    fast = metrics.resample_metric(labels, scores, groups, metric=metric, resamples=67, seed=5)
    # Another function object takes the general path, which copies the drawn rows and calls it.
    slow = metrics.resample_metric(labels, scores, groups, metric=lambda y, s: metric(y, s), resamples=67, seed=5)
    np.testing.assert_allclose(fast, slow, atol=1e-12)
    assert np.ptp(fast) > 0.02


def test_whole_patients_are_drawn() -> None:
    groups = np.array([0, 0, 0, 1, 1, 2])
    drawn = []
    metrics.resample_metric(
        np.array([0, 1, 0, 1, 0, 1.0]),
        np.arange(6.0),
        groups,
        metric=lambda labels, scores: drawn.append(scores.astype(int)) or 0.0,  # type: ignore[func-returns-value]
        resamples=53,
    )
    for rows in drawn:
        counts = np.bincount(rows, minlength=6)
        assert counts[0] == counts[1] == counts[2]
        assert counts[3] == counts[4]
        assert counts[0] + counts[3] + counts[5] == 3
    assert len({tuple(rows) for rows in drawn}) > 5


def test_the_interval_is_reproducible_and_does_not_depend_on_patients_names() -> None:
    labels, scores, groups = _clustered()
    named = [f"patient {9 * g}" for g in groups]
    low, high = metrics.bootstrap_ci(labels, scores, groups, seed=11)
    assert (low, high) == metrics.bootstrap_ci(labels, scores, named, seed=11)
    assert (low, high) != metrics.bootstrap_ci(labels, scores, groups, seed=12)
    assert low < metrics.auroc(labels, scores) < high


def test_blocks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, scores, groups = _clustered()
    whole = metrics.resample_metric(labels, scores, groups, resamples=29)
    monkeypatch.setattr(metrics, "_BLOCK_SIZE", 3 * len(labels))
    np.testing.assert_array_equal(metrics.resample_metric(labels, scores, groups, resamples=29), whole)


def test_findings_share_their_resamples() -> None:
    labels, scores, groups = _clustered()
    labels = np.nan_to_num(labels)
    both = metrics.resample_metric(
        np.column_stack([labels, labels]), np.column_stack([scores, -scores]), groups, resamples=31
    )
    np.testing.assert_allclose(both[:, 0] + both[:, 1], 1.0, atol=1e-12)
    alone = metrics.resample_metric(labels, scores, groups, resamples=31)
    np.testing.assert_array_equal(both[:, 0], alone)


def test_resamples_with_one_class_are_left_out_and_counted() -> None:
    labels, scores = np.array([1.0, 0, 0, 0]), np.array([3.0, 1, 2, 4])
    replicates = metrics.resample_metric(labels, scores, None, resamples=400)
    interval = metrics.percentile_interval(replicates)
    # A resample of four misses the only positive with probability (3/4)^4 = 0.316, and has nothing else with 1/256.
    assert 90 <= interval.unusable <= 165
    assert interval.unusable == np.isnan(replicates).sum()
    assert 0 <= interval.low <= interval.high <= 1
    assert np.isnan(metrics.bootstrap_ci([1, 1], [0, 1], None)).all()


def test_macro_leaves_out_what_a_resample_lacks() -> None:
    replicates = np.array([[0.5, np.nan, 0.7], [np.nan, np.nan, np.nan], [0.2, 0.4, 0.9]])
    np.testing.assert_allclose(metrics.macro_replicates(replicates), [0.6, np.nan, 0.5])


def test_ratio_equals_copied_rows() -> None:
    rng = np.random.default_rng(2)
    above, below, groups = rng.random((23, 2)), rng.random((23, 2)) + 0.1, rng.integers(0, 7, 23)
    got = metrics.resample_ratio(above, below, groups, resamples=19, seed=4)
    rows: list[np.ndarray] = []
    marked = np.arange(23.0)
    metrics.resample_metric(
        np.zeros(23), marked, groups, resamples=19, seed=4,
        metric=lambda _, s: rows.append(s.astype(int)) or 0.0,  # type: ignore[func-returns-value]
    )  # fmt: skip
    want = [above[r].sum(axis=0) / below[r].sum(axis=0) for r in rows]
    np.testing.assert_allclose(got, want)


@pytest.mark.slow
def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """AUROC of N(1, 1) against N(0, 1) with a shared patient effect; truth by a large draw."""
    rng = np.random.default_rng(0)

    def sample(patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        groups = np.repeat(np.arange(patients), 3)
        labels = np.repeat(rng.random(patients) < 0.4, 3).astype(float)
        effect = np.repeat(rng.normal(size=patients), 3)
        return labels, labels + effect + 0.3 * rng.normal(size=3 * patients), groups

    truth = metrics.auroc(*sample(100_000)[:2])
    trials, covered, naive = 200, 0, 0
    for trial in range(trials):
        labels, scores, groups = sample(60)
        low, high = metrics.bootstrap_ci(labels, scores, groups, resamples=300, seed=trial)
        covered += low <= truth <= high
        low, high = metrics.bootstrap_ci(labels, scores, None, resamples=300, seed=trial)
        naive += low <= truth <= high
    assert 0.89 <= covered / trials <= 0.985
    # Resampling images instead of patients would be far too sure of itself here.
    assert naive / trials < 0.85


@pytest.mark.slow
def test_a_thousand_resamples_of_fourteen_findings_and_25596_images_in_20_seconds() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((25_596, 14)) < 0.08).astype(float)
    scores = rng.normal(size=labels.shape) + labels
    groups = rng.integers(0, 2797, len(labels))
    start = time.process_time()  # of one core: other programs on the machine do not count
    replicates = metrics.resample_metric(labels, scores, groups, resamples=1000)
    assert time.process_time() - start < 20
    assert replicates.shape == (1000, 14)
    assert metrics.percentile_interval(metrics.macro_replicates(replicates)).unusable == 0


def test_labels_are_counted() -> None:
    assert metrics.counts([1, 0, np.nan, 1, np.nan]) == metrics.Counts(2, 1, 2)
    notes = [metrics.counts(labels).note for labels in ([1, 0], [1, np.nan], [0.0], [np.nan], [])]
    assert notes == ["", "no negative label", "no positive label", "no known label", "no known label"]
