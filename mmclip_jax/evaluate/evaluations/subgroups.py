"""Do scores work alike for everybody? Macro AUROC by age band, sex, view and scanner, with differences and intervals.

The scanner is its manufacturer, where a data set tells it (PadChest does); sources are evaluated apart anyway.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmclip_jax.data.schema import Example
from mmclip_jax.evaluate.stats import metrics
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap, macro_replicates

AGE_BANDS = ((0, 18), (18, 40), (40, 60), (60, 80), (80, 200))
MIN_ROWS = 30
"""A group of fewer rows is left out, and named."""
MIN_CLASS = 5
"""A finding counts if every group has so many positives and negatives of it."""


def age_band(example: Example) -> str:
    """A name such as "18-39"; "" where the age is not known."""
    for low, high in AGE_BANDS:
        if low <= example.age < high:  # never true of NaN
            return f"{low}-{high - 1}" if high < AGE_BANDS[-1][1] else f"{low}+"
    return ""


ATTRIBUTES: dict[str, Callable[[Example], str]] = {
    "age": age_band,
    "sex": lambda example: example.sex,
    "view": lambda example: example.view,
    "scanner": lambda example: example.scanner,
}


def evaluate(
    examples: Sequence[Example],
    labels: np.ndarray,
    scores: np.ndarray,
    names: Sequence[str],
    bootstrap: Bootstrap,
) -> list[dict[str, Any]]:
    """Compares groups of rows; labels and scores [n, K], names [K], bootstrap of the n rows.

    Within an attribute all groups are compared over the same findings: those of which every group has at least
    `MIN_CLASS` positives and negatives. Groups share the resamples of patients.

    Returns (for JSON), of each attribute: "attribute", "findings" (names), "unknown" (rows), "left_out" {group: rows of
    groups that are too small}, "note" (why there is no comparison, or ""), "groups": [{"group", "rows", "patients",
    "auroc", "auroc_interval", "difference" (to all other groups together), "difference_interval"}] and "gap" (highest
    less lowest AUROC) with "gap_interval".
    """
    result = []
    for name, key in ATTRIBUTES.items():
        group_of = np.array([key(example) for example in examples], object)
        result.append(_compare(name, group_of, labels, scores, names, bootstrap))
    return result


def _compare(
    attribute: str,
    group_of: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    names: Sequence[str],
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    sizes = {str(group): int((group_of == group).sum()) for group in sorted(set(group_of) - {""}, key=_order)}
    kept = [group for group, size in sizes.items() if size >= MIN_ROWS]
    usable = [
        k
        for k in range(len(names))
        if all((labels[group_of == group, k] == value).sum() >= MIN_CLASS for group in kept for value in (0, 1))
    ]
    result: dict[str, Any] = {
        "attribute": attribute,
        "findings": [names[k] for k in usable],
        "unknown": int((group_of == "").sum()),
        "left_out": {group: size for group, size in sizes.items() if group not in kept},
        "note": "",
        "groups": [],
        "gap": None,
        "gap_interval": None,
    }
    if len(kept) < 2 or not usable:
        few = f"fewer than two groups of {MIN_ROWS} images" if len(kept) < 2 else (
            f"no finding has {MIN_CLASS} positives and negatives in every group"
        )  # fmt: skip
        return result | {"note": "not recorded" if not sizes else few, "findings": []}

    def macro(inside: np.ndarray) -> tuple[float, np.ndarray]:
        masked = np.where(inside[:, np.newaxis], labels[:, usable], np.nan)
        points = [metrics.auroc(masked[:, i], scores[:, k]) for i, k in enumerate(usable)]
        return float(np.mean(points)), macro_replicates(bootstrap.metric(masked, scores[:, usable]))

    everyone = np.isin(group_of, kept)
    found = {group: macro(group_of == group) for group in kept}
    for group, (point, drawn) in found.items():
        inside = group_of == group
        rest, drawn_rest = macro(everyone & ~inside)
        result["groups"].append(
            {
                "group": group,
                "rows": sizes[group],
                "patients": bootstrap.among(inside).count,
                "auroc": point,
                "auroc_interval": bootstrap.logit_interval(point, drawn).bounds,
                "difference": point - rest,
                "difference_interval": bootstrap.difference_interval(point - rest, drawn - drawn_rest).bounds,
            }
        )
    highest, lowest = (choose(found, key=lambda group: found[group][0]) for choose in (max, min))
    gap = found[highest][0] - found[lowest][0]
    between = bootstrap.difference_interval(gap, found[highest][1] - found[lowest][1])
    return result | {"gap": gap, "gap_interval": between.bounds}


def _order(group: str) -> tuple[float, str]:
    """Age bands by their number, names by the alphabet."""
    digits = "".join(c for c in group.split("-")[0] if c.isdigit())
    return (float(digits) if digits else math.inf), group
