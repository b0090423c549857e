"""What an evaluation is: what it needs, how it is run, and how what it found is told.

A new evaluation is one file with a subclass of `Evaluation`, and a template for its part of the page. `registry.py`
lists them in their order. Each is run once (`run.py`), and its summary becomes its key of results.json. Page, model
card, terminal and comparison then ask each evaluation for its part of them, made from the content of results.json; what
it found besides is given to `parts` and `write` alone.
"""

import abc
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, cast

import numpy as np

from mmclip_jax.evaluate.model import Encoder, Foreign, Model, Supervised
from mmclip_jax.evaluate.protocols import Protocol
from mmclip_jax.evaluate.rows import Embedded, Progress, Split
from mmclip_jax.evaluate.stats.bootstrap import DEFAULT, Bootstrap

Found = TypeVar("Found")

Summary = Mapping[str, Any] | None
"""An evaluation's part of results.json; its `run` says what it holds."""

Results = Mapping[str, Any]
"""The content of results.json: facts of the whole (`run.evaluate_checkpoint`), and the summary of each evaluation."""


class Need(NamedTuple):
    """Something without which an evaluation has nothing to do: what, and whether it is there."""

    what: str
    is_met: Callable[["Context"], bool]


INSIDE = Need("a model of this software, which shows where it looks", lambda context: context.inside is not None)
TEXTS = Need("a text encoder", lambda context: context.classifier is None)
CLASSIFIER = Need("a fine-tuned classifier", lambda context: context.classifier is not None)
REPORTS = Need("reports", lambda context: any(example.part == "paired" for example in context.rows.examples))
REGIONS = Need("boxes or masks", lambda context: any(e.boxes or e.masks for e in context.rows.examples))
SOURCES = Need("several sources", lambda context: len(context.rows.source_counts) > 1)
PHRASES = Need("a file of phrases with boxes", lambda context: bool(context.phrase_file))


@dataclasses.dataclass(frozen=True)
class Result(Generic[Found]):
    """summary: for results.json. found: arrays that the page, or evaluations that build on this one, need besides."""

    summary: Summary
    found: Found | None = None


@dataclasses.dataclass(frozen=True)
class Context:
    """What an evaluation is given.

    rows, embedded: n rows of a split and their embeddings float32 [n, E]. validation: rows of other patients, which
    thresholds are chosen on, None where there are none. directories: of the data sets. bootstrap: of the rows.
    done: results of the evaluations before, by name.
    """

    model: Encoder | Supervised
    rows: Split
    embedded: np.ndarray
    protocol: Protocol
    bootstrap: Bootstrap = DEFAULT
    validation: Embedded | None = None
    directories: Sequence[str | os.PathLike[str]] = ()
    phrase_file: str | os.PathLike[str] = ""
    progress: Progress = dataclasses.field(default_factory=lambda: Progress(False))
    done: dict[str, Result[Any]] = dataclasses.field(default_factory=dict)

    @property
    def inside(self) -> Model | None:
        """The model as one of this software, which shows where it looks and restores what was masked; else None.

        A classifier does neither.
        """
        return None if isinstance(self.model, Foreign | Supervised) else cast(Model, self.model)

    @property
    def encoder(self) -> Encoder:
        """The model as one that embeds texts too; only where `TEXTS` is met."""
        return cast(Encoder, self.model)

    @property
    def classifier(self) -> Supervised | None:
        """The model as a classifier, which reads no text; else None."""
        return self.model if isinstance(self.model, Supervised) else None

    @functools.cached_property
    def other_regions(self) -> Split | None:
        """The validation rows, which thresholds of response maps are chosen on, whatever the protocol."""
        return None if self.rows.name == "validation" else Split.load_if_any(self.directories, "validation")

    def found(self, evaluation: "Evaluation[Found]") -> Found | None:
        """What another evaluation found, which ran before; None if it had nothing to do."""
        result = self.done.get(evaluation.name)
        return None if result is None else cast("Found | None", result.found)


class Section(NamedTuple):
    """A section of the page: its anchor, its name in the page's menu, and its heading."""

    id: str
    title: str
    heading: str


EVALUATED = Section("evaluated", "What was evaluated", "What was evaluated")


@dataclasses.dataclass(frozen=True)
class Part:
    """What an evaluation says in a section of the page.

    template: a Jinja file, which is given `r` (the results), `guests` and `values`, and finds the files beside it and
    those of report/resources.
    guest: it stands where the template of the section's own evaluation says `{{ guests }}`, or at its end.
    """

    section: Section
    template: pathlib.Path
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    guest: bool = False


class Card(NamedTuple):
    """A number of the page's head: "0.812" beside "(0.790 to 0.833)", and lines of small print."""

    title: str
    value: str
    beside: str
    lines: Sequence[str]


class Evaluation(abc.ABC, Generic[Found]):
    """One evaluation; an instance holds no state.

    name: its key in results.json. needs: what must be there. after: those whose `found` it asks for, which must have
    found something. nothing: its summary where a need is not met. compared: (column of a comparison, key of the
    headline).
    """

    name: str
    needs: Sequence[Need] = ()
    after: Sequence["Evaluation[Any]"] = ()
    nothing: ClassVar[Summary] = None
    compared: Sequence[tuple[str, str]] = ()

    @abc.abstractmethod
    def run(self, context: Context) -> Result[Found]:
        """Evaluates."""

    def can_run(self, context: Context) -> bool:
        """Whether all that it needs is there."""
        return all(need.is_met(context) for need in self.needs) and all(
            context.found(other) is not None for other in self.after
        )

    def headline(self, results: Results) -> Mapping[str, Any]:
        """Its numbers for results.json's "headline": the same keys whether something was found or not."""
        return {}

    def cards(self, results: Results) -> Sequence[Card]:
        """Its numbers in the head of page and model card, and in the terminal."""
        return ()

    def lines(self, results: Results) -> Sequence[str]:
        """What must be said beside the numbers in model card and terminal."""
        return ()

    def tables(self, results: Results) -> Sequence[str]:
        """Lines of Markdown tables at the end of the model card's numbers."""
        return ()

    def limits(self, results: Results) -> Sequence[str]:
        """What its numbers do not say."""
        return ()

    def parts(self, results: Results, found: Found | None) -> Sequence[Part]:
        """Its parts of the page."""
        return ()

    def write(self, folder: pathlib.Path, found: Found | None) -> None:
        """Files of its own beside the page."""

    def quick(self, context: Context) -> Mapping[str, float]:
        """A few numbers in a second or two, for the curves of a training run."""
        return {}


def template(name: str) -> pathlib.Path:
    """The packaged template of that name."""
    return pathlib.Path(__file__).parent / "evaluations" / "templates" / f"{name}.html.j2"
