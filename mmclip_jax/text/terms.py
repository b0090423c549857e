"""Kinds, terms and what the resource files say, and the ways to write a term."""

import dataclasses
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ENGLISH = "en"
NO_FINDING = "no_finding"
LABELS = ("observation", "anatomy", "device", "modifier")
CUES = ("before", "after", "normal", "pseudo", "terminator", "conjunction", "affirming", "verb")
MORE_CUES = (
    "disjunction",
    "clause",
    "side",
    "participle",
    "remains",
    "asked",
    "yes",
    "unknown",
    "past",
    "past_verb",
)  # a file may lack these
_UNCOUNTED = re.compile(r"(?:ed|(?<!thicken)ing|al|[a-z]{3}ar|ic|ous|ary|ive|oid|nent|ae|mata|(?<![sui])s|[^a-z])$")


@dataclasses.dataclass(frozen=True)
class Kind:
    """One disease kind of the vocabulary; the fields are described at the head of vocabulary.yaml."""

    name: str
    display: str
    category: str
    count: bool
    is_a: tuple[str, ...]
    implies: bool
    beside: tuple[str, ...]
    phrases: tuple[str, ...]
    terms: tuple[str, ...]
    labels: tuple[str, ...]
    narrow: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Term:
    """A term of the lexicon: its entity label and the disease kind that it stands for, or ""."""

    label: str
    kind: str


@dataclasses.dataclass(frozen=True)
class Resources:
    """What the files say, checked.

    kinds: by name, in the order of the file. names: squeezed name or label string to kind. unmapped: squeezed label
    strings that deliberately stand for no kind. narrow: squeezed names of a part of their kind. left_open: squeezed
    label string to the kinds of which a list that has it says nothing, beside those that its own kind leaves open.
    terms: normalised term (see `normalise`) to what it means. cues: the negation cues by role. compose: (observation,
    anatomy) to kind. prompts: the grammar; tokenizer: a file.
    language: "en", or the name of the folder of another one; language_name: for people; words: its common words.
    """

    kinds: Mapping[str, Kind]
    names: Mapping[str, str]
    unmapped: frozenset[str]
    narrow: frozenset[str]
    left_open: Mapping[str, frozenset[str]]
    terms: Mapping[str, Term]
    cues: Mapping[str, tuple[str, ...]]
    compose: Mapping[tuple[str, str], str]
    prompts: Mapping[str, Any]
    tokenizer: Path
    language: str = ENGLISH
    language_name: str = "English"
    words: frozenset[str] = frozenset()

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def normalise(term: str) -> str:
    """Lower case with runs of white space and hyphens as one space: the key of `Resources.terms`."""
    return " ".join(term.lower().replace("-", " ").split())


def squeeze(name: str) -> str:
    """Letters and digits alone, lower case: the key of `Resources.names`."""
    return "".join(character for character in name.lower() if character.isalnum())


def plural(term: str) -> str:
    """The regular English plural of the term's last word; the term itself if that is an adjective, plural or number."""
    if _UNCOUNTED.search(term):
        return term
    if re.search(r"[^aeiou]y$", term):
        return term[:-1] + "ies"
    if term.endswith("sis"):
        return term[:-2] + "es"
    return term + ("es" if re.search(r"(s|x|z|ch|sh)$", term) else "s")


def spellings(word: str) -> list[str]:
    """A word, and how it is typed without its accents: "Ergüsse", "Erguesse", "Ergusse"."""
    plain = unicodedata.normalize("NFKD", word.translate({0xDF: "ss", 0x153: "oe"}))
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    digraphs = word.translate({0xE4: "ae", 0xF6: "oe", 0xFC: "ue", 0xDF: "ss", 0x153: "oe"})
    half = word.translate({0xDF: "ss"}), word.translate({0x153: "oe"})  # capitals, keyboards
    spelt = (word, plain, digraphs, *half)
    return list(dict.fromkeys((*spelt, *(each.replace("'", "\u2019") for each in spelt))))


def ancestors(kinds: Mapping[str, Kind], name: str) -> tuple[str, ...]:
    """All broader kinds that `name` implies, nearest first, without repeats."""
    found: list[str] = []
    queue = list(kinds[name].is_a)
    while queue:
        parent = queue.pop(0)
        if parent not in found:
            found.append(parent)
            queue.extend(kinds[parent].is_a)
    return tuple(found)
