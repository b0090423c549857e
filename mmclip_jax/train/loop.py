"""The loop of every kind of training, the figures that it logs, and the evaluation meanwhile."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from mmclip_jax import flops, sharding
from mmclip_jax.checkpoints import Checkpoints, storage_errors_are_named
from mmclip_jax.data import pipeline
from mmclip_jax.data.batch import Batch
from mmclip_jax.data.records import open_records
from mmclip_jax.data.schema import PARTS, Example
from mmclip_jax.errors import LostWorkerError, PreemptedError, TrainingError
from mmclip_jax.objectives.registry import OBJECTIVES
from mmclip_jax.state import TrainState
from mmclip_jax.text.tokenizer import Tokenizer
from mmclip_jax.train.bad_records import DamagedRecords, Fields, report_bad_batch
from mmclip_jax.train.endings import ended_in_order, lost_process_is_named, preemption_notice
from mmclip_jax.train.profiler import profiler
from mmclip_jax.writers import MetricWriter

_VALIDATION_EXAMPLES = 512

Evaluate = Callable[[TrainState], tuple[TrainState, dict[str, float], bool]]
"""What a run does every `train.evaluate_every` steps: state -> (state to go on with, numbers to write, stop here?)."""
BeforeStep = Callable[[int, TrainState, Any, Callable[[], None]], None]
"""(number, state, rows on the devices, a function that waits for and logs the step before)."""


def fit(
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]],
    state: TrainState,
    iterator: pipeline.TrainIterator,
    mesh: jax.sharding.Mesh,
    config: ConfigDict,
    workdir: str,
    run: dict[str, Any],
    checkpoints: Checkpoints,
    writer: Any,
    evaluate: Evaluate,
    before_step: BeforeStep = lambda *_: None,
    step_flops: float = 0.0,
    missed: bool = False,
) -> tuple[TrainState, dict[str, float]]:
    """The loop: from the state's step to `config.train.steps`, or until `evaluate` says stop.

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
      before_step: called before each step, see `BeforeStep`.
      step_flops: of the model in one step, for the metric "mfu"; 0: not known.
      missed: whether to evaluate before the first step: the run was cut off in the evaluation of its newest checkpoint.

    Returns:
      The last state, and the metrics of the last logging step.

    Raises:
      As `mmclip_jax.train.run.train`.
    """
    progress = Progress(config, int(state.step), step_flops)
    damaged = DamagedRecords(workdir, config.data.max_damaged, iterator)
    loop = _Loop(
        train_step, state, iterator, mesh, config, workdir, run, checkpoints, writer, evaluate, before_step, progress,
        damaged,
    )  # fmt: skip
    loop.go(missed)
    return loop.state, loop.logged


@dataclasses.dataclass(frozen=True)
class _Dispatched:
    """A step that the devices were given and whose metrics nobody has looked at yet."""

    number: int
    metrics: dict[str, jax.Array]
    records: Fields
    replaced: Fields


@dataclasses.dataclass
class _Loop:
    """What `fit` holds from step to step; its arguments are explained there.

    The metrics of step n-1 are fetched after step n is dispatched, so that the devices never wait for them.
    """

    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    state: TrainState
    iterator: pipeline.TrainIterator
    mesh: jax.sharding.Mesh
    config: ConfigDict
    workdir: str
    run: dict[str, Any]
    checkpoints: Checkpoints
    writer: Any
    evaluate: Evaluate
    before_step: BeforeStep
    progress: "Progress"
    damaged: DamagedRecords
    logged: dict[str, float] = dataclasses.field(default_factory=dict)
    pending: _Dispatched | None = None
    enough: bool = False

    def go(self, missed: bool) -> None:
        """Runs until the last step, a notice of the end, or until `evaluate` says stop; closes what it was given."""
        first, last, stop = int(self.state.step), self.config.train.steps, False
        with (
            ended_in_order(self.checkpoints, self.iterator),
            preemption_notice() as preempted,
            lost_process_is_named(),
            storage_errors_are_named(self.workdir, self.checkpoints.describe_last),
            profiler(self.workdir, first + 3, self.config.train.profile) as profile,
        ):
            if missed:
                logging.info("the evaluation of step %d was cut off: it is made up", first)
                self._evaluate(first)
            for number in range(first + 1, last + 1):
                profile(number, self._settle)
                self._step(number, self._next_batch(first))
                stop = preempted(number) and number < last
                self._save_and_evaluate(number, stop)
                if stop or self.enough:
                    break
            self._settle()
            self.writer.flush()
            self.writer.close()
            self.checkpoints.close()
            self.iterator.close()
        if stop:
            raise PreemptedError(
                f"stopped by SIGTERM; step {int(self.state.step)} is saved, and the same command goes on from there"
            )

    def _next_batch(self, first: int) -> Batch:
        """The next rows. Before the end that a lost worker makes, the last step's state is saved: it is good."""
        try:
            with self.progress.waiting_for_data():
                return next(self.iterator)
        except (LostWorkerError, TrainingError) as error:
            self._settle()
            if jax.process_count() == 1 and int(self.state.step) > first:
                self._save()
                self.checkpoints.close()
                step = int(self.state.step)
                error.args = (f"{error}. Step {step} is saved, and the same command goes on from there",)
            raise

    def _step(self, number: int, batch: Batch) -> None:
        """Dispatches one step, then looks at the one before."""
        records = {part: rows.pop("record") for part, rows in batch.items()}
        replaced = {part: rows["damaged"] for part, rows in batch.items() if "damaged" in rows}
        rows = sharding.to_devices(batch, self.mesh)
        with self.progress.paused(), jax.set_mesh(self.mesh):
            self.before_step(number, self.state, rows, self._settle)
        with jax.set_mesh(self.mesh):
            self.state, metrics = self.train_step(self.state, rows)
        self._settle()
        self.pending = _Dispatched(number, metrics, records, replaced)

    def _settle(self) -> None:
        """Waits for the metrics of the dispatched step, checks and logs them."""
        self.checkpoints.check()
        if self.pending is None:
            return
        done, self.pending = self.pending, None
        values = {name: float(value) for name, value in jax.device_get(done.metrics).items()}
        problem = self.damaged.add(done.replaced) if values.get("replaced_rows") else ""
        if skipped := values.pop("skipped"):
            most = self.config.train.max_skipped
            finite = bool(values["finite"])
            message = report_bad_batch(self.workdir, done.number, done.records, self.iterator, finite)
            if skipped > most:
                problem = f"{message}. Look at them; then start anew with a lower optimizer.peak_lr or clip"
            else:
                logging.warning("%s; %d of at most %d in a row", message, skipped, most)
        if problem:
            self._save()
            self.checkpoints.close()
            raise TrainingError(f"{problem}. Step {int(self.state.step)} is saved")
        self.progress.add(values, skipped=bool(skipped))
        if done.number % self.config.train.log_every == 0 or done.number == self.config.train.steps:
            self.checkpoints.check_folder()
            self.logged = self.progress.summary(done.number)
            self.writer.write_scalars(done.number, self.logged)

    def _save_and_evaluate(self, number: int, stop: bool) -> None:
        """What is due after a step; at a stop the state is saved and no time taken for more."""
        settings = self.config.train
        save, evaluate = self._due(number, settings.checkpoint_every), self._due(number, settings.evaluate_every)
        if not (stop or save or evaluate):
            return
        self._settle()
        with self.progress.paused():
            if stop or save:
                self.writer.flush()  # what a run that goes on from here keeps
                self._save()
            if evaluate and not stop and settings.evaluate_every > 0:
                self._evaluate(number)

    def _due(self, number: int, every: int) -> bool:
        # At the end too; a negative number is never due: `evaluate` may save for itself what it has changed.
        return every >= 0 and (number == self.config.train.steps or (every > 0 and number % every == 0))

    def _save(self) -> None:
        self.checkpoints.save(self.state, self.iterator, self.run)

    def _evaluate(self, number: int) -> None:
        self.state, values, self.enough = self.evaluate(self.state)
        if values:
            logging.info("%s", evaluation_line(number, values))
        self.writer.write_scalars(number, values)


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
            remaining = f"{duration((self._steps - number) * per_step)} left"
        else:
            self._compiled, remaining = self._count, "with compilation"
        logging.info("%s", progress_line(number, self._steps, means, remaining))
        self._done += self._count
        self._sums, self._count, self._skipped, self._durations = {}, 0, 0, []
        self._start, self._left_out, self._waited = time.perf_counter(), 0.0, 0.0
        return means


def progress_line(number: int, steps: int, means: Mapping[str, float], remaining: str) -> str:
    """What the console says of a logging step: the loss, its terms without their weights, images a second, the time."""
    terms = [(name, means[f"{name}/loss"]) for name in OBJECTIVES if f"{name}/loss" in means]
    parts = [("loss", means.get("loss", float("nan"))), *terms]
    return "  ".join(
        [
            f"step {number:>{len(str(steps))}}/{steps}",
            *(f"{name} {value:.3f}" for name, value in parts),
            f"{means['images_per_second']:.0f} images/s",
            remaining,
        ]
    )


def evaluation_line(number: int, values: Mapping[str, float]) -> str:
    """What the console says of an evaluation: the numbers about all sources; those of each one are in the files."""
    brief = {name.partition("/")[2].replace("_", " "): x for name, x in values.items() if name.count("/") == 1}
    said = [f"{name} {value:.3f}" for name, value in brief.items()] or [f"{len(values)} numbers, in the run's files"]
    return "  ".join([f"step {number}  validation", *said])


def duration(seconds: float) -> str:
    """A time as a person says it: "40 s", "12 min", "3 h 20 min", "2 d 5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"


class Evaluation:
    """Quick numbers on the validation split while training, and pictures of a few cases; compiles once.

    writer: gets the pictures (`case_strips`), `train.pictures` of them.
    """

    def __init__(self, config: ConfigDict, tokenizer: Tokenizer, manifest: dict[str, Any], writer: MetricWriter):
        self._config, self._tokenizer, self._manifest, self._writer = config, tokenizer, manifest, writer
        self._model: Any = None
        self._told = False

    def __call__(self, state: TrainState) -> dict[str, float]:
        """{"evaluation/...": value} of a state; {} where there is no such split.

        Every process takes part in gathering the parameters; the first one evaluates.
        """
        from mmclip_jax.evaluate.report.cases import case_strips
        from mmclip_jax.evaluate.rows import Split
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
        if count := self._config.train.pictures:
            self._writer.write_images(int(state.step), case_strips(self._model, Split.of(examples), count))
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
