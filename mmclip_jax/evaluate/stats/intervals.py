"""Which interval each kind of number has. docs/evaluation.md has the table, docs/results.md the simulated coverage.

All of them come from resampled patients (`metrics.resample_metric` and its kin). The percentiles of the resamples are
too short where few patients make the number, so they are kept for what has no better rule: the calibration error and
the median rank.
"""

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np

from mmclip_jax.evaluate.stats import metrics
from mmclip_jax.evaluate.stats.metrics import Interval


def count_patients(groups: Sequence[Hashable] | np.ndarray) -> int:
    """How many different patients the rows [n] belong to."""
    return len(set(groups.tolist() if isinstance(groups, np.ndarray) else groups))


def rate_interval(point: float, replicates: np.ndarray, level: float, patients: int) -> Interval:
    """Of a rate, or the mean of a number in [0, 1], over rows: `metrics.logit_interval` with t of `patients` - 1.

    A rate of exactly 0 or 1 has no deviation. It gets the exact interval (Clopper and Pearson, 1934) of as many
    patients that all failed or all succeeded: from 0 to 1 - ((1 - level) / 2)^(1 / patients), or the mirror image.

    Args:
      point: of all rows, in [0, 1], or NaN where there is none.
      replicates: [R], the same of each resample; NaN are left out and counted.
      level: of the interval, in (0, 1).
      patients: that have a row in the rate's denominator.
    """
    interval = metrics.logit_interval(point, replicates, level, patients)
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

    percentiles = metrics.percentile_interval(replicates, level)
    usable = replicates[~np.isnan(replicates)]
    if np.isnan(point) or len(usable) < 2:
        return percentiles
    deviation, freedom = metrics.deviation_of(usable, patients, left_out)
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
    deviation, freedom = metrics.deviation_of(usable, patients, left_out)
    lowest = 2 / (len(replicates) + 1)
    if deviation == 0:
        return 1.0 if point == 0 else lowest
    return max(float(2 * stats.t.sf(abs(point) / deviation, freedom)), lowest)
