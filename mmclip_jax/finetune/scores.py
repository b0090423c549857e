"""Numbers of classifiers that were trained on labels: the linear probe and fine-tuning, over several seeds.

Every source is summarised by itself, since an image's source must not help to find a disease. Scores of a seed are of
the same rows, so an interval resamples patients and takes the mean over the seeds in each resample: it covers the
choice of test patients, while the standard deviation over seeds covers what the seed decides.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmclip_jax.evaluate.evaluations.zeroshot import exposure
from mmclip_jax.evaluate.stats import intervals, metrics
from mmclip_jax.text import prompts

TASKS = ("multi-label", "multi-class")


def one_hot(target: np.ndarray, classes: int) -> np.ndarray:
    """Class numbers int [n] (-1: unknown) -> float64 [n, K] of 1, 0 and, in unknown rows, NaN."""
    columns = (target[:, np.newaxis] == np.arange(classes)).astype(np.float64)
    columns[target < 0] = np.nan
    return columns


def macro_auroc(labels: np.ndarray, scores: np.ndarray, sources: Sequence[str]) -> float:
    """Mean AUROC over all pairs of a source and a finding with both classes; NaN if there is none.

    Args:
      labels: float [n, K], NaN unknown.
      scores: [n, K].
      sources: [n].
    """
    names = np.array(sources)
    areas = [
        metrics.auroc(labels[names == source, k], scores[names == source, k])
        for source in sorted(set(sources))
        for k in range(labels.shape[1])
    ]
    known = [area for area in areas if not np.isnan(area)]
    return statistics.fmean(known) if known else float("nan")


def spread(
    values: Sequence[float],
    replicates: np.ndarray,
    level: float,
    patients: int | None = None,
    left_out: np.ndarray | None = None,
) -> dict[str, Any]:
    """{"mean", "sd" (n-1; None for one seed), "seeds" [...], "interval", "unusable_resamples"}.

    values: one a seed; replicates: [R, S], the same of resampled patients. patients, left_out: of the seeds' mean, as
    `metrics.logit_interval` takes them.
    """
    mean = statistics.fmean(values)
    interval = metrics.logit_interval(mean, replicates.mean(axis=1), level, patients, left_out)
    return {
        "mean": mean,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": list(values),
        "interval": [interval.low, interval.high],
        "unusable_resamples": interval.unusable,
    }


def summarize(
    labels: np.ndarray,
    scores: np.ndarray,
    patients: Sequence[str],
    sources: Sequence[str],
    findings: Sequence[str],
    manifest: Mapping[str, Any],
    *,
    task: str = "multi-label",
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Metrics of each source and finding.

    Args:
      labels: float [n, K]: 1, 0, NaN unknown (of a multi-class task: one-hot, unknown rows all NaN).
      scores: [S, n, K], of S seeds; probabilities of the classes for a multi-class task.
      patients: [n].
      sources: [n].
      findings: K kinds.
      manifest: of the pre-training run, for the exposure of each finding.
      task: one of `TASKS`.
      resamples: of patients.
      level: of the intervals.
      seed: of the resamples.

    Returns (for JSON):
      {source: {"rows", "patients", "macro_auroc", "macro_auprc" and, for a multi-class task, "accuracy" and
      "balanced_accuracy" (each as `spread`), "findings": [{"finding", "name", "positives", "negatives", "unknown",
      "exposure", "auroc", "auprc"}], "undefined": findings without both classes, whose numbers are None}}.
    """
    names = np.array(sources)
    return {
        source: _of_source(
            labels[names == source],
            scores[:, names == source],
            [patient for patient, name in zip(patients, sources, strict=True) if name == source],
            findings,
            [exposure(kind, source, manifest) for kind in findings],
            task,
            {"resamples": resamples, "seed": seed},
            level,
        )
        for source in sorted(set(sources))
    }


def _of_source(
    labels: np.ndarray,
    scores: np.ndarray,
    patients: Sequence[str],
    findings: Sequence[str],
    stamps: Sequence[str],
    task: str,
    draws: dict[str, int],
    level: float,
) -> dict[str, Any]:
    seeds, _, kinds = scores.shape
    # Seeds side by side: all of them see the same resamples.
    wide_labels = np.tile(labels, (1, seeds))
    wide_scores = scores.transpose(1, 0, 2).reshape(len(labels), seeds * kinds)
    positives, negatives = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
    defined = np.flatnonzero((positives > 0) & (negatives > 0))
    rows: list[dict[str, Any]] = [
        {
            "finding": kind,
            "name": prompts.display_name(kind),
            "positives": int(positives[k]),
            "negatives": int(negatives[k]),
            "unknown": len(labels) - int(positives[k]) - int(negatives[k]),
            "exposure": stamps[k],
        }
        for k, kind in enumerate(findings)
    ]
    result: dict[str, Any] = {"rows": len(labels), "patients": len(set(patients))}
    for name, metric in (("auroc", metrics.auroc), ("auprc", metrics.auprc)):
        replicates = metrics.resample_metric(wide_labels, wide_scores, patients, metric=metric, **draws)
        replicates = replicates.reshape(-1, seeds, kinds)
        points = np.array([[metric(labels[:, k], scores[s, :, k]) for k in range(kinds)] for s in range(seeds)])
        for k, row in enumerate(rows):
            row[name] = None
            if k in defined:
                column = labels[:, k]
                left_out = None
                if metric is metrics.auprc:
                    tiled = np.tile(column[:, np.newaxis], (1, seeds))
                    left = metrics.leave_out_metric(tiled, scores[:, :, k].T, patients, metric=metric)
                    left_out = left.mean(axis=1)
                fewest = metrics.fewest_patients(column, patients)
                row[name] = spread(points[:, k].tolist(), replicates[:, :, k], level, fewest, left_out)
        result[f"macro_{name}"] = (
            spread(
                points[:, defined].mean(axis=1).tolist(),
                np.stack([metrics.macro_replicates(replicates[:, s][:, defined]) for s in range(seeds)], axis=1),
                level,
            )
            if len(defined)
            else None
        )
    if task == "multi-class":
        result |= _accuracies(labels, scores, patients, draws, level)
    return result | {"findings": rows, "undefined": [findings[k] for k in range(kinds) if k not in defined]}


def _accuracies(
    labels: np.ndarray, scores: np.ndarray, patients: Sequence[str], draws: dict[str, int], level: float
) -> dict[str, Any]:
    """Accuracy, and the mean of the classes' recalls, of the class of highest score (ties: the first)."""
    known = ~np.isnan(labels).any(axis=1)
    truth = labels[known].argmax(axis=1)
    right = (scores[:, known].argmax(axis=2) == truth).T.astype(np.float64)
    groups = [patient for patient, there in zip(patients, known, strict=True) if there]
    classes = [c for c in range(labels.shape[1]) if (truth == c).any()]
    if not classes:
        return {"accuracy": None, "balanced_accuracy": None}
    recalls, points = [], []
    for c in classes:
        of_class = (truth == c).astype(np.float64)[:, np.newaxis]
        recalls.append(metrics.resample_ratio(right * of_class, of_class, groups, **draws))
        points.append(right[truth == c].mean(axis=0))
    people = [intervals.count_patients(np.array(groups, object)[truth == c]) for c in classes]
    drawn = metrics.resample_ratio(right, 1.0, groups, **draws)
    return {
        "accuracy": spread(right.mean(axis=0).tolist(), drawn, level, intervals.count_patients(groups)),
        "balanced_accuracy": spread(np.mean(points, axis=0).tolist(), np.mean(recalls, axis=0), level, min(people)),
    }


def as_markdown(results: Mapping[str, Any]) -> str:
    """The results of `mmclip finetune` as tables: one a source, a column a fraction."""
    lines = []
    runs = results["fractions"]
    for source in results["sources"]:
        entries = [run["sources"].get(source) for run in runs]
        head = [f"{100 * run['fraction']:g} % ({run['images']:,} images)" for run in runs]
        lines += [f"### {source}: {results['mode']}", "", "| | exposure | " + " | ".join(head) + " |"]
        lines += ["|---|---|" + "---|" * len(runs)]
        for measure in ("macro_auroc", "macro_auprc", "accuracy", "balanced_accuracy"):
            if any(entry and entry.get(measure) for entry in entries):
                cells = [_cell(entry and entry.get(measure)) for entry in entries]
                lines.append(
                    f"| **{measure.replace('_', ' ').replace('auroc', 'AUROC').replace('auprc', 'AUPRC')}** | | "
                )
                lines[-1] += " | ".join(cells) + " |"
        for k, kind in enumerate(results["findings"]):
            found = [entry["findings"][k] if entry else None for entry in entries]
            stamp = next((row["exposure"] for row in found if row), "")
            cells = [_cell(row and row["auroc"], _why_undefined(row)) for row in found]
            lines.append(f"| {prompts.display_name(kind)}, AUROC | {stamp} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += [f"- {note}" for note in results["notes"]]
    return "\n".join(lines) + "\n"


def _why_undefined(row: Mapping[str, Any] | None) -> str:
    return metrics.Counts(row["positives"], row["negatives"], row["unknown"]).note if row else ""


def _cell(value: Mapping[str, Any] | None, why: str = "") -> str:
    if value is None:
        return f"undefined ({why})" if why else "undefined"
    low, high = value["interval"]
    sd = "" if value["sd"] is None else f" ± {value['sd']:.3f}"
    return f"{value['mean']:.3f}{sd} ({low:.3f} to {high:.3f})"
