"""Training, from top to bottom: mesh, data, model, state, resume, loop.

`python -m mmclip_jax.train.run --config=configs/demo.py --workdir=runs/demo` or `mmclip train` with the same flags.
"""

import contextlib
import dataclasses
import functools
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from clu import parameter_overview
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict, config_flags

import mmclip_jax
from mmclip_jax import check, files, locks, sharding, writers
from mmclip_jax.check import check_ranges, compiler_options
from mmclip_jax.checkpoints import (
    Checkpoints,
    abstract_like,
    check_same_contents,
    check_same_settings,
    run_record,
    storage_errors_are_named,
)
from mmclip_jax.data import batch as batch_lib
from mmclip_jax.data import pipeline
from mmclip_jax.data.leakage import audit, fingerprint
from mmclip_jax.data.records import dataset_dir, dataset_facts, open_records
from mmclip_jax.data.schema import PARTS, Example
from mmclip_jax.errors import (
    EXIT_PREEMPTED,
    LostWorkerError,
    PreemptedError,
    TrainingError,
    UserError,
)
from mmclip_jax.models.mmclip import MMCLIP, build_model
from mmclip_jax.plan import flops
from mmclip_jax.text.tokenizer import Tokenizer, load_tokenizer
from mmclip_jax.train import optim
from mmclip_jax.train import start as start_lib
from mmclip_jax.train import step as step_lib
from mmclip_jax.train.guard import (
    DamagedRecords,
    Fields,
    ended_in_order,
    lost_process_is_named,
    preemption_notice,
    profiler,
    report_bad_batch,
)

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sentencepiece")
_VALIDATION_EXAMPLES = 512


def train(config: ConfigDict, workdir: str, stretch: bool = False, given: Collection[str] = ()) -> dict[str, float]:
    """Trains until `config.train.steps` steps are done, going on from the newest checkpoint in `workdir`.

    Args:
      config: see mmclip_jax/config.py.
      workdir: directory of checkpoints, metrics and manifest; made if missing.
      stretch: goes on with another number of steps than the run began with (`check_same_settings`).
      given: names of settings that the user gave one by one; weights that the run starts from do not change them.

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
    check_ranges(config)
    # Mesh and settings.
    config = config.copy_and_resolve_references()
    mesh = make_mesh(config)
    if not config.data.train:
        raise UserError("data.train names no data set: give directories, e.g. --config.data.train='(\"DIR\",)'")
    leave_out_missing_part(config)
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
    loss_gradient_norms = jax.jit(
        functools.partial(step_lib.loss_gradient_norms, built.model, config, tokenizer.mask_id),
        out_shardings=sharding.replicated(mesh),
    )

    with contextlib.ExitStack() as stack:
        with storage_errors_are_named(workdir, lambda: "nothing was changed"):
            guard = stack.enter_context(locks.held_by_run(workdir, "mmclip train"))
        return _go_on(
            config, workdir, stretch, mesh, tokenizer, iterator, manifest, built, loss_gradient_norms, guard, start
        )


def _go_on(
    config: ConfigDict,
    workdir: str,
    stretch: bool,
    mesh: jax.sharding.Mesh,
    tokenizer: Tokenizer,
    iterator: pipeline.TrainIterator,
    manifest: dict[str, Any],
    built: "Built",
    loss_gradient_norms: Any,
    guard: Callable[[], None],
    start: start_lib.Start | None,
) -> dict[str, float]:
    """The part of `train` that holds the workdir: resume, then the loop."""
    primary = jax.process_index() == 0
    # Resume. The iterator is set to the batch after the checkpoint's; everything else follows from seed and step.
    check_same_settings(workdir, config, stretch)
    check_same_contents(workdir, manifest)
    with storage_errors_are_named(workdir, lambda: "nothing was changed"):
        checkpoints = Checkpoints(workdir, config.train.keep, guard)
        if primary:
            files.remove_leftovers(workdir)
    state = checkpoints.restore_latest(built.abstract_state, iterator)
    if state is None:
        with jax.set_mesh(mesh):
            state = built.make_state()
        if start:
            state = start.apply(state, built.abstract_state)
            start.report(built.abstract_state.params, workdir, primary)
    first = int(state.step)
    run = run_record(config, tokenizer.model_bytes, manifest)
    with storage_errors_are_named(workdir, checkpoints.describe_last):
        if primary:
            files.write_json(files.locate(workdir) / "config.json", run["config"])
            files.write_json(files.locate(workdir) / "manifest.json", manifest)
        writer = writers.create_writer(workdir, step=first, primary=primary)
        table = parameter_overview.get_parameter_overview(built.abstract_state.params, include_stats=False)
        writer.write_texts(first, {"parameters": f"```\n{table}\n```"})
    missed = _missed_evaluation(config, workdir, first)
    parameters = sum(x.size for x in jax.tree.leaves(built.abstract_state.params))
    logging.info(
        "%s parameters on %d device(s); %s", f"{parameters:,}", mesh.size,
        f"resuming at step {first}" if first else "starting",
    )  # fmt: skip

    norms_every = config.train.gradient_norms_every
    evaluation = Evaluation(config, tokenizer, manifest)

    def write_norms(number: int, state: step_lib.TrainState, rows: step_lib.Batch, settle: Callable[[], None]) -> None:
        # At the first step too: that it fits into memory should show at once.
        if norms_every and (number % norms_every == 0 or number == first + 1):
            settle()
            norms = jax.device_get(loss_gradient_norms(state.params, state.step, rows))
            writer.write_scalars(number, {name: float(norm) for name, norm in norms.items()})

    def evaluate(state: step_lib.TrainState) -> tuple[step_lib.TrainState, dict[str, float], bool]:
        return state, evaluation(state), False

    return fit(
        built.train_step, state, iterator, mesh, config, workdir, run, checkpoints, writer, evaluate, write_norms,
        flops.model_flops(flops.train_step_flops(config)), missed,
    )[1]  # fmt: skip


def leave_out_missing_part(config: ConfigDict) -> None:
    """Sets `data.batch_unpaired` to 0 where no data set has unpaired images for training, and says so."""
    if not config.data.batch_unpaired:
        return
    if any(len(open_records(directory, "train", "unpaired")) for directory in config.data.train):
        return
    config.data.batch_unpaired = 0
    logging.info(
        "no unpaired images in data.train: data.batch_unpaired = 0, and a step has the %d paired rows alone",
        config.data.batch_paired,
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
    make_state: Callable[[], step_lib.TrainState]
    abstract_state: step_lib.TrainState
    train_step: Any


def build(config: ConfigDict, mesh: jax.sharding.Mesh, mask_id: int) -> Built:
    """Model, state and step of a run; computes nothing yet. `model.text.vocab_size` must be set."""
    model = build_model(config.model)
    optimizer = optim.make_optimizer(config.optimizer, config.train.steps)
    schedule = optim.learning_rate(config.optimizer, config.train.steps)
    make_state = functools.partial(step_lib.init_state, model, config, optimizer)
    shapes = jax.eval_shape(make_state)
    shardings = sharding.tree_shardings(shapes, mesh)
    train_step = jax.jit(
        step_lib.make_train_step(model, config, optimizer, schedule, mask_id),
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(mesh)),
        compiler_options=compiler_options(config.train.compiler_options),
    )
    return Built(model, jax.jit(make_state, out_shardings=shardings), abstract_like(shapes, shardings), train_step)


def abstract_batch(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Shapes, dtypes and shardings of the batch that the step takes, in place of the data."""
    place = sharding.batch_sharding(mesh)
    return {
        part: {name: jax.ShapeDtypeStruct(*field, sharding=place) for name, field in rows.items()}
        for part, rows in batch_lib.shapes(config).items()
    }


Evaluate = Callable[[step_lib.TrainState], tuple[step_lib.TrainState, dict[str, float], bool]]
"""What a run does every `train.evaluate_every` steps: state -> (state to go on with, numbers to write, stop here?)."""


def fit(
    train_step: Callable[[step_lib.TrainState, Any], tuple[step_lib.TrainState, dict[str, jax.Array]]],
    state: step_lib.TrainState,
    iterator: pipeline.TrainIterator,
    mesh: jax.sharding.Mesh,
    config: ConfigDict,
    workdir: str,
    run: dict[str, Any],
    checkpoints: Checkpoints,
    writer: Any,
    evaluate: Evaluate,
    before_step: Callable[[int, step_lib.TrainState, Any, Callable[[], None]], None] = lambda *_: None,
    step_flops: float = 0.0,
    missed: bool = False,
) -> tuple[step_lib.TrainState, dict[str, float]]:
    """The loop of every kind of training: from the state's step to `config.train.steps`, or until `evaluate` says stop.

    Args:
      train_step: jitted; donates its state.
      state: what to go on from.
      iterator: gives batches {part: rows}, set to the batch after the state's step. Closed at the end, like
        `checkpoints` and `writer`.
      mesh: where the rows go.
      config: its `train` and the batch sizes of its `data` count.
      workdir: where the records of a bad batch are listed.
      run: what every checkpoint says of the run; read at each saving.
      checkpoints: where the state is saved.
      writer: of the metrics.
      evaluate: see `Evaluate`.
      before_step: called before each step with (number, state, rows on the devices, a function that waits for and logs
        the step before).
      step_flops: of the model in one step, for the metric "mfu"; 0: not known.
      missed: whether to evaluate before the first step: the run was cut off in the evaluation of its newest checkpoint.

    Returns:
      The last state, and the metrics of the last logging step.

    Raises:
      As `train`.
    """
    # The metrics of step n-1 are fetched after step n is dispatched, so that the devices never wait for them.
    first = int(state.step)
    progress = Progress(config, first, step_flops)
    damaged = DamagedRecords(workdir, config.data.max_damaged, iterator)
    logged: dict[str, float] = {}
    pending: tuple[int, Any, Fields, Fields] | None = None

    def settle() -> None:
        """Waits for the metrics of the dispatched step, checks and logs them."""
        nonlocal pending, logged
        checkpoints.check()
        if pending is None:
            return
        (number, metrics, records, replaced), pending = pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        problem = damaged.add(replaced) if values.get("replaced_rows") else ""
        if skipped := values.pop("skipped"):
            message = report_bad_batch(workdir, number, records, iterator, bool(values["finite"]))
            if skipped > config.train.max_skipped:
                problem = f"{message}. Look at them; then start anew with a lower optimizer.peak_lr or clip"
            else:
                logging.warning("%s; %d of at most %d in a row", message, skipped, config.train.max_skipped)
        if problem:
            assert state is not None
            checkpoints.save(state, iterator, run)
            checkpoints.close()
            raise TrainingError(f"{problem}. Step {int(state.step)} is saved")
        progress.add(values, skipped=bool(skipped))
        if number % config.train.log_every == 0 or number == config.train.steps:
            checkpoints.guard()
            logged = progress.summary(number)
            writer.write_scalars(number, logged)

    def due(number: int, every: int) -> bool:
        # At the end too; a negative number is never due: `evaluate` may save for itself what it has changed.
        return every >= 0 and (number == config.train.steps or (every > 0 and number % every == 0))

    def save_what_is_done(error: LostWorkerError | TrainingError) -> None:
        """Before the end that a lost worker makes: the last step's state is good."""
        settle()
        assert state is not None
        if jax.process_count() == 1 and int(state.step) > first:
            checkpoints.save(state, iterator, run)
            checkpoints.close()
            error.args = (f"{error}. Step {int(state.step)} is saved, and the same command goes on from there",)

    stop = enough = False
    with (
        ended_in_order(checkpoints, iterator),
        preemption_notice() as preempted,
        lost_process_is_named(),
        storage_errors_are_named(workdir, checkpoints.describe_last),
        profiler(workdir, first + 3, config.train.profile) as profile,
    ):
        if missed:
            logging.info("the evaluation of step %d was cut off: it is made up", first)
            state, values, enough = evaluate(state)
            writer.write_scalars(first, values)
        for number in range(first + 1, config.train.steps + 1):
            profile(number, settle)
            try:
                with progress.waiting_for_data():
                    batch = next(iterator)
            except (LostWorkerError, TrainingError) as error:
                save_what_is_done(error)
                raise
            records = {part: rows.pop("record") for part, rows in batch.items()}
            replaced = {part: rows["damaged"] for part, rows in batch.items() if "damaged" in rows}
            rows = sharding.to_devices(batch, mesh)
            with progress.paused(), jax.set_mesh(mesh):
                before_step(number, state, rows, settle)
            with jax.set_mesh(mesh):
                state, metrics = train_step(state, rows)
            settle()
            pending = (number, metrics, records, replaced)
            stop = preempted(number) and number < config.train.steps
            if stop or due(number, config.train.evaluate_every) or due(number, config.train.checkpoint_every):
                settle()
                with progress.paused():
                    if stop or due(number, config.train.checkpoint_every):
                        writer.flush()  # what a run that goes on from here keeps
                        checkpoints.save(state, iterator, run)
                    if not stop and config.train.evaluate_every > 0 and due(number, config.train.evaluate_every):
                        state, values, enough = evaluate(state)
                        writer.write_scalars(number, values)
            if stop or enough:
                break
        settle()
        writer.flush()
        writer.close()
        checkpoints.close()
        iterator.close()
    if stop:
        raise PreemptedError(
            f"stopped by SIGTERM; step {int(state.step)} is saved, and the same command goes on from there"
        )
    return state, logged


class Progress:
    """Averages metrics between logging steps; knows throughput, the share of time spent waiting for data, and ETA.

    step_flops: of the model in one step; with it the summary has "mfu" on devices whose peak is known.
    """

    def __init__(self, config: ConfigDict, first: int, step_flops: float = 0.0):
        self._flops = step_flops
        self._images = config.data.batch_paired + config.data.batch_unpaired
        self._steps, self._first = config.train.steps, first
        self._sums: dict[str, float] = {}
        self._count = self._skipped = self._done = self._compiled = 0
        self._start = self._last = self._paused = time.perf_counter()
        self._left_out = self._waited = self._total = 0.0
        self._durations: list[float] = []

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Time spent inside counts as waiting."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside is no training time, but for waiting for a step that is added meanwhile."""
        self._paused = time.perf_counter()
        yield
        spent = time.perf_counter() - self._paused
        self._left_out += spent
        self._last += spent

    def add(self, values: dict[str, float], skipped: bool = False) -> None:
        """Takes in the metrics of one step; those of a step whose update was left out do not count."""
        now = time.perf_counter()
        self._durations.append(now - self._last)
        self._last = self._paused = now
        self._count += 1
        self._skipped += skipped
        for name, value in {} if skipped else values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def summary(self, number: int) -> dict[str, float]:
        """Means since the last call, throughput, times of steps, memory; says on the console how far the run is.

        "step_seconds/…" are the median, the 95th percentile and the largest of the times between two steps' ends;
        "device_memory_share" is the highest use so far of this process's fullest device, where the device tells.
        """
        seconds = max(time.perf_counter() - self._start - self._left_out, 1e-9)
        means = {name: value / (self._count - self._skipped) for name, value in self._sums.items()}
        means |= {
            "skipped_updates": self._skipped,
            "images_per_second": self._count * self._images / seconds,
            "data_wait_share": self._waited / seconds,
        }
        for name, share in (("median", 50), ("p95", 95), ("max", 100)):
            means[f"step_seconds/{name}"] = float(np.percentile(self._durations, share))
        memory = [device.memory_stats() or {} for device in jax.local_devices()]
        shares = [found["peak_bytes_in_use"] / found["bytes_limit"] for found in memory if found.get("bytes_limit")]
        if shares:
            means["device_memory_share"] = max(shares)
        used = flops.mfu(self._flops, seconds / self._count, jax.devices()[0].device_kind, jax.device_count())
        if used:
            means["mfu"] = used
        # The first interval holds the compilation: it would make the remaining time look too long.
        if self._done:
            self._total += seconds
            per_step = self._total / (self._done + self._count - self._compiled)
            remaining = f"{(self._steps - number) * per_step / 60:.1f} min left"
        else:
            self._compiled, remaining = self._count, "compiled"
        logging.info(
            "step %d/%d  loss %.3f  %.0f images/s  %s", number, self._steps, means.get("loss", float("nan")),
            means["images_per_second"], remaining,
        )  # fmt: skip
        self._done += self._count
        self._sums, self._count, self._skipped, self._durations = {}, 0, 0, []
        self._start, self._left_out, self._waited = time.perf_counter(), 0.0, 0.0
        return means


class Evaluation:
    """Quick numbers on the validation split while training; compiles once."""

    def __init__(self, config: ConfigDict, tokenizer: Tokenizer, manifest: dict[str, Any]):
        self._config, self._tokenizer, self._manifest = config, tokenizer, manifest
        self._model: Any = None
        self._told = False

    def __call__(self, state: step_lib.TrainState) -> dict[str, float]:
        """{"evaluation/...": value} of a state; {} where there is no such split.

        Every process takes part in gathering the parameters; the first one evaluates.
        """
        from mmclip_jax.evaluate.run import quick_metrics
        from mmclip_jax.inference.model import Model

        params = sharding.on_host(state.params if state.ema is None else state.ema)
        if jax.process_index() != 0:
            return {}
        examples = validation_examples(tuple(self._config.data.evaluate) or tuple(self._config.data.train))
        if not examples:
            return {}
        if self._model is None:
            self._model = Model(self._config, params, self._tokenizer, int(state.step), self._manifest)
        self._model.take(params, int(state.step))
        found = quick_metrics(self._model, examples)
        if not found and not self._told:
            logging.warning(
                "the evaluations during training have nothing to measure: of the %d validation images none has labels "
                "of both kinds for a finding, and no source has enough of them for retrieval",
                len(examples),
            )
        self._told = True
        return {f"evaluation/{name}": value for name, value in found.items()}


@functools.lru_cache(maxsize=1)
def validation_examples(directories: tuple[str, ...]) -> tuple[Example, ...]:
    """Up to 512 validation examples, an equal share from every data set and part, spread evenly over each."""
    parts = [open_records(directory, "validation", part) for directory in directories for part in PARTS]
    parts = [records for records in parts if len(records)]
    share = _VALIDATION_EXAMPLES // max(len(parts), 1)
    return tuple(
        records[int(i)] for records in parts for i in np.linspace(0, len(records) - 1, min(share, len(records))).round()
    )


def audit_validation(config: ConfigDict, learnt: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """What `data.audit.check` says of the validation data, which quick evaluations score while training.

    learnt: the data sets that the model learns from, those of the run that it starts from among them;
    None for `data.train`.

    Raises:
      LeakageError: validation images are known from training, and data.allow_leakage gives no reason.
    """
    evaluate = tuple(config.data.evaluate) or tuple(config.data.train)
    told = audit.IdStatements.read(config.data.same_ids, config.data.other_ids)
    return audit.check(learnt or tuple(config.data.train), evaluate, "validation", config.data.allow_leakage, told)


def make_manifest(config: ConfigDict) -> dict[str, Any]:
    """What the run is made of: versions, commit, devices, data fingerprints, and what the model is exposed to.

    exposure: {"sources": {source: {"paired": n, "unpaired": n}}, "label_kinds": {source: kinds that prompts may state
    from labels}, "report_kinds": {source: kinds that its reports affirm}}, of the training split.
    """
    exposure: dict[str, dict[str, Any]] = {"sources": {}, "label_kinds": {}, "report_kinds": {}}
    data = {}
    for directory in config.data.train:
        facts = dataset_facts(directory)
        data[str(dataset_dir(directory))] = {key: facts[key] for key in ("name", "version", "examples", "fingerprint")}
        for part in PARTS:
            if not config.data[f"batch_{part}"]:
                continue
            for source, said in facts["splits"].get(f"train_{part}", {}).get("sources", {}).items():
                counts = exposure["sources"].setdefault(source, {"paired": 0, "unpaired": 0})
                counts[part] += said["examples"]
                # Labels of paired rows never reach the model: their text comes from the report alone.
                seen = "label_kinds" if part == "unpaired" else "report_kinds"
                exposure[seen][source] = sorted({*exposure[seen].get(source, ()), *said[seen]})
    return {
        "exposure": exposure,
        "data": data,
        "seed": config.seed,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "python": platform.python_version(),
        "versions": {"mmclip_jax": mmclip_jax.__version__} | {name: metadata.version(name) for name in _PACKAGES},
        "commit": _commit(),
    }


def _commit() -> str:
    """The commit of the source tree this package lies in, "" for an installed copy."""
    folder = epath.Path(mmclip_jax.__file__).parent
    if not (folder.parent / ".git").exists():
        return ""
    git = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def make_mesh(config: ConfigDict) -> jax.sharding.Mesh:
    """The mesh over all devices that `mesh.fsdp` asks for; UserError where it does not fit."""
    try:
        return sharding.make_mesh(config.mesh.fsdp)
    except ValueError as error:
        raise UserError(str(error)) from error


_CONFIG = config_flags.DEFINE_config_file("config", None, "A file under configs/, with :argument where it takes one.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of checkpoints, metrics and manifest.")


def main(argv: Sequence[str]) -> None:
    """The absl entry point: flags --config, --workdir and --config.key=value."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    writers.configure_logging()
    assert _WORKDIR.value is not None
    try:
        train(_CONFIG.value, _WORKDIR.value)
    except UserError as error:
        print(f"mmclip train: {error}", file=sys.stderr)
        sys.exit(2)
    except TrainingError as error:
        print(f"mmclip train: {error}", file=sys.stderr)
        sys.exit(1)
    except PreemptedError as error:
        print(f"mmclip train: {error}", file=sys.stderr)
        sys.exit(EXIT_PREEMPTED)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
