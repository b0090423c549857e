"""The whole evaluation of a checkpoint, and the quick one while training.

`run` is what `mmclip evaluate` does; `evaluate_checkpoint` takes any model that has the methods of `Model`;
`quick_metrics` gives a trainer a handful of numbers in seconds.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

import mmclip_jax
from mmclip_jax import checkpoints, files, writers
from mmclip_jax.data.leakage import audit
from mmclip_jax.data.records import dataset_facts
from mmclip_jax.data.schema import Example
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate import protocols
from mmclip_jax.evaluate.base import Encoder, Foreign, Model, Progress, Split, embed_images, labels_of
from mmclip_jax.evaluate.evaluations import (
    counterfactual,
    entmlm,
    grounding,
    ms_cxr,
    retrieval,
    source_probe,
    studies,
    zeroshot,
)
from mmclip_jax.evaluate.evaluations import trust as trust_lib
from mmclip_jax.evaluate.protocols import Protocol
from mmclip_jax.evaluate.report import card
from mmclip_jax.evaluate.report import cases as case_lib
from mmclip_jax.evaluate.report import page as page_lib
from mmclip_jax.evaluate.stats import metrics

__all__ = ["Model", "Split", "evaluate_checkpoint", "quick_metrics", "run"]

METRICS_FILE = "metrics.jsonl"
SCHEMA = 1
# The one data set whose texts are nobody's: its reports are always shown.
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
      out: where to write; None for WORKDIR/evaluation/STEP, or STEP-SPLIT for another split than the protocol's (for a
        single checkpoint it must be given).
      show_text: shows report texts and record ids in the HTML of other data than the phantom, too.
      allow_leakage: why images that are known from training may be scored; kept with the results.
      told: which sources have ids of one numbering.
      resamples: of the bootstrap intervals.
      progress: bars on stderr.
      phrase_file: of MS-CXR, "" for none.
      labels_from_reports: scores rows without labels against weak ones (`Split.with_labels_from_reports`).

    Raises:
      LeakageError: images of the split are known from training, and `allow_leakage` is empty.
      UserError: no checkpoint, no data set, no rows in the split, no `out` for a single checkpoint, or one that is a
        file, or holds results of another split or other data.
    """
    if out is not None:
        check_out(out)
    model = mmclip_jax.load(workdir, step, all_devices=True)
    run_dir = checkpoints.absolute_path(workdir)
    if out is None and checkpoints.is_checkpoint(run_dir):
        raise UserError(f"{run_dir} is a single checkpoint, and nothing is written into one: say where with --out")
    if data is None:
        data = tuple(model.config.data.evaluate) or tuple(model.config.data.train)
    directories = [data] if isinstance(data, str | os.PathLike) else list(data)
    chosen = choose_protocol(protocol, directories)
    usual = split in (None, chosen.split)
    split = split or chosen.split
    name = str(model.step) if usual else f"{model.step}-{split}"
    out_dir = files.locate(out) if out is not None else run_dir / "evaluation" / name
    check_not_another(out_dir, split, [dataset_facts(directory)["name"] for directory in directories])
    audited = audit_scored(model.manifest, directories, split, chosen, allow_leakage, told.joined(model.config.data))
    results = evaluate_checkpoint(
        model,
        data,
        split,
        out_dir,
        protocol=chosen,
        run_name=run_dir.name,
        curves=read_curves(run_dir / METRICS_FILE),
        show_text=show_text,
        resamples=resamples,
        progress=progress,
        audited=audited,
        phrase_file=phrase_file,
        labels_from_reports=labels_from_reports,
        primary=jax.process_index() == 0,
    )
    return summary(results, f"Step {model.step:,}", out_dir)


def audit_scored(
    manifest: Mapping[str, Any],
    directories: Sequence[str | os.PathLike[str]],
    split: str,
    protocol: Protocol,
    allowed: str = "",
    told: audit.IdStatements = audit.NOTHING_STATED,
) -> dict[str, Any]:
    """The audit of a split against what the model learnt from, and against what thresholds are chosen on.

    Raises:
      LeakageError: as `audit.judge`.
    """
    if split == "train":
        return audit.not_audited("the split that models learn from was asked for")
    parts = {"training": audit.check(manifest.get("data", {}), directories, split, allowed, told)}
    if protocol.validation != split:
        parts["thresholds"] = audit.check(directories, directories, split, allowed, told, learnt=protocol.validation)
    return audit.combine(parts)


def summary(results: dict[str, Any], what: str, out_dir: str | os.PathLike[str]) -> str:
    """Results as a terminal should show them; what: was evaluated, in a few words."""
    return "\n".join(
        [
            f"{what}, {results['data']['split']} split, {_extent(results)}",
            page_lib.headline_text(results),
            *page_lib.protocol_lines(results),
            *page_lib.referee_lines(results),
            f"Audit: {audit.text(results['audit'])}",
            f"Report: {files.locate(out_dir) / page_lib.REPORT_FILE}",
        ]
    )


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


def evaluate_checkpoint(
    model: Model | Foreign,
    data_dir: Directories,
    split: str = "test",
    out_dir: str | os.PathLike[str] | None = None,
    *,
    protocol: Protocol | None = None,
    run_name: str = "",
    curves: Sequence[dict[str, Any]] = (),
    show_text: bool = False,
    resamples: int = 1000,
    level: float = 0.95,
    cases: int = case_lib.CASES,
    trust: bool = True,
    seed: int = 0,
    progress: bool = True,
    audited: dict[str, Any] | None = None,
    phrase_file: str | os.PathLike[str] = "",
    referee: dict[str, Any] | None = None,
    loaded: Split | None = None,
    labels_from_reports: bool = False,
    primary: bool = True,
) -> dict[str, Any]:
    """Runs every evaluation on one split and, given `out_dir`, writes the four files of a report.

    Args:
      model: anything with the methods of `Model`; of a `Foreign` one, scores by prompts and what follows from its
        embeddings alone.
      data_dir: one or more directories of built data sets.
      split: "test", "validation" or "train".
      out_dir: None to write nothing.
      protocol: None for the one of the data sets' names.
      run_name: what to call the run in the report.
      curves: the records of the run's metrics.jsonl.
      show_text: shows texts and ids of other data than the phantom.
      resamples: of the bootstrap intervals.
      level: of the same.
      cases: how many to show.
      trust: whether to run the probes of `trust` and `counterfactual`.
      seed: of everything that is drawn.
      progress: bars on stderr.
      audited: what `data.audit.check` says of these data, to be kept with the results.
      phrase_file: of MS-CXR, "" for none; see ms_cxr.py.
      referee: what is to be said of a model of somebody else's (`referee.Opened`).
      loaded: the rows of the split, where they have been read already.
      labels_from_reports: scores rows without labels against weak ones (`Split.with_labels_from_reports`).
      primary: whether this process writes.

    Returns:
      The results as in results.json (where NaN is null): "schema", "software", "checkpoint", "data", "exposure",
      "audit" (None where there was none), "zero_shot", "studies" (the same by study, see studies.py), "trust",
      "counterfactual", "grounding", "entmlm" and "source_probe" (None where the data does not allow them),
      "contrastive", "headline" and "seconds".
    """
    directories = [data_dir] if isinstance(data_dir, str | os.PathLike) else list(data_dir)
    protocol = protocol or choose_protocol(None, directories)
    # Only our own models show where they look, and restore what was masked.
    inside = None if isinstance(model, Foreign) else model
    seconds: dict[str, float] = {}
    bars = Progress(progress)
    draws: dict[str, Any] = {"resamples": resamples, "level": level, "seed": seed}

    @contextlib.contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - start, 2)

    with timed("total"):
        with timed("reading"):
            rows = loaded if loaded is not None else Split.load(directories, split)
            if labels_from_reports:
                rows = rows.with_labels_from_reports()
                if not rows.weak_labels:
                    raise UserError(
                        f"--labels-from-reports: no image of the {rows.name} split has a report that names a finding "
                        "and no label; leave it out"
                    )
        with timed("embedding"):
            embedded = embed_images(model, rows, bars)
            validation = _validation(model, directories, rows, protocol, bars)
        with timed("zero_shot"):
            scored = zeroshot.evaluate(
                model, rows, embedded, protocol=protocol, validation=validation, progress=bars, **draws
            )
        by_study: dict[str, Any] = {}
        if scored.findings:
            by_study = studies.evaluate(rows, scored.findings, scored.labels, scored.scores[scored.score], **draws)
        with timed("contrastive"):
            contrastive = retrieval.evaluate(model, rows, embedded, recall=draws, progress=bars)
        with timed("trust"):
            trusted = trust_lib.evaluate(model, scored, **draws) if trust else None
            flipped = counterfactual.evaluate(model, rows, embedded, progress=bars, **draws) if trust else None
        with timed("source_probe"):
            probe = source_probe.evaluate(
                embedded, [example.source for example in rows.examples], rows.patients, **draws
            )
        with timed("grounding"):
            held = Split.load_if_any(directories, "validation") if split != "validation" else None
            pointing = inside and grounding.evaluate(inside, rows, validation=held, progress=bars, **draws)
            phrases = None
            if inside and phrase_file:
                phrases = ms_cxr.evaluate(inside, rows, held, phrase_file, progress=bars, **draws)
        with timed("entmlm"):
            restored = inside and entmlm.evaluate(inside, rows, progress=bars, **draws)
        results: dict[str, Any] = {
            "schema": SCHEMA,
            "software": {"mmclip_jax": mmclip_jax.__version__},
            "checkpoint": {
                "run": run_name,
                "step": inside and int(inside.step),
                "response": inside and inside.config.objective.attmim.response,
                "model": model.description if isinstance(model, Foreign) else _describe(model),
                "referee": referee,
            },
            "data": {
                "sets": rows.sets,
                "split": split,
                "validation_rows": len(validation[0]) if validation else 0,
                "rows": len(rows),
                "patients": len(set(rows.patients)),
                "labelled_rows": rows.labelled_rows,
                "weak_labels": rows.weak_labels,
                "sources": rows.source_counts,
            },
            "exposure": inside and inside.manifest.get("exposure"),
            "audit": audited,
            "zero_shot": scored.summary,
            "studies": by_study,
            "grounding": pointing,
            "phrases": phrases,
            "entmlm": restored,
            "trust": trusted,
            "counterfactual": flipped,
            "source_probe": probe,
            "contrastive": contrastive,
            "seconds": seconds,
        }
        results["headline"] = _headline(results)
        if out_dir is not None:
            with timed("cases"):
                shown = case_lib.build_cases(inside, rows, scored, cases, seed) if inside else []
    if out_dir is not None and primary:
        # Every process has made the same results; the first one writes them.
        with files.whole_folder(out_dir, page_lib.RESULTS_FILE) as unfinished:
            page_lib.write_report(
                unfinished,
                results,
                examples=rows.examples,
                scored=scored,
                cases=shown,
                curves=curves,
                show_text=show_text or (bool(rows.sets) and all(data["name"] == _OWN_DATA for data in rows.sets)),
            )
            (unfinished / card.CARD_FILE).write_text(card.render(results, page_lib.honesty(results)), encoding="utf-8")
    return results


def _validation(
    model: Encoder,
    directories: Sequence[str | os.PathLike[str]],
    rows: Split,
    protocol: Protocol,
    progress: Progress,
) -> tuple[Split, np.ndarray] | None:
    """Embedded rows to choose thresholds and the temperature on; None if there are none, or only the scored ones."""
    name = protocol.validation
    if name == rows.name or not any(data["splits"].get(name) for data in rows.sets):
        return None
    split = Split.load(directories, name)
    if rows.weak_labels:
        split = split.with_labels_from_reports()
    return split, embed_images(model, split, progress)


def quick_metrics(model: Model, examples: Sequence[Example], *, block: int = retrieval.BLOCK) -> dict[str, float]:
    """A few numbers of a few hundred held-out examples, for the curves of a training run.

    Returns:
      "macro_auroc" (by prompts, the headline's source) and "macro_auroc/SOURCE"; for each source and part with at least
      one block of rows "contrastive_loss/SOURCE/PART", "image_to_text/SOURCE/PART" and "text_to_image/SOURCE/PART"
      (within the source, in blocks); "source_probe_accuracy" and "source_probe_auroc" where there are two sources. What
      the examples do not allow is left out.
    """
    split = Split.of(examples)
    embedded = embed_images(model, split)
    values: dict[str, float] = {}
    findings = zeroshot.findings_of(split)
    if findings:
        scores = zeroshot.score_images(embedded, *zeroshot.prompt_embeddings(model, findings))["difference"]
        labels = labels_of(split.examples, findings)
        counts = split.source_counts
        # As in the full evaluation: a source with reports, then the larger one, gives the headline.
        for source in sorted(counts, key=lambda name: (counts[name]["paired"], sum(counts[name].values()))):
            rows = split.rows_of(source)
            areas = np.array([metrics.auroc(labels[rows, k], scores[rows, k]) for k in range(len(findings))])
            if not np.isnan(areas).all():
                values[f"macro_auroc/{source}"] = values["macro_auroc"] = float(np.nanmean(areas))
    for part in retrieval.evaluate(model, split, embedded, block=block)["parts"]:
        name = f"{part['source']}/{part['part']}"
        values |= {
            f"contrastive_loss/{name}": part["loss"],
            f"image_to_text/{name}": part["image_to_text"],
            f"text_to_image/{name}": part["text_to_image"],
        }
    probe = source_probe.evaluate(
        embedded, [example.source for example in split.examples], split.patients, folds=3, resamples=0
    )
    if probe is not None:
        values |= {"source_probe_accuracy": probe["accuracy"], "source_probe_auroc": probe["auroc"]}
    return values


def read_curves(path: epath.Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; [] where there is none, or (with a warning) where it is damaged."""
    try:
        return [dict(row) for row in writers.read_rows(path)]
    except UserError as error:
        logging.warning("the report has no curves: %s", error)
        return []


def _extent(results: dict[str, Any]) -> str:
    """How much was evaluated, for a line."""
    data = results["data"]
    return f"{data['rows']:,} images of {data['patients']:,} patients, {results['seconds']['total']:.0f} s"


def _headline(results: dict[str, Any]) -> dict[str, Any]:
    """The few numbers that a script wants first."""
    macro = page_lib.primary_macro(results)
    pointing, restored, probe = results["grounding"], results["entmlm"], results["source_probe"]
    used, protocol_of = results["checkpoint"]["response"], results["zero_shot"]["protocol"]
    return {
        "protocol": protocol_of["name"],
        "macro_auroc": macro and macro["all"]["auroc"],
        "macro_auroc_interval": macro and macro["all"]["auroc_interval"],
        "macro_auroc_called": macro and macro["all"]["called"],
        "pointing": pointing and pointing["overall"][used]["rate"],
        "pointing_random": pointing and pointing["overall"]["random"],
        "pointing_lift": pointing and pointing["overall"][used]["lift"],
        "entmlm_own": restored and restored["overall"]["own"]["tokens"],
        "entmlm_swapped": restored and restored["overall"]["swapped"]["tokens"],
        "entmlm_drop": restored and restored["overall"]["drop"]["tokens"],
        "source_probe_auroc": probe and probe["auroc"],
    }


def _describe(model: Model) -> str:
    """The model's sizes in a line."""
    sizes = model.config.model
    return (
        f"{sizes.image_size} px in patches of {sizes.patch_size}, image encoder {sizes.image.depth} × "
        f"{sizes.image.width}, text encoder {sizes.text.depth} × {sizes.text.width}, embedding {sizes.embed_dim}"
    )
