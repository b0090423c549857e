"""Reads the resource files and checks each; errors name the file and the entry."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmclip_jax.errors import UserError
from mmclip_jax.text.terms import (
    CUES,
    LABELS,
    MORE_CUES,
    NO_FINDING,
    Kind,
    Term,
    ancestors,
    normalise,
    plural,
    spellings,
    squeeze,
)
from mmclip_jax.text.yaml_tree import read_mapping

EVERYTHING = "everything"  # in place of the findings that a label string leaves open: all of them

_KIND_FIELDS = {"display", "category", "count", "is_a", "implies", "beside", "phrases", "terms", "labels", "narrow"}
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def read_words(file: Path) -> tuple[str, frozenset[str]]:
    """The language's name, and its common words in every spelling."""
    content = read_mapping(file)
    if set(content) != {"name", "words"} or not isinstance(content["name"], str):
        raise UserError(f"{file}: expected the name of the language and its words")
    spelt = (spelling for word in _strings(file, "words", content["words"]) for spelling in spellings(word.lower()))
    return content["name"], frozenset(spelt)


def read_unmapped(
    file: Path, names: Mapping[str, str], kinds: Mapping[str, Kind], left_open: dict[str, frozenset[str]]
) -> frozenset[str]:
    """The label strings that stand for no kind; what they leave open goes into `left_open`."""
    unmapped = set()
    for reason, entries in read_mapping(file).items():
        for label in _labels(file, repr(reason), entries, left_open):
            if squeeze(label) in names:
                raise UserError(f"{file}: {label!r} is a name of {names[squeeze(label)]} in the vocabulary")
            unmapped.add(squeeze(label))
    _check_open(file, left_open, kinds)
    every = frozenset(kinds)
    left_open.update({label: every for label, open_kinds in left_open.items() if EVERYTHING in open_kinds})
    return frozenset(unmapped)


def _check_open(file: Path, left_open: Mapping[str, frozenset[str]], kinds: Mapping[str, Kind]) -> None:
    for label, open_kinds in left_open.items():
        if unknown := sorted(open_kinds - set(kinds) - {EVERYTHING}):
            raise UserError(
                f"{file}: {label!r} names {unknown[0]} under 'leaves open', but {unknown[0]} is not a finding of the "
                "vocabulary"
            )


def read_narrow(file: Path, kinds: Mapping[str, Kind], names: Mapping[str, str]) -> frozenset[str]:
    """The squeezed names that stand for a part of their finding only, and their plurals."""
    narrow = {squeeze(form) for kind in kinds.values() for name in kind.narrow for form in (name, plural(name))}
    for kind in kinds.values():
        if stray := [name for name in kind.narrow if names.get(squeeze(name)) != kind.name]:
            raise UserError(f"{file}: narrow lists {stray[0]!r}, which is no term or label of {kind.name}")
        if own := [name for name in (kind.display, kind.name) if squeeze(name) in narrow]:
            raise UserError(
                f"{file}: narrow lists {own[0]!r}, but prompts use it as the name of {kind.name}: remove it from narrow"
            )
    return frozenset(narrow)


def _labels(file: Path, where: str, value: Any, left_open: dict[str, frozenset[str]]) -> tuple[str, ...]:
    """The strings of a list whose entries are strings, or mappings of one string to the kinds that it leaves open."""
    if not isinstance(value, list):
        raise UserError(f"{file}: {where} is not followed by a list of label strings")
    labels: list[Any] = []
    for entry in value:
        label: Any = entry
        open_kinds: Any = []
        if isinstance(entry, dict) and len(entry) == 1:
            ((label, open_kinds),) = entry.items()
        labels.append(label)
        found = _strings(file, f"what {label!r} of {where} leaves open", open_kinds)
        if isinstance(label, str) and found:
            left_open[squeeze(label)] = frozenset(found)
    return _strings(file, where, labels)


def _strings(file: Path, where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise UserError(f"{file}: {where} must be a list of words; put quotes around no, yes, on, off and numbers")
    return tuple(value)


def read_kinds(file: Path, left_open: dict[str, frozenset[str]]) -> dict[str, Kind]:
    """The kinds of the vocabulary; what their label strings leave open goes into `left_open`."""
    kinds: dict[str, Kind] = {}
    for name, entry in read_mapping(file).items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(f"{file}: finding {name!r} must be lower case words joined by underscores")
        if not isinstance(entry, dict) or not isinstance(entry.get("display"), str):
            raise UserError(f"{file}: finding {name} needs a display name")
        if unknown := set(entry) - _KIND_FIELDS:
            raise UserError(f"{file}: finding {name} has unknown fields {sorted(map(str, unknown))}")
        if entry.get("category", "observation") not in ("observation", "device"):
            raise UserError(f"{file}: the category of finding {name} must be observation or device")
        lists = {
            field: _strings(file, f"{field} of {name}", entry.get(field, []))
            for field in ("is_a", "beside", "phrases", "terms", "narrow")
        }
        kind = Kind(
            name=name,
            display=entry["display"],
            category=entry.get("category", "observation"),
            count=bool(entry.get("count", False)),
            implies=bool(entry.get("implies", True)),
            labels=_labels(file, f"labels of {name}", entry.get("labels", []), left_open),
            **lists,
        )
        if name != NO_FINDING:
            own = {normalise(term) for term in kind.terms}
            if missing := [phrase for phrase in (kind.display, *kind.phrases) if normalise(phrase) not in own]:
                raise UserError(
                    f"{file}: {missing[0]!r} must be among the terms of {name}, because prompts use it as its name"
                )
        kinds[name] = kind
    if NO_FINDING not in kinds:
        raise UserError(f"{file}: the finding {NO_FINDING} is missing")
    for kind in kinds.values():
        for field, named in (("is_a", kind.is_a), ("beside", kind.beside)):
            if unknown := set(named) - set(kinds):
                raise UserError(
                    f"{file}: finding {kind.name} {field} {sorted(unknown)[0]}, which is no finding of this file"
                )
    for name in kinds:
        if name in ancestors(kinds, name):
            raise UserError(f"{file}: is_a leads from {name} back to itself")
    _check_open(file, left_open, kinds)
    return kinds


def read_names(file: Path, kinds: Mapping[str, Kind]) -> dict[str, str]:
    """The kind of every squeezed name, phrase, term and label string."""
    names: dict[str, str] = {}
    for kind in kinds.values():
        for name in (kind.name, kind.display, *kind.phrases, *kind.terms, *kind.labels):
            if names.setdefault(squeeze(name), kind.name) != kind.name:
                raise UserError(f"{file}: {name!r} belongs to both {names[squeeze(name)]} and {kind.name}")
    for name, kind_name in list(names.items()):
        names.setdefault(squeeze(plural(name)), kind_name)
    return names


def read_lexicon(
    file: Path, vocabulary: Path, kinds: Mapping[str, Kind]
) -> tuple[dict[str, Term], dict[tuple[str, str], str]]:
    """The terms, with those of the vocabulary, and the rules that compose a kind of an observation and an anatomy."""
    content = read_mapping(file)
    if unknown := set(content) - {*LABELS, "kinds", "compose"}:
        raise UserError(
            f"{file}: unknown parts {sorted(map(str, unknown))}; known are {', '.join(LABELS)}, kinds, compose"
        )
    # A lexicon that names the kinds' own words is of another language: English words and plurals are not added.
    own = content.get("kinds")
    terms: dict[str, Term] = {}

    def add(words: Sequence[str], meaning: Term, where: Path) -> None:
        for word in words:
            if not re.fullmatch(r"\w+(\W\w+)*", normalise(word)):
                raise UserError(f"{where}: the term {word!r} must be words separated by single characters")
            for spelling in spellings(normalise(word)) if own else (normalise(word),):
                known = terms.setdefault(spelling, meaning)
            if known != meaning:
                raise UserError(f"{where}: the term {word!r} is both {_say(known)} and {_say(meaning)}")

    if own is None:
        for kind in kinds.values():
            add(kind.terms, Term(kind.category, kind.name), vocabulary)
    elif not isinstance(own, dict) or (unknown := set(own) - set(kinds)):
        raise UserError(f"{file}: kinds must give words for findings of the vocabulary; {own and unknown} are none")
    else:
        for name, words in own.items():
            add(_expanded(file, name, words), Term(kinds[name].category, name), file)
    for label in LABELS:
        add(_expanded(file, label, content.get(label, [])), Term(label, ""), file)
    for word, meaning in list(terms.items()):
        if meaning.label != "modifier" and own is None:
            terms.setdefault(plural(word), meaning)

    compose: dict[tuple[str, str], str] = {}
    for rule in content.get("compose", []):
        if not isinstance(rule, dict) or set(rule) != {"kind", "observation", "anatomy"}:
            raise UserError(f"{file}: a rule of compose needs kind, observation and anatomy")
        if rule["kind"] not in kinds:
            raise UserError(f"{file}: compose names {rule['kind']}, which is no finding of the vocabulary")
        for observation in _expanded(file, "observation of compose", rule["observation"]):
            for anatomy in _expanded(file, "anatomy of compose", rule["anatomy"]):
                for word in (observation, anatomy):
                    if normalise(word) not in terms:
                        raise UserError(f"{file}: compose uses {word!r}, which is no term of the lexicon")
                for left in (observation, plural(observation)):
                    for right in (anatomy, plural(anatomy)):
                        compose.setdefault((normalise(left), normalise(right)), rule["kind"])
    return terms, compose


def _say(term: Term) -> str:
    return f"{term.label} of finding {term.kind}" if term.kind else term.label


def read_cues(file: Path, terms: Mapping[str, Term]) -> dict[str, tuple[str, ...]]:
    """The cues by role, in every spelling."""
    content = read_mapping(file)
    if not set(CUES) <= set(content) <= {*CUES, *MORE_CUES}:
        raise UserError(f"{file}: expected the lists {', '.join(CUES)}, and perhaps {', '.join(MORE_CUES)}")
    cues = {}
    for role in (*CUES, *MORE_CUES):
        listed = map(normalise, _expanded(file, role, content.get(role, [])))
        cues[role] = tuple(dict.fromkeys(spelling for cue in listed for spelling in spellings(cue)))
    for role, lists in cues.items():
        for cue in lists:
            words = cue.split()
            runs = {" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
            # "low suspicion for" may hide a modifier, which says nothing there.
            held = sorted(run for run in runs & set(terms) if run == cue or terms[run].label != "modifier")
            if role in ("affirming", "side") and cue not in terms:
                raise UserError(f"{file}: {cue!r} of {role} must be a term of the lexicon")
            if role not in ("affirming", "side") and held:
                raise UserError(f"{file}: the cue {cue!r} of {role} would hide the term {held[0]!r}; leave it out")
    return cues


def _expanded(file: Path, where: str, value: Any) -> list[str]:
    """The words of a list, each with its alternatives written out."""
    return [word for item in _strings(file, where, value) for word in _expand(file, item)]


def _expand(file: Path, cue: str) -> list[str]:
    """The cues that one with alternatives stands for: "{is,are,} not seen" is three."""
    match = re.search(r"\{([^{}]*)\}", cue)
    if match is None:
        if set("{}") & set(cue):
            raise UserError(f"{file}: the braces of the cue {cue!r} do not match")
        return [cue]
    choices = [cue[: match.start()] + choice.strip() + cue[match.end() :] for choice in match[1].split(",")]
    return [expanded for choice in choices for expanded in _expand(file, choice)]


def read_prompts(file: Path) -> dict[str, Any]:
    """The grammar of the prompts."""
    content = read_mapping(file)

    def check(where: str, value: Any, slots: set[str]) -> None:
        for template in _strings(file, where, value):
            if set(re.findall(r"\{(?:a )?(\w*)\}", template)) != slots or template.count("{") != len(slots):
                wanted = " and ".join(f"{{{slot}}}" for slot in sorted(slots)) or "no slot"
                raise UserError(f"{file}: the template {template!r} of {where} must hold {wanted}")

    try:
        for part in (content, content["zero_shot"]):
            where = "" if part is content else "zero_shot "
            check(f"{where}present", part["present"], {"present"})
            check(f"{where}absent", part["absent"], {"absent"})
            for polarity in ("present", "absent"):
                check(f"{where}no_finding {polarity}", part["no_finding"][polarity], set())
        check("both", content["both"], {"present", "absent"})
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: a part is missing: {error}") from None
    for where, part in (("", content), ("zero_shot ", content["zero_shot"])):
        for polarity in ("present", "absent"):
            if not part[polarity] or not part["no_finding"][polarity]:
                raise UserError(f"{file}: {where}{polarity} needs at least one template")
    return content
