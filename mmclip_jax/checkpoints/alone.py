"""Parameters without a training state, in the form of a checkpoint: what a finished classifier is kept as."""

from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from mmclip_jax.checkpoints.digests import bit_sums, with_digests
from mmclip_jax.checkpoints.saved import absolute_path
from mmclip_jax.checkpoints.storage import storage_errors_are_named


def save_alone(directory: epath.PathLike, params: Any, run: dict[str, Any]) -> None:
    """Writes the folder of a checkpoint that holds parameters and `run` (of `run_record`), whole or not at all.

    `find_checkpoint` and `Saved.restore_params` read it. A folder that is there is replaced. Every process calls it.

    Raises:
      StorageError: it cannot be written.
    """
    directory = absolute_path(directory)
    sums = {name: int(value) for name, value in jax.device_get(bit_sums({"params": params})).items()}
    words = {"run": run}
    items = {"params": ocp.args.StandardSave(params)} | {
        name: ocp.args.JsonSave(content) for name, content in (words | {"sums": with_digests(sums, words)}).items()
    }
    with (
        storage_errors_are_named(directory, lambda: "the scores of the run are not written yet"),
        ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer,
    ):
        checkpointer.save(directory, args=ocp.args.Composite(**items), force=True)
