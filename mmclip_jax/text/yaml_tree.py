"""YAML files of users: what they hold, if it is a tree of a size and depth that can be worked with."""

import os
import pathlib
from typing import Any

import yaml

from mmclip_jax.errors import UserError

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DEPTH, _NODES = 50, 1_000_000


def read(path: str | os.PathLike[str]) -> Any:
    """The content of a YAML file; aliases may repeat what stands in it, within reason.

    Raises:
      UserError: it cannot be read, is no YAML, is nested too deeply, holds itself, or grows too large by its aliases.
    """
    file = pathlib.Path(path)
    try:
        text = file.read_text(encoding="utf-8")
        if problem := _problem(text):
            raise UserError(f"{file}: {problem}")
        return yaml.load(text, Loader=_LOADER)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from None
    except UserError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:  # dates and numbers that cannot be
        raise UserError(f"{file}: not valid YAML: {' '.join(str(error).split())[:200]}") from None


def _problem(text: str) -> str:
    """What is wrong with the tree of a text, before it is made: the library's C code crashes on deep ones."""
    sizes: dict[str, int] = {}  # of what the anchors name, written out
    opened: list[tuple[str | None, int]] = []  # (anchor, nodes so far)
    for event in yaml.parse(text, Loader=_LOADER):
        size, anchor = 0, getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((anchor, 1))
            if len(opened) > _DEPTH:
                return f"it is nested more than {_DEPTH} deep"
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = opened.pop()
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == name for name, _ in opened):
                return f"the alias *{anchor} holds itself"
            size, anchor = sizes.get(str(anchor), 1), None
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
        if anchor is not None:
            sizes[anchor] = size
        if opened:
            name, before = opened[-1]
            opened[-1] = (name, before + size)
            if before + size > _NODES:
                return f"with its aliases it holds more than {_NODES:,} values"
    return ""
