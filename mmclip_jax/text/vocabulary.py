"""The words of the package as data files that a user can edit: vocabulary, lexicon, negation cues, prompts, tokenizer.

A user who wants other words copies one or more of the files into a directory of their own, edits them, and names the
directory in the environment variable MMCLIP_RESOURCES or in the `resources=` argument of the functions that take it.
A file that the directory lacks is read from the package.
"""

import dataclasses
import functools
import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmclip_jax.errors import UserError

PACKAGED = Path(__file__).parent / "resources"
VOCABULARY, UNMAPPED, LEXICON, NEGATION, WORDS, PROMPTS, TOKENIZER = (
    "vocabulary.yaml",
    "unmapped.yaml",
    "lexicon.yaml",
    "negation.yaml",
    "words.yaml",
    "prompts.yaml",
    "tokenizer.model",
)
LANGUAGES = PACKAGED / "languages"
ENGLISH = "en"
ENVIRONMENT = "MMCLIP_RESOURCES"
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

EVERYTHING = "everything"  # in place of kinds that a label string leaves open

_KIND_FIELDS = {"display", "category", "count", "is_a", "implies", "beside", "phrases", "terms", "labels", "narrow"}
_UNCOUNTED = re.compile(r"(?:ed|(?<!thicken)ing|al|[a-z]{3}ar|ic|ous|ary|ive|oid|nent|ae|mata|(?<![sui])s|[^a-z])$")
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


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


def default() -> Resources:
    """The resources of the directory that MMCLIP_RESOURCES names, else those of the package."""
    return _default(os.environ.get(ENVIRONMENT) or None)


def load(directory: str | os.PathLike[str] | None = None) -> Resources:
    """Reads and checks the resource files (once per directory and process).

    Args:
        directory: where edited files lie; None for the package's own. Files that it lacks come from the package.

    Raises:
        UserError: no such directory, none of the files in it, or a mistake in one of them.
    """
    return _load(Path(directory).resolve() if directory is not None else PACKAGED)


def languages() -> tuple[str, ...]:
    """The languages that the package has words for: "en" first."""
    return (ENGLISH, *sorted(folder.name for folder in LANGUAGES.iterdir() if (folder / LEXICON).is_file()))


def for_language(language: str) -> Resources:
    """The words to read reports of a language with.

    Args:
        language: one of `languages()`, or a folder with lexicon.yaml, negation.yaml and words.yaml of another one. What
            it lacks (vocabulary, prompts) comes from where `default` reads it.

    Raises:
        UserError: no such language or folder, a file is missing, or a mistake in one.
    """
    if language == ENGLISH:
        return default()
    folder = LANGUAGES / language if re.fullmatch(r"\w+", language) else Path(language).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"there is no language {language!r}; known are {', '.join(languages())}, or give a folder with "
            f"{LEXICON}, {NEGATION} and {WORDS}"
        )
    for name in (LEXICON, NEGATION, WORDS):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder}: a language needs the files {LEXICON}, {NEGATION} and {WORDS}; {name} is missing"
            )
    own = os.environ.get(ENVIRONMENT)
    return _load(folder.resolve(), *([Path(own).resolve()] if own else []))


@functools.lru_cache(maxsize=16)
def digest(resources: Resources) -> str:
    """A hash of the terms, the cues and the rules: what decides which entities are found."""
    content = (sorted(resources.terms.items()), sorted(resources.cues.items()), sorted(resources.compose.items()))
    return hashlib.sha256(repr(content).encode()).hexdigest()


@functools.lru_cache(maxsize=16)
def _default(directory: str | None) -> Resources:
    return load(directory)


@functools.lru_cache(maxsize=16)
def _load(directory: Path, *others: Path) -> Resources:
    names = (VOCABULARY, UNMAPPED, LEXICON, NEGATION, WORDS, PROMPTS, TOKENIZER)
    if not any((directory / name).is_file() for name in names):
        raise UserError(f"{directory}: no resource file here; it may hold copies of {', '.join(names)}")
    places = (directory, *others, PACKAGED)
    files = {name: next((p / name for p in places if (p / name).is_file()), PACKAGED / name) for name in names}
    left_open: dict[str, frozenset[str]] = {}
    kinds = _read_kinds(files[VOCABULARY], left_open)
    terms, compose = _read_lexicon(files[LEXICON], files[VOCABULARY], kinds)
    names_of_kinds = _read_names(files[VOCABULARY], kinds)
    language_name, words = _read_words(files[WORDS])
    return Resources(
        kinds=kinds,
        names=names_of_kinds,
        unmapped=_read_unmapped(files[UNMAPPED], names_of_kinds, kinds, left_open),
        narrow=_read_narrow(files[VOCABULARY], kinds, names_of_kinds),
        left_open=left_open,
        terms=terms,
        cues=_read_cues(files[NEGATION], terms),
        compose=compose,
        prompts=_read_prompts(files[PROMPTS]),
        tokenizer=files[TOKENIZER],
        language=ENGLISH if files[WORDS].parent == PACKAGED else files[WORDS].parent.name,
        language_name=language_name,
        words=words,
    )


def _read_words(file: Path) -> tuple[str, frozenset[str]]:
    content = read_yaml(file)
    if set(content) != {"name", "words"} or not isinstance(content["name"], str):
        raise UserError(f"{file}: expected the name of the language and its words")
    spelt = (spelling for word in _strings(file, "words", content["words"]) for spelling in _spellings(word.lower()))
    return content["name"], frozenset(spelt)


def _spellings(word: str) -> list[str]:
    """A word, and how it is typed without its accents: "Ergüsse", "Erguesse", "Ergusse"."""
    plain = unicodedata.normalize("NFKD", word.translate({0xDF: "ss", 0x153: "oe"}))
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    digraphs = word.translate({0xE4: "ae", 0xF6: "oe", 0xFC: "ue", 0xDF: "ss", 0x153: "oe"})
    half = word.translate({0xDF: "ss"}), word.translate({0x153: "oe"})  # capitals, keyboards
    spelt = (word, plain, digraphs, *half)
    return list(dict.fromkeys((*spelt, *(each.replace("'", "\u2019") for each in spelt))))


def _read_unmapped(
    file: Path, names: Mapping[str, str], kinds: Mapping[str, Kind], left_open: dict[str, frozenset[str]]
) -> frozenset[str]:
    unmapped = set()
    for reason, entries in read_yaml(file).items():
        for label in _labels(file, repr(reason), entries, left_open):
            if squeeze(label) in names:
                raise UserError(f"{file}: {label!r} is a name of {names[squeeze(label)]} in the vocabulary")
            unmapped.add(squeeze(label))
    for label, open_kinds in left_open.items():
        if unknown := open_kinds - set(kinds) - {EVERYTHING}:
            raise UserError(f"{file}: {label!r} leaves {sorted(unknown)[0]} open, which is no kind of the vocabulary")
    every = frozenset(kinds)
    left_open.update({label: every for label, open_kinds in left_open.items() if EVERYTHING in open_kinds})
    return frozenset(unmapped)


def _read_narrow(file: Path, kinds: Mapping[str, Kind], names: Mapping[str, str]) -> frozenset[str]:
    narrow = {squeeze(form) for kind in kinds.values() for name in kind.narrow for form in (name, plural(name))}
    for kind in kinds.values():
        if stray := [name for name in kind.narrow if names.get(squeeze(name)) != kind.name]:
            raise UserError(f"{file}: {stray[0]!r} of narrow is no term or label of kind {kind.name}")
        if squeeze(kind.name) in narrow or squeeze(kind.display) in narrow:
            raise UserError(f"{file}: kind {kind.name} is called by a name that narrow says is a part of it")
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


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        UserError: not YAML, or no mapping at the top.
    """
    from mmclip_jax.text import yaml_tree  # which takes its time to import

    content = yaml_tree.read(file)
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected a mapping at the top level")
    return content


def find_entry(spec: str, packaged: Path, read: Callable[[Path], Mapping[str, Any]], what: str) -> Any:
    """The entry of that name in a packaged file, or the one of a file: "mine.yaml", "mine.yaml:NAME" if it has several.

    Args:
        spec: what the user asked for.
        packaged: the file of the package.
        read: the entries of a file by name.
        what: an entry is called, for errors.

    Raises:
        UserError: no such entry or file.
    """
    known = read(packaged)
    if spec in known:
        return known[spec]
    place, _, name = spec.rpartition(":")
    if not Path(spec).suffix.lower().startswith((".yaml", ".yml")):
        raise UserError(
            f"there is no {what} {spec!r}; known are {', '.join(known)}, or name a YAML file of your own (FILE.yaml)"
        )
    file, name = (Path(place), name) if place and not Path(spec).is_file() else (Path(spec), "")
    if not file.expanduser().is_file():
        raise UserError(f"{file}: there is no such {what} file")
    entries = read(file.expanduser())
    if name and name not in entries:
        raise UserError(f"{file}: there is no {what} {name!r}; it holds {', '.join(entries)}")
    if not name and len(entries) != 1:
        raise UserError(f"{file} holds {', '.join(entries) or f'no {what}'}: say which one with {file}:NAME")
    return entries[name] if name else next(iter(entries.values()))


def _strings(file: Path, where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise UserError(f"{file}: {where} must be a list of words; put quotes around no, yes, on, off and numbers")
    return tuple(value)


def _read_kinds(file: Path, left_open: dict[str, frozenset[str]]) -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    for name, entry in read_yaml(file).items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(f"{file}: kind {name!r} must be lower case words joined by underscores")
        if not isinstance(entry, dict) or not isinstance(entry.get("display"), str):
            raise UserError(f"{file}: kind {name} needs a display name")
        if unknown := set(entry) - _KIND_FIELDS:
            raise UserError(f"{file}: kind {name} has unknown fields {sorted(map(str, unknown))}")
        if entry.get("category", "observation") not in ("observation", "device"):
            raise UserError(f"{file}: the category of kind {name} must be observation or device")
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
                raise UserError(f"{file}: {missing[0]!r} must be among the terms of kind {name}, which prompts call so")
        kinds[name] = kind
    if NO_FINDING not in kinds:
        raise UserError(f"{file}: the kind {NO_FINDING} is missing")
    for kind in kinds.values():
        for field, named in (("is_a", kind.is_a), ("beside", kind.beside)):
            if unknown := set(named) - set(kinds):
                raise UserError(f"{file}: kind {kind.name} {field} {sorted(unknown)[0]}, which is no kind of this file")
    for name in kinds:
        if name in ancestors(kinds, name):
            raise UserError(f"{file}: is_a leads from {name} back to itself")
    return kinds


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


def _read_names(file: Path, kinds: Mapping[str, Kind]) -> dict[str, str]:
    names: dict[str, str] = {}
    for kind in kinds.values():
        for name in (kind.name, kind.display, *kind.phrases, *kind.terms, *kind.labels):
            if names.setdefault(squeeze(name), kind.name) != kind.name:
                raise UserError(f"{file}: {name!r} belongs to both {names[squeeze(name)]} and {kind.name}")
    for name, kind_name in list(names.items()):
        names.setdefault(squeeze(plural(name)), kind_name)
    return names


def _read_lexicon(
    file: Path, vocabulary: Path, kinds: Mapping[str, Kind]
) -> tuple[dict[str, Term], dict[tuple[str, str], str]]:
    content = read_yaml(file)
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
            for spelling in _spellings(normalise(word)) if own else (normalise(word),):
                known = terms.setdefault(spelling, meaning)
            if known != meaning:
                raise UserError(f"{where}: the term {word!r} is both {_say(known)} and {_say(meaning)}")

    if own is None:
        for kind in kinds.values():
            add(kind.terms, Term(kind.category, kind.name), vocabulary)
    elif not isinstance(own, dict) or (unknown := set(own) - set(kinds)):
        raise UserError(f"{file}: kinds must give words for kinds of the vocabulary; {own and unknown} are none")
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
            raise UserError(f"{file}: compose names {rule['kind']}, which is no kind of the vocabulary")
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
    return f"{term.label} of kind {term.kind}" if term.kind else term.label


def _read_cues(file: Path, terms: Mapping[str, Term]) -> dict[str, tuple[str, ...]]:
    content = read_yaml(file)
    if not set(CUES) <= set(content) <= {*CUES, *MORE_CUES}:
        raise UserError(f"{file}: expected the lists {', '.join(CUES)}, and perhaps {', '.join(MORE_CUES)}")
    cues = {}
    for role in (*CUES, *MORE_CUES):
        listed = map(normalise, _expanded(file, role, content.get(role, [])))
        cues[role] = tuple(dict.fromkeys(spelling for cue in listed for spelling in _spellings(cue)))
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


def _read_prompts(file: Path) -> dict[str, Any]:
    content = read_yaml(file)

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
