"""A linear head on the image encoder, its loss and its optimizer: pure functions."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from mmclip_jax import sharding
from mmclip_jax.inference.classifier import pool
from mmclip_jax.models import encoders
from mmclip_jax.models.encoders.base import ImageEncoder
from mmclip_jax.models.mmclip import MMCLIP
from mmclip_jax.state import TrainState
from mmclip_jax.train import optim
from mmclip_jax.train import step as step_lib

_HEAD_SPREAD = 0.01  # of the head's first weights: they differ from seed to seed, and hardly matter


def logits(model: MMCLIP, params: Any, rows: Mapping[str, jax.Array]) -> jax.Array:
    """float32 [B, K] of images uint8 [B,S,S,1], or of features [B,D] that were computed before."""
    if "features" in rows:
        pooled = rows["features"]
    else:
        pooled = pool(model, params, rows["image"])
    head = params["head"]
    return jnp.dot(sharding.shard_rows(pooled), head["kernel"], precision="highest") + head["bias"][None]


def loss_of(task: str, model: MMCLIP, params: Any, step: jax.Array, batch: step_lib.Batch) -> tuple[jax.Array, Any]:
    """Cross-entropy of {"rows": {"image" or "features", "target"}}, the mean over what is known of the global batch."""
    rows = batch["rows"]
    z, target = logits(model, params, rows), rows["target"]
    known = target >= 0
    if task == "multi-class":
        losses = optax.softmax_cross_entropy_with_integer_labels(z, jnp.maximum(target, 0))
    else:
        losses = optax.sigmoid_binary_cross_entropy(z, target.astype(jnp.float32))
    loss = jnp.where(known, losses, 0.0).sum() / jnp.maximum(known.sum(), 1)
    return loss, {"loss": loss, "known_share": known.mean(dtype=jnp.float32)}


def layer_scales(params: Any, encoder: ImageEncoder, decay: float, head: float = 1.0) -> Any:
    """Factors on the learning rate: `head` for the head, 1 for pooling and last norm, then a `decay` a layer.

    Stacked layers [depth, ...] get a vector along their leading axis; patch embedding, positions and class token are
    one layer below the first.
    """

    def scale(path: Any, leaf: jax.Array) -> jax.Array:
        part, _, rest = jax.tree_util.keystr(path, simple=True, separator="/").partition("/")
        if part != "image_encoder":
            return jnp.full((1,) * leaf.ndim, head if part == "head" else 1.0)
        above = encoder.layers + 1 - encoder.layer_numbers(rest)
        if above.ndim:
            return (decay ** jnp.asarray(above, jnp.float32)).reshape(-1, *(1,) * (leaf.ndim - 1))
        return jnp.full((1,) * leaf.ndim, decay ** int(above))

    return jax.tree_util.tree_map_with_path(scale, params)


def make_optimizer(config: ConfigDict, params: Any) -> optax.GradientTransformation:
    """Pre-training's optimizer, each parameter's update times its layer's scale."""
    encoder = encoders.image_encoder(config.model)
    scales = layer_scales(params, encoder, config.finetune.layer_decay, config.finetune.head_rate)
    rescale = optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, scales))
    return optax.chain(optim.make_optimizer(config.optimizer, config.train.steps), rescale)


def make_state(
    encoder: Any, seed: jax.Array, width: int, findings: int, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before step 0; `ema` holds the parameters of the best validation score so far."""
    kernel = _HEAD_SPREAD * jax.random.normal(jax.random.key(seed), (width, findings))
    params = jax.tree.map(jnp.copy, encoder) | {"head": {"kernel": kernel, "bias": jnp.zeros(findings)}}
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.tree.map(jnp.copy, params))


def scores_of(task: str, model: MMCLIP, params: Any, rows: Mapping[str, jax.Array]) -> jax.Array:
    """Logits [B, K], or the classes' probabilities."""
    z = logits(model, params, rows)
    return jax.nn.softmax(z, axis=1) if task == "multi-class" else z
