"""`mmclip evaluate`: a run of ours, or another program's model."""

import argparse

from mmclip_jax import python_files
from mmclip_jax.cli.arguments import (
    Commands,
    add_command,
    add_id_statements,
    add_run,
    existing,
    existing_place,
    id_statements_of,
    place_of,
)
from mmclip_jax.cli.distributed import add_processes, start_processes
from mmclip_jax.errors import UserError


def _evaluate(args: argparse.Namespace) -> None:
    if args.external is not None:
        _external(args)
        return
    if args.model is None:
        raise UserError("evaluate needs --model RUN, or --external SPEC with --checkpoint for another model")
    if args.checkpoint or args.vocabulary:
        raise UserError("--checkpoint and --vocabulary belong to --external; a run of ours is named with --model")
    start_processes(args)
    from mmclip_jax.evaluate import run as evaluation

    print(
        evaluation.run(
            args.model,
            args.step,
            args.data,
            split=args.split,
            protocol=args.protocol,
            out=args.out,
            show_text=args.show_text,
            allow_leakage=args.allow_leakage,
            told=id_statements_of(args),
            phrase_file=args.ms_cxr or "",
            labels_from_reports=args.labels_from_reports,
        )
    )


def _external(args: argparse.Namespace) -> None:
    ours = {
        "--model": args.model,
        "--step": args.step,
        "--ms-cxr": args.ms_cxr,
        "--allow-leakage": args.allow_leakage,
        "--same-ids": args.same_ids,
        "--other-ids": args.other_ids,
    }
    if given := [option for option, value in ours.items() if value not in (None, "", [])]:
        raise UserError(f"{given[0]} is of runs of this software; leave it out with --external")
    own = python_files.is_spec(args.external)
    if own and (args.checkpoint or args.vocabulary):
        raise UserError("--checkpoint and --vocabulary are of specs; an object of a Python file brings its own")
    needed = {"--checkpoint": own or args.checkpoint, "--data": args.data, "--out": args.out}
    if missing := [option for option, value in needed.items() if not value]:
        raise UserError(f"--external needs {missing[0]}, too")
    start_processes(args)
    from mmclip_jax.external import run as external

    print(
        external.run(
            args.external,
            args.checkpoint or (),
            args.data,
            args.out,
            vocabulary=args.vocabulary,
            split=args.split,
            protocol=args.protocol,
            show_text=args.show_text,
            labels_from_reports=args.labels_from_reports,
        )
    )


def add(top: Commands) -> None:
    """Adds the command."""
    evaluate = add_command(top, "evaluate", "score a checkpoint by prompts and write report.html", _evaluate)
    add_run(evaluate, required=False, also=", or of a fine-tuned classifier")
    evaluate.run_is = "option"
    evaluate.add_argument(
        "--external",
        metavar="NAME|FILE.yaml[:NAME]|FILE.py:FUNCTION",
        help="score another program's checkpoint, read as this spec says, or an object with encode_image and "
        "encode_text (docs/evaluation.md)",
    )
    evaluate.renamed["--referee"] = "--external"
    evaluate.add_argument(
        "--checkpoint", nargs="+", type=existing, metavar="FILE", help="of --external; several are an ensemble"
    )
    evaluate.add_argument(
        "--vocabulary", type=existing, metavar="FILE", help="of --external's tokenizer; default: beside the checkpoint"
    )
    evaluate.add_argument(
        "--data", nargs="+", type=existing_place, metavar="DIR", help="built data sets; default: the run's"
    )
    evaluate.add_argument(
        "--split", choices=("train", "validation", "test"), help="the part to score; default: the protocol's"
    )
    evaluate.add_argument(
        "--protocol",
        metavar="NAME|FILE.yaml[:NAME]",
        help="findings, prompts, uncertain labels, score (docs/evaluation.md); default: the one of the data set's name",
    )
    evaluate.add_argument("--out", type=place_of, metavar="DIR", help="default: RUN/evaluation/STEP")
    evaluate.add_argument(
        "--allow-leakage", default="", metavar="REASON", help="why images that are known from training may be scored"
    )
    add_id_statements(evaluate)
    evaluate.add_argument(
        "--ms-cxr",
        type=existing,
        metavar="FILE",
        help="MS_CXR_Local_Alignment_*.json or .csv",
    )
    evaluate.add_argument(
        "--labels-from-reports",
        action="store_true",
        help="score images without labels against weak labels read from their own reports, and say so everywhere",
    )
    add_processes(evaluate)
    evaluate.add_argument("--show-text", action="store_true", help="show report texts of data other than the phantom")
