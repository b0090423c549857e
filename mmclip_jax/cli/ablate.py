"""`mmclip ablate`."""

import argparse

from mmclip_jax.cli.arguments import SEEDS, Commands, add_command, add_config, add_log, folder_of
from mmclip_jax.settings import read_config


def _ablate(args: argparse.Namespace) -> None:
    from mmclip_jax import ablate, writers

    writers.configure_logging(full=args.log == "full")
    print(ablate.run(read_config(args.config, args.overrides), args.study, args.seeds, args.workdir))


def add(top: Commands) -> None:
    """Adds the command."""
    ablate = add_command(top, "ablate", "run a named grid of variants and compare them", _ablate)
    add_config(ablate)
    ablate.add_argument("--study", required=True, help="name of the grid")
    ablate.add_argument("--seeds", type=SEEDS, default=(0, 1, 2), metavar="0,1,2", help="one run a variant and seed")
    ablate.add_argument("--workdir", required=True, type=folder_of, help="directory of the runs and their table")
    add_log(ablate)
