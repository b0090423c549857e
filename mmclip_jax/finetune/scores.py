"""Numbers of classifiers that were trained on labels: the linear probe and fine-tuning, over several seeds.

Every source is summarised by itself, since an image's source must not help to find a disease. Scores of a seed are of
the same rows, so an interval resamples patients and takes the mean over the seeds in each resample: it covers the
choice of test patients, while the standard deviation over seeds covers what the seed decides.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmclip_jax.evaluate.stats import metrics
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap, fewest_patients, macro_replicates
from mmclip_jax.inference.exposure import exposure
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
    bootstrap: Bootstrap,
    patients: int | None = None,
    left_out: np.ndarray | None = None,
) -> dict[str, Any]:
    """{"mean", "sd" (n-1; None for one seed), "seeds" [...], "interval", "unusable_resamples"}.

    values: one a seed; replicates: [R, S], the same of resampled patients. patients, left_out: of the seeds' mean, as
    `Bootstrap.logit_interval` takes them.
    """
    mean = statistics.fmean(values)
    interval = bootstrap.logit_interval(mean, replicates.mean(axis=1), patients, left_out)
    return {
        "mean": mean,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": list(values),
        "interval": interval.bounds,
        "unusable_resamples": interval.unusable,
    }


def summarize(
    labels: np.ndarray,
    scores: np.ndarray,
    sources: Sequence[str],
    findings: Sequence[str],
    manifest: Mapping[str, Any],
    bootstrap: Bootstrap,
    task: str = "multi-label",
) -> dict[str, Any]:
    """Metrics of each source and finding.

    Args:
      labels: float [n, K]: 1, 0, NaN unknown (of a multi-class task: one-hot, unknown rows all NaN).
      scores: [S, n, K], of S seeds; probabilities of the classes for a multi-class task.
      sources: [n].
      findings: K kinds.
      manifest: of the pre-training run, for the exposure of each finding.
      bootstrap: of the n rows.
      task: one of `TASKS`.

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
            findings,
            [exposure(kind, source, manifest) for kind in findings],
            task,
            bootstrap.among(names == source),
        )
        for source in sorted(set(sources))
    }


def _of_source(
    labels: np.ndarray,
    scores: np.ndarray,
    findings: Sequence[str],
    stamps: Sequence[str],
    task: str,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    kinds = scores.shape[2]
    counted = [metrics.counts(labels[:, k]) for k in range(kinds)]
    defined = [k for k in range(kinds) if not counted[k].note]
    rows: list[dict[str, Any]] = [
        {
            "finding": kind,
            "name": prompts.display_name(kind),
            "positives": counted[k].positives,
            "negatives": counted[k].negatives,
            "unknown": counted[k].unknown,
            "exposure": stamps[k],
        }
        for k, kind in enumerate(findings)
    ]
    result: dict[str, Any] = {"rows": len(labels), "patients": bootstrap.count}
    for name, metric in (("auroc", metrics.auroc), ("auprc", metrics.auprc)):
        found, result[f"macro_{name}"] = _rankings(labels, scores, metric, defined, bootstrap)
        for row, value in zip(rows, found, strict=True):
            row[name] = value
    if task == "multi-class":
        result |= _accuracies(labels, scores, bootstrap)
    return result | {"findings": rows, "undefined": [findings[k] for k in range(kinds) if k not in defined]}


def _rankings(
    labels: np.ndarray, scores: np.ndarray, metric: metrics.Metric, defined: Sequence[int], bootstrap: Bootstrap
) -> tuple[list[dict[str, Any] | None], dict[str, Any] | None]:
    """(`spread` of a metric of each finding, that of their mean): None of those that are not defined."""
    seeds, _, kinds = scores.shape
    # Seeds side by side: all of them see the same resamples.
    wide_labels = np.tile(labels, (1, seeds))
    wide_scores = scores.transpose(1, 0, 2).reshape(len(labels), seeds * kinds)
    replicates = bootstrap.metric(wide_labels, wide_scores, metric).reshape(-1, seeds, kinds)
    points = np.array([[metric(labels[:, k], scores[s, :, k]) for k in range(kinds)] for s in range(seeds)])
    found: list[dict[str, Any] | None] = [None] * kinds
    for k in defined:
        column, left_out = labels[:, k], None
        if metric is metrics.auprc:
            tiled = np.tile(column[:, np.newaxis], (1, seeds))
            left_out = bootstrap.jackknife(tiled, scores[:, :, k].T, metric).mean(axis=1)
        fewest = fewest_patients(column, bootstrap.patients)
        found[k] = spread(points[:, k].tolist(), replicates[:, :, k], bootstrap, fewest, left_out)
    if not len(defined):
        return found, None
    means = np.stack([macro_replicates(replicates[:, s][:, list(defined)]) for s in range(seeds)], axis=1)
    return found, spread(points[:, list(defined)].mean(axis=1).tolist(), means, bootstrap)


def _accuracies(labels: np.ndarray, scores: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    """Accuracy, and the mean of the classes' recalls, of the class of highest score (ties: the first)."""
    known = ~np.isnan(labels).any(axis=1)
    truth = labels[known].argmax(axis=1)
    right = (scores[:, known].argmax(axis=2) == truth).T.astype(np.float64)
    bootstrap = bootstrap.among(known)
    classes = [c for c in range(labels.shape[1]) if (truth == c).any()]
    if not classes:
        return {"accuracy": None, "balanced_accuracy": None}
    recalls, points = [], []
    for c in classes:
        of_class = (truth == c).astype(np.float64)[:, np.newaxis]
        recalls.append(bootstrap.ratio(right * of_class, of_class))
        points.append(right[truth == c].mean(axis=0))
    fewest = min(bootstrap.among(truth == c).count for c in classes)
    balanced = spread(np.mean(points, axis=0).tolist(), np.mean(recalls, axis=0), bootstrap, fewest)
    accuracy = spread(right.mean(axis=0).tolist(), bootstrap.ratio(right), bootstrap, bootstrap.count)
    return {"accuracy": accuracy, "balanced_accuracy": balanced}


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
