"""What is kept of a finished run: its classifier, with thresholds and a manifest."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmclip_jax.checkpoints import Saved
from mmclip_jax.data.records import dataset_dir, dataset_facts
from mmclip_jax.evaluate.stats import thresholds
from mmclip_jax.evaluate.stats.bootstrap import Patients, count_patients
from mmclip_jax.finetune.task import Settings, Task
from mmclip_jax.inference.classifier import KEY
from mmclip_jax.text import prompts

FEWEST_PATIENTS = 10
"""Of each class, for a threshold: with fewer, a sensitivity of 0.9 cannot be told from 1."""

SENSITIVITY = 0.9
RULES = ("youden", "sensitivity_90")


def fold(head: Mapping[str, np.ndarray], mean: np.ndarray, sd: np.ndarray) -> dict[str, np.ndarray]:
    """The linear layer on features [D] that does what `head` does on (features - mean) / sd, float32."""
    kernel = np.asarray(head["kernel"], np.float64) / sd[:, np.newaxis]
    bias = np.asarray(head["bias"], np.float64) - mean @ kernel
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}


def choose_thresholds(
    labels: np.ndarray, chances: np.ndarray, patients: Patients, findings: Sequence[str]
) -> list[dict[str, Any]]:
    """Two thresholds of each finding: Youden's, and the largest with a sensitivity of at least 0.9.

    Args:
      labels: float [n, K] of validation rows, NaN unknown.
      chances: probabilities [n, K] of the same rows.
      patients: [n].
      findings: K kinds.

    Returns (for JSON):
      [{"finding", "positive_patients", "negative_patients", "note" (why there is none, or ""), "rules": {rule: None, or
      {"threshold", "sensitivity", "specificity" (both on these very rows)}}}].
    """
    people = np.array(patients, object)
    table = []
    for k, finding in enumerate(findings):
        column, scores = labels[:, k], chances[:, k]
        positive, negative = (count_patients(people[column == value]) for value in (1, 0))
        few = [
            f"{count} patients of validation {have}"
            for count, have in ((positive, "have it"), (negative, "are known not to have it"))
            if count < FEWEST_PATIENTS
        ]
        note = f"{' and '.join(few)}, fewer than {FEWEST_PATIENTS}" if few else ""
        rules: dict[str, Any] = dict.fromkeys(RULES)
        if not note:
            chosen = (
                thresholds.choose_threshold(column, scores, "youden"),
                thresholds.threshold_of_sensitivity(column, scores, SENSITIVITY),
            )
            for rule, threshold in zip(RULES, chosen, strict=True):
                found = thresholds.at_threshold(column, scores, threshold)
                rules[rule] = {"threshold": threshold} | {name: found[name] for name in ("sensitivity", "specificity")}
        table.append(
            {
                "finding": finding,
                "positive_patients": positive,
                "negative_patients": negative,
                "note": note,
                "rules": rules,
            }
        )
    return table


def refused_text(table: Sequence[Mapping[str, Any]]) -> str:
    """One line about the findings without thresholds; "" if there are none."""
    refused = [f"{prompts.display_name(each['finding'])} ({each['note']})" for each in table if each["note"]]
    return f"No threshold is chosen for {'; '.join(refused)}" if refused else ""


def manifest_of(
    saved: Saved,
    task: Task,
    settings: Settings,
    fraction: float,
    rows: np.ndarray,
    summary: Mapping[str, Any],
    table: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The manifest of a classifier: that of the pre-training run with the data of both, and `KEY`.

    rows: numbers of the training rows. summary: of the run. table: of `choose_thresholds`.
    """
    data = {
        str(dataset_dir(directory)): {
            key: dataset_facts(directory)[key] for key in ("name", "version", "examples", "fingerprint")
        }
        for directory in task.directories
    }
    learnt = [task.train.examples[row] for row in rows]
    told = {
        "mode": settings.mode,
        "task": settings.task,
        "fraction": fraction,
        "seed": summary["seed"],
        "step": summary["best_step"],
        "findings": list(task.findings),
        "images": len(rows),
        "patients": len({task.train.patients[row] for row in rows}),
        "uncertain": task.policy,
        "checkpoint": {"run": saved.run_folder.name, "step": saved.step},
        "data": data,
        "label_kinds": _label_kinds(task, rows),
        "sources": {name: sum(e.source == name for e in learnt) for name in sorted({e.source for e in learnt})},
        "validation": {
            "images": len(task.validation),
            "patients": len(set(task.validation.patients)),
            "macro_auroc": summary["validation_macro_auroc"],
        },
        "thresholds": {"least_patients": FEWEST_PATIENTS, "findings": list(table)},
    }
    before = saved.manifest
    return {**before, "data": {**before.get("data", {}), **data}, KEY: told}


def _label_kinds(task: Task, rows: np.ndarray) -> dict[str, list[str]]:
    """{source: findings of which a training row has a label that was learnt from}."""
    targets = task.targets[rows]
    sources = np.array([task.train.examples[row].source for row in rows], object)
    kinds = {}
    for source in sorted(set(sources.tolist())):
        mine = targets[sources == source]
        if mine.ndim == 1:  # a class says of every class whether it is there
            known = np.full(len(task.findings), bool((mine >= 0).any()))
        else:
            known = (mine >= 0).any(axis=0)
        kinds[source] = [finding for finding, there in zip(task.findings, known, strict=True) if there]
    return kinds
