"""Reads the settings of a run: a config file, or those that a run was started with, and what a command line changes."""

import re
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmclip_jax import python_files, setting_names
from mmclip_jax.errors import UserError, nearest

if typing.TYPE_CHECKING:
    from ml_collections import ConfigDict

_PACKAGE = Path(__file__).resolve().parent
_EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a list"}
_VALUES = (".yaml", ".yml", ".json")  # suffixes of files that hold settings and no code
STORED = "config.json"
"""The file of a run's folder that holds the settings it was last started with."""


def packaged_configs() -> dict[str, Path]:
    """The configs that the package brings along, by name: "demo" for the file demo.py.

    A wheel holds them inside the package; in a checkout they are the folder configs/ beside it.
    """
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if folder.is_dir():
            break
    return {file.stem: file for file in sorted(folder.glob("*.py")) if file.stem != "__init__"}


def read_config(spec: str, overrides: Sequence[str] = ()) -> "ConfigDict":
    """The settings of a config file, with overrides.

    Args:
      spec: "NAME" of a config of the package, or "FILE.py"; with ":ARGUMENT" behind it, the argument goes to the
        file's get_config. Or "FILE.yaml" or "FILE.json", as `as_yaml` and a run write it: settings that it does not
        name have their defaults.
      overrides: see `change`.

    Returns:
      The locked ConfigDict.

    Raises:
      UserError: no such name or file, no get_config in it, an unknown setting, or a value of the wrong type.
    """
    from ml_collections import ConfigDict

    file, argument = _find(spec)
    if Path(file).suffix in _VALUES:
        return change(_of_values(_read_values(Path(file)), file), overrides)
    get_config = _get_config_of(file)
    config = get_config(argument) if argument else get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(f"{file}: get_config returned a {type(config).__name__} instead of a ConfigDict")
    _check_names(config, file)
    return change(config, overrides)


def read_stored(workdir: str, overrides: Sequence[str] = ()) -> "ConfigDict":
    """The settings that the run in `workdir`, on disk or in a bucket, was last started with, with overrides.

    Raises:
      UserError: there is no run of `mmclip train`, its file is damaged, or `change` refuses an override.
    """
    from mmclip_jax import files

    file = files.locate(workdir) / STORED
    if not file.exists():
        raise UserError(
            f"{workdir} holds no run to go on with: begin one with --config NAME, such as --config demo "
            "(mmclip config lists the names)"
        )
    content = files.read_json(file, "begin the command with the --config that the run was started with")
    if "finetune" in content:
        raise UserError(f"{workdir} holds a run of mmclip finetune: the same mmclip finetune command goes on with it")
    return change(_of_values(content, str(file)), overrides)


def change(config: "ConfigDict", overrides: Sequence[str]) -> "ConfigDict":
    """Applies overrides to settings, with ml_collections' own type checks.

    Args:
      config: the settings; changed in place.
      overrides: "--config.key=value" each; "--config.flag" and "--noconfig.flag" for booleans; a tuple is given by
        repeating its flag or as a Python literal.

    Returns:
      The same settings, locked.

    Raises:
      UserError: an unknown setting, or a value of the wrong type.
    """
    from absl import flags
    from ml_collections import config_flags

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

        given = next(o for o in reversed(overrides) if _key_of(o) == key[1])
        raise UserError(f"{given}: {_expected(flat(config)[key[1]])}") from error
    except flags.Error as error:
        raise UserError(str(error)) from error
    return values["config"].value


def as_yaml(config: "ConfigDict") -> str:
    """All settings as YAML, sorted by name, that `read_config` reads to the same settings."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Lists and tuples on one line."""

    for kind in (list, tuple):
        Dumper.add_representer(
            kind, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
        )
    tree = config.copy_and_resolve_references().to_dict()
    text = yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)
    if "\x85" not in text:
        return text
    return yaml.dump(tree, Dumper=Dumper, sort_keys=False, width=110)  # PyYAML would write a line break, unescaped


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
    is_path = name.endswith((".py", *_VALUES)) or "/" in name
    near = nearest(Path(name).stem, known) or "."
    raise UserError(
        f"there is no {'file' if is_path else 'config'} {name}{near} The package has {', '.join(known)}; FILE.py or "
        "FILE.yaml is one of your own"
    )


def _get_config_of(file: str) -> Callable[..., Any]:
    module = python_files.run(Path(file))
    if "get_config" not in module:
        raise UserError(f"{file}: a config file defines get_config(argument) -> ConfigDict, this one does not")
    return module["get_config"]


def _read_values(file: Path) -> Mapping[str, Any]:
    from mmclip_jax.text import yaml_tree  # JSON is YAML

    return yaml_tree.read_mapping(file)


def _of_values(tree: Mapping[str, Any], where: str) -> "ConfigDict":
    """The defaults, changed by the settings of a file; a block of an objective of the user's own is added.

    Raises:
      UserError: an unknown setting, or a value that is not of the setting's type.
    """
    from ml_collections import ConfigDict

    from mmclip_jax.config import default_config, flat

    config = default_config()
    own = {name: block for name, block in _group(tree, "objective", where).items() if name not in config.objective}
    config.objective.update({name: _tuples(block) for name, block in own.items()})
    known = flat(config)
    for name, value in _flat(tree, known).items():
        if name not in known:
            raise UserError(f"{where}: {setting_names.problem(name, known)}")
        part, _, last = name.rpartition(".")
        holder = config
        for key in part.split(".") if part else ():
            holder = holder[key]
        if not isinstance(holder, ConfigDict):
            raise UserError(f"{where}: {setting_names.problem(name, known)}")
        holder[last] = _typed(value, known[name], f"{where}: {name}={value!r}")
    return config


def _group(tree: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    group = tree.get(name, {})
    if not isinstance(group, Mapping):
        raise UserError(f"{where}: {name} is a group of settings, and not {group!r}")
    return group


def _flat(tree: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values by their dotted names; a group is one of the file's mappings that is no setting's own value."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        found |= _flat(value, known, f"{path}.") if isinstance(value, Mapping) and path not in known else {path: value}
    return found


def _tuples(value: Any) -> Any:
    """As ml_collections has it: a setting of several values is a tuple."""
    if isinstance(value, Mapping):
        return {name: _tuples(each) for name, each in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _typed(value: Any, default: Any, said: str) -> Any:
    """A value of a file as the type of its setting.

    Raises:
      UserError: it is of another type.
    """
    kind = type(default)
    if isinstance(value, list):
        value = _tuples(value)
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            value = float(value)  # YAML reads 1e-4, without a point, as text
        except (ValueError, OverflowError):
            raise UserError(f"{said}: {_expected(default)}") from None
    if type(value) is not kind:
        raise UserError(f"{said}: {_expected(default)}")
    return value


def _expected(default: Any) -> str:
    such = list(default) if isinstance(default, tuple) else default
    return f"expected {_EXPECTED.get(type(default), type(default).__name__)}, such as {such!r}"


def _check_names(config: "ConfigDict", file: str) -> None:
    """Refuses settings that nothing reads; blocks of objectives are checked with the objectives."""
    from mmclip_jax.config import default_config, flat

    known, own = flat(default_config()), set(config.get("objective", {})) - set(default_config().objective)
    for name in flat(config):
        if name not in known and not name.startswith(tuple(f"objective.{each}." for each in own)):
            raise UserError(f"{file}: {setting_names.problem(name, known)}")


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
    raise UserError(f"{override}: {setting_names.problem(key, keys)}")
