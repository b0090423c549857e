"""Drawing the text of a training row: a report, some of its sentences, or a prompt made from kinds.

Everything here is a pure function of the example and of the generator's state. A paired row never looks at labels: its
prompts ("bridges") come from what its own report says.
"""

import bisect
import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mmclip_jax.data.builders.labels import Beside, settle_no_finding
from mmclip_jax.data.schema import Example, LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.text import entities as entity_finder
from mmclip_jax.text import flips as flip_lib
from mmclip_jax.text import prompts
from mmclip_jax.text.schema import NEW_SENTENCE, Entity

NO_FINDING = "no_finding"
# The text of an unpaired image of which nothing is known: true of every row, and states nothing.
NEUTRAL_TEXT = "Chest radiograph."

_ANCESTORS = {kind: frozenset(prompts.ancestors(kind)) for kind in prompts.KINDS}
_DISEASES = frozenset(kind for kind in prompts.KINDS if kind != NO_FINDING and not prompts.is_device(kind))
_NARROWER = {kind: frozenset(k for k in prompts.KINDS if kind in prompts.implied((k,))) for kind in prompts.KINDS}
_KIND_NUMBER = {kind: number for number, kind in enumerate(prompts.KINDS)}
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\bdr\.)(?<!\bvs\.)(?<!\be\.g\.)(?<!\bi\.e\.)\s+|\n\s*\n", re.IGNORECASE)
_LINE_END = re.compile(rf"\n[ \t]*(?={NEW_SENTENCE.pattern})")
_LIST_NUMBER = re.compile(r"(?:\(?\d{1,2}[.)]\s*)+")


@dataclasses.dataclass(frozen=True)
class DrawnText:
    """A row's text and what it states.

    entities: in order of start, offsets in `text`. present, absent: kinds stated with that polarity, disjoint.
    text_key: equal for texts that mean the same (see `prompt_key`, `report_key`); study_key: equal within a study.
    prompt: the text was made from kinds, not taken from a report.
    """

    text: str
    entities: tuple[Entity, ...]
    present: tuple[str, ...]
    absent: tuple[str, ...]
    text_key: str
    study_key: str
    prompt: bool


def draw_text(example: Example, rng: np.random.Generator, data: Any) -> DrawnText:
    """Draws the text of a training row.

    A paired row gets, with probability `data.bridge`, a prompt from its own report's kinds (if the report affirms a
    kind, or affirms nothing at all: then a "no finding" prompt), else its report, of which with probability
    `data.sentence_subset` only a shuffled random 1..n sentences. An unpaired row gets a prompt from its labels. Each
    prompt states a random non-empty subset of the positives (all of them half of the time) and up to
    `data.max_negated` negatives; from labels, with probability `data.deny_alone`, negatives and nothing else.

    Args:
      example: with entities that were found in its report; its image is not looked at.
      rng: where the draws come from.
      data: has the attributes bridge, max_negated, deny_alone, sentence_subset, share_no_finding (`config.data`).

    Raises:
      UserError: a label is no finding of the vocabulary.
    """
    if example.part == "unpaired":
        return _from_labels(example, rng, data.max_negated, data.deny_alone)
    # Both draws are made whatever comes of them, so that one probability does not shift the other's draws.
    bridge, subset = rng.random(2)
    if bridge < data.bridge:
        affirmed, negated = report_kinds(example.entities)
        if affirmed:
            return _prompt(example, rng, *_choose(affirmed, negated, rng, data.max_negated))
        if is_normal(example.entities):
            return _prompt(example, rng, (NO_FINDING,), ())
    return _report(example, rng if subset < data.sentence_subset else None, data.share_no_finding)


def flipped(drawn: DrawnText, rng: np.random.Generator, flips: Sequence[str]) -> str:
    """A row's text with one thing turned round, "" where nothing can be: the hard negative of its image.

    Kinds of flips and findings are tried in random order; see `flips.flip_report`. Prompts are left alone: others of
    the batch say the opposite of them.
    """
    if drawn.prompt:
        return ""
    findings = flip_lib.findings_of(drawn.entities)
    for number in rng.permutation(len(flips)):
        order = [findings[i] for i in rng.permutation(len(findings))]
        changed = flip_lib.flip_report(drawn.text, drawn.entities, flips[number], order).text
        if changed is not None:
            return changed
    return ""


def full_text(example: Example, share_no_finding: bool = True) -> DrawnText:
    """The text of an evaluation row, the same at every call.

    It is the whole report; for an unpaired image a prompt that states all its positives (where there are none, all its
    absences), in a template that the example's id decides.
    """
    if example.part == "paired":
        return _report(example, None, share_no_finding)
    seed = int.from_bytes(hashlib.blake2b(example.id.encode(), digest_size=8).digest(), "little")
    present, absent = _known(example)
    if present:
        absent = ()
    return _prompt(example, np.random.default_rng(seed), present, absent)


def report_kinds(entities: Iterable[Entity]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(affirmed, negated) kinds of a report, each in the order of `prompts.KINDS`, without "no_finding".

    A kind that is both affirmed and negated is affirmed, and so is a broader kind of one that is affirmed.
    """
    affirmed: set[str] = set()
    negated: set[str] = set()
    for entity in entities:
        if entity.kind and entity.kind != NO_FINDING:
            (negated if entity.negated else affirmed).add(entity.kind)
    return _in_order(affirmed), _in_order(_without_implied(negated, affirmed))


def is_normal(entities: Sequence[Entity]) -> bool:
    """Whether a report affirms no observation and no device, of any kind or none ("no finding" aside).

    A report in which no entity was found at all is not called normal: it may be in a language that nobody searched.
    """
    return len(entities) > 0 and not any(
        entity.label in ("observation", "device") and not entity.negated and entity.kind != NO_FINDING
        for entity in entities
    )


def stated(present: Iterable[str], absent: Iterable[str]) -> np.ndarray:
    """int8 [K] over `prompts.KINDS`: +1 stated present, -1 stated absent, 0 not stated."""
    vector = np.zeros(len(prompts.KINDS), np.int8)
    for kind in absent:
        vector[_KIND_NUMBER[kind]] = -1
    for kind in present:
        vector[_KIND_NUMBER[kind]] = 1
    return vector


def known(example: Example) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(kinds known to be there, kinds known not to be there) of an image: by its report or its labels, in order.

    Besides what they say: the broader kinds that a present one shows (`prompts.implied`); the narrower ones of one
    that is absent; every disease is absent with "no finding", and "no finding" with a disease.
    """
    if example.part == "paired":
        present, absent = report_kinds(example.entities)
        if is_normal(example.entities):
            present = (NO_FINDING, *present)
    else:
        present, absent = _known(example)
    there = {*present, *prompts.implied(present)}
    gone = set(absent)
    if NO_FINDING in there:
        gone.update(_DISEASES)
    elif there & _DISEASES:
        gone.add(NO_FINDING)
    gone = gone.union(*(_NARROWER[kind] for kind in gone))
    return _in_order(there), _in_order(gone - there)


def stable_hash(key: str) -> int:
    """A signed 32-bit number that is the same on every machine and in every process (Python's `hash` is salted)."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "little", signed=True)


def text_ids(drawn: DrawnText) -> np.ndarray:
    """int32 [2]: hashes of the study and of what the text means. Rows match if either column is equal."""
    return np.array((stable_hash(drawn.study_key), stable_hash(drawn.text_key)), np.int32)


def prompt_key(present: Sequence[str], absent: Sequence[str]) -> str:
    """The key of a prompt: its kinds with their polarity, whatever template was drawn; one key if it states nothing."""
    return "prompt\0" + (prompts.meaning(present, absent) if present or absent else "")


def report_key(sentences: Iterable[str]) -> str:
    """The key of a report: its sentences in lower case with single spaces, sorted."""
    return "report\0" + "\n".join(sorted(" ".join(sentence.lower().split()) for sentence in sentences))


def sentence_spans(text: str, entities: Sequence[Entity] = (), section_end: int = 0) -> list[tuple[int, int]]:
    """(start, end) of each sentence of a report, in order, without the white space between them.

    A sentence ends at ".", "!" or "?" before white space, at an empty line, at a line end before what begins a new
    sentence or an item of a list (as `entities.find_entities` has it, and `reports` stores texts), and at `section_end`
    (where the findings end, 0 for none). Any other line end does not end one: many reports are wrapped. A list number
    stays with what follows it, and no entity is cut.
    """
    cuts = [match.span() for match in _SENTENCE_END.finditer(text)]
    if "\n" in text:
        cuts = sorted({*cuts, *(match.span() for match in _LINE_END.finditer(text))})
    if 0 < section_end < len(text):
        cuts = sorted({*cuts, (section_end, section_end)})
    starts = [entity.start for entity in entities]
    spans: list[tuple[int, int]] = []
    begin = _after_space(text, 0)
    for cut, resume in (*cuts, (len(text), len(text))):
        if cut < len(text):
            before = bisect.bisect_left(starts, cut) - 1
            if (before >= 0 and entities[before].end > cut) or _LIST_NUMBER.fullmatch(text, begin, cut):
                continue
        stop = begin + len(text[begin:cut].rstrip())
        if stop > begin:
            spans.append((begin, stop))
            begin = _after_space(text, resume)
    return spans


def _after_space(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def _report(example: Example, rng: np.random.Generator | None, share_no_finding: bool) -> DrawnText:
    """The whole report, or, given a generator, a random 1..n of its sentences in random order."""
    text, entities = example.text, example.entities
    normal = is_normal(entities)
    spans = sentence_spans(text, entities, len(example.findings.strip()))
    if rng is not None and len(spans) > 1:
        number = int(rng.integers(1, len(spans) + 1))
        spans = [spans[i] for i in rng.permutation(len(spans))[:number]]
    sentences = [text[start:end] for start, end in spans]
    if rng is not None:
        text, entities = " ".join(sentences), _moved(entities, spans)
    present, absent = report_kinds(entities)
    # Part of a report that affirms something may affirm nothing: it does not say "no finding" then, unless in words.
    if normal or (is_normal(entities) and any(entity.kind == NO_FINDING and not entity.negated for entity in entities)):
        present = (NO_FINDING,)
    if normal and share_no_finding:
        text_key = prompt_key((NO_FINDING,), ())
    else:
        text_key = report_key(sentences)
    return DrawnText(text, tuple(entities), present, absent, text_key, _study_key(example), prompt=False)


def _moved(entities: Sequence[Entity], spans: Sequence[tuple[int, int]]) -> tuple[Entity, ...]:
    """The entities within the pieces `spans` of a text, at their places once the pieces are joined by one space."""
    moved: list[Entity] = []
    at = 0
    for start, end in spans:
        shift = at - start
        moved.extend(
            Entity(entity.start + shift, entity.end + shift, entity.text, entity.label, entity.negated, entity.kind)
            for entity in entities
            if start <= entity.start and entity.end <= end
        )
        at += end - start + 1
    return tuple(moved)


def _from_labels(example: Example, rng: np.random.Generator, max_negated: int, deny_alone: float) -> DrawnText:
    present, absent = _known(example)
    if deny_alone and absent and rng.random() < deny_alone:  # without it no draw, which would shift the others
        present = ()
    if present:
        present, absent = _choose(present, absent, rng, max_negated)
    elif absent:
        number = int(rng.integers(1, min(max(max_negated, 1), len(absent)) + 1))
        absent = _pick(absent, number, rng)
    return _prompt(example, rng, present, absent)


def _known(example: Example) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(kinds labelled present, kinds labelled absent).

    "no_finding" is among the former if it is labelled and no disease is; it is never among the latter.
    """
    for kind in example.labels:
        if kind not in _KIND_NUMBER:
            raise UserError(
                f"a record of {example.source}: label {kind!r} is no finding of the vocabulary; "
                "build the data set again, or add the finding to the vocabulary"
            )
    present = {kind for kind, state in example.labels.items() if state == LabelState.PRESENT}
    absent = {kind for kind, state in example.labels.items() if state == LabelState.ABSENT}
    present = settle_no_finding(present, Beside.BELIEVE)
    return _in_order(present), _in_order(_without_implied(absent - {NO_FINDING}, present))


def _choose(
    positives: Sequence[str], negatives: Sequence[str], rng: np.random.Generator, max_negated: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A non-empty subset of the positives (all with probability 1/2) and 0..max_negated of the negatives.

    "No finding" says of every negative what it says, so none goes with it.
    """
    every, number_negated = rng.random() < 0.5, int(rng.integers(0, max_negated + 1))
    number = len(positives) if every else int(rng.integers(1, len(positives) + 1))
    chosen = _pick(positives, number, rng)
    if NO_FINDING in chosen:
        return chosen, ()
    return chosen, _pick(negatives, min(number_negated, len(negatives)), rng)


def _pick(kinds: Sequence[str], number: int, rng: np.random.Generator) -> tuple[str, ...]:
    if number == len(kinds):
        return tuple(kinds)
    if number == 0:
        return ()
    return tuple(kinds[i] for i in sorted(rng.permutation(len(kinds))[:number]))


def _prompt(example: Example, rng: np.random.Generator, present: tuple[str, ...], absent: tuple[str, ...]) -> DrawnText:
    text = prompts.training_prompt(rng, present, absent) if present or absent else NEUTRAL_TEXT
    return DrawnText(
        text, _entities_of(text), present, absent, prompt_key(present, absent), _study_key(example), prompt=True
    )


@functools.lru_cache(maxsize=16384)
def _entities_of(prompt: str) -> tuple[Entity, ...]:
    return tuple(entity_finder.find_entities(prompt))


def _study_key(example: Example) -> str:
    return f"study\0{example.source}\0{example.study or example.id}"


def _without_implied(absent: set[str], present: set[str]) -> set[str]:
    """Absent kinds that do not contradict the present ones: neither the same nor a broader kind ("no lung lesion")."""
    return absent.difference(present, *(_ANCESTORS[kind] for kind in present))


def _in_order(kinds: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(kinds, key=_KIND_NUMBER.__getitem__))
