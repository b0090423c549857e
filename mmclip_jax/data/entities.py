"""Finds medical terms in reports: a lexicon matched as a trie, and sentence-scoped negation."""

import bisect
import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from mmclip_jax.data.resources import LABELS, Resources, Term, default, normalise, squeeze
from mmclip_jax.data.schema import Entity

__all__ = ["Entity", "describe_spans", "find_entities", "find_terms"]


def find_entities(text: str, resources: Resources | None = None) -> list[Entity]:
    """The medical terms of a report with their polarity.

    At each place the longest term of the lexicon counts, bounded by non-word characters; case, line breaks and hyphens
    between words do not matter. `negated` is decided for observations and devices alone (anatomy and modifiers are
    never denied). It is True where the sentence denies the term, or merely asks for it ("evaluate for pneumothorax");
    hedged mentions ("pneumonia not excluded") are affirmed.

    Args:
        text: any text; sentences end at . ; : ! ? and at line breaks that start a new one.
        resources: the words to use; None for `resources.default()`.

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
        resources: the words to use; None for `resources.default()`.

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


# Roles of a match in the text. Sentence ends and commas are found beside terms and cues in one pass.
_OBSERVATION, _OTHER, _BEFORE, _AFTER, _EITHER, _NORMAL, _PSEUDO, _END, _JOIN, _COMMA, _VERB, _LINE = range(12)
_CUE_ROLES = {
    "before": _BEFORE,
    "after": _AFTER,
    "normal": _NORMAL,
    "pseudo": _PSEUDO,
    "terminator": _END,
    "conjunction": _JOIN,
    "verb": _VERB,
}
_NEW_SENTENCE = re.compile(r"\s*(?:\n|[A-Z](?:[a-z]|\s)|\d+[.)]|[-*\u2022]|$)")


class _Sense(NamedTuple):
    """What a match means: its role and, for a term, its entity label, kind, normalised word and which rules apply."""

    role: int
    label: str = ""
    kind: str = ""
    word: str = ""
    composable: bool = False
    affirming: bool = False


class _ByWord(dict):
    """A dictionary by normalised term that also answers for the term as it stands in a text."""

    def __missing__(self, word: str):
        return self[normalise(word)]


@functools.lru_cache(maxsize=16)
def _finder(resources: Resources) -> "_Finder":
    return _Finder(resources)


class _Finder:
    """The compiled form of one set of resources."""

    def __init__(self, resources: Resources):
        self.compose = resources.compose
        composable = {observation for observation, _ in resources.compose}
        affirming = set(resources.cues["affirming"])
        senses: dict[str, _Sense] = _ByWord()
        for word, term in resources.terms.items():
            role = _OBSERVATION if term.label in ("observation", "device") else _OTHER
            senses[word] = _Sense(role, term.label, term.kind, word, word in composable, word in affirming)
        for cue_role, role in _CUE_ROLES.items():
            for word in resources.cues[cue_role]:
                known = senses[word].role if word in senses else role
                senses[word] = _Sense(_EITHER if {known, role} == {_BEFORE, _AFTER} else role)
        self.term_senses = _ByWord(resources.terms)
        self.term_pattern = re.compile(rf"(?<!\w)(?:{_trie_pattern(resources.terms)})(?!\w)")
        self.pattern = re.compile(rf"[;:!?,\n]|\.(?!\d)|(?<!\w)(?:{_trie_pattern(senses)})(?!\w)")
        senses.update({mark: _Sense(_END) for mark in ".;:!?"})
        senses.update({",": _Sense(_COMMA), "\n": _Sense(_LINE)})
        self.senses = senses
        self.names = resources.names

    def terms(self, text: str) -> list[tuple[int, int, Term]]:
        senses = self.term_senses
        return [(m.start(), m.end(), senses[m.group()]) for m in self.term_pattern.finditer(lowercase(text))]

    def entities(self, text: str) -> list[Entity]:
        return self._judged(text, self._matches(text))

    def described(self, text: str, spans: Sequence[tuple[int, int, str]]) -> list[Entity]:
        """The entities at these places, sorted and without overlaps."""
        starts = [start for start, _, _ in spans]
        events = [(start, end, self._sense(text[start:end], label)) for start, end, label in spans]
        for start, end, sense in self._matches(text):
            before = bisect.bisect_right(starts, start) - 1
            inside = before >= 0 and start < spans[before][1]
            into = before + 1 < len(spans) and end > spans[before + 1][0]
            if sense.role > _OTHER and not inside and not into:
                events.append((start, end, sense))
        return self._judged(text, sorted(events))

    def _sense(self, words: str, label: str) -> _Sense:
        sense = self.senses.get(normalise(words))
        if sense is not None and sense.role <= _OTHER:
            return sense
        if label not in ("observation", "device"):
            return _Sense(_OTHER, label)
        kind = self.names.get(squeeze(words), "")
        if not kind:  # "moderate cardiomegaly": the longest term inside says it
            inside = [(end - start, term.kind) for start, end, term in self.terms(words) if term.kind]
            kind = max(inside, default=(0, ""))[1]
        return _Sense(_OBSERVATION, label, kind)

    def _matches(self, text: str) -> Iterator[tuple[int, int, _Sense]]:
        senses = self.senses
        return ((m.start(), m.end(), senses[m.group()]) for m in self.pattern.finditer(lowercase(text)))

    def _judged(self, text: str, events: Iterable[tuple[int, int, _Sense]]) -> list[Entity]:
        """The entities among terms, cues and marks in the order of the text, each with its polarity and kind."""
        found: list[tuple[int, int, _Sense]] = []
        negated: list[bool] = []
        ends: list[int] = []  # for each sentence end or terminator, how many entities stand before it
        denying = verb = joined = composable = False
        reach = reach_normal = 0  # the first entity that a cue standing after its terms may deny
        for start, end, sense in events:
            role = sense.role
            if role <= _OTHER:
                if joined and sense.affirming:
                    denying, reach = False, len(found)
                joined = False
                found.append((start, end, sense))
                negated.append(denying and role == _OBSERVATION)
                composable = composable or sense.composable
                continue
            joined = role == _JOIN
            if role == _END or (role == _LINE and _NEW_SENTENCE.match(text, end)):
                denying = verb = False
                reach = reach_normal = len(found)
                ends.append(reach)
            elif role == _BEFORE:
                denying = True
            elif role in (_COMMA, _JOIN):
                reach_normal = len(found)
                if verb:
                    verb, reach = False, reach_normal
            elif role == _VERB:
                verb = True
            elif role in (_AFTER, _EITHER, _NORMAL):
                verb = True
                first = reach_normal if role == _NORMAL else reach
                targets = [i for i in range(first, len(found)) if found[i][2].role == _OBSERVATION]
                if role == _EITHER and not targets:
                    denying = True
                for i in targets:
                    negated[i] = True
        kinds = self._compose(found, ends) if composable else [sense.kind for _, _, sense in found]
        return [
            Entity(start, end, text[start:end], sense.label, denied, kind)
            for (start, end, sense), denied, kind in zip(found, negated, kinds, strict=True)
        ]

    def _compose(self, found: list[tuple[int, int, _Sense]], ends: list[int]) -> list[str]:
        """The kinds, where the anatomy named next to an observation in its clause decides some of them."""
        kinds = [sense.kind for _, _, sense in found]
        for i, (start, end, sense) in enumerate(found):
            if not sense.composable:
                continue
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
                    kinds[i] = kind
                    break
        return kinds


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

    def pattern(node: dict[str, dict]) -> str:
        branches = []
        for character, child in sorted(node.items()):
            if character:
                branches.append((r"[\s\-]+" if character == " " else re.escape(character)) + pattern(child))
        if not branches:
            return ""
        if "" not in node:
            return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
        # Greedy: the longer term is tried first, and the word boundary behind the whole sends it back if it must.
        return f"(?:{'|'.join(branches)})?"

    return pattern(trie)
