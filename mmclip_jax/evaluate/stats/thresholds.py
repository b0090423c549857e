"""Decisions at a threshold: F1, accuracy, sensitivity, specificity, and where the threshold comes from.

A row is called positive if its score is at least the threshold. The threshold is chosen on other patients than those
that are scored. `max_f1`, which others publish, chooses it on the scored patients themselves and is too good.
"""

from typing import Any

import numpy as np

from mmclip_jax.evaluate.stats import metrics
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap
from mmclip_jax.evaluate.stats.intervals import Interval

MEASURES = ("f1", "accuracy", "sensitivity", "specificity")
CRITERIA = ("f1", "youden")


def f1(labels: Any, scores: Any, threshold: float) -> float:
    """2 TP / (2 TP + FP + FN); NaN without a positive. Labels 1, 0 or NaN (left out); errors as for `metrics.auroc`."""
    return at_threshold(labels, scores, threshold)["f1"]


def accuracy(labels: Any, scores: Any, threshold: float) -> float:
    """(TP + TN) / rows of known label; NaN without a row."""
    return at_threshold(labels, scores, threshold)["accuracy"]


def sensitivity(labels: Any, scores: Any, threshold: float) -> float:
    """TP / (TP + FN); NaN without a positive."""
    return at_threshold(labels, scores, threshold)["sensitivity"]


def specificity(labels: Any, scores: Any, threshold: float) -> float:
    """TN / (TN + FP); NaN without a negative."""
    return at_threshold(labels, scores, threshold)["specificity"]


def at_threshold(labels: Any, scores: Any, threshold: float) -> dict[str, float]:
    """All four of `MEASURES` at a threshold, which may be infinite but not NaN.

    Raises:
      UserError: as for `metrics.auroc`.
      ValueError: the threshold is NaN.
    """
    above, below = _ratios(labels, scores, threshold)
    values = metrics.divide(above.sum(axis=0), below.sum(axis=0))
    if not (np.asarray(labels) == 1).any():
        values[MEASURES.index("f1")] = np.nan
    return dict(zip(MEASURES, values.tolist(), strict=True))


def resample_at_threshold(labels: Any, scores: Any, threshold: float, bootstrap: Bootstrap) -> np.ndarray:
    """`MEASURES` of each resample of patients, the threshold being fixed: float64 [R, 4], NaN where undefined."""
    above, below = _ratios(labels, scores, threshold)
    # The last column counts positives, without which F1 is undefined here.
    sums = bootstrap.sums(np.stack([above, below], axis=1))
    values = metrics.divide(sums[:, 0], sums[:, 1])
    values[sums[:, 1, MEASURES.index("sensitivity")] == 0, MEASURES.index("f1")] = np.nan
    return values


def interval(measure: str, point: float, replicates: np.ndarray, labels: np.ndarray, bootstrap: Bootstrap) -> Interval:
    """Of one of `MEASURES`: `intervals.rate_interval` over the patients that it counts, F1 over those of positives."""
    counted = {"accuracy": ~np.isnan(labels), "specificity": labels == 0}.get(measure, labels == 1)
    patients = bootstrap.among(counted).count
    if measure == "f1":  # a ratio of counts, not a rate over rows
        return bootstrap.logit_interval(point, replicates, patients)
    return bootstrap.rate_interval(point, replicates, patients)


def choose_threshold(labels: Any, scores: Any, criterion: str = "f1") -> float:
    """The score that, as a threshold, maximises F1 or Youden's J = sensitivity + specificity - 1.

    Of equally good scores it is the highest, which calls the fewest rows positive. Meant for validation rows.

    Returns:
      One of the scores; NaN without a positive or, for "youden", without a negative.

    Raises:
      UserError: as for `metrics.auroc`.
      ValueError: another criterion.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion {criterion!r} is not one of {', '.join(CRITERIA)}")
    candidates, true, false, positives, negatives = _ladder(labels, scores)
    if not positives or (criterion == "youden" and not negatives):
        return float("nan")
    if criterion == "f1":
        quality = 2 * true / (true + false + positives)
    else:
        quality = true / positives - false / negatives
    return float(candidates[int(np.argmax(quality))])


def threshold_of_sensitivity(labels: Any, scores: Any, least: float = 0.9) -> float:
    """The largest score that, as a threshold, gives a sensitivity of at least `least`. Meant for validation rows.

    Returns:
      One of the scores; NaN without a positive.

    Raises:
      UserError: as for `metrics.auroc`.
      ValueError: least outside (0, 1].
    """
    if not 0 < least <= 1:
        raise ValueError(f"a sensitivity of {least} is not in (0, 1]")
    candidates, true, _, positives, _ = _ladder(labels, scores)
    if not positives:
        return float("nan")
    # In whole positives: 0.9 * 10 is 9 whatever the rounding of the product.
    needed = int(np.ceil(least * positives - 1e-9))
    return float(candidates[int(np.argmax(true >= needed))])


def max_f1(labels: Any, scores: Any) -> float:
    """The highest F1 that any threshold reaches on these very rows: optimistic, for comparison with others' tables."""
    _, true, false, positives, _ = _ladder(labels, scores)
    return float((2 * true / (true + false + positives)).max()) if positives else float("nan")


def _ladder(labels: Any, scores: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
    """(distinct scores, descending; true and false positives at each as a threshold; positives; negatives)."""
    labels, scores = metrics.checked(labels, scores)
    known = ~np.isnan(labels)
    labels, scores = labels[known], scores[known]
    order = np.argsort(-scores, kind="stable")
    labels, scores = labels[order], scores[order]
    last = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1) if len(scores) else np.empty(0, int)
    true = np.cumsum(labels)[last]
    return scores[last], true, last + 1 - true, int(labels.sum()), int((labels == 0).sum())


def _ratios(labels: Any, scores: Any, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """What each row adds above and below the fraction line of each measure: float64 [n, 4] twice."""
    labels, scores = metrics.checked(labels, scores)
    if np.isnan(threshold):
        raise ValueError("the threshold is NaN")
    positive, negative, called = labels == 1, labels == 0, scores >= threshold
    true, missed = positive & called, positive & ~called
    false, spared = negative & called, negative & ~called
    above = np.stack([2.0 * true, 1.0 * (true | spared), 1.0 * true, 1.0 * spared], axis=1)
    below = np.stack([2.0 * true + false + missed, 1.0 * (positive | negative), 1.0 * positive, 1.0 * negative], axis=1)
    return above, below
