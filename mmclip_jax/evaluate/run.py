"""The whole evaluation of a checkpoint, and the quick one while training.

`run` is what `mmclip evaluate` does; `evaluate_checkpoint` takes any model that has the methods of `Model`;
`quick_metrics` gives a trainer a handful of numbers in seconds.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath

import mmclip_jax
from mmclip_jax import checkpoints, files, writers
from mmclip_jax.data.leakage import audit
from mmclip_jax.data.records import dataset_facts
from mmclip_jax.data.schema import Example
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate import protocols, registry
from mmclip_jax.evaluate.base import Context
from mmclip_jax.evaluate.evaluations.zeroshot import ZERO_SHOT
from mmclip_jax.evaluate.model import Encoder, Foreign, Model, Supervised
from mmclip_jax.evaluate.protocols import Protocol
from mmclip_jax.evaluate.report import card, terminal
from mmclip_jax.evaluate.report import cases as case_lib
from mmclip_jax.evaluate.report import page as page_lib
from mmclip_jax.evaluate.rows import Embedded, Progress, Split, embed_images
from mmclip_jax.evaluate.stats.bootstrap import DEFAULT, Bootstrap
from mmclip_jax.inference.classifier import KEY
from mmclip_jax.inference.stamp import describe, name_of_classifier

__all__ = ["Model", "Options", "Split", "evaluate_checkpoint", "quick_metrics", "run"]

METRICS_FILE = "metrics.jsonl"
SCHEMA = 1
# The only data set without real patients: its texts are always shown.
_OWN_DATA = "phantom"

Directories = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def run(
    workdir: str | os.PathLike[str],
    step: int | None = None,
    data: Directories | None = None,
    *,
    split: str | None = None,
    protocol: str | None = None,
    out: str | os.PathLike[str] | None = None,
    show_text: bool = False,
    allow_leakage: str = "",
    told: audit.IdStatements = audit.NOTHING_STATED,
    resamples: int = 1000,
    progress: bool = True,
    phrase_file: str | os.PathLike[str] = "",
    labels_from_reports: bool = False,
) -> str:
    """Loads a checkpoint, evaluates it and writes the report; returns what a terminal should show.

    Args:
      workdir: of a training run (or one of its checkpoints).
      step: of the checkpoint; None for the newest.
      data: one or more built data sets; None for those that the run evaluates or, failing that, trains on.
      split: "test", "validation" or "train"; None for the protocol's.
      protocol: a name, or a YAML file of your own (`protocols.load`); None for the one of the data set's name.
      out: where to write; None for WORKDIR/evaluation/STEP, or STEP-SPLIT for another split than the protocol's.
      show_text: shows report texts and record ids in the HTML of other data than the phantom, too.
      allow_leakage: why images that are known from training may be scored; kept with the results.
      told: what the user has said about equal ids.
      resamples: of the bootstrap intervals.
      progress: bars on stderr.
      phrase_file: of MS-CXR, "" for none.
      labels_from_reports: scores rows without labels against weak ones (`Split.with_labels_from_reports`).

    Raises:
      LeakageError: images of the split are known from training, and `allow_leakage` is empty.
      UserError: no checkpoint, data set or rows; a single checkpoint without `out`; other results, or a file, there.
    """
    if out is not None:
        check_out(out)
    model = mmclip_jax.load(workdir, step, all_devices=True)
    run_dir = checkpoints.absolute_path(workdir)
    tuned = model.manifest.get(KEY)
    usual_data = tuple(tuned["data"]) if tuned else tuple(model.config.data.evaluate) or tuple(model.config.data.train)
    data = data if data is not None else usual_data
    directories = [data] if isinstance(data, str | os.PathLike) else list(data)
    chosen = choose_protocol(protocol, directories)
    usual, split = split in (None, chosen.split), split or chosen.split
    out_dir = _place(run_dir, str(model.step) if usual else f"{model.step}-{split}", out)
    check_not_another(out_dir, split, [dataset_facts(directory)["name"] for directory in directories])
    options = Options(
        protocol=chosen,
        bootstrap=Bootstrap(resamples=resamples),
        phrase_file=phrase_file,
        labels_from_reports=labels_from_reports,
        audited=audit_scored(model.manifest, directories, split, chosen, allow_leakage, told.joined(model.config.data)),
        run_name=name_of_classifier(tuned) if tuned else checkpoints.run_folder(run_dir).name,
        curves=read_curves(run_dir / METRICS_FILE),
        show_text=show_text,
        progress=progress,
        primary=jax.process_index() == 0,
    )
    return terminal.summary(evaluate_checkpoint(model, data, split, out_dir, options), f"Step {model.step:,}", out_dir)


def _place(run_dir: epath.Path, name: str, out: str | os.PathLike[str] | None) -> epath.Path:
    """Where to write.

    Raises:
      UserError: no `out` for a single checkpoint.
    """
    if out is not None:
        return files.locate(out)
    if checkpoints.is_checkpoint(run_dir):
        raise UserError(f"{run_dir} is a single checkpoint, and nothing is written into one: say where with --out")
    return run_dir / "evaluation" / name


def audit_scored(
    manifest: Mapping[str, Any],
    directories: Sequence[str | os.PathLike[str]],
    split: str,
    protocol: Protocol,
    allowed: str = "",
    told: audit.IdStatements = audit.NOTHING_STATED,
) -> dict[str, Any]:
    """The audit of a split against what the model learnt from, and against what thresholds are chosen on.

    A classifier learnt from the training rows of its fine-tuning, too, and its step and thresholds were chosen on the
    validation rows: neither may be scored, the training split included.

    Raises:
      LeakageError: as `audit.judge`.
    """
    tuned = manifest.get(KEY)
    if split == "train" and not tuned:
        return audit.not_audited("the split that models learn from was asked for")
    parts = {"training": audit.check(manifest.get("data", {}), directories, split, allowed, told)}
    if tuned:
        parts["validation of the fine-tuning"] = audit.check(
            tuned["data"], directories, split, allowed, told, learnt="validation"
        )
    if protocol.validation != split:
        parts["thresholds"] = audit.check(directories, directories, split, allowed, told, learnt=protocol.validation)
    return audit.combine(parts)


def check_out(out: str | os.PathLike[str]) -> None:
    """Looks whether a report can be written there, before the minutes that making it takes.

    Raises:
      UserError: a file lies at the folder's place, or at that of one of its parents.
    """
    place = files.locate(out)
    if files.in_bucket(place):
        return
    there = next((each for each in (place, *place.parents) if each.exists()), place)
    if there.exists() and not there.is_dir():
        raise UserError(f"{there} is a file, and a report needs a folder: name another with --out")


def check_not_another(out: str | os.PathLike[str], split: str, data: Sequence[str]) -> None:
    """Keeps results of another split, or of other data sets, from being overwritten.

    Raises:
      UserError: such results lie there.
    """
    file = files.locate(out) / page_lib.RESULTS_FILE
    if not file.exists():
        return
    try:
        there = files.read_json(file, "")["data"]
        old = (str(there["split"]), sorted(str(each["name"]) for each in there["sets"]))
    except (UserError, KeyError, TypeError):  # damaged: the new ones take its place
        return
    if old != (split, sorted(data)):
        raise UserError(
            f"{file.parent} holds results of {', '.join(old[1])}, {old[0]} split, which would be lost: name another "
            "folder with --out, or delete it"
        )


def choose_protocol(spec: str | None, directories: Sequence[str | os.PathLike[str]]) -> Protocol:
    """The protocol that was asked for, else the one of the data sets' names.

    Raises:
      UserError: no such protocol, or no such data set.
    """
    if spec:
        return protocols.load(spec)
    return protocols.for_data(dataset_facts(directory)["name"] for directory in directories)


@dataclasses.dataclass(frozen=True)
class Options:
    """How one evaluation is made, beside model, data and place.

    Attributes:
      protocol: None for the one of the data sets' names.
      bootstrap: of the intervals; its seed is that of everything that is drawn. The patients are those of the rows.
      without: names of evaluations to leave out; not "zero_shot", which keeps what is said of the whole.
      phrase_file: of MS-CXR, "" for none; see ms_cxr.py.
      labels_from_reports: scores rows without labels against weak ones (`Split.with_labels_from_reports`).
      loaded: the rows of the split, where they have been read already.
      audited: what `data.audit.check` says of these data, to be kept with the results.
      external: what is to be said of a model of somebody else's (`external.run.Opened`).
      run_name: what to call the run in the report.
      curves: the records of the run's metrics.jsonl.
      cases: how many to show.
      show_text: shows texts and ids of other data than the phantom.
      progress: bars on stderr.
      primary: whether this process writes.
    """

    protocol: Protocol | None = None
    bootstrap: Bootstrap = DEFAULT
    without: Collection[str] = ()
    phrase_file: str | os.PathLike[str] = ""
    labels_from_reports: bool = False
    loaded: Split | None = None
    audited: Mapping[str, Any] | None = None
    external: Mapping[str, Any] | None = None
    run_name: str = ""
    curves: Sequence[Mapping[str, Any]] = ()
    cases: int = case_lib.CASES
    show_text: bool = False
    progress: bool = True
    primary: bool = True


def evaluate_checkpoint(
    model: Model | Foreign | Supervised,
    data_dir: Directories,
    split: str = "test",
    out_dir: str | os.PathLike[str] | None = None,
    options: Options | None = None,
) -> dict[str, Any]:
    """Runs every evaluation on one split and, given `out_dir`, writes the report.

    Args:
      model: anything with the methods of `Model`; of a `Foreign` one, scores by prompts and what follows from its
        embeddings alone; of a `Supervised` one its own scores.
      data_dir: one or more directories of built data sets.
      split: "test", "validation" or "train".
      out_dir: None to write nothing.
      options: all else.

    Returns:
      The results as in results.json (where NaN is null): "schema", "software", "checkpoint", "data", "exposure",
      "init" (weights that the run started from, or None),
      "audit" (None where there was none), the summary of each evaluation under its name (`registry.py`; None, or an
      empty one, where the data do not allow it), "headline" and "seconds".

    Raises:
      UserError: no such data, or no row of it in the split.
      ValueError: `options.without` names what is no evaluation, or cannot be left out.
    """
    options, clock = options or Options(), _Clock()
    if strange := sorted(set(options.without) - ({each.name for each in registry.EVALUATIONS} - {ZERO_SHOT.name})):
        raise ValueError(f"there is no evaluation {strange[0]!r} that can be left out")
    directories = [data_dir] if isinstance(data_dir, str | os.PathLike) else list(data_dir)
    with clock.timed("total"):
        context = _context(model, directories, split, options, clock)
        results = _facts(context, split, options)
        for evaluation in registry.EVALUATIONS:
            with clock.timed(evaluation.name):
                results[evaluation.name] = evaluation.nothing
                if evaluation.name not in options.without and evaluation.can_run(context):
                    context.done[evaluation.name] = evaluation.run(context)
                    results[evaluation.name] = context.done[evaluation.name].summary
        results |= {"headline": registry.headline(results), "seconds": clock.seconds}
        if out_dir is not None:
            with clock.timed("cases"):
                shown = case_lib.build_cases(context, options.cases)
    if out_dir is not None and options.primary:  # every process has made the same results; the first one writes them
        _write(out_dir, results, context, shown, options)
    return results


def _context(
    model: Model | Foreign | Supervised,
    directories: Sequence[str | os.PathLike[str]],
    split: str,
    options: Options,
    clock: "_Clock",
) -> Context:
    """Reads the rows and embeds their images."""
    protocol, bars = options.protocol or choose_protocol(None, directories), Progress(options.progress)
    with clock.timed("reading"):
        rows = options.loaded if options.loaded is not None else Split.load(directories, split)
        if options.labels_from_reports:
            rows = _with_weak_labels(rows)
    with clock.timed("embedding"):
        return Context(
            model=model,
            rows=rows,
            embedded=embed_images(model, rows, bars),
            protocol=protocol,
            bootstrap=options.bootstrap.of(rows.patients),
            validation=_validation(model, directories, rows, protocol, bars),
            directories=directories,
            phrase_file=options.phrase_file,
            progress=bars,
        )


def _write(
    out_dir: str | os.PathLike[str],
    results: dict[str, Any],
    context: Context,
    cases: Sequence[case_lib.Case],
    options: Options,
) -> None:
    """Writes the folder of a report, whole or not at all."""
    own = bool(context.rows.sets) and all(data["name"] == _OWN_DATA for data in context.rows.sets)
    found = {name: result.found for name, result in context.done.items()}
    with files.whole_folder(out_dir, page_lib.RESULTS_FILE) as unfinished:
        page_lib.write_report(
            unfinished, results, found, cases=cases, curves=options.curves, show_text=options.show_text or own
        )
        (unfinished / card.CARD_FILE).write_text(card.render(results), encoding="utf-8")


class _Clock:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)


def _facts(context: Context, split: str, options: Options) -> dict[str, Any]:
    """What results.json says of model and data."""
    rows, inside, validation = context.rows, context.inside, context.validation
    tuned = context.classifier
    own = tuned or inside
    described = inside and describe(inside.config.model)
    if isinstance(context.model, Foreign | Supervised):
        described = context.model.description
    return {
        "schema": SCHEMA,
        "software": {"mmclip_jax": mmclip_jax.__version__},
        "checkpoint": {
            "run": options.run_name,
            "step": own and int(own.step),
            "response": inside and inside.config.objective.attmim.response,
            "model": described,
            "external": options.external,
            "classifier": tuned and tuned.manifest[KEY],
        },
        "data": {
            "sets": rows.sets,
            "split": split,
            "validation_rows": len(validation.rows) if validation else 0,
            "rows": len(rows),
            "patients": len(set(rows.patients)),
            "labelled_rows": rows.labelled_rows,
            "weak_labels": rows.weak_labels,
            "sources": rows.source_counts,
        },
        "exposure": own and own.manifest.get("exposure"),
        "init": own and own.manifest.get("init"),
        "audit": options.audited,
    }


def _with_weak_labels(rows: Split) -> Split:
    rows = rows.with_labels_from_reports()
    if not rows.weak_labels:
        raise UserError(
            f"--labels-from-reports: no image of the {rows.name} split has a report that names a finding "
            "and no label; leave it out"
        )
    return rows


def _validation(
    model: Encoder | Supervised,
    directories: Sequence[str | os.PathLike[str]],
    rows: Split,
    protocol: Protocol,
    progress: Progress,
) -> Embedded | None:
    """Embedded rows to choose thresholds and the temperature on; None if there are none, or only the scored ones."""
    name = protocol.validation
    if name == rows.name or not any(data["splits"].get(name) for data in rows.sets):
        return None
    split = Split.load(directories, name)
    if rows.weak_labels:
        split = split.with_labels_from_reports()
    return Embedded(split, embed_images(model, split, progress))


def quick_metrics(model: Model, examples: Sequence[Example]) -> dict[str, float]:
    """A few numbers of a few hundred held-out examples, for the curves of a training run.

    Each evaluation gives its own (`Evaluation.quick`): "macro_auroc" (by prompts, the headline's source) and
    "macro_auroc/SOURCE"; for each source and part with at least one block of rows "contrastive_loss/SOURCE/PART",
    "image_to_text/SOURCE/PART" and "text_to_image/SOURCE/PART" (within the source, in blocks); "source_probe_accuracy"
    and "source_probe_auroc" where there are two sources. What the examples do not allow is left out.
    """
    split = Split.of(examples)
    context = Context(
        model=model,
        rows=split,
        embedded=embed_images(model, split),
        protocol=protocols.load(protocols.DEFAULT),
        bootstrap=Bootstrap(split.patients, resamples=0),
    )
    return {name: value for each in registry.EVALUATIONS for name, value in each.quick(context).items()}


def read_curves(path: epath.Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; [] where there is none, or (with a warning) where it is damaged."""
    try:
        return [dict(row) for row in writers.read_rows(path)]
    except UserError as error:
        logging.warning("the report has no curves: %s", error)
        return []
