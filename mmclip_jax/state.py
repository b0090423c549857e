"""The state of training: what a step takes and gives, and what a checkpoint holds. No step is needed to read it."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class SpikeGuard:
    """What decides whether an update is left out: scalars.

    loss float32: mean loss of the updates that were made, over the last `train.step.SPIKE_WINDOW` or so; updates int32:
    how many were made; skipped int32: how many were left out one after another up to now.
    """

    loss: jax.Array
    updates: jax.Array
    skipped: jax.Array


def new_spike_guard() -> SpikeGuard:
    """The guard before step 0."""
    return SpikeGuard(jnp.float32(0), jnp.int32(0), jnp.int32(0))


@flax.struct.dataclass
class TrainState:
    """step int32; params and ema float32 trees (ema None where switched off); opt_state of optax; guard."""

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    guard: SpikeGuard = dataclasses.field(default_factory=new_spike_guard)
