"""Counterfactual reports: is an image nearer to its report than to the same report with one word turned round?

One thing of a held-out report is flipped: the polarity of a finding ("no pleural effusion" for "pleural effusion"), its
side ("left" for "right") or its severity ("large" for "small"). The image must be nearer to the true report. Everything
else is equal, so a model that matches topics, or style, gets one half.

A flip changes the text itself, and is kept only if the reader of reports (`find_entities`) then finds the same entities
with the same polarity, but for the one that was flipped. Those that cannot be flipped so are counted.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmclip_jax.evaluate.base import REPORTS, TEXTS, Context, Evaluation, Part, Result, Results, template
from mmclip_jax.evaluate.evaluations.trust import TRUST_SECTION
from mmclip_jax.evaluate.model import Encoder
from mmclip_jax.evaluate.rows import Progress, Split, chunked, in_order, thinned
from mmclip_jax.evaluate.stats.bootstrap import DEFAULT, Bootstrap
from mmclip_jax.text import prompts
from mmclip_jax.text.entities import find_entities
from mmclip_jax.text.flips import FLIPS, findings_of, flip_report

MAX_REPORTS = 2000


@dataclasses.dataclass(frozen=True)
class Pair:
    """A report and its flipped copy: what was flipped (of `FLIPS`), of which kind, whether the report affirms it."""

    row: int
    flip: str
    kind: str
    affirmed: bool
    true: str
    flipped: str


def pairs_of(split: Split, limit: int = MAX_REPORTS, seed: int = 0) -> tuple[list[Pair], dict[str, dict[str, int]]]:
    """(pairs, {flip: {"candidates", "flipped"}}): of each English report at most one pair a flip, of a random finding.

    Findings are tried in random order until one can be flipped; "candidates" counts the reports that have one to try:
    any finding for the polarity; for side and severity, an affirmed one with such a word in its sentence.
    """
    paired = [row for row, example in enumerate(split.examples) if example.part == "paired" and split.is_english(row)]
    rows = thinned(paired, limit)
    counts = {flip: {"candidates": 0, "flipped": 0} for flip in FLIPS}
    pairs = []
    for row in rows:
        text = split.examples[row].text
        entities = find_entities(text)
        findings = findings_of(entities)
        order = np.random.default_rng([seed, row]).permutation(len(findings))
        for flip in FLIPS:
            found = flip_report(text, entities, flip, [findings[i] for i in order])
            counts[flip]["candidates"] += found.tried
            if found.text is not None:
                entity = entities[found.entity]
                pairs.append(Pair(row, flip, entity.kind, not entity.negated, text, found.text))
                counts[flip]["flipped"] += 1
    return pairs, counts


def evaluate(
    model: Encoder,
    split: Split,
    image_embed: np.ndarray,
    *,
    limit: int = MAX_REPORTS,
    bootstrap: Bootstrap = DEFAULT,
    progress: Progress | None = None,
) -> dict[str, Any] | None:
    """P(v·u_true > v·u_flipped), ties one half, by what was flipped; None if no report can be flipped.

    Args:
      model: gives the embeddings of the texts.
      split: the rows.
      image_embed: [n, E] of the rows.
      limit: of reports.
      bootstrap: of the intervals; its seed also chooses the findings to flip.
      progress: bars.

    Returns (for JSON): "reports", "patients", "counts" (of `pairs_of`), "flips": [{"flip", "pairs", "rate", "interval",
    "ties" (pairs that the model cannot tell apart: it does not read the word, or its text ends before it), "margin"
    (mean of v·u_true - v·u_flipped)}], the polarity once more by what the report says, and "findings": the same by
    "name", of the polarity.
    """
    pairs, counts = pairs_of(split, limit, bootstrap.seed)
    if not pairs:
        return None
    margins = _margins(model, pairs, image_embed, progress)
    patients = split.patients
    groups = np.array([patients[pair.row] for pair in pairs], object)

    def entry(chosen: Sequence[bool]) -> dict[str, Any]:
        return _entry(margins[np.array(chosen)], bootstrap.of(groups[np.array(chosen)]))

    flips = []
    for flip in FLIPS:
        flips.append({"flip": flip, **entry([pair.flip == flip for pair in pairs])})
        if flip == "polarity":
            for name, affirmed in (("polarity: affirmed, now denied", True), ("polarity: denied, now affirmed", False)):
                flips.append({"flip": name, **entry([p.flip == flip and p.affirmed == affirmed for p in pairs])})
    kinds = in_order(pair.kind for pair in pairs if pair.flip == "polarity")
    return {
        "reports": len({pair.row for pair in pairs}),
        "patients": len(set(groups)),
        "counts": counts,
        "flips": flips,
        "findings": [
            {"name": prompts.display_name(kind), **entry([p.flip == "polarity" and p.kind == kind for p in pairs])}
            for kind in kinds
        ],
    }


def _entry(margins: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    """Of pairs with these margins, which may be none."""
    if not len(margins):
        return {"pairs": 0, "rate": float("nan"), "interval": [float("nan")] * 2, "ties": 0, "margin": float("nan")}
    wins = (margins > 0) + 0.5 * (margins == 0)
    rate = float(wins.mean())
    return {
        "pairs": len(margins),
        "rate": rate,
        "interval": bootstrap.rate_interval(rate, bootstrap.ratio(wins)).bounds,
        "ties": int((margins == 0).sum()),
        "margin": float(margins.mean()),
    }


def _margins(model: Encoder, pairs: Sequence[Pair], image_embed: np.ndarray, progress: Progress | None) -> np.ndarray:
    """v·u_true - v·u_flipped of each pair: float64 [pairs]."""
    margins = np.zeros(len(pairs))
    for numbers in chunked(range(len(pairs)), progress, "counterfactual reports"):
        part = [pairs[number] for number in numbers]
        embedded = np.asarray(model.encode_text([p.true for p in part] + [p.flipped for p in part]), np.float64)
        images = image_embed[[pair.row for pair in part]].astype(np.float64)
        margins[numbers] = (images * (embedded[: len(part)] - embedded[len(part) :])).sum(axis=1)
    return margins


class CounterfactualEvaluation(Evaluation[None]):
    """Reports with one thing turned round."""

    name = "counterfactual"
    needs = (TEXTS, REPORTS)

    def run(self, context: Context) -> Result[None]:
        """See `evaluate`."""
        given = context.encoder, context.rows, context.embedded
        return Result(evaluate(*given, bootstrap=context.bootstrap, progress=context.progress))

    def parts(self, results: Results, found: None) -> Sequence[Part]:
        """A table among the reasons to trust the scores."""
        there = results["counterfactual"] and results["trust"]
        return [Part(TRUST_SECTION, template("counterfactual"), guest=True)] if there else ()


COUNTERFACTUAL = CounterfactualEvaluation()
