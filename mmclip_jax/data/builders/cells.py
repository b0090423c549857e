"""From the cells of a user's table to values: what labels, boxes, ages and views say.

`BadRow` is raised with a reason, for a person, where a cell cannot be understood; nothing is guessed. What an image can
be used without (sex, age, view) is None instead, and the caller lists it. Words are those of English, German, French
and Spanish tables.
"""

import ast
import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmclip_jax.data.images.views import plain
from mmclip_jax.data.schema import Box, LabelState
from mmclip_jax.errors import UserError, shorten, shown


class BadRow(Exception):
    """Why a row cannot be used; what it quotes of a cell is cut."""

    def __init__(self, reason: str):
        super().__init__(shorten(reason))


# ---------------------------------------------------------------------------------------------------------------------
# Labels


_STATE_WORDS = {
    LabelState.PRESENT: "1 +1 yes y true t ja j wahr oui o vrai si s verdadero positive positiv positif positivo pos + "
    "present vorhanden nachgewiesen",
    LabelState.ABSENT: "0 -0 no n false f nein falsch non faux falso negative negativ negatif negativo neg absent "
    "ausente fehlt none",
    LabelState.UNCERTAIN: "-1 ? uncertain possible equivocal maybe unklar fraglich moglich incertain douteux dudoso "
    "posible incierto",
}
_LONGEST = 1_000_000  # characters of a list
LABEL_STATES = {word: state for state, words in _STATE_WORDS.items() for word in words.split()}


def label_state(column: str, cell: str) -> LabelState | None:
    """The state that the cell of a one-label column gives; None for a blank."""
    if not cell:
        return None
    state = LABEL_STATES.get(plain(re.sub(r"[.,]0+$", "", cell)))
    if state is None:
        raise BadRow(
            f"column {column!r} has {shown(cell)}, not 1, 0, -1, yes, no or blank (--label-columns names the columns "
            f"of labels, --label-columns - uses none)"
        )
    return state


def separator_of(cells: Sequence[str]) -> str:
    """What joins the labels of a column: "|" if any cell has one, else ";" or a line break likewise, else ","."""
    return next((mark for mark in "|;\n" if any(mark in cell for cell in cells)), ",")


def split_labels(cell: str, separator: str) -> list[str]:
    """The labels of one cell: joined by `separator`, or a list as Python or JSON write it."""
    if cell.startswith("[") and cell.endswith("]"):
        listed = read_list(cell)
        if listed is None or any(isinstance(label, list | tuple | dict) for label in listed):
            raise BadRow(f"the list of labels {shown(cell)} cannot be read")
        return [str(label).strip() for label in listed if str(label).strip()]
    return [label.strip() for label in cell.split(separator) if label.strip()]


def read_list(cell: str) -> Sequence[object] | None:
    """A list as JSON or Python write it; None if the cell is none that can be read, however it is malformed."""
    if len(cell) > _LONGEST:
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(cell)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        if isinstance(value, list | tuple):
            return value
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Boxes

Frame = tuple[float, float] | str


@dataclasses.dataclass(frozen=True)
class RawBox:
    """A box as the table gives it; label "" if it does not say what the box shows."""

    label: str
    numbers: tuple[float, float, float, float]


def parse_frame(text: str) -> Frame:
    """What box numbers are measured in: "" (not said), "pixels", "fraction", or (width, height) of the frame."""
    if text in ("", "pixels", "fraction"):
        return text
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match or int(match[1]) == 0 or int(match[2] or 1) == 0:
        raise UserError(f"box frame {text!r} is not pixels, fraction or WIDTHxHEIGHT")
    return float(match[1]), float(match[2] or match[1])


def parse_boxes(cells: Sequence[str], label: str) -> Iterator[RawBox]:
    """Boxes of a row: one cell with a list of [label, a, b, c, d] or [a, b, c, d], or four cells with a number each.

    Args:
      cells: those of the one or four box columns, "" where blank.
      label: what boxes without a label of their own show.
    """
    if not any(cells):
        return
    if len(cells) == 4:
        entries: Any = [list(cells)]
    else:
        listed = read_list(cells[0])
        if listed is None:
            raise BadRow(f"boxes {shown(cells[0])} are not a list of [label, x, y, width, height]")
        entries = listed
        if entries and not isinstance(entries[0], (list, tuple)):
            entries = [entries]
    for entry in entries:
        try:
            *own, a, b, c, d = entry
            numbers = (float(a), float(b), float(c), float(d))
            if len(own) > 1 or not all(map(math.isfinite, numbers)):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise BadRow(f"box {shown(entry)} is not [label, x, y, width, height] or [x, y, width, height]") from None
        yield RawBox(str(own[0]).strip() if own else label, numbers)


def fraction_box(kind: str, numbers: Sequence[float], frame: tuple[float, float], box_format: str) -> Box:
    """A box as fractions of the image. What sticks out by at most 1 % of the frame is cut off, more is a BadRow.

    Args:
      kind: what the box shows.
      numbers: four, in units of the frame; x to the right, y down.
      frame: (width, height) of the whole image in these units.
      box_format: "xywh": upper left corner, width, height; "xyxy": upper left and lower right corner.
    """
    x, y, third, fourth = numbers
    corners = (x, y, x + third, y + fourth) if box_format == "xywh" else (x, y, third, fourth)
    width, height = frame
    fractions = [corners[0] / width, corners[1] / height, corners[2] / width, corners[3] / height]
    if not all(-0.01 <= value <= 1.01 for value in fractions):
        raise BadRow(f"box {list(numbers)} lies outside of {width:g} x {height:g}")
    x_min, y_min, x_max, y_max = (min(max(value, 0.0), 1.0) for value in fractions)
    if not (x_min < x_max and y_min < y_max):
        raise BadRow(f"box {list(numbers)} is empty")
    return Box(kind, x_min, y_min, x_max, y_max)


# ---------------------------------------------------------------------------------------------------------------------
# Other cells

_VIEWS = {"pa": "PA", "ap": "AP", "lateral": "LATERAL", "lat": "LATERAL", "ll": "LATERAL"}

_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}

_SEX_WORDS = {
    "M": "m male man boy masculine mannlich mann maskulin masculin homme h hombre masculino varon maschio",
    "F": "f female woman girl feminine w weiblich frau feminin femme femenino mujer femminile",
    "": "u unknown o other x d divers unbekannt inconnu desconocido n/s nd ? - not specified",
}
_SEX_OF = {word: sex for sex, words in _SEX_WORDS.items() for word in words.split()} | {"": ""}

_YEARS = {"y": 1.0, "m": 1 / 12, "w": 7 / 365.25, "d": 1 / 365.25}
_UNITS = {
    "y": "y yr yrs year years jahr jahre j a ans an ano anos",
    "m": "m mo month months monat monate mon mois mes meses",
    "w": "w wk wks week weeks woche wochen semaine semaines semana semanas",
    "d": "d day days tag tage t jour jours dia dias",
}
_UNIT_OF = {word: unit for unit, words in _UNITS.items() for word in words.split()} | {"": "y"}


def parse_split(cell: str) -> str:
    """One of train, validation, test, from their usual spellings."""
    split = _SPLITS.get(cell.lower())
    if split is None:
        raise BadRow(f"split {shown(cell)} is not train, validation or test")
    return split


def parse_view(cell: str) -> str:
    """PA, AP and LATERAL in one spelling, all else as it is."""
    return _VIEWS.get(cell.strip().lower(), cell.strip())


def parse_sex(cell: str) -> str:
    """Gives M, F, or "" where the table says that it is not known; BadRow for any other word."""
    sex = sex_of(cell)
    if sex is None:
        raise BadRow(f"sex {shown(cell)} is not M, F or unknown")
    return sex


def sex_of(cell: str, meanings: Mapping[str, str] = {}) -> str | None:
    """M, F, "" for unknown, None where the word is not understood.

    Args:
      cell: a word of English, German, French or Spanish.
      meanings: of a column's own words, stronger; see `sex_meanings`.
    """
    word = plain(cell).removesuffix(".0").rstrip(".")
    return meanings[word] if word in meanings else _SEX_OF.get(word)


def sex_meanings(cells: Iterable[str]) -> dict[str, str]:
    """What the words of a column mean that depend on the others: Spanish H and M, the numbers of ISO 5218.

    0 and 1 alone are not explained: either may be either.
    """
    words = {plain(cell).removesuffix(".0").rstrip(".") for cell in cells} - {""}
    if words <= {"h", "m", "u", "x"} and {"h", "m"} <= words:
        return {"h": "M", "m": "F"}
    if words <= {"0", "1", "2", "9"} and {"1", "2"} <= words:
        return {"0": "", "1": "M", "2": "F", "9": ""}
    return {}


def parse_age(cell: str) -> float | None:
    """Years of "58", "58.0", "58 Jahre" or DICOM's "058Y", "006M"; NaN for a blank, None if not 0 to 120 years."""
    if not cell:
        return math.nan
    match = re.fullmatch(r"(\d{1,9}(?:[.,]\d{1,20})?)[\s-]*([a-z]*)(?:[\s-]+old)?\.?", plain(cell), re.ASCII)
    if not match or match[2] not in _UNIT_OF:
        return None
    years = float(match[1].replace(",", ".")) * _YEARS[_UNIT_OF[match[2]]]
    return years if years <= 120 else None
