"""AdamW with warm-up and cosine decay, as one optax transformation."""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict

# Norm scales, biases, positions, tokens and temperatures are not decayed.
_DECAYED = ("kernel", "embedding")


def learning_rate(config: ConfigDict, steps: int) -> optax.Schedule:
    """Linear warm-up over `warmup_share` of the steps, then a cosine to zero."""
    warmup = round(config.warmup_share * steps)
    return optax.warmup_cosine_decay_schedule(0.0, config.peak_lr, warmup, max(steps, warmup + 1))


def decay_mask(params: Any) -> Any:
    """True for the parameters that weight decay applies to."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) in _DECAYED, params
    )


def make_optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW; config is the `optimizer` part."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            learning_rate(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )
