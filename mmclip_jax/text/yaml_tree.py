"""YAML files of users: what they hold, if it is a tree of a size and depth that can be worked with."""

import os
import pathlib
from collections.abc import Callable, Mapping
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


def read_mapping(file: pathlib.Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        UserError: not YAML, or no mapping at the top.
    """
    content = read(file)
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected a mapping at the top level")
    return content


def find_entry(spec: str, packaged: pathlib.Path, read: Callable[[pathlib.Path], Mapping[str, Any]], what: str) -> Any:
    """The entry of that name in a packaged file, or the one of a file: "mine.yaml", "mine.yaml:NAME" if it has several.

    Args:
        spec: what the user asked for.
        packaged: the file of the package.
        read: the entries of a file by name.
        what: an entry is called, for errors.

    Raises:
        UserError: no such entry or file.
    """
    known = read(packaged)
    if spec in known:
        return known[spec]
    place, _, name = spec.rpartition(":")
    if not pathlib.Path(spec).suffix.lower().startswith((".yaml", ".yml")):
        raise UserError(
            f"there is no {what} {spec!r}; known are {', '.join(known)}, or name a YAML file of your own (FILE.yaml)"
        )
    file, name = (pathlib.Path(place), name) if place and not pathlib.Path(spec).is_file() else (pathlib.Path(spec), "")
    if not file.expanduser().is_file():
        raise UserError(f"{file}: there is no such {what} file")
    entries = read(file.expanduser())
    if name and name not in entries:
        raise UserError(f"{file}: there is no {what} {name!r}; it holds {', '.join(entries)}")
    if not name and len(entries) != 1:
        raise UserError(f"{file} holds {', '.join(entries) or f'no {what}'}: say which one with {file}:NAME")
    return entries[name] if name else next(iter(entries.values()))


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
