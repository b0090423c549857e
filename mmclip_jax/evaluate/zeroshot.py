"""Findings by prompts: an image's similarity to what affirms a finding, against what denies it.

Two scores of an image v for a finding, from the normalised means p and n of its positive and negative prompts:
"difference" is v.p - v.n, "positive" is v.p alone. Each number carries the exposure of the finding: whether its labels
were texts of the training. Sources are evaluated one by one, since an image's source must not help to find a disease.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmclip_jax.data import prompts
from mmclip_jax.data.schema import Example, LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate import metrics
from mmclip_jax.evaluate.base import Model, Progress, Split, labels_of, with_ancestors

SCORES = ("difference", "positive")
METRICS = {"auroc": metrics.auroc, "auprc": metrics.auprc}
FEW_POSITIVES = 30

REPORT_ONLY = "report-only"
OTHER_SOURCE = "kind seen through another source's labels"
SAME_SOURCE = "same source's labels"
UNKNOWN_EXPOSURE = "exposure not recorded"
EXPOSURES = {
    REPORT_ONLY: "No label of this finding was ever a training text; the model met it in reports, if at all. Only this "
    "is called zero-shot.",
    OTHER_SOURCE: "Training prompts were made from this finding's labels, in images of another source.",
    SAME_SOURCE: "Training prompts were made from this finding's labels, in other images of the very same source.",
    UNKNOWN_EXPOSURE: "The checkpoint does not say what it was trained on.",
}


@dataclasses.dataclass
class ZeroShot:
    """Scores of all rows and what was made of them.

    findings: K kinds that have both classes in at least one source. labels: float64 [n, K], NaN unknown or uncertain.
    scores: "difference" and "positive", float64 [n, K]. summary: JSON, see `evaluate`.
    """

    findings: list[str]
    labels: np.ndarray
    scores: dict[str, np.ndarray]
    summary: dict[str, Any]


def exposure(kind: str, source: str, manifest: Mapping[str, Any]) -> str:
    """How the training knew of `kind` as seen from an image of `source`: one of `EXPOSURES`.

    A label of a narrower kind counts too: a prompt "viral pneumonia" teaches "pneumonia".
    """
    recorded = manifest.get("exposure")
    if recorded is None or "label_kinds" not in recorded:
        return UNKNOWN_EXPOSURE
    by_source = {name: with_ancestors(kinds) for name, kinds in recorded["label_kinds"].items()}
    if kind in by_source.get(source, ()):
        return SAME_SOURCE
    if any(kind in kinds for kinds in by_source.values()):
        return OTHER_SOURCE
    return REPORT_ONLY


def called(stamps: Sequence[str]) -> str:
    """What a score with these exposures may be called."""
    if stamps and all(stamp == REPORT_ONLY for stamp in stamps):
        return "zero-shot"
    if UNKNOWN_EXPOSURE in stamps:
        return "by prompts, exposure unknown"
    return "prompt-supervised" if REPORT_ONLY not in stamps else "partly prompt-supervised"


def prompt_embeddings(model: Model, findings: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(positive, negative) float64 [K, E]: of each finding the normalised mean of its prompts' embeddings."""
    texts: list[str] = []
    spans: list[tuple[int, int]] = []
    for finding in findings:
        for polarity in prompts.zero_shot_prompts(finding):
            spans.append((len(texts), len(texts) + len(polarity)))
            texts += polarity
    embedded = np.asarray(model.encode_text(texts), np.float64)
    means = np.stack([embedded[start:end].mean(axis=0) for start, end in spans])
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return means[0::2], means[1::2]


def score_images(image_embed: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> dict[str, np.ndarray]:
    """The scores [n, K] of images [n, E] for findings with prompt embeddings [K, E]."""
    affirmed = image_embed.astype(np.float64) @ positive.T
    return {"difference": affirmed - image_embed.astype(np.float64) @ negative.T, "positive": affirmed}


def findings_of(split: Split) -> list[str]:
    """The kinds with both classes among the labels of at least one source, in the vocabulary's order.

    Raises:
      UserError: a label that is no kind of the vocabulary.
    """
    seen: dict[tuple[str, str], set[LabelState]] = {}
    for example in split.examples:
        for kind, state in example.labels.items():
            seen.setdefault((example.source, kind), set()).add(LabelState(state))
    both = {kind for (_, kind), states in seen.items() if {LabelState.PRESENT, LabelState.ABSENT} <= states}
    if strange := sorted(both - set(prompts.KINDS)):
        raise UserError(f"label {strange[0]!r} is no kind of the vocabulary; build the data set again, or add the kind")
    return [kind for kind in prompts.KINDS if kind in both]


def evaluate(
    model: Model,
    split: Split,
    image_embed: np.ndarray,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> ZeroShot:
    """Scores every row for every finding, and summarises source by source.

    The summary holds, for JSON: "primary" (the source of the headline: the paired source with most evaluable rows, else
    the largest), "level", "resamples", and "sources": {source: {"rows", "patients", "paired", "unpaired", "findings":
    [{"finding", "name", "positives", "negatives", "unknown", "uncertain", "exposure", "called", "difference" and
    "positive": {"auroc", "auroc_interval", "auprc", "auprc_interval", "unusable_resamples"}}], "macro": {"difference",
    "positive": {"all", "min_positives", and one entry for each exposure: {"auroc", "auroc_interval", "auprc",
    "auprc_interval", "findings", "exposures", "called"}}}}}.

    All findings of a source share the resamples of its patients, so the interval of a macro is a joint one.
    """
    findings = findings_of(split)
    labels = labels_of(split.examples, findings)
    if findings:
        scores = score_images(image_embed, *prompt_embeddings(model, findings))
    else:
        scores = {name: np.zeros((len(split), 0)) for name in SCORES}
    sources: dict[str, Any] = {}
    patients = np.array(split.patients, object)
    counts = split.source_counts
    with (progress or Progress(False)).bar("bootstrap", len(split)) as advance:
        for source, parts in counts.items():
            rows = split.rows_of(source)
            here = [k for k in range(len(findings)) if (labels[rows, k] == 1).any() and (labels[rows, k] == 0).any()]
            groups = patients[rows]
            entry = {"rows": len(rows), "patients": len(set(groups)), **parts}
            entry |= _summarise(
                [split.examples[row] for row in rows],
                [findings[k] for k in here],
                labels[rows][:, here],
                {name: values[rows][:, here] for name, values in scores.items()},
                groups,
                [exposure(findings[k], source, model.manifest) for k in here],
                resamples,
                level,
                seed,
            )
            sources[source] = entry
            advance(len(rows))
    summary = {
        "primary": _primary(sources),
        "level": level,
        "resamples": resamples,
        "few_positives": FEW_POSITIVES,
        "sources": sources,
    }
    return ZeroShot(findings, labels, scores, summary)


def _primary(sources: Mapping[str, Any]) -> str | None:
    """The source whose numbers are the headline: one with reports and evaluable labels, if there is one."""
    usable = [name for name, entry in sources.items() if entry["findings"]]
    return max(usable, key=lambda name: (sources[name]["paired"], sources[name]["rows"]), default=None)


def _summarise(
    examples: Sequence[Example],
    findings: Sequence[str],
    labels: np.ndarray,
    scores: Mapping[str, np.ndarray],
    groups: np.ndarray,
    stamps: Sequence[str],
    resamples: int,
    level: float,
    seed: int,
) -> dict[str, Any]:
    """The findings and macros of one source."""
    positives, negatives = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
    rows: list[dict[str, Any]] = []
    for k, finding in enumerate(findings):
        uncertain = sum(example.labels.get(finding) == LabelState.UNCERTAIN for example in examples)
        rows.append(
            {
                "finding": finding,
                "name": prompts.display_name(finding),
                "positives": int(positives[k]),
                "negatives": int(negatives[k]),
                "uncertain": uncertain,
                "unknown": len(examples) - int(positives[k]) - int(negatives[k]) - uncertain,
                "exposure": stamps[k],
                "called": called([stamps[k]]),
            }
        )
    chosen = {
        "all": list(range(len(findings))),
        "min_positives": [k for k in range(len(findings)) if positives[k] >= FEW_POSITIVES],
    }
    chosen |= {stamp: [k for k, s in enumerate(stamps) if s == stamp] for stamp in EXPOSURES if stamp in stamps}
    macro: dict[str, dict[str, Any]] = {}
    for score, values in scores.items():
        macro[score] = {name: _macro_head(columns, stamps) for name, columns in chosen.items()}
        for row in rows:
            row[score] = {}
        for metric, function in METRICS.items():
            if not findings:
                continue
            replicates = metrics.resample_metric(
                labels, values, groups, metric=function, resamples=resamples, seed=seed
            )
            points = np.array([function(labels[:, k], values[:, k]) for k in range(len(findings))])
            for k, row in enumerate(rows):
                interval = metrics.percentile_interval(replicates[:, k], level)
                row[score] |= {
                    metric: float(points[k]),
                    f"{metric}_interval": [interval.low, interval.high],
                    "unusable_resamples": interval.unusable,
                }
            for name, columns in chosen.items():
                if columns:
                    interval = metrics.percentile_interval(metrics.macro_replicates(replicates[:, columns]), level)
                    macro[score][name] |= {
                        metric: float(points[columns].mean()),
                        f"{metric}_interval": [interval.low, interval.high],
                    }
    return {"findings": rows, "macro": macro}


def _macro_head(columns: Sequence[int], stamps: Sequence[str]) -> dict[str, Any]:
    inside = [stamps[k] for k in columns]
    nothing = {f"{metric}{suffix}": None for metric in METRICS for suffix in ("", "_interval")}
    return nothing | {
        "findings": len(columns),
        "exposures": {stamp: inside.count(stamp) for stamp in EXPOSURES if stamp in inside},
        "called": called(inside),
    }
