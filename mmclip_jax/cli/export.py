"""`mmclip export`."""

import argparse

from mmclip_jax.cli.arguments import Commands, add_checkpoint, add_command, existing_place, folder_of

FORMATS = ("huggingface", "open_clip", "stablehlo", "onnx", "numpy")


def _export(args: argparse.Namespace) -> None:
    from mmclip_jax.export import run as export

    print(export.run(args.checkpoint, args.to, args.out, step=args.step, evaluation=args.evaluation))


def add(top: Commands) -> None:
    """Adds the command."""
    export = add_command(top, "export", "write a checkpoint as files that other programs read", _export)
    add_checkpoint(export)
    export.add_argument("out", type=folder_of, metavar="OUT", help="a new folder")
    export.add_argument("--to", required=True, choices=FORMATS, help="the format (docs/export.md)")
    export.add_argument(
        "--evaluation",
        type=existing_place,
        metavar="DIR",
        help="an evaluation whose model card goes along; default: RUN/evaluation/STEP, if it is there",
    )
