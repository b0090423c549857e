"""A report with one thing turned round: a finding's polarity, its side or its severity.

A flip changes the text itself, and is kept only if the reader of reports (`find_entities`) then finds the same entities
with the same polarity, but for the one that was flipped. The edits are English.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mmclip_jax.text.entities import find_entities
from mmclip_jax.text.schema import Entity

FLIPS = ("polarity", "side", "severity")
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
_WORD = re.compile(r"[A-Za-z]+")
_AFFIRMED = {"no": "", "without": "with "}


class Flipped(NamedTuple):
    """A text with one thing turned round.

    text: None if nothing could be turned; entity: number of the finding, -1 for none; tried: there was one to try.
    """

    text: str | None
    entity: int
    tried: bool


def findings_of(entities: Sequence[Entity]) -> list[int]:
    """The numbers of the entities that a flip may concern: observations and devices of a known kind."""
    return [n for n, e in enumerate(entities) if e.label in ("observation", "device") and e.kind]


def flip_report(text: str, entities: Sequence[Entity], flip: str, order: Sequence[int]) -> Flipped:
    """Turns one thing of the first finding that allows it.

    Args:
      text: a report. entities: those found in it. flip: of `FLIPS`. order: numbers of findings, in which to try them;
        side and severity are tried of affirmed ones only, and side only of those that are not on both sides.
    """
    tried = False
    for n in order:
        entity = entities[n]
        if flip != "polarity" and entity.negated:
            continue
        if flip == "side" and _on_both_sides(text, entities, entity):
            continue
        changed = _EDITS[flip](text, entity)
        tried = tried or flip == "polarity" or changed is not None
        if changed is not None and _is_clean(text, changed, entities, n, flip):
            return Flipped(changed, n, True)
    return Flipped(None, -1, tried)


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
    words = _nearest(text, entity, opposites)
    if not words:
        return None
    new = opposites[words[0].group().lower()]
    new = new.capitalize() if words[0].group()[0].isupper() else new
    return text[: words[0].start()] + new + text[words[0].end() :]


def _nearest(text: str, entity: Entity, opposites: dict[str, str]) -> list[re.Match[str]]:
    """The words of `opposites` in the finding's sentence, the nearest first."""
    words = [m for m in _WORD.finditer(text, *_sentence_of(text, entity)) if m.group().lower() in opposites]
    return sorted(words, key=lambda m: abs(m.start() + m.end() - entity.start - entity.end))


def _on_both_sides(text: str, entities: Sequence[Entity], entity: Entity) -> bool:
    """Whether a report has a finding on both sides: with its side turned round it would say what is true."""
    others = [entities[n] for n in findings_of(entities) if entities[n].kind != entity.kind]
    sides: set[str] = set()
    for each in entities:
        if each.kind == entity.kind and not each.negated:
            words = [m.group().lower() for m in _nearest(text, each, SIDES)]
            start, end = _sentence_of(text, each)
            # Beside another finding the further words may be that one's.
            sides.update(words[:1] if any(start <= other.start < end for other in others) else words)
    return len(sides) > 1


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
