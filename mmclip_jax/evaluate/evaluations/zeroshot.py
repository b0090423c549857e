"""Findings by prompts: an image's similarity to what affirms a finding, against what denies it.

A protocol says which of two scores (`inference/scoring.py`) counts, over which findings, with what prompts. Each number
carries the exposure of the finding: whether its labels were texts of the training. Sources are evaluated one by one,
since an image's source must not help to find a disease.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmclip_jax.evaluate import protocols
from mmclip_jax.evaluate.base import EVALUATED, Card, Context, Evaluation, Part, Result, Results, Section, template
from mmclip_jax.evaluate.evaluations.finding_tables import FEW_POSITIVES, SourceTables
from mmclip_jax.evaluate.evaluations.scored import (
    SCORE_OF,
    Scored,
    findings_by_protocol,
    findings_of,
    member_aurocs,
    score_by_protocol,
)
from mmclip_jax.evaluate.model import Encoder, Foreign, Supervised
from mmclip_jax.evaluate.protocols import Protocol
from mmclip_jax.evaluate.report import figures, scores_file
from mmclip_jax.evaluate.report.formats import interval, number
from mmclip_jax.evaluate.report.notes import policy_text, weak_labels_text, why_no_scores
from mmclip_jax.evaluate.rows import Embedded, Progress, Split, labels_of, uncertain_text
from mmclip_jax.evaluate.stats import metrics
from mmclip_jax.evaluate.stats.bootstrap import DEFAULT, Bootstrap
from mmclip_jax.inference import scoring
from mmclip_jax.inference.exposure import REPORT_ONLY, exposure, legend, seen_in_training
from mmclip_jax.text import prompts

FINDINGS = Section("findings", "Findings", "Findings by prompts")
BY_CLASSIFIER = Section("findings", "Findings", "Findings by the classifier")


def findings_section(results: Results) -> Section:
    """The section of the findings' tables: by prompts, or by a classifier."""
    return BY_CLASSIFIER if results["checkpoint"].get("classifier") else FINDINGS


@dataclasses.dataclass
class ZeroShot:
    """Scores of all rows and what was made of them.

    findings: K kinds, those of the protocol. rows: of the split that is scored; validation: of the other one, None
    where there is none. summary: JSON, see `evaluate`.
    """

    findings: list[str]
    rows: Scored
    validation: Scored | None
    protocol: Protocol
    summary: dict[str, Any]

    @property
    def labels(self) -> np.ndarray:
        """float64 [n, K]: 1 present, 0 absent, NaN unknown."""
        return self.rows.labels

    @property
    def scores(self) -> dict[str, np.ndarray]:
        """Float64 [n, K] by name: "difference" and "positive"."""
        return self.rows.scores

    @property
    def score(self) -> str:
        """The protocol's score: a key of `scores`."""
        return SCORE_OF[self.protocol.score]


def evaluate(
    model: Encoder | Supervised,
    split: Split,
    image_embed: np.ndarray,
    *,
    protocol: Protocol | None = None,
    validation: Embedded | None = None,
    bootstrap: Bootstrap = DEFAULT,
    progress: Progress | None = None,
) -> ZeroShot:
    """Scores every row for every finding of a protocol, and summarises source by source.

    Args:
      model: gives the prompts' embeddings; a classifier gives the scores themselves.
      split: the rows.
      image_embed: [n, E] of these rows.
      protocol: None for the data set's own labels.
      validation: rows of other patients with their embeddings, which thresholds are chosen on; None for none.
      bootstrap: its settings; patients are those of each source.
      progress: bars.

    The summary holds, for JSON: "protocol", "score" (the key of the protocol's score), "primary" (the source of the
    headline: the paired source with most evaluable rows, else the largest), "level", "resamples", "few_positives", and
    "sources": {source: {"rows", "patients", "paired", "unpaired" and what `SourceTables.summarise` returns}}; of an
    ensemble also "members": the macro AUROC of each of them alone in the primary source; of a classifier "not_learnt":
    the protocol's findings that it has no output for.

    A finding that lacks a class in a source is there with NaN and a note. All findings of a source share the resamples
    of its patients, so the interval of a macro is a joint one.
    """
    protocol = protocol or protocols.load(protocols.DEFAULT)
    findings = findings_by_protocol(split, protocol)
    not_learnt: list[str] = []
    if isinstance(model, Supervised):
        not_learnt = [finding for finding in findings if finding not in model.findings]
        findings = [finding for finding in findings if finding in model.findings]

    def scored(of: Split, embedded: np.ndarray) -> Scored:
        labels = protocol.labels_of(of.examples, findings)
        return Scored(of, embedded, labels, score_by_protocol(model, embedded, findings, protocol))

    rows = scored(split, image_embed)
    chosen_on = scored(*validation) if validation is not None else None
    sources: dict[str, Any] = {}
    # What somebody states of another program's training says nothing of the texts that it saw.
    seen = seen_in_training(model.manifest) if protocol.seen and not model.manifest.get("foreign") else None
    with (progress or Progress(False)).bar("bootstrap", len(split)) as advance:
        for source, parts in split.source_counts.items():
            stamps = [exposure(finding, source, model.manifest) for finding in findings]
            others = None if chosen_on is None else chosen_on.of_source(source)
            one = SourceTables(rows.of_source(source), others, findings, stamps, protocol, seen, bootstrap)
            sources[source] = one.head | parts | one.summarise()
            advance(one.head["rows"])
    summary: dict[str, Any] = {
        "protocol": protocol.describe(),
        "score": SCORE_OF[protocol.score],
        "primary": _primary(sources),
        "level": bootstrap.level,
        "resamples": bootstrap.resamples,
        "few_positives": FEW_POSITIVES,
        "sources": sources,
    }
    if isinstance(model, Supervised):
        summary["not_learnt"] = not_learnt
    if isinstance(model, Foreign) and len(model.members) > 1 and summary["primary"] is not None:
        summary["members"] = member_aurocs(model, rows, findings, protocol, str(summary["primary"]))
    return ZeroShot(findings, rows, chosen_on, protocol, summary)


def _primary(sources: Mapping[str, Any]) -> str | None:
    """The source whose numbers are the headline: one with reports and evaluable labels, if there is one."""
    usable = [name for name, entry in sources.items() if any(not finding["note"] for finding in entry["findings"])]
    return max(usable, key=lambda name: (sources[name]["paired"], sources[name]["rows"]), default=None)


def primary_macro(results: Results) -> Mapping[str, Any] | None:
    """The means of the headline's source, by the protocol's score; None if nothing could be scored."""
    scored = results["zero_shot"]
    macro: Mapping[str, Any] | None = None
    if scored["primary"] is not None:
        macro = scored["sources"][scored["primary"]]["macro"][scored["score"]]
    return macro


class ZeroShotEvaluation(Evaluation[ZeroShot]):
    """Scores by prompts under the protocol."""

    name = "zero_shot"

    def run(self, context: Context) -> Result[ZeroShot]:
        """See `evaluate`."""
        found = evaluate(
            context.model,
            context.rows,
            context.embedded,
            protocol=context.protocol,
            validation=context.validation,
            bootstrap=context.bootstrap,
            progress=context.progress,
        )
        return Result(found.summary, found)

    def headline(self, results: Results) -> Mapping[str, Any]:
        """The protocol, and the macro AUROC of the headline's source: of all findings, of those met in reports only."""
        macro = primary_macro(results)
        return {
            "protocol": results["zero_shot"]["protocol"]["name"],
            "macro_auroc": macro and macro["all"]["auroc"],
            "macro_auroc_interval": macro and macro["all"]["auroc_interval"],
            "macro_auroc_called": macro and macro["all"]["called"],
            "report_only_auroc": macro and macro.get(REPORT_ONLY, {}).get("auroc"),
        }

    def cards(self, results: Results) -> Sequence[Card]:
        """The macro AUROC, and that of the findings which are zero-shot by our word."""
        macro = primary_macro(results)
        if macro is None:
            return [Card("Macro AUROC", "–", "", [why_no_scores(results)])]
        every = macro["all"]
        listed = every["findings"] + len(every["undefined"])
        counted = f"{every['findings']}" + (f" of {listed}" if every["undefined"] else "")
        weak = ", weak labels" if results["data"].get("weak_labels") else ""
        lines = [f"{counted} findings of {results['zero_shot']['primary']}, {every['called']}{weak}"]
        strict = macro.get(REPORT_ONLY)
        if strict and strict["findings"] != every["findings"]:
            lines.append(
                f"Zero-shot proper ({strict['findings']} of them): {number(strict['auroc'])} "
                f"{interval(strict['auroc_interval'])}"
            )
        title = "Macro AUROC of the classifier" if results["checkpoint"].get("classifier") else "Macro AUROC by prompts"
        return [Card(title, number(every["auroc"]), interval(every["auroc_interval"]), lines)]

    def lines(self, results: Results) -> Sequence[str]:
        """What a table of findings must be read with: protocol, uncertain labels, what is undefined."""
        protocol, data = results["zero_shot"]["protocol"], results["data"]
        settled = sorted({f"{s['name']}: {s['uncertain']}" for s in data["sets"] if s["uncertain"] != "keep"})
        uncertain = f"Uncertain labels: {protocol['uncertain_text']}"
        if settled:
            uncertain += f" (those that the build left; it settled others: {', '.join(settled)})"
        lines = [f"Protocol: {protocol['title']} ({protocol['name']}, {protocol['digest']})", uncertain]
        if protocol.get("prompts"):
            lines.append(f"Prompts: {protocol['prompts']}, in place of the protocol's")
        if protocol["note"]:
            lines.append(f"Note: {protocol['note']}")
        if weak := weak_labels_text(results):
            lines.append(weak)
        if unknown := results["zero_shot"].get("not_learnt"):
            named = ", ".join(prompts.display_name(finding) for finding in unknown)
            lines.append(f"The classifier has no output for these findings of the protocol: {named}")
        for source, entry in results["zero_shot"]["sources"].items():
            if undefined := [f"{f['name']} ({f['note']})" for f in entry["findings"] if f["note"]]:
                lines.append(f"Undefined in {source}, and not in its means: {', '.join(undefined)}")
            if uncertain := uncertain_text(entry):
                lines.append(f"In {source} {uncertain}")
        return lines

    def tables(self, results: Results) -> Sequence[str]:
        """The findings of the headline's source."""
        scored = results["zero_shot"]
        if scored["primary"] is None:
            return ()
        lines = ["", f"| finding, {scored['primary']} | positives | AUROC | exposure |", "|---|---|---|---|"]
        for row in scored["sources"][scored["primary"]]["findings"]:
            value = row[scored["score"]]
            area = row["note"] or f"{number(value['auroc'])} {interval(value['auroc_interval'])}".strip()
            lines.append(f"| {row['name']} | {row['positives']:,} | {area} | {row['exposure']} |")
        return lines

    def limits(self, results: Results) -> Sequence[str]:
        """Findings with few positives."""
        scored = results["zero_shot"]
        findings = scored["sources"][scored["primary"]]["findings"] if scored["primary"] is not None else []
        few = [f["name"] for f in findings if f["positives"] < scored["few_positives"] and not f["note"]]
        if not few:
            return ()
        return [f"Fewer than {scored['few_positives']} positives, so hardly more than a hint: {', '.join(few)}."]

    def parts(self, results: Results, found: ZeroShot | None) -> Sequence[Part]:
        """The tables of findings with the ROC curves, and the stamps that a reader has to know."""
        foreign = bool(results["checkpoint"]["external"] or results["checkpoint"].get("classifier"))
        sources = results["zero_shot"]["sources"].values()
        stamps = legend({f["exposure"] for entry in sources for f in entry["findings"]}, results["exposure"], foreign)
        span = _span(results)
        values = {
            "policy": policy_text(results),
            "span": span,
            "span_label": f"{span[0]:g} to {span[1]:g}",
            "exposures": stamps,
            "rocs": [] if found is None else _rocs(results, found),
        }
        return [
            Part(EVALUATED, template("exposures"), {"exposures": stamps}, guest=True),
            Part(findings_section(results), template("zero_shot"), values),
        ]

    def write(self, folder: pathlib.Path, found: ZeroShot | None) -> None:
        """The scores of every image."""
        if found is not None:
            scores_file.write(folder / scores_file.NAME, found.rows, found.findings)

    def quick(self, context: Context) -> Mapping[str, float]:
        """{"macro_auroc" (of the headline's source), "macro_auroc/SOURCE"}."""
        rows, values = context.rows, dict[str, float]()
        findings = findings_of(rows)
        if not findings:
            return values
        embedded = scoring.prompt_embeddings(context.encoder, findings)
        scores = scoring.score_images(context.embedded, *embedded)["difference"]
        labels, counts = labels_of(rows.examples, findings), rows.source_counts
        # As in the full evaluation: a source with reports, then the larger one, gives the headline.
        for source in sorted(counts, key=lambda name: (counts[name]["paired"], sum(counts[name].values()))):
            mine = rows.rows_of(source)
            areas = np.array([metrics.auroc(labels[mine, k], scores[mine, k]) for k in range(len(findings))])
            if not np.isnan(areas).all():
                values[f"macro_auroc/{source}"] = values["macro_auroc"] = float(np.nanmean(areas))
        return values


ZERO_SHOT = ZeroShotEvaluation()


def _span(results: Results) -> tuple[float, float]:
    """The scale of the interval marks: from 0.5 up, lower where something is below chance."""
    score = results["zero_shot"]["score"]
    lows = [
        bound
        for entry in results["zero_shot"]["sources"].values()
        for finding in entry["findings"]
        for bound in (finding[score]["auroc"], *finding[score]["auroc_interval"])
        if bound is not None and math.isfinite(bound)
    ]
    return (min(0.5, math.floor(10 * min(lows)) / 10) if lows else 0.5), 1.0


def _rocs(results: Results, found: ZeroShot) -> list[dict[str, Any]]:
    """The ROC curves of the headline's source: "name", "auroc", "svg"."""
    primary, score = results["zero_shot"]["primary"], results["zero_shot"]["score"]
    if primary is None:
        return []
    rows = found.rows.split.rows_of(primary)
    rocs = []
    for finding in results["zero_shot"]["sources"][primary]["findings"]:
        if finding["note"]:
            continue
        k = found.findings.index(finding["finding"])
        curve = metrics.roc_curve(found.labels[rows, k], found.scores[score][rows, k])
        area = finding[score]["auroc"]
        svg = figures.roc_chart(*curve, f"ROC curve of {finding['name']}, area {number(area)}")
        rocs.append({"name": finding["name"], "auroc": area, "svg": svg})
    return rocs
