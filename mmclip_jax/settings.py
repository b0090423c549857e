"""Reads a config file and the settings that a command line changes."""

import re
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmclip_jax.errors import UserError, nearest

if typing.TYPE_CHECKING:
    from ml_collections import ConfigDict

_PACKAGE = Path(__file__).resolve().parent
_EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a tuple"}
_LISTED = "; mmclip_jax/config.py lists the settings"


def packaged_configs() -> dict[str, Path]:
    """The configs that the package brings along, by name: "demo" for the file demo.py.

    A wheel holds them inside the package; in a checkout they are the folder configs/ beside it.
    """
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if folder.is_dir():
            break
    return {file.stem: file for file in sorted(folder.glob("*.py")) if file.stem != "__init__"}


def read_config(spec: str, overrides: Sequence[str] = ()) -> "ConfigDict":
    """Loads a config file and applies overrides to it, with ml_collections' own type checks.

    Args:
      spec: "NAME" of a config of the package, or "FILE.py"; with ":ARGUMENT" behind it, the argument goes to the
        file's get_config.
      overrides: "--config.key=value" each; "--config.flag" and "--noconfig.flag" for booleans; a tuple is given by
        repeating its flag or as a Python literal.

    Returns:
      The locked ConfigDict.

    Raises:
      UserError: no such name or file, no get_config in it, an unknown key, or a value of the wrong type.
    """
    from absl import flags
    from ml_collections import ConfigDict, config_flags

    file, argument = _find(spec)
    get_config = _get_config_of(file)
    config = get_config(argument) if argument else get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(f"{file}: get_config returned a {type(config).__name__} instead of a ConfigDict")
    for override in overrides:
        _check_key(config, override)
    values = flags.FlagValues()
    argv = ["mmclip", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except flags.IllegalFlagValueError as error:
        key = re.match(r"flag --config\.([\w.]+)=", str(error))
        if key is None:
            raise
        from mmclip_jax.config import flat

        default = flat(config)[key[1]]
        given = next(o for o in reversed(overrides) if _key_of(o) == key[1])
        expected = _EXPECTED.get(type(default), type(default).__name__)
        raise UserError(f"{given}: expected {expected}, such as {default!r}") from error
    except flags.Error as error:
        raise UserError(str(error)) from error
    return values["config"].value


def names_given(overrides: Sequence[str]) -> frozenset[str]:
    """The dotted names of the settings that `read_config` was given: "data.workers" of "--config.data.workers=0"."""
    return frozenset(map(_key_of, overrides))


def _find(spec: str) -> tuple[str, str]:
    """The file that a --config names, and the argument that goes to it."""
    name, _, argument = spec.partition(":")
    known = packaged_configs()
    if name in known:
        return str(known[name]), argument
    if Path(name).is_file():
        return name, argument
    is_path = name.endswith(".py") or "/" in name
    near = nearest(Path(name).stem, known)
    raise UserError(
        f"--config={spec}: there is no {'file' if is_path else 'config'} {name}{near}; the package has "
        f"{', '.join(known)}, and FILE.py is one of your own"
    )


def _get_config_of(file: str) -> Callable[..., Any]:
    import runpy

    try:
        module = runpy.run_path(file)
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    if "get_config" not in module:
        raise UserError(f"{file}: a config file defines get_config(argument) -> ConfigDict, this one does not")
    return module["get_config"]


def _key_of(override: str) -> str:
    return override.partition("=")[0].partition("config.")[2]


def _check_key(config: "ConfigDict", override: str) -> None:
    """Refuses keys that the config does not have, naming the nearest."""
    from mmclip_jax.config import flat

    key = _key_of(override)
    keys = flat(config)
    if key in keys:
        if keys[key] is None:
            raise UserError(f"{override}: {key} is None, which tells no type; set it in the config file")
        return
    group = [name for name in keys if name.startswith(f"{key}.")]
    if group:
        raise UserError(f"{override}: {key} is a group of settings; set one of them, such as --config.{group[0]}=…")
    raise UserError(f"{override}: the config has no {key}{nearest(key, keys) or _LISTED}")
