"""Does EntMLM look at the image? Masked findings restored with the right image, and with another patient's.

For each report and each kind of observation that it affirms, all mentions of that kind are masked, so that the rest of
the text does not name it, and restored twice: with the report's own image, and with the image of another patient who
does not have the finding. What the accuracy loses is what the image contributed.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmclip_jax.data.schema import Example, LabelState
from mmclip_jax.evaluate.base import (
    INSIDE,
    REPORTS,
    Card,
    Context,
    Evaluation,
    Part,
    Result,
    Results,
    Section,
    template,
)
from mmclip_jax.evaluate.model import Model
from mmclip_jax.evaluate.report.formats import interval, number
from mmclip_jax.evaluate.rows import Progress, Split, chunked, in_order, thinned
from mmclip_jax.evaluate.stats.bootstrap import DEFAULT, Bootstrap
from mmclip_jax.text import prompts
from mmclip_jax.text.prompts import KINDS
from mmclip_jax.text.schema import Entity

NO_FINDING = "no_finding"
MAX_QUERIES = 1000
RESTORING = Section("restoring", "Restoring findings", "Restoring masked findings")
ENTITY_LABELS = ("observation", "device", "anatomy", "modifier")
# Entity labels whose affirmed mentions are asked for.
LABELS = ("observation",)


@dataclasses.dataclass(frozen=True)
class Query:
    """One report and one kind that it affirms.

    row, other: rows of the split: the report's own image, and the image of a patient without the finding.
    masked: numbers of the entities to mask in `Split.entities(row)`.
    """

    row: int
    kind: str
    masked: tuple[int, ...]
    other: int


def affirmed_kinds(entities: Sequence[Entity], labels: Sequence[str] = LABELS) -> list[str]:
    """The kinds that a report affirms, in the vocabulary's order, without "no_finding"."""
    kinds = {e.kind for e in entities if e.label in labels and not e.negated}
    return [kind for kind in KINDS if kind in kinds and kind != NO_FINDING]


def lacks(example: Example, entities: Sequence[Entity], kind: str) -> bool:
    """Whether an image is known not to show `kind`: so labelled, or, without a label, not affirmed by its report."""
    if kind in prompts.with_ancestors(e.kind for e in entities if e.kind and not e.negated):
        return False
    state = example.labels.get(kind, LabelState.UNKNOWN)
    return state == LabelState.ABSENT or (state == LabelState.UNKNOWN and bool(example.text))


def queries_of(split: Split, limit: int = MAX_QUERIES, labels: Sequence[str] = LABELS) -> tuple[list[Query], int]:
    """(queries, how many had to be left out because no other patient of the source lacks the finding).

    The other image is the next row, in a fixed shuffled order of the same source's paired rows, of another patient
    without the finding: the same at every call.
    """
    rows = [row for row, example in enumerate(split.examples) if example.part == "paired"]
    entities = {row: split.entities(row) for row in rows}
    patients = split.patients
    order: dict[str, list[int]] = {}
    for row in np.random.default_rng(0).permutation(np.array(rows, np.int64)).tolist():
        order.setdefault(split.examples[row].source, []).append(row)
    place = {row: i for source_rows in order.values() for i, row in enumerate(source_rows)}
    wanted = [(row, kind) for row in rows for kind in affirmed_kinds(entities[row], labels)]
    queries, alone = [], 0
    for row, kind in thinned(wanted, limit):
        candidates = order[split.examples[row].source]
        start = place[row]
        for other in (*candidates[start + 1 :], *candidates[:start]):
            if patients[other] != patients[row] and lacks(split.examples[other], entities[other], kind):
                masked = tuple(i for i, entity in enumerate(entities[row]) if entity.kind == kind)
                queries.append(Query(row, kind, masked, other))
                break
        else:
            alone += 1
    return queries, alone


def foreign_entities(split: Split, rows: Sequence[int]) -> dict[str, Any]:
    """The argument `entities` of `Model.restore`, if a report of these rows is not English."""
    return {} if all(map(split.is_english, rows)) else {"entities": [split.entities(row) for row in rows]}


def evaluate(
    model: Model,
    split: Split,
    *,
    limit: int = MAX_QUERIES,
    bootstrap: Bootstrap = DEFAULT,
    progress: Progress | None = None,
) -> dict[str, Any] | None:
    """Restores each affirmed kind with its own and with another patient's image; None if there is no such report.

    Returns (for JSON): "queries", "reports", "patients", "without_other" (queries left out: no patient without the
    finding), "cut_off" (queries whose mentions lie beyond the text's length), "overall" and "findings" [...], each with
    "finding", "name", "queries", "tokens", "own" and "swapped": {"tokens" (share of masked tokens restored exactly),
    "tokens_interval", "whole" (share of queries with every token right), "whole_interval"}, and "drop": the same keys,
    own - swapped. Intervals resample patients, own and swapped together.
    """
    asked, alone = queries_of(split, limit)
    sums = _restore(model, split, asked, progress)
    seen = sums[:, 0] > 0
    queries = [query for query, kept in zip(asked, seen, strict=True) if kept]
    if not queries:
        return None
    sums, patients = sums[seen], split.patients
    groups = np.array([patients[query.row] for query in queries], object)
    kinds = np.array([query.kind for query in queries])

    def entry(kind: str, name: str, rows: np.ndarray) -> dict[str, Any]:
        head = {"finding": kind, "name": name, "queries": len(rows), "tokens": int(sums[rows, 0].sum())}
        return head | _shares(sums[rows], bootstrap.of(groups[rows]))

    return {
        "queries": len(queries),
        "reports": len({query.row for query in queries}),
        "patients": len(set(groups)),
        "without_other": alone,
        "cut_off": int((~seen).sum()),
        "overall": entry("", "all findings", np.arange(len(queries))),
        "findings": [
            entry(kind, prompts.display_name(kind), np.flatnonzero(kinds == kind)) for kind in in_order(kinds)
        ],
    }


def _restore(model: Model, split: Split, queries: Sequence[Query], progress: Progress | None) -> np.ndarray:
    """Of each query: tokens, right with the own image, right with the other's: float64 [n, 3]."""
    sums = np.zeros((len(queries), 3))
    for numbers in chunked(range(len(queries)), progress, "restoring entities") if queries else ():
        part = [queries[n] for n in numbers]
        texts = [split.examples[query.row].text for query in part]
        masked = [list(query.masked) for query in part]
        more = foreign_entities(split, [query.row for query in part])
        for column, rows in ((1, [query.row for query in part]), (2, [query.other for query in part])):
            answers = model.restore(split.pixels(rows), texts, masked, **more)
            for n, (true, restored) in zip(numbers, answers, strict=True):
                sums[n, 0] = len(true)
                sums[n, column] = np.sum(np.asarray(true) == np.asarray(restored))
    return sums


def _shares(sums: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    """{"own", "swapped", "drop"} of queries with these sums [n, 3]."""
    # Columns: tokens right own, swapped, and whole answers right own, swapped.
    above = np.column_stack([sums[:, 1:], sums[:, 1:] == sums[:, :1]])
    below = np.column_stack([sums[:, [0, 0]], np.ones((len(sums), 2))])
    points = above.sum(axis=0) / below.sum(axis=0)
    replicates = bootstrap.ratio(above, below)
    result: dict[str, Any] = {"own": {}, "swapped": {}, "drop": {}}
    for m, measure in enumerate(("tokens", "whole")):
        for column, image in ((2 * m, "own"), (2 * m + 1, "swapped")):
            point = float(points[column])
            bounds = bootstrap.rate_interval(point, replicates[:, column]).bounds
            result[image] |= {measure: point, f"{measure}_interval": bounds}
        lost = float(points[2 * m] - points[2 * m + 1])
        apart = replicates[:, 2 * m] - replicates[:, 2 * m + 1]
        bounds = bootstrap.difference_interval(lost, apart, bootstrap.count).bounds
        result["drop"] |= {measure: lost, f"{measure}_interval": bounds}
    return result


def group_by_entity(model: Model, text: str, entities: Sequence[Entity], masked: Sequence[int]) -> list[int]:
    """Of each masked token, in order of position, the number of its entity: how `Model.restore` lays them out.

    The tokens of entities beyond the text's length are missing.
    """
    length = model.config.model.text.length
    tokenized = model.tokenizer.tokenize(text, entities, length, entity_labels=ENTITY_LABELS)
    chosen = set(masked)
    return [int(number) - 1 for number in np.asarray(tokenized.entity) if number and int(number) - 1 in chosen]


class EntMLMEvaluation(Evaluation[None]):
    """Findings masked in reports and restored."""

    name = "entmlm"
    needs = (INSIDE, REPORTS)
    compared = (("EntMLM drop", "entmlm_drop"),)

    def run(self, context: Context) -> Result[None]:
        """See `evaluate`."""
        assert context.inside is not None
        return Result(evaluate(context.inside, context.rows, bootstrap=context.bootstrap, progress=context.progress))

    def headline(self, results: Results) -> Mapping[str, Any]:
        """Shares of masked tokens restored with the own image and with another's, and what is lost."""
        overall = results["entmlm"] and results["entmlm"]["overall"]
        return {f"entmlm_{image}": overall and overall[image]["tokens"] for image in ("own", "swapped", "drop")}

    def cards(self, results: Results) -> Sequence[Card]:
        """What the image contributed, in percentage points."""
        if not results["entmlm"]:
            return ()
        overall = results["entmlm"]["overall"]
        line = (
            f"points lost when the image is another patient's: {number(overall['own']['tokens'])} of masked tokens "
            f"restored with the own image, {number(overall['swapped']['tokens'])} with the other"
        )
        low, high = overall["drop"]["tokens_interval"]
        value, beside = number(100 * overall["drop"]["tokens"], 1), interval([100 * low, 100 * high], 1)
        return [Card("Masked findings: what the image gives", value, beside, [line])]

    def parts(self, results: Results, found: None) -> Sequence[Part]:
        """Its section."""
        return [Part(RESTORING, template("entmlm"))] if results["entmlm"] else ()


ENTMLM = EntMLMEvaluation()
