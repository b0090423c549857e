"""The `mmclip` command: reads arguments, calls the function that does the work, prints what it returns.

What a user got wrong (UserError, a mistyped option, a missing file, a wrong config key) is one line on stderr and exit
status 2; training that cannot go on is one line and 1; a run that SIGTERM stopped is 75, an interrupt 130. Everything
else is a fault of this software: one line and 1, with the traceback in a file (`--debug`, or MMCLIP_TRACEBACK=1, shows
it). Whatever takes long to import is imported by the command that needs it.
"""

import argparse
import dataclasses
import errno
import io
import json
import os
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mmclip_jax
from mmclip_jax import ends, ranges
from mmclip_jax.arguments import (
    SEEDS,
    Number,
    Numbers,
    Parser,
    UsageError,
    add_beam,
    add_build,
    add_command,
    add_commands,
    add_config,
    add_options,
    add_processes,
    add_run,
    add_told,
    existing,
    existing_place,
    folder_of,
    path_of,
    place_of,
    whole,
    words_of,
)
from mmclip_jax.errors import (
    EXIT_PREEMPTED,
    DoesNotFitError,
    LeakageError,
    LostProcessError,
    PreemptedError,
    TrainingError,
    UserError,
    nearest,
)
from mmclip_jax.settings import names_given, read_config

if typing.TYPE_CHECKING:
    pass


_CONFIGS = Path(mmclip_jax.__file__).resolve().parents[1] / "configs"
_FULL_OR_FORBIDDEN = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST),  # an output path that goes through, or is, something else
)
# What JAX's readers of cluster variables raise where only some are set, or hold something else.
_NO_CLUSTER = (ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError)
_OVERRIDE = re.compile(r"--?(no)?config\.")
_NUMBER = re.compile(r"-\.?\d")


# ---------------------------------------------------------------------------------------------------------------------
# The commands


def _data_build_phantom(args: argparse.Namespace) -> None:
    print(_build_phantom(args.data_dir, args.image_size, args.seed, args.scale, args.workers, args.overwrite))


def _build_phantom(
    data_dir: Path, image_size: int, seed: int, scale: float, workers: int | None, overwrite: bool = False
) -> Path:
    from mmclip_jax.data import records
    from mmclip_jax.data.builders.phantom import Phantom
    from mmclip_jax.data.phantom import PhantomConfig, scaled_patients

    workers = os.cpu_count() or 1 if workers is None else workers
    options = PhantomConfig(seed, image_size, scaled_patients(scale))
    builder = Phantom(data_dir, options, workers=workers)
    return records.build(builder, overwrite=overwrite, progress=True)


def _data_build_table(args: argparse.Namespace) -> None:
    from mmclip_jax.data.builders import table
    from mmclip_jax.data.builders.table_options import TableOptions

    names = [field.name for field in dataclasses.fields(TableOptions)]
    options = TableOptions(**{name: getattr(args, name) for name in names})
    made = table.build_table(options, args.data_dir, overwrite=args.overwrite, progress=True, make=_make_of(args.beam))
    print(made)


def _data_build_collection(args: argparse.Namespace) -> None:
    from mmclip_jax.data.builders import registry

    options_class = registry.load(args.collection).Options
    options = options_class(**{field.name: getattr(args, field.name) for field in dataclasses.fields(options_class)})
    made = registry.build(
        args.collection, options, args.data_dir, overwrite=args.overwrite, progress=True, make=_make_of(args.beam)
    )
    print(made)


def _make_of(beam_options: str | None) -> Any:
    """What `records.build` takes as `make`."""
    if beam_options is None:
        return None
    import functools
    import shlex

    from mmclip_jax.data.builders import beam

    return functools.partial(beam.make, options=shlex.split(beam_options))


def _data_inspect(args: argparse.Namespace) -> None:
    from mmclip_jax.data.builders import inspect

    found = inspect.inspect(
        args.table, args.images, name=args.name, data_dir=str(args.data_dir), read_images=args.read_images
    )
    print(found)
    if not found.command:
        raise UserError(f"{args.table}: no command can be proposed before these problems are solved")


def _data_info(args: argparse.Namespace) -> None:
    from mmclip_jax.data import info, page

    print(info.describe(args.path))
    if args.html is not None:
        print(f"\nPage: {page.write_page(args.path, args.html, show_text=args.show_text)}")


def _data_audit(args: argparse.Namespace) -> None:
    from mmclip_jax.data.leakage import audit

    looks = not args.no_pixels
    train = [audit.read_set(s, ("train",), looks=looks, patient_pattern=args.patient_pattern) for s in args.train]
    held_out = ("validation", "test")
    test = [audit.read_set(s, held_out, looks=looks, patient_pattern=args.patient_pattern) for s in args.against]
    found = audit.audit(train, test, audit.Told.read(args.same_ids, args.other_ids))
    print(audit.describe(found, train, test, args.show_ids))
    if args.out is not None:
        audit.write_csv(found, train, test, args.out)
    if any(each.is_leak for each in found):
        raise LeakageError("the test sets share images, studies or patients with the training sets")
    if any(each.is_open for each in found):
        raise LeakageError("ids of test and training sets agree: say with --same-ids or --other-ids what they mean")


def _tokenizer_train(args: argparse.Namespace) -> None:
    from mmclip_jax.data import records
    from mmclip_jax.text import tokenizer

    def texts() -> Iterator[str]:
        for directory in args.data:
            paired = records.open_records(directory, "train", "paired")
            if not len(paired):
                raise UserError(f"{directory} has no training reports: a tokenizer learns from those")
            for number in range(len(paired)):
                yield paired[number].text

    trained = tokenizer.train_tokenizer(texts(), args.vocab_size, args.out)
    fewer = f" of {args.vocab_size:,} asked for: the reports give no more" * (trained.vocab_size < args.vocab_size)
    print(f"{args.out}: {trained.vocab_size:,} pieces{fewer}")


def _train(args: argparse.Namespace) -> None:
    config = read_config(args.config, args.overrides)
    if args.profile is not None:
        config.train.profile = args.profile
    for name in ("allow_leakage", "same_ids", "other_ids"):
        if given := getattr(args, name):
            config.data[name] = given if name == "allow_leakage" else (*config.data[name], *given)
    _start_processes(args)
    from mmclip_jax import writers
    from mmclip_jax.train import run as training

    writers.configure_logging()
    training.train(config, str(args.workdir), args.stretch, names_given(args.overrides))


def _plan(args: argparse.Namespace) -> None:
    config = read_config(args.config, args.overrides)
    from mmclip_jax import writers
    from mmclip_jax.plan import plan, printed

    writers.configure_logging()
    made = plan.make_plan(config, args.topology, args.batch)
    print(printed.text(made), flush=True)
    made.check()


def _start_processes(args: argparse.Namespace) -> None:
    """Joins the run's other processes; must come before anything asks for devices."""
    told = (args.coordinator, args.processes, args.process)
    if args.pod and any(value is not None for value in told):
        raise UserError("--pod finds the other processes by itself: leave out --coordinator, --processes, --process")
    if any(value is None for value in told) and any(value is not None for value in told):
        raise UserError("--coordinator, --processes and --process belong together: give all three")
    if args.pod or args.coordinator is not None:
        _check_processes(*told)
        from mmclip_jax import sharding

        try:
            sharding.join_processes(*told)
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


def _finetune(args: argparse.Namespace) -> None:
    _start_processes(args)
    from mmclip_jax import writers
    from mmclip_jax.finetune import run as finetuning
    from mmclip_jax.finetune import task as task_lib

    writers.configure_logging()
    names = [field.name for field in dataclasses.fields(task_lib.Settings)]
    settings = task_lib.Settings(**{name: getattr(args, name) for name in names})
    print(
        finetuning.run(
            args.checkpoint,
            args.data,
            args.workdir,
            settings,
            step=args.step,
            split=args.split,
            allow_leakage=args.allow_leakage,
            told=_told(args),
        )
    )


def _evaluate(args: argparse.Namespace) -> None:
    if args.referee is not None:
        raise UserError(f"--referee is --external now: give --external {args.referee}")
    if args.external is not None:
        _external(args)
        return
    if args.workdir is None:
        raise UserError("evaluate needs --workdir RUN, or --external SPEC with --checkpoint for another model")
    if args.checkpoint or args.vocabulary:
        raise UserError("--checkpoint and --vocabulary belong to --external; a run of ours is named with --workdir")
    _start_processes(args)
    from mmclip_jax.evaluate import run as evaluation

    print(
        evaluation.run(
            args.workdir,
            args.step,
            args.data,
            split=args.split,
            protocol=args.protocol,
            out=args.out,
            show_text=args.show_text,
            allow_leakage=args.allow_leakage,
            told=_told(args),
            phrase_file=args.ms_cxr or "",
            labels_from_reports=args.labels_from_reports,
        )
    )


def _told(args: argparse.Namespace) -> Any:
    from mmclip_jax.data.leakage.audit import Told

    return Told.read(args.same_ids, args.other_ids)


def _external(args: argparse.Namespace) -> None:
    ours = {
        "--workdir": args.workdir,
        "--step": args.step,
        "--ms-cxr": args.ms_cxr,
        "--allow-leakage": args.allow_leakage,
        "--same-ids": args.same_ids,
        "--other-ids": args.other_ids,
    }
    if given := [option for option, value in ours.items() if value not in (None, "", [])]:
        raise UserError(f"{given[0]} is of runs of this software; leave it out with --external")
    own = args.external.partition(":")[0].endswith(".py")
    if own and (args.checkpoint or args.vocabulary):
        raise UserError("--checkpoint and --vocabulary are of specs; an object of a Python file brings its own")
    needed = {"--checkpoint": own or args.checkpoint, "--data": args.data, "--out": args.out}
    if missing := [option for option, value in needed.items() if not value]:
        raise UserError(f"--external needs {missing[0]}, too")
    _start_processes(args)
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


def _compare(args: argparse.Namespace) -> None:
    from mmclip_jax.evaluate.report import comparison

    print(comparison.run(args.evaluations, args.out, resamples=args.resamples))


def _predict(args: argparse.Namespace) -> None:
    from mmclip_jax.inference import model as model_lib
    from mmclip_jax.text import prompts

    for finding in args.findings or ():
        prompts.zero_shot_prompts(finding)  # refuses unknown findings before the model is loaded
    model = model_lib.load(args.workdir, args.step)
    scores = model.zero_shot(args.images, args.findings or _known_findings(model.manifest))
    rows: list[tuple[str, dict[str, float]]] = [
        (str(image), {finding: round(float(values[n]), 4) for finding, values in scores.items()})
        for n, image in enumerate(args.images)
    ]
    if args.format == "json":
        images = [{"image": image, "findings": findings} for image, findings in rows]
        print(json.dumps({"workdir": str(args.workdir), "step": model.step, "images": images}, indent=1))
        return
    for image, findings in rows:
        print(image)
        for finding, probability in sorted(findings.items(), key=lambda item: -item[1]):
            print(f"  {probability:6.3f}  {finding}")
    print("Probability of the positive against the negative prompts: a research score, not calibrated, no diagnosis.")


def _known_findings(manifest: dict[str, Any]) -> list[str]:
    """The kinds that the model has read or been told of, in the vocabulary's order."""
    from mmclip_jax.text import prompts

    exposure = manifest.get("exposure", {})
    seen = {
        kind for name in ("label_kinds", "report_kinds") for kinds in exposure.get(name, {}).values() for kind in kinds
    }
    return [kind for kind in prompts.KINDS if kind in seen] or list(prompts.KINDS)


def _ablate(args: argparse.Namespace) -> None:
    from mmclip_jax import ablate, writers

    writers.configure_logging()
    print(ablate.run(read_config(args.config, args.overrides), args.study, args.seeds, args.workdir))


def _demo(args: argparse.Namespace) -> None:
    if args.config == _CONFIGS / "demo.py" and not args.config.exists():
        raise UserError("the demo's config lies in a checkout of the project: run it there, or give --config FILE")
    config = read_config(str(args.config), args.overrides)  # before the minutes of work
    data = _build_phantom(args.workdir / "data", config.model.image_size, 0, args.scale, None)
    config.data.train = (str(data),)
    from mmclip_jax import writers
    from mmclip_jax.evaluate import run as evaluation
    from mmclip_jax.train import run as training

    writers.configure_logging()
    training.train(config, str(args.workdir))
    print(evaluation.run(args.workdir, None, data, split="test", show_text=True))


# ---------------------------------------------------------------------------------------------------------------------
# Arguments


def _add_table_options(parser: Parser) -> None:
    from mmclip_jax.data.builders.table_options import TableOptions

    add_options(parser, TableOptions)
    parser.epilog = (
        "A column option takes the name of a column, or - to leave it unused: --labels-column - where a column named "
        "like labels holds diagnoses or codes, --label-columns - where columns are only named like labels. "
        "`mmclip data inspect TABLE --images DIR` proposes all options."
    )


def _add_collection_options(parser: Parser) -> None:
    import textwrap

    from mmclip_jax.data.builders import registry

    collection = registry.load(parser.get_default("collection"))
    add_options(parser, collection.Options)
    text = f"{collection.description} To get it: {collection.instructions} Licence: {collection.licence}"
    parser.epilog = textwrap.fill(" ".join(text.split()), 78, break_on_hyphens=False)


def _add_transfer_options(parser: Parser) -> None:
    from mmclip_jax.data.builders.options import UNCERTAIN_POLICIES
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
    add("findings", "kinds, or classes; default: all of the labels", type=lambda text: tuple(words_of(text)),
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
    add("keep_checkpoints", "keep the newest checkpoint of a finished run", action="store_true")


def _add_builds(build: Any) -> None:
    from mmclip_jax.data.builders import registry

    phantom = add_command(build, "phantom", "write procedural chest X-rays with reports", _data_build_phantom)
    add_build(phantom)
    phantom.add_argument("--seed", type=Number(ranges.SEED), default=0, help="another seed, other patients")
    phantom.add_argument("--image-size", type=whole(8, 4096), default=64, help="pixels a side")
    phantom.add_argument(
        "--scale", type=Number(ranges.positive(1000)), default=1.0, help="factor on the number of patients"
    )
    phantom.add_argument("--workers", type=whole(1, 1024), help="processes that draw; default: one a core")
    table = add_command(build, "table", "read your own table and images", _data_build_table)
    add_build(table)
    add_beam(table)
    table.more = _add_table_options
    for name, what in registry.COLLECTIONS.items():
        collection = add_command(build, name, what, _data_build_collection)
        add_build(collection)
        add_beam(collection)
        collection.set_defaults(collection=name)
        collection.more = _add_collection_options


def _add_inspection(data: Any) -> None:
    look = add_command(
        data, "inspect", "say how a table and its images would be read, what is wrong, and the command", _data_inspect
    )
    look.add_argument("table", metavar="TABLE", help="CSV, TSV, Excel or Parquet file")
    look.add_argument("--images", required=True, metavar="DIR", help="folder of its images")
    look.add_argument("--name", default="", help="of the data set; default: made of the table's name")
    look.add_argument("--data-dir", type=path_of, default=Path("DATA"), help="where the data set's directory will go")
    look.add_argument("--read-images", type=whole(), default=2000, metavar="N", help="images that are decoded; 0: none")

    info = add_command(data, "info", "show what a data set holds", _data_info)
    info.add_argument("path", metavar="PATH", type=existing_place, help="directory of a built data set")
    info.add_argument("--html", metavar="FILE", type=path_of, help="also write a page with examples as pictures")
    info.add_argument("--show-text", action="store_true", help="show ids and reports on the page")

    check = add_command(
        data, "audit", "look for anything of test sets in training sets; exit 1 if there is", _data_audit
    )
    check.add_argument(
        "train", nargs="+", metavar="TRAIN", help="a built data set (its train split, or DIR:SPLIT), or FILE.csv:COLUMN"
    )
    check.add_argument(
        "--against", nargs="+", required=True, metavar="TEST", help="likewise (validation and test, or DIR:SPLIT)"
    )
    check.add_argument("--patient-pattern", default="", metavar="REGEX", help="finds the patient in the ids of a list")
    check.add_argument("--no-pixels", action="store_true", help="do not decode images to find those that are alike")
    add_told(check)
    check.add_argument("--show-ids", action="store_true", help="name an example of each kind of leak")
    check.add_argument("--out", type=path_of, metavar="FILE.csv", help="write every pair")


def _add_tokenizer(top: Any) -> None:
    tokenizer = add_commands(add_command(top, "tokenizer", "train a tokenizer"))
    learn = add_command(
        tokenizer, "train", "train a SentencePiece model on the training reports of data sets", _tokenizer_train
    )
    learn.add_argument("--data", required=True, nargs="+", type=existing_place, metavar="DIR", help="built data sets")
    learn.add_argument("--vocab-size", type=whole(8, 10**6), default=4096, help="number of pieces")
    learn.add_argument("--out", required=True, type=path_of, metavar="FILE", help="the model file to write")


def _add_train(top: Any) -> None:
    train = add_command(top, "train", "pre-train a model, or go on where the run in --workdir stopped", _train)
    add_config(train)
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
    add_told(train)
    add_processes(train)


def _add_plan(top: Any) -> None:
    plan = add_command(top, "plan", "say what a run needs of a TPU slice or of GPUs; exit 1 if it does not fit", _plan)
    add_config(plan)
    plan.add_argument(
        "--topology",
        required=True,
        metavar="CHIP:AxB",
        help="v5e:16x16, v6e:16x16, v5p:4x4x8; GPUs of a node x nodes: h100:8x4",
    )
    plan.add_argument("--batch", type=whole(1), metavar="ROWS", help="of the global batch; default: the config's")


def _add_finetune(top: Any) -> None:
    tune = add_command(
        top, "finetune", "learn labels with a pre-trained image encoder, by fraction and seed", _finetune
    )
    tune.add_argument("--checkpoint", required=True, type=existing_place, help="directory of a pre-training run")
    tune.add_argument("--step", type=whole(), help="the checkpoint to take; default: the newest")
    tune.add_argument("--data", required=True, nargs="+", type=existing_place, metavar="DIR", help="built data sets")
    tune.add_argument("--workdir", required=True, type=place_of, help="directory of the runs and their table")
    tune.add_argument("--split", default="test", choices=("validation", "test"), help="the part to score")
    tune.add_argument(
        "--allow-leakage",
        default="",
        metavar="REASON",
        help="why images known from pre-training, or from the rows that are learnt here, may be scored",
    )
    add_told(tune)
    tune.more = _add_transfer_options
    add_processes(tune)


def _add_evaluate(top: Any) -> None:
    evaluate = add_command(top, "evaluate", "score a checkpoint by prompts and write report.html", _evaluate)
    add_run(evaluate, required=False)
    evaluate.add_argument(
        "--external",
        metavar="NAME|FILE.yaml[:NAME]|FILE.py:FUNCTION",
        help="score another program's checkpoint, read as this spec says, or an object with encode_image and "
        "encode_text (docs/evaluation.md)",
    )
    evaluate.add_argument("--referee", help=argparse.SUPPRESS)  # the name before
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
    evaluate.add_argument("--out", type=place_of, metavar="DIR", help="default: WORKDIR/evaluation/STEP")
    evaluate.add_argument(
        "--allow-leakage", default="", metavar="REASON", help="why images that are known from training may be scored"
    )
    add_told(evaluate)
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


def _add_compare_and_predict(top: Any) -> None:
    compare = add_command(
        top, "compare", "put evaluations of the same images side by side, with paired tests", _compare
    )
    compare.add_argument(
        "evaluations", nargs="+", type=existing, metavar="DIR", help="what mmclip evaluate wrote, or a training run"
    )
    compare.add_argument("--out", type=folder_of, default=Path("compare"), metavar="DIR", help="where the page goes")
    compare.add_argument("--resamples", type=whole(20, 10**6), default=2000, help="of patients")

    predict = add_command(top, "predict", "score single images by prompts", _predict)
    predict.add_argument(
        "images", nargs="+", type=existing, metavar="IMAGE", help="JPEG, PNG, TIFF, BMP or DICOM files"
    )
    add_run(predict)
    predict.add_argument(
        "--findings", type=words_of, metavar="A,B,…", help="default: all that the model was trained on"
    )
    predict.add_argument("--format", default="table", choices=("table", "json"), help="how to print the scores")


def _add_ablate_and_demo(top: Any) -> None:
    ablate = add_command(top, "ablate", "run a named grid of variants and compare them", _ablate)
    add_config(ablate)
    ablate.add_argument("--study", required=True, help="name of the grid")
    ablate.add_argument("--seeds", type=SEEDS, default=(0, 1, 2), metavar="0,1,2", help="one run a variant and seed")
    ablate.add_argument("--workdir", required=True, type=folder_of, help="directory of the runs and their table")

    demo = add_command(top, "demo", "build the phantom, train on it for minutes, evaluate, write report.html", _demo)
    add_config(demo, default=_CONFIGS / "demo.py")
    demo.add_argument("--workdir", type=folder_of, default=Path("runs/demo"), help="where everything goes")
    demo.add_argument(
        "--scale",
        type=Number(ranges.positive(1000)),
        default=1.0,
        help="factor on the number of the phantom's patients",
    )


def _make_parser() -> Parser:
    parser = Parser(prog="mmclip", description="Chest X-ray language-image pre-training with masked modelling.")
    parser.add_argument("--version", action="version", version=f"mmclip-jax {mmclip_jax.__version__}")
    top = add_commands(parser)

    data = add_commands(add_command(top, "data", "build data sets and look at them"))
    build = add_commands(add_command(data, "build", "write a data set"))
    _add_builds(build)
    _add_inspection(data)
    _add_tokenizer(top)
    _add_train(top)
    _add_plan(top)
    _add_finetune(top)
    _add_evaluate(top)
    _add_compare_and_predict(top)
    _add_ablate_and_demo(top)
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line; `run` is the command's function, `overrides` its --config.key=value arguments.

    Raises:
      UsageError: it cannot be understood.
    """
    parser = _make_parser()
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
    known = chosen.options()
    for word in rest[depth:]:
        if word == "--":
            break
        name = word.partition("=")[0]
        if name.startswith("-") and name not in known and not _NUMBER.match(word) and name != "-":
            raise UsageError(f"{chosen.prog}: there is no option {name}{nearest(name, known)}")
    args = parser.parse_args(rest)
    args.overrides = overrides
    return args


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
    try:
        with ends.interrupts_end_it():
            return _main(words)
    except KeyboardInterrupt:  # between the command's end and this one's
        print("mmclip: interrupted", file=sys.stderr)
        return ends.STATUS_INTERRUPTED


def _main(words: Sequence[str]) -> int:
    args: Any = None
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
    except (TrainingError, LeakageError, DoesNotFitError) as error:
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
            print(f"mmclip: {ends.told(error, getattr(args, 'workdir', None))}", file=sys.stderr)
        return 1
    except Exception as error:
        print(f"mmclip: {ends.told(error, getattr(args, 'workdir', None))}", file=sys.stderr)
        return 1
    return 0


def _set_up() -> None:
    """Marks absl's flags as parsed, which Grain's worker processes ask for; makes room for open files."""
    if problem := ends.problem_of_open_files():
        raise UserError(problem)
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


if __name__ == "__main__":
    sys.exit(main())
