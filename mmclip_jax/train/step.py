"""The train step: losses of one batch, gradients, update, metrics. Pure functions of (state, batch).

A batch is {"paired": rows, "unpaired": rows} as data/batch.py says; a part may be missing. All randomness is a function
of the seed, the step and a row's number within its part (objectives/rows.py). Which losses there are is known to
objectives/registry.py alone.
"""

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from mmclip_jax import objectives, sharding
from mmclip_jax.data.batch import AUGMENTATION
from mmclip_jax.models.inputs import augmented, pixels, standardize
from mmclip_jax.models.mmclip import MAX_LOGIT_SCALE, MMCLIP, PAD_ID, init_params
from mmclip_jax.objectives.base import Context, Encoded, Metrics, Objective, Rows
from mmclip_jax.objectives.rows import row_key_data
from mmclip_jax.state import SpikeGuard, TrainState

Batch = dict[str, Rows]
SPIKE_WINDOW = 100  # updates that the mean loss of the guard spans, and that must be made before it judges


def init_state(model: MMCLIP, config: ConfigDict, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before step 0; jit it with out_shardings to create it sharded."""
    params = init_params(model, config.model, config.seed)
    ema = jax.tree.map(jnp.copy, params) if config.optimizer.ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema)


def images_of(rows: Rows, size: int) -> jax.Array:
    """The images uint8 [B,S,S,1] of rows, augmented here if they come with what was drawn for them."""
    if not all(name in rows for name in AUGMENTATION):
        return rows["image"]
    extent, affine, tone = (rows[name] for name in AUGMENTATION)
    return augmented(rows["image"], extent, affine, tone, size)


def encode_texts(
    context: Context, tokens: jax.Array, prepared: Mapping[str, Rows]
) -> tuple[jax.Array, dict[str, Rows]]:
    """T [B,L,D_t] of the texts int [B,L] of all rows, and {objective: what it prepared}, "features" added.

    "features" are T [b,L,D_t] of the "tokens" int [b,L] that an objective prepared, where it did. One pass of the
    encoder takes all texts: its gradient is summed over the devices once.

    Raises:
      ValueError: prepared texts of another length.
    """
    asked = {name: made["tokens"] for name, made in prepared.items() if "tokens" in made}
    for name, others in asked.items():
        if others.shape[1:] != tokens.shape[1:]:
            raise ValueError(f"objective {name}: prepared texts of {others.shape}, the batch's are {tokens.shape}")
    texts = [tokens, *asked.values()]
    encoded = context.model.apply(context.variables, sharding.join_rows(*texts), method="encode_text")
    features, *more = sharding.split_rows(encoded, *(len(each) for each in texts))
    added = {name: {"features": each} for name, each in zip(asked, more, strict=True)}
    return features, {name: made | added.get(name, {}) for name, made in prepared.items()}


def forward(context: Context, active: Sequence[Objective], parts: Batch) -> dict[str, Rows]:
    """The work of single rows: both encoders, then what each objective makes of them: {objective: its rows}."""
    first = next(iter(parts.values()))
    rows = {name: sharding.join_rows(*(part[name] for part in parts.values())) for name in first}
    model, variables = context.model, context.variables
    images = pixels(images_of(rows, context.config.model.image_size))
    prepared = {objective.name: objective.prepare(context, parts) for objective in active}
    patches, image_embed = model.apply(variables, standardize(images), method="encode_image")
    features, prepared = encode_texts(context, rows["tokens"], prepared)
    text_embed = model.apply(variables, features, rows["tokens"] != PAD_ID, method="embed_text")
    encoded = Encoded(rows, parts, images, patches, image_embed, features, text_embed, prepared)
    # Those of all rows first: gradients are summed in the order of use.
    ordered = sorted(active, key=lambda objective: bool(objective.part))
    return {objective.name: objective.rows(context, encoded) for objective in ordered}


def compute_loss(
    model: MMCLIP, config: ConfigDict, mask_id: int, params: Any, step: jax.Array, batch: Batch
) -> tuple[jax.Array, Metrics]:
    """The total loss of a global batch and its metrics (docs/method.md, "Total").

    With optimizer.accumulate = n the per-row work runs in n chunks that are recomputed in the backward pass: memory
    falls, losses between rows stay over the whole batch and every gradient is the same.
    """
    context = Context(model, {"params": params}, config, step, mask_id)
    active = [each for each in objectives.active(config) if not each.part or each.part in batch]
    needed = {"image", "tokens", *AUGMENTATION}.union(*(objective.fields for objective in active))
    parts = {
        part: {name: values for name, values in rows.items() if name in needed}
        | {"key": row_key_data(config.seed, step, part, len(rows["tokens"]))}
        for part, rows in batch.items()
    }
    if config.optimizer.accumulate == 1:
        out = forward(context, active, parts)
    else:
        chunked = jax.tree.map(lambda x: sharding.chunk_rows(x, config.optimizer.accumulate), parts)
        one = jax.checkpoint(functools.partial(forward, context, active))
        out = jax.tree.map(sharding.unchunk_rows, jax.lax.map(one, chunked))
    terms: list[jax.Array] = []
    metrics: Metrics = {}
    for objective in active:
        loss, more = objective.loss(context, out[objective.name])
        terms.append(objective.weight(config) * loss)
        metrics |= {f"{objective.name}/{name}": value for name, value in (more | {"loss": loss}).items()}
    total = functools.reduce(operator.add, terms)
    scale, _ = model.apply(context.variables, method="scale_and_bias")
    return total, metrics | {"loss": total, "logit_scale": scale}


def loss_gradient_norms(
    model: MMCLIP, config: ConfigDict, mask_id: int, params: Any, step: jax.Array, batch: Batch
) -> Metrics:
    """{"gradient_norm/NAME": global norm of the gradient of each weighted loss of the total}, to weigh them by.

    One backward pass for every loss, one after another: some times the work of a step.
    """
    active = objectives.active(config)

    def losses(params: Any) -> jax.Array:
        metrics = compute_loss(model, config, mask_id, params, step, batch)[1]
        return jnp.stack([each.weight(config) * metrics.get(f"{each.name}/loss", jnp.float32(0)) for each in active])

    if config.mesh.shard_optimizer:
        params = sharding.gather_over_data(params)
    backward = jax.vjp(losses, params)[1]
    norms = jax.lax.map(lambda chosen: optax.tree.norm(backward(chosen)[0]), jnp.eye(len(active)))
    return {f"gradient_norm/{each.name}": norms[i] for i, each in enumerate(active)}


def project_parameters(params: Any) -> Any:
    """Keeps the logit scale at most 100: a projection after the update, so that its gradient never dies."""
    return params | {"log_logit_scale": jnp.minimum(params["log_logit_scale"], math.log(MAX_LOGIT_SCALE))}


def make_train_step(
    model: MMCLIP, config: ConfigDict, optimizer: optax.GradientTransformation, schedule: optax.Schedule, mask_id: int
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The pure function (state, batch) -> (state, metrics) of one pre-training step; the caller jits it."""

    def loss_of(params: Any, step: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        return compute_loss(model, config, mask_id, params, step, batch)

    return make_update(
        loss_of,
        optimizer,
        schedule,
        config.optimizer.ema,
        project_parameters,
        float(config.train.spike),
        config.mesh.shard_optimizer,
    )


def make_update(
    loss_of: Callable[[Any, jax.Array, Batch], tuple[jax.Array, Metrics]],
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema: float = 0.0,
    project: Callable[[Any], Any] = lambda params: params,
    spike: float = 0.0,
    shard_optimizer: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The pure function (state, batch) -> (state, metrics) of one optimizer step on a loss; the caller jits it.

    A step whose loss or gradient is not finite leaves parameters, their average and the optimizer as they were, and
    says so in metrics["finite"] = 0. So does one whose loss is more than `spike` times the mean of the last
    SPIKE_WINDOW updates, where that is not 0: metrics["skipped"] counts those left out one after another.

    Args:
      loss_of: (params, step, batch) -> (loss, metrics).
      optimizer: of optax.
      schedule: the learning rate, for the metrics.
      ema: decay of the average in `state.ema`; 0 leaves `state.ema` as it is.
      project: applied to the parameters after the update.
      spike: see above; 0 takes every finite loss.
      shard_optimizer: the state is cut along the mesh axis "data". The parameters are gathered once, for forward and
        backward pass; gradients are summed and scattered, and each device updates its part of the state.
    """

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        params = sharding.gather_over_data(state.params) if shard_optimizer else state.params
        (loss, metrics), gradients = gradient(params, state.step, batch)
        if shard_optimizer:
            gradients = sharding.scatter_over_data(gradients)
        with jax.named_scope("update_state"):  # mmclip plan counts it by this name
            norm = optax.tree.norm(gradients)
            finite = jnp.isfinite(loss) & jnp.isfinite(norm)
            # A finite norm is enough: no square of a gradient overflows, so Adam's moments and updates are finite too.
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            good = finite
            guard = state.guard
            if spike:
                good = good & ((guard.updates < SPIKE_WINDOW) | (loss <= spike * guard.loss))
            params = project(optax.apply_updates(state.params, updates))
            average = state.ema
            if ema:
                # A short run would keep its random start for ever: the decay grows with the step, as TensorFlow's.
                decay = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))
                average = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, average, params)
            count = guard.updates + 1
            mean = guard.loss + (loss - guard.loss) / jnp.minimum(count, SPIKE_WINDOW).astype(jnp.float32)
            kept = (state.params, state.opt_state, state.ema, guard.loss, guard.updates)
            params, opt_state, average, mean, count = jax.tree.map(
                lambda new, old: jnp.where(good, new, old), (params, opt_state, average, mean, count), kept
            )
        skipped = jnp.where(good, 0, guard.skipped + 1)
        metrics |= {
            "gradient_norm": norm,
            "learning_rate": schedule(state.step),
            "finite": finite.astype(jnp.float32),
            "skipped": skipped.astype(jnp.float32),
        }
        replaced = [(rows["damaged"] >= 0).sum() for rows in batch.values() if "damaged" in rows]
        if replaced:
            metrics["replaced_rows"] = sum(replaced[1:], replaced[0]).astype(jnp.float32)
        return TrainState(state.step + 1, params, opt_state, average, SpikeGuard(mean, count, skipped)), metrics

    return update
