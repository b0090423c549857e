"""Finds medical terms in reports: a lexicon matched as a trie, and sentence-scoped negation."""

import bisect
import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence

from mmclip_jax.text.marks import Role, Sense, marks_pattern, sense_of_mark
from mmclip_jax.text.polarity import ASIDE, STATED, judge
from mmclip_jax.text.schema import Entity
from mmclip_jax.text.vocabulary import LABELS, NO_FINDING, Resources, Term, default, normalise, squeeze

__all__ = ["Entity", "describe_spans", "find_entities", "find_terms"]


def find_entities(text: str, resources: Resources | None = None) -> list[Entity]:
    """The medical terms of a report with their polarity.

    At each place the longest term of the lexicon counts, bounded by non-word characters; case, line breaks and hyphens
    between words do not matter. `negated` is decided for observations and devices alone (anatomy and modifiers are
    never denied). It is True where the report denies the term, before or behind it, by an answer or by an empty box; it
    is True too, and the kind is "", where the term is only spoken of: asked for ("evaluate for pneumothorax"), not
    assessed, or told of an earlier film. Hedged mentions ("pneumonia not excluded") are affirmed.

    A text without any term that is, as a whole, a data set's label of "no finding" ("normal", "Healthy.") is one
    observation of that kind. Within longer texts such a word says too little ("normal" of what?).

    Args:
        text: any text; sentences end at . ; : ! ?, at bars, dashes, bullets and numbers of lists, and at line breaks
            that start a new one.
        resources: the words to use, such as those of `vocabulary.for_language`; None for `vocabulary.default()`.

    Returns:
        Entities sorted by start that do not overlap, with `text[e.start:e.end] == e.text`.
    """
    return _finder(resources or default()).entities(text)


def find_terms(text: str, resources: Resources | None = None) -> list[tuple[int, int, Term]]:
    """The matcher alone, as (start, end, term): no polarity, and no kinds that hang on the context."""
    return _finder(resources or default()).terms(text)


def describe_spans(
    text: str, spans: Iterable[tuple[int, int, str]], resources: Resources | None = None
) -> list[Entity]:
    """Entities of places that another recogniser found, with the kinds and the polarity that this package gives them.

    Args:
        text: the report.
        spans: (start, end, label) in any order; of those that overlap the first, and of those the longest, is kept. The
          label ("observation", "anatomy", "device" or "modifier") counts where the lexicon does not know the words.
        resources: the words to use; None for `vocabulary.default()`.

    Returns:
        As `find_entities`.

    Raises:
        ValueError: a span that is empty or beyond the text, or another label.
    """
    used = resources or default()
    kept: list[tuple[int, int, str]] = []
    for start, end, label in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not 0 <= start < end <= len(text) or label not in LABELS:
            raise ValueError(f"span {start}:{end} of {label!r} in a text of {len(text)} characters")
        if not kept or start >= kept[-1][1]:
            kept.append((start, end, label))
    return _finder(used).described(text, kept)


_CUE_ROLES = {
    "before": Role.BEFORE,
    "after": Role.AFTER,
    "normal": Role.NORMAL,
    "pseudo": Role.PSEUDO,
    "terminator": Role.TERMINATOR,
    "conjunction": Role.CONJUNCTION,
    "disjunction": Role.DISJUNCTION,
    "verb": Role.VERB,
    "participle": Role.PARTICIPLE,
    "remains": Role.REMAINS,
    "asked": Role.ASKED,
    "yes": Role.YES,
    "unknown": Role.UNKNOWN,
    "past": Role.PAST,
    "past_verb": Role.PAST_VERB,
}


class _ByWord(dict):
    """A dictionary by normalised term that also answers for the term as it stands in a text, and for marks."""

    def __missing__(self, word: str):
        is_mark = not (word[0].isalnum() or word[0] in ",_") or word[-1] == ")"  # the latter is "2)"
        return sense_of_mark(word) if is_mark else self[normalise(word)]


@functools.lru_cache(maxsize=16)
def _finder(resources: Resources) -> "_Finder":
    return _Finder(resources)


class _Finder:
    """The compiled form of one set of resources."""

    def __init__(self, resources: Resources):
        self.compose = resources.compose
        composable = {observation for observation, _ in resources.compose}
        affirming, sided = (
            {word for word in resources.terms if word.split()[0] in words}
            for words in (resources.cues["affirming"], resources.cues["side"])
        )
        verbs = {*resources.cues["verb"], *resources.cues["remains"]}
        # A term with a verb in it ("lung volumes are low") is a clause of its own behind a comma, as stable ones are.
        affirming.update(word for word in resources.terms if not verbs.isdisjoint(word.split()))
        senses: dict[str, Sense] = _ByWord()
        for word, term in resources.terms.items():
            role = Role.OBSERVATION if term.label in ("observation", "device") else Role.OTHER
            senses[word] = Sense(
                int(role), term.label, term.kind, word, word in composable, word in affirming, word in sided
            )
        for cue_role, role in _CUE_ROLES.items():
            for word in resources.cues[cue_role]:
                known = senses[word].role if word in senses else role
                senses[word] = Sense(int(Role.EITHER if {known, role} == {Role.BEFORE, Role.AFTER} else role))
        self.term_senses = _ByWord(resources.terms)
        self.term_pattern = re.compile(rf"(?<!\w)(?:{_trie_pattern(resources.terms)})(?!\w)")
        clause = _trie_pattern(resources.cues["clause"])
        self.pattern = re.compile(rf"{marks_pattern(clause)}|(?<!\w)(?:{_trie_pattern(senses)})(?!\w)")
        senses[","] = Sense(int(Role.COMMA))
        senses.update({f", {word}": Sense(int(Role.CLAUSE)) for word in resources.cues["clause"]})
        for mark in ".;:!?|=\n\t":
            senses[mark] = sense_of_mark(mark)
        self.senses = senses
        self.names = resources.names
        self.normal = {squeeze(label) for label in resources.kinds[NO_FINDING].labels}

    def terms(self, text: str) -> list[tuple[int, int, Term]]:
        senses = self.term_senses
        return [(m.start(), m.end(), senses[m.group()]) for m in self.term_pattern.finditer(lowercase(text))]

    def entities(self, text: str) -> list[Entity]:
        return self._judged(text, self._matches(text)) or self._whole(text)

    def _whole(self, text: str) -> list[Entity]:
        """A text that says "normal" and no more as one entity; [] for any other."""
        words = text.strip().rstrip(".!")
        if squeeze(words) not in self.normal:
            return []
        start = text.index(words)
        return [Entity(start, start + len(words), words, "observation", False, NO_FINDING)]

    def described(self, text: str, spans: Sequence[tuple[int, int, str]]) -> list[Entity]:
        """The entities at these places, sorted and without overlaps."""
        starts = [start for start, _, _ in spans]
        events = [(start, end, self._sense(text[start:end], label)) for start, end, label in spans]
        for start, end, sense in self._matches(text):
            before = bisect.bisect_right(starts, start) - 1
            inside = before >= 0 and start < spans[before][1]
            into = before + 1 < len(spans) and end > spans[before + 1][0]
            if sense.role > Role.OTHER and not inside and not into:
                events.append((start, end, sense))
        return self._judged(text, sorted(events))

    def _sense(self, words: str, label: str) -> Sense:
        sense = self.senses.get(normalise(words))
        if sense is not None and sense.role <= Role.OTHER:
            return sense
        if label not in ("observation", "device"):
            return Sense(int(Role.OTHER), label)
        kind = self.names.get(squeeze(words), "")
        if not kind:  # "moderate cardiomegaly": the longest term inside says it
            inside = [(end - start, term.kind) for start, end, term in self.terms(words) if term.kind]
            kind = max(inside, default=(0, ""))[1]
        return Sense(int(Role.OBSERVATION), label, kind)

    def _matches(self, text: str) -> list[tuple[int, int, Sense]]:
        senses = self.senses
        return [(m.start(), m.end(), senses[m[0]]) for m in self.pattern.finditer(lowercase(text))]

    def _judged(self, text: str, events: Iterable[tuple[int, int, Sense]]) -> list[Entity]:
        """The entities among terms, cues and marks in the order of the text, each with its polarity and kind."""
        found, polarity, ends, composable = judge(text, events)
        new = Entity.__new__
        entities = []
        for (start, end, sense), said in zip(found, polarity, strict=True):
            entity = new(Entity)
            fields = entity.__dict__  # three times as fast as the initialiser of a frozen dataclass
            fields["start"] = start
            fields["end"] = end
            fields["text"] = text[start:end]
            fields["label"] = sense[1]
            fields["negated"] = said != STATED
            fields["kind"] = sense[2]
            entities.append(entity)
        for i in composable:
            if kind := self._composed(i, found, ends):
                entities[i] = dataclasses.replace(entities[i], kind=kind)
        if ASIDE in polarity:
            for i, said in enumerate(polarity):
                if said == ASIDE:
                    entities[i] = dataclasses.replace(entities[i], kind="")
        return entities

    def _composed(self, i: int, found: list[tuple[int, int, Sense]], ends: list[int]) -> str:
        """The kind of an observation that the anatomy named next to it in its clause decides."""
        start, end, sense = found[i]
        clause = bisect.bisect_right(ends, i)
        first = ends[clause - 1] if clause else 0
        last = ends[clause] if clause < len(ends) else len(found)
        near = []
        for step in (-1, 1):
            j = i + step
            while first <= j < last and (found[j][2].label == "modifier" or found[j][2].composable):
                j += step
            if first <= j < last and found[j][2].label == "anatomy":
                near.append((max(found[j][0] - end, start - found[j][1]), found[j][2].word))
        for _, anatomy in sorted(near):
            if kind := self.compose.get((sense.word, anatomy)):
                return kind
        return sense.kind


def lowercase(text: str) -> str:
    """Lower case of the same length, so that offsets hold."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(low if len(low := character.lower()) == 1 else character for character in text)


def _trie_pattern(words: Iterable[str]) -> str:
    """A regular expression for any of `words`, longest first, that shares prefixes as a trie does."""
    trie: dict[str, dict] = {}
    for word in words:
        node = trie
        for character in word:
            node = node.setdefault(character, {})
        node[""] = {}

    def count(node: dict[str, dict]) -> int:
        return sum(count(child) for child in node.values()) or 1

    def pattern(node: dict[str, dict]) -> str:
        branches = []
        for character, child in sorted(node.items(), key=lambda each: (-count(each[1]), each[0])):  # likeliest first
            if character:
                branches.append((r"[\s\-]+" if character == " " else re.escape(character)) + pattern(child))
        if not branches:
            return ""
        if "" not in node:
            return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
        # Greedy: the longer term is tried first, and the word boundary behind the whole sends it back if it must.
        return f"(?:{'|'.join(branches)})?"

    return pattern(trie)
