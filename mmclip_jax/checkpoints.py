"""Checkpoints: one Orbax step holds parameters, their average, optimizer, data iterator, config and tokenizer.

A workdir is {config.json, manifest.json, metrics.jsonl, checkpoints/<step>/}; a step directory alone is enough to
evaluate or to load the model.
"""

import base64
import contextlib
import dataclasses
import errno
import hashlib
import json
import logging as std_logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from mmclip_jax import files
from mmclip_jax.config import default_config
from mmclip_jax.data.leakage import fingerprint
from mmclip_jax.errors import DamagedCheckpointError, StorageError, UserError
from mmclip_jax.state import TrainState

FOLDER = "checkpoints"
SCHEMA = 3  # of what a checkpoint holds; a change that an older reader would misread counts it up
_WITHOUT_DIGESTS = 2  # the schema before, which had sums of arrays alone; it is read
_ALL = "all"  # the key of the digest of all sums and digests
# Settings that may differ when a run goes on: they change how it is computed or where its data lies, not what it is.
_MAY_CHANGE = {
    *("model.remat", "model.unroll", "optimizer.accumulate", "objective.contrastive.chunk"),
    *("data.workers", "data.threads", "data.train", "data.evaluate", "data.tokenizer", "data.max_damaged"),
    *("data.allow_leakage", "data.same_ids", "data.other_ids"),
}

_STORAGE_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE),
    *(errno.EROFS, errno.EACCES, errno.EPERM),
}


def _without_none(items: dict[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in items.items() if item is not None}


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
                problem = _first_words(error)
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
                logging.error("the checkpoint that was being written is lost (%s)", _first_words(error))

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
            steps = _steps(self._manager.directory)
        except FileNotFoundError:
            steps = []
        except Exception:  # without permission, or a way to the bucket
            return "what is there cannot be listed"
        return f"checkpoint {max(steps)} is whole and stays" if steps else "there is no checkpoint yet"


@contextlib.contextmanager
def storage_errors_are_named(place: epath.PathLike, last: Callable[[], str]) -> Iterator[None]:
    """Turns an error of the file system, or of the bucket, into a StorageError: what is left, and what to do."""
    try:
        yield
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else _os_error_code(str(error))
        problem = os.strerror(code) if code in _STORAGE_ERRORS else ""
        if not problem and files.in_bucket(epath.Path(place)):
            problem = files.bucket_problem(error)
        if not problem:
            raise
        raise StorageError(
            f"{place} cannot be written ({problem}); {last()}. Make room or give permission, then run the same command "
            "again"
        ) from error


def _os_error_code(message: str) -> int | None:
    """The errno in a message of TensorStore, which raises ValueError whatever happens."""
    found = re.search(r"\[os_error_code='(\d+)'\]", message)
    return int(found[1]) if found else None


def absolute_path(path: epath.PathLike) -> epath.Path:
    """The path with "~" expanded and made absolute; an address in a bucket as it is."""
    path = files.locate(path)
    return path if files.in_bucket(path) else path.absolute()


def _trees(state: TrainState) -> dict[str, Any]:
    """The arrays of a state by the item of a checkpoint that holds them."""
    optimizer = {"step": state.step, "opt_state": state.opt_state, "guard": state.guard}
    return _without_none({"params": state.params, "ema": state.ema, "optimizer": optimizer})


@jax.jit
def bit_sums(trees: dict[str, Any]) -> dict[str, jax.Array]:
    """For each tree the sum modulo 2^32 of its arrays' bits, each array with another odd factor.

    One flipped bit changes it; the order of the summation, and so the number of devices, does not.
    """

    def one(x: jax.Array) -> jax.Array:
        unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32).sum(dtype=jnp.uint32)

    def whole(tree: Any) -> jax.Array:
        sums = jnp.stack([one(x) for x in jax.tree.leaves(tree)])
        return (sums * (2 * jnp.arange(len(sums), dtype=jnp.uint32) + 1)).sum(dtype=jnp.uint32)

    return {name: whole(tree) for name, tree in trees.items()}


def _digest(content: Any) -> str:
    """SHA-256 of what JSON gives back, whatever its spaces and the order of its keys."""
    text = json.dumps(json.loads(json.dumps(content)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def with_digests(sums: dict[str, int], words: dict[str, Any]) -> dict[str, Any]:
    """The item "sums" of a checkpoint: sums of its arrays' bits, digests of its other items, and one of all these."""
    said: dict[str, Any] = sums | {"digests": {name: _digest(content) for name, content in words.items()}}
    return said | {_ALL: _digest(said)}


def check_digests(said: Any, words: dict[str, Any]) -> dict[str, int]:
    """The sums of arrays that the item "sums" names, after a look at the digests.

    words: those of the other items that were read, "run" among them.

    Raises:
      ValueError: something is not what was saved.
    """
    if not isinstance(said, dict) or not isinstance(words["run"], dict):
        raise ValueError("its sums or its run are no JSON objects")
    said = dict(said)
    if words["run"].get("schema") == _WITHOUT_DIGESTS and not {"digests", _ALL} & said.keys():
        return said
    if said.pop(_ALL, None) != _digest(said):
        raise ValueError("its sums are not those that were saved")
    digests = said.pop("digests")
    for name, content in words.items():
        if digests.get(name) != _digest(content):
            raise ValueError(f"its item {name!r} is not what was saved")
    return said


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


def _first_words(error: Exception, length: int = 200) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= length else words[:length] + "…"


def check_same_settings(workdir: epath.PathLike, config: ConfigDict, stretch: bool = False) -> None:
    """Refuses to continue a run with settings that would make it another experiment; `train` settings may change.

    stretch: whether the number of steps may change, too. The learning rate and the random share of masks are functions
    of the share of the steps that are done: they stretch or shrink with it, and what is done by then is not done anew.

    Raises:
      UserError: naming the settings that differ from those of the newest checkpoint.
    """
    folder = absolute_path(workdir) / FOLDER
    if not folder.exists() or not _steps(folder):  # what was cut off before it was whole is no checkpoint
        return
    try:
        saved = find_checkpoint(workdir).config
    except DamagedCheckpointError as error:  # restoring says more, and falls back
        logging.warning("the settings of the newest checkpoint cannot be read (%s)", error)
        return
    differences = []
    for part in ("model", "init", "objective", "optimizer", "data", "finetune"):
        old, new = (_flat({part: json.loads(c[part].to_json())} if part in c else {}) for c in (saved, config))
        differences += [
            f"{name}={new.get(name)!r} (was {old.get(name)!r})"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name) and name not in _MAY_CHANGE
        ]
    old_steps, steps = saved.train.steps, config.train.steps
    if old_steps != steps and not stretch:
        if "finetune" in config:
            differences.append(f"train.steps={steps} (was {old_steps})")
        elif not differences:
            raise UserError(
                f"{workdir} holds a run of {old_steps:,} steps, not {steps:,}: the schedule of the learning rate and "
                "the share of random masks would stretch from here on, and the result be that of no run in one go. "
                "Say --stretch if that is meant, or give another --workdir"
            )
    if old_steps != steps and stretch:
        logging.warning(
            "%s steps instead of %s: the learning rate's schedule and the share of random masks stretch from here on",
            f"{steps:,}", f"{old_steps:,}",
        )  # fmt: skip
    if differences:
        raise UserError(
            f"{workdir} holds a run with other settings: {'; '.join(differences)}. Give these settings, or another "
            "--workdir for a new run"
        )


def check_same_contents(workdir: epath.PathLike, manifest: dict[str, Any]) -> None:
    """Refuses to continue a run on other data or with another tokenizer than those of the newest checkpoint.

    Raises:
      UserError: naming what differs.
    """
    folder = absolute_path(workdir) / FOLDER
    if not folder.exists() or not _steps(folder):
        return
    with contextlib.suppress(DamagedCheckpointError):  # restoring says more, and falls back
        fingerprint.check_same(workdir, find_checkpoint(workdir).manifest, manifest)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        flat |= _flat(value, path + ".") if isinstance(value, dict) else {path: value}
    return flat


def run_record(config: ConfigDict, tokenizer_model: bytes, manifest: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of the run it belongs to, as JSON."""
    return {
        "schema": SCHEMA,
        "config": json.loads(config.to_json()),
        "tokenizer": base64.b64encode(tokenizer_model).decode(),
        "manifest": manifest,
    }


def with_defaults(saved: dict[str, Any]) -> ConfigDict:
    """The settings of a checkpoint; one that its version did not know yet has its default, which changes nothing."""

    def filled(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        parts = {name: filled(value, given[name]) for name, value in defaults.items()
                 if isinstance(value, dict) and name in given}  # fmt: skip
        return defaults | given | parts

    return ConfigDict(filled(json.loads(default_config().to_json()), saved))


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint on disk: where it is, its step, and the run it belongs to."""

    directory: epath.Path
    step: int
    config: ConfigDict
    tokenizer_model: bytes
    manifest: dict[str, Any]
    sums: dict[str, int]  # of the bits of its arrays, by item

    def restore_params(self, abstract: Any) -> Any:
        """The averaged parameters where the run kept them, else the parameters.

        abstract: shapes, dtypes and shardings of the parameters, whatever devices they were saved from.

        Raises:
          UserError: another model's parameters.
          DamagedCheckpointError: files that cannot be read, or bits that are not those that were saved. Nothing falls
            back here: an evaluation of another step must be asked for.
        """
        name = "ema" if "ema" in self.sums else "params"
        with damage_is_named(self.directory):
            stored = ocp.PyTreeCheckpointHandler().metadata(self.directory / name)
            self._check_shapes(stored, abstract)
            with ocp.StandardCheckpointer() as checkpointer:
                params = checkpointer.restore(self.directory / name, abstract)
            if int(bit_sums({name: params})[name]) != self.sums[name]:
                raise ValueError("its bits are not those that were saved")
        return params

    def _check_shapes(self, stored: Any, abstract: Any) -> None:
        """Raises UserError where the stored parameters are not those of the settings."""

        def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
            leaves = jax.tree_util.tree_leaves_with_path(tree)
            return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.shape) for path, x in leaves}

        there, asked = shapes(dict(stored)), shapes(abstract)
        if there == asked:
            return
        name = min(name for name in there.keys() | asked.keys() if there.get(name) != asked.get(name))
        raise UserError(
            f"{self.directory} does not hold the model of its settings: {name} is {there.get(name, 'not there')}, and "
            f"model.image_size={self.config.model.image_size}, patch_size={self.config.model.patch_size}, "
            f"text.vocab_size={self.config.model.text.vocab_size} need {asked.get(name, 'none')}; take a checkpoint of "
            "this image size and vocabulary"
        )


@contextlib.contextmanager
def damage_is_named(directory: epath.Path) -> Iterator[None]:
    """Turns what Orbax raises on damage, many types, into a DamagedCheckpointError that names the other steps."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):  # no damage: the device is too small
            raise
        others = [step for step in _steps(directory.parent) if str(step) != directory.name]
        remedy = f"take another with --step (there: {others})" if others else "copy it again"
        raise DamagedCheckpointError(f"{directory} is damaged ({_first_words(error)}): {remedy}") from error


def is_checkpoint(path: epath.PathLike) -> bool:
    """Whether `path` is the directory of one checkpoint, and not a workdir with some."""
    return (files.locate(path) / "run").exists()


def find_checkpoint(workdir_or_checkpoint: epath.PathLike, step: int | None = None) -> Saved:
    """Opens the checkpoint of a workdir (its newest, or `step`), or a step directory itself.

    Raises:
      UserError: there is no such checkpoint (the message lists the steps that are there), or another version of this
        software made it.
      DamagedCheckpointError: what it says of its run cannot be read.
    """
    path = absolute_path(workdir_or_checkpoint)
    if is_checkpoint(path):
        directory = path
    else:
        folder = path / FOLDER
        if not folder.exists():
            raise UserError(f"{path} holds no checkpoints: give the --workdir of a training run or a step directory")
        steps = _steps(folder)
        if not steps or (step is not None and step not in steps):
            raise UserError(f"{folder} has no checkpoint {'' if step is None else step} (steps there: {steps})")
        directory = folder / str(steps[-1] if step is None else step)
    with damage_is_named(directory):
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            run, said = (checkpointer.restore(directory / name) for name in ("run", "sums"))
        sums = check_digests(said, {"run": run})
        if run.get("schema") not in (SCHEMA, _WITHOUT_DIGESTS):
            raise UserError(
                f"{directory} was saved in checkpoint schema {run.get('schema')}, and this version of mmclip-jax reads "
                f"{SCHEMA}: use the version that is named in the run's manifest.json"
            )
        return Saved(
            directory,
            int(directory.name) if directory.name.isdigit() else 0,
            with_defaults(run["config"]),
            base64.b64decode(run["tokenizer"]),
            run["manifest"],
            sums,
        )


def steps_of(workdir: epath.PathLike) -> list[int]:
    """The steps of a workdir's complete checkpoints, ascending; [] where there is none."""
    folder = absolute_path(workdir) / FOLDER
    return _steps(folder) if folder.exists() else []


def _steps(folder: epath.Path) -> list[int]:
    """The steps whose checkpoints are complete, ascending; in a bucket the folder alone does not say so."""
    found = (path for path in folder.iterdir() if path.name.isdigit())
    return sorted(int(path.name) for path in found if ocp.utils.is_checkpoint_finalized(path))


def abstract_like(tree: Any, shardings: Any) -> Any:
    """Shapes and dtypes of `tree` with shardings, as Orbax wants them to restore onto other devices."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
