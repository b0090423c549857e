"""Numbers as people and JSON read them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def number(value: float | None, digits: int = 3) -> str:
    """A number for people; "–" where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "\u2212")


def interval(bounds: Sequence[float | None] | None, digits: int = 3) -> str:
    """A pair as "(low to high)"; nothing where a bound is missing."""
    if bounds is None or any(bound is None or not math.isfinite(bound) for bound in bounds):
        return ""
    return f"({number(bounds[0], digits)} to {number(bounds[1], digits)})"


def finite(value: Any) -> Any:
    """A copy fit for JSON: NaN and infinities become null, NumPy numbers plain ones."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, np.ndarray):
        return finite(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
