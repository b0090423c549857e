"""Sentences about an evaluation as a whole, for page, model card and terminal.

results.json keeps the protocol, the level of the intervals and the source of the headline under "zero_shot", though
they are those of the whole evaluation.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmclip_jax.data.leakage import audit
from mmclip_jax.evaluate.base import Results
from mmclip_jax.evaluate.report.formats import number


class About(NamedTuple):
    """What an evaluation was made with: protocol (as in results.json), source of the headline, level and resamples."""

    protocol: Mapping[str, Any]
    source: str | None
    level: float
    resamples: int


def about(results: Results) -> About:
    """Where results.json keeps them."""
    kept = results["zero_shot"]
    return About(kept["protocol"], kept["primary"], kept["level"], kept["resamples"])


def external_facts(results: Results) -> list[tuple[str, str]]:
    """(what, value) of a model of somebody else's, as the report tells it; [] of one of our own."""
    facts = results["checkpoint"]["external"]
    if not facts:
        return []
    rows = results["data"]["rows"]
    files = [f"{each['file']} ({each['bytes']:,} bytes, SHA-256 {each['sha256']})" for each in facts["checkpoints"]]
    enlarged, words = facts.get("enlarged", 0), facts["vocabulary"]
    alone = ", ".join(number(area) for area in results["zero_shot"].get("members", ()))
    lines = [
        ("Another program's model", f"{facts['title']}, {facts['source'] or 'no source given'}"),
        ("Read by", f"spec {facts['spec']} ({facts['digest']}), layout {facts['layout']}"),
        ("Checkpoint" if len(files) == 1 else f"{len(files)} checkpoints", "; ".join(files)),
        ("Ensemble", facts["ensemble"] + (f"; macro AUROC of each alone: {alone}" if alone else "")),
        ("Vocabulary", words and f"{words['file']} (SHA-256 {words['sha256']})"),
        ("Preprocessing", facts["preprocess"] + ", from the stored images"),
        ("Images smaller than its input", f"{enlarged:,} of {rows:,}, which were enlarged" if enlarged else ""),
        ("Prompts", facts["prompts"]),
        ("Scale of probabilities", facts["scale"]),
        ("Trained on", facts["trained_on"] or "unknown: not trained by this software"),
        ("Note", facts["note"]),
    ]
    return [(what, value) for what, value in lines if value]


def start_facts(results: Results) -> list[tuple[str, str]]:
    """(what, value) of weights that the run started from; [] of one that began anew."""
    init = results.get("init")
    if not init:
        return []
    files = [f"{each['file']} ({each['family']}, SHA-256 {each.get('sha256', 'not taken')})" for each in init["files"]]
    learnt = ", ".join(init["trained_on"]) or "unknown"
    return [
        ("Started from", "; ".join(files)),
        ("They were trained on", f"{learnt}, as stated by {init['stated_by']}" if init["trained_on"] else learnt),
    ]


def classifier_facts(results: Results) -> list[tuple[str, str]]:
    """(what, value) of the fine-tuning that made a classifier; [] of any other model."""
    told = results["checkpoint"].get("classifier")
    if not told:
        return []
    sets = "; ".join(f"{s['name']} {s['version']} (contents {s['fingerprint'][:12]})" for s in told["data"].values())
    way = "the whole image encoder learnt" if told["mode"] == "full" else "a linear layer on a frozen encoder"
    chosen, began = told["validation"], told["checkpoint"]
    return [
        (
            "Fine-tuned on",
            f"{told['images']:,} images of {told['patients']:,} patients of {sets} "
            f"({100 * told['fraction']:g} % of training): {way}, {told['task']}, seed {told['seed']}",
        ),
        ("Began with", f"{began['run']}, step {began['step']:,}"),
        (
            "Step and thresholds chosen on",
            f"{chosen['images']:,} validation images of {chosen['patients']:,} patients "
            f"(macro AUROC there {number(chosen['macro_auroc'])}, too good for having been chosen by)",
        ),
        ("Uncertain labels in fine-tuning", told["uncertain"]),
    ]


def why_no_scores(results: Results) -> str:
    """Why no finding could be scored, and what would change that."""
    not_learnt = results["zero_shot"].get("not_learnt")
    if not_learnt and not any(entry["findings"] for entry in results["zero_shot"]["sources"].values()):
        return f"The classifier has no output for any finding that is labelled here: {', '.join(not_learnt)}."
    if results["data"].get("labelled_rows", 1):
        return "No finding has both classes in this split."
    return (
        "No image of this split has a label, and scores by prompts need some: name label columns when you build the "
        "data, or take weak labels made from the reports with --labels-from-reports."
    )


def weak_labels_text(results: Results) -> str:
    """What must be said of labels that were made from reports; "" where there are none."""
    made = results["data"].get("weak_labels", 0)
    if not made:
        return ""
    return (
        f"Weak labels: those of {made:,} of {results['data']['rows']:,} images were read from their own reports by the "
        "entity recogniser. Nobody looked at the images for them, and a finding that a report leaves out is unknown"
    )


def policy_text(results: Results) -> str:
    """Protocol, uncertain labels and audit in a few sentences, for the caption of a table."""
    protocol = results["zero_shot"]["protocol"]
    return (
        f"Protocol {protocol['name']}. Uncertain labels: {protocol['uncertain_text']}. "
        f"Audit: {audit.text(results['audit'])}." + (f" {weak}." if (weak := weak_labels_text(results)) else "")
    )


def honesty(results: Results, limits: Sequence[str]) -> list[str]:
    """What these numbers do not say, as far as it applies here; limits: those of each evaluation."""
    lines = [
        "“Zero-shot” is said only of findings whose labels were never turned into training texts. All other scores by "
        "prompts are prompt-supervised: their labels taught the model, if in other images.",
        f"Audit of these images against what was learnt from: {audit.text(results['audit'])}. Nothing was chosen on "
        "this split here, but a checkpoint or a setting that was chosen by these very numbers makes them too good.",
        "An interval covers the choice of patients, not that of the training seed: two runs differ by more.",
    ]
    if facts := results["checkpoint"]["external"]:
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
    if results["checkpoint"].get("classifier"):
        lines[0] = (
            "The classifier was trained on labels of these findings: none of its scores is zero-shot, and a comparison "
            "with scores by prompts is one of two kinds of supervision."
        )
    if weak := weak_labels_text(results):
        lines.append(f"{weak}. Such scores say how well images and reports agree, not how well a finding is seen.")
    lines += limits
    if any(data["name"] == "phantom" for data in results["data"]["sets"]):
        lines.append(
            "The phantom is drawn by a program. Scores on it show that the method and this code work; they say nothing "
            "about patients."
        )
    return lines
