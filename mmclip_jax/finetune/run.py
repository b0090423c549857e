"""Transfer of a pre-trained image encoder: a linear probe or full fine-tuning on labels, by fraction and seed.

The loop, the update and the checkpoints are those of pre-training (`loop.fit`, `step.make_update`, `Checkpoints`):
a run that is killed goes on, SIGTERM saves, a step that is not finite stops it. docs/transfer.md says what is done.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mmclip_jax import files, locks, sharding
from mmclip_jax.checkpoints import Saved
from mmclip_jax.data.leakage import audit
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate.rows import Progress, uncertain_text
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap
from mmclip_jax.finetune import scores as scores_lib
from mmclip_jax.finetune.task import Settings, Task
from mmclip_jax.finetune.transfer import Transfer
from mmclip_jax.inference.classifier import KEY, place_of
from mmclip_jax.inference.model import open_checkpoint

RESULTS_FILE, TABLE_FILE = "results.json", "results.md"


def run(
    checkpoint: str | os.PathLike[str],
    data: Sequence[str | os.PathLike[str]],
    workdir: str | os.PathLike[str],
    settings: Settings,
    *,
    step: int | None = None,
    split: str = "test",
    allow_leakage: str = "",
    told: audit.IdStatements = audit.NOTHING_STATED,
    resamples: int = 1000,
    progress: bool = True,
) -> str:
    """Trains and scores a classifier for each fraction and seed; writes results.json and results.md, returns the table.

    Args:
      checkpoint: a workdir of pre-training, or one of its checkpoints.
      data: built data sets: their train split is learnt from, validation stops, `split` is scored.
      workdir: WORKDIR/MODE/fraction_F/seed_S of every run; what is finished is not run again, what was cut off goes on.
      settings: see `Settings`.
      step: of the checkpoint; None for the newest.
      split: "test" or "validation".
      allow_leakage: why images that are known from pre-training, or from the rows that are learnt here, may be scored;
        kept with the results.
      told: what the user has said about equal ids.
      resamples: of the bootstrap intervals.
      progress: bars on stderr.

    Raises:
      LeakageError: images of the split are known from pre-training, from training rows or from the rows that decide
        when to stop, and `allow_leakage` is empty.
      UserError: data, settings and checkpoint do not fit.
      TrainingError, PreemptedError, LostProcessError: as in `mmclip_jax.train.run.train`.
    """
    saved, tokenizer = open_checkpoint(place_of(checkpoint), step)
    if KEY in saved.manifest:
        raise UserError(f"{saved.directory} is a fine-tuned classifier: give --model the run that it began with")
    told = told.joined(saved.config.data)
    audits = {"pre-training": audit.check(saved.manifest.get("data", {}), data, split, allow_leakage, told)}
    mesh = sharding.make_mesh()
    if settings.batch % mesh.size:
        raise UserError(f"batch={settings.batch} is no multiple of the {mesh.size} devices")
    files.check_name(workdir)
    task = Task.load(data, split, settings)
    audits |= _audit_learning(task, data, split, settings, allow_leakage, told)
    place = files.locate(workdir)
    with locks.held_by_run(place / settings.mode, "mmclip finetune") as check_folder:
        transfer = Transfer(
            saved, tokenizer.model_bytes, task, mesh, settings, place, Progress(progress), check_folder
        )  # fmt: skip
        results = _header(saved, audits, task, settings, split)
        for fraction in sorted(settings.fractions, reverse=True):  # the largest first: its features serve the others
            results["fractions"].insert(0, _run_fraction(transfer, fraction, saved, audits, task, settings, resamples))
        results["notes"] = _notes(results, resamples)
        table = scores_lib.as_markdown(results)
        if jax.process_index() == 0:
            out = place / settings.mode
            files.write_whole(out / TABLE_FILE, table)
            files.write_whole(out / RESULTS_FILE, json.dumps(_finite(results), indent=1) + "\n")
        return table


def _header(
    saved: Saved, audits: dict[str, dict[str, Any]], task: Task, settings: Settings, split: str
) -> dict[str, Any]:
    """results.json before the first run."""
    return {
        "schema": 1,
        "mode": settings.mode,
        "task": settings.task,
        "settings": dataclasses.asdict(settings),
        "checkpoint": {
            "run": saved.run_folder.name,
            "step": saved.step,
            "pretraining": saved.manifest.get("data"),
        },
        "data": {"sets": task.scored.sets, "split": split},
        "audit": audit.combine(audits),
        "findings": list(task.findings),
        "sources": sorted({example.source for example in task.scored.examples}),
        "policy": task.policy,
        "left_out": task.left_out,
        "fractions": [],
    }


def _run_fraction(
    transfer: Transfer,
    fraction: float,
    saved: Saved,
    audits: dict[str, dict[str, Any]],
    task: Task,
    settings: Settings,
    resamples: int,
) -> dict[str, Any]:
    """The runs of all seeds on a fraction, as results.json has them."""
    rows, was_saved = task.fraction(fraction)
    made = [transfer.run(fraction, rows, seed) for seed in settings.seeds]
    return {
        "fraction": fraction,
        "images": len(rows),
        "patients": len({task.train.patients[row] for row in rows}),
        "chosen_by": "the builder's file" if was_saved else "the builders' rule, here",
        "audit": audits[_percent(fraction)]["status"],
        "runs": [one.summary for one in made],
        "sources": scores_lib.summarize(
            task.scored_labels,
            np.stack([one.scores for one in made]),
            [example.source for example in task.scored.examples],
            task.findings,
            saved.manifest,
            Bootstrap(task.scored.patients, resamples),
            settings.task,
        ),
    }


def _notes(results: Mapping[str, Any], resamples: int) -> list[str]:
    settings = results["settings"]
    left = results["left_out"]
    drawn = (
        "the head's start, the order and the augmentation" if results["mode"] == "full" else "the start and the order"
    )
    notes = [
        f"Mean ± sd over seeds {', '.join(map(str, settings['seeds']))} ({drawn}); in brackets the 95 % "
        f"interval of {resamples:,} resamples of test patients, of the mean over seeds.",
        f"Checkpoint: {results['checkpoint']['run']}, step {results['checkpoint']['step']:,}. Exposure says what "
        "pre-training knew of a finding; the classifier itself has learnt from labels of this data set.",
        f"Uncertain labels: {results['policy']}.",
        *(
            f"{name}: {said['without_label']:,} of {said['rows']:,} images have no usable label and are left out."
            for name, said in left.items()
        ),
        *(f"{name}: {said}." for name, entry in left.items() if (said := uncertain_text(entry))),
    ]
    audited = audit.text(results["audit"])
    notes.append(f"Audit of the scored images against pre-training, training and validation rows: {audited}.")
    return notes


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g} % of training"


def _audit_learning(
    task: Task,
    data: Sequence[str | os.PathLike[str]],
    split: str,
    settings: Settings,
    allowed: str,
    told: audit.IdStatements,
) -> dict[str, dict[str, Any]]:
    """The audits of the scored rows against the training rows of each fraction, and against those that stop a run."""
    chosen = {_percent(fraction): task.fraction(fraction)[0].tolist() for fraction in settings.fractions}
    audits = audit.check_rows(data, chosen, split, allowed, told)
    if split != "validation":
        audits["validation"] = audit.check(data, data, split, allowed, told, learnt="validation")
    return audits


def _finite(value: Any) -> Any:
    from mmclip_jax.evaluate.report.formats import finite

    return finite(value)
