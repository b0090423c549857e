"""The words of the package as data files that a user can edit: vocabulary, lexicon, negation cues, prompts, tokenizer.

A user who wants other words copies one or more of the files into a directory of their own, edits them, and names the
directory in the environment variable MMCLIP_RESOURCES. All of the package then uses them. The functions that find
entities or write prompts take another set as `resources=`, for that one call: the words of another language, or of a
protocol. A file that the directory lacks is read from the package.
"""

import functools
import hashlib
import os
import re
from pathlib import Path

from mmclip_jax.errors import UserError
from mmclip_jax.text.terms import (
    CUES,
    ENGLISH,
    LABELS,
    MORE_CUES,
    NO_FINDING,
    Kind,
    Resources,
    Term,
    ancestors,
    normalise,
    plural,
    squeeze,
)

__all__ = [
    "CUES",
    "ENGLISH",
    "ENVIRONMENT",
    "LABELS",
    "LANGUAGES",
    "LEXICON",
    "MORE_CUES",
    "NEGATION",
    "NO_FINDING",
    "PACKAGED",
    "PROMPTS",
    "TOKENIZER",
    "UNMAPPED",
    "VOCABULARY",
    "WORDS",
    "Kind",
    "Resources",
    "Term",
    "ancestors",
    "default",
    "digest",
    "for_language",
    "languages",
    "load",
    "normalise",
    "plural",
    "squeeze",
]

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
ENVIRONMENT = "MMCLIP_RESOURCES"


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
    from mmclip_jax.text import resource_files  # YAML takes its time to import

    names = (VOCABULARY, UNMAPPED, LEXICON, NEGATION, WORDS, PROMPTS, TOKENIZER)
    if not any((directory / name).is_file() for name in names):
        raise UserError(f"{directory}: no resource file here; it may hold copies of {', '.join(names)}")
    places = (directory, *others, PACKAGED)
    files = {name: next((p / name for p in places if (p / name).is_file()), PACKAGED / name) for name in names}
    left_open: dict[str, frozenset[str]] = {}
    kinds = resource_files.read_kinds(files[VOCABULARY], left_open)
    terms, compose = resource_files.read_lexicon(files[LEXICON], files[VOCABULARY], kinds)
    names_of_kinds = resource_files.read_names(files[VOCABULARY], kinds)
    language_name, words = resource_files.read_words(files[WORDS])
    return Resources(
        kinds=kinds,
        names=names_of_kinds,
        unmapped=resource_files.read_unmapped(files[UNMAPPED], names_of_kinds, kinds, left_open),
        narrow=resource_files.read_narrow(files[VOCABULARY], kinds, names_of_kinds),
        left_open=left_open,
        terms=terms,
        cues=resource_files.read_cues(files[NEGATION], terms),
        compose=compose,
        prompts=resource_files.read_prompts(files[PROMPTS]),
        tokenizer=files[TOKENIZER],
        language=ENGLISH if files[WORDS].parent == PACKAGED else files[WORDS].parent.name,
        language_name=language_name,
        words=words,
    )
