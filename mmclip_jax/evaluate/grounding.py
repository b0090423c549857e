"""The pointing game: does the patch that responds most to a finding's prompt lie in the finding's box?

A query is one image and one finding that has boxes there; its text is the finding's first positive prompt. It is a hit
if the centre of the patch of highest response (ties: the lower index) lies inside any box of the finding. Chance is
exact: the share of all patch centres that lie inside. As a control, the same boxes are pointed at with the prompt of a
finding that the image does not have: a map that only shows what is conspicuous would hit them as often.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmclip_jax.data import prompts
from mmclip_jax.data.schema import Box, LabelState
from mmclip_jax.data.transforms import fit_boxes
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate import metrics
from mmclip_jax.evaluate.base import RESPONSES, Model, Progress, Split, chunked, thinned

MAX_QUERIES = 1000


@dataclasses.dataclass(frozen=True)
class Query:
    """One image and one finding with boxes in it.

    row: of the split; boxes: fractions of the padded square; other: a finding that the image does not have, "" if every
    finding with boxes is there.
    """

    row: int
    kind: str
    boxes: tuple[Box, ...]
    other: str


def queries_of(split: Split, limit: int = MAX_QUERIES) -> list[Query]:
    """All queries of a split, or `limit` of them, evenly spread."""
    kinds = [kind for kind in prompts.KINDS if any(b.kind == kind for e in split.examples for b in e.boxes)]
    queries = []
    for row, example in enumerate(split.examples):
        if not example.boxes:
            continue
        boxes = fit_boxes(example.boxes, *split.shapes[row])
        there = {box.kind for box in boxes}
        affirmed = there | {e.kind for e in example.entities if not e.negated}
        affirmed |= {kind for kind, state in example.labels.items() if state != LabelState.ABSENT}
        for number, kind in enumerate(kind for kind in kinds if kind in there):
            absent = [other for other in kinds if other not in affirmed]
            # Another choice from row to row, the same at every call.
            other = absent[(row + number) % len(absent)] if absent else ""
            queries.append(Query(row, kind, tuple(box for box in boxes if box.kind == kind), other))
    return thinned(queries, limit)


def inside_boxes(boxes: Sequence[Box], grid: tuple[int, int]) -> np.ndarray:
    """Whose patch centre lies inside any of the boxes (fractions of the same square; edges count): bool [gh, gw]."""
    height, width = grid
    y = ((np.arange(height) + 0.5) / height)[:, np.newaxis]
    x = ((np.arange(width) + 0.5) / width)[np.newaxis, :]
    inside = np.zeros(grid, bool)
    for box in boxes:
        inside |= (box.y_min <= y) & (y <= box.y_max) & (box.x_min <= x) & (x <= box.x_max)
    return inside


def points_inside(response: np.ndarray, inside: np.ndarray) -> bool:
    """Whether the patch of highest response, the first of equals, is inside.

    Raises:
      UserError: a response that is NaN.
    """
    if np.isnan(response).any():
        raise UserError("a response map holds NaN: the checkpoint is broken, choose an earlier step")
    return bool(inside.flat[int(np.argmax(response))])


def prompt_of(kind: str) -> str:
    """The text of a finding's query."""
    return prompts.zero_shot_prompts(kind)[0][0]


def evaluate(
    model: Model,
    split: Split,
    *,
    responses: Sequence[str] = RESPONSES,
    limit: int = MAX_QUERIES,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any] | None:
    """Plays the pointing game over all boxes of a split; None if there are none.

    Returns (for JSON): "queries", "images", "patients", "grid", "without_centre" (queries whose boxes hold no patch
    centre: they cannot be hit, and count as misses), "overall" and "findings" [...], each with "finding", "name",
    "queries", "random" (the chance rate) and, for each response, {"rate", "interval", "lift" (rate / random),
    "other_prompt" (rate with another finding's prompt), "other_queries"}. Intervals resample patients.
    """
    queries = queries_of(split, limit)
    if not queries:
        return None
    patients = split.patients
    hits: dict[str, list[bool]] = {response: [] for response in responses}
    others: dict[str, list[float]] = {response: [] for response in responses}
    chance: list[float] = []
    grid = (0, 0)
    for numbers in chunked(range(len(queries)), progress, "pointing game"):
        part = [queries[number] for number in numbers]
        # Rows that are asked for twice share one array, so that a model may encode it once.
        distinct = sorted({query.row for query in part})
        images = dict(zip(distinct, split.pixels(distinct), strict=True))
        controls = [i for i, query in enumerate(part) if query.other]
        pairs = [(images[query.row], prompt_of(query.kind)) for query in part]
        pairs += [(images[part[i].row], prompt_of(part[i].other)) for i in controls]
        inside: list[np.ndarray] = []
        for response in responses:
            maps = np.asarray(model.response_maps([p for p, _ in pairs], [text for _, text in pairs], response))
            grid = (int(maps.shape[1]), int(maps.shape[2]))
            inside = inside or [inside_boxes(query.boxes, grid) for query in part]
            own, control = maps[: len(part)], maps[len(part) :]
            hits[response] += [points_inside(m, i) for m, i in zip(own, inside, strict=True)]
            other = np.full(len(part), np.nan)
            other[controls] = [points_inside(m, inside[i]) for m, i in zip(control, controls, strict=True)]
            others[response] += other.tolist()
        chance += [float(i.mean()) for i in inside]

    random = np.array(chance)
    hit = np.array([hits[response] for response in responses], np.float64).T
    others_hit = np.array([others[response] for response in responses], np.float64).T
    groups = [patients[query.row] for query in queries]

    def entry(kind: str, name: str, rows: np.ndarray) -> dict[str, Any]:
        replicates = metrics.resample_ratio(
            hit[rows], np.ones_like(hit[rows]), [groups[row] for row in rows], resamples=resamples, seed=seed
        )
        result: dict[str, Any] = {
            "finding": kind,
            "name": name,
            "queries": len(rows),
            "random": float(random[rows].mean()),
        }
        for r, response in enumerate(responses):
            interval = metrics.percentile_interval(replicates[:, r], level)
            rate, control = float(hit[rows, r].mean()), others_hit[rows, r]
            known = ~np.isnan(control)
            result[response] = {
                "rate": rate,
                "interval": [interval.low, interval.high],
                "lift": rate / result["random"] if result["random"] else None,
                "other_prompt": float(control[known].mean()) if known.any() else None,
                "other_queries": int(known.sum()),
            }
        return result

    kinds = np.array([query.kind for query in queries])
    return {
        "responses": list(responses),
        "queries": len(queries),
        "images": len({query.row for query in queries}),
        "patients": len(set(groups)),
        "grid": list(grid),
        "without_centre": int((random == 0).sum()),
        "overall": entry("", "all findings", np.arange(len(queries))),
        "findings": [
            entry(kind, prompts.display_name(kind), np.flatnonzero(kinds == kind))
            for kind in prompts.KINDS
            if (kinds == kind).any()
        ],
    }
