"""A dozen held-out cases, with everything that the model does to them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmclip_jax.data.images.transforms import fit_boxes
from mmclip_jax.data.schema import Box, LabelState
from mmclip_jax.data.texts import full_text
from mmclip_jax.evaluate.base import Context
from mmclip_jax.evaluate.evaluations.entmlm import NO_FINDING, affirmed_kinds, foreign_entities, group_by_entity
from mmclip_jax.evaluate.evaluations.grounding import prompt_of
from mmclip_jax.evaluate.evaluations.zeroshot import ZERO_SHOT, ZeroShot
from mmclip_jax.evaluate.model import Model
from mmclip_jax.evaluate.rows import Split
from mmclip_jax.inference import pictures
from mmclip_jax.text import prompts

CASES = 12
_TOP = 5


@dataclasses.dataclass(frozen=True)
class Segment:
    """A piece of a report. mark: "" plain text, "entity" a term that was left, "right" or "wrong" one that was masked.

    restored: what EntMLM put in a masked term's place; denied: the report denies the term.
    """

    text: str
    mark: str = ""
    restored: str = ""
    denied: bool = False


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A finding of a case: its score's percentile among the source's rows, and the truth ("present", "absent", …)."""

    name: str
    percentile: float
    truth: str


@dataclasses.dataclass(frozen=True)
class Case:
    """One held-out image. S pixels a side; boxes are those of the queried finding, in fractions of the padded square.

    text is what AttMIM was given: the report, or for an image without one a prompt of its labels.
    """

    id: str
    source: str
    part: str
    view: str
    finding: str
    prompt: str
    image: np.ndarray
    boxes: tuple[Box, ...]
    response: np.ndarray
    masked: np.ndarray
    reconstruction: np.ndarray
    text: str
    segments: tuple[Segment, ...]
    ranking: tuple[Ranked, ...]

    @property
    def right(self) -> int:
        """Masked terms that were restored exactly."""
        return sum(segment.mark == "right" for segment in self.segments)

    @property
    def asked(self) -> int:
        """Masked terms."""
        return sum(segment.mark in ("right", "wrong") for segment in self.segments)


def choose_cases(split: Split, source: str | None, count: int = CASES) -> list[tuple[int, str]]:
    """(row, kind to ask for) of up to `count` rows of different patients: the same at every call.

    Kinds take turns, frequent ones first; rows of `source` with a report and boxes are preferred. The last of a dozen
    is an image without finding, where there is one.
    """
    patients = split.patients
    by_kind: dict[str, list[tuple[int, int]]] = {}
    normal: list[tuple[int, int]] = []
    for row, example in enumerate(split.examples):
        rank = 4 * (example.source != source) + 2 * (example.part != "paired") + (not example.boxes)
        labelled = {kind for kind, state in example.labels.items() if state == LabelState.PRESENT}
        kinds = {box.kind for box in example.boxes} or labelled or set(affirmed_kinds(example.entities))
        if not kinds - {NO_FINDING}:
            normal.append((rank - (not example.boxes), row))
        for kind in kinds - {NO_FINDING}:
            by_kind.setdefault(kind, []).append((rank, row))
    queues = {kind: sorted(rows) for kind, rows in by_kind.items()}
    turns = sorted(queues, key=lambda kind: (-len(queues[kind]), kind))
    chosen: list[tuple[int, str]] = []
    seen: set[str] = set()
    reserved = 1 if normal and count > 1 else 0
    while any(queues.values()) and len(chosen) < count - reserved:
        for kind in turns:
            while queues[kind]:
                _, row = queues[kind].pop(0)
                if patients[row] not in seen:
                    seen.add(patients[row])
                    chosen.append((row, kind))
                    break
            if len(chosen) == count - reserved:
                break
    for _, row in sorted(normal):
        if len(chosen) < count and patients[row] not in seen:
            seen.add(patients[row])
            chosen.append((row, NO_FINDING))
    return chosen


def build_cases(context: Context, count: int = CASES) -> list[Case]:
    """Runs the model on the chosen cases, all of them in one batch a task; [] of a model that shows nothing inside."""
    model, split, seed, scored = context.inside, context.rows, context.bootstrap.seed, context.found(ZERO_SHOT)
    if model is None or scored is None:
        return []
    chosen = choose_cases(split, scored.summary["primary"], count)
    if not chosen:
        return []
    rows = [row for row, _ in chosen]
    images, texts, queries, response, attmim = _looked_at(model, split, chosen, seed)
    segments = _restored(model, split, rows, images, seed)
    cases = []
    for i, (row, kind) in enumerate(chosen):
        example = split.examples[row]
        boxes = tuple(box for box in fit_boxes(example.boxes, *split.shapes[row]) if box.kind == kind)
        cases.append(
            Case(
                id=example.id,
                source=example.source,
                part=example.part,
                view=example.view,
                finding=prompts.display_name(kind),
                prompt=queries[i],
                image=np.asarray(attmim["image"][i], np.uint8).reshape(np.shape(attmim["image"])[1:3]),
                boxes=boxes,
                response=np.asarray(response[i], np.float64),
                masked=np.asarray(attmim["masked"][i], bool),
                reconstruction=np.asarray(attmim["reconstruction"][i], np.float64).reshape(
                    np.shape(attmim["reconstruction"])[1:3]
                ),
                text=texts[i],
                segments=segments.get(row, ()),
                ranking=_ranking(split, scored, row),
            )
        )
    return cases


def case_strips(model: Model, split: Split, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Pictures of cases for a run's event files, the same cases at every call.

    Returns:
      {"cases/NUMBER_FINDING": uint8 [P, 4 P, 3]}: the image, the response map of the finding over it with its boxes,
      the masked patches, and what AttMIM restores.
    """
    chosen = choose_cases(split, None, count)
    if not chosen:
        return {}
    _, _, _, response, attmim = _looked_at(model, split, chosen, seed)
    strips = {}
    for i, (row, kind) in enumerate(chosen):
        image, masked = np.asarray(attmim["image"][i], np.uint8), np.asarray(attmim["masked"][i], bool)
        boxes = [box for box in fit_boxes(split.examples[row].boxes, *split.shapes[row]) if box.kind == kind]
        nothing = np.zeros_like(masked)
        panels = (
            pictures.masked_image(image, nothing),
            pictures.overlay(image, np.asarray(response[i], np.float64), boxes),
            pictures.masked_image(image, masked),
            pictures.masked_image(pictures.as_bytes(attmim["reconstruction"][i]), nothing),
        )
        strips[f"cases/{i + 1}_{kind}"] = np.concatenate(panels, axis=1)
    return strips


def _looked_at(
    model: Model, split: Split, chosen: Sequence[tuple[int, str]], seed: int
) -> tuple[list[np.ndarray], list[str], list[str], np.ndarray, Mapping[str, np.ndarray]]:
    """(images, their texts, the questions about their findings, response maps, what AttMIM does) of chosen cases."""
    rows = [row for row, _ in chosen]
    images = split.pixels(rows)
    texts = [full_text(split.examples[row]).text for row in rows]
    queries = [prompt_of(kind) for _, kind in chosen]
    response = model.response_maps(images, queries, model.config.objective.attmim.response)
    return images, texts, queries, response, model.attmim(images, texts, seed)


def _restored(
    model: Model, split: Split, rows: Sequence[int], images: Sequence[np.ndarray], seed: int
) -> dict[int, tuple[Segment, ...]]:
    """The reports of the paired rows, their affirmed observations and half of the other terms masked and restored."""
    places = [i for i, row in enumerate(rows) if split.examples[row].part == "paired"]
    texts = [split.examples[rows[i]].text for i in places]
    entities = [split.entities(rows[i]) for i in places]
    labels = set(model.config.data.entity_labels)
    masked: list[list[int]] = []
    for i, found in zip(places, entities, strict=True):
        asked = set(affirmed_kinds(found))
        draws = np.random.default_rng([seed, rows[i]]).random(len(found))
        masked.append(
            [
                n
                for n, (entity, draw) in enumerate(zip(found, draws, strict=True))
                if entity.label in labels and (entity.kind in asked or draw < 0.5)
            ]
        )
    if not places:
        return {}
    more = foreign_entities(split, [rows[i] for i in places])
    answers = model.restore([images[i] for i in places], texts, masked, **more)
    result = {}
    for i, text, found, numbers, (true, restored) in zip(places, texts, entities, masked, answers, strict=True):
        groups = np.array(group_by_entity(model, text, found, numbers), np.int64)
        true, restored = np.asarray(true), np.asarray(restored)
        if len(groups) != len(true):
            raise ValueError(f"the model restored {len(true)} tokens, {len(groups)} were masked")
        result[rows[i]] = _segments(model.tokenizer, text, found, groups, true, restored)
    return result


def _segments(
    tokenizer: Any, text: str, entities: Sequence[Any], groups: np.ndarray, true: np.ndarray, restored: np.ndarray
) -> tuple[Segment, ...]:
    segments, at = [], 0
    for number, entity in enumerate(entities):
        if entity.start > at:
            segments.append(Segment(text[at : entity.start]))
        tokens = groups == number
        if tokens.any():
            right = bool((true[tokens] == restored[tokens]).all())
            answer = tokenizer.decode([int(token) for token in restored[tokens]]).strip()
            segments.append(Segment(entity.text, "right" if right else "wrong", answer or "(nothing)", entity.negated))
        else:
            segments.append(Segment(entity.text, "entity", denied=entity.negated))
        at = entity.end
    if at < len(text):
        segments.append(Segment(text[at:]))
    return tuple(segments)


def _ranking(split: Split, scored: ZeroShot, row: int) -> tuple[Ranked, ...]:
    """The highest findings by percentile within the source, and whatever else is truly there."""
    source = split.rows_of(split.examples[row].source)
    scores = scored.scores[scored.score]
    ranked = []
    for k, kind in enumerate(scored.findings):
        state = split.examples[row].labels.get(kind, LabelState.UNKNOWN)
        percentile = 100 * float((scores[source, k] < scores[row, k]).sum()) / max(len(source) - 1, 1)
        ranked.append(Ranked(prompts.display_name(kind), percentile, LabelState(state).name.lower()))
    ranked.sort(key=lambda finding: -finding.percentile)
    return tuple(f for i, f in enumerate(ranked) if i < _TOP or f.truth == "present")
