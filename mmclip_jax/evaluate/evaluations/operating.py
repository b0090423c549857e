"""A classifier at the thresholds that were stored with it: sensitivity and specificity on the rows that are scored.

Its fine-tuning chose them on its own validation rows (docs/transfer.md). Nothing is chosen here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmclip_jax.evaluate.base import CLASSIFIER, Context, Evaluation, Part, Result, Results, template
from mmclip_jax.evaluate.evaluations.scored import SourceRows
from mmclip_jax.evaluate.evaluations.zeroshot import ZERO_SHOT, findings_section
from mmclip_jax.evaluate.model import Supervised
from mmclip_jax.evaluate.stats import thresholds
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap
from mmclip_jax.text import prompts

MEASURES = ("sensitivity", "specificity")
RULE_NAMES = {"youden": "Youden", "sensitivity_90": "sensitivity ≥ 0.9"}


def evaluate(
    classifier: Supervised, here: SourceRows, findings: Sequence[str], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """Each finding at each of its thresholds.

    Args:
      classifier: gives the thresholds.
      here: the rows of a source, their scores logits [n, K].
      findings: the K findings.
      bootstrap: its settings; patients are those of the rows.

    Returns (for JSON):
      [{"finding", "name", "note" (why it has no thresholds, or ""), "rules": [{"rule", "threshold" (a probability),
      "sensitivity", "specificity", each with "..._interval"}]}]; a measure without rows of its class is NaN.
    """
    bootstrap = bootstrap.of(here.patients)
    refused = {each["finding"]: each["note"] for each in classifier.manifest["classifier"]["thresholds"]["findings"]}
    table = []
    for k, finding in enumerate(findings):
        chances = np.exp(-np.logaddexp(0.0, -here.scores["difference"][:, k]))
        labels, rules = here.labels[:, k], []
        for rule, threshold in classifier.thresholds[finding].items():
            if threshold is None:
                continue
            points = thresholds.at_threshold(labels, chances, threshold)
            drawn = thresholds.resample_at_threshold(labels, chances, threshold, bootstrap)
            entry: dict[str, Any] = {"rule": rule, "threshold": threshold}
            for measure in MEASURES:
                replicates = drawn[:, thresholds.MEASURES.index(measure)]
                interval = thresholds.interval(measure, points[measure], replicates, labels, bootstrap)
                entry |= {measure: points[measure], f"{measure}_interval": interval.bounds}
            rules.append(entry)
        name = prompts.display_name(finding)
        table.append({"finding": finding, "name": name, "note": refused.get(finding, ""), "rules": rules})
    return table


class OperatingEvaluation(Evaluation[None]):
    """The classifier at its own thresholds, for the source of the headline."""

    name = "operating"
    needs = (CLASSIFIER,)
    after = (ZERO_SHOT,)

    def run(self, context: Context) -> Result[None]:
        """Summary: {"source", "findings": what `evaluate` returns}; None if nothing could be scored."""
        scored, classifier = context.found(ZERO_SHOT), context.classifier
        assert scored is not None
        assert classifier is not None
        source = scored.summary["primary"]
        if source is None:
            return Result(None)
        table = evaluate(classifier, scored.rows.of_source(str(source)), scored.findings, context.bootstrap)
        return Result({"source": source, "findings": table})

    def lines(self, results: Results) -> Sequence[str]:
        """Findings without thresholds."""
        refused = [f"{f['name']} ({f['note']})" for f in _findings(results) if f["note"]]
        return [f"The classifier has no threshold for {'; '.join(refused)}"] if refused else ()

    def tables(self, results: Results) -> Sequence[str]:
        """Sensitivity and specificity at each threshold."""
        rows = [(f["name"], rule) for f in _findings(results) for rule in f["rules"]]
        if not rows:
            return ()
        lines = ["", "| finding, at its own threshold | threshold | sensitivity | specificity |", "|---|---|---|---|"]
        for name, rule in rows:
            cells = [f"{rule[m]:.3f} ({rule[f'{m}_interval'][0]:.3f} to {rule[f'{m}_interval'][1]:.3f})"
                     for m in MEASURES]  # fmt: skip
            lines.append(f"| {name}, {RULE_NAMES[rule['rule']]} | {rule['threshold']:.3f} | {' | '.join(cells)} |")
        return lines

    def parts(self, results: Results, found: None) -> Sequence[Part]:
        """A table below those of the findings."""
        if not _findings(results):
            return ()
        return [Part(findings_section(results), template("operating"), {"rule_names": RULE_NAMES}, guest=True)]


OPERATING = OperatingEvaluation()


def _findings(results: Results) -> Sequence[Mapping[str, Any]]:
    summary = results.get("operating")
    return summary["findings"] if summary else ()
