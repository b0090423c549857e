"""`mmclip demo`."""

import argparse
from pathlib import Path

from mmclip_jax import ranges
from mmclip_jax.cli.arguments import Commands, Number, add_command, add_config, add_log, folder_of, whole
from mmclip_jax.cli.build import build_phantom
from mmclip_jax.settings import names_given, read_config


def _demo(args: argparse.Namespace) -> None:
    steps = [] if args.steps is None else [f"--config.train.steps={args.steps}"]
    overrides = [*args.overrides, *steps]
    config = read_config(args.config, overrides)  # before the minutes of work
    data = build_phantom(args.workdir / "data", config.model.image_size, 0, args.scale, None)
    config.data.train = (str(data),)
    from mmclip_jax import writers
    from mmclip_jax.evaluate import run as evaluation
    from mmclip_jax.train import run as training

    writers.configure_logging(full=args.log == "full")
    training.train(config, str(args.workdir), given=names_given(overrides))
    print(evaluation.run(args.workdir, None, data, split="test", show_text=True))


def add(top: Commands) -> None:
    """Adds the command."""
    demo = add_command(top, "demo", "build the phantom, train on it for minutes, evaluate, write report.html", _demo)
    add_config(demo, default="demo")
    demo.add_argument("--workdir", type=folder_of, default=Path("runs/demo"), help="where everything goes")
    demo.add_argument("--steps", type=whole(1), help="of the training; default: the config's")
    demo.add_argument(
        "--scale",
        type=Number(ranges.positive(1000)),
        default=1.0,
        help="factor on the number of the phantom's patients",
    )
    add_log(demo)
