"""Runs of several processes: the flags that say where the others are, and joining them."""

import argparse
import re

from mmclip_jax.cli.arguments import Parser, whole
from mmclip_jax.errors import UserError

# What JAX's readers of cluster variables raise where only some are set, or hold something else.
_NO_CLUSTER = (ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError)


def add_processes(parser: Parser) -> None:
    """Adds the arguments of runs of several processes."""
    parser.add_argument("--pod", action="store_true", help="one of the processes of a TPU pod or of a cluster")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0 of a run of several processes")
    parser.add_argument("--processes", type=whole(1), metavar="N", help="how many processes the run has")
    parser.add_argument("--process", type=whole(), metavar="I", help="which of them this one is, from 0")


def start_processes(args: argparse.Namespace) -> None:
    """Joins the run's other processes; must come before anything asks for devices."""
    place = (args.coordinator, args.processes, args.process)
    if args.pod and any(value is not None for value in place):
        raise UserError("--pod finds the other processes by itself: leave out --coordinator, --processes, --process")
    if any(value is None for value in place) and any(value is not None for value in place):
        raise UserError("--coordinator, --processes and --process belong together: give all three")
    if args.pod or args.coordinator is not None:
        _check_processes(*place)
        from mmclip_jax import sharding

        try:
            sharding.join_processes(*place)
        except _NO_CLUSTER as error:  # a number that cannot be, or nothing (or half of it) that names the others
            problem = "--pod finds no cluster around it" if args.pod else "the processes cannot be joined"
            remedy = "; --coordinator, --processes and --process say where the others are" if args.pod else ""
            said = str(error).rstrip(".") if isinstance(error, ValueError) else f"it sets no {error}, or wrongly"
            raise UserError(f"{problem} ({said}){remedy}") from error


def _check_processes(coordinator: str | None, count: int | None, number: int | None) -> None:
    """Raises UserError where --coordinator is no HOST:PORT, or --process none of --processes."""
    if coordinator is None or count is None or number is None:
        return
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})", coordinator)
    if found is None or not 0 < int(found[2]) < 65536:
        raise UserError(f"--coordinator {coordinator}: give HOST:PORT, such as 10.0.0.1:8476 or [fd00::1]:8476")
    if number >= count:
        raise UserError(f"--process {number} is none of --processes {count}, which are counted from 0")
