"""Recognisers, which find the entities of reports: the package's lexicon, or others behind the same interface.

`load` takes the name that `mmclip data build --entities` takes. Another recogniser decides where entities are and,
if it can, which are denied. Which finding a word stands for is always decided by the vocabulary.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol

from mmclip_jax.errors import UserError, extra
from mmclip_jax.text.entities import describe_spans, find_entities
from mmclip_jax.text.schema import Entity
from mmclip_jax.text.vocabulary import ENGLISH, Resources, for_language

LEXICON = "lexicon"
NAMES = (LEXICON, "spacy:MODEL", "medspacy", "radgraph[:MODEL]")


class Recogniser(Protocol):
    """Finds entities in reports."""

    def recognise(self, texts: Sequence[str]) -> list[list[Entity]]:
        """Of each text the entities, sorted by start and without overlaps, `text[e.start:e.end] == e.text`."""


@functools.cache
def load(name: str, language: str = ENGLISH) -> Recogniser:
    """The recogniser of a name, loaded once a process.

    Args:
      name: "lexicon"; "spacy:MODEL", an installed pipeline of spaCy (scispaCy's, for instance) or the folder of one;
        "medspacy", the lexicon's terms with the ConText algorithm; "radgraph" or "radgraph:MODEL".
      language: of the reports, see `vocabulary.for_language`.

    Raises:
      UserError: another name, or the package or its model is not installed; the message says how to get it. Or a
        language that the recogniser does not read.
    """
    family, _, model = name.partition(":")
    words = for_language(language)
    if name == LEXICON:
        return Lexicon(words)
    if family == "spacy" and model:
        return SpacyPipeline(_spacy_model(model), words)
    if family in ("medspacy", "radgraph") and language != ENGLISH:
        raise UserError(f"--entities {name} reads English reports alone, not --language {language}; use {LEXICON}")
    if name == "medspacy":
        return SpacyPipeline(_medspacy_model(words), words)
    if family == "radgraph":
        return RadGraph(_radgraph_model(model or "modern-radgraph-xl"))
    raise UserError(f"there is no recogniser of entities called {name!r}, only {', '.join(NAMES)}")


class Lexicon:
    """`find_entities`.

    Args:
      resources: the words to use; None for `vocabulary.default()`.
    """

    def __init__(self, resources: Resources | None = None):
        self._resources = resources

    def recognise(self, texts: Sequence[str]) -> list[list[Entity]]:
        """See `Recogniser`."""
        return [find_entities(text, self._resources) for text in texts]


class SpacyPipeline:
    """Any spaCy pipeline that sets `doc.ents`.

    An entity that the lexicon does not know is anatomy if its spaCy label says so, else an observation. Polarity is
    that of medspaCy's ConText (what is hypothetical or of the family counts as denied) or of negspaCy where the
    pipeline has it, else of the package's own cues.

    Args:
      pipeline: a `spacy.language.Language`.
      resources: the words whose kinds and cues are used; None for `vocabulary.default()`.
    """

    def __init__(self, pipeline: Any, resources: Resources | None = None):
        self._pipeline = pipeline
        self._resources = resources

    def recognise(self, texts: Sequence[str]) -> list[list[Entity]]:
        """See `Recogniser`."""
        found = []
        for text, document in zip(texts, self._pipeline.pipe(texts), strict=True):
            spans = [(e.start_char, e.end_char, _label(e.label_)) for e in document.ents if e.start_char < e.end_char]
            denied = {(e.start_char, e.end_char): _is_denied(e) for e in document.ents}
            found.append(_with_polarity(describe_spans(text, spans, self._resources), denied))
        return found


class RadGraph:
    """RadGraph: observations and anatomy, definitely present, uncertain (both affirmed) or definitely absent.

    Args:
      model: takes a list of texts and gives RadGraph's annotations, as `radgraph.RadGraph` does.
    """

    def __init__(self, model: Any):
        self._model = model

    def recognise(self, texts: Sequence[str]) -> list[list[Entity]]:
        """See `Recogniser`.

        Raises:
          UserError: RadGraph failed at a text.
        """
        annotated = self._model(list(texts)) if texts else {}
        found = []
        for number, text in enumerate(texts):
            annotation = annotated.get(str(number))
            if annotation is None:
                raise UserError(f"RadGraph failed at a report of {len(text)} characters; its own message is above")
            places = _places(text, annotation["text"].split())
            spans, denied = [], {}
            for entity in annotation["entities"].values():
                inside = [place for place in places[entity["start_ix"] : entity["end_ix"] + 1] if place is not None]
                if inside:
                    start, end = inside[0][0], inside[-1][1]
                    spans.append((start, end, _label(entity["label"])))
                    denied[start, end] = entity["label"].endswith(("absent", "-DA"))
            found.append(_with_polarity(describe_spans(text, spans), denied))
        return found


def _label(label: str) -> str:
    return "anatomy" if label.lower().startswith(("anat", "body", "organ")) else "observation"


def _is_denied(entity: Any) -> bool | None:
    """What the pipeline says of a spaCy span; None if it does not say."""
    if entity.has_extension("is_negated"):
        return bool(entity._.is_negated or entity._.is_hypothetical or entity._.is_family)
    return bool(entity._.negex) if entity.has_extension("negex") else None


def _with_polarity(entities: Sequence[Entity], denied: dict[tuple[int, int], bool | None]) -> list[Entity]:
    """The entities with the recogniser's own polarity where it has one; anatomy and modifiers are never denied."""
    changed = []
    for entity in entities:
        told = denied[entity.start, entity.end]
        if told is not None and entity.label in ("observation", "device"):
            entity = dataclasses.replace(entity, negated=told)
        changed.append(entity)
    return changed


def _places(text: str, tokens: Sequence[str]) -> list[tuple[int, int] | None]:
    """Where each token stands in the text, (start, end); None for one that RadGraph's preprocessing replaced."""
    places: list[tuple[int, int] | None] = []
    at = 0
    for token in tokens:
        start = text.find(token, at)
        places.append(None if start < 0 else (start, start + len(token)))
        at = at if start < 0 else start + len(token)
    return places


def _spacy_model(model: str) -> Any:
    try:
        import spacy
    except ImportError as error:
        raise UserError(f"--entities spacy:… needs spaCy: {extra('spacy')}") from error
    try:
        return spacy.load(model)
    except OSError as error:
        raise UserError(
            f"spaCy has no pipeline {model!r} here: install it (python -m spacy download {model}; scispaCy's come as "
            f"pip packages from its release page), or give the folder of a saved one"
        ) from error


def _medspacy_model(resources: Resources) -> Any:
    try:
        import medspacy
        from medspacy.ner import TargetRule
    except ImportError as error:
        raise UserError("--entities medspacy needs medspaCy: pip install medspacy") from error
    pipeline = medspacy.load()
    matcher = pipeline.get_pipe("medspacy_target_matcher")
    matcher.add([TargetRule(words, term.label.upper()) for words, term in resources.terms.items()])
    return pipeline


def _radgraph_model(model: str) -> Any:
    try:
        import radgraph
    except ImportError as error:
        raise UserError("--entities radgraph needs RadGraph: pip install radgraph") from error
    try:
        return radgraph.RadGraph(model_type=model)
    except Exception as error:  # whatever its download or an unknown name leads to
        raise UserError(f"RadGraph's model {model!r} cannot be loaded ({error})") from error
