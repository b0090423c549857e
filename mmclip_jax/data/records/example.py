"""What makes an `Example` whole: what follows from its image and its text, and the checks of its promises."""

import io
from collections.abc import Mapping, Sequence
from typing import Required, TypedDict, Unpack

import numpy as np

from mmclip_jax.data import schema
from mmclip_jax.data.images.stored import open_stored
from mmclip_jax.data.schema import SPLITS, Box, Example, LabelState, Mask
from mmclip_jax.text.schema import Entity


def check_example(example: Example) -> None:
    """Raises ValueError, with the example's id, where an example breaks the promises of the schema."""

    def require(holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(f"example {example.id!r}: {what}")

    require(bool(example.id), "the id is empty")
    require(bool(example.source), "the source is empty")
    require(bool(example.patient) and bool(example.study), "patient or study is empty")
    require(example.split in SPLITS, f"split {example.split!r} is not one of {', '.join(SPLITS)}")
    require(example.image[:8] == b"\x89PNG\r\n\x1a\n" or example.image[:2] == b"\xff\xd8", "image is not PNG or JPEG")
    require(len(example.pixels_sha256) == 64, "pixels_sha256 is missing (use finish_example)")
    require(example.original_height > 0 and example.original_width > 0, "the original size is missing")
    require(example.sex in ("M", "F", ""), f"sex {example.sex!r} is not M, F or empty")
    text = example.text
    end = 0
    for entity in example.entities:
        require(end <= entity.start < entity.end, f"entity {entity} overlaps or is not in order")
        require(text[entity.start : entity.end] == entity.text, f"entity {entity} does not match the text")
        end = entity.end
    for mask in example.masks:
        require(mask.image[:8] == b"\x89PNG\r\n\x1a\n", f"the mask of {mask.kind} is not PNG")
    for box in example.boxes:
        require(0 <= box.x_min < box.x_max <= 1 and 0 <= box.y_min < box.y_max <= 1, f"{box} is not within 0..1")


class Stated(TypedDict, total=False):
    """Fields of an `Example` that are stored as the source states them.

    id: unique in the data set. source: the data set's name, which tells hospitals apart. split: "train", "validation"
    or "test". patient: all images of a patient are in one split. study: images of one study share their report.
    view: e.g. "PA", or "". sex: "M", "F" or "". scanner: the manufacturer of the machine, or "". laterality: "L", "R"
    or "B", or "". The rest of an `Example` is an argument of `finish_example`.
    """

    id: Required[str]
    source: Required[str]
    split: Required[str]
    patient: Required[str]
    study: Required[str]
    view: str
    sex: str
    scanner: str
    laterality: str


def finish_example(
    *,
    image: bytes | None = None,
    pixels: np.ndarray | None = None,
    original_size: tuple[int, int] | None = None,
    original_min: float | None = None,
    original_max: float | None = None,
    findings: str = "",
    impression: str = "",
    entities: Sequence[Entity] | None = None,
    labels: Mapping[str, LabelState] | None = None,
    boxes: Sequence[Box] = (),
    masks: Sequence[Mask] = (),
    age: float = float("nan"),
    **stated: Unpack[Stated],
) -> Example:
    """An Example with what can be derived filled in: pixel digest, original size, the report's entities.

    Args:
      image: the encoded file to store, 8-bit grey PNG or JPEG; or else
      pixels: uint8 [H, W], stored as PNG; given together with `image`, they are taken to be its decoded pixels.
      original_size: (height, width) of the file that the image was made from; default: those of the stored image.
      original_min: the least value in that file; default: that of the stored image.
      original_max: the greatest, likewise.
      findings: section of the report; both sections "" make the image unpaired.
      impression: section of the report.
      entities: default: found in the report by `entities.find_entities`.
      labels: kind -> state; kinds that are left out are unknown.
      boxes: lesions, as fractions of the image.
      masks: lesions, as PNG files of the stored image's size.
      age: years, or NaN.
      **stated: see `Stated`; id, source, split, patient and study are required.

    Raises:
      ValueError: neither image nor pixels, or not 8-bit grey.
    """
    image, pixels = _image_and_pixels(stated.get("id", ""), image, pixels)
    if entities is None:
        from mmclip_jax.text.entities import find_entities

        text = schema.report_text(findings, impression)
        entities = find_entities(text) if text else ()
    height, width = original_size or pixels.shape
    return Example(
        **stated,
        age=float(age),
        image=image,
        findings=findings.strip(),
        impression=impression.strip(),
        entities=tuple(entities),
        labels=dict(labels or {}),
        boxes=tuple(boxes),
        masks=tuple(masks),
        pixels_sha256=schema.pixels_sha256(pixels),
        original_height=int(height),
        original_width=int(width),
        original_min=float(pixels.min()) if original_min is None else float(original_min),
        original_max=float(pixels.max()) if original_max is None else float(original_max),
    )


def _image_and_pixels(id: str, image: bytes | None, pixels: np.ndarray | None) -> tuple[bytes, np.ndarray]:
    """The file to store and its pixels, of which one may be missing."""
    from PIL import Image

    if pixels is None:
        if image is None:
            raise ValueError(f"example {id!r}: neither image nor pixels given")
        with open_stored(image) as opened:
            mode, pixels = f"{opened.format} {opened.mode}", np.asarray(opened)
        if not mode.endswith(" L"):
            raise ValueError(f"example {id!r}: stored images are 8-bit grey PNG or JPEG, not {mode}")
    if pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise ValueError(f"example {id!r}: pixels are uint8 [H, W], not {pixels.dtype} {pixels.shape}")
    if image is None:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        image = stream.getvalue()
    return image, pixels
