"""The page of a comparison, and its text for a terminal."""

import math
import string
from collections.abc import Mapping
from typing import Any

import mmclip_jax
from mmclip_jax.data.leakage import audit
from mmclip_jax.evaluate import registry
from mmclip_jax.evaluate.report import figures
from mmclip_jax.evaluate.report.comparison import FEWEST_OF_MEAN, FEWEST_PATIENTS
from mmclip_jax.evaluate.report.formats import interval, number
from mmclip_jax.evaluate.report.page import page_environment


def render(result: Mapping[str, Any]) -> str:
    """The HTML page of what `comparison.compare` returned."""
    import markupsafe

    span = _span(result)
    environment = page_environment()

    def mark(entry: Mapping[str, Any]) -> Any:
        if not math.isfinite(entry["difference"]):
            return ""
        low, high = entry["interval"]
        return markupsafe.Markup(figures.interval_mark(entry["difference"], low, high, span, 0.0))

    environment.filters["difference_mark"] = mark
    return environment.get_template("compare.html.j2").render(
        c=result,
        letters=string.ascii_uppercase,
        columns=dict(column for each in registry.EVALUATIONS for column in each.compared),
        audits=[audit.text(each["audit"]) for each in result["runs"]],
        span=[number(end, 2) for end in span],
        fewest=FEWEST_PATIENTS,
        fewest_of_mean=FEWEST_OF_MEAN,
        version=mmclip_jax.__version__,
    )


def as_text(result: Mapping[str, Any]) -> str:
    """The runs, the findings of the headline's source, and their mean, by AUROC."""
    runs = result["runs"]
    lines = [f"  {letter}  {each['name']}" for letter, each in zip(string.ascii_uppercase, runs, strict=False)]
    source = result["primary"]
    if source is None:
        return "\n".join([*lines, "No finding has both classes, so there is nothing to compare."])
    entry = result["sources"][source]
    lines.append(f"AUROC in {source}, {entry['rows']:,} images of {entry['patients']:,} patients:")
    for row in [*entry["findings"], *([entry["macro"]] if "auroc" in entry["macro"] else [])]:
        cells = [f"  {row['name']:<28}"]
        values = row["auroc"]
        for n, (value, difference) in enumerate(zip(values["values"], values["differences"], strict=True)):
            cells.append(f"{string.ascii_uppercase[n]} {number(value)}")
            if difference is not None:
                p = f", Holm {number(difference['p_holm'])}" if math.isfinite(difference["p_holm"]) else ""
                apart = f"{number(difference['difference'])} {interval(difference['interval'])}".strip()
                cells.append(f"[{apart}; p {number(difference['p'])}{p}]")
        lines.append("  ".join(cells) + (f"  ({row['note']})" if row.get("note") else ""))
    protocol = result["protocol"]
    lines.append(f"Protocol: {protocol['title']} ({protocol['name']}, {protocol['digest']})")
    lines.append(f"Uncertain labels: {protocol['uncertain_text']}")
    if result["left_out"]:
        lines.append(f"Not compared, since not all runs have them: {', '.join(result['left_out'])}")
    for letter, each in zip(string.ascii_uppercase, runs, strict=False):
        if each["classifier"]:
            lines.append(f"{letter} is a classifier that was trained on labels; it was not asked by prompts")
        if each["prompts"]:
            lines.append(f"Prompts of {letter}: {each['prompts']}, in place of the protocol's")
        lines.append(f"Audit of {letter}: {audit.text(each['audit'])}")
    return "\n".join(lines)


def _span(result: Mapping[str, Any]) -> tuple[float, float]:
    """A symmetric scale for the differences of AUROC."""
    ends = [
        abs(end)
        for entry in result["sources"].values()
        for row in entry["findings"]
        for difference in row["auroc"]["differences"]
        if difference is not None
        for end in difference["interval"]
        if math.isfinite(end)
    ]
    reach = max(0.05, math.ceil(20 * max(ends, default=0.05)) / 20)
    return -reach, reach
