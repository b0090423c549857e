"""CSV files that a spreadsheet may open: no cell of them is run as a formula."""

import csv
import re
from collections.abc import Iterable
from typing import Any, Protocol

_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # the last four are full-width: spreadsheets take them, too
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


class Stream(Protocol):
    """What text is written to."""

    def write(self, text: str, /) -> Any:
        """Writes it."""


def safe(value: Any) -> Any:
    """A cell as it may be written: text that a spreadsheet would take for a formula gets an apostrophe in front.

    Lines within it end in LF: `csv` leaves a lone CR unquoted.
    """
    if isinstance(value, str) and "\r" in value:
        value = value.replace("\r\n", "\n").replace("\r", "\n")
    if not isinstance(value, str) or not value.lstrip(" ").startswith(_FORMULA) or _NUMBER.fullmatch(value):
        return value
    return f"'{value}"


class Writer:
    """`csv.writer` with lines that end in LF, and every cell made `safe`."""

    def __init__(self, stream: Stream):
        self._writer = csv.writer(stream, lineterminator="\n")

    def writerow(self, cells: Iterable[Any]) -> None:
        """Writes a line."""
        self._writer.writerow([safe(cell) for cell in cells])
