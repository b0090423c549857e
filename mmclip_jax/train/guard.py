"""What guards the training loop: a good end however it comes, a profile, and the lists of bad records and batches."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from mmclip_jax import files
from mmclip_jax.checkpoints import Checkpoints
from mmclip_jax.data import pipeline
from mmclip_jax.errors import LostProcessError, UserError

Fields = dict[str, np.ndarray]  # one field of a batch's rows by part
_OWN_FAULTS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")  # a lost process causes none of these


@contextlib.contextmanager
def ended_in_order(checkpoints: Checkpoints, iterator: pipeline.TrainIterator) -> Iterator[None]:
    """However the block ends: a checkpoint that is being written is finished, and threads and workers end."""
    try:
        yield
    except BaseException as error:
        # The others of a run of several processes may be gone, and would be waited for.
        if jax.process_count() == 1 and not isinstance(error, LostProcessError):
            checkpoints.close_after_an_error(error)
            iterator.close()
        raise


@contextlib.contextmanager
def preemption_notice() -> Iterator[Callable[[int], bool]]:
    """Inside, SIGTERM ends no process: it is the notice that the machine will be taken away.

    Yields:
      preempted(step): to be asked after every step, in every process; True at the step to save and to stop at, which is
        the same for all processes however many of them got the signal.
    """
    if jax.distributed.is_initialized():  # JAX has taken over SIGTERM and tells the other processes
        yield multihost_utils.reached_preemption_sync_point
    elif threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield lambda step: False
    else:
        noticed = threading.Event()
        before = signal.signal(signal.SIGTERM, lambda *_: noticed.set())
        try:
            yield lambda step: noticed.is_set()
        finally:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def lost_process_is_named() -> Iterator[None]:
    """Turns the failed exchange with a process that is gone into a LostProcessError."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # Where CPUs compute in order (`cli._set_up`), JAX raises the failed exchange as a plain ValueError.
        foreign = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
        if not foreign or jax.process_count() == 1 or any(word in str(error) for word in _OWN_FAULTS):
            raise
        raise LostProcessError(
            f"another process of this run was lost, or a device failed ({error}); the same command goes on from the "
            "newest checkpoint"
        ) from error


@contextlib.contextmanager
def profiler(workdir: str, first: int, count: int) -> Iterator[Callable[[int, Callable[[], None]], None]]:
    """Traces `count` steps from step `first` on, in process 0, into WORKDIR/profile (for xprof, TensorBoard, Perfetto).

    Yields:
      before(number, settle): to be called before every step; settle waits for the step before.
    """
    twin, running = files.LocalTwin(files.locate(workdir) / "profile"), False

    def before(number: int, settle: Callable[[], None]) -> None:
        nonlocal running
        if not count or number not in (first, first + count):
            return
        settle()
        if jax.process_index():
            return
        if number == first:
            jax.profiler.start_trace(str(twin.folder))
            running = True
        elif running:
            stop()

    def stop() -> None:
        nonlocal running
        jax.profiler.stop_trace()
        running = False
        twin.copy()
        logging.info("the profile lies in %s", twin.path)

    try:
        yield before
    finally:
        if running:
            stop()


class DamagedRecords:
    """The records that could not be read or decoded and were replaced, of all processes, since the run began."""

    def __init__(self, workdir: str, limit: int, iterator: pipeline.TrainIterator):
        self._path = files.locate(workdir) / "damaged_records.json"
        self._limit, self._iterator = limit, iterator
        remedy = "delete it, and the run counts anew"
        self._known: list[dict[str, Any]] = []
        if self._path.exists():
            self._known = files.read_json(self._path, remedy, kind=list)
        if any(not isinstance(entry, dict) or not isinstance(entry.get("number"), int) for entry in self._known):
            raise UserError(f"{self._path} is damaged (an entry has no number): {remedy}")

    def add(self, replaced: Fields) -> str:
        """Lists what is new; all processes must call it, at the same step.

        replaced: this process's field `damaged` of each part. Returns why the run must stop, "" while it need not.
        """
        mine = np.concatenate([replaced[part] for part in sorted(replaced)])
        everyone = mine if jax.process_count() == 1 else multihost_utils.process_allgather(mine)
        known = {entry["number"] for entry in self._known}
        new = sorted({int(number) for number in np.unique(everyone)} - known - {-1})
        if not new:
            return ""
        self._known += [{"number": number} | self._iterator.problem(number) for number in new]
        for entry in self._known[-len(new) :]:
            logging.warning("%(data_set)s, %(part)s record %(record)d is damaged and replaced: %(problem)s", entry)
        if jax.process_index() == 0:
            files.write_json(self._path, self._known)
        if len(self._known) <= self._limit:
            return ""
        return (
            f"{len(self._known)} training records cannot be read or decoded, more than data.max_damaged={self._limit}; "
            f"{self._path} lists them. Build or copy the data again, or raise data.max_damaged"
        )


def report_bad_batch(workdir: str, number: int, records: Fields, iterator: pipeline.TrainIterator, finite: bool) -> str:
    """Writes the ids of the batch's records beside the checkpoints; returns what happened and where they are listed."""
    name, what = ("spike", "the loss is a spike") if finite else ("not_finite", "loss or gradient is not finite")
    path = files.locate(workdir) / f"{name}_step_{number}_process_{jax.process_index()}.json"
    files.write_json(
        path, {"step": number, "records": {part: iterator.record_ids(ids) for part, ids in records.items()}}
    )
    return f"{what} at step {number}: the update was left out, and the records of the batch are listed in {path}"
