"""Scores of a binary finding and their patient-clustered bootstrap intervals, in NumPy float64.

A label is 1, 0 or NaN (unknown: the row is left out of that finding). Patients, not images, are resampled: images of
one patient are not independent. A resample is a number of times that each patient was drawn, and every metric here is
computed from such counts directly, so that a thousand resamples need one sort and no copies of the data.
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mmclip_jax.errors import UserError

Metric = Callable[[Any, Any], float]

# Numbers of a block of resamples x rows that are worked on at a time: about 4 MB, which stays in a core's cache.
_BLOCK_SIZE = 1 << 19
# Blocks of patients that a jackknife leaves out.
_MOST_BLOCKS = 1000


def auroc(labels: Any, scores: Any) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting one half.

    Args:
      labels: [n], 1 or True positive, 0 or False negative, NaN unknown (left out).
      scores: [n], higher means more likely positive; infinities rank as usual.

    Returns:
      A float in [0, 1]; NaN if one of the classes is missing.

    Raises:
      UserError: a NaN score, a label that is none of the above, lengths that differ.
    """
    column = _Column(*checked(labels, scores), np.arange(np.size(scores)))
    return float(column.auroc(np.ones((1, np.size(scores)), np.int32))[0])


def auprc(labels: Any, scores: Any) -> float:
    """Area under the precision-recall curve as average precision: sum over thresholds of (R_n - R_{n-1}) P_n.

    Arguments and errors as for `auroc`. Chance is the share of positives. Without a positive it is NaN.
    """
    column = _Column(*checked(labels, scores), np.arange(np.size(scores)))
    return float(column.auprc(np.ones((1, np.size(scores)), np.int32))[0])


@dataclasses.dataclass(frozen=True)
class Counts:
    """Rows of a finding by what its label says; `unknown` ones (NaN) are left out of every metric."""

    positives: int
    negatives: int
    unknown: int

    @property
    def note(self) -> str:
        """Why metrics that need both classes are NaN; "" if they are not."""
        if self.positives and self.negatives:
            return ""
        if not (self.positives or self.negatives):
            return "no known label"
        return "no negative label" if self.positives else "no positive label"


def counts(labels: Any) -> Counts:
    """How many labels [n] are 1, 0 and NaN."""
    labels = np.asarray(labels, np.float64)
    return Counts(int((labels == 1).sum()), int((labels == 0).sum()), int(np.isnan(labels).sum()))


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


def bootstrap_ci(
    labels: Any,
    scores: Any,
    groups: Sequence[Hashable] | np.ndarray | None,
    *,
    metric: Metric = auroc,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of a metric over resampled patients: `ranking_interval` of `auroc` and `auprc`, else percentiles.

    Rows of unknown label are left out first, and as many patients as are left are drawn with replacement, each with all
    of its rows. Resamples with one class only are left out.

    Args:
      labels: [n], as for `auroc`.
      scores: [n].
      groups: [n], the patient of each row; None makes every row its own.
      metric: `auroc`, `auprc` (both fast), or any function of (labels, scores), called once a resample.
      resamples: how many.
      level: of the interval, in (0, 1).
      seed: of the draws; the same seed gives the same interval.

    Returns:
      (low, high); (NaN, NaN) if no resample has both classes.

    Raises:
      UserError: as for `auroc`, or groups of another length.
    """
    labels, scores = checked(labels, scores)
    known = ~np.isnan(labels)
    members = _group_numbers(groups, len(labels))[known]
    replicates = resample_metric(labels[known], scores[known], members, metric=metric, resamples=resamples, seed=seed)
    if metric in (auroc, auprc):
        interval = ranking_interval(labels[known], scores[known], members, replicates, metric=metric, level=level)
    else:
        interval = percentile_interval(replicates, level)
    return interval.low, interval.high


def resample_metric(
    labels: Any,
    scores: Any,
    groups: Sequence[Hashable] | np.ndarray | None,
    *,
    metric: Metric = auroc,
    resamples: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """The metric of each resample of patients; for several findings at once, of the same resamples.

    Args:
      labels: [n] or [n, K].
      scores: the same shape.
      groups: [n], the patient of each row.
      metric: `auroc`, `auprc` or any function of (labels [m], scores [m]).
      resamples: R.
      seed: of the draws.

    Returns:
      float64 [R] or [R, K]; NaN where a resample does not have both classes of a finding.
    """
    draws = _draws(_group_numbers(groups, len(labels)), resamples, seed)
    return _metric_of_counts(labels, scores, groups, metric, draws, resamples)


def leave_out_metric(
    labels: Any, scores: Any, groups: Sequence[Hashable] | np.ndarray | None, *, metric: Metric = auroc
) -> np.ndarray:
    """The metric without each patient in turn, which is what a jackknife needs; arguments as for `resample_metric`.

    More than 1,000 patients are left out in 1,000 blocks (every thousandth of them), which the same formulas take.

    Returns:
      float64 [min(patients, 1000)] or [..., K]; NaN where what is left does not have both classes of a finding.
    """
    numbers = _group_numbers(groups, len(labels))
    patients = int(numbers.max(initial=-1)) + 1
    blocks = min(patients, _MOST_BLOCKS)
    size = max(1, _BLOCK_SIZE // max(len(numbers), 1))
    left = (
        (start, (np.arange(patients) % blocks != np.arange(start, min(start + size, blocks))[:, None]).astype(np.int32))
        for start in range(0, blocks, size)
    )
    return _metric_of_counts(labels, scores, groups, metric, left, blocks)


def _metric_of_counts(
    labels: Any,
    scores: Any,
    groups: Sequence[Hashable] | np.ndarray | None,
    metric: Metric,
    draws: Iterable[tuple[int, np.ndarray]],
    rows: int,
) -> np.ndarray:
    """The metric of data in which each group is present as often as counted: [rows] or [rows, K].

    draws: (first row, counts int32 [block, groups]).
    """
    labels, scores = checked(labels, scores)
    numbers = _group_numbers(groups, len(labels))
    columns_labels = labels.reshape(len(labels), -1)
    columns_scores = scores.reshape(len(labels), -1)
    columns = [_Column(columns_labels[:, k], columns_scores[:, k], numbers) for k in range(columns_labels.shape[1])]
    found = np.full((rows, len(columns)), np.nan)
    for start, counts in draws:
        for k, column in enumerate(columns):
            block = found[start : start + len(counts), k]
            if metric is auroc:
                block[:] = column.auroc(counts)
            elif metric is auprc:
                block[:] = column.auprc(counts)
            else:
                known = np.flatnonzero(~np.isnan(columns_labels[:, k]))
                for r, count in enumerate(counts):
                    chosen = np.repeat(known, count[numbers[known]])
                    block[r] = metric(columns_labels[chosen, k], columns_scores[chosen, k])
    return found.reshape((rows, *labels.shape[1:]))


def resample_ratio(
    numerators: Any,
    denominators: Any,
    groups: Sequence[Hashable] | np.ndarray | None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Sum of the numerators over sum of the denominators, of each resample of patients.

    With ones as denominators it is a mean. Columns share their resamples, so differences of columns are paired.

    Args:
      numerators: [n] or [n, M].
      denominators: broadcastable to the same shape.
      groups: [n], the patient of each row.
      resamples: R.
      seed: of the draws.

    Returns:
      float64 [R] or [R, M]; NaN where the denominator is 0.
    """
    above = np.asarray(numerators, np.float64)
    below = np.broadcast_to(np.asarray(denominators, np.float64), above.shape)
    sums = resample_sums(np.stack([above, below], axis=1), groups, resamples=resamples, seed=seed)
    return divide(sums[:, 0], sums[:, 1])


def resample_sums(
    values: Any, groups: Sequence[Hashable] | np.ndarray | None, *, resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """Sums over the rows [n, ...] of each resample of patients: float64 [R, ...].

    Whatever is a function of sums over rows (F1, Brier score, calibration error) gets its resamples from here.
    """
    rows = np.asarray(values, np.float64)
    numbers = _group_numbers(groups, len(rows))
    sums = np.zeros((int(numbers.max(initial=-1)) + 1, *rows.shape[1:]))
    np.add.at(sums, numbers, rows)
    flat = sums.reshape(len(sums), -1)
    result = np.full((resamples, flat.shape[1]), np.nan)
    for start, counts in _draws(numbers, resamples, seed):
        result[start : start + len(counts)] = counts @ flat
    return result.reshape((resamples, *rows.shape[1:]))


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
      replicates: [R] of `resample_metric`; NaN are left out and counted.
      level: of the interval, in (0, 1).
      patients: of the rarer class (`fewest_patients`), whose number less one gives the degrees of freedom of t; None
        for those of the normal distribution.
      left_out: [k] of `leave_out_metric`: s is then the jackknife's, which errs on the long side (Efron and Stein,
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


def ranking_interval(
    labels: Any,
    scores: Any,
    groups: Sequence[Hashable] | np.ndarray | None,
    replicates: np.ndarray,
    *,
    metric: Metric,
    level: float = 0.95,
) -> Interval:
    """The interval of one finding's AUROC or AUPRC: `logit_interval`, the AUPRC's with a jackknife's deviation.

    The AUPRC's resamples are up to 8 % closer together than its samples are, the AUROC's up to 5 %, and a few patients
    can make most of the AUPRC's variance (the simulation in docs/results.md).

    Args:
      labels: [n], 1, 0 or NaN.
      scores: [n].
      groups: [n], the patient of each row.
      replicates: [R] of `resample_metric`.
      metric: `auroc` or `auprc`.
      level: of the interval, in (0, 1).
    """
    left_out = leave_out_metric(labels, scores, groups, metric=metric) if metric is auprc else None
    return logit_interval(metric(labels, scores), replicates, level, fewest_patients(labels, groups), left_out)


def fewest_patients(labels: np.ndarray, groups: Sequence[Hashable] | np.ndarray | None) -> int:
    """Patients with a row of the class that fewer patients have; labels [n] of 1, 0 or NaN."""
    numbers = _group_numbers(groups, len(labels))
    return min(len(np.unique(numbers[labels == value])) for value in (0, 1))


def macro_replicates(replicates: np.ndarray) -> np.ndarray:
    """Mean over findings of each joint resample: [R, K] -> [R].

    A finding that lacks a class in a resample is left out of that resample's mean; all missing gives NaN.
    """
    known = ~np.isnan(replicates)
    return divide(np.where(known, replicates, 0.0).sum(axis=1), known.sum(axis=1).astype(np.float64))


def roc_curve(labels: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """(false positive rate, true positive rate), from (0, 0) to (1, 1), one point a distinct score.

    Raises:
      UserError: as for `auroc`, or only one class.
    """
    labels, scores = checked(labels, scores)
    known = ~np.isnan(labels)
    labels, scores = labels[known], scores[known]
    positives = labels.sum()
    if not 0 < positives < len(labels):
        raise UserError("a ROC curve needs both classes")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(scores[order][1:] != scores[order][:-1]), len(order) - 1)
    hits = np.cumsum(labels[order])[last]
    misses = last + 1 - hits
    return np.append(0.0, misses / (len(labels) - positives)), np.append(0.0, hits / positives)


class _Column:
    """One finding, sorted once; its metrics of any number of resamples given as counts of the groups."""

    def __init__(self, labels: np.ndarray, scores: np.ndarray, groups: np.ndarray):
        positive, negative = labels == 1, labels == 0
        by_score = np.argsort(scores[negative], kind="stable")
        self._negatives = groups[negative][by_score]
        negative_scores = scores[negative][by_score]
        by_score = np.argsort(scores[positive], kind="stable")
        self._positives = groups[positive][by_score]
        positive_scores = scores[positive][by_score]
        # Of each positive: the negatives below it, those not above it, and the positives below it.
        self._below = np.searchsorted(negative_scores, positive_scores, side="left")
        self._not_above = np.searchsorted(negative_scores, positive_scores, side="right")
        self._positives_below = np.searchsorted(positive_scores, positive_scores, side="left")

    def auroc(self, counts: np.ndarray) -> np.ndarray:
        """Of resamples int [R, groups]: float64 [R]."""
        weights = counts.take(self._positives, axis=1)
        negatives = _cumulated(counts.take(self._negatives, axis=1))
        twice_below = negatives.take(self._below, axis=1) + negatives.take(self._not_above, axis=1).astype(np.int64)
        wins = np.einsum("rp,rp->r", weights.astype(np.float64), twice_below.astype(np.float64))
        pairs = weights.sum(axis=1).astype(np.float64) * negatives[:, -1]
        return divide(wins, 2.0 * pairs)

    def auprc(self, counts: np.ndarray) -> np.ndarray:
        """Of resamples int [R, groups]: float64 [R]."""
        weights = counts.take(self._positives, axis=1)
        positives = _cumulated(weights)
        negatives = _cumulated(counts.take(self._negatives, axis=1))
        true = (positives[:, -1:] - positives.take(self._positives_below, axis=1)).astype(np.float64)
        false = negatives[:, -1:] - negatives.take(self._below, axis=1)
        precision = true / np.maximum(true + false, 1.0)
        return divide((weights * precision).sum(axis=1), positives[:, -1].astype(np.float64))


def _cumulated(counts: np.ndarray) -> np.ndarray:
    """[R, n] -> int [R, n+1]: entry k is the sum of the first k."""
    # 32 bits are a third faster; ten million rows would need to be drawn 200 times over to exceed them.
    dtype = np.int32 if counts.shape[1] < 10_000_000 else np.int64
    total = np.zeros((len(counts), counts.shape[1] + 1), dtype)
    np.cumsum(counts, axis=1, out=total[:, 1:])
    return total


def _draws(numbers: np.ndarray, resamples: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first resample, counts int32 [block, groups]); the draws depend on the seed and the number of groups."""
    groups = int(numbers.max(initial=-1)) + 1
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_SIZE // max(len(numbers), 1))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        counts = np.empty((size, groups), np.int32)
        for r in range(size):
            # A call for each resample: the draws do not depend on the size of a block.
            drawn = rng.integers(0, groups, groups) if groups else np.empty(0, np.int64)
            counts[r] = np.bincount(drawn, minlength=groups)
        yield start, counts


def divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The quotient, NaN where `below` is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)


def _group_numbers(groups: Sequence[Hashable] | np.ndarray | None, rows: int) -> np.ndarray:
    """Numbers 0..G-1 in order of first appearance, int [n]: the draws then depend on the rows' order, not on names."""
    if groups is None:
        return np.arange(rows)
    if len(groups) != rows:
        raise UserError(f"{rows} rows but {len(groups)} groups (patients)")
    known: dict[Hashable, int] = {}
    items = groups.tolist() if isinstance(groups, np.ndarray) else groups
    return np.fromiter((known.setdefault(item, len(known)) for item in items), np.int64, rows)


def checked(labels: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 of one shape.

    Raises:
      UserError: a NaN score, a label that is none of 0, 1 and NaN, shapes that differ.
    """
    labels, scores = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if labels.shape != scores.shape:
        raise UserError(f"labels {list(labels.shape)} and scores {list(scores.shape)} differ in shape")
    missing = int(np.isnan(scores).sum())
    if missing:
        raise UserError(f"{missing} of {scores.size} scores are NaN: the model's output is broken")
    strange = labels[~(np.isnan(labels) | (labels == 0) | (labels == 1))]
    if strange.size:
        raise UserError(f"labels are 0, 1 or NaN (unknown), not {strange.flat[0]:g}")
    return labels, scores
