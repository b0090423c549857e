"""The canonical example: what one image of any source looks like on disk and in memory.

Every builder yields `Example`s, every reader gets them back. On disk an example is one record of an ArrayRecord file
written by TensorFlow Datasets; `features`, `to_features` and `from_features` are the only code that knows that form.
"""

import dataclasses
import enum
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmclip_jax.text.schema import Entity, report_text, section_border

SPLITS = ("train", "validation", "test")
PARTS = ("paired", "unpaired")


class LabelState(enum.IntEnum):
    """What a source says of one disease kind in one image. A kind that is not listed is UNKNOWN."""

    UNKNOWN = -1
    ABSENT = 0
    PRESENT = 1
    UNCERTAIN = 2


@dataclasses.dataclass(frozen=True)
class Box:
    """A lesion's box as fractions of the stored image: x to the right, y down, 0 <= min < max <= 1."""

    kind: str
    x_min: float
    y_min: float
    x_max: float
    y_max: float


@dataclasses.dataclass(frozen=True)
class Mask:
    """Where a lesion is, pixel by pixel: `image` is a PNG of the stored image's size, white inside, black outside."""

    kind: str
    image: bytes


@dataclasses.dataclass(frozen=True)
class Example:
    """One image with everything its source knows of it.

    image: the encoded file (PNG or JPEG, 8-bit grey) as stored. `text` is the report that entity offsets refer to.
    age in years, NaN where unknown; sex "M", "F" or ""; view e.g. "PA", "AP", "" where unknown; scanner: the
    manufacturer of the machine; laterality: "L", "R" or "B", the side that is shown; "" where unknown.
    original_height, original_width: pixels of the file that the stored image was made from; original_min, original_max:
    the values that they had there, NaN where unknown.
    """

    id: str
    image: bytes
    source: str
    split: str
    patient: str
    study: str
    view: str = ""
    sex: str = ""
    age: float = float("nan")
    findings: str = ""
    impression: str = ""
    entities: tuple[Entity, ...] = ()
    labels: Mapping[str, LabelState] = dataclasses.field(default_factory=dict)
    boxes: tuple[Box, ...] = ()
    masks: tuple[Mask, ...] = ()
    pixels_sha256: str = ""
    original_height: int = 0
    original_width: int = 0
    original_min: float = float("nan")
    original_max: float = float("nan")
    scanner: str = ""
    laterality: str = ""

    @property
    def text(self) -> str:
        """The report: findings, then impression, on lines of their own; "" for an unpaired image."""
        return report_text(self.findings, self.impression)

    @property
    def part(self) -> str:
        """The part it belongs to: "paired" where there is a report, else "unpaired"."""
        return "paired" if self.text else "unpaired"


def pixels_sha256(pixels: np.ndarray) -> str:
    """Digest of the decoded pixels [H, W] uint8, independent of how the file was compressed."""
    header = f"{pixels.shape[0]}x{pixels.shape[1]}:{pixels.dtype}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(pixels).tobytes()).hexdigest()


# How `report_text` joined the sections when a record was written: 1 by one line end always, 2 as it does now.
_REPORT_FORM = 2

_TEXT_FIELDS = (
    "id", "source", "split", "patient", "study", "view", "sex", "findings", "impression", "pixels_sha256", "scanner",
    "laterality",
)  # fmt: skip
LATER_FIELDS = ("scanner", "laterality")
"""Texts that older records do not have; where they say nothing, they change no digest."""


def features() -> Any:
    """The TFDS feature structure of an example."""
    import tensorflow_datasets as tfds

    text = tfds.features.Text
    return tfds.features.FeaturesDict(
        {name: text() for name in _TEXT_FIELDS}
        | {
            "image": tfds.features.Image(shape=(None, None, 1)),
            "age": np.float32,
            "report_form": np.int32,
            "original_height": np.int32,
            "original_width": np.int32,
            "original_min": np.float32,
            "original_max": np.float32,
            "entities": tfds.features.Sequence(
                {"start": np.int32, "end": np.int32, "label": text(), "negated": np.bool_, "kind": text()}
            ),
            "labels": tfds.features.Sequence({"kind": text(), "state": np.int32}),
            "boxes": tfds.features.Sequence(
                {"kind": text(), "x_min": np.float32, "y_min": np.float32, "x_max": np.float32, "y_max": np.float32}
            ),
            "masks": tfds.features.Sequence({"kind": text(), "image": text()}),
        }
    )


def to_features(example: Example) -> dict[str, Any]:
    """The dictionary that a TFDS builder yields for `example`."""
    return {name: getattr(example, name) for name in _TEXT_FIELDS} | {
        "image": example.image,
        "age": example.age,
        "report_form": _REPORT_FORM,
        "original_height": example.original_height,
        "original_width": example.original_width,
        "original_min": example.original_min,
        "original_max": example.original_max,
        "entities": [
            {"start": e.start, "end": e.end, "label": e.label, "negated": e.negated, "kind": e.kind}
            for e in example.entities
        ],
        "labels": [{"kind": kind, "state": int(state)} for kind, state in sorted(example.labels.items())],
        "boxes": [dataclasses.asdict(box) for box in example.boxes],
        "masks": [dataclasses.asdict(mask) for mask in example.masks],
    }


def from_features(features: Mapping[str, Any]) -> Example:
    """Reads back what `to_features` wrote, as a TFDS data source returns it (image undecoded, text as bytes).

    Records that were written before there were masks, value ranges, scanners and sides are read as having none. Of
    those that were written when one line end stood between all sections, entities are moved to where they stand now.
    """
    told = [name for name in _TEXT_FIELDS if name in features or name not in LATER_FIELDS]
    texts = {name: bytes(features[name]).decode() for name in told}
    report = report_text(texts["findings"], texts["impression"])
    entities, labels, boxes = features["entities"], features["labels"], features["boxes"]
    starts, ends = [int(start) for start in entities["start"]], [int(end) for end in entities["end"]]
    moved = len(section_border(texts["findings"].strip(), texts["impression"].strip())) - 1
    if moved > 0 and int(features.get("report_form", 1)) < 2:
        findings_end = len(texts["findings"].strip())
        starts, ends = ([at + moved if at > findings_end else at for at in places] for places in (starts, ends))
    masks = features.get("masks", {"kind": (), "image": ()})
    return Example(
        **texts,
        image=bytes(features["image"]),
        age=float(features["age"]),
        original_height=int(features["original_height"]),
        original_width=int(features["original_width"]),
        original_min=float(features.get("original_min", math.nan)),
        original_max=float(features.get("original_max", math.nan)),
        entities=tuple(
            Entity(start, end, report[start:end], label.decode(), bool(negated), kind.decode())
            for start, end, label, negated, kind in zip(
                starts,
                ends,
                entities["label"],
                entities["negated"],
                entities["kind"],
                strict=True,
            )
        ),
        labels={
            kind.decode(): LabelState(int(state)) for kind, state in zip(labels["kind"], labels["state"], strict=True)
        },
        boxes=tuple(
            Box(kind.decode(), *(float(v) for v in corners))
            for kind, *corners in zip(
                boxes["kind"], boxes["x_min"], boxes["y_min"], boxes["x_max"], boxes["y_max"], strict=True
            )
        ),
        masks=tuple(
            Mask(kind.decode(), bytes(image)) for kind, image in zip(masks["kind"], masks["image"], strict=True)
        ),
    )
