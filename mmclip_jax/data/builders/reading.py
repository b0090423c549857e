"""Cells of the tables of published data sets: numbers, and columns of one label each."""

import math
import re
from collections.abc import Collection, Iterable, Mapping

from mmclip_jax.data.builders.cells import BadRow, label_state
from mmclip_jax.data.builders.labels import Beside, without_contradiction
from mmclip_jax.data.schema import LabelState
from mmclip_jax.errors import shown
from mmclip_jax.text import prompts

_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,20}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")


# The label of CheXpert and MIMIC-CXR that is headed so in tables by radiologists (MIMIC-CXR-JPG 2.1.0, CheXlocalize).
OTHER_HEADINGS = {"Airspace Opacity": "Lung Opacity"}


def finite(cell: str, what: str = "the cell") -> float:
    """A finite number as tables write it; "nan", "64px" and "1_000" are none.

    Raises:
      BadRow: it is none.
    """
    value = float(cell) if _NUMBER.fullmatch(cell) else math.inf
    if not math.isfinite(value):
        raise BadRow(f"{what} {shown(cell)} is not a number")
    return value


def four_numbers(cells: Iterable[str]) -> tuple[float, float, float, float]:
    """The numbers of a box.

    Raises:
      BadRow: they are not four numbers.
    """
    try:
        first, second, third, fourth = (finite(cell) for cell in cells)
    except (BadRow, ValueError):
        raise BadRow("the box is not four numbers") from None
    return first, second, third, fourth


def labels_of_columns(
    row: Mapping[str, str], other_columns: Collection[str], no_finding: Beside
) -> dict[str, LabelState]:
    """The labels of a row with a column for each: 1 present, 0 absent, -1 uncertain, blank unknown.

    Args:
      row: the cells by column.
      other_columns: those that are no labels.
      no_finding: what "no finding" beside a disease means.

    Raises:
      BadRow: a cell is none of these, or "no finding" stands beside a disease and such rows are refused.
    """
    labels: dict[str, LabelState] = {}
    for name, cell in row.items():
        kind = None if name in other_columns else prompts.kind_of(OTHER_HEADINGS.get(name, name))
        state = None if kind is None else label_state(name, cell)
        if kind is not None and state is not None:
            labels[kind] = state
    return without_contradiction(labels, no_finding)
