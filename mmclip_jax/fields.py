"""Fields of other programs' configurations, which are JSON and may hold anything."""

import json
import pathlib
import reprlib
from collections.abc import Mapping
from typing import Any

from mmclip_jax.errors import UserError

_KINDS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", dict: "an object with fields"}


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
      UserError: there is none, or it holds something else.
    """
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; this layout needs the file beside the weights") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({' '.join(str(error).split())[:100]})") from error
    if not isinstance(read, dict):
        raise UserError(f"{file}: holds a {type(read).__name__} and no object")
    return read


def fits(value: Any, kind: type, low: float | None = None) -> bool:
    """Whether a value is of a kind (int, float, str, bool, dict), and at least `low`.

    A whole number is a number, too; true and false are none; numbers are finite in single precision's range.
    """
    if kind is float and fits(value, int):
        kind = int
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        return False
    number: Any = value
    if kind in (int, float) and not -1e38 < number < 1e38:
        return False
    return low is None or bool(number >= low)


def field(
    where: str, config: Mapping[str, Any], name: str, kind: type, otherwise: Any, low: float | None = None
) -> Any:
    """The value of a field, or `otherwise` where it is missing or null.

    Raises:
      UserError: it is not of that kind (see `fits`), with `where` before it.
    """
    value = config.get(name)
    if value is None:
        return otherwise
    if not fits(value, kind, low):
        least = "" if low is None else f" of at least {low:g}"
        raise UserError(f"{where}: {name} is {_KINDS[kind]}{least}, not {reprlib.repr(value)}")
    return value
