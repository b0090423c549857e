"""Examples in files of an unfinished build: JSON with the pictures beside it, which executes nothing when read."""

import dataclasses
import hashlib
import json
import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

from mmclip_jax.data.schema import Box, Example, LabelState, Mask
from mmclip_jax.text.schema import Entity

_SIZES = struct.Struct("<QQ")


def example_parts(example: Example) -> tuple[dict[str, Any], list[bytes]]:
    """What `example_of` takes back: plain values, and the pictures."""
    values = {field.name: getattr(example, field.name) for field in dataclasses.fields(Example)}
    del values["image"]
    values["labels"] = {kind: int(state) for kind, state in example.labels.items()}
    values["entities"] = [dataclasses.astuple(entity) for entity in example.entities]
    values["boxes"] = [dataclasses.astuple(box) for box in example.boxes]
    values["masks"] = [mask.kind for mask in example.masks]
    return values, [example.image, *(mask.image for mask in example.masks)]


def example_of(values: dict[str, Any], pictures: list[bytes]) -> Example:
    """The example of `example_parts`."""
    return Example(
        **{
            **values,
            "image": pictures[0],
            "labels": {kind: LabelState(state) for kind, state in values["labels"].items()},
            "entities": tuple(Entity(*entity) for entity in values["entities"]),
            "boxes": tuple(Box(*box) for box in values["boxes"]),
            "masks": tuple(Mask(kind, image) for kind, image in zip(values["masks"], pictures[1:], strict=True)),
        }
    )


def write(stream: BinaryIO, values: dict[str, Any], pictures: list[bytes]) -> None:
    """Appends one entry."""
    head = json.dumps(
        {"values": values, "sizes": [len(picture) for picture in pictures]}, default=lambda number: number.item()
    ).encode("utf-8", "surrogatepass")
    body = b"".join([head, *pictures])
    stream.write(_SIZES.pack(len(head), len(body) - len(head)))
    stream.write(body)
    stream.write(hashlib.sha256(body).digest())


def read(stream: BinaryIO) -> Iterator[tuple[dict[str, Any], list[bytes]]]:
    """All entries of a file.

    Raises:
      ValueError: it was cut off, or changed.
    """
    start = stream.tell()
    end = stream.seek(0, os.SEEK_END)
    stream.seek(start)
    while sizes := stream.read(_SIZES.size):
        head_size, pictures_size = _SIZES.unpack(sizes) if len(sizes) == _SIZES.size else (end, end)
        if head_size + pictures_size > end:  # never more than there is
            raise ValueError("an entry is cut off")
        body = stream.read(head_size + pictures_size)
        if hashlib.sha256(body).digest() != stream.read(hashlib.sha256().digest_size):
            raise ValueError("an entry is cut off or changed")
        head = json.loads(body[:head_size])
        pictures, at = [], head_size
        for size in head["sizes"]:
            pictures.append(body[at : at + size])
            at += size
        yield head["values"], pictures
