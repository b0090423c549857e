"""The train step: losses of one batch, gradients, update, metrics. Pure functions of (state, batch).

A batch is {"paired": rows, "unpaired": rows}; a part may be missing. All randomness is a function of the seed, the step
and a row's number within its part, drawn before the parts are joined, so that it does not depend on the device count.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from mmclip_jax import objectives, sharding
from mmclip_jax.models import masking
from mmclip_jax.models.inputs import patchify, pixels, standardize
from mmclip_jax.models.mmclip import MAX_LOGIT_SCALE, MMCLIP, PAD_ID, init_params

Batch = dict[str, dict[str, jax.Array]]
PART_NUMBER = {"paired": 0, "unpaired": 1}
FIELDS = ("image", "tokens", "entity", "affirmed", "text_id", "stated", "source")  # of a row that the losses take
MASK_AT = ("features", "input")
# Streams of a row's key.
_PATCHES, _TOKENS, _LOCAL = 0, 1, 2
SPIKE_WINDOW = 100  # updates that the mean loss of the guard spans, and that must be made before it judges


@flax.struct.dataclass
class Guard:
    """What decides whether an update is left out: scalars.

    loss float32: mean loss of the updates that were made, over the last SPIKE_WINDOW or so; updates int32: how many
    were made; skipped int32: how many were left out one after another up to now.
    """

    loss: jax.Array
    updates: jax.Array
    skipped: jax.Array


def new_guard() -> Guard:
    """The guard before step 0."""
    return Guard(jnp.float32(0), jnp.int32(0), jnp.int32(0))


@flax.struct.dataclass
class TrainState:
    """step int32; params and ema float32 trees (ema None where switched off); opt_state of optax; guard."""

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    guard: Guard = dataclasses.field(default_factory=new_guard)


def init_state(model: MMCLIP, config: ConfigDict, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before step 0; jit it with out_shardings to create it sharded."""
    params = init_params(model, config.model, config.seed)
    ema = jax.tree.map(jnp.copy, params) if config.optimizer.ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema)


def row_key_data(seed: int, step: jax.Array, part: str, rows: int) -> jax.Array:
    """Key data uint32 [rows,2], one key a row: a function of seed, step, part and row number only."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), PART_NUMBER[part])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
    return sharding.shard_rows(jax.random.key_data(keys))


def _stream(key_data: jax.Array, stream: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(jax.random.wrap_key_data(key_data), stream)


def masked_patches(
    response: jax.Array, key_data: jax.Array, config: ConfigDict, use_random: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """AttMIM's (masked, visible) patches; where the scalar bool `use_random` holds, those of the strategy "random".

    config is the `objective.attmim` part. Both selections have the same static shapes, so the switch is a select.
    """
    keys = _stream(key_data, _PATCHES)
    options = {"ratio": config.mask_ratio, "hint": config.hint}
    chosen = masking.select_masked_patches(response, keys, strategy=config.strategy, **options)
    if config.strategy == "random":
        return chosen
    at_random = masking.select_masked_patches(response, keys, strategy="random", **options)
    return tuple(jnp.where(use_random, r, c) for r, c in zip(at_random, chosen, strict=True))  # type: ignore[return-value]


def _spread_visible(features: jax.Array, masked: jax.Array, patches: int) -> jax.Array:
    """Features of the visible patches [B,N-K,D] -> [B,N,D] in image order; hidden positions hold some visible one."""
    hidden = masking.hidden_patches(masked, patches)
    place = jnp.maximum(jnp.cumsum(~hidden, axis=1) - 1, 0)
    return jnp.take_along_axis(features, place[:, :, None], axis=1)


def attmim_rows(
    model: MMCLIP,
    variables: Any,
    images: jax.Array,
    patches: jax.Array,
    features: jax.Array,
    rows: dict[str, jax.Array],
    config: ConfigDict,
    use_random: jax.Array,
) -> dict[str, jax.Array]:
    """AttMIM of some rows: {"error" [B], "masked" [B,K], "predicted" normalised pixels [B,K,P*P], "response" [B,N]}.

    images: in [0, 1], [B,S,S,1]; patches: V [B,N,D]; features: T [B,L,D_t]; rows: "tokens", "affirmed" and "key";
    config: the `objective` part.
    """
    attmim = config.attmim
    valid = rows["tokens"] != PAD_ID
    weights = masking.token_weights(rows["affirmed"], valid)
    response = jax.lax.stop_gradient(
        model.apply(variables, patches, features, weights, attmim.response, attmim.temperature, method="response")
    )
    masked, visible = masked_patches(response, rows["key"], attmim, use_random)
    if attmim.mask_at == "input":
        seen, _ = model.apply(variables, standardize(images), visible, method="encode_image")
        patches = _spread_visible(seen, masked, patches.shape[1])
    predicted = model.apply(variables, patches, masked, features, valid, method="reconstruct")
    error = objectives.reconstruction_error(predicted, patchify(images, model.patch_size), masked)
    return {"error": error, "masked": masked, "predicted": predicted, "response": response}


def entmlm_rows(
    model: MMCLIP, variables: Any, patches: jax.Array, rows: dict[str, jax.Array], config: ConfigDict, mask_id: int
) -> dict[str, jax.Array]:
    """EntMLM of paired rows: sums a row [B] of loss, correct, count, entity tokens among the masked, dropped entities.

    patches: V [B,N,D]; config: the `objective` part.
    """
    entmlm = config.entmlm
    tokens, valid = rows["tokens"], rows["tokens"] != PAD_ID
    positions, weights, dropped = masking.select_masked_tokens(
        rows["entity"],
        valid,
        _stream(rows["key"], _TOKENS),
        probability=entmlm.probability,
        min_share=entmlm.min_share,
        slots=entmlm.slots,
        strategy=entmlm.strategy,
    )
    masked_text = masking.mask_tokens(tokens, positions, weights, mask_id)
    features = model.apply(variables, masked_text, method="encode_text")
    logits = model.apply(variables, features, valid, patches, positions, method="restore")
    sums = objectives.restoration_sums(logits, tokens, positions, weights)
    in_entity = jnp.take_along_axis(rows["entity"], positions, axis=1) > 0
    return sums | {
        "entity": (weights * in_entity).sum(axis=1),
        "valid": valid.sum(axis=1).astype(jnp.float32),
        "dropped": dropped.astype(jnp.float32),
    }


def local_rows(
    model: MMCLIP,
    variables: Any,
    patches: jax.Array,
    features: jax.Array,
    rows: dict[str, jax.Array],
    count: int,
) -> dict[str, jax.Array]:
    """For up to `count` affirmed entity tokens a row, drawn at random, what the local loss compares.

    Returns {"token" [B,G,E], "patches" [B,N,E], both L2-normalised, "id" int [B,G] (the tokens; -1: none there),
    "affirmed" int [B,L] (the ids of all affirmed entity tokens, elsewhere -1)}.
    """
    affirmed = rows["affirmed"] & (rows["tokens"] != PAD_ID)
    draw = jax.vmap(lambda key: jax.random.uniform(key, affirmed.shape[1:]))(_stream(rows["key"], _LOCAL))
    affirmed = jnp.where(affirmed, rows["tokens"], -1)
    place = jnp.argsort(jnp.where(affirmed >= 0, draw, -1.0), axis=1, descending=True)[:, :count]
    token = jnp.take_along_axis(features, place[:, :, None], axis=1)
    return {
        "token": model.apply(variables, token, method="project_tokens"),
        "patches": model.apply(variables, patches, method="project_patches"),
        "id": jnp.take_along_axis(affirmed, place, axis=1),
        "affirmed": affirmed,
    }


def _forward_chunk(
    model: MMCLIP, config: ConfigDict, mask_id: int, variables: Any, batch: Batch, use_random: jax.Array
) -> dict[str, jax.Array]:
    """Everything of the step that concerns single rows: embeddings [B,E] and per-row sums of the masked objectives."""
    objective = config.objective
    sizes = [len(rows["tokens"]) for rows in batch.values()]
    rows = {name: sharding.join_rows(*(part[name] for part in batch.values())) for name in next(iter(batch.values()))}
    images = pixels(rows["image"])
    patches, image_embed = model.apply(variables, standardize(images), method="encode_image")
    features = model.apply(variables, rows["tokens"], method="encode_text")
    text_embed = model.apply(variables, features, rows["tokens"] != PAD_ID, method="embed_text")
    out = {"image_embed": image_embed, "text_embed": text_embed}
    out |= {name: rows[name] for name in ("text_id", "stated", "source")}
    if objective.attmim.weight:
        out["attmim"] = attmim_rows(model, variables, images, patches, features, rows, objective, use_random)["error"]
    if objective.local.weight:
        local = local_rows(model, variables, patches, features, rows, objective.local.tokens)
        out |= {f"local_{name}": value for name, value in local.items()}
    if objective.entmlm.weight and "paired" in batch:
        paired_patches = sharding.split_rows(patches, *sizes)[0]
        sums = entmlm_rows(model, variables, paired_patches, batch["paired"], objective, mask_id)
        out |= {f"entmlm_{name}": value for name, value in sums.items()}
    return out


def compute_loss(
    model: MMCLIP, config: ConfigDict, mask_id: int, params: Any, step: jax.Array, batch: Batch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The total loss of a global batch and its metrics (docs/method.md, "Total").

    With optimizer.accumulate = n the per-row work runs in n chunks that are recomputed in the backward pass: memory
    falls, the contrastive loss stays over the whole batch and every gradient is the same.
    """
    objective = config.objective
    variables = {"params": params}
    parts = {
        part: {name: rows[name] for name in FIELDS}
        | {"key": row_key_data(config.seed, step, part, len(rows["tokens"]))}
        for part, rows in batch.items()
    }
    use_random = step < round(objective.attmim.random_share * config.train.steps)

    def forward(chunk: Batch) -> dict[str, jax.Array]:
        return _forward_chunk(model, config, mask_id, variables, chunk, use_random)

    if config.optimizer.accumulate == 1:
        out = forward(parts)
    else:
        chunked = jax.tree.map(lambda x: sharding.chunk_rows(x, config.optimizer.accumulate), parts)
        out = jax.tree.map(sharding.unchunk_rows, jax.lax.map(jax.checkpoint(forward), chunked))

    scale, bias = model.apply(variables, method="scale_and_bias")
    contrastive = objective.contrastive
    total, terms = objectives.contrastive_loss(
        out["image_embed"],
        out["text_embed"],
        scale,
        out["text_id"],
        loss=contrastive.loss,
        targets=contrastive.targets,
        stated=out["stated"],
        source=out["source"],
        across_sources=contrastive.across_sources,
        logit_bias=bias if contrastive.loss == "sigmoid" else 0.0,
        chunk=contrastive.chunk,
    )
    metrics = {"contrastive/loss": total} | {f"contrastive/{name}": value for name, value in terms.items()}
    if "attmim" in out:
        metrics["attmim/loss"] = out["attmim"].mean()
        patches = (config.model.image_size // config.model.patch_size) ** 2
        metrics["attmim/masked_share"] = jnp.float32(
            masking.masked_count(patches, objective.attmim.mask_ratio) / patches
        )
        total = total + objective.attmim.weight * metrics["attmim/loss"]
    if "entmlm_loss" in out:
        sums = {
            name: out[f"entmlm_{name}"].sum() for name in ("loss", "correct", "count", "entity", "valid", "dropped")
        }
        count = jnp.maximum(sums["count"], 1.0)
        metrics |= {
            "entmlm/loss": sums["loss"] / count,
            "entmlm/accuracy": sums["correct"] / count,
            "entmlm/masked_share": sums["count"] / jnp.maximum(sums["valid"], 1.0),
            "entmlm/entity_share": sums["entity"] / count,
            "entmlm/dropped_entities": sums["dropped"],
        }
        total = total + objective.entmlm.weight * metrics["entmlm/loss"]
    if "local_token" in out:
        local, terms = objectives.local_loss(
            out["local_patches"],
            out["local_token"],
            out["local_id"],
            out["local_affirmed"],
            attention_temperature=objective.attmim.temperature,
            temperature=objective.local.temperature,
        )
        metrics |= {f"local/{name}": value for name, value in terms.items()} | {"local/loss": local}
        total = total + objective.local.weight * local
    return total, metrics | {"loss": total, "logit_scale": scale, "attmim/random": use_random.astype(jnp.float32)}


def loss_gradient_norms(
    model: MMCLIP, config: ConfigDict, mask_id: int, params: Any, step: jax.Array, batch: Batch
) -> dict[str, jax.Array]:
    """{"gradient_norm/NAME": global norm of the gradient of each weighted loss of the total}, to weigh them by.

    One backward pass for every loss, one after another: some times the work of a step.
    """
    weights = {name: config.objective[name].weight for name in ("attmim", "entmlm", "local")}
    names = ["contrastive", *(name for name, weight in weights.items() if weight)]

    def losses(params: Any) -> jax.Array:
        metrics = compute_loss(model, config, mask_id, params, step, batch)[1]
        return jnp.stack([weights.get(name, 1.0) * metrics.get(f"{name}/loss", jnp.float32(0)) for name in names])

    backward = jax.vjp(losses, params)[1]
    norms = jax.lax.map(lambda chosen: optax.tree.norm(backward(chosen)[0]), jnp.eye(len(names)))
    return {f"gradient_norm/{name}": norms[i] for i, name in enumerate(names)}


def project_parameters(params: Any) -> Any:
    """Keeps the logit scale at most 100: a projection after the update, so that its gradient never dies."""
    return params | {"log_logit_scale": jnp.minimum(params["log_logit_scale"], math.log(MAX_LOGIT_SCALE))}


def make_train_step(
    model: MMCLIP, config: ConfigDict, optimizer: optax.GradientTransformation, schedule: optax.Schedule, mask_id: int
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The pure function (state, batch) -> (state, metrics) of one pre-training step; the caller jits it."""

    def loss_of(params: Any, step: jax.Array, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        return compute_loss(model, config, mask_id, params, step, batch)

    return make_update(
        loss_of, optimizer, schedule, config.optimizer.ema, project_parameters, float(config.train.spike)
    )


def make_update(
    loss_of: Callable[[Any, jax.Array, Batch], tuple[jax.Array, dict[str, jax.Array]]],
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema: float = 0.0,
    project: Callable[[Any], Any] = lambda params: params,
    spike: float = 0.0,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
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
    """

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, metrics), gradients = gradient(state.params, state.step, batch)
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        finite = finite & jnp.isfinite(optax.tree.norm(updates))
        good = finite
        guard = state.guard
        if spike:
            good = good & ((guard.updates < SPIKE_WINDOW) | (loss <= spike * guard.loss))
        params = project(optax.apply_updates(state.params, updates))
        average = state.ema
        if ema:
            # A short run would keep its random start for ever: the decay grows with the step, as in TensorFlow's EMA.
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
        return TrainState(state.step + 1, params, opt_state, average, Guard(mean, count, skipped)), metrics

    return update
