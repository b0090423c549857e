"""A page that shows what a built data set holds, with examples as pictures: `mmclip data info PATH --html FILE`."""

import base64
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from mmclip_jax.data import records
from mmclip_jax.data.images.stored import strip_metadata
from mmclip_jax.data.schema import PARTS, SPLITS, Example, LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.text import prompts
from mmclip_jax.text.schema import Entity

TEMPLATE = "info.html.j2"
OWN_DATA = "phantom"
"""The only data set without real patients: its texts are always shown."""


def write_page(
    path: str | os.PathLike[str], file: str | os.PathLike[str], *, examples: int = 8, show_text: bool = False
) -> pathlib.Path:
    """Writes one self-contained HTML file about a built data set.

    Args:
      path: as `records.dataset_dir` takes it.
      file: to write.
      examples: pictures of each split and part, evenly spread over its records.
      show_text: whether to show ids and reports of other data than the phantom.

    Returns:
      The file.

    Raises:
      UserError: there is no data set, or more than one.
    """
    import jinja2

    directory = records.dataset_dir(path)
    facts = records.dataset_facts(directory)
    names = [f"{split}_{part}" for split in SPLITS for part in PARTS if f"{split}_{part}" in facts["splits"]]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template(TEMPLATE).render(
        facts=facts,
        labels=_labels(facts),
        mentions=_mentions(facts),
        parts={name: facts["splits"][name] for name in names},
        pictures={name: _pictures(directory, name, examples) for name in names},
        show_text=show_text or facts["name"] == OWN_DATA,
    )
    file = pathlib.Path(file)
    file.write_text(page, encoding="utf-8")
    return file


def _labels(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each finding that has a label or a box, in the vocabulary's order; shares are of all images."""
    boxes: dict[str, int] = {}
    for part in facts["splits"].values():
        for kind, count in part["boxes"].items():
            boxes[kind] = boxes.get(kind, 0) + count
    rows = []
    for kind in prompts.KINDS:
        counts = facts["labels"].get(kind)
        if counts or kind in boxes:
            counts = counts or {"present": 0, "absent": 0, "uncertain": 0}
            unknown = facts["examples"] - sum(counts.values())
            shares = {state: 100 * count / facts["examples"] for state, count in counts.items()}
            rows.append(
                {
                    "name": prompts.display_name(kind),
                    "counts": counts,
                    "unknown": unknown,
                    "shares": shares,
                    "boxes": boxes.get(kind, 0),
                }
            )
    return rows


def _mentions(facts: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """(finding, reports that affirm it, reports that deny it), most frequent first."""
    totals: dict[str, list[int]] = {}
    for part in facts["splits"].values():
        for place, polarity in enumerate(("affirmed", "negated")):
            for kind, count in part.get("entities", {}).get(polarity, {}).items():
                totals.setdefault(kind, [0, 0])[place] += count
    rows = [(prompts.display_name(kind), affirmed, denied) for kind, (affirmed, denied) in totals.items()]
    return sorted(rows, key=lambda row: (-row[1] - row[2], row[0]))


def _pictures(directory: pathlib.Path, name: str, number: int) -> list[dict[str, Any]]:
    source = records.Records(directory, name)
    count = min(number, len(source))
    return [_picture(source[i * len(source) // count]) for i in range(count)]


def _picture(example: Example) -> dict[str, Any]:
    states: dict[LabelState, list[str]] = {state: [] for state in (LabelState.PRESENT, LabelState.UNCERTAIN)}
    for kind, state in example.labels.items():
        if state in states:
            states[LabelState(state)].append(prompts.display_name(kind))
    years = "" if example.age != example.age else f"{example.age:.0f} years"
    return {
        "id": example.id,
        "image": _data_uri(example.image),
        "size": f"{example.original_width} x {example.original_height}",
        "who": ", ".join(word for word in (example.view, example.sex, years) if word),
        "boxes": [
            {
                "name": prompts.display_name(box.kind),
                "left": 100 * box.x_min,
                "top": 100 * box.y_min,
                "width": 100 * (box.x_max - box.x_min),
                "height": 100 * (box.y_max - box.y_min),
            }
            for box in example.boxes
        ],
        "masks": [(prompts.display_name(mask.kind), _data_uri(mask.image)) for mask in example.masks],
        "present": states[LabelState.PRESENT],
        "uncertain": states[LabelState.UNCERTAIN],
        "text": list(_marked(example.text, example.entities)),
    }


def _marked(text: str, entities: tuple[Entity, ...]) -> Iterator[tuple[str, str]]:
    """The report in pieces: (text, "" or what to mark it as)."""
    at = 0
    for entity in entities:
        yield text[at : entity.start], ""
        yield entity.text, "denied" if entity.negated else entity.label
        at = entity.end
    yield text[at:], ""


def _data_uri(image: bytes) -> str:
    """A picture without the metadata of its file: names, dates, texts."""
    try:
        image = strip_metadata(image)
    except ValueError as error:
        raise UserError("a record's picture is damaged: build the data set anew") from error
    kind = "png" if image[:4] == b"\x89PNG" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
