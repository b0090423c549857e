"""Training, from top to bottom: mesh, data, model, state, resume, loop.

A run that goes on follows this order. Settings and start (`start.prepare`: those of the weights come from the newest
checkpoint), data and model as at first; then, with the workdir held, it is refused where settings or data differ, what
was half-written is removed, the newest whole checkpoint restored and the data set to the batch after it; the metrics
behind that step are dropped, an evaluation that was cut off is made up, and the loop goes on.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np
from absl import logging
from clu import parameter_overview
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from mmclip_jax import check, files, flops, locks, sharding, trackers, writers
from mmclip_jax.check import check_ranges
from mmclip_jax.checkpoints import (
    Checkpoints,
    abstract_like,
    check_same_contents,
    check_same_settings,
    run_record,
    storage_errors_are_named,
)
from mmclip_jax.checkpoints.saved import EXPORT_RECORD
from mmclip_jax.data import batch as batch_lib
from mmclip_jax.data import pipeline
from mmclip_jax.data.leakage import fingerprint
from mmclip_jax.data.records import open_records
from mmclip_jax.data.schema import PARTS
from mmclip_jax.errors import UserError
from mmclip_jax.models.mmclip import MMCLIP, build_model
from mmclip_jax.state import TrainState
from mmclip_jax.text.tokenizer import Tokenizer, load_tokenizer
from mmclip_jax.train import flags, optim
from mmclip_jax.train import start as start_lib
from mmclip_jax.train import step as step_lib
from mmclip_jax.train.loop import BeforeStep, Evaluation, fit
from mmclip_jax.train.manifest import audit_validation, make_manifest


def train(
    config: ConfigDict, workdir: str, stretch: bool = False, given: Collection[str] = (), tracker: str = ""
) -> dict[str, float]:
    """Trains until `config.train.steps` steps are done, going on from the newest checkpoint in `workdir`.

    Args:
      config: see mmclip_jax/config.py.
      workdir: directory of checkpoints, metrics and manifest; made if missing.
      stretch: goes on with another number of steps than the run began with (`check_same_settings`).
      given: names of settings that the user gave one by one; weights that the run starts from do not change them.
      tracker: where the numbers go beside the workdir's files (`trackers.open_tracker`); "": nowhere.

    Returns:
      The metrics of the last logging step.

    Raises:
      UserError: settings or data that do not fit, or another process is at work in the workdir; nothing was changed.
      TrainingError: too many updates were left out one after another, or too many records are damaged; the last good
        state was saved. StorageError, one of its kind: the workdir cannot be written.
      PreemptedError: SIGTERM came; the state after the last step was saved, by all processes at the same step.
      LostProcessError, LostWorkerError: another process of the run is gone.
    """
    files.check_name(workdir)
    if (files.locate(workdir) / EXPORT_RECORD).exists():
        raise UserError(
            f"{workdir} is what mmclip export wrote: train in another folder, and start from it with "
            f"--config.init.model={workdir}"
        )
    check_ranges(config)
    run = _prepare(config.copy_and_resolve_references(), workdir, given)
    with contextlib.ExitStack() as stack:
        with storage_errors_are_named(workdir, lambda: "nothing was changed"):
            check_folder = stack.enter_context(locks.held_by_run(workdir, "mmclip train"))
        return _go_on(run, workdir, stretch, tracker, check_folder)


@dataclasses.dataclass(frozen=True)
class _Run:
    """What a run consists of before anything is written; the settings are complete."""

    config: ConfigDict
    mesh: jax.sharding.Mesh
    start: start_lib.Start | None
    tokenizer: Tokenizer
    iterator: pipeline.TrainIterator
    manifest: dict[str, Any]
    built: "Built"


def _prepare(config: ConfigDict, workdir: str, given: Collection[str]) -> _Run:
    # Mesh and settings.
    mesh = make_mesh(config)
    if not config.data.train:
        raise UserError("data.train names no data set: give directories, e.g. --config.data.train='(\"DIR\",)'")
    leave_out_missing_parts(config)
    batch_lib.settle_augmentation(config, accelerated=jax.default_backend() != "cpu")
    start = start_lib.prepare(config, workdir, given)
    check.check_config(config, mesh.size)

    # Data.
    tokenizer = (start and start.tokenizer) or load_tokenizer(config.data.tokenizer or None)
    if config.model.text.vocab_size not in (0, tokenizer.vocab_size):
        raise UserError(
            f"model.text.vocab_size={config.model.text.vocab_size}, but the tokenizer has {tokenizer.vocab_size} "
            "pieces: leave it 0 to take the tokenizer's"
        )
    config.model.text.vocab_size = tokenizer.vocab_size
    iterator = pipeline.make_train_iterator(
        config, tokenizer, process_index=jax.process_index(), process_count=jax.process_count()
    )
    manifest = make_manifest(config) | fingerprint.of_run(config.data.train, tokenizer.model_bytes)
    manifest = start.manifest(manifest) if start else manifest
    manifest["audit"] = audit_validation(config, manifest["data"])

    # Model, optimizer, state: created sharded, no full copy on one device.
    built = build(config, mesh, tokenizer.mask_id)
    if start:
        start.check(built.abstract_state.params)
    return _Run(config, mesh, start, tokenizer, iterator, manifest, built)


def _go_on(run: _Run, workdir: str, stretch: bool, tracker: str, check_folder: Callable[[], None]) -> dict[str, float]:
    """The part of `train` that holds the workdir: resume, then the loop."""
    config, built, primary = run.config, run.built, jax.process_index() == 0
    # Resume. The iterator is set to the batch after the checkpoint's; everything else follows from seed and step.
    check_same_settings(workdir, config, stretch)
    check_same_contents(workdir, run.manifest)
    more = [trackers.open_tracker(tracker, workdir)] if tracker and primary else []
    with storage_errors_are_named(workdir, lambda: "nothing was changed"):
        checkpoints = Checkpoints(workdir, config.train.keep, check_folder)
        if primary:
            files.remove_leftovers(workdir)
    state = checkpoints.restore_latest(built.abstract_state, run.iterator)
    if state is None:
        with jax.set_mesh(run.mesh):
            state = built.make_state()
        if run.start:
            state = run.start.apply(state, built.abstract_state)
            run.start.report(built.abstract_state.params, workdir, primary)
    first = int(state.step)
    record = run_record(config, run.tokenizer.model_bytes, run.manifest)
    with storage_errors_are_named(workdir, checkpoints.describe_last):
        if primary:
            files.write_json(files.locate(workdir) / "config.json", record["config"])
            files.write_json(files.locate(workdir) / "manifest.json", run.manifest)
        writer = writers.create_writer(workdir, step=first, primary=primary, more=more)
        table = parameter_overview.get_parameter_overview(built.abstract_state.params, include_stats=False)
        writer.write_texts(first, {"parameters": f"```\n{table}\n```"})
        writer.write_hparams(record["config"])
    missed = _missed_evaluation(config, workdir, first)
    parameters = sum(x.size for x in jax.tree.leaves(built.abstract_state.params))
    logging.info(
        "%s parameters on %d device(s); %s", f"{parameters:,}", run.mesh.size,
        f"resuming at step {first}" if first else "starting",
    )  # fmt: skip
    evaluation = Evaluation(config, run.tokenizer, run.manifest, writer)

    def evaluate(state: TrainState) -> tuple[TrainState, dict[str, float], bool]:
        return state, evaluation(state), False

    return fit(
        built.train_step, state, run.iterator, run.mesh, config, workdir, record, checkpoints, writer, evaluate,
        _norm_writer(run, writer, first), flops.model_flops(flops.train_step_flops(config)), missed,
    )[1]  # fmt: skip


def _norm_writer(run: _Run, writer: Any, first: int) -> BeforeStep:
    """Before a step, every `train.gradient_norms_every` steps: writes the norms of each loss's gradient."""
    every = run.config.train.gradient_norms_every
    norms_of = jax.jit(
        functools.partial(step_lib.loss_gradient_norms, run.built.model, run.config, run.tokenizer.mask_id),
        out_shardings=sharding.replicated(run.mesh),
    )

    def write(number: int, state: TrainState, rows: step_lib.Batch, settle: Callable[[], None]) -> None:
        # At the first step too: that it fits into memory should show at once.
        if every and (number % every == 0 or number == first + 1):
            settle()
            norms = jax.device_get(norms_of(state.params, state.step, rows))
            writer.write_scalars(number, {name: float(norm) for name, norm in norms.items()})

    return write


def leave_out_missing_parts(config: ConfigDict) -> None:
    """Sets `data.batch_PART` to 0 where no data set has such images for training and there are others, and says so."""
    missing = [
        part
        for part in PARTS
        if config.data[f"batch_{part}"]
        and not any(len(open_records(directory, "train", part)) for directory in config.data.train)
    ]
    for part in missing:
        (other,) = set(PARTS) - {part}
        if other in missing or not config.data[f"batch_{other}"]:
            return  # nothing would be left: whoever opens the data says which is missing
        config.data[f"batch_{part}"] = 0
        rows = config.data[f"batch_{other}"]
        logging.info(
            "no %s images in data.train: data.batch_%s = 0, and a step has the %d %s rows alone "
            "(data.batch_%s changes it)",
            *(part, part, rows, other, other),
        )


def _missed_evaluation(config: ConfigDict, workdir: str, first: int) -> bool:
    """Whether the evaluation due at the step that the run goes on from is not in its metrics: it was cut off."""
    every = config.train.evaluate_every
    if not first or every <= 0 or not (first % every == 0 or first == config.train.steps):
        return False
    there = False
    if jax.process_index() == 0:
        rows = writers.read_rows(files.locate(workdir) / writers.METRICS_FILE)
        there = any(row["step"] == first and any(name.startswith("evaluation/") for name in row) for row in rows)
    if jax.process_count() > 1:
        there = bool(multihost_utils.broadcast_one_to_all(np.int32(there)))
    return not there


@dataclasses.dataclass(frozen=True)
class Built:
    """What a run computes with on its mesh.

    make_state: jitted, () -> the state before step 0; abstract_state: its shapes, dtypes and shardings; train_step:
    jitted (state, batch) -> (state, metrics), donates the state. Call both inside `jax.set_mesh`.
    """

    model: MMCLIP
    make_state: Callable[[], TrainState]
    abstract_state: TrainState
    train_step: Any


def build(config: ConfigDict, mesh: jax.sharding.Mesh, mask_id: int) -> Built:
    """Model, state and step of a run; computes nothing yet. `model.text.vocab_size` must be set."""
    model = build_model(config.model, mesh.devices.flat[0])
    optimizer = optim.make_optimizer(config.optimizer, config.train.steps)
    schedule = optim.learning_rate(config.optimizer, config.train.steps)
    make_state = functools.partial(step_lib.init_state, model, config, optimizer)
    shapes = jax.eval_shape(make_state)
    shardings = sharding.tree_shardings(shapes, mesh, config.mesh.shard_optimizer)
    train_step = jax.jit(
        step_lib.make_train_step(model, config, optimizer, schedule, mask_id),
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(mesh)),
        compiler_options=flags.step_options(config.train, mesh),
    )
    return Built(model, jax.jit(make_state, out_shardings=shardings), abstract_like(shapes, shardings), train_step)


def abstract_batch(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Shapes, dtypes and shardings of the batch that the step takes, in place of the data."""
    place = sharding.batch_sharding(mesh)
    return {
        part: {name: jax.ShapeDtypeStruct(*field, sharding=place) for name, field in rows.items()}
        for part, rows in batch_lib.shapes(config).items()
    }


def make_mesh(config: ConfigDict) -> jax.sharding.Mesh:
    """The mesh over all devices that `mesh.fsdp` asks for; UserError where it does not fit."""
    try:
        return sharding.make_mesh(config.mesh.fsdp)
    except ValueError as error:
        raise UserError(str(error)) from error
