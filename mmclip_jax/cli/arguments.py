"""The kinds of arguments of the command line, and those that several commands share."""

import argparse
import dataclasses
import math
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from mmclip_jax import ranges
from mmclip_jax.errors import UserError

if typing.TYPE_CHECKING:
    from etils import epath

    from mmclip_jax.data.leakage.numbering import IdStatements

Command = Callable[[argparse.Namespace], None]
Commands: typing.TypeAlias = "argparse._SubParsersAction[Parser]"
_PathT = typing.TypeVar("_PathT", bound="Path | epath.Path")
_DECIMAL = re.compile(r"[+-]?(\d{1,30}\.?\d*|\.\d+)(e[+-]?\d{1,3})?|[+-]?(nan|inf(inity)?)", re.IGNORECASE | re.ASCII)


OVERRIDES_HELP = (
    "--config.KEY=VALUE changes a setting, e.g. --config.train.steps=1000; --config.KEY and --noconfig.KEY switch "
    "a boolean; repeat the flag for the elements of a tuple. mmclip config NAME prints the settings."
)


class UsageError(Exception):
    """A command line that cannot be understood; shown with the command's name."""


class _HelpFormatter(argparse.HelpFormatter):
    """Shows defaults, where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default in (None, "", False) or action.default is argparse.SUPPRESS
        if nothing or not action.option_strings or action.help is None or "default" in action.help:
            return action.help
        several = isinstance(action.default, list | tuple)
        default = ",".join(map(str, action.default)) if several else action.default
        return f"{action.help} (default: {str(default).replace('%', '%%')})"


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line and without abbreviated options.

    Attributes:
      takes_overrides: whether --config.key=value arguments are allowed.
      renamed: options by a former name -> the name they have now; the former one still works, and says so.
      gone: options that there were -> what to write today.
      run_is: "first" where the run is the first word, "option" where it is --model and no other word stands first, ""
        where the command has no run or takes it both ways; either form is taken.
      more: adds the arguments that are costly to find out; called only if this parser's command was given.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**{"allow_abbrev": False, "formatter_class": _HelpFormatter, **kwargs})
        self.takes_overrides = False
        self.renamed: dict[str, str] = {}
        self.gone: dict[str, str] = {}
        self.run_is: Literal["", "first", "option"] = ""
        self.more: Callable[[Parser], None] | None = None

    def error(self, message: str) -> typing.NoReturn:
        """Raises the error instead of printing the whole usage."""
        raise UsageError(f"{self.prog}: {message} (see {self.prog} --help)")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """As argparse's, which makes an empty list of `--option=--`, whatever the option's type."""
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:
            self.error(f"argument {action.option_strings[-1]}: '--' is no value")
        return super()._get_values(action, arg_strings)

    def commands(self) -> "dict[str, Parser]":
        """The subcommands by name; {} if there are none."""
        found = [action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return dict(found[0]) if found else {}

    def options(self) -> list[str]:
        """All option strings."""
        return list(self._option_string_actions)


def path_of(text: str) -> Path:
    """A path on disk."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is an address, not a directory; mount the bucket, e.g. with gcsfuse")
    return Path(text).expanduser()


def file_of(text: str) -> Path:
    """A path on disk that a file is written to: no folder, and no image, which the shell may have made of a pattern."""
    from mmclip_jax.data.builders.files import IMAGE_SUFFIXES

    path = path_of(text)
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text:.80}: {error.strerror}") from error
    if is_folder:
        raise argparse.ArgumentTypeError(f"{path} is a folder: name the file to write")
    if path.suffix.lower() in (*IMAGE_SUFFIXES, ".bmp"):
        raise argparse.ArgumentTypeError(f"{path} ends like an image, which it might overwrite: name the file to write")
    return path


def folder_of(text: str) -> Path:
    """A path on disk that data sets, runs or results are written to."""
    path = path_of(text)
    place_of(text)
    return path


def place_of(text: str) -> "epath.Path":
    """A path on disk or in a bucket."""
    from mmclip_jax import files

    try:
        return files.locate(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def existing(text: str) -> Path:
    """A path on disk to what is there."""
    return _that_exists(path_of(text))


def existing_place(text: str) -> "epath.Path":
    """A path on disk or in a bucket to what is there."""
    return _that_exists(place_of(text))


def _that_exists(path: _PathT) -> _PathT:
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{path} does not exist")
    return path


def words_of(text: str) -> list[str]:
    """The words of "A,B,…"."""
    return [word.strip() for word in text.split(",") if word.strip()]


class Number:
    """The argparse type of every number: an int or a float in a range (`ranges.Number`)."""

    def __init__(self, allowed: ranges.Number):
        self._allowed = allowed
        self.__name__ = "int" if allowed.whole else "float"  # for argparse's message

    def __call__(self, text: str) -> int | float:
        """The number, if it is in the range."""
        if not _DECIMAL.fullmatch(text.strip()):
            raise ValueError(text)
        value: int | float = int(text) if self._allowed.whole else float(text)
        if problem := self._allowed.problem(value):
            raise argparse.ArgumentTypeError(f"{text} {problem}")
        return value


class Numbers:
    """The argparse type of several numbers: "A,B,…", each in the range, none twice."""

    def __init__(self, allowed: ranges.Number, example: str):
        self._allowed, self._example = allowed, example

    def __call__(self, text: str) -> tuple[int | float, ...]:
        """The numbers, if all are in the range."""
        one = Number(self._allowed)
        try:
            values = tuple(one(word) for word in words_of(text))
        except ValueError:
            what = "whole numbers" if self._allowed.whole else "numbers"
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of {what} such as {self._example}") from None
        if problem := ranges.Several(self._allowed, least=1, distinct=True).problem(values):
            raise argparse.ArgumentTypeError(f"{text!r} {problem}")
        return values


def whole(low: float = 0, high: float = math.inf) -> Number:
    """The type of whole numbers from `low` to `high`."""
    return Number(ranges.count(low, high))  # type: ignore[arg-type]


SEEDS = Numbers(ranges.SEED, "0,1,2")
"""The argparse type of seeds."""


def add_command(commands: Commands, name: str, help: str, run: Command | None = None) -> Parser:
    """Adds a command that `run` does; `help` begins with a small letter."""
    parser: Parser = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    parser.set_defaults(run=run)
    return parser


def add_commands(parser: Parser) -> Commands:
    """Has the parser take one of several commands."""
    return parser.add_subparsers(metavar="COMMAND", required=True)


def add_config(parser: Parser, default: str | None = None, otherwise: str = "") -> None:
    """Adds --config and its overrides; otherwise: what happens without --config, where it may be left out."""
    help = "a config of the package (demo, real_small, mmclip_vitb16), or a file: FILE.py[:ARGUMENT], FILE.yaml"
    parser.add_argument(
        "--config",
        required=default is None and not otherwise,
        default=default,
        metavar="NAME[:ARGUMENT]",
        help=f"{help}; default: {otherwise}" if otherwise else help,
    )
    parser.takes_overrides = True
    parser.epilog = OVERRIDES_HELP


def add_log(parser: Parser) -> None:
    """Adds --log."""
    help = "what the terminal shows of a logging step: a line, or every metric too; files have them all anyway"
    parser.add_argument("--log", choices=("line", "full"), default="line", help=help)


def add_run(parser: Parser, required: bool = True, also: str = "") -> None:
    """Adds the arguments that name a checkpoint of a run; also: what else may be named."""
    add_model(parser, required, also)
    parser.renamed["--workdir"] = "--model"


def add_model(parser: Parser, required: bool = True, also: str = "") -> None:
    """Adds --model and --step; also: what else may be named."""
    help = "folder of a training run, of one of its checkpoints, or of what mmclip export wrote" + also
    parser.add_argument("--model", required=required, type=existing_place, metavar="RUN", help=help)
    parser.add_argument("--step", type=whole(), help="the checkpoint of a run to take; default: the newest")


def add_checkpoint(parser: Parser) -> None:
    """Adds the positional RUN of commands that take nothing else first, and --step."""
    help = "a training run, a checkpoint, a classifier's folder, or an exported directory; or as --model RUN"
    parser.run_is = "first"
    parser.add_argument("checkpoint", type=existing_place, metavar="RUN", help=help)
    parser.add_argument("--step", type=whole(), help="the checkpoint to take; default: the newest")


def add_build(parser: Parser) -> None:
    """Adds where a data set goes."""
    parser.add_argument("--data-dir", required=True, type=folder_of, help="where the data set's directory goes")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set of the same name")


def add_beam(parser: Parser) -> None:
    """Adds --beam."""
    parser.add_argument(
        "--beam",
        metavar="OPTIONS",
        help="build on Apache Beam with its options in one word, e.g. --beam='--runner=FlinkRunner "
        "--flink_master=HOST:8081', or '' for the Direct runner; the folders must be seen by all workers",
    )


def add_id_statements(parser: Parser) -> None:
    """Adds the flags by which the user says what equal ids mean."""
    for flag, what in (("--same-ids", "mean the same"), ("--other-ids", "say nothing")):
        help = f"equal ids of these two sources {what}; may be given several times"
        parser.add_argument(flag, action="append", default=[], metavar="A,B", help=help)


def id_statements_of(args: argparse.Namespace) -> "IdStatements":
    """What --same-ids and --other-ids say."""
    from mmclip_jax.data.leakage.numbering import IdStatements

    return IdStatements.read(args.same_ids, args.other_ids)


def add_options(parser: Parser, options: type) -> None:
    """A flag for every field of a class of options, with the help that the field carries."""
    kinds = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        flag = f"--{field.name.replace('_', '-')}"
        help = field.metadata["help"].replace("%", "%%")
        if field.default is dataclasses.MISSING:
            parser.add_argument(flag, required=True, help=help)
        elif kinds[field.name] is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default, help=help)
        elif isinstance(field.default, tuple):  # the options split comma-separated strings themselves
            text = ",".join(map(str, field.default))
            parser.add_argument(flag, default=text, metavar="A,B,…", help=help)
        else:
            choices = field.metadata.get("choices") or None
            kind: Any = kinds[field.name]
            if kind in (int, float):
                kind = Number(field.metadata.get("range") or ranges.Number(0, whole=kind is int))
            parser.add_argument(flag, type=kind, default=field.default, choices=choices, help=help)
