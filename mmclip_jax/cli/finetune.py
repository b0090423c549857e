"""`mmclip finetune`."""

import argparse
import dataclasses
from typing import Any

from mmclip_jax import ranges
from mmclip_jax.cli.arguments import (
    SEEDS,
    Commands,
    Number,
    Numbers,
    Parser,
    add_command,
    add_id_statements,
    add_log,
    add_model,
    existing_place,
    id_statements_of,
    place_of,
    words_of,
)
from mmclip_jax.cli.distributed import add_processes, start_processes


def _finetune(args: argparse.Namespace) -> None:
    start_processes(args)
    from mmclip_jax import writers
    from mmclip_jax.finetune import run as finetuning
    from mmclip_jax.finetune import task as task_lib

    writers.configure_logging(full=args.log == "full")
    names = [field.name for field in dataclasses.fields(task_lib.Settings)]
    settings = task_lib.Settings(**{name: getattr(args, name) for name in names})
    print(
        finetuning.run(
            args.model,
            args.data,
            args.workdir,
            settings,
            step=args.step,
            split=args.split,
            allow_leakage=args.allow_leakage,
            told=id_statements_of(args),
        )
    )


def _add_settings(parser: Parser) -> None:
    from mmclip_jax.data.builders.labels import UNCERTAIN_POLICIES
    from mmclip_jax.finetune.scores import TASKS
    from mmclip_jax.finetune.task import DEFAULTS, MODES, RANGES, Settings

    default = {field.name: field.default for field in dataclasses.fields(Settings)}

    def by_mode(name: str) -> str:
        return ", ".join(f"{DEFAULTS[mode][name]:g} ({mode})" for mode in MODES)

    def add(name: str, help: str, **more: Any) -> None:
        parser.add_argument(f"--{name.replace('_', '-')}", dest=more.pop("dest", name), help=help, **more)

    def number(name: str, help: str, **more: Any) -> None:
        allowed = RANGES[name]
        assert isinstance(allowed, ranges.Number)
        add(name, help, type=Number(allowed), default=default[name], **more)

    add("mode", "train a linear head alone, or all of the encoder", default=default["mode"], choices=MODES)
    add("task", "several findings an image, or one class", default=default["task"], choices=TASKS)
    add("fraction", "shares of the training patients, nested", dest="fractions", metavar="A,B,…",
        type=Numbers(ranges.positive(1), "0.01,0.1,1"), default=default["fractions"])  # fmt: skip
    add("seeds", "one run a fraction and seed", type=SEEDS, metavar="0,1,2",
        default=default["seeds"])  # fmt: skip
    add("findings", "findings, or classes; default: all of the labels", type=lambda text: tuple(words_of(text)),
        metavar="A,B,…", default=())  # fmt: skip
    add("uncertain", "uncertain labels in training", default=default["uncertain"], choices=UNCERTAIN_POLICIES)
    number("batch", "rows a step")
    number("peak_lr", f"learning rate; default: {by_mode('peak_lr')}")
    number("weight_decay", f"of AdamW; default: {by_mode('weight_decay')}")
    number("epochs", f"of the fraction; default: {by_mode('epochs')}")
    number("steps", "in place of epochs")
    number("least_steps", "at least so many steps, however small the fraction")
    number("layer_decay", "factor on the learning rate from a layer to the one below")
    number("head_rate", "factor on the learning rate of the head in full fine-tuning")
    number("evaluations", "looks at the validation split")
    number("patience", "looks without a better score that end a run")
    number("workers", "processes that prepare images; 0: this one")
    add("keep_checkpoints", "keep the newest training checkpoint of a finished run, too", action="store_true")
    add("discard_classifiers", "keep the scores of a finished run alone, not its classifier", action="store_true")


def add(top: Commands) -> None:
    """Adds the command."""
    tune = add_command(
        top, "finetune", "learn labels with a pre-trained image encoder, by fraction and seed", _finetune
    )
    add_model(tune)
    tune.renamed["--checkpoint"] = "--model"
    tune.run_is = "option"
    tune.add_argument("--data", required=True, nargs="+", type=existing_place, metavar="DIR", help="built data sets")
    tune.add_argument("--workdir", required=True, type=place_of, help="directory of the runs and their table")
    tune.add_argument("--split", default="test", choices=("validation", "test"), help="the part to score")
    tune.add_argument(
        "--allow-leakage",
        default="",
        metavar="REASON",
        help="why images known from pre-training, or from the rows that are learnt here, may be scored",
    )
    add_id_statements(tune)
    add_log(tune)
    tune.more = _add_settings
    add_processes(tune)
