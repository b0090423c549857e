"""The tables of one source: each finding and the means over findings, with intervals and decisions at a threshold."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmclip_jax.data.schema import LabelState
from mmclip_jax.evaluate.evaluations.scored import SCORE_OF, SourceRows
from mmclip_jax.evaluate.protocols import Protocol
from mmclip_jax.evaluate.rows import uncertain_only
from mmclip_jax.evaluate.stats import metrics, thresholds
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap, macro_replicates
from mmclip_jax.inference.exposure import EXPOSURES, called
from mmclip_jax.text import prompts

METRICS = {"auroc": metrics.auroc, "auprc": metrics.auprc}
FEW_POSITIVES = 30


class SourceTables:
    """The tables of one source."""

    def __init__(
        self,
        here: SourceRows,
        validation: SourceRows | None,
        findings: Sequence[str],
        stamps: Sequence[str],
        protocol: Protocol,
        seen: set[str] | None,
        bootstrap: Bootstrap,
    ):
        """Thresholds are chosen on `validation`; stamps: exposures of the K findings; seen: see `_macro_groups`."""
        self._examples, self._labels, self._scores = here.examples, here.labels, here.scores
        self._score = SCORE_OF[protocol.score]
        self._validation = None if validation is None else (validation.labels, validation.scores[self._score])
        self._findings, self._stamps, self._protocol, self._seen = findings, stamps, protocol, seen
        self._bootstrap = bootstrap.of(here.patients)
        self._counts = [metrics.counts(self._labels[:, k]) for k in range(len(findings))]
        self.head = {"rows": len(here.rows), "patients": self._bootstrap.count}

    def summarise(self) -> dict[str, Any]:
        """The findings, and means over findings.

        Returns (for JSON): "findings": [{"finding", "name", "positives", "negatives", "unknown", "uncertain", "note"
        (why it is undefined, or ""), "exposure", "called", "difference" and "positive": {"auroc", "auroc_interval",
        "auprc", "auprc_interval", "unusable_resamples"}, "decision": {"threshold", "f1", "accuracy", "sensitivity",
        "specificity", each with "..._interval", "max_f1_test", "note"}}], "macro": {"difference", "positive": {"all",
        "min_positives", groups of the protocol, one entry for each exposure: {"auroc", "auroc_interval", "auprc",
        "auprc_interval", "findings" (how many are defined), "undefined" (names of the others), "exposures", "called",
        "label"; of the protocol's score also the decisions' means}}}, "uncertain_only": {finding: how many labels it
        has in the source, all uncertain}.
        """
        defined = [k for k, counted in enumerate(self._counts) if not counted.note]
        groups = self._macro_groups(defined)
        table = [self._row(k) for k in range(len(self._findings))]
        macro: dict[str, dict[str, Any]] = {
            score: {name: self._macro_head(label, columns) for name, (label, columns) in groups.items()}
            for score in self._scores
        }
        for score, values in self._scores.items():
            for metric, function in METRICS.items():
                points = [function(self._labels[:, k], values[:, k]) for k in range(len(table))]
                replicates = self._bootstrap.metric(self._labels, values, function)
                for k, row in enumerate(table):
                    column = self._labels[:, k], values[:, k]
                    interval = self._bootstrap.ranking_interval(*column, function, replicates[:, k])
                    numbers = [points[k], *interval.bounds]
                    if row["note"]:  # without a negative an AUPRC is 1 whatever the scores: undefined like the AUROC
                        numbers = [float("nan")] * 3
                    row.setdefault(score, {})[metric] = float(numbers[0])
                    row[score] |= {f"{metric}_interval": numbers[1:], "unusable_resamples": interval.unusable}
                self._add_macros(macro[score], metric, np.array(points), replicates, groups)
        self._decide(table, macro[self._score], groups)
        return {"findings": table, "macro": macro, "uncertain_only": self._uncertain_only()}

    def _uncertain_only(self) -> dict[str, int]:
        asked = self._protocol.findings
        found = uncertain_only(self._examples)
        return {kind: count for kind, count in found.items() if asked is None or kind in asked}

    def _row(self, k: int) -> dict[str, Any]:
        finding, counted = self._findings[k], self._counts[k]
        uncertain = sum(example.labels.get(finding) == LabelState.UNCERTAIN for example in self._examples)
        ignored = uncertain if self._protocol.uncertain_as(finding) == "ignore" else 0
        return {
            "finding": finding,
            "name": prompts.display_name(finding),
            "positives": counted.positives,
            "negatives": counted.negatives,
            "uncertain": uncertain,
            "unknown": counted.unknown - ignored,
            "note": counted.note,
            "exposure": self._stamps[k],
            "called": called([self._stamps[k]]),
        }

    def _macro_groups(self, defined: Sequence[int]) -> dict[str, tuple[str, list[int]]]:
        """{key: (label, columns)} of the means, defined columns or not.

        With `seen`, the findings that training texts affirmed, there are means of these and of the others.
        """
        every = list(range(len(self._findings)))
        groups = {
            "all": ("", every),
            "min_positives": ("", [k for k in defined if self._counts[k].positives >= FEW_POSITIVES]),
        }
        for name, kinds in self._protocol.groups.items():
            groups[name] = (name, [k for k in every if self._findings[k] in kinds])
        if self._seen is not None:
            there = [k for k in every if self._findings[k] in self._seen]
            groups["seen"] = ("seen: affirmed in training texts", there)
            groups["unseen"] = ("unseen: in no training text", [k for k in every if k not in there])
        for stamp in EXPOSURES:
            if columns := [k for k in defined if self._stamps[k] == stamp]:
                groups[stamp] = ("", columns)
        return groups

    def _macro_head(self, label: str, columns: Sequence[int]) -> dict[str, Any]:
        inside = [self._stamps[k] for k in columns if not self._counts[k].note]
        nothing = {f"{metric}{suffix}": None for metric in METRICS for suffix in ("", "_interval")}
        return nothing | {
            "label": label,
            "findings": len(inside),
            "undefined": [prompts.display_name(self._findings[k]) for k in columns if self._counts[k].note],
            "exposures": {stamp: inside.count(stamp) for stamp in EXPOSURES if stamp in inside},
            "called": called(inside),
        }

    def _add_macros(
        self,
        macro: dict[str, Any],
        measure: str,
        points: np.ndarray,
        replicates: np.ndarray,
        groups: Mapping[str, tuple[str, list[int]]],
    ) -> None:
        """Adds to each group the mean over its columns that are defined, with its interval."""
        for name, (_, columns) in groups.items():
            usable = [k for k in columns if not self._counts[k].note and not np.isnan(points[k])]
            if usable:
                mean = float(points[usable].mean())
                interval = self._bootstrap.logit_interval(mean, macro_replicates(replicates[:, usable]))
                macro[name] |= {measure: mean, f"{measure}_interval": interval.bounds}

    def _decide(
        self, table: list[dict[str, Any]], macro: dict[str, Any], groups: Mapping[str, tuple[str, list[int]]]
    ) -> None:
        """Adds the measures at thresholds that were chosen on validation, and the highest F1 on these rows."""
        values = self._scores[self._score]
        points = np.full((len(table), len(thresholds.MEASURES)), np.nan)
        replicates = np.full((self._bootstrap.resamples, *points.shape), np.nan)
        highest = np.full(len(table), np.nan)
        for k, row in enumerate(table):
            threshold, note = self._threshold(k)
            labels, scores = self._labels[:, k], values[:, k]
            highest[k] = float("nan") if row["note"] else thresholds.max_f1(labels, scores)
            if not (note or row["note"]):
                points[k] = list(thresholds.at_threshold(labels, scores, threshold).values())
                replicates[:, k] = thresholds.resample_at_threshold(labels, scores, threshold, self._bootstrap)
            row["decision"] = {"threshold": threshold, "max_f1_test": float(highest[k]), "note": row["note"] or note}
            for m, measure in enumerate(thresholds.MEASURES):
                interval = thresholds.interval(measure, points[k, m], replicates[:, k, m], labels, self._bootstrap)
                row["decision"] |= {measure: float(points[k, m]), f"{measure}_interval": interval.bounds}
        for m, measure in enumerate(thresholds.MEASURES):
            self._add_macros(macro, measure, points[:, m], replicates[:, :, m], groups)
        self._add_macros(macro, "max_f1_test", highest, np.full((2, len(table)), np.nan), groups)

    def _threshold(self, k: int) -> tuple[float, str]:
        """(threshold chosen on validation rows of this source, "") or (NaN, why there is none)."""
        if self._validation is None:
            return float("nan"), "no validation split to choose a threshold on"
        labels, scores = self._validation
        threshold = thresholds.choose_threshold(labels[:, k], scores[:, k], self._protocol.threshold)
        if np.isnan(threshold):
            return threshold, f"validation: {metrics.counts(labels[:, k]).note}"
        return threshold, ""
