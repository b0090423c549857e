"""The losses of MMCLIP: pure functions that return (loss, metrics). docs/method.md gives every equation."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mmclip_jax import sharding

Metrics = dict[str, jax.Array]
CONTRASTIVE_LOSSES = ("softmax", "sigmoid")
CONTRASTIVE_TARGETS = ("text", "kinds")
_EXCLUDED = -1e30
# A matrix of logits [B/devices, B] of more bytes than this on a device is computed in chunks, each of at most as many.
LOGITS_BYTES = 128 * 2**20


def _same_text(row_id: jax.Array, column_id: jax.Array) -> jax.Array:
    """bool [R,C]: ids [R,G] and [C,G] agree in any column."""
    return (row_id[:, None, :] == column_id[None, :, :]).any(axis=-1)


def _kind_agreement(row_stated: jax.Array, column_stated: jax.Array) -> jax.Array:
    """float32 [R,C] in [0,1]: kinds stated alike over kinds that either states; 0 where a polarity conflicts."""
    rows, columns = (
        jnp.concatenate([stated > 0, stated < 0], axis=-1).astype(jnp.float32) for stated in (row_stated, column_stated)
    )
    opposite = jnp.concatenate([column_stated < 0, column_stated > 0], axis=-1).astype(jnp.float32)
    alike = jnp.einsum("rk,ck->rc", rows, columns, precision="highest")
    conflicts = jnp.einsum("rk,ck->rc", rows, opposite, precision="highest")
    either = rows.sum(axis=1)[:, None] + columns.sum(axis=1)[None, :] - alike
    return jnp.where(conflicts > 0, 0.0, alike / jnp.maximum(either, 1.0))


def contrastive_loss(
    image_embed: jax.Array,
    text_embed: jax.Array,
    logit_scale: jax.Array | float,
    text_id: jax.Array,
    *,
    loss: str = "softmax",
    targets: str = "text",
    stated: jax.Array | None = None,
    source: jax.Array | None = None,
    across_sources: bool = True,
    logit_bias: jax.Array | float = 0.0,
    chunk: int = 0,
) -> tuple[jax.Array, Metrics]:
    """Contrasts images and texts over the global batch; rows with the same text are positives of each other.

    "softmax": the mean of image-to-text and text-to-image cross-entropy with the target row uniform over all positives
    (the CLIP loss when all texts differ). "sigmoid": for every pair a binary cross-entropy, summed over a row's
    columns, averaged over rows (SigLIP with several positives).

    Args:
      image_embed: [B,E] and text_embed: [B,E], L2-normalised by the caller; not normalised again.
      logit_scale: the multiplier s (not its logarithm).
      text_id: int [B] or [B,G]; rows match if any column is equal.
      targets: "text", or "kinds": targets in proportion to the agreement of the stated kinds (needs `stated`).
      stated: int [B,K] of +1 (stated present), -1 (stated absent), 0.
      source: int [B], needed when `across_sources` is False, which leaves out pairs of different sources.
      logit_bias: added to every logit; of use to "sigmoid" only.
      chunk: at most so many columns of logits are held at once, and embeddings travel round a ring of devices instead
        of being gathered (`_ring`): the same numbers in less memory. 0: where the logits of a device would take more
        than LOGITS_BYTES; −1: never.

    Returns:
      (loss float32, metrics: image_to_text, text_to_image (their losses), accuracy (share of rows whose best match is
      a positive, mean of both directions), positives (mean positives a row)). docs/method.md, "Contrastive".

    Raises:
      ValueError: an unknown option, or an argument that an option needs is missing.
    """
    if loss not in CONTRASTIVE_LOSSES:
        raise ValueError(f"contrastive.loss {loss!r} is not one of {', '.join(CONTRASTIVE_LOSSES)}")
    if targets not in CONTRASTIVE_TARGETS:
        raise ValueError(f"contrastive.targets {targets!r} is not one of {', '.join(CONTRASTIVE_TARGETS)}")
    text_id = text_id[:, None] if text_id.ndim == 1 else text_id
    chunk = chunk_of(chunk, len(text_id), sharding.row_shards())
    if chunk > 0:
        rows = {"image": image_embed.astype(jnp.float32), "text": text_embed.astype(jnp.float32), "text_id": text_id}
        if targets == "kinds":
            if stated is None:
                raise ValueError('contrastive.targets "kinds" needs `stated`')
            rows["stated"] = stated
        if not across_sources:
            if source is None:
                raise ValueError("across_sources=False needs `source`")
            rows["source"] = source
        sums = _ring(rows, jnp.float32(logit_scale), jnp.float32(logit_bias), loss, chunk)
        image_to_text, text_to_image = sums["image_loss"].mean(), sums["text_loss"].mean()
        return 0.5 * (image_to_text + text_to_image), {
            "image_to_text": image_to_text,
            "text_to_image": text_to_image,
            "accuracy": 0.5 * (sums["image_correct"].mean() + sums["text_correct"].mean()),
            "positives": sums["positives"].mean(),
        }
    # Rows of the logits stay on their device; the columns are gathered: [B,E] embeddings and ids, nothing larger.
    positive = _same_text(text_id, sharding.replicate(text_id))
    strength = positive.astype(jnp.float32)
    if targets == "kinds":
        if stated is None:
            raise ValueError('contrastive.targets "kinds" needs `stated`')
        strength = jnp.maximum(strength, _kind_agreement(stated, sharding.replicate(stated)))
    included = jnp.ones_like(positive)
    if not across_sources:
        if source is None:
            raise ValueError("across_sources=False needs `source`")
        included = source[:, None] == sharding.replicate(source)[None, :]
    strength = jnp.where(included, strength, 0.0)
    target = strength / jnp.maximum(strength.sum(axis=1, keepdims=True), 1e-12)

    def direction(rows: jax.Array, columns: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = sharding.shard_rows(rows.astype(jnp.float32))
        columns = sharding.replicate(columns.astype(jnp.float32))
        logits = logit_scale * jnp.einsum("re,ce->rc", rows, columns, precision="highest") + logit_bias
        if loss == "softmax":
            log_probability = jax.nn.log_softmax(jnp.where(included, logits, _EXCLUDED), axis=1)
            row_loss = -(target * jnp.where(included, log_probability, 0.0)).sum(axis=1)
        else:
            pair = strength * jax.nn.log_sigmoid(logits) + (1.0 - strength) * jax.nn.log_sigmoid(-logits)
            row_loss = -jnp.where(included, pair, 0.0).sum(axis=1)
        best = jnp.argmax(jnp.where(included, logits, _EXCLUDED), axis=1)
        correct = jnp.take_along_axis(positive & included, best[:, None], axis=1)[:, 0]
        return row_loss.mean(), correct.mean(dtype=jnp.float32)

    image_to_text, image_accuracy = direction(image_embed, text_embed)
    text_to_image, text_accuracy = direction(text_embed, image_embed)
    return 0.5 * (image_to_text + text_to_image), {
        "image_to_text": image_to_text,
        "text_to_image": text_to_image,
        "accuracy": 0.5 * (image_accuracy + text_accuracy),
        "positives": (positive & included).sum(axis=1).mean(dtype=jnp.float32),
    }


def chunk_of(setting: int, rows: int, devices: int) -> int:
    """Columns a chunk of the contrastive loss of `rows` rows; −1 where there are no chunks.

    setting: `objective.contrastive.chunk`: so many, −1 none, 0 chunks where the logits would take too much memory.
    """
    own = rows // devices
    if setting or 4 * own * rows <= LOGITS_BYTES:
        return setting or -1
    return max(LOGITS_BYTES // (4 * own), 1)


def columns_in_chunks(own: int, chunk: int) -> int:
    """The `own` columns of a device, filled up to whole chunks."""
    size = min(chunk, own)
    return -(-own // size) * size if chunk > 0 else own


def _ring(rows: Metrics, scale: jax.Array, bias: jax.Array, loss: str, chunk: int) -> Metrics:
    """What `contrastive_loss` needs of every row [B], with no more than [B/devices, chunk] logits in memory.

    Each device keeps its rows. Its columns start as its own rows too and go on to the next device until they have been
    everywhere; softmax sums are kept relative to a running maximum. The backward pass computes the logits again, from
    the columns, which are kept: [B,E] a device, as much as the gather of the unchunked loss holds.

    rows: "image" and "text" float32 [B,E], "text_id" [B,G], and if they count, "stated" [B,K] and "source" [B].
    Returns {"image_loss", "text_loss", "image_correct", "text_correct", "positives"}: each float32 [B].
    """
    mesh = jax.sharding.get_abstract_mesh()
    devices = sharding.row_shards()
    names = sharding.ROW_AXES

    def step(own: Metrics, scale: jax.Array, bias: jax.Array, carry: Any, columns: Metrics) -> Any:
        """Takes one chunk of columns into the sums of a device's own rows."""
        included = jnp.broadcast_to(columns["valid"][None, :], (len(own["image"]), len(columns["valid"])))
        if "source" in own:
            included = included & (own["source"][:, None] == columns["source"][None, :])
        positive = _same_text(own["text_id"], columns["text_id"]) & included
        strength = positive.astype(jnp.float32)
        if "stated" in own:
            agreement = _kind_agreement(own["stated"], columns["stated"])
            strength = jnp.where(included, jnp.maximum(strength, agreement), 0.0)
        out = {
            "positives": carry["positives"] + positive.sum(axis=1).astype(jnp.float32),
            "strength": carry["strength"] + strength.sum(axis=1),
        }
        for mine, others in (("image", "text"), ("text", "image")):
            logits = scale * jnp.einsum("re,ce->rc", own[mine], columns[others], precision="highest") + bias
            seen = jax.lax.stop_gradient(jnp.where(included, logits, _EXCLUDED))
            best = jnp.argmax(seen, axis=1)[:, None]
            value = jnp.take_along_axis(seen, best, axis=1)[:, 0]
            number = jnp.take_along_axis(jnp.broadcast_to(columns["number"][None, :], seen.shape), best, axis=1)[:, 0]
            hit = jnp.take_along_axis(positive, best, axis=1)[:, 0].astype(jnp.float32)
            highest, first = carry[f"{mine}_best"], carry[f"{mine}_number"]
            # As argmax over all columns: the highest, and of equal ones the first.
            better = (value > highest) | ((value == highest) & (number < first))
            highest_now = jnp.maximum(value, highest)
            out |= {
                f"{mine}_best": highest_now,
                f"{mine}_number": jnp.where(better, number, first),
                f"{mine}_correct": jnp.where(better, hit, carry[f"{mine}_correct"]),
            }
            if loss == "softmax":
                shifted = jnp.where(included, logits - highest_now[:, None], _EXCLUDED)
                out[f"{mine}_sum"] = carry[f"{mine}_sum"] * jnp.exp(highest - highest_now) + jnp.exp(shifted).sum(
                    axis=1
                )
                out[f"{mine}_wanted"] = carry[f"{mine}_wanted"] + (strength * logits).sum(axis=1)
            else:
                pair = strength * jax.nn.log_sigmoid(logits) + (1.0 - strength) * jax.nn.log_sigmoid(-logits)
                out[f"{mine}_sum"] = carry[f"{mine}_sum"] - jnp.where(included, pair, 0.0).sum(axis=1)
        return out

    def whole(own: Metrics, scale: jax.Array, bias: jax.Array) -> Metrics:
        count = len(own["image"])
        held = columns_in_chunks(count, chunk)

        def pad(x: jax.Array) -> jax.Array:
            return jnp.pad(x, [(0, held - count)] + [(0, 0)] * (x.ndim - 1))

        def in_chunks(x: jax.Array) -> jax.Array:
            return x.reshape(-1, min(chunk, count), *x.shape[1:])

        here = jax.lax.axis_index(names) if devices > 1 else 0
        columns = own | {"number": here * count + jnp.arange(count), "valid": jnp.ones(count, bool)}
        columns = jax.tree.map(pad, columns)
        zero = jnp.zeros_like(own["image"][:, 0])
        start = {"positives": zero, "strength": zero}
        for mine in ("image", "text"):
            start |= {f"{mine}_{name}": zero for name in ("sum", "correct")}
            start |= {f"{mine}_best": zero + _EXCLUDED, f"{mine}_number": zero.astype(jnp.int32)}
            start |= {f"{mine}_wanted": zero} if loss == "softmax" else {}
        body = jax.checkpoint(lambda carry, chunk: (step(own, scale, bias, carry, chunk), None))

        def visit(state: Any, _: None) -> Any:
            sums, columns = state
            sums, _ = jax.lax.scan(body, sums, jax.tree.map(in_chunks, columns))
            if devices > 1:
                onward = [(device, (device + 1) % devices) for device in range(devices)]
                columns = jax.tree.map(lambda x: jax.lax.ppermute(x, names, onward), columns)
            return (sums, columns), None

        (sums, _), _ = jax.lax.scan(visit, (start, columns), None, length=devices)
        out = {name: sums[name] for name in ("positives", "image_correct", "text_correct")}
        for mine in ("image", "text"):
            if loss == "softmax":
                log_sum = sums[f"{mine}_best"] + jnp.log(sums[f"{mine}_sum"])
                out[f"{mine}_loss"] = log_sum - sums[f"{mine}_wanted"] / jnp.maximum(sums["strength"], 1e-12)
            else:
                out[f"{mine}_loss"] = sums[f"{mine}_sum"]
        return out

    if devices == 1:
        return whole(rows, scale, bias)
    spread, same = PartitionSpec(names), PartitionSpec()
    rows = jax.tree.map(sharding.shard_rows, rows)
    around = jax.shard_map(whole, mesh=mesh, in_specs=(spread, same, same), out_specs=spread, check_vma=False)
    return around(rows, scale, bias)


def local_loss(
    patches: jax.Array,
    token: jax.Array,
    token_id: jax.Array,
    affirmed: jax.Array,
    *,
    attention_temperature: float,
    temperature: float,
) -> tuple[jax.Array, Metrics]:
    """Contrasts affirmed entity tokens with whole images through the patches that they attend to.

    The likeness of token c and image b is what the token sees there, sum_n a_n <v_bn, u_c> with
    a = softmax_n(<v_bn, u_c> / attention_temperature). It is high only where some patch answers to the token. Attention
    that looked at the token's own image alone would give the token away, whatever the image shows.

    Args:
      patches: [B,N,E] and token: [B,G,E], L2-normalised by the caller.
      token_id: int [B,G], the drawn tokens of each row, -1 where there is none.
      affirmed: int [B,L], ids of every affirmed entity token of each row, elsewhere -1; image b is a positive of token
        c if row b affirms the token c anywhere, a negative otherwise.

    Returns:
      (loss float32: the mean of image-to-token and token-to-image cross-entropy, metrics: accuracy of the former).
    """
    ids = sharding.replicate(token_id).reshape(-1)
    tokens = sharding.replicate(token).reshape(len(ids), -1)
    v_BxNxE, u_CxE = jax.lax.optimization_barrier((sharding.shard_rows(patches), tokens))
    similarity = jnp.einsum("bne,ce->bcn", v_BxNxE, u_CxE, precision="highest")
    attention = jax.nn.softmax(similarity / attention_temperature, axis=-1)
    logits = (attention * similarity).sum(axis=-1) / temperature
    included = jnp.broadcast_to((ids >= 0)[None, :], logits.shape)
    positive = ((affirmed[:, :, None] == ids[None, None, :]).any(axis=1) & included).astype(jnp.float32)
    logits = jnp.where(included, logits, _EXCLUDED)

    def cross_entropy(axis: int) -> jax.Array:
        target = positive / jnp.maximum(positive.sum(axis=axis, keepdims=True), 1.0)
        log_probability = jnp.where(included, jax.nn.log_softmax(logits, axis=axis), 0.0)
        return -(target * log_probability).sum() / jnp.maximum(target.sum(), 1.0)

    best = jnp.argmax(logits, axis=1)
    hits = jnp.take_along_axis(positive, best[:, None], axis=1).sum()
    rows = jnp.maximum((affirmed >= 0).any(axis=1).sum(), 1)
    return 0.5 * (cross_entropy(1) + cross_entropy(0)), {"accuracy": hits / rows}


def normalized_pixels(patches: jax.Array) -> jax.Array:
    """Per-patch-normalised pixels (x - mean) / sqrt(var + (2/255)^2), float32; patches [...,P*P] in [0, 1].

    The floor of the deviation is two grey levels: less would turn JPEG noise in flat borders into unit variance.
    """
    patches = patches.astype(jnp.float32)
    mean = patches.mean(axis=-1, keepdims=True)
    return (patches - mean) * jax.lax.rsqrt(patches.var(axis=-1, keepdims=True) + (2.0 / 255.0) ** 2)


def reconstruction_error(predicted: jax.Array, patches: jax.Array, masked: jax.Array) -> jax.Array:
    """AttMIM's mean squared error of each row over its masked patches, float32 [B].

    Args:
      predicted: normalised pixels [B,K,P*P] of the masked patches.
      patches: true pixels [B,N,P*P] in [0, 1].
      masked: int [B,K].
    """
    target = normalized_pixels(jnp.take_along_axis(patches, masked[:, :, None], axis=1))
    return jnp.square(predicted.astype(jnp.float32) - target).mean(axis=(1, 2))


def restoration_sums(logits: jax.Array, tokens: jax.Array, positions: jax.Array, weights: jax.Array) -> Metrics:
    """EntMLM's cross-entropy and hits of each row, summed over its used slots: each float32 [B].

    Args:
      logits: float32 [B,K,V]; tokens: the unmasked text int [B,L]; positions: int [B,K]; weights: [B,K].

    Returns:
      {"loss": sum of w*ce, "correct": sum of w*[argmax is right], "count": sum of w}.
    """
    target = jnp.take_along_axis(tokens, positions, axis=1)
    log_probability = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    # A comparison instead of a gather: a gather's transpose is a scatter, which XLA does not partition over rows.
    hit_BxKxV = target[:, :, None] == jnp.arange(logits.shape[-1])[None, None, :]
    cross_entropy = -jnp.where(hit_BxKxV, log_probability, 0.0).sum(axis=-1)
    correct = (jnp.argmax(logits, axis=-1) == target).astype(jnp.float32)
    return {
        "loss": (weights * cross_entropy).sum(axis=1),
        "correct": (weights * correct).sum(axis=1),
        "count": weights.sum(axis=1),
    }
