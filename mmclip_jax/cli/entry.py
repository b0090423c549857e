"""The `mmclip` command: reads arguments, calls the function that does the work, prints what it returns.

What a user got wrong (UserError, a mistyped option, a missing file, a wrong config key) is one line on stderr and exit
status 2; training that cannot go on is one line and 1; a run that SIGTERM stopped is 75, an interrupt 130. Everything
else is a fault of this software: one line and 1, with the traceback in a file (`--debug`, or MMCLIP_TRACEBACK=1, shows
it). Whatever takes long to import is imported by the command that needs it.
"""

import argparse
import errno
import io
import os
import re
import shlex
import sys
from collections.abc import Sequence

import mmclip_jax
from mmclip_jax import ends
from mmclip_jax.cli import (
    ablate,
    compare,
    completion,
    config,
    data,
    demo,
    embed,
    evaluate,
    export,
    finetune,
    plan,
    predict,
    serve,
    tokenizer,
    train,
)
from mmclip_jax.cli.arguments import Parser, UsageError, add_commands
from mmclip_jax.errors import (
    EXIT_PREEMPTED,
    DoesNotFitError,
    IncompleteError,
    LeakageError,
    LostProcessError,
    PreemptedError,
    TrainingError,
    UserError,
    nearest,
)
from mmclip_jax.memory import keep_freed_memory

# In the order in which --help lists them.
_COMMANDS = (
    data, tokenizer, config, train, plan, finetune, evaluate, compare, predict, serve, embed, export, ablate, demo,
    completion,
)  # fmt: skip
_FULL_OR_FORBIDDEN = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST),  # an output path that goes through, or is, something else
)
_OVERRIDE = re.compile(r"--?(no)?config\.")
_NUMBER = re.compile(r"-\.?\d")


def make_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="mmclip", description="Chest X-ray language-image pre-training with masked modelling.")
    parser.add_argument("--version", action="version", version=f"mmclip-jax {mmclip_jax.__version__}")
    top = add_commands(parser)

    for command in _COMMANDS:
        command.add(top)
    parser.set_defaults(parser=make_parser)  # for the command that says of all commands how they complete
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line; `run` is the command's function, `overrides` its --config.key=value arguments.

    Raises:
      UsageError: it cannot be understood.
    """
    parser = make_parser()
    chosen, depth = parser, 0
    while commands := chosen.commands():
        word = argv[depth] if depth < len(argv) else None
        if word in ("-h", "--help", "--version"):
            break
        if word is None:
            raise UsageError(f"{chosen.prog}: which command? {', '.join(commands)} (see {chosen.prog} --help)")
        if word not in commands:
            raise UsageError(f"{chosen.prog}: there is no command {word!r}{nearest(word, commands)}")
        chosen, depth = commands[word], depth + 1
    if chosen.more is not None:
        chosen.more(chosen)
    rest, overrides = _split_overrides(argv) if chosen.takes_overrides else (list(argv), [])
    rest = _with_run(chosen, _renamed(chosen, rest, argv), depth)
    known = chosen.options()
    for word in rest[depth:]:
        if word == "--":
            break
        name = word.partition("=")[0]
        if name.startswith("-") and name not in known and not _NUMBER.match(word) and name != "-":
            instead = f": write {chosen.gone[name]}" if name in chosen.gone else nearest(name, known)
            raise UsageError(f"{chosen.prog}: there is no option {name}{instead}")
    args = parser.parse_args(rest)
    args.overrides = overrides
    return args


def _renamed(parser: Parser, words: Sequence[str], argv: Sequence[str]) -> list[str]:
    """The arguments with today's names of options, saying on stderr which former ones were given."""

    def by_new_names(line: Sequence[str]) -> list[str]:
        end = line.index("--") if "--" in line else len(line)
        parts = [word.partition("=") for word in line[:end]]
        return [parser.renamed.get(name, name) + equals + value for name, equals, value in parts] + list(line[end:])

    found = by_new_names(words)
    for old, new in parser.renamed.items():
        if any(word.partition("=")[0] == old for word in words) and found != list(words):
            command = shlex.join(["mmclip", *by_new_names(argv)])
            print(f"{parser.prog}: {old} is now {new}: {command}", file=sys.stderr)
    return found


def _with_run(parser: Parser, words: Sequence[str], depth: int) -> list[str]:
    """The arguments with the run where this command takes it: as its first word, or as --model.

    Raises:
      UsageError: the run is named twice, or --model without a value.
    """
    rest = list(words)
    end = rest.index("--") if "--" in rest else len(rest)
    given = [place for place in range(depth, end) if rest[place].partition("=")[0] == "--model"]
    if parser.run_is == "option" and end > depth and not rest[depth].startswith("-"):
        if given:
            raise UsageError(f"{parser.prog}: the run is named twice, as {rest[depth]} and by --model")
        return [*rest[:depth], "--model", *rest[depth:]]
    if parser.run_is == "first" and given:
        if len(given) > 1:
            raise UsageError(f"{parser.prog}: the run is named twice by --model")
        (place,) = given
        _, equals, value = rest[place].partition("=")
        after = place + 1 if equals else place + 2
        if not equals:
            value = rest[place + 1] if after <= end and not rest[place + 1].startswith("-") else ""
        if not value:
            raise UsageError(f"{parser.prog}: argument --model: expected one argument")
        return [*rest[:depth], value, *rest[depth:place], *rest[after:]]
    return rest


def _split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates "--config.key=value" and "--config.key value" (made one word) from the other arguments."""
    rest: list[str] = []
    overrides: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if not _OVERRIDE.match(word):
            rest.append(word)
        elif "=" not in word and words and (not words[0].startswith("-") or _NUMBER.match(words[0])):
            overrides.append(f"{word}={words.pop(0)}")
        else:
            overrides.append(word)
    return rest, overrides


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # what the terminal's encoding lacks is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if "--debug" in words:
        words.remove("--debug")
        os.environ[ends.TRACEBACK_VARIABLE] = "1"
    keep_freed_memory()
    try:
        with ends.interrupts_end_it():
            return _main(words)
    except KeyboardInterrupt:  # between the command's end and this one's
        print("mmclip: interrupted", file=sys.stderr)
        return ends.STATUS_INTERRUPTED


def _main(words: Sequence[str]) -> int:
    args: argparse.Namespace | None = None
    try:
        args = _parse(words)
    except UsageError as error:
        print(_one_line(error), file=sys.stderr)
        return 2
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    try:
        _set_up()
        args.run(args)
        sys.stdout.flush()
    except UserError as error:
        print(f"mmclip: {_one_line(error)}", file=sys.stderr)
        return 2
    except (TrainingError, LeakageError, DoesNotFitError, IncompleteError) as error:
        print(f"mmclip: {_one_line(error)}", file=sys.stderr)
        return 1
    except PreemptedError as error:
        print(f"mmclip: {_one_line(error)}", file=sys.stderr, flush=True)
        if isinstance(error, LostProcessError):
            os._exit(EXIT_PREEMPTED)  # JAX would wait for the lost process at exit, and abort in the end
        return EXIT_PREEMPTED
    except KeyboardInterrupt:
        print("mmclip: interrupted", file=sys.stderr)
        ends.end_if_interrupted()
        return ends.STATUS_INTERRUPTED
    except BrokenPipeError:  # the reader of the output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno in _FULL_OR_FORBIDDEN:
            print(f"mmclip: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        else:
            print(f"mmclip: {ends.told(error, _folder_of(args))}", file=sys.stderr)
        return 1
    except Exception as error:
        print(f"mmclip: {ends.told(error, _folder_of(args))}", file=sys.stderr)
        return 1
    return 0


def _folder_of(args: argparse.Namespace) -> object:
    """The folder that a command works in: the one that it writes a run into, or the run that it looks at."""
    return getattr(args, "workdir", None) or getattr(args, "model", None)


def _set_up() -> None:
    """Marks absl's flags as parsed, which Grain's worker processes ask for; makes room for open files."""
    if problem := ends.problem_of_open_files():
        raise UserError(problem)
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
