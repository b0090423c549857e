import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_recall_curve, recall_score, roc_curve

from mmclip_jax.errors import UserError
from mmclip_jax.evaluate.stats import thresholds
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap


@st.composite
def _labelled_scores(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Both classes; often tied."""
    count = draw(st.integers(2, 47))
    labels = np.array(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)), float)
    labels[0], labels[1] = 0, 1
    values = draw(st.sampled_from([st.integers(0, 3).map(float), st.floats(-1e3, 1e3)]))
    return labels, np.array(draw(st.lists(values, min_size=count, max_size=count)))


def _sklearn(labels: np.ndarray, called: np.ndarray) -> list[float]:
    return [
        f1_score(labels, called),
        accuracy_score(labels, called),
        recall_score(labels, called),
        recall_score(labels, called, pos_label=0),
    ]


@given(_labelled_scores(), st.floats(0, 1))
@settings(max_examples=80)
def test_equal_to_scikit_learn(drawn: tuple[np.ndarray, np.ndarray], quantile: float) -> None:
    labels, scores = drawn
    for threshold in (float(np.quantile(scores, quantile, method="lower")), -np.inf, np.inf):
        got = thresholds.at_threshold(labels, scores, threshold)
        np.testing.assert_allclose(list(got.values()), _sklearn(labels, scores >= threshold), atol=1e-12)
        assert list(got) == list(thresholds.MEASURES)
        for name in thresholds.MEASURES:
            assert getattr(thresholds, name)(labels, scores, threshold) == got[name]


@given(_labelled_scores())
@settings(max_examples=80)
def test_the_best_thresholds_are_scikit_learns(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = drawn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        precision, recall, _ = precision_recall_curve(labels, scores)
        best = np.nanmax(2 * precision * recall / np.maximum(precision + recall, 1e-300))
    assert thresholds.max_f1(labels, scores) == pytest.approx(best, abs=1e-12)
    chosen = thresholds.choose_threshold(labels, scores)
    assert thresholds.f1(labels, scores, chosen) == pytest.approx(best, abs=1e-12)
    assert all(thresholds.f1(labels, scores, t) < best - 1e-13 for t in scores[scores > chosen])
    false, true, _ = roc_curve(labels, scores)
    at = thresholds.at_threshold(labels, scores, thresholds.choose_threshold(labels, scores, "youden"))
    # A curve's first point calls nothing positive (J = 0), which no score as a threshold does.
    assert at["sensitivity"] + at["specificity"] - 1 == pytest.approx((true - false)[1:].max(), abs=1e-12)


def test_unknown_labels_are_left_out_and_infinities_rank() -> None:
    nan, inf = np.nan, np.inf
    got = thresholds.at_threshold([1, nan, 0, 1, 0], [inf, 5, -inf, 1, 2], 1.5)
    assert got == {"f1": 0.5, "accuracy": 0.5, "sensitivity": 0.5, "specificity": 0.5}
    assert thresholds.choose_threshold([1, 0, nan], [inf, 3, inf]) == inf
    assert thresholds.max_f1([1, 0, 0], [inf, inf, -inf]) == pytest.approx(2 / 3)


def test_a_missing_class_is_nan() -> None:
    only_negatives = thresholds.at_threshold([0, 0], [1, 2], 1.5)
    np.testing.assert_equal(list(only_negatives.values()), [np.nan, 0.5, np.nan, 0.5])
    only_positives = thresholds.at_threshold([1, 1], [1, 2], 1.5)
    np.testing.assert_equal(list(only_positives.values()), [2 / 3, 0.5, 0.5, np.nan])
    assert np.isnan(list(thresholds.at_threshold([np.nan], [1], 0).values())).all()
    assert np.isnan([thresholds.max_f1([0, 0], [1, 2]), thresholds.choose_threshold([0, np.nan], [1, 2])]).all()
    assert np.isnan(thresholds.choose_threshold([1, 1], [1, 2], "youden"))
    assert np.isnan(thresholds.max_f1([], []))


def test_a_nan_score_or_threshold_is_an_error() -> None:
    for function in (thresholds.choose_threshold, thresholds.max_f1, lambda y, s: thresholds.f1(y, s, 0)):
        with pytest.raises(UserError, match="1 of 2 scores are NaN"):
            function([1, np.nan], [1, np.nan])
    with pytest.raises(ValueError, match="threshold is NaN"):
        thresholds.f1([1, 0], [1, 0], np.nan)
    with pytest.raises(ValueError, match="no_such"):
        thresholds.choose_threshold([1, 0], [1, 0], "no_such")


def test_resamples_equal_copied_rows() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 11, 43)
    labels = np.where(rng.random(43) < 0.1, np.nan, (rng.random(43) < 0.2).astype(float))
    scores = np.nan_to_num(labels) + rng.normal(size=43)
    fast = thresholds.resample_at_threshold(labels, scores, 0.4, Bootstrap(groups, 37, seed=5))
    for column, name in enumerate(thresholds.MEASURES):

        def metric(labels: Any, scores: Any, name: str = name) -> float:
            return thresholds.at_threshold(labels, scores, 0.4)[name]

        slow = Bootstrap(groups, 37, seed=5).metric(labels, scores, metric)
        np.testing.assert_allclose(fast[:, column], slow, atol=1e-12)
