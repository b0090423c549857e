"""The model card of an evaluated checkpoint, in Markdown: intended use, data, audit, metrics, limits."""

from collections.abc import Mapping
from typing import Any

from mmclip_jax.data.leakage import audit
from mmclip_jax.evaluate.report.page import headline_cards, interval, number, protocol_lines, referee_facts

CARD_FILE = "model_card.md"


def render(results: Mapping[str, Any], limits: list[str]) -> str:
    """The card of what `common.evaluate_checkpoint` returned; `limits` are what its numbers do not say."""
    checkpoint, exposure = results["checkpoint"], results["exposure"]
    scored = results["zero_shot"]
    lines = [
        f"# Model card: {checkpoint['run'] or 'unnamed run'}"
        + ("" if checkpoint["referee"] else f", step {checkpoint['step']:,}"),
        "",
        f"{'Scored by ' if checkpoint['referee'] else ''}mmclip-jax {results['software']['mmclip_jax']}; "
        f"{checkpoint['model']}.",
        "",
        *(f"- {what}: {value}" for what, value in referee_facts(results) if what != "Trained on"),
        *([""] if checkpoint["referee"] else []),
        "## Intended use",
        "",
        "Research on language-image pre-training for chest radiographs. Not for diagnosis, triage or any decision on "
        "a patient. Scores rank images of one source; they were not validated in a clinic.",
        "",
        "## Training data",
        "",
    ]
    if exposure:
        for source, parts in exposure.get("sources", {}).items():
            labels = ", ".join(exposure.get("label_kinds", {}).get(source, ())) or "none"
            lines.append(
                f"- {source}: {parts.get('paired', 0):,} images with reports, {parts.get('unpaired', 0):,} without; "
                f"labels that became texts: {labels}"
            )
    elif checkpoint["referee"]:
        stated = checkpoint["referee"]["trained_on"]
        lines.append(stated or "Unknown: not trained by this software.")
    else:
        lines.append("The checkpoint does not say what it was trained on.")
    data = results["data"]
    sets = "; ".join(f"{s['name']} {s['version']} (contents {s['fingerprint'][:12]})" for s in data["sets"])
    lines += [
        "",
        "## Evaluation",
        "",
        f"{data['rows']:,} images of {data['patients']:,} patients, {data['split']} split of {sets or 'memory'}.",
        "",
        *(f"- {line}" for line in protocol_lines(results)),
        f"- Audit: {audit.text(results['audit'])}",
        "",
        f"| measure | value ({100 * scored['level']:g} % interval) | |",
        "|---|---|---|",
    ]
    for card in headline_cards(results):
        value = f"{card['value']} {card['beside']}".strip()
        lines.append(f"| {card['title']} | {value} | {'; '.join(card['lines'])} |")
    if scored["primary"] is not None:
        lines += ["", f"| finding, {scored['primary']} | positives | AUROC | exposure |", "|---|---|---|---|"]
        for row in scored["sources"][scored["primary"]]["findings"]:
            value = row[scored["score"]]
            area = row["note"] or f"{number(value['auroc'])} {interval(value['auroc_interval'])}".strip()
            lines.append(f"| {row['name']} | {row['positives']:,} | {area} | {row['exposure']} |")
    return "\n".join([*lines, "", "## Limits", "", *(f"- {line}" for line in limits), ""])
