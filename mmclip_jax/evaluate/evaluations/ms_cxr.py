"""MS-CXR: phrases of MIMIC-CXR reports with the boxes that radiologists drew for them, joined to a built data set.

Both published files are read: MS_CXR_Local_Alignment_v*.json, in the manner of COCO (images with a file name, width and
height; annotations with image_id, category_id, bbox x, y, width, height in pixels of the original, label_text), and the
.csv (dicom_id, category_name, label_text, x, y, w, h, image_width, image_height, ...). Version 1.1.0's column `split`
is not read: it is not that of MIMIC-CXR; the built data set's split counts.
"""

import collections
import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from mmclip_jax.data.images.transforms import fit_boxes
from mmclip_jax.data.schema import Box
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate.base import INSIDE, Context, Evaluation, Part, Result, Results, template
from mmclip_jax.evaluate.base import PHRASES as PHRASE_FILE
from mmclip_jax.evaluate.evaluations import grounding
from mmclip_jax.evaluate.evaluations.grounding import GROUNDING_SECTION, Query
from mmclip_jax.evaluate.model import Model
from mmclip_jax.evaluate.rows import Progress, Split
from mmclip_jax.evaluate.stats.bootstrap import DEFAULT, Bootstrap
from mmclip_jax.text import prompts

_COLUMNS = ("dicom_id", "category_name", "label_text", "x", "y", "w", "h", "image_width", "image_height")


@dataclasses.dataclass(frozen=True)
class Phrase:
    """A phrase and its boxes, as fractions of the image. kind: of its category, "" if the vocabulary has none."""

    image: str
    category: str
    kind: str
    text: str
    boxes: tuple[Box, ...]


def read_phrases(path: str | os.PathLike[str]) -> list[Phrase]:
    """The phrases of a file, in order of their first box; boxes of one image, category and phrase belong together.

    Raises:
      UserError: not one of the two formats, or a box that does not lie in its image; the message names the annotation.
    """
    file = pathlib.Path(path)
    rows = _from_json(file) if file.suffix == ".json" else _from_csv(file)
    grouped: dict[tuple[str, str, str], list[Box]] = collections.defaultdict(list)
    for place, image, category, text, numbers, (width, height) in rows:
        kind = prompts.kind_of(category) or ""
        x, y, w, h = numbers
        # A pixel of rounding beyond the edge is let pass, and cut off.
        if not (width > 0 and height > 0 and w > 0 and h > 0 and x >= -1 and y >= -1 and x + w <= width + 1):
            raise UserError(f"{file}, {place}: the box {numbers} does not lie in an image of {width:g} x {height:g}")
        if y + h > height + 1:
            raise UserError(f"{file}, {place}: the box {numbers} does not lie in an image of {width:g} x {height:g}")
        corners = (x / width, y / height, (x + w) / width, (y + h) / height)
        grouped[image, category, text].append(Box(kind, *(min(max(v, 0.0), 1.0) for v in corners)))
    return [
        Phrase(image, category, boxes[0].kind, text, tuple(boxes)) for (image, category, text), boxes in grouped.items()
    ]


_Row = tuple[str, str, str, str, tuple[float, float, float, float], tuple[float, float]]


def _from_json(file: pathlib.Path) -> list[_Row]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        images = {image["id"]: image for image in content["images"]}
        categories = {category["id"]: category["name"] for category in content["categories"]}
        rows: list[_Row] = []
        for annotation in content["annotations"]:
            image = images[annotation["image_id"]]
            name = pathlib.PurePosixPath(image["file_name"]).stem
            x, y, w, h = map(float, annotation["bbox"])
            size = (float(image["width"]), float(image["height"]))
            text, category = " ".join(annotation["label_text"].split()), str(categories[annotation["category_id"]])
            place = f"annotation {annotation['id']}"
            rows.append((place, name, category, text, (x, y, w, h), size))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise UserError(
            f"{file} is not MS-CXR's JSON ({type(error).__name__}: {error}): it needs images, categories and "
            "annotations with bbox and label_text"
        ) from error
    return rows


def _from_csv(file: pathlib.Path) -> list[_Row]:
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{file} is not MS-CXR's table: it has no column {missing[0]}")
            rows: list[_Row] = []
            for number, row in enumerate(reader, 2):
                x, y, w, h, width, height = (float(row[name]) for name in _COLUMNS[3:])
                size = (width, height)
                text = " ".join(row["label_text"].split())
                rows.append((f"row {number}", row["dicom_id"], row["category_name"], text, (x, y, w, h), size))
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: {error}") from error
    return rows


def queries_of(split: Split, phrases: Sequence[Phrase]) -> tuple[list[Query], int]:
    """(the queries of the phrases whose image is in the split, how many phrases have theirs elsewhere).

    The control is another category's prompt, of one that none of the image's phrases has.
    """
    rows = {example.id: row for row, example in enumerate(split.examples)}
    of_image: dict[str, set[str]] = collections.defaultdict(set)
    for phrase in phrases:
        of_image[phrase.image].add(phrase.kind)
    kinds = [kind for kind in prompts.KINDS if any(phrase.kind == kind for phrase in phrases)]
    queries = []
    for number, phrase in enumerate(phrases):
        if phrase.image not in rows:
            continue
        row = rows[phrase.image]
        absent = [kind for kind in kinds if kind not in of_image[phrase.image]]
        other = absent[number % len(absent)] if absent else ""
        boxes = fit_boxes(phrase.boxes, *split.shapes[row])
        queries.append(Query(row, phrase.kind, boxes, other, phrase.text))
    return queries, len(phrases) - len(queries)


def evaluate(
    model: Model,
    split: Split,
    validation: Split | None,
    file: str | os.PathLike[str],
    *,
    bootstrap: Bootstrap = DEFAULT,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`grounding.evaluate` with the phrases of a file as queries; "elsewhere" counts those of other splits.

    Raises:
      UserError: a damaged file, or none of its images is in the split.
    """
    phrases = read_phrases(file)
    found, elsewhere = queries_of(split, phrases)
    if not found:
        raise UserError(
            f"none of the {len(phrases)} phrases of {file} is of an image in split {split.name!r}: evaluate a built "
            "mimic_cxr, whose ids are dicom_id, and a split that has some"
        )
    result = grounding.evaluate(
        model,
        split,
        validation=validation,
        queries=lambda part: queries_of(part, phrases)[0],
        bootstrap=bootstrap,
        progress=progress,
    )
    assert result is not None
    return result | {"phrases": len(phrases), "elsewhere": elsewhere}


class PhrasesEvaluation(Evaluation[None]):
    """Grounding of the phrases of a file."""

    name = "phrases"
    needs = (INSIDE, PHRASE_FILE)

    def run(self, context: Context) -> Result[None]:
        """See `evaluate`."""
        assert context.inside is not None
        found = evaluate(
            context.inside,
            context.rows,
            context.other_regions,
            context.phrase_file,
            bootstrap=context.bootstrap,
            progress=context.progress,
        )
        return Result(found)

    def parts(self, results: Results, found: None) -> Sequence[Part]:
        """Tables below those of the findings' prompts."""
        return [Part(GROUNDING_SECTION, template("phrases"), guest=True)] if results["phrases"] else ()


PHRASES = PhrasesEvaluation()
