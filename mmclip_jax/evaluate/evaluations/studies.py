"""Scores of studies from those of their images: the mean or the maximum over the views, beside the images' own.

CheXpert and MIMIC-CXR label studies, not images: an image that does not show a finding of its study counts as a miss.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from mmclip_jax.evaluate.base import Context, Evaluation, Part, Result, Results, Summary, template
from mmclip_jax.evaluate.evaluations.zeroshot import ZERO_SHOT, findings_section
from mmclip_jax.evaluate.rows import Split
from mmclip_jax.evaluate.stats import metrics
from mmclip_jax.evaluate.stats.bootstrap import DEFAULT, Bootstrap, macro_replicates

WAYS = ("mean", "max")


def aggregate(
    labels: np.ndarray, scores: np.ndarray, studies: Sequence[str], way: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(labels [m, K], scores [m, K], first row of each study int [m]), studies in order of appearance.

    A study's label is the highest known label of its images, NaN where none is known.

    Args:
      labels: float [n, K]: 1, 0, NaN unknown.
      scores: [n, K].
      studies: [n].
      way: one of `WAYS`.
    """
    rows: dict[str, list[int]] = {}
    for row, study in enumerate(studies):
        rows.setdefault(study, []).append(row)
    reduce = np.mean if way == "mean" else np.max
    highest = np.stack([np.where(np.isnan(labels[r]), -np.inf, labels[r]).max(axis=0) for r in rows.values()])
    highest[np.isinf(highest)] = np.nan
    return (
        highest,
        np.stack([reduce(scores[r], axis=0) for r in rows.values()]),
        np.array([r[0] for r in rows.values()]),
    )


def evaluate(
    split: Split,
    findings: Sequence[str],
    labels: np.ndarray,
    scores: np.ndarray,
    bootstrap: Bootstrap = DEFAULT,
) -> dict[str, Any]:
    """AUROC of each source's images and studies.

    Returns (for JSON): {source: {"images", "studies", "several" (studies of more than one image), "macro": {"image",
    "mean", "max": {"auroc", "auroc_interval"}}, "findings": [{"finding", "image", "mean", "max"}]}}, of sources in
    which a study has more than one image; AUROCs without both classes are NaN. Intervals resample patients.
    """
    result = {}
    patients = np.array(split.patients)
    for source in split.source_counts:
        mine = split.rows_of(source)
        studies = [f"{patients[row]}\0{split.examples[row].study or split.examples[row].id}" for row in mine]
        counts = np.unique(studies, return_counts=True)[1]
        if counts.max(initial=0) < 2:
            continue
        sets = {"image": (labels[mine], scores[mine], np.arange(len(mine)))}
        sets |= {way: aggregate(labels[mine], scores[mine], studies, way) for way in WAYS}
        macro: dict[str, Any] = {}
        areas: dict[str, list[float]] = {}
        for name, (label, score, first) in sets.items():
            areas[name] = [metrics.auroc(label[:, k], score[:, k]) for k in range(len(findings))]
            replicates = bootstrap.of(patients[mine[first]]).metric(label, score)
            known = [area for area in areas[name] if not np.isnan(area)]
            mean = float(np.mean(known)) if known else float("nan")
            interval = bootstrap.logit_interval(mean, macro_replicates(replicates))
            macro[name] = {"auroc": mean, "auroc_interval": interval.bounds}
        result[source] = {
            "images": len(mine),
            "studies": len(counts),
            "several": int((counts > 1).sum()),
            "macro": macro,
            "findings": [
                {"finding": kind} | {name: areas[name][k] for name in sets} for k, kind in enumerate(findings)
            ],
        }
    return result


class StudiesEvaluation(Evaluation[None]):
    """The scores by prompts, by study."""

    name = "studies"
    after = (ZERO_SHOT,)
    nothing: ClassVar[Summary] = {}

    def run(self, context: Context) -> Result[None]:
        """See `evaluate`."""
        scored = context.found(ZERO_SHOT)
        if scored is None or not scored.findings:
            return Result({})
        scores = scored.scores[scored.score]
        return Result(evaluate(context.rows, scored.findings, scored.labels, scores, context.bootstrap))

    def parts(self, results: Results, found: None) -> Sequence[Part]:
        """A table below those of the findings."""
        return [Part(findings_section(results), template("studies"), guest=True)] if results["studies"] else ()


STUDIES = StudiesEvaluation()
