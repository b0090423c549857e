"""Counterfactual reports: is an image nearer to its report than to the same report with one word turned round?

One thing of a held-out report is flipped: the polarity of a finding ("no pleural effusion" for "pleural effusion"), its
side ("left" for "right") or its severity ("large" for "small"). The image must be nearer to the true report. Everything
else is equal, so a model that matches topics, or style, gets one half.

A flip changes the text itself, and is kept only if the reader of reports (`find_entities`) then finds the same entities
with the same polarity, but for the one that was flipped. Those that cannot be flipped so are counted.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmclip_jax.evaluate.base import REPORTS, TEXTS, Context, Evaluation, Part, Result, Results, template
from mmclip_jax.evaluate.evaluations.trust import TRUST_SECTION
from mmclip_jax.evaluate.model import Encoder
from mmclip_jax.evaluate.rows import Progress, Split, chunked, in_order, thinned
from mmclip_jax.evaluate.stats.bootstrap import DEFAULT, Bootstrap
from mmclip_jax.text import prompts
from mmclip_jax.text.entities import find_entities
from mmclip_jax.text.schema import Entity

FLIPS = ("polarity", "side", "severity")
MAX_REPORTS = 2000
SIDES = {"left": "right", "right": "left"}
SEVERITIES = {
    "small": "large", "tiny": "large", "minimal": "severe", "mild": "severe", "slight": "severe", "trace": "large",
    "large": "small", "massive": "small", "severe": "mild", "extensive": "minimal", "marked": "mild",
}  # fmt: skip

# What may stand right before the noun phrase of a finding, with what takes its place when the finding is flipped.
_ARTICLE = re.compile(r"\b(?:an?|the|some)\s+$", re.IGNORECASE)
_DENIAL = re.compile(r"\b(no|without)\s+((?:evidence of|acute|definite|focal|new)\s+)?$", re.IGNORECASE)
_BEFORE_NOUN = re.compile(
    r"\b(?:is|are|was|were|has|have|with|of|shows?|showing|demonstrates?|reveals?|suggests?|represents?|indicates?)\s+$",
    re.IGNORECASE,
)
_AFFIRMED = {"no": "", "without": "with "}


@dataclasses.dataclass(frozen=True)
class Pair:
    """A report and its flipped copy: what was flipped (of `FLIPS`), of which kind, whether the report affirms it."""

    row: int
    flip: str
    kind: str
    affirmed: bool
    true: str
    flipped: str


def flip_polarity(text: str, entity: Entity) -> str | None:
    """The text with a finding denied that was affirmed, or affirmed that was denied; None where no simple edit does it.

    "A small effusion" and "no small effusion", "without effusion" and "with effusion", "no evidence of effusion" and
    "evidence of effusion".
    """
    at = _phrase_start(text, entity)
    before, phrase = text[:at], text[at:]
    match = (_DENIAL if entity.negated else _ARTICLE).search(before)
    start = match.start() if match else at
    begins = not text[:start].strip() or text[:start].rstrip()[-1] in ".;:!?" or "\n" in text[:start][-2:]
    if entity.negated:
        if match is None:
            return None
        new = _AFFIRMED[match[1].lower()] + (match[2] or "") + phrase
        return text[:start] + (new[0].upper() + new[1:] if begins else new)
    if match is None and not begins and not _BEFORE_NOUN.search(before):
        return None  # in the middle of a phrase: "prior no surgery"
    if begins:  # but "CABG" stays as it is
        phrase = phrase[0].lower() + phrase[1:] if phrase[1:2].islower() else phrase
    return text[:start] + ("No " if begins else "no ") + phrase


def flip_word(text: str, entity: Entity, opposites: dict[str, str]) -> str | None:
    """The text with the word of `opposites` nearest to the finding, in its sentence, replaced by its opposite."""
    start, end = _sentence_of(text, entity)
    words = [m for m in re.finditer(r"[A-Za-z]+", text[start:end]) if m.group().lower() in opposites]
    if not words:
        return None
    center = (entity.start + entity.end) / 2 - start
    word = min(words, key=lambda m: abs((m.start() + m.end()) / 2 - center))
    new = opposites[word.group().lower()]
    new = new.capitalize() if word.group()[0].isupper() else new
    return text[: start + word.start()] + new + text[start + word.end() :]


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
        findings = [n for n, e in enumerate(entities) if e.label in ("observation", "device") and e.kind]
        order = np.random.default_rng([seed, row]).permutation(len(findings))
        for flip in FLIPS:
            pair, tried = None, False
            for n in (findings[i] for i in order):
                entity = entities[n]
                if flip != "polarity" and entity.negated:
                    continue
                changed = _EDITS[flip](text, entity)
                tried = tried or flip == "polarity" or changed is not None
                if changed is not None and _is_clean(text, changed, entities, n, flip):
                    pair = Pair(row, flip, entity.kind, not entity.negated, text, changed)
                    break
            counts[flip]["candidates"] += tried
            counts[flip]["flipped"] += pair is not None
            pairs += [pair] if pair is not None else []
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


_EDITS: dict[str, Callable[[str, Entity], str | None]] = {
    "polarity": flip_polarity,
    "side": lambda text, entity: flip_word(text, entity, SIDES),
    "severity": lambda text, entity: flip_word(text, entity, SEVERITIES),
}


def _is_clean(text: str, changed: str, before: Sequence[Entity], flipped: int, flip: str) -> bool:
    """Whether nothing but what was to be flipped has changed for the reader of reports."""
    if changed == text:
        return False
    after = find_entities(changed)
    if len(after) != len(before):
        return False
    for n, (old, new) in enumerate(zip(before, after, strict=True)):
        turned = flip == "polarity" and n == flipped
        swapped = flip != "polarity" and old.label == "modifier"
        if (old.kind, old.label) != (new.kind, new.label) or (old.negated != new.negated) != turned:
            return False
        if not swapped and old.text.lower() != new.text.lower():
            return False
    return True


def _sentence_of(text: str, entity: Entity) -> tuple[int, int]:
    start = max(text.rfind(mark, 0, entity.start) for mark in ".;\n") + 1
    ends = [at for mark in ".;\n" if (at := text.find(mark, entity.end)) >= 0]
    return start, min(ends, default=len(text))


def _phrase_start(text: str, entity: Entity) -> int:
    """Where the modifiers before a finding begin: "small left pleural effusion"."""
    start = entity.start
    sentence = _sentence_of(text, entity)[0]
    modifiers = [e for e in find_entities(text) if e.label == "modifier" and sentence <= e.start < entity.start]
    for modifier in reversed(modifiers):
        if text[modifier.end : start].strip():
            break
        start = modifier.start
    return start


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
