"""`mmclip plan`."""

import argparse

from mmclip_jax.cli.arguments import Commands, add_command, add_config, whole
from mmclip_jax.settings import names_given, read_config


def _plan(args: argparse.Namespace) -> None:
    config = read_config(args.config, args.overrides)
    from mmclip_jax import writers
    from mmclip_jax.plan import plan, printed

    writers.configure_logging()
    made = plan.make_plan(config, args.topology, args.batch, names_given(args.overrides), args.formula)
    print(printed.text(made), flush=True)
    made.check()


def add(top: Commands) -> None:
    """Adds the command."""
    plan = add_command(top, "plan", "say what a run needs of a TPU slice or of GPUs; exit 1 if it does not fit", _plan)
    add_config(plan)
    plan.add_argument(
        "--topology",
        required=True,
        metavar="CHIP:AxB",
        help="v5e:16x16, v6e:16x16, v5p:4x4x8; GPUs of a node x nodes: h100:8x4, h200:8",
    )
    plan.add_argument("--batch", type=whole(1), metavar="ROWS", help="of the global batch; default: the config's")
    plan.add_argument("--formula", action="store_true", help="a first look in seconds: compile nothing")
