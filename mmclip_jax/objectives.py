"""The losses of MMCLIP: pure functions that return (loss, metrics). docs/method.md gives every equation."""

import jax
import jax.numpy as jnp

from mmclip_jax import sharding

Metrics = dict[str, jax.Array]
CONTRASTIVE_LOSSES = ("softmax", "sigmoid")
CONTRASTIVE_TARGETS = ("text", "kinds")
_EXCLUDED = -1e30


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
    # Rows of the logits stay on their device; the columns are gathered: [B,E] embeddings and ids, nothing larger.
    text_id = text_id[:, None] if text_id.ndim == 1 else text_id
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
