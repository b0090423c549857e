"""Which interval each kind of number has. docs/evaluation.md has the table, docs/results.md the simulated coverage.

All of them come from resampled patients (`bootstrap.Bootstrap`, which calls these rules with its own level). The
percentiles of the resamples are too short where few patients make the number, so they are kept for what has no better
rule: the calibration error and the median rank.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Interval:
    """A bootstrap interval.

    unusable: resamples of which the metric was undefined (one class only). They are left out, so the interval is
    conditional on both classes being seen; with many of them it is not to be trusted.
    """

    low: float
    high: float
    resamples: int
    unusable: int

    @property
    def bounds(self) -> list[float]:
        """[low, high], as JSON holds it."""
        return [self.low, self.high]


def percentile_interval(replicates: np.ndarray, level: float = 0.95) -> Interval:
    """The central interval of replicates [R], those that are NaN left out and counted.

    Raises:
      ValueError: level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not in (0, 1)")
    usable = replicates[~np.isnan(replicates)]
    if not len(usable):
        return Interval(float("nan"), float("nan"), len(replicates), len(replicates))
    low, high = np.percentile(usable, [50 * (1 - level), 50 * (1 + level)])
    return Interval(float(low), float(high), len(replicates), len(replicates) - len(usable))


def logit_interval(
    point: float,
    replicates: np.ndarray,
    level: float = 0.95,
    patients: int | None = None,
    left_out: np.ndarray | None = None,
) -> Interval:
    """logit(m) ± t · s / (m (1 - m)), taken back to (0, 1), for a metric m in that range; s: the replicates' deviation.

    Percentiles miss the truth too often where it is near 1 or few patients have a finding, since replicates are then
    skewed and too close together (docs/results.md has the simulation). A metric of exactly 0 or 1 has percentiles.

    Args:
      point: the metric of all rows.
      replicates: [R], the same of each resample; NaN are left out and counted.
      level: of the interval, in (0, 1).
      patients: of the rarer class (`bootstrap.fewest_patients`), whose number less one gives the degrees of freedom of
        t; None for those of the normal distribution.
      left_out: [k] of `Bootstrap.jackknife`: s is then the jackknife's, which errs on the long side (Efron and Stein,
        1981), and the degrees of freedom are Satterthwaite's (1946), few where few patients make most of the variance.
        Without effect if one of them is NaN or all are equal.

    Raises:
      ValueError: level outside (0, 1).
    """
    from scipy import stats

    percentiles = percentile_interval(replicates, level)
    usable = replicates[~np.isnan(replicates)]
    if not 0 < point < 1 or len(usable) < 2:
        return percentiles
    deviation, freedom = deviation_of(usable, patients, left_out)
    reach = stats.t.ppf(0.5 + level / 2, freedom) * deviation / (point * (1 - point))
    center = np.log(point / (1 - point))
    low, high = (1 / (1 + np.exp(-np.clip([center - reach, center + reach], -700, 700)))).tolist()
    return dataclasses.replace(percentiles, low=low, high=high)


def deviation_of(
    replicates: np.ndarray, patients: int | None = None, left_out: np.ndarray | None = None
) -> tuple[float, float]:
    """(standard deviation, degrees of freedom, at least 1) of a number; arguments as `logit_interval` takes them."""
    if left_out is not None and np.ptp(left_out) > 0:  # NaN is not
        squares = (left_out - left_out.mean()) ** 2
        # 2 E[v]² / Var[v] of the sum of squares v, its variance estimated from the squares themselves.
        freedom = 2 / max((squares**2).sum() / squares.sum() ** 2 - 1 / len(squares), 1e-12)
        return float(np.sqrt((1 - 1 / len(squares)) * squares.sum())), max(freedom, 1.0)
    return float(replicates.std(ddof=1)), np.inf if patients is None else max(patients - 1.0, 1.0)


def rate_interval(point: float, replicates: np.ndarray, level: float, patients: int) -> Interval:
    """Of a rate, or the mean of a number in [0, 1], over rows: `logit_interval` with t of `patients` - 1.

    A rate of exactly 0 or 1 has no deviation. It gets the exact interval (Clopper and Pearson, 1934) of as many
    patients that all failed or all succeeded: from 0 to 1 - ((1 - level) / 2)^(1 / patients), or the mirror image.

    Args:
      point: of all rows, in [0, 1], or NaN where there is none.
      replicates: [R], the same of each resample; NaN are left out and counted.
      level: of the interval, in (0, 1).
      patients: that have a row in the rate's denominator.
    """
    interval = logit_interval(point, replicates, level, patients)
    if point not in (0.0, 1.0) or patients < 1:
        return interval
    reach = 1 - ((1 - level) / 2) ** (1 / patients)
    return dataclasses.replace(interval, low=0.0 if point == 0 else 1 - reach, high=reach if point == 0 else 1.0)


def mean_interval(
    point: float,
    replicates: np.ndarray,
    level: float,
    patients: int | None = None,
    *,
    left_out: np.ndarray | None = None,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """Of a mean of numbers of any size, or of a difference: point ± t · s, s being the deviation of the resamples.

    Args:
      point: of all rows; NaN where there is none.
      replicates: [R] of the same resamples; NaN are left out and counted. Of a difference: replicates of one side
        less those of the other, in the same resamples.
      level: of the interval, in (0, 1).
      patients: whose number less one gives the degrees of freedom of t (of a difference of rankings, the patients of
        the rarer class); None for the normal distribution.
      limits: that the number cannot leave, such as (-1, 1) for a difference of rates.

    Raises:
      ValueError: level outside (0, 1).
    """
    from scipy import stats

    percentiles = percentile_interval(replicates, level)
    usable = replicates[~np.isnan(replicates)]
    if np.isnan(point) or len(usable) < 2:
        return percentiles
    deviation, freedom = deviation_of(usable, patients, left_out)
    reach = float(stats.t.ppf(0.5 + level / 2, freedom)) * deviation
    return dataclasses.replace(percentiles, low=max(point - reach, limits[0]), high=min(point + reach, limits[1]))


def difference_interval(
    point: float,
    replicates: np.ndarray,
    level: float,
    patients: int | None = None,
    left_out: np.ndarray | None = None,
) -> Interval:
    """Of a difference of two numbers in [0, 1]: `mean_interval` within [-1, 1]."""
    return mean_interval(point, replicates, level, patients, left_out=left_out, limits=(-1.0, 1.0))


def p_value(
    point: float, replicates: np.ndarray, patients: int | None = None, left_out: np.ndarray | None = None
) -> float:
    """Two-sided p of a difference, of the same t as `difference_interval`: below 0.05 where its 95 % leave out 0.

    It is at least 2 / (R + 1), which is all that R resamples can tell. NaN where the point is, or fewer than two
    resamples are usable; 1 where the two sides never differ.
    """
    from scipy import stats

    usable = replicates[~np.isnan(replicates)]
    if np.isnan(point) or len(usable) < 2:
        return float("nan")
    deviation, freedom = deviation_of(usable, patients, left_out)
    lowest = 2 / (len(replicates) + 1)
    if deviation == 0:
        return 1.0 if point == 0 else lowest
    return max(float(2 * stats.t.sf(abs(point) / deviation, freedom)), lowest)
