"""The model card of an evaluated checkpoint, in Markdown: intended use, data, audit, metrics, limits."""

from collections.abc import Mapping
from typing import Any

import mmclip_jax
from mmclip_jax.data.leakage import audit
from mmclip_jax.evaluate import registry
from mmclip_jax.evaluate.base import Results
from mmclip_jax.evaluate.report.notes import about, classifier_facts, external_facts, honesty, start_facts
from mmclip_jax.inference.classifier import KEY
from mmclip_jax.inference.stamp import RESEARCH_ONLY, describe, describe_classifier, stamp_of, stamp_of_classifier

CARD_FILE = "model_card.md"


def render(results: Results) -> str:
    """The card of what `run.evaluate_checkpoint` returned."""
    lines = [*_head(results), "", "## Training data", "", *_training(results), "", *_numbers(results)]
    limits = honesty(results, registry.limits(results))
    return "\n".join([*lines, "", "## Limits", "", *(f"- {line}" for line in limits), ""])


def unscored(run: str, step: int, model: Any, manifest: Mapping[str, Any]) -> str:
    """The card of a checkpoint that nobody has evaluated: no numbers; model: its settings."""
    tuned = manifest.get(KEY)
    described = describe_classifier(model, tuned) if tuned else describe(model)
    results: Results = {
        "checkpoint": {"run": run, "step": step, "model": described, "external": None, "classifier": tuned},
        "software": {"mmclip_jax": mmclip_jax.__version__},
        "exposure": manifest.get("exposure"),
        "init": manifest.get("init"),
    }
    lines = [*_head(results), "", "## Training data", "", *_training(results), "", "## Evaluation", ""]
    lines += ["Not evaluated by `mmclip evaluate` when this card was written: nothing is known of its scores."]
    learnt = (stamp_of_classifier if tuned else stamp_of)(manifest).domain
    lines += ["", "## Limits", "", f"- Learnt from {learnt}.", f"- {RESEARCH_ONLY}"]
    return "\n".join([*lines, ""])


def _head(results: Results) -> list[str]:
    checkpoint = results["checkpoint"]
    return [
        f"# Model card: {checkpoint['run'] or 'unnamed run'}"
        + ("" if checkpoint["external"] else f", step {checkpoint['step']:,}"),
        "",
        f"{'Scored by ' if checkpoint['external'] else ''}mmclip-jax {results['software']['mmclip_jax']}; "
        f"{checkpoint['model']}.",
        "",
        *(f"- {what}: {value}" for what, value in external_facts(results) if what != "Trained on"),
        *(f"- {what}: {value}" for what, value in classifier_facts(results) + start_facts(results)),
        *([""] if checkpoint["external"] or checkpoint.get("classifier") or results.get("init") else []),
        "## Intended use",
        "",
        f"Research on {'classification' if checkpoint.get('classifier') else 'language-image pre-training'} for chest "
        "radiographs. Not for diagnosis, triage or any decision on a patient. Scores rank images of one source; they "
        "were not validated in a clinic.",
    ]


def _training(results: Results) -> list[str]:
    checkpoint, exposure, lines = results["checkpoint"], results["exposure"], []
    if exposure:
        for source, parts in exposure.get("sources", {}).items():
            labels = ", ".join(exposure.get("label_kinds", {}).get(source, ())) or "none"
            lines.append(
                f"- {source}: {parts.get('paired', 0):,} images with reports, {parts.get('unpaired', 0):,} without; "
                f"labels that became texts: {labels}"
            )
    elif checkpoint["external"]:
        stated = checkpoint["external"]["trained_on"]
        lines.append(stated or "Unknown: not trained by this software.")
    else:
        lines.append("The checkpoint does not say what it was trained on.")
    return lines


def _numbers(results: Results) -> list[str]:
    data = results["data"]
    sets = "; ".join(f"{s['name']} {s['version']} (contents {s['fingerprint'][:12]})" for s in data["sets"])
    lines = [
        "## Evaluation",
        "",
        f"{data['rows']:,} images of {data['patients']:,} patients, {data['split']} split of {sets or 'memory'}.",
        "",
        *(f"- {line}" for line in registry.lines(results)),
        f"- Audit: {audit.text(results['audit'])}",
        "",
        f"| measure | value ({100 * about(results).level:g} % interval) | |",
        "|---|---|---|",
    ]
    for card in registry.cards(results):
        lines.append(f"| {card.title} | {f'{card.value} {card.beside}'.strip()} | {'; '.join(card.lines)} |")
    return [*lines, *(line for each in registry.EVALUATIONS for line in each.tables(results))]
