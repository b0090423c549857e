import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from mmclip_jax.errors import UserError
from mmclip_jax.evaluate.stats import calibration
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap


@st.composite
def _labelled(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Both classes; probabilities that are often tied, or edges of bins."""
    count = draw(st.integers(2, 53))
    labels = np.array(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)), float)
    labels[0], labels[1] = 0, 1
    values = draw(st.sampled_from([st.integers(0, 30).map(lambda n: n / 30), st.floats(0, 1)]))
    return labels, np.array(draw(st.lists(values, min_size=count, max_size=count)))


@given(_labelled(), st.integers(1, 17))
@settings(max_examples=100)
def test_equal_to_scikit_learn(drawn: tuple[np.ndarray, np.ndarray], bins: int) -> None:
    labels, probabilities = drawn
    assert abs(calibration.brier(labels, probabilities) - brier_score_loss(labels, probabilities)) <= 1e-12
    curve = calibration.reliability(labels, probabilities, bins)
    share, mean = calibration_curve(labels, probabilities, n_bins=bins)
    np.testing.assert_allclose([b["share"] for b in curve], share, atol=1e-12)
    np.testing.assert_allclose([b["probability"] for b in curve], mean, atol=1e-12)
    # The ECE by its formula, from scikit-learn's curve and counts of our own.
    edges = np.linspace(0, 1, bins + 1)
    inside = [(probabilities > low) & (probabilities <= high) for low, high in itertools.pairwise(edges)]
    inside[0] |= probabilities == 0
    counts = np.array([rows.sum() for rows in inside if rows.any()])
    assert [b["rows"] for b in curve] == counts.tolist()
    expected = (counts * np.abs(share - mean)).sum() / len(labels)
    assert abs(calibration.ece(labels, probabilities, bins) - expected) <= 1e-12


def test_known_values() -> None:
    assert calibration.ece([1, 0, 1, 0], [0.5] * 4) == 0
    assert calibration.ece([1, 1], [0, 0]) == 1
    assert calibration.brier([1, 0, np.nan], [0.5, 0.5, 1]) == 0.25
    assert calibration.ece([1, np.nan], [0.75, 0.1]) == 0.25


def test_a_random_large_input_that_is_calibrated_by_construction() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.random(50_021)
    labels = (rng.random(50_021) < probabilities).astype(float)
    assert calibration.ece(labels, probabilities) < 0.01
    assert calibration.brier(labels, probabilities) == pytest.approx(1 / 6, abs=5e-3)  # the mean of p (1 - p)
    for true in (0.3, 1.0, 4.0):
        margins = true * np.log(probabilities / (1 - probabilities))
        assert calibration.fit_temperature(labels, margins) == pytest.approx(true, rel=0.02)


def test_the_temperature_is_the_best_of_a_grid() -> None:
    rng = np.random.default_rng(1)
    labels = (rng.random((97, 3)) < 0.4).astype(float)
    margins = 5 * (labels + rng.normal(size=labels.shape))
    labels[rng.random(labels.shape) < 0.2] = np.nan
    known = ~np.isnan(labels)

    def loss(temperature: float) -> float:
        return log_loss(labels[known], calibration.sigmoid(margins[known], temperature))

    found = calibration.fit_temperature(labels, margins)
    assert loss(found) <= min(loss(found * factor) for factor in np.geomspace(0.1, 10, 101)) + 1e-9


def test_what_is_undefined_and_what_is_refused() -> None:
    nothing = [calibration.brier([], []), calibration.ece([np.nan], [0.5]), calibration.fit_temperature([1, 1], [0, 2])]
    assert np.isnan(nothing).all()
    assert calibration.reliability([np.nan], [0.5]) == []
    for bad in (1.5, -0.1, np.inf):
        with pytest.raises(UserError, match=r"probabilities lie in 0\.\.1"):
            calibration.brier([1, 0], [0.5, bad])
    with pytest.raises(UserError, match="NaN"):
        calibration.ece([1, 0], [0.5, np.nan])
    with pytest.raises(UserError, match="infinite"):
        calibration.fit_temperature([1, 0], [np.inf, 0])


def test_the_sigmoid_does_not_overflow() -> None:
    np.testing.assert_allclose(calibration.sigmoid([-1e9, -1.0, 0.0, 1.0, np.inf]), [0, 0.2689414213699951, 0.5,
                               0.7310585786300049, 1], atol=1e-15)  # fmt: skip
    assert calibration.sigmoid([2.0], 4.0)[0] == pytest.approx(1 / (1 + np.exp(-0.5)))


def test_resamples_equal_copied_rows() -> None:
    rng = np.random.default_rng(0)
    groups, probabilities = rng.integers(0, 11, 43), rng.random(43)
    labels = np.where(rng.random(43) < 0.1, np.nan, (rng.random(43) < 0.3).astype(float))
    drawn = Bootstrap(groups, 37, seed=5)
    fast = calibration.resample_calibration(labels, probabilities, drawn, bins=7)
    for column, metric in enumerate((lambda y, p: calibration.ece(y, p, 7), calibration.brier)):
        slow = drawn.metric(labels, probabilities, metric)
        np.testing.assert_allclose(fast[:, column], slow, atol=1e-12)
