"""Writes report.html (one file, pictures inline), results.json and the files that evaluations have of their own."""

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmclip_jax.data.leakage import audit, numbering
from mmclip_jax.evaluate import registry
from mmclip_jax.evaluate.base import EVALUATED, Part, Results, Section
from mmclip_jax.evaluate.evaluations.grounding import points_inside
from mmclip_jax.evaluate.evaluations.localization import inside_boxes
from mmclip_jax.evaluate.report import figures, notes
from mmclip_jax.evaluate.report.cases import Case
from mmclip_jax.evaluate.report.formats import finite, interval, number
from mmclip_jax.evaluate.rows import uncertain_text
from mmclip_jax.inference import pictures
from mmclip_jax.inference.exposure import (
    AS_STATED,
    NOT_OURS,
    NOT_TUNED,
    OTHER_SOURCE,
    REPORT_ONLY,
    SAME_SOURCE,
    TUNED_OTHER,
    TUNED_SAME,
)

if TYPE_CHECKING:
    import jinja2

_FIRST_CASES = 3  # at the head of the page; the others are folded away
REPORT_FILE, RESULTS_FILE = "report.html", "results.json"

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
_STAMP_CLASSES = {
    REPORT_ONLY: "report",
    OTHER_SOURCE: "other",
    SAME_SOURCE: "same",
    TUNED_OTHER: "other",
    TUNED_SAME: "same",
}
# For table cells; the legend and the cell's title hold the whole stamp.
_STAMP_SHORT = {
    OTHER_SOURCE: "other source's labels",
    NOT_OURS: "unknown",
    TUNED_SAME: "this source's labels",
    TUNED_OTHER: "other source's labels",
    NOT_TUNED: "no labels",
    REPORT_ONLY + AS_STATED: "no labels, as stated",
    OTHER_SOURCE + AS_STATED: "other source's labels, as stated",
    SAME_SOURCE + AS_STATED: "same source's labels, as stated",
}


def write_report(
    out_dir: str | os.PathLike[str],
    results: Results,
    found: Mapping[str, Any],
    *,
    cases: Sequence[Case] = (),
    curves: Sequence[Mapping[str, Any]] = (),
    show_text: bool = False,
) -> pathlib.Path:
    """Writes report.html, results.json and the files of the evaluations; returns the path of the page.

    Args:
      out_dir: the directory to write into.
      results: of `run.evaluate_checkpoint`.
      found: what each evaluation found besides, by name.
      cases: the cases to show.
      curves: the records of metrics.jsonl.
      show_text: whether reports and record ids appear in the HTML.
    """
    out = pathlib.Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(finite(results), indent=1, ensure_ascii=False) + "\n"
    (out / RESULTS_FILE).write_text(text, encoding="utf-8")
    for evaluation in registry.EVALUATIONS:
        evaluation.write(out, found.get(evaluation.name))
    page = render(results, found, cases=cases, curves=curves, show_text=show_text)
    (out / REPORT_FILE).write_text(page, encoding="utf-8")
    return out / REPORT_FILE


def render(
    results: Results,
    found: Mapping[str, Any],
    *,
    cases: Sequence[Case] = (),
    curves: Sequence[Mapping[str, Any]] = (),
    show_text: bool = False,
) -> str:
    """The HTML report as a string; arguments as for `write_report`."""
    parts = [part for each in registry.EVALUATIONS for part in each.parts(results, found.get(each.name))]
    sections = {part.section: _body(part.section, parts, results) for part in parts}
    evaluated = sections.pop(EVALUATED, "")
    charts, more = _charts(curves)
    menu = [
        *([("cases", "Cases")] if cases else []),
        (EVALUATED.id, EVALUATED.title),
        *((section.id, section.title) for section in sections),
        *([("training", "Training")] if charts else []),
        ("honesty", "Reading the numbers"),
    ]
    run = results["checkpoint"]["run"]
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            r=results,
            title=("Evaluation" if results["checkpoint"]["external"] else "MMCLIP evaluation")
            + (f": {run}" if run else ""),
            menu=menu,
            cards=registry.cards(results),
            about=notes.about(results),
            external_facts=notes.external_facts(results),
            start_facts=notes.classifier_facts(results) + notes.start_facts(results),
            weak_labels=notes.weak_labels_text(results),
            audited=audit.text(results["audit"]),
            trained_on=_trained_on(results),
            evaluated=evaluated,
            sections=sections,
            charts=charts,
            more_charts=more,
            first_cases=_FIRST_CASES,
            cases=[_pictures(case) for case in cases],
            show_text=show_text,
            honesty=notes.honesty(results, registry.limits(results)),
        )
    )


def _body(section: Section, parts: Sequence[Part], results: Results) -> str:
    """The HTML of a section: the part of its own evaluation with those of guests inside, or those of guests alone."""
    import markupsafe

    def rendered(part: Part, guests: str) -> markupsafe.Markup:
        page = page_environment(part.template.parent).get_template(part.template.name)
        return markupsafe.Markup(page.render(r=results, guests=guests, **part.values))  # escaped by the template

    here = [part for part in parts if part.section == section]
    guests = markupsafe.Markup("\n").join(rendered(part, "") for part in here if part.guest)
    own = markupsafe.Markup("\n").join(rendered(part, guests) for part in here if not part.guest)
    return own if guests in own else own + guests  # a template may have no place for them


def page_environment(folder: pathlib.Path | None = None) -> "jinja2.Environment":
    """Jinja's environment of the pages, with the filters that write numbers, intervals and stamps.

    folder: where templates are found by name, before those of resources/.
    """
    import jinja2

    own = pathlib.Path(__file__).parent / "resources"
    loader = jinja2.FileSystemLoader([own] if folder is None else [folder, own])
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {
        "uncertain_text": uncertain_text,
        "number": number,
        "interval": interval,
        "mark": _mark,
        "stamp_class": lambda stamp: _STAMP_CLASSES.get(stamp, ""),
        "stamp_short": lambda stamp: _STAMP_SHORT.get(stamp, stamp),
    }
    return environment


def _mark(entry: Mapping[str, Any], span: tuple[float, float]) -> str:
    """An AUROC with its interval as a picture."""
    import markupsafe

    if entry["auroc"] is None or not math.isfinite(entry["auroc"]):
        return ""
    low, high = entry["auroc_interval"]
    return markupsafe.Markup(figures.interval_mark(entry["auroc"], low, high, span, 0.5))


def _trained_on(results: Results) -> dict[str, dict[str, int]]:
    """{scored source: {"paired", "unpaired"}}: training images of the source, or of one that holds images of it."""
    counts = (results["exposure"] or {}).get("sources", {})
    return {
        source: {
            part: sum(seen.get(part, 0) for name, seen in counts.items() if numbering.is_same_source(name, source))
            for part in ("paired", "unpaired")
        }
        for source in results["data"]["sources"]
    }


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
        "overlay_uri": figures.png_uri(pictures.overlay(case.image, case.response, case.boxes)),
        "masked_uri": figures.png_uri(pictures.masked_image(case.image, case.masked)),
        "reconstruction_uri": figures.png_uri(pictures.as_bytes(case.reconstruction)),
    }
