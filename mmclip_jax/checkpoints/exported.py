"""A directory that `mmclip export` wrote, read as the checkpoint that it was made of.

Beside the files of its format lies `mmclip.json`: the run's record (settings, tokenizer, manifest), the step, and the
sum of the parameters' bits. Parameters that the format cannot hold, or not to the last bit, lie in `mmclip_rest.npz`.
"""

import base64
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from mmclip_jax import files
from mmclip_jax.checkpoints.digests import bit_sums, check_digests, with_digests
from mmclip_jax.checkpoints.saved import EXPORT_RECORD, SCHEMA, Saved, damage_is_named, run_record, with_defaults
from mmclip_jax.errors import DamagedCheckpointError, UserError
from mmclip_jax.models.inputs import PIXEL_MEAN, PIXEL_STD
from mmclip_jax.models.pretrained import blocks, dual, families, fit
from mmclip_jax.models.pretrained.weights import Weights, find_weights, read_weights

REST_FILE, PARAMS_FILE = "mmclip_rest.npz", "params.npz"
_REMEDY = "export the run again"

Arrays = dict[str, np.ndarray]
Reader = Callable[[pathlib.Path, Any], Arrays]
"""(directory, the settings of the model) -> the parameters that the files of a format hold, by path."""


def _numpy(directory: pathlib.Path, model: Any) -> Arrays:
    return read_arrays(directory / PARAMS_FILE)


def _huggingface(directory: pathlib.Path, model: Any) -> Arrays:
    config = files.read_json(directory / dual.HUGGINGFACE_CONFIG, _REMEDY, ("model_type",))
    if config["model_type"] == "mmclip":
        return families.of_module(read_weights(find_weights(directory)))
    if config["model_type"] == "vit":
        return _classifier(directory)
    return _dual_encoder(directory, "huggingface")


def _classifier(directory: pathlib.Path) -> Arrays:
    """A ViT with a linear layer; its patches of several channels as those of one."""
    weights = Weights(read_weights(find_weights(directory)), str(directory))
    encoder = families.vit(weights, "vit.")
    encoder["patch"] = fit.fold(encoder["patch"], blocks.grid(encoder, str(directory))[2], [PIXEL_MEAN], [PIXEL_STD])
    tree = {"image_encoder": encoder, "head": blocks.dense(weights, "classifier", None, None)}
    return {name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _dual_encoder(directory: pathlib.Path, layout: str) -> Arrays:
    """What the importers of other programs' weights make of them; patches of several channels as those of one."""
    read = dual.load(directory, layout)
    params = dict(read.params)
    image = params["image_encoder"]
    params["image_encoder"] = image | {"patch": fit.fold(image["patch"], read.channels, *read.normal)}
    return {name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _open_clip(directory: pathlib.Path, model: Any) -> Arrays:
    return _dual_encoder(directory, "open_clip")


READERS: dict[str, Reader] = {"numpy": _numpy, "huggingface": _huggingface, "open_clip": _open_clip}
"""The formats that can be read back."""


def read_arrays(file: pathlib.Path) -> Arrays:
    """The arrays of a .npz file by name; nothing in it is unpickled."""
    with np.load(file, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def record(saved: Saved, form: str, params: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The content of `mmclip.json`; params: all parameters {path: array}."""
    run = run_record(saved.config, saved.tokenizer_model, saved.manifest)
    about = {"format": form, "step": saved.step, "run": run}
    return about | {"sums": with_digests({"params": _sum(params)}, {"run": run})}


def _sum(params: Mapping[str, np.ndarray]) -> int:
    ordered = {path: params[path] for path in sorted(params)}
    return int(bit_sums({"params": jax.device_put(ordered, jax.local_devices()[0])})["params"])


@dataclasses.dataclass(frozen=True)
class Exported(Saved):
    """An exported directory; `form` is one of `READERS`."""

    form: str = ""

    def restore_params(self, abstract: Any) -> Any:
        """As `Saved.restore_params`: the parameters of which the directory was made, to the last bit."""
        with damage_is_named(self.directory):
            folder = pathlib.Path(self.directory)
            found = READERS[self.form](folder, self.config.model)
            if (folder / REST_FILE).exists():
                found |= read_arrays(folder / REST_FILE)
            places = {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
            if missing := sorted(places.keys() - found.keys()):
                raise ValueError(f"it lacks {missing[0]}")
            arrays = {path: found[path].astype(leaf.dtype) for path, leaf in places.items()}
            self._check_shapes(arrays, places)
            if _sum(arrays) != self.sums["params"]:
                raise ValueError("its bits are not those that were exported")
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: jax.device_put(arrays[name(path)], leaf.sharding), abstract
        )


def name(path: Any) -> str:
    """A path of JAX's as "a/b"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def open_exported(directory: epath.Path, step: int | None = None) -> Exported:
    """Opens an exported directory.

    Raises:
      UserError: its format cannot be read back, or another version of this software made it.
      DamagedCheckpointError: what it says of its run cannot be read.
    """
    if files.in_bucket(directory):
        raise UserError(f"{directory}: an exported directory is read from disk; copy it there")
    said = files.read_json(directory / EXPORT_RECORD, _REMEDY, ("format", "step", "run", "sums"))
    form, run = said["format"], said["run"]
    if step not in (None, said["step"]):
        raise UserError(f"{directory} was exported of step {said['step']}, not {step}: leave the step out")
    if form not in READERS:
        raise UserError(
            f"{directory} holds {form!r}, which cannot be read back: give the run itself, or an export to one of "
            f"{', '.join(READERS)}"
        )
    try:
        sums = check_digests(said["sums"], {"run": run})
    except (ValueError, KeyError) as error:
        raise DamagedCheckpointError(f"{directory / EXPORT_RECORD} is damaged ({error}): {_REMEDY}") from error
    if run["schema"] != SCHEMA:
        raise UserError(
            f"{directory} was exported in schema {run['schema']}, and this version of mmclip-jax reads {SCHEMA}: "
            f"{_REMEDY} with this version"
        )
    tokenizer = base64.b64decode(run["tokenizer"])
    config = with_defaults(run["config"])
    return Exported(directory, int(said["step"]), config, tokenizer, run["manifest"], sums, form)
