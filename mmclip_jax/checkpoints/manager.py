"""The checkpoints of a run at work: saving, and going on from the newest that all processes can read."""

import contextlib
import logging as std_logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from mmclip_jax.checkpoints.digests import bit_sums, check_digests, with_digests
from mmclip_jax.checkpoints.saved import FOLDER, absolute_path, steps_in
from mmclip_jax.checkpoints.storage import first_words, storage_errors_are_named
from mmclip_jax.errors import StorageError, UserError
from mmclip_jax.state import TrainState


class Checkpoints:
    """The checkpoints of one training run. Saving is asynchronous and atomic; `close` waits for it.

    check_folder: called before anything is written; raises where the workdir is no longer the run's own
    (`locks.Lock.check`).
    """

    def __init__(self, workdir: epath.PathLike, keep: int, check_folder: Callable[[], None] = lambda: None):
        self.check_folder = check_folder
        self._closed = False
        _mute_abandoned_io()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(absolute_path(workdir) / FOLDER, options=options)

    def save(self, state: TrainState, iterator: Any, run: dict[str, Any]) -> None:
        """Saves the state reached after `state.step` steps; run: what `run_record` made.

        Raises:
          StorageError: this checkpoint or the one before cannot be written.
        """
        trees = _trees(state)
        sums = {name: int(value) for name, value in jax.device_get(bit_sums(trees)).items()}
        words = {"data": iterator.get_state(), "run": run}  # the same in every process
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()} | {
            name: ocp.args.JsonSave(content) for name, content in (words | {"sums": with_digests(sums, words)}).items()
        }
        step = int(state.step)
        self.check_folder()
        with self._named_storage_errors():
            if step in self._manager.all_steps():  # one that could not be read, and was passed over
                self._manager.wait_until_finished()
                self._manager.delete(step)
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore_latest(self, abstract: TrainState, iterator: Any) -> TrainState | None:
        """The newest checkpoint that all processes can read, with `iterator` set to go on behind it; None without any.

        abstract: shapes, dtypes and shardings of the state. A checkpoint is read if its files are whole and the bits of
        its arrays add up to what they did when it was saved. A damaged one is reported, left where it is until the run
        saves that step again, and the one before it taken.

        Raises:
          UserError: there are checkpoints but none can be read, or the data is another.
        """
        steps = sorted(_of_first_process(self._manager.all_steps()), reverse=True)
        for step in steps:
            found, problem = None, ""
            try:
                found = self._read(step, abstract)
            except Exception as error:  # Orbax raises many types on damage; every one means the same here.
                problem = first_words(error)
            if not _all_processes(found is not None):
                where = "" if problem else "by another process "
                logging.error("checkpoint %d cannot be read %s(%s); trying the one before", step, where, problem)
                continue
            assert found is not None
            state, position, sums = found
            bits = {name: int(value) for name, value in jax.device_get(bit_sums(_trees(state))).items()}
            if bits != sums:
                damaged = ", ".join(name for name in bits | sums if bits.get(name) != sums.get(name))
                logging.error(
                    "checkpoint %d cannot be read (the bits of its %s are not those that were saved); trying the one "
                    "before", step, damaged,
                )  # fmt: skip
                continue
            iterator.set_state(position)
            return state
        if steps:
            raise UserError(
                f"none of the checkpoints {steps} in {self._manager.directory} can be read with this configuration: "
                "the messages above say why; another model size needs another --workdir"
            )
        return None

    def _read(self, step: int, abstract: TrainState) -> tuple[TrainState, Any, dict[str, int]]:
        """(state, position of the data iterator, sums of its bits), read without waiting for any other process."""
        directory = self._manager.directory / str(step)
        trees = {name: ocp.args.StandardRestore(tree) for name, tree in _trees(abstract).items()}
        items = trees | {name: ocp.args.JsonRestore() for name in ("data", "run", "sums")}
        # Orbax would have all processes meet at the end, where one that failed never comes.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix="read"
        )
        handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone))
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            saved = checkpointer.restore(directory, args=ocp.args.Composite(**items))
        sums = check_digests(saved["sums"], {name: saved[name] for name in ("data", "run")})
        optimizer = saved["optimizer"]
        state = TrainState(
            optimizer["step"], saved["params"], optimizer["opt_state"], saved.get("ema"), optimizer["guard"]
        )
        return state, saved["data"], sums

    def check(self) -> None:
        """Raises StorageError if a checkpoint that was begun could not be written."""
        with self._named_storage_errors():
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
          StorageError: it cannot be written.
        """
        with self._named_storage_errors():
            self._manager.wait_until_finished()
        self._manager.close()
        self._closed = True
        self.check_folder()  # what was written went to the workdir, and not where it had been

    def close_after_an_error(self, cause: BaseException) -> None:
        """Waits until what was begun is on disk, whatever comes of it: another error is on its way."""
        if self._closed:
            return
        self._closed = True
        try:
            self._manager.wait_until_finished()
            self._manager.close()
        except Exception as error:
            if not isinstance(cause, StorageError):  # which says so already
                logging.error("the checkpoint that was being written is lost (%s)", first_words(error))

    @contextlib.contextmanager
    def _named_storage_errors(self) -> Iterator[None]:
        try:
            with storage_errors_are_named(self._manager.directory, self.describe_last):
                yield
        except StorageError:
            raise
        except Exception:
            self.check_folder()  # where the workdir is gone, Orbax fails in many ways
            raise

    def describe_last(self) -> str:
        """Which checkpoint a run can go on from, for a message."""
        try:
            steps = steps_in(self._manager.directory)
        except FileNotFoundError:
            steps = []
        except Exception:  # without permission, or a way to the bucket
            return "what is there cannot be listed"
        return f"checkpoint {max(steps)} is whole and stays" if steps else "there is no checkpoint yet"


def _trees(state: TrainState) -> dict[str, Any]:
    """The arrays of a state by the item of a checkpoint that holds them."""
    optimizer = {"step": state.step, "opt_state": state.opt_state, "guard": state.guard}
    return _without_none({"params": state.params, "ema": state.ema, "optimizer": optimizer})


def _without_none(items: dict[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in items.items() if item is not None}


def _of_first_process(steps: Sequence[int]) -> list[int]:
    """What process 0 sees: a shared directory may be listed otherwise elsewhere, for a while."""
    if jax.process_count() == 1:
        return list(steps)
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
    mine = np.resize(np.asarray([*steps, 0], np.int32), count)
    return [int(step) for step in multihost_utils.broadcast_one_to_all(mine)]


def _all_processes(value: bool) -> bool:
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.int32(value))))


def _mute_abandoned_io() -> None:
    """Mutes what Python says of reads and writes that are given up after the first failure: thousands of lines.

    The failure itself is raised, and said once.
    """
    std_logging.getLogger("asyncio").setLevel(std_logging.CRITICAL + 1)
    hook = sys.unraisablehook
    if getattr(hook, "mutes_abandoned_io", False):
        return

    def quieter(unraisable: Any) -> None:
        text = f"{unraisable.exc_value} {unraisable.object!r}"
        if not any(words in text for words in ("Event loop is closed", "_read_array_index_and_device_put")):
            hook(unraisable)

    quieter.mutes_abandoned_io = True  # type: ignore[attr-defined]
    sys.unraisablehook = quieter
