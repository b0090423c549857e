"""The one definition of a batch: its parts, and the fields of a row with their shapes and dtypes.

A batch is {part: {field: array [B, ...]}}; a part without rows is left out. The pipeline makes it, the train step takes
it, the planner counts it. With S = model.image_size, L = model.text.length, K = len(prompts.KINDS) a row has

    image     uint8 [S,S,1]  augmented; where devices augment, the stored image in the corner of [C,C,1]: a row
                             has its pixels alone, `stack_rows` puts them there. Then a row also has
    extent    int32 [2]      height and width of the image (`images.transforms.for_device`)
    affine    float32 [6]    where each pixel of the model's image comes from
    tone      float32 [2]    brightness and contrast
    tokens    int32 [L]      padded with 0
    entity    int32 [L]      0, or the number of the token's entity from 1; -1: a mark around the text
    affirmed  bool [L]       tokens of observations and devices that are not negated
    negative  int32 [L]      the text with one thing turned round (text/flips.py), all 0 where nothing could be; it is
                             there only where the hard negatives have a weight
    text_id   int32 [2]      of the study and of the meaning: texts with one of them equal are positives
    stated    int8 [K]       +1 stated present, −1 stated absent, 0
    known     int8 [K]       likewise what is known of the image, whatever the drawn text states of it
    source    int32 []       number of the data set that the image is from, −1 not known
    damaged   int32 []       number of the record that this one stands in for, −1 none
    record    int32 []       number of the record; it stays on the host
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mmclip_jax.data.schema import PARTS
from mmclip_jax.text import prompts

Row = dict[str, np.ndarray]
Batch = dict[str, Row]

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in {
        "image": np.uint8,
        "extent": np.int32,
        "affine": np.float32,
        "tone": np.float32,
        "tokens": np.int32,
        "entity": np.int32,
        "affirmed": np.bool_,
        "negative": np.int32,
        "text_id": np.int32,
        "stated": np.int8,
        "known": np.int8,
        "source": np.int32,
        "damaged": np.int32,
        "record": np.int32,
    }.items()
}
ON_HOST = ("record",)  # fields that do not go to the devices
AUGMENTATION = ("extent", "affine", "tone")  # fields that are there where devices augment


class Field(NamedTuple):
    """Shape and dtype of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype


def settle_augmentation(config: Any, accelerated: bool) -> None:
    """Says what `data.augment_on=auto` is: the step's work on accelerators, that of who makes the rows on CPUs."""
    if config.data.augment_on == "auto":
        config.data.augment_on = "device" if accelerated else "host"


def augments_on_device(config: Any) -> bool:
    """Whether the step augments the images, not who makes the rows; "auto" is settled before (train/run.py)."""
    return bool(config.data.get("augment_on", "host") == "device")


def image_side(config: Any) -> int:
    """Pixels of the side of a row's image: of what is made of it, or of the canvas that a device makes it from."""
    size = int(config.model.image_size)
    if not augments_on_device(config):
        return size
    # An image that shrinks by 1.5 or more is averaged over blocks before, so none is larger.
    return int(1.5 * size * (1.0 + float(config.data.augment.scale))) + 1


def fields(config: Any) -> dict[str, Field]:
    """The fields of one row that go to the devices; config: a run's settings."""
    side, length = image_side(config), int(config.model.text.length)
    of_tokens = dict.fromkeys(("tokens", "entity", "affirmed", "negative"), (length,))
    of_kinds = dict.fromkeys(("stated", "known"), (len(prompts.KINDS),))
    shapes = {"image": (side, side, 1), "text_id": (2,), "extent": (2,), "affine": (6,), "tone": (2,)}
    shapes |= of_kinds | of_tokens
    left_out = {*ON_HOST}
    if not augments_on_device(config):
        left_out.update(AUGMENTATION)
    if not has_negatives(config):
        left_out.add("negative")
    return {name: Field(shapes.get(name, ()), dtype) for name, dtype in DTYPES.items() if name not in left_out}


def has_negatives(config: Any) -> bool:
    """Whether rows have the field `negative`; config: a run's settings."""
    return bool(config.objective.hard_negatives.weight)


def sizes(config: Any) -> dict[str, int]:
    """Rows of each part of the global batch, parts without rows left out."""
    return {part: int(config.data[f"batch_{part}"]) for part in PARTS if config.data[f"batch_{part}"]}


def total_rows(config: Any) -> int:
    """Rows of the global batch."""
    return sum(sizes(config).values())


def row_bytes(config: Any) -> int:
    """Bytes of one row on the devices."""
    return sum(int(np.prod(field.shape)) * field.dtype.itemsize for field in fields(config).values())


def shapes(config: Any) -> dict[str, dict[str, Field]]:
    """Shape and dtype of every array of the global batch that goes to the devices."""
    return {
        part: {name: Field((rows, *field.shape), field.dtype) for name, field in fields(config).items()}
        for part, rows in sizes(config).items()
    }


def zeros(config: Any) -> Batch:
    """A global batch of zeros: blank images, empty texts."""
    return {part: {name: np.zeros(*field) for name, field in rows.items()} for part, rows in shapes(config).items()}


def stack_rows(rows: Sequence[Row], side: int = 0) -> Row:
    """Rows {field: [...]} as one {field: [len(rows), ...]}.

    side: of the canvas into whose left upper corner each image [h,w] of rows for devices is put; 0: images are whole.
    """
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0] if not (side and name == "image")}
    if side:
        # Memory that is never touched costs nothing, and each pixel is copied once.
        canvas = stacked["image"] = np.zeros((len(rows), side, side, 1), np.uint8)
        for place, row in zip(canvas, rows, strict=True):
            height, width = row["image"].shape
            place[:height, :width, 0] = row["image"]
    return stacked
