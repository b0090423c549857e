import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from mmclip_jax.errors import UserError
from mmclip_jax.evaluate.stats import bootstrap, metrics


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
@settings(max_examples=100)
def test_equal_to_scikit_learn(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = drawn
    assert abs(metrics.auroc(labels, scores) - roc_auc_score(labels, scores)) <= 1e-12
    assert abs(metrics.auprc(labels, scores) - average_precision_score(labels, scores)) <= 1e-12


@given(_labelled_scores())
@settings(max_examples=50)
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
        bootstrap.bootstrap_ci([1, 0], [1, 0], ["a", "b", "c"])


@given(_labelled_scores())
@settings(max_examples=40)
def test_roc_curve_goes_through_scikit_learns_points(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = drawn
    x, y = metrics.roc_curve(labels, scores)
    assert np.trapezoid(y, x) == pytest.approx(metrics.auroc(labels, scores), abs=1e-12)
    sx, sy, _ = sklearn_roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose((x, y), (sx, sy), atol=1e-12)


def test_labels_are_counted() -> None:
    assert metrics.counts([1, 0, np.nan, 1, np.nan]) == metrics.Counts(2, 1, 2)
    notes = [metrics.counts(labels).note for labels in ([1, 0], [1, np.nan], [0.0], [np.nan], [])]
    assert notes == ["", "no negative label", "no positive label", "no known label", "no known label"]
