"""Functions of users' Python files: FILE.py:FUNCTION."""

import pathlib
import runpy
from collections.abc import Callable
from typing import Any

from mmclip_jax.errors import UserError


def is_spec(spec: str) -> bool:
    """Whether a text is "FILE.py:FUNCTION", or lacks the function."""
    return spec.partition(":")[0].endswith(".py")


def load_function(spec: str, gives: str) -> Callable[..., Any]:
    """The function that "FILE.py:FUNCTION" names; runs the file.

    gives: what the function is for, as "the model", for messages.

    Raises:
      UserError: no such file or function, or a syntax error in the file.
    """
    file, _, name = spec.partition(":")
    place = pathlib.Path(file).expanduser()
    if not place.is_file():
        raise UserError(f"{file}: there is no such file")
    if not name:
        raise UserError(f"{file} needs the function that gives {gives}: {file}:FUNCTION")
    found = run(place).get(name)
    if not callable(found):
        raise UserError(f"{file} has no function {name}")
    return found


def run(file: pathlib.Path) -> dict[str, Any]:
    """What stands in a Python file after it has run.

    Raises:
      UserError: a syntax error in the file.
    """
    try:
        return runpy.run_path(str(file))
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
