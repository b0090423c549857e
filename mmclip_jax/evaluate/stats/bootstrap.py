"""Resampled patients, and the intervals that come of them.

Patients, not images, are resampled: images of one patient are not independent. A resample is a number of times that
each patient was drawn.
"""

import dataclasses
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mmclip_jax.errors import UserError
from mmclip_jax.evaluate.stats import intervals
from mmclip_jax.evaluate.stats.intervals import Interval
from mmclip_jax.evaluate.stats.metrics import Column, Metric, auprc, auroc, checked, divide

Patients = Sequence[Hashable] | np.ndarray
"""[n]: whose each row is."""

# Numbers of a block of resamples x rows that are worked on at a time: about 4 MB, which stays in a core's cache.
_BLOCK_SIZE = 1 << 19
# Blocks of patients that a jackknife leaves out.
_MOST_BLOCKS = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Bootstrap:
    """Resamples of the patients of n rows, each with all of its rows.

    patients: [n]; an evaluation puts those of its rows in their place (`of`). resamples: R. level: of the intervals,
    in (0, 1). seed: of the draws, which depend on it and on the number of patients, not on their names. Everything that
    one bootstrap (or an equal one) is asked sees the same resamples, so differences of its replicates are paired.
    """

    patients: Patients = ()
    resamples: int = 1000
    level: float = 0.95
    seed: int = 0

    def of(self, patients: Patients) -> "Bootstrap":
        """The same settings for other rows."""
        return dataclasses.replace(self, patients=patients)

    def among(self, rows: Any) -> "Bootstrap":
        """The same settings for these of the rows: numbers int [m], or a mask bool [n]."""
        return self.of([self.patients[row] for row in np.arange(len(self.patients))[np.asarray(rows)].tolist()])

    @property
    def count(self) -> int:
        """How many different patients there are."""
        return count_patients(self.patients)

    def metric(self, labels: Any, scores: Any, metric: Metric = auroc) -> np.ndarray:
        """The metric of each resample; for several findings at once, of the same resamples.

        Args:
          labels: [n] or [n, K].
          scores: the same shape.
          metric: `auroc`, `auprc` (both fast), or any function of (labels [m], scores [m]), called once a resample.

        Returns:
          float64 [R] or [R, K]; NaN where a resample does not have both classes of a finding.

        Raises:
          UserError: as for `auroc`, or patients of another length.
        """
        numbers = _numbers(self.patients, len(labels))
        return _metric_of_counts(labels, scores, numbers, metric, self._draws(numbers), self.resamples)

    def jackknife(self, labels: Any, scores: Any, metric: Metric = auroc) -> np.ndarray:
        """The metric without each patient in turn; arguments as for `metric`.

        More than 1,000 patients are left out in 1,000 blocks (every thousandth of them), which the same formulas take.

        Returns:
          float64 [min(patients, 1000)] or [..., K]; NaN where what is left does not have both classes of a finding.
        """
        numbers = _numbers(self.patients, len(labels))
        patients = int(numbers.max(initial=-1)) + 1
        blocks = min(patients, _MOST_BLOCKS)
        size = max(1, _BLOCK_SIZE // max(len(numbers), 1))
        block_of = np.arange(patients) % blocks
        left = (
            (start, (block_of != np.arange(start, min(start + size, blocks))[:, None]).astype(np.uint8))
            for start in range(0, blocks, size)
        )
        return _metric_of_counts(labels, scores, numbers, metric, left, blocks)

    def ratio(self, numerators: Any, denominators: Any = 1.0) -> np.ndarray:
        """Sum of the numerators over sum of the denominators, of each resample. With ones below it is a mean.

        Args:
          numerators: [n] or [n, M].
          denominators: broadcastable to the same shape.

        Returns:
          float64 [R] or [R, M]; NaN where the denominator is 0.
        """
        above = np.asarray(numerators, np.float64)
        below = np.broadcast_to(np.asarray(denominators, np.float64), above.shape)
        sums = self.sums(np.stack([above, below], axis=1))
        return divide(sums[:, 0], sums[:, 1])

    def sums(self, values: Any) -> np.ndarray:
        """Sums over the rows [n, ...] of each resample: float64 [R, ...].

        Whatever is a function of sums over rows (F1, Brier score, calibration error) gets its resamples from here.
        """
        rows = np.asarray(values, np.float64)
        numbers = _numbers(self.patients, len(rows))
        sums = np.zeros((int(numbers.max(initial=-1)) + 1, *rows.shape[1:]))
        np.add.at(sums, numbers, rows)
        flat = sums.reshape(len(sums), -1)
        result = np.full((self.resamples, flat.shape[1]), np.nan)
        for start, counts in self._draws(numbers):
            result[start : start + len(counts)] = counts @ flat
        return result.reshape((self.resamples, *rows.shape[1:]))

    def _draws(self, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (first resample, how often each patient was drawn: int [block, patients]).

        Of a million patients 8-bit counts stay in a core's cache, where rows pick theirs in the order of scores.
        """
        patients = int(numbers.max(initial=-1)) + 1
        rng = np.random.default_rng(self.seed)
        block = max(1, _BLOCK_SIZE // max(len(numbers), 1))
        for start in range(0, self.resamples, block):
            size = min(block, self.resamples - start)
            counts = np.empty((size, patients), np.uint8)
            for r in range(size):
                # A call for each resample: the draws do not depend on the size of a block.
                drawn = rng.integers(0, patients, patients) if patients else np.empty(0, np.int64)
                count = np.bincount(drawn, minlength=patients)
                if count.max(initial=0) > np.iinfo(counts.dtype).max:
                    counts = counts.astype(np.int32)
                counts[r] = count
            yield start, counts

    def ranking_interval(
        self, labels: Any, scores: Any, metric: Metric = auroc, replicates: np.ndarray | None = None
    ) -> Interval:
        """Of one finding's AUROC or AUPRC: `logit_interval`, the AUPRC's with a jackknife's deviation.

        The AUPRC's resamples are up to 8 % closer together than its samples are, the AUROC's up to 5 %, and a few
        patients can make most of the AUPRC's variance (the simulation in docs/results.md).

        Args:
          labels: [n], 1, 0 or NaN.
          scores: [n].
          metric: `auroc` or `auprc`.
          replicates: [R] of `metric`, if they are there already.
        """
        drawn = self.metric(labels, scores, metric) if replicates is None else replicates
        left_out = self.jackknife(labels, scores, metric) if metric is auprc else None
        return self.logit_interval(metric(labels, scores), drawn, fewest_patients(labels, self.patients), left_out)

    def logit_interval(
        self, point: float, replicates: np.ndarray, patients: int | None = None, left_out: np.ndarray | None = None
    ) -> Interval:
        """`intervals.logit_interval` at this level."""
        return intervals.logit_interval(point, replicates, self.level, patients, left_out)

    def rate_interval(self, point: float, replicates: np.ndarray, patients: int | None = None) -> Interval:
        """`intervals.rate_interval` at this level; patients: in the rate's denominator, None for all of them."""
        return intervals.rate_interval(point, replicates, self.level, self.count if patients is None else patients)

    def mean_interval(self, point: float, replicates: np.ndarray, patients: int | None = None) -> Interval:
        """`intervals.mean_interval` at this level."""
        return intervals.mean_interval(point, replicates, self.level, patients)

    def difference_interval(
        self, point: float, replicates: np.ndarray, patients: int | None = None, left_out: np.ndarray | None = None
    ) -> Interval:
        """`intervals.difference_interval` at this level."""
        return intervals.difference_interval(point, replicates, self.level, patients, left_out)

    def percentile_interval(self, replicates: np.ndarray) -> Interval:
        """`intervals.percentile_interval` at this level."""
        return intervals.percentile_interval(replicates, self.level)


DEFAULT = Bootstrap()


def bootstrap_ci(
    labels: Any,
    scores: Any,
    groups: Patients | None,
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
    patients = _numbers(range(len(labels)) if groups is None else groups, len(labels))[known]
    bootstrap = Bootstrap(patients, resamples, level, seed)
    if metric in (auroc, auprc):
        interval = bootstrap.ranking_interval(labels[known], scores[known], metric)
    else:
        interval = bootstrap.percentile_interval(bootstrap.metric(labels[known], scores[known], metric))
    return interval.low, interval.high


def count_patients(patients: Patients) -> int:
    """How many different patients the rows [n] belong to."""
    return len(set(patients.tolist() if isinstance(patients, np.ndarray) else patients))


def fewest_patients(labels: np.ndarray, patients: Patients) -> int:
    """Patients with a row of the class that fewer patients have; labels [n] of 1, 0 or NaN."""
    numbers = _numbers(patients, len(labels))
    return min(len(np.unique(numbers[labels == value])) for value in (0, 1))


def macro_replicates(replicates: np.ndarray) -> np.ndarray:
    """Mean over findings of each joint resample: [R, K] -> [R].

    A finding that lacks a class in a resample is left out of that resample's mean; all missing gives NaN.
    """
    known = ~np.isnan(replicates)
    return divide(np.where(known, replicates, 0.0).sum(axis=1), known.sum(axis=1).astype(np.float64))


def _metric_of_counts(
    labels: Any,
    scores: Any,
    numbers: np.ndarray,
    metric: Metric,
    draws: Iterable[tuple[int, np.ndarray]],
    rows: int,
) -> np.ndarray:
    """The metric of data in which each patient is present as often as counted: [rows] or [rows, K].

    numbers: int [n], of the patients. draws: (first row, counts int [block, patients]).
    """
    labels, scores = checked(labels, scores)
    columns_labels = labels.reshape(len(labels), -1)
    columns_scores = scores.reshape(len(labels), -1)
    columns = [Column(columns_labels[:, k], columns_scores[:, k], numbers) for k in range(columns_labels.shape[1])]
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


def _numbers(patients: Patients, rows: int) -> np.ndarray:
    """Numbers 0..G-1 in order of first appearance, int [n]: the draws then depend on the rows' order, not on names."""
    if len(patients) != rows:
        raise UserError(f"{rows} rows but {len(patients)} groups (patients)")
    known: dict[Hashable, int] = {}
    items = patients.tolist() if isinstance(patients, np.ndarray) else patients
    return np.fromiter((known.setdefault(item, len(known)) for item in items), np.int64, rows)
