"""Where a model looks: the pointing game, overlap and contrast of response maps with boxes and masks.

A query is one image and one finding that has boxes or a mask there; its text is the finding's first positive prompt (or
a phrase of a report, see ms_cxr.py). In the pointing game it is a hit if the centre of the patch of highest response
(ties: the lower index) lies inside the region. Chance is exact: the share of all patch centres that lie inside. As a
control, the same regions are pointed at with the prompt of a finding that the image does not have: a map that only
shows what is conspicuous would hit them as often.

IoU and Dice need a threshold; it is chosen on the validation split, where the mean of the measure over queries is
highest. Without validation queries both are undefined.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmclip_jax.data.images.transforms import fit_boxes
from mmclip_jax.data.schema import Box, LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate.base import (
    INSIDE,
    REGIONS,
    Card,
    Context,
    Evaluation,
    Part,
    Result,
    Results,
    Section,
    template,
)
from mmclip_jax.evaluate.evaluations import localization
from mmclip_jax.evaluate.evaluations.localization import inside_boxes
from mmclip_jax.evaluate.model import RESPONSES, Model
from mmclip_jax.evaluate.report.formats import interval, number
from mmclip_jax.evaluate.rows import Progress, Split, chunked, in_order, thinned
from mmclip_jax.evaluate.stats.bootstrap import DEFAULT, Bootstrap
from mmclip_jax.text import prompts

__all__ = ["Query", "evaluate", "inside_boxes", "points_inside", "prompt_of", "queries_of"]

MAX_QUERIES = 1000
# What is measured of each query beside the pointing game.
MEASURES = ("iou", "dice", "cnr")
GROUNDING_SECTION = Section("pointing", "Grounding", "Grounding")


@dataclasses.dataclass(frozen=True)
class Query:
    """One image and one finding with a region in it.

    row: of the split; boxes: fractions of the padded square; other: a finding that the image does not have, "" if every
    finding with boxes is there; text: "" for the finding's prompt; mask: a PNG of the stored image's size, which counts
    in place of the boxes.
    """

    row: int
    kind: str
    boxes: tuple[Box, ...]
    other: str
    text: str = ""
    mask: bytes = b""

    def region(self, grid: tuple[int, int]) -> np.ndarray:
        """Which centres of a grid over the padded square lie inside: bool [gh, gw]."""
        return localization.inside_mask(self.mask, grid) if self.mask else inside_boxes(self.boxes, grid)


def queries_of(split: Split, limit: int = MAX_QUERIES) -> list[Query]:
    """All queries of a split, or `limit` of them, evenly spread."""
    marked = [{box.kind for box in e.boxes} | {mask.kind for mask in e.masks} for e in split.examples]
    kinds = [kind for kind in prompts.KINDS if any(kind in there for there in marked)]
    queries = []
    for row, example in enumerate(split.examples):
        if not marked[row]:
            continue
        boxes = fit_boxes(example.boxes, *split.shapes[row])
        masks = {mask.kind: mask.image for mask in example.masks}
        affirmed = marked[row] | {e.kind for e in example.entities if not e.negated}
        affirmed |= {kind for kind, state in example.labels.items() if state != LabelState.ABSENT}
        for n, kind in enumerate(kind for kind in kinds if kind in marked[row]):
            absent = [other for other in kinds if other not in affirmed]
            # Another choice from row to row, the same at every call.
            other = absent[(row + n) % len(absent)] if absent else ""
            mine = tuple(box for box in boxes if box.kind == kind)
            queries.append(Query(row, kind, mine, other, mask=masks.get(kind, b"")))
    return thinned(queries, limit)


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


@dataclasses.dataclass
class Measured:
    """What was found of n queries: R responses, T thresholds.

    hit, other [n, R] (other NaN where there is no other finding); chance [n]; iou, dice [n, R, T]; cnr [n, R] (NaN
    where undefined); grid: of patches.
    """

    hit: np.ndarray
    other: np.ndarray
    chance: np.ndarray
    iou: np.ndarray
    dice: np.ndarray
    cnr: np.ndarray
    grid: tuple[int, int]


def measure(
    model: Model,
    split: Split,
    queries: Sequence[Query],
    responses: Sequence[str] = RESPONSES,
    *,
    controls: bool = True,
    progress: Progress | None = None,
) -> Measured:
    """Asks the model for the map of every query, and compares it with the region."""
    count, shape = len(queries), (len(queries), len(responses))
    curves = (*shape, len(localization.THRESHOLDS))
    found = Measured(
        np.zeros(shape), np.full(shape, np.nan), np.zeros(count), np.zeros(curves), np.zeros(curves),
        np.full(shape, np.nan), (0, 0),
    )  # fmt: skip
    for numbers in chunked(range(count), progress, "pointing game"):
        part = [queries[n] for n in numbers]
        # Rows that are asked for twice share one array, so that a model may encode it once.
        distinct = sorted({query.row for query in part})
        images = dict(zip(distinct, split.pixels(distinct), strict=True))
        asked = [i for i, query in enumerate(part) if query.other and controls]
        pairs = [(images[query.row], query.text or prompt_of(query.kind)) for query in part]
        pairs += [(images[part[i].row], prompt_of(part[i].other)) for i in asked]
        regions = [query.region((localization.SIDE, localization.SIDE)) for query in part]
        for r, response in enumerate(responses):
            maps = np.asarray(model.response_maps([p for p, _ in pairs], [text for _, text in pairs], response))
            found.grid = (int(maps.shape[1]), int(maps.shape[2]))
            for i, query in enumerate(part):
                at, inside = numbers[i], query.region(found.grid)
                found.chance[at] = inside.mean()
                found.hit[at, r] = points_inside(maps[i], inside)
                large = localization.enlarge(maps[i])
                if regions[i].any():
                    found.cnr[at, r] = localization.contrast_to_noise(large, regions[i])
                    both = localization.overlaps(localization.stretch(large), regions[i])
                    found.iou[at, r], found.dice[at, r] = both
            for i, control in zip(asked, maps[len(part) :], strict=True):
                found.other[numbers[i], r] = points_inside(control, part[i].region(found.grid))
    return found


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Indices into `localization.THRESHOLDS` of each response, chosen where `queries` queries of `split` are best."""

    split: str
    queries: int
    iou: np.ndarray
    dice: np.ndarray


def choose_thresholds(
    model: Model,
    split: Split | None,
    queries: Sequence[Query],
    responses: Sequence[str] = RESPONSES,
    progress: Progress | None = None,
) -> Thresholds | None:
    """The thresholds of highest mean IoU and of highest mean Dice (ties: the lower); None without any queries."""
    if split is None or not queries:
        return None
    found = measure(model, split, queries, responses, controls=False, progress=progress)
    return Thresholds(split.name, len(queries), found.iou.mean(axis=0).argmax(1), found.dice.mean(axis=0).argmax(1))


def evaluate(
    model: Model,
    split: Split,
    *,
    validation: Split | None = None,
    queries: Callable[[Split], Sequence[Query]] | None = None,
    responses: Sequence[str] = RESPONSES,
    limit: int = MAX_QUERIES,
    bootstrap: Bootstrap = DEFAULT,
    progress: Progress | None = None,
) -> dict[str, Any] | None:
    """Measures the response maps of all regions of a split; None if there are none.

    Args:
      model: gives the maps.
      split: what is measured.
      validation: where thresholds are chosen; None leaves IoU and Dice undefined.
      queries: of a split; None for `queries_of` with this `limit`.
      responses: which maps.
      bootstrap: of the intervals; patients are those of the queries.
      progress: bars.

    Returns (for JSON): "queries", "images", "patients", "grid", "side" (of the square on which overlap is counted),
    "thresholds" (None, or {"split", "queries", "iou": {response: t}, "dice": {response: t}}), "without_centre" (queries
    whose regions hold no patch centre: they cannot be hit, and count as misses), "empty" (regions that hold no point of
    the square: their IoU and Dice are 0), "overall" and "findings" [...], each with "finding", "name", "queries",
    "random" (the chance rate), "dice_everything" (of a map that marks the whole square) and what `_by_response` says.
    """
    ask = queries or (lambda part: queries_of(part, limit))
    asked = ask(split)
    if not asked:
        return None
    chosen = choose_thresholds(model, validation, ask(validation) if validation else [], responses, progress)
    found = measure(model, split, asked, responses, progress=progress)
    groups = np.array(split.patients, object)[[query.row for query in asked]]
    sizes = np.array([query.region((localization.SIDE, localization.SIDE)).mean() for query in asked])
    values = _values(found, chosen)
    kinds = np.array([query.kind for query in asked])

    def entry(kind: str, name: str, rows: np.ndarray) -> dict[str, Any]:
        random, everything = float(found.chance[rows].mean()), float((2 * sizes[rows] / (1 + sizes[rows])).mean())
        head = {"finding": kind, "name": name, "queries": len(rows), "random": random, "dice_everything": everything}
        mine = {measured: value[rows] for measured, value in values.items()}
        return head | _by_response(mine, random, responses, bootstrap.of(groups[rows]))

    return {
        "responses": list(responses),
        "queries": len(asked),
        "images": len({query.row for query in asked}),
        "patients": len(set(groups)),
        "grid": list(found.grid),
        "side": localization.SIDE,
        "thresholds": None if chosen is None else _described(chosen, responses),
        "without_centre": int((found.chance == 0).sum()),
        "empty": int((sizes == 0).sum()),
        "overall": entry("", "all findings", np.arange(len(asked))),
        "findings": [
            entry(kind, prompts.display_name(kind), np.flatnonzero(kinds == kind)) for kind in in_order(kinds)
        ],
    }


def _values(found: Measured, chosen: Thresholds | None) -> dict[str, np.ndarray]:
    """What was measured of each query, "hit", "other" and `MEASURES`: float64 [n, R], NaN where undefined."""
    values: dict[str, np.ndarray] = {"hit": found.hit, "other": found.other, "cnr": found.cnr}
    for name in ("iou", "dice"):
        curves: np.ndarray = getattr(found, name)
        places = None if chosen is None else getattr(chosen, name)
        undefined = np.full(curves.shape[:2], np.nan)
        values[name] = undefined if places is None else curves[:, np.arange(curves.shape[1]), places]
    return values


def _by_response(
    values: Mapping[str, np.ndarray], random: float, responses: Sequence[str], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Means, with intervals over patients, of queries with these `_values`; random: the chance rate.

    Returns (for JSON): {response: {"rate", "interval", "lift" (rate / random), "other_prompt" (rate with another
    finding's prompt), "other_queries", and for each of `MEASURES` its mean and NAME_interval, None where undefined,
    "cnr_undefined"}}.
    """
    means = {name: _means(values[name], bootstrap, rate=name != "cnr") for name in ("hit", *MEASURES)}
    result: dict[str, Any] = {}
    for r, response in enumerate(responses):
        control = values["other"][:, r]
        known = ~np.isnan(control)
        rate, bounds = means["hit"][r]
        result[response] = {
            "rate": rate,
            "interval": bounds,
            "lift": rate / random if random and rate is not None else None,
            "other_prompt": float(control[known].mean()) if known.any() else None,
            "other_queries": int(known.sum()),
            "cnr_undefined": int(np.isnan(values["cnr"][:, r]).sum()),
        }
        for name in MEASURES:
            mean, bounds = means[name][r]
            result[response] |= {name: mean, f"{name}_interval": bounds}
    return result


def _means(
    values: np.ndarray, bootstrap: Bootstrap, *, rate: bool
) -> list[tuple[float | None, Sequence[float | None]]]:
    """(mean, interval) of each column of [n, R], NaN left out; (None, [None, None]) of a column without a number.

    rate: the numbers are in [0, 1].
    """
    rule = bootstrap.rate_interval if rate else bootstrap.mean_interval
    known = ~np.isnan(values)
    replicates = bootstrap.ratio(np.where(known, values, 0.0), known)
    result: list[tuple[float | None, Sequence[float | None]]] = []
    for r in range(values.shape[1]):
        if known[:, r].any():
            mean = float(values[known[:, r], r].mean())
            result.append((mean, rule(mean, replicates[:, r], bootstrap.among(known[:, r]).count).bounds))
        else:
            result.append((None, [None, None]))
    return result


def _described(chosen: Thresholds, responses: Sequence[str]) -> dict[str, Any]:
    return {"split": chosen.split, "queries": chosen.queries} | {
        name: {
            response: float(localization.THRESHOLDS[place])
            for response, place in zip(responses, getattr(chosen, name), strict=True)
        }
        for name in ("iou", "dice")
    }


class GroundingEvaluation(Evaluation[None]):
    """Grounding of the findings' prompts."""

    name = "grounding"
    needs = (INSIDE, REGIONS)
    compared = (("Pointing game", "pointing"),)

    def run(self, context: Context) -> Result[None]:
        """See `evaluate`."""
        assert context.inside is not None
        found = evaluate(
            context.inside,
            context.rows,
            validation=context.other_regions,
            bootstrap=context.bootstrap,
            progress=context.progress,
        )
        return Result(found)

    def headline(self, results: Results) -> Mapping[str, Any]:
        """The pointing game by the response that the training used."""
        overall = results["grounding"] and results["grounding"]["overall"]
        used = results["checkpoint"]["response"]
        return {
            "pointing": overall and overall[used]["rate"],
            "pointing_random": overall and overall["random"],
            "pointing_lift": overall and overall[used]["lift"],
        }

    def cards(self, results: Results) -> Sequence[Card]:
        """The pointing game, with overlap and contrast below."""
        if not results["grounding"]:
            return ()
        used, overall = results["checkpoint"]["response"], results["grounding"]["overall"]
        pointing = overall[used]
        lines = [f"{number(pointing['lift'], 1)} × random ({number(overall['random'])}), response {used}"]
        if pointing["other_prompt"] is not None:
            lines.append(f"With another finding's prompt: {number(pointing['other_prompt'])}")
        overlap = "" if pointing["iou"] is None else f"IoU {number(pointing['iou'])}, Dice {number(pointing['dice'])}, "
        lines.append(f"{overlap}contrast-to-noise ratio {number(pointing['cnr'], 2)}")
        return [Card("Pointing game", number(pointing["rate"]), interval(pointing["interval"]), lines)]

    def parts(self, results: Results, found: None) -> Sequence[Part]:
        """Its section."""
        return [Part(GROUNDING_SECTION, template("grounding"))] if results["grounding"] else ()


GROUNDING = GroundingEvaluation()
