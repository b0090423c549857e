"""`mmclip train`."""

import argparse

from mmclip_jax.cli.arguments import Commands, add_command, add_config, add_id_statements, add_log, place_of, whole
from mmclip_jax.cli.distributed import add_processes, start_processes
from mmclip_jax.settings import names_given, read_config, read_stored


def _train(args: argparse.Namespace) -> None:
    if args.config is None:
        config = read_stored(str(args.workdir), args.overrides)
    else:
        config = read_config(args.config, args.overrides)
    if args.profile is not None:
        config.train.profile = args.profile
    for name in ("allow_leakage", "same_ids", "other_ids"):
        if given := getattr(args, name):
            config.data[name] = given if name == "allow_leakage" else (*config.data[name], *given)
    start_processes(args)
    from mmclip_jax import writers
    from mmclip_jax.train import run as training

    writers.configure_logging(full=args.log == "full")
    training.train(config, str(args.workdir), args.stretch, names_given(args.overrides), args.tracker)


def add(top: Commands) -> None:
    """Adds the command."""
    train = add_command(top, "train", "pre-train a model, or go on where the run in --workdir stopped", _train)
    add_config(train, otherwise="what the run in --workdir was last started with")
    train.add_argument("--workdir", required=True, type=place_of, help="directory of checkpoints, metrics and manifest")
    train.add_argument(
        "--profile", type=whole(), metavar="STEPS", help="trace so many steps with JAX's profiler into WORKDIR/profile"
    )
    train.add_argument(
        "--stretch",
        action="store_true",
        help="go on with another number of steps than the run began with: its schedules stretch",
    )
    train.add_argument(
        "--allow-leakage", default="", metavar="REASON", help="why validation images that are known may be scored"
    )
    add_id_statements(train)
    add_log(train)
    train.add_argument(
        "--tracker",
        default="",
        metavar="mlflow|FILE.py:FUNCTION",
        help="where metrics, pictures and settings go beside the workdir's files (docs/ops.md)",
    )
    add_processes(train)
