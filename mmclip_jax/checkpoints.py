"""Checkpoints: one Orbax step holds parameters, their average, optimizer, data iterator, config and tokenizer.

A workdir is {config.json, manifest.json, metrics.jsonl, checkpoints/<step>/}; a step directory alone is enough to
evaluate or to load the model.
"""

import base64
import dataclasses
import json
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from mmclip_jax.errors import UserError
from mmclip_jax.step import TrainState

FOLDER = "checkpoints"
SCHEMA = 1  # of what a checkpoint holds; a change that an older reader would misread counts it up
# Settings that may differ when a run goes on: they change how it is computed or where its data lies, not what it is.
_MAY_CHANGE = {
    *("model.remat", "model.unroll", "optimizer.accumulate"),
    *("data.workers", "data.threads", "data.train", "data.evaluate", "data.tokenizer"),
}


def _without_none(items: dict[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in items.items() if item is not None}


class Checkpoints:
    """The checkpoints of one training run. Saving is asynchronous and atomic; `close` waits for it."""

    def __init__(self, workdir: epath.PathLike, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(epath.Path(workdir).absolute() / FOLDER, options=options)

    def save(self, state: TrainState, iterator: Any, run: dict[str, Any]) -> None:
        """Saves the state reached after `state.step` steps; run: what `run_record` made."""
        items = _without_none(
            {
                "params": ocp.args.StandardSave(state.params),
                "ema": None if state.ema is None else ocp.args.StandardSave(state.ema),
                "optimizer": ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
                "data": ocp.args.JsonSave(iterator.get_state()),  # the same in every process
                "run": ocp.args.JsonSave(run),
            }
        )
        step = int(state.step)
        if step in self._manager.all_steps():  # one that could not be read, and was passed over
            self._manager.wait_until_finished()
            self._manager.delete(step)
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore_latest(self, abstract: TrainState, iterator: Any) -> TrainState | None:
        """The newest checkpoint that can be read, with `iterator` set to go on behind it; None if there is none.

        abstract: shapes, dtypes and shardings of the state. A damaged checkpoint is reported, left where it is until
        the run saves that step again, and the one before it taken.

        Raises:
          UserError: there are checkpoints but none can be read, or the data is another.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return self._restore(step, abstract, iterator)
            except UserError:
                raise
            except Exception as error:  # Orbax raises many types on damage; every one means the same here.
                logging.error("checkpoint %d cannot be read (%s); trying the one before", step, error)
        if steps:
            raise UserError(
                f"none of the checkpoints {steps} in {self._manager.directory} can be read with this configuration: "
                "the messages above say why; another model size needs another --workdir"
            )
        return None

    def _restore(self, step: int, abstract: TrainState, iterator: Any) -> TrainState:
        items = _without_none(
            {
                "params": ocp.args.StandardRestore(abstract.params),
                "ema": None if abstract.ema is None else ocp.args.StandardRestore(abstract.ema),
                "optimizer": ocp.args.StandardRestore({"step": abstract.step, "opt_state": abstract.opt_state}),
                "data": ocp.args.JsonRestore(),
            }
        )
        saved = self._manager.restore(step, args=ocp.args.Composite(**items))
        iterator.set_state(saved["data"])
        optimizer = saved["optimizer"]
        return TrainState(optimizer["step"], saved["params"], optimizer["opt_state"], saved.get("ema"))

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def check_same_settings(workdir: epath.PathLike, config: ConfigDict) -> None:
    """Refuses to continue a run with settings that would make it another experiment; `train` settings may change.

    Raises:
      UserError: naming the settings that differ from those of the newest checkpoint.
    """
    if not any((epath.Path(workdir).absolute() / FOLDER).glob("[0-9]*")):
        return
    try:
        saved = find_checkpoint(workdir).config
    except UserError:
        raise
    except Exception as error:  # damaged: restoring says more
        logging.warning("the settings of the newest checkpoint cannot be read (%s)", error)
        return
    differences = []
    for part in ("model", "objective", "optimizer", "data", "finetune"):
        old, new = (_flat({part: json.loads(c[part].to_json())} if part in c else {}) for c in (saved, config))
        differences += [
            f"{name}={new.get(name)!r} (was {old.get(name)!r})"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name) and name not in _MAY_CHANGE
        ]
    if differences:
        raise UserError(
            f"{workdir} holds a run with other settings: {'; '.join(differences)}. Give these settings, or another "
            "--workdir for a new run"
        )


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


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint on disk: where it is, its step, and the run it belongs to."""

    directory: epath.Path
    step: int
    config: ConfigDict
    tokenizer_model: bytes
    manifest: dict[str, Any]

    def restore_params(self, abstract: Any) -> Any:
        """The averaged parameters where the run kept them, else the parameters.

        abstract: shapes, dtypes and shardings of the parameters, whatever devices they were saved from.
        """
        name = "ema" if (self.directory / "ema").exists() else "params"
        self._check_shapes(ocp.PyTreeCheckpointHandler().metadata(self.directory / name), abstract)
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(self.directory / name, abstract)

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


def is_checkpoint(path: epath.PathLike) -> bool:
    """Whether `path` is the directory of one checkpoint, and not a workdir with some."""
    return (epath.Path(path) / "run").exists()


def find_checkpoint(workdir_or_checkpoint: epath.PathLike, step: int | None = None) -> Saved:
    """Opens the checkpoint of a workdir (its newest, or `step`), or a step directory itself.

    Raises:
      UserError: there is no such checkpoint (the message lists the steps that are there), or another version of this
        software made it.
    """
    path = epath.Path(workdir_or_checkpoint).expanduser().absolute()
    if is_checkpoint(path):
        directory = path
    else:
        folder = path / FOLDER
        if not folder.exists():
            raise UserError(f"{path} holds no checkpoints: give the --workdir of a training run or a step directory")
        steps = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
        if not steps or (step is not None and step not in steps):
            raise UserError(f"{folder} has no checkpoint {'' if step is None else step} (steps there: {steps})")
        directory = folder / str(steps[-1] if step is None else step)
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        run = checkpointer.restore(directory / "run")
    if run.get("schema") != SCHEMA:
        raise UserError(
            f"{directory} was saved in checkpoint schema {run.get('schema')}, and this version of mmclip-jax reads "
            f"{SCHEMA}: use the version that is named in the run's manifest.json"
        )
    return Saved(
        directory,
        int(directory.name) if directory.name.isdigit() else 0,
        ConfigDict(run["config"]),
        base64.b64decode(run["tokenizer"]),
        run["manifest"],
    )


def abstract_like(tree: Any, shardings: Any) -> Any:
    """Shapes and dtypes of `tree` with shardings, as Orbax wants them to restore onto other devices."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
