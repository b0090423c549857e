"""Which values a setting may have; the tables stand beside the settings (check.py, objectives/, finetune/task.py)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmclip_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number from low to high; `above`, `below`: without the bound itself. whole: no fractions."""

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False

    def problem(self, value: Any) -> str:
        """What is wrong with a value, "" if nothing is."""
        if isinstance(value, bool) or not isinstance(value, int | float) or (self.whole and not isinstance(value, int)):
            return f"is not a {'whole ' if self.whole else ''}number"
        if isinstance(value, float) and not math.isfinite(value):
            return "is not a finite number"
        low = value > self.low if self.above else value >= self.low
        high = value < self.high if self.below else value <= self.high
        return "" if low and high else f"is not {self}"

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.low:,.10g}" if self.low > -math.inf else ""
        high = f"{'below' if self.below else 'at most'} {self.high:,.10g}" if self.high < math.inf else ""
        if low and high:
            without = [f"{bound:,.10g}" for bound, out in ((self.low, self.above), (self.high, self.below)) if out]
            return f"in {self.low:,.10g} to {self.high:,.10g}" + (
                f" without {' and '.join(without)}" if without else ""
            )
        return " and ".join(part for part in (low, high) if part)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of these values."""

    values: tuple[Any, ...]

    def problem(self, value: Any) -> str:
        """As `Number.problem`."""
        # 1 == True in Python.
        same = any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in self.values)
        return "" if same else f"is not one of {', '.join(map(str, self.values))}"


@dataclasses.dataclass(frozen=True)
class Text:
    """Any text."""

    def problem(self, value: Any) -> str:
        """As `Number.problem`."""
        return "" if isinstance(value, str) else "is not text"


@dataclasses.dataclass(frozen=True)
class Several:
    """A sequence of values of one kind, of at least `least`; distinct: none may stand twice."""

    each: Number | Choice | Text
    least: int = 0
    distinct: bool = False

    def problem(self, value: Any) -> str:
        """As `Number.problem`."""
        if isinstance(value, str) or not isinstance(value, Sequence):
            return "is not a list"
        if len(value) < self.least:
            return f"has fewer than {self.least} values"
        if self.distinct and len(set(value)) < len(value):
            return "names a value twice"
        return next((f"has {one!r}, which {said}" for one in value if (said := self.each.problem(one))), "")


Range = Number | Choice | Text | Several
BOOLEAN, TEXT = Choice((True, False)), Text()
SHARE = Number(0, 1)
SEED = Number(0, 2**32 - 1, whole=True)


def positive(high: float = math.inf) -> Number:
    """Above 0."""
    return Number(0, high, above=True)


def count(low: int = 0, high: float = math.inf) -> Number:
    """A whole number of at least `low`."""
    return Number(low, high, whole=True)


def check(values: Mapping[str, Any], table: Mapping[str, Range]) -> None:
    """Refuses values out of their ranges; names that the table does not have are not looked at.

    Raises:
      UserError: naming the setting and its range.
    """
    for name, value in values.items():
        if name in table and (problem := table[name].problem(value)):
            raise UserError(f"{name}={value!r} {problem}")
