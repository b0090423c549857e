"""Writes what an evaluation found: report.html (one file, pictures inline), results.json and scores.csv."""

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmclip_jax import spreadsheet
from mmclip_jax.data.leakage import audit, numbering
from mmclip_jax.data.schema import Example
from mmclip_jax.evaluate.base import uncertain_text
from mmclip_jax.evaluate.evaluations.grounding import inside_boxes, points_inside
from mmclip_jax.evaluate.evaluations.zeroshot import (
    AS_STATED,
    EXPOSURES,
    NOT_OURS,
    OTHER_SOURCE,
    REPORT_ONLY,
    SAME_SOURCE,
    UNKNOWN_EXPOSURE,
    ZeroShot,
)
from mmclip_jax.evaluate.report import figures
from mmclip_jax.evaluate.report.cases import Case
from mmclip_jax.evaluate.stats import metrics

REPORT_FILE, RESULTS_FILE, SCORES_FILE = "report.html", "results.json", "scores.csv"

# What to plot of metrics.jsonl, in this order: (name, title, note).
_CURVES = (
    ("loss", "Total loss", ""),
    ("contrastive/loss", "Contrastive loss", "paired and unpaired rows together"),
    ("attmim/loss", "AttMIM loss", "squared error of masked, normalised patches"),
    ("entmlm/loss", "EntMLM loss", "cross-entropy of masked tokens"),
    ("entmlm/accuracy", "EntMLM accuracy", "masked tokens restored"),
    ("local/loss", "Local loss", "affirmed tokens against images, through the patches they attend to"),
    ("evaluation/macro_auroc", "Macro AUROC", "by prompts, validation"),
    ("evaluation/source_probe_accuracy", "Source probe", "accuracy, validation"),
    ("logit_scale", "Logit scale", "1 / temperature"),
    ("gradient_norm", "Gradient norm", "before clipping"),
    ("learning_rate", "Learning rate", ""),
    ("images_per_second", "Throughput", "images a second"),
)
_STAMP_CLASSES = {REPORT_ONLY: "report", OTHER_SOURCE: "other", SAME_SOURCE: "same"}
# For table cells; the legend and the cell's title hold the whole stamp.
_STAMP_SHORT = {
    OTHER_SOURCE: "other source's labels",
    NOT_OURS: "unknown",
    REPORT_ONLY + AS_STATED: "no labels, as stated",
    OTHER_SOURCE + AS_STATED: "other source's labels, as stated",
    SAME_SOURCE + AS_STATED: "same source's labels, as stated",
}


def write_report(
    out_dir: str | os.PathLike[str],
    results: Mapping[str, Any],
    *,
    examples: Sequence[Example],
    scored: ZeroShot,
    cases: Sequence[Case] = (),
    curves: Sequence[Mapping[str, Any]] = (),
    show_text: bool = False,
) -> pathlib.Path:
    """Writes report.html, results.json and scores.csv; returns the path of the page.

    Args:
      out_dir: the directory to write into.
      results: of `common.evaluate_checkpoint`.
      examples: the evaluated rows, of which scores.csv names the ids.
      scored: their labels and scores.
      cases: the cases to show.
      curves: the records of metrics.jsonl.
      show_text: whether reports and record ids appear in the HTML.
    """
    out = pathlib.Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(finite(results), indent=1, ensure_ascii=False) + "\n"
    (out / RESULTS_FILE).write_text(text, encoding="utf-8")
    write_scores(out / SCORES_FILE, examples, scored)
    page = render(results, scored=scored, examples=examples, cases=cases, curves=curves, show_text=show_text)
    (out / REPORT_FILE).write_text(page, encoding="utf-8")
    return out / REPORT_FILE


def write_scores(path: pathlib.Path, examples: Sequence[Example], scored: ZeroShot) -> None:
    """One line an image: id, source, part, patient and, for each finding, its label (empty if unknown) and both scores.

    Patients are numbered by first appearance. Scores have all their digits, so that every metric can be had from the
    file exactly.
    """
    numbers: dict[str, int] = {}
    patients = [numbers.setdefault(patient, len(numbers)) for patient in scored.rows.split.patients]
    header = ["id", "source", "part", "patient"]
    header += [f"{finding}/{column}" for finding in scored.findings for column in ("label", *scored.scores)]
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = spreadsheet.Writer(stream)
        writer.writerow(header)
        for row, example in enumerate(examples):
            line = [example.id, example.source, example.part, str(patients[row])]
            for k in range(len(scored.findings)):
                label = scored.labels[row, k]
                line.append("" if np.isnan(label) else str(int(label)))
                line += [repr(float(values[row, k])) for values in scored.scores.values()]
            writer.writerow(line)


def render(
    results: Mapping[str, Any],
    *,
    scored: ZeroShot,
    examples: Sequence[Example],
    cases: Sequence[Case],
    curves: Sequence[Mapping[str, Any]],
    show_text: bool,
) -> str:
    """The HTML report as a string."""
    import markupsafe

    environment = page_environment()
    span = _span(results)

    def mark(entry: Mapping[str, Any]) -> Any:
        if entry["auroc"] is None or not math.isfinite(entry["auroc"]):
            return ""
        low, high = entry["auroc_interval"]
        return markupsafe.Markup(figures.interval_mark(entry["auroc"], low, high, span, 0.5))

    environment.filters["mark"] = mark
    charts, more = _charts(curves)
    for chart in (*charts, *more):
        chart["svg"] = markupsafe.Markup(chart["svg"])
    rocs = [roc | {"svg": markupsafe.Markup(roc["svg"])} for roc in _rocs(results, scored, examples)]
    run = results["checkpoint"]["run"]
    sections = [
        ("evaluated", "What was evaluated", True),
        ("findings", "Findings", True),
        ("trust", "Trust", results["trust"]),
        ("pointing", "Grounding", results["grounding"] or results["phrases"]),
        ("restoring", "Restoring findings", results["entmlm"]),
        ("retrieval", "Retrieval", results["contrastive"]["recall"]),
        ("sources", "Sources", True),
        ("training", "Training", charts),
        ("cases", "Cases", cases),
        ("honesty", "Reading the numbers", True),
    ]
    return environment.get_template("report.html.j2").render(
        policy=policy_text(results),
        weak_labels=weak_labels_text(results),
        audited=audit.text(results["audit"]),
        trained_on=_trained_on(results),
        title=("Evaluation" if results["checkpoint"]["referee"] else "MMCLIP evaluation") + (f": {run}" if run else ""),
        r=results,
        sections=[(name, title) for name, title, there in sections if there],
        cards=headline_cards(results),
        exposures=_exposures(results),
        referee_facts=referee_facts(results),
        span_label=f"{span[0]:g} to {span[1]:g}",
        rocs=rocs,
        reliability=_reliability(results),
        charts=charts,
        more_charts=more,
        cases=[_pictures(case) for case in cases],
        response_used=results["checkpoint"]["response"],
        show_text=show_text,
        honesty=honesty(results),
    )


def _trained_on(results: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """{scored source: {"paired", "unpaired"}}: training images of the source, or of one that holds images of it."""
    counts = (results["exposure"] or {}).get("sources", {})
    return {
        source: {
            part: sum(seen.get(part, 0) for name, seen in counts.items() if numbering.is_same_source(name, source))
            for part in ("paired", "unpaired")
        }
        for source in results["data"]["sources"]
    }


def _exposures(results: Mapping[str, Any]) -> dict[str, str]:
    """The stamps that a reader has to know, with their meanings."""
    foreign = bool(results["checkpoint"]["referee"])
    there = {f["exposure"] for entry in results["zero_shot"]["sources"].values() for f in entry["findings"]}
    own = [REPORT_ONLY, OTHER_SOURCE, SAME_SOURCE] + ([] if results["exposure"] else [UNKNOWN_EXPOSURE])
    own += [name for name in there if name not in own]
    return {name: meaning for name, meaning in EXPOSURES.items() if (name in there if foreign else name in own)}


def referee_facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, value) of a model of somebody else's, as the report tells it; [] of one of our own."""
    facts = results["checkpoint"]["referee"]
    if not facts:
        return []
    rows = results["data"]["rows"]
    files = [f"{each['file']} ({each['bytes']:,} bytes, SHA-256 {each['sha256']})" for each in facts["checkpoints"]]
    enlarged = facts.get("enlarged", 0)
    alone = ", ".join(number(area) for area in results["zero_shot"].get("members", ()))
    lines = [
        ("Another program's model", f"{facts['title']}, {facts['source'] or 'no source given'}"),
        ("Read by", f"spec {facts['spec']} ({facts['digest']}), layout {facts['layout']}"),
        ("Checkpoint" if len(files) == 1 else f"{len(files)} checkpoints", "; ".join(files)),
        ("Ensemble", facts["ensemble"] + (f"; macro AUROC of each alone: {alone}" if alone else "")),
        ("Vocabulary", f"{facts['vocabulary']['file']} (SHA-256 {facts['vocabulary']['sha256']})"),
        ("Preprocessing", facts["preprocess"] + ", from the stored images"),
        ("Images smaller than its input", f"{enlarged:,} of {rows:,}, which were enlarged" if enlarged else ""),
        ("Prompts", facts["prompts"]),
        ("Scale of probabilities", facts["scale"]),
        ("Trained on", facts["trained_on"] or "unknown: not trained by this software"),
        ("Note", facts["note"]),
    ]
    return [(what, value) for what, value in lines if value]


def referee_lines(results: Mapping[str, Any]) -> list[str]:
    """The same for a terminal."""
    return [f"{what}: {value}" for what, value in referee_facts(results)]


def page_environment() -> Any:
    """Jinja's environment of the pages in resources/, with the filters that write numbers, intervals and stamps."""
    import jinja2

    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "resources")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {
        "uncertain_text": uncertain_text,
        "number": number,
        "interval": interval,
        "stamp_class": lambda stamp: _STAMP_CLASSES.get(stamp, ""),
        "stamp_short": lambda stamp: _STAMP_SHORT.get(stamp, stamp),
    }
    return environment


def headline_cards(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The numbers of the report's head: {"title", "value", "beside", "lines"} each."""
    cards = []
    macro = primary_macro(results)
    if macro is None:
        cards.append(_card("Macro AUROC", "–", "", [why_no_scores(results)]))
    else:
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
        cards.append(_card("Macro AUROC by prompts", number(every["auroc"]), interval(every["auroc_interval"]), lines))
    if results["grounding"]:
        used, overall = results["checkpoint"]["response"], results["grounding"]["overall"]
        pointing = overall[used]
        lines = [f"{number(pointing['lift'], 1)} × random ({number(overall['random'])}), response {used}"]
        if pointing["other_prompt"] is not None:
            lines.append(f"With another finding's prompt: {number(pointing['other_prompt'])}")
        overlap = "" if pointing["iou"] is None else f"IoU {number(pointing['iou'])}, Dice {number(pointing['dice'])}, "
        lines.append(f"{overlap}contrast-to-noise ratio {number(pointing['cnr'], 2)}")
        cards.append(_card("Pointing game", number(pointing["rate"]), interval(pointing["interval"]), lines))
    if results["entmlm"]:
        overall = results["entmlm"]["overall"]
        lines = [
            f"points lost when the image is another patient's: {number(overall['own']['tokens'])} of masked tokens "
            f"restored with the own image, {number(overall['swapped']['tokens'])} with the other"
        ]
        low, high = overall["drop"]["tokens_interval"]
        cards.append(
            _card(
                "Masked findings: what the image gives",
                number(100 * overall["drop"]["tokens"], 1),
                interval([100 * low, 100 * high], 1),
                lines,
            )
        )
    for found in results["contrastive"]["recall"][:1]:
        there, back = found["image_to_text"], found["text_to_image"]
        recall, rank = there["recall@10"], there["median_rank"]["value"]
        lines = [
            f"image → report, {found['rows']:,} images of {found['source']} (random {number(recall['random'])})",
            f"Median rank {number(rank, 0)}; report → image: {number(back['recall@10']['value'])}",
        ]
        cards.append(_card("Retrieval R@10", number(recall["value"]), interval(recall["interval"]), lines))
    if results["source_probe"]:
        probe = results["source_probe"]
        cards.append(
            _card(
                "Source probe AUROC",
                number(probe["auroc"]),
                interval(probe["auroc_interval"]),
                [f"Lower is better; accuracy {number(probe['accuracy'])}, majority {number(probe['majority'])}"],
            )
        )
    return cards


def headline_text(results: Mapping[str, Any]) -> str:
    """The same for a terminal, one line a number."""
    lines = [
        (card["title"], f"{card['value']} {card['beside']}".strip(), "; ".join(card["lines"]))
        for card in headline_cards(results)
    ]
    first, second = (max(len(line[i]) for line in lines) for i in (0, 1))
    return "\n".join(f"  {a:<{first}}  {b:<{second}}  {c}".rstrip() for a, b, c in lines)


def protocol_lines(results: Mapping[str, Any]) -> list[str]:
    """What a table of findings must be read with, for a terminal: protocol, uncertain labels, what is undefined."""
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
    for source, entry in results["zero_shot"]["sources"].items():
        if undefined := [f"{f['name']} ({f['note']})" for f in entry["findings"] if f["note"]]:
            lines.append(f"Undefined in {source}, and not in its means: {', '.join(undefined)}")
        if uncertain := uncertain_text(entry):
            lines.append(f"In {source} {uncertain}")
    return lines


def why_no_scores(results: Mapping[str, Any]) -> str:
    """Why no finding could be scored, and what would change that."""
    if results["data"].get("labelled_rows", 1):
        return "No finding has both classes in this split."
    return (
        "No image of this split has a label, and scores by prompts need some: name label columns when you build the "
        "data, or take weak labels made from the reports with --labels-from-reports."
    )


def weak_labels_text(results: Mapping[str, Any]) -> str:
    """What must be said of labels that were made from reports; "" where there are none."""
    made = results["data"].get("weak_labels", 0)
    if not made:
        return ""
    return (
        f"Weak labels: those of {made:,} of {results['data']['rows']:,} images were read from their own reports by the "
        "entity recogniser. Nobody looked at the images for them, and a finding that a report leaves out is unknown"
    )


def policy_text(results: Mapping[str, Any]) -> str:
    """The same in a sentence or two, for the caption of a table."""
    protocol = results["zero_shot"]["protocol"]
    return (
        f"Protocol {protocol['name']}. Uncertain labels: {protocol['uncertain_text']}. "
        f"Audit: {audit.text(results['audit'])}." + (f" {weak}." if (weak := weak_labels_text(results)) else "")
    )


def primary_macro(results: Mapping[str, Any], score: str | None = None) -> dict[str, Any] | None:
    """The macros of the headline's source, by the protocol's score or another; None if nothing could be scored."""
    scored = results["zero_shot"]
    return (
        None if scored["primary"] is None else scored["sources"][scored["primary"]]["macro"][score or scored["score"]]
    )


def number(value: float | None, digits: int = 3) -> str:
    """A number for people; "–" where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "\u2212")


def interval(bounds: Sequence[float | None] | None, digits: int = 3) -> str:
    """A pair as "(low to high)"; nothing where a bound is missing."""
    if bounds is None or any(bound is None or not math.isfinite(bound) for bound in bounds):
        return ""
    return f"({number(bounds[0], digits)} to {number(bounds[1], digits)})"


def finite(value: Any) -> Any:
    """A copy fit for JSON: NaN and infinities become null, NumPy numbers plain ones."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, np.ndarray):
        return finite(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _card(title: str, value: str, beside: str, lines: list[str]) -> dict[str, Any]:
    return {"title": title, "value": value, "beside": beside, "lines": lines}


def _span(results: Mapping[str, Any]) -> tuple[float, float]:
    """The scale of the interval marks: from 0.5 up, lower where something is below chance."""
    score = results["zero_shot"]["score"]
    lows = [
        bound
        for entry in results["zero_shot"]["sources"].values()
        for finding in entry["findings"]
        for bound in (finding[score]["auroc"], *finding[score]["auroc_interval"])
        if math.isfinite(bound)
    ]
    return (min(0.5, math.floor(10 * min(lows)) / 10) if lows else 0.5), 1.0


def _charts(curves: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(the charts of `_CURVES` that have data, those of everything else that was logged and varies)."""
    found = figures.curves_of(curves)
    named = {name for name, _, _ in _CURVES}
    charts = [
        {"title": title, "note": note, "svg": figures.line_chart(*found[name], title)}
        for name, title, note in _CURVES
        if name in found
    ]
    more = [
        {"title": name, "svg": figures.line_chart(steps, values, name)}
        for name, (steps, values) in sorted(found.items())
        if name not in named and min(values) < max(values)
    ]
    return charts, more


def _rocs(results: Mapping[str, Any], scored: ZeroShot, examples: Sequence[Example]) -> list[dict[str, Any]]:
    primary = results["zero_shot"]["primary"]
    if primary is None:
        return []
    rows = [row for row, example in enumerate(examples) if example.source == primary]
    rocs = []
    score = results["zero_shot"]["score"]
    for finding in results["zero_shot"]["sources"][primary]["findings"]:
        if finding["note"]:
            continue
        k = scored.findings.index(finding["finding"])
        curve = metrics.roc_curve(scored.labels[rows, k], scored.scores[score][rows, k])
        area = finding[score]["auroc"]
        svg = figures.roc_chart(*curve, f"ROC curve of {finding['name']}, area {number(area)}")
        rocs.append({"name": finding["name"], "auroc": area, "svg": svg})
    return rocs


def _reliability(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    import markupsafe

    found = results["trust"]["calibration"] if results["trust"] else {}
    return [
        {
            "title": title,
            "ece": found[name]["ece"],
            "svg": markupsafe.Markup(figures.reliability_chart(found[name]["reliability"], f"Reliability, {title}")),
        }
        for name, title in (("as_trained", "As trained"), ("fitted", "With the temperature"))
        if found.get(name)
    ]


def _pictures(case: Case) -> dict[str, Any]:
    """What the template shows of a case."""
    hit = None
    if case.boxes:
        hit = points_inside(case.response, inside_boxes(case.boxes, (case.response.shape[0], case.response.shape[1])))
    return {
        "finding": case.finding,
        "source": case.source,
        "part": case.part,
        "view": case.view,
        "id": case.id,
        "prompt": case.prompt,
        "text": case.text,
        "segments": case.segments,
        "ranking": case.ranking,
        "boxes": case.boxes,
        "right": case.right,
        "asked": case.asked,
        "hit": hit,
        "side": len(case.image),
        # A small image keeps its true pixels; a larger one is smoothed by the browser as usual.
        "image_class": "small" if len(case.image) <= 128 else "",
        "image_uri": figures.png_uri(case.image),
        "overlay_uri": figures.png_uri(figures.overlay(case.image, case.response, case.boxes)),
        "masked_uri": figures.png_uri(figures.masked_image(case.image, case.masked)),
        "reconstruction_uri": figures.png_uri(figures.as_bytes(case.reconstruction)),
    }


def honesty(results: Mapping[str, Any]) -> list[str]:
    """What these numbers do not say, as far as it applies here."""
    lines = [
        "“Zero-shot” is said only of findings whose labels were never turned into training texts. All other scores by "
        "prompts are prompt-supervised: their labels taught the model, if in other images.",
        f"Audit of these images against what was learnt from: {audit.text(results['audit'])}. Nothing was chosen on "
        "this split here, but a checkpoint or a setting that was chosen by these very numbers makes them too good.",
        "An interval covers the choice of patients, not that of the training seed: two runs differ by more.",
    ]
    if facts := results["checkpoint"]["referee"]:
        lines[0] = (
            "“Zero-shot” is said only of findings of which somebody states that their labels were no training texts. "
            "This software did not train the model, and cannot check it."
        )
        lines[1] = (
            "Whether the model has seen these images or patients is unknown: no audit is possible. A checkpoint that "
            "was chosen by these very numbers makes them too good."
        )
        lines.append(
            "The weights were converted, and run in JAX with the preprocessing stated above, on the images as this "
            "data set stores them. It is not its authors' program; their published numbers may differ."
        )
        if facts["ensemble"]:
            lines.append(
                f"An ensemble ({facts['ensemble']}) is to be compared with ensembles. Retrieval, negation and "
                "counterfactual reports use the mean of its members' similarities."
            )
    if weak := weak_labels_text(results):
        lines.append(f"{weak}. Such scores say how well images and reports agree, not how well a finding is seen.")
    primary = results["zero_shot"]["primary"]
    if primary is not None:
        few = [
            finding["name"]
            for finding in results["zero_shot"]["sources"][primary]["findings"]
            if finding["positives"] < results["zero_shot"]["few_positives"] and not finding["note"]
        ]
        if few:
            lines.append(
                f"Fewer than {results['zero_shot']['few_positives']} positives, so hardly more than a hint: "
                f"{', '.join(few)}."
            )
    if any(data["name"] == "phantom" for data in results["data"]["sets"]):
        lines.append(
            "The phantom is drawn by a program. Scores on it show that the method and this code work; they say nothing "
            "about patients."
        )
    return lines
