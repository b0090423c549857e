"""`mmclip compare`."""

import argparse
from pathlib import Path

from mmclip_jax.cli.arguments import Commands, add_command, existing, folder_of, whole


def _compare(args: argparse.Namespace) -> None:
    from mmclip_jax.evaluate.report import comparison

    print(comparison.run(args.evaluations, args.out, resamples=args.resamples))


def add(top: Commands) -> None:
    """Adds the command."""
    compare = add_command(
        top, "compare", "put evaluations of the same images side by side, with paired tests", _compare
    )
    compare.add_argument(
        "evaluations", nargs="+", type=existing, metavar="DIR", help="what mmclip evaluate wrote, or a training run"
    )
    compare.add_argument("--out", type=folder_of, default=Path("compare"), metavar="DIR", help="where the page goes")
    compare.add_argument("--resamples", type=whole(20, 10**6), default=2000, help="of patients")
