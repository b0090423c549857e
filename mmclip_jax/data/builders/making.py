"""Makes examples from items: reads images, and brings boxes and masks to their size. Runs in any process.

Chunks of examples are kept in a folder beside the data set until it is built: a build continues where it stopped.
"""

import dataclasses
import hashlib
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import mmclip_jax
from mmclip_jax.data import records
from mmclip_jax.data import unfinished as unfinished_lib
from mmclip_jax.data.builders import files
from mmclip_jax.data.builders.cells import BadRow, fraction_box, parse_age, parse_sex, parse_view
from mmclip_jax.data.builders.items import FRONTAL_VIEWS, LEFT_OUT, ON_PURPOSE, SHOWN_BY_RANGE, Item, Reject
from mmclip_jax.data.builders.masks import bounds, decode, looks_like_mask, to_png
from mmclip_jax.data.images import dicom
from mmclip_jax.data.images.store import store_image
from mmclip_jax.data.schema import Example, Mask
from mmclip_jax.errors import UserError
from mmclip_jax.text import recognisers, vocabulary

_CHUNK = 64
_CHUNK_SUFFIX = ".chunk"


def chunked(items: Sequence[Item]) -> list[Sequence[Item]]:
    """The items in pieces that one process makes at a time."""
    return [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]


@dataclasses.dataclass(frozen=True)
class Storing:
    """What, beside the items themselves, determines the examples that are made of them."""

    source: str
    version: str
    shorter_side: int
    encoding: str
    entities: str = recognisers.LEXICON
    language: str = vocabulary.ENGLISH
    words: str = ""
    frontal: bool = False
    box_flags: str = ""
    refuses_masks: bool = True
    package: str = mmclip_jax.__version__


def make_chunk(storing: Storing, directory: pathlib.Path, items: Sequence[Item]) -> list[Example | Reject]:
    """Makes a chunk of examples, or takes it from an earlier run that made it of the same rows and files.

    A chunk is written whole or not at all. One with a reject is not kept: the file may be mended by the next run.
    """
    stamps = [files.stamp(item.file) for item in items]
    digest = hashlib.sha256(repr((storing, items, stamps)).encode()).hexdigest()
    file = directory / f"{digest}{_CHUNK_SUFFIX}"
    if (kept := _read_chunk(file)) is not None:
        return kept
    made = [each for item in items for each in make_example(item, storing)]
    examples = [(n, each) for n, each in enumerate(made) if isinstance(each, Example) and each.text]
    recognised = recognisers.load(storing.entities, storing.language).recognise([each.text for _, each in examples])
    for (n, example), entities in zip(examples, recognised, strict=True):
        made[n] = dataclasses.replace(example, entities=tuple(entities))
    if not any(isinstance(each, Reject) and each.consequence == LEFT_OUT for each in made):
        unfinished = file.with_suffix(f".{os.getpid()}")
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            for each in made:
                if isinstance(each, Reject):
                    unfinished_lib.write(stream, {"reject": dataclasses.astuple(each)}, [])
                else:
                    unfinished_lib.write(stream, *unfinished_lib.example_parts(each))
        os.replace(unfinished, file)
    return made


def private_folder(folder: pathlib.Path) -> None:
    """Makes the folder of chunks, for its owner alone. What killed builds of other versions left goes."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    for left in folder.iterdir():
        process = left.suffix[1:]
        if left.suffix == _CHUNK_SUFFIX or (process.isdecimal() and pathlib.Path(f"/proc/{process}").exists()):
            continue
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink(missing_ok=True)


def _read_chunk(file: pathlib.Path) -> list[Example | Reject] | None:
    """What an earlier run made; None if there is nothing, or it is damaged."""
    try:
        with open(file, "rb") as stream:
            return [
                Reject(*values["reject"]) if "reject" in values else unfinished_lib.example_of(values, pictures)
                for values, pictures in unfinished_lib.read(stream)
            ]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, LookupError):
        return None


def make_example(item: Item, storing: Storing) -> Iterator[Example | Reject]:
    """Yields the example of one image, or why there is none; before it, why a window that its file names is not used.

    Entities are added later: the recogniser takes many reports at once.
    """
    try:
        data = files.read_bytes(item.file)
        stored = store_image(
            data, shorter_side=storing.shorter_side, value_range=item.value_range, encoding=storing.encoding
        )
        if storing.refuses_masks and looks_like_mask(stored.pixels):
            raise BadRow("the image has two values only: it is a mask, not a radiograph")
        size = (float(stored.original_width), float(stored.original_height))
        try:
            frame = _frame_of(item, size, dicom.is_dicom(data))
            boxes = [fraction_box(kind, numbers, frame, item.box_format) for kind, numbers in item.boxes]
        except BadRow as bad:
            raise BadRow(f"{bad}; see {storing.box_flags}" if storing.box_flags else str(bad)) from None
        regions: dict[str, Any] = {}
        for runs in item.masks:
            _check_shape((float(runs.width), float(runs.height)), size, "the mask")
            inside = decode(runs)
            boxes.append(fraction_box(runs.kind, bounds(inside), (float(runs.width), float(runs.height)), "xywh"))
            regions[runs.kind] = regions[runs.kind] | inside if runs.kind in regions else inside
    except (BadRow, UserError, OSError) as error:
        yield Reject(item.table, item.row, item.id, str(error))
        return
    if item.from_header and dicom.is_dicom(data):
        item = _with_header(item, data)
        if storing.frontal and item.view not in FRONTAL_VIEWS:
            yield Reject(item.table, item.row, item.id, f"view {item.view}", ON_PURPOSE)
            return
    if stored.note:
        yield Reject(item.table, item.row, item.id, stored.note, SHOWN_BY_RANGE)
    yield records.finish_example(
        id=item.id,
        source=storing.source,
        split=item.split,
        patient=item.patient,
        study=item.study,
        image=stored.image,
        pixels=stored.pixels,
        original_size=(stored.original_height, stored.original_width),
        original_min=stored.original_min,
        original_max=stored.original_max,
        findings=item.findings,
        impression=item.impression,
        entities=(),
        labels=item.labels,
        boxes=boxes,
        masks=[Mask(kind, to_png(inside, *stored.pixels.shape)) for kind, inside in sorted(regions.items())],
        view=item.view,
        sex=item.sex,
        age=item.age,
        scanner=item.scanner,
        laterality=item.laterality,
    )


def _with_header(item: Item, data: bytes) -> Item:
    """The item with view, sex and age of its DICOM header where tables give none; what cannot be read is unknown."""
    try:
        header = dicom.read_header(data)
        view, sex, age = (str(header.get(name) or "") for name in ("ViewPosition", "PatientSex", "PatientAge"))
    except Exception:  # pydicom reads values when they are asked for, and raises whatever a damaged one leads to
        return item
    years = None if age.strip() in ("000Y", "0") else parse_age(age.strip())  # what is written where nothing is known
    try:
        sex = parse_sex(sex.strip())
    except BadRow:
        sex = ""
    return dataclasses.replace(
        item,
        view=item.view or parse_view(view),
        sex=item.sex or sex,
        age=(math.nan if years is None else years) if math.isnan(item.age) else item.age,
    )


RESIZED = "the boxes are in pixels of the DICOM file, and this image may have been resized. Give the original size"


def _frame_of(item: Item, size: tuple[float, float], is_dicom: bool) -> tuple[float, float]:
    """(width, height) that box numbers are divided by; `size` is the image file's."""
    frame = item.frame
    if frame == "dicom" and item.boxes and not is_dicom:
        raise BadRow(RESIZED)
    if frame == "fraction":
        return 1.0, 1.0
    if isinstance(frame, str):
        return size
    if item.boxes and not item.frame_was_told:
        _check_shape(frame, size, "boxes")
    return frame


def _check_shape(frame: tuple[float, float], size: tuple[float, float], what: str) -> None:
    """Raises BadRow where the frame of boxes or masks and the image are not of one shape."""
    if abs(frame[0] / frame[1] * size[1] / size[0] - 1) > 0.01:
        raise BadRow(
            f"{what} in a frame of {frame[0]:g} x {frame[1]:g}, but the image has {size[0]:g} x {size[1]:g} pixels"
        )
