"""A model that reads what was planted in an image, so that every number of an evaluation is known beforehand.

Pixels [H, W] of a toy image: rows 0 and 4 hold the high and the low byte of a score of each kind, row 1 the number of
the patch that responds to it, row 2 whether the image "shows" it (for EntMLM), row 3 the source (0 or 1).
"""

import io
import math
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmclip_jax.data.images.transforms import fit_image
from mmclip_jax.data.records import finish_example
from mmclip_jax.data.schema import Box, Example, LabelState
from mmclip_jax.text.entities import find_entities
from mmclip_jax.text.schema import Entity

KINDS = ("pleural_effusion", "cardiomegaly", "pneumothorax", "nodule", "fibrosis")
NAMES = ("pleural effusion", "cardiomegaly", "pneumothorax", "nodule", "fibrosis")
SIDE, GRID = 48, 6
MOST = 9999
SOURCES = ("here", "there")


def plant(
    scores: Sequence[int],
    patches: Sequence[int] = (0,) * len(KINDS),
    shown: Sequence[int] = (0,) * len(KINDS),
    source: int = 0,
    shape: tuple[int, int] = (SIDE, SIDE),
) -> np.ndarray:
    """Pixels uint8 of a toy image; scores are 0..MOST."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    pixels = (90 + 70 * np.sin(x / 7.0) * np.cos(y / 9.0)).astype(np.uint8)
    high_low = np.divmod(np.asarray(scores), 256)
    for row, values in ((0, high_low[0]), (1, patches), (2, shown), (4, high_low[1])):
        pixels[row, : len(KINDS)] = values
    pixels[3, 0] = source
    return pixels


def planted_scores(pixels: np.ndarray) -> np.ndarray:
    """The scores [K] of a toy image."""
    return 256 * pixels[0, : len(KINDS)].astype(int) + pixels[4, : len(KINDS)]


def example(
    number: int,
    pixels: np.ndarray,
    labels: dict[str, LabelState],
    *,
    patient: str | None = None,
    report: str = "",
    boxes: tuple[Box, ...] = (),
    source: str = SOURCES[0],
    split: str = "test",
) -> Example:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return finish_example(
        id=f"{source}-{number}",
        source=source,
        split=split,
        patient=patient or f"p{number}",
        study=f"s{number}",
        image=stream.getvalue(),
        pixels=pixels,
        findings=report,
        labels=labels,
        boxes=boxes,
        view="PA",
    )


class ToyTokenizer:
    """A token a word."""

    def __init__(self) -> None:
        self._words: list[str] = ["[PAD]", "[MASK]", "[WRONG]"]

    def number(self, word: str) -> int:
        if word not in self._words:
            self._words.append(word)
        return self._words.index(word)

    def tokenize(
        self, text: str, entities: Sequence[Entity], length: int, *, entity_labels: Sequence[str] = ()
    ) -> types.SimpleNamespace:
        tokens, entity = np.zeros(length, np.int32), np.zeros(length, np.int32)
        at = 0
        for i, word in enumerate(text.split()[:length]):
            start = text.index(word, at)
            at = start + len(word)
            tokens[i] = self.number(word.strip(".,").lower())
            for n, e in enumerate(entities):
                if e.label in entity_labels and start < e.end and e.start < at:
                    entity[i] = n + 1
        return types.SimpleNamespace(tokens=tokens, entity=entity)

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self._words[i] for i in ids)


class ToyModel:
    """See the module's words. `calls` counts the images that each method was given."""

    step = 7
    logit_scale = 10.0

    def __init__(self, manifest: dict[str, Any] | None = None, length: int = 64, see_source: float = 0.0):
        sizes = types.SimpleNamespace(depth=0, width=len(KINDS))
        self.tokenizer = ToyTokenizer()
        self.manifest = manifest if manifest is not None else {}
        self.see_source = see_source
        self.config = types.SimpleNamespace(
            model=types.SimpleNamespace(
                image_size=SIDE,
                patch_size=SIDE // GRID,
                embed_dim=2 * len(KINDS) + 2,
                image=sizes,
                text=types.SimpleNamespace(depth=0, width=0, length=length),
            ),
            objective=types.SimpleNamespace(attmim=types.SimpleNamespace(response="similarity")),
            data=types.SimpleNamespace(
                entity_labels=("observation", "device", "anatomy"), share_no_finding=True, train=(), evaluate=()
            ),
        )

    def encode_image(self, images: Sequence[np.ndarray]) -> np.ndarray:
        out = np.zeros((len(images), 2 * len(KINDS) + 2), np.float64)
        for row, pixels in zip(out, images, strict=True):
            angle = planted_scores(pixels) / MOST * math.pi / 2
            row[: len(KINDS)], row[len(KINDS) : -2] = np.sin(angle), np.cos(angle)
            row[-2 + min(int(pixels[3, 0]), 1)] = self.see_source
        return (out / np.linalg.norm(out, axis=1, keepdims=True)).astype(np.float32)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        out = np.full((len(texts), 2 * len(KINDS) + 2), 1e-6)
        for row, text in zip(out, texts, strict=True):
            for e in find_entities(text):
                if e.kind in KINDS:
                    row[KINDS.index(e.kind) + e.negated * len(KINDS)] = 1.0
        return (out / np.linalg.norm(out, axis=1, keepdims=True)).astype(np.float32)

    def response_maps(
        self, images: Sequence[np.ndarray], texts: Sequence[str], response: str = "similarity"
    ) -> np.ndarray:
        maps = np.zeros((len(images), GRID, GRID), np.float32)
        if response == "similarity":
            for m, pixels, text in zip(maps, images, texts, strict=True):
                kinds = [e.kind for e in find_entities(text) if e.kind in KINDS]
                m.flat[pixels[1, KINDS.index(kinds[0])] if kinds else 0] = 1.0
        return maps

    def attmim(self, images: Sequence[np.ndarray], texts: Sequence[str], seed: int = 0) -> dict[str, np.ndarray]:
        fitted = np.stack([fit_image(pixels, SIDE)[:, :, 0] for pixels in images])
        masked = np.zeros((len(images), GRID, GRID), bool)
        masked[:, ::2] = True
        hidden = masked.repeat(SIDE // GRID, axis=1).repeat(SIDE // GRID, axis=2)
        reconstruction = np.where(hidden, 0.8 * fitted + 20, fitted).astype(np.float32)
        return {
            "response": self.response_maps(images, texts),
            "masked": masked,
            "reconstruction": reconstruction,
            "image": fitted,
        }

    def restore(
        self,
        images: Sequence[np.ndarray],
        texts: Sequence[str],
        masked_entities: Sequence[Sequence[int]],
        entities: Sequence[Sequence[Entity]] | None = None,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Right where the image shows the entity's kind, else [WRONG]; entities of no toy kind are always right."""
        answers = []
        found = entities or [find_entities(text) for text in texts]
        for pixels, text, masked, named in zip(images, texts, masked_entities, found, strict=True):
            length = self.config.model.text.length
            t = self.tokenizer.tokenize(
                text, named, length, entity_labels=("observation", "device", "anatomy", "modifier")
            )
            places = [i for i in range(length) if t.entity[i] and t.entity[i] - 1 in masked]
            true = t.tokens[places]
            kinds = [named[t.entity[i] - 1].kind for i in places]
            seen = np.array([k not in KINDS or bool(pixels[2, KINDS.index(k)]) for k in kinds], bool)
            answers.append((true, np.where(seen, true, 2).astype(np.int32)))
        return answers


def report_of(present: Sequence[int], rng: np.random.Generator) -> str:
    """A plain report that affirms these kinds and denies one other."""
    sentences = [f"There is {NAMES[k]}." for k in present]
    others = [k for k in range(len(KINDS)) if k not in present]
    if others:
        sentences.append(f"No {NAMES[others[int(rng.integers(len(others)))]]}.")
    return " ".join(sentences)


def collection(
    patients: int = 60, seed: int = 0, split: str = "test", paired_only: bool = False, first: int = 0
) -> list[Example]:
    """Two sources: the first with reports and boxes, the second with labels only (and without fibrosis).

    Patients are numbered from `first`. Scores rise with the label but overlap; the responding patch lies in the box
    three times out of four; the picture shows exactly the kinds that are present.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(patients):
        for study in range(1 + number % 2):
            present = [k for k in range(len(KINDS)) if rng.random() < 0.35]
            source = 0 if paired_only else int(number % 3 == 2)
            scores = [
                int(np.clip(rng.normal(5800 if k in present else 4000, 1500), 0, MOST)) for k in range(len(KINDS))
            ]
            patches, boxes = [], []
            for k in range(len(KINDS)):
                row, column = (int(v) for v in rng.integers(0, GRID - 2, 2))
                away = rng.random() < 0.25
                patches.append((GRID * GRID - 1) if away else row * GRID + column)
                if k in present and source == 0:
                    boxes.append(Box(KINDS[k], column / GRID, row / GRID, (column + 2) / GRID, (row + 2) / GRID))
            shown = [int(k in present) for k in range(len(KINDS))]
            labels = {
                kind: LabelState.PRESENT if k in present else LabelState.ABSENT
                for k, kind in enumerate(KINDS)
                if not (source == 1 and kind == "fibrosis")
            }
            if number % 7 == 0:
                labels["nodule"] = LabelState.UNCERTAIN
            if number % 11 == 0:
                del labels["cardiomegaly"]
            rows.append(
                example(
                    10 * (first + number) + study,
                    plant(scores, patches, shown, source),
                    labels,
                    patient=f"p{first + number}",
                    report=report_of(present, rng) if source == 0 else "",
                    boxes=tuple(boxes),
                    source=SOURCES[source],
                    split=split,
                )
            )
    return rows


MANIFEST = {
    "exposure": {
        "sources": {"here": {"paired": 600, "unpaired": 0}, "there": {"paired": 0, "unpaired": 300}},
        "label_kinds": {"there": [kind for kind in KINDS if kind != "fibrosis"]},
        "report_kinds": {"here": list(KINDS)},
    }
}
