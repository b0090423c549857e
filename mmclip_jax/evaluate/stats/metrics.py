"""Metrics of a binary finding, in NumPy float64. A label is 1, 0 or NaN (unknown: the row is left out).

A row may count several times, as it does in a resample (`bootstrap.py`). `Column` computes AUROC and AUPRC from such
counts directly, so that a thousand resamples need one sort and no copies of the data.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from mmclip_jax.errors import UserError

Metric = Callable[[Any, Any], float]


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
    column = Column(*checked(labels, scores), np.arange(np.size(scores)))
    return float(column.auroc(np.ones((1, np.size(scores)), np.int32))[0])


def auprc(labels: Any, scores: Any) -> float:
    """Area under the precision-recall curve as average precision: sum over thresholds of (R_n - R_{n-1}) P_n.

    Arguments and errors as for `auroc`. Chance is the share of positives. Without a positive it is NaN.
    """
    column = Column(*checked(labels, scores), np.arange(np.size(scores)))
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


class Column:
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
    np.cumsum(counts, axis=1, dtype=dtype, out=total[:, 1:])
    return total


def divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The quotient, NaN where `below` is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)


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
