"""A checkpoint on disk: finding it, and reading what it says of its run and its parameters."""

import base64
import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from mmclip_jax import files
from mmclip_jax.checkpoints.digests import WITHOUT_DIGESTS, bit_sums, check_digests
from mmclip_jax.checkpoints.storage import first_words
from mmclip_jax.config import default_config
from mmclip_jax.errors import DamagedCheckpointError, UserError

FOLDER = "checkpoints"
EXPORT_RECORD = "mmclip.json"  # of a directory that `mmclip export` wrote
SCHEMA = 3  # of what a checkpoint holds; a change that an older reader would misread counts it up


def absolute_path(path: epath.PathLike) -> epath.Path:
    """The path with "~" expanded and made absolute; an address in a bucket as it is."""
    path = files.locate(path)
    return path if files.in_bucket(path) else path.absolute()


def run_folder(path: epath.PathLike) -> epath.Path:
    """The folder of the run that a checkpoint lies in; any other path as it is, absolute."""
    place = absolute_path(path)
    return place.parent.parent if place.parent.name == FOLDER else place


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

    @property
    def run_folder(self) -> epath.Path:
        """See `run_folder`."""
        return run_folder(self.directory)

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
        others = [step for step in steps_in(directory.parent) if str(step) != directory.name]
        remedy = f"take another with --step (there: {others})" if others else "copy it again"
        raise DamagedCheckpointError(f"{directory} is damaged ({first_words(error)}): {remedy}") from error


def is_checkpoint(path: epath.PathLike) -> bool:
    """Whether `path` is the directory of one checkpoint, or exported of one, and not a workdir with some."""
    place = files.locate(path)
    return (place / "run").exists() or (place / EXPORT_RECORD).exists()


def find_checkpoint(workdir_or_checkpoint: epath.PathLike, step: int | None = None) -> Saved:
    """Opens the checkpoint of a workdir (its newest, or `step`), a step directory itself, or an exported directory.

    Raises:
      UserError: there is no such checkpoint (the message lists the steps that are there), the path is that of another
        step, or another version of this software made it.
      DamagedCheckpointError: what it says of its run cannot be read.
    """
    path = absolute_path(workdir_or_checkpoint)
    if (path / EXPORT_RECORD).exists():
        from mmclip_jax.checkpoints.exported import open_exported  # which needs this module

        return open_exported(path, step)
    if is_checkpoint(path):
        directory = path
        if step is not None and path.name != str(step):
            raise UserError(f"{path} is a single checkpoint, not the one of step {step}: leave the step out")
    else:
        folder = path / FOLDER
        if not folder.exists():
            raise UserError(
                f"{path} holds no checkpoints: name the folder of a training run, or of one of its checkpoints"
            )
        steps = steps_in(folder)
        if not steps or (step is not None and step not in steps):
            raise UserError(f"{folder} has no checkpoint {'' if step is None else step} (steps there: {steps})")
        directory = folder / str(steps[-1] if step is None else step)
    with damage_is_named(directory):
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            run, said = (checkpointer.restore(directory / name) for name in ("run", "sums"))
        sums = check_digests(said, {"run": run})
        if run.get("schema") not in (SCHEMA, WITHOUT_DIGESTS):
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
    return steps_in(folder) if folder.exists() else []


def steps_in(folder: epath.Path) -> list[int]:
    """The steps whose checkpoints are complete, ascending; in a bucket the folder alone does not say so."""
    found = (path for path in folder.iterdir() if path.name.isdigit())
    return sorted(int(path.name) for path in found if ocp.utils.is_checkpoint_finalized(path))


def abstract_like(tree: Any, shardings: Any) -> Any:
    """Shapes and dtypes of `tree` with shardings, as Orbax wants them to restore onto other devices."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
