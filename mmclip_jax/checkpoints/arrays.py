"""Parameters as arrays by their paths, "image_encoder/position", and back as a tree."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mmclip_jax.checkpoints.saved import Saved, abstract_like
from mmclip_jax.models.mmclip import build_model, init_params


def flat_tree(tree: Any) -> dict[str, Any]:
    """{path: leaf} of a tree, in its own order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The tree whose `flat_tree` this is."""
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *folders, last = path.split("/")
        place = tree
        for name in folders:
            place = place.setdefault(name, {})
        place[last] = array
    return tree


def read_params(saved: Saved, shapes: Any = None) -> dict[str, np.ndarray]:
    """{path: array} of all parameters of a checkpoint; the averaged ones where the run kept them.

    shapes: the tree of its shapes and types, where they are not those of the whole model.

    Raises:
      UserError, DamagedCheckpointError: as `Saved.restore_params`.
    """
    if shapes is None:
        model = build_model(saved.config.model)
        shapes = jax.eval_shape(lambda: init_params(model, saved.config.model, 0))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = abstract_like(shapes, jax.tree.map(lambda _: device, shapes))
    return {path: np.asarray(array) for path, array in flat_tree(saved.restore_params(abstract)).items()}
