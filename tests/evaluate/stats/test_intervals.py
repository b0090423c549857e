import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from mmclip_jax.evaluate.stats import calibration, intervals, thresholds
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap


@given(
    hits=st.integers(0, 40), patients=st.integers(2, 40), level=st.sampled_from([0.8, 0.95]), seed=st.integers(0, 99)
)
@settings(max_examples=60)
def test_rates_are_students_t_on_the_logit_and_exact_at_the_ends(
    hits: int, patients: int, level: float, seed: int
) -> None:
    values = np.zeros(patients)
    values[: min(hits, patients)] = 1
    point = values.mean()
    drawn = Bootstrap(np.arange(patients), 100, seed=seed).ratio(values)
    got = intervals.rate_interval(float(point), drawn, level, patients)
    if point in (0, 1):
        ends = stats.binomtest(int(values.sum()), patients).proportion_ci(level, method="exact")
        assert (got.low, got.high) == pytest.approx((ends.low, ends.high))
    else:
        reach = stats.t.ppf(0.5 + level / 2, patients - 1) * drawn.std(ddof=1) / (point * (1 - point))
        want = special.expit([special.logit(point) - reach, special.logit(point) + reach])
        assert (got.low, got.high) == pytest.approx(tuple(want))
    assert 0 <= got.low <= point <= got.high <= 1


def test_differences_are_students_t_and_their_p_is_its_other_side() -> None:
    rng = np.random.default_rng(0)
    for point in (-0.3, 0.02, 0.9):
        drawn = point + 0.1 * rng.normal(size=499)
        for patients in (3, 11, None):
            freedom = np.inf if patients is None else patients - 1
            for level in (0.5, 0.95):
                got = intervals.difference_interval(point, drawn, level, patients)
                reach = stats.t.ppf(0.5 + level / 2, freedom) * drawn.std(ddof=1)
                assert got.low == pytest.approx(max(point - reach, -1))
                assert got.high == pytest.approx(min(point + reach, 1))
            p = intervals.p_value(point, drawn, patients)
            edge = intervals.mean_interval(point, drawn, 1 - p, patients)
            if p > 2 / 500:  # the interval of level 1 - p just reaches zero
                assert min(abs(edge.low), abs(edge.high)) == pytest.approx(0, abs=1e-9)


def test_p_is_neither_zero_nor_made_of_nothing() -> None:
    assert intervals.p_value(0.0, np.zeros(99), 5) == 1.0
    assert intervals.p_value(1.0, np.ones(99), 5) == pytest.approx(2 / 100)
    assert intervals.p_value(0.5, 0.5 + 1e-9 * np.arange(99.0), 500) == pytest.approx(2 / 100)
    assert np.isnan(intervals.p_value(float("nan"), np.ones(99)))
    assert np.isnan(intervals.p_value(0.1, np.full(99, np.nan)))


def test_the_jackknife_of_a_difference_decides_where_it_is_given() -> None:
    rng = np.random.default_rng(1)
    left, drawn = rng.normal(size=23) ** 3 / 100, 0.05 * rng.normal(size=200)
    squares = (left - left.mean()) ** 2
    deviation = np.sqrt(22 / 23 * squares.sum())
    freedom = 2 / ((squares**2).sum() / squares.sum() ** 2 - 1 / 23)
    got = intervals.difference_interval(0.1, drawn, 0.95, 5, left)
    assert got.high - 0.1 == pytest.approx(stats.t.ppf(0.975, freedom) * deviation)
    assert intervals.p_value(0.1, drawn, 5, left) == pytest.approx(2 * stats.t.sf(0.1 / deviation, freedom))


def test_rates_hold_the_truth_as_often_as_they_say() -> None:
    """Twenty patients with one to three films; the percentiles of the same resamples hold it less often."""
    rng, held = np.random.default_rng(0), np.zeros(2)
    for seed in range(400):
        groups = np.repeat(np.arange(20), rng.integers(1, 4, 20))
        right = (rng.random(len(groups)) < rng.beta(2.4, 0.6, 20)[groups]).astype(float)
        drawn = Bootstrap(groups, 200, seed=seed).ratio(right)
        for way, found in enumerate(
            (intervals.rate_interval(float(right.mean()), drawn, 0.95, 20), intervals.percentile_interval(drawn))
        ):
            held[way] += found.low <= 0.8 <= found.high
    assert held[0] / 400 > 0.925
    assert held[1] < held[0]


def test_each_measure_at_a_threshold_counts_its_own_patients() -> None:
    labels = np.array([1, 1, 0, 0, 0, np.nan])
    groups = ["a", "b", "b", "c", "d", "e"]
    for measure, patients in (("sensitivity", 2), ("specificity", 3), ("accuracy", 4)):
        got = thresholds.interval(measure, 1.0, np.ones(9), labels, Bootstrap(groups, level=0.95))
        assert got.low == pytest.approx(0.025 ** (1 / patients))


def test_a_calibration_error_of_few_patients_has_no_interval() -> None:
    rng = np.random.default_rng(0)
    for patients, known in ((calibration.ECE_PATIENTS - 1, False), (calibration.ECE_PATIENTS, True)):
        labels = (rng.random((patients, 2)) < 0.5).astype(float)
        drawn = Bootstrap(np.arange(patients), 30)
        found = calibration.evaluate(rng.normal(size=labels.shape), labels, ["a", "b"], None, drawn)
        assert np.isfinite(found["as_trained"]["ece_interval"]).all() == known
        assert np.isfinite(found["as_trained"]["brier_interval"]).all()
