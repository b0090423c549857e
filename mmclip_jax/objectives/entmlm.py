"""EntMLM: entities of the text are masked whole and restored from the other tokens and the image."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mmclip_jax.errors import UserError
from mmclip_jax.models import encoders, masking
from mmclip_jax.models.inputs import patch_count
from mmclip_jax.models.mmclip import PAD_ID
from mmclip_jax.models.work import layers, product
from mmclip_jax.objectives import rows as rows_lib
from mmclip_jax.objectives.base import Buffers, Context, Encoded, Flops, Metrics, Objective, Rows, Tower
from mmclip_jax.ranges import SHARE, Choice, Number, Range, count


class EntMLM(Objective):
    """Mean cross-entropy of the masked tokens of paired rows: an unpaired row's text is a prompt."""

    name = "entmlm"
    ranges: ClassVar[Mapping[str, Range]] = {
        "weight": Number(0),
        "strategy": Choice(masking.TOKEN_STRATEGIES),
        "probability": SHARE,
        "min_share": SHARE,
        "slots": count(1),
    }
    fields = ("tokens", "entity")
    part = "paired"

    def check(self, config: ConfigDict) -> None:
        """No more slots than tokens."""
        slots, length = self.settings(config).slots, config.model.text.length
        if slots > length:
            raise UserError(f"objective.entmlm.slots={slots} is not in 1 to {length}")

    def prepare(self, context: Context, parts: Mapping[str, Rows]) -> Rows:
        """See `hide_entities`."""
        return hide_entities(parts[self.part], self.settings(context.config), context.mask_id)

    def rows(self, context: Context, encoded: Encoded) -> Rows:
        """Sums a row [B] of loss, correct, count, entity tokens among the masked, dropped entities, valid tokens."""
        rows, hidden = encoded.parts[self.part], encoded.prepared[self.name]
        tokens, positions, weights = rows["tokens"], hidden["positions"], hidden["weights"]
        valid = tokens != PAD_ID
        patches = encoded.of_part(encoded.patches, self.part)
        logits = context.model.apply(context.variables, hidden["features"], valid, patches, positions, method="restore")
        in_entity = jnp.take_along_axis(rows["entity"], positions, axis=1) > 0
        return restoration_sums(logits, tokens, positions, weights) | {
            "entity": (weights * in_entity).sum(axis=1),
            "valid": valid.sum(axis=1).astype(jnp.float32),
            "dropped": hidden["dropped"].astype(jnp.float32),
        }

    def loss(self, context: Context, rows: Rows) -> tuple[jax.Array, Metrics]:
        """Sums of the rows over the number of masked tokens in the whole batch."""
        sums = {name: rows[name].sum() for name in ("loss", "correct", "count", "entity", "valid", "dropped")}
        count = jnp.maximum(sums["count"], 1.0)
        return sums["loss"] / count, {
            "accuracy": sums["correct"] / count,
            "masked_share": sums["count"] / jnp.maximum(sums["valid"], 1.0),
            "entity_share": sums["entity"] / count,
            "dropped_entities": sums["dropped"],
        }

    def flops(self, config: ConfigDict, sizes: Mapping[str, int]) -> Flops:
        """As many rows more through the text encoder, the decoder, and the vocabulary's logits at the slots."""
        model, slots = config.model, self.settings(config).slots
        text, part, tokens = model.text, model.text_decoder, model.text.length
        if not sizes.get(self.part):
            return Flops()
        if not text.vocab_size:
            raise UserError("model.text.vocab_size is 0: set it to the tokenizer's size before counting FLOPs")
        patches = patch_count(model.image_size, model.patch_size)
        one = encoders.text_encoder(model).work()
        one += product(tokens, text.width, part.width) + product(patches, model.image.width, part.width)
        one += layers(part, tokens, patches, remat=model.remat)
        one += product(slots, part.width, text.width) + product(slots, text.width, text.vocab_size)
        return Flops(rows=one * sizes[self.part])

    def buffers(self, config: ConfigDict, rows: float, chips: int) -> Buffers:
        """The two towers, and the logits with their gradient."""
        model, tokens = config.model, config.model.text.length
        patches = patch_count(model.image_size, model.patch_size)
        return Buffers(
            towers=(Tower(model.text, tokens), Tower(model.text_decoder, tokens, patches)),
            row=2 * 4 * self.settings(config).slots * model.text.vocab_size,
        )


def hide_entities(rows: Rows, entmlm: ConfigDict, mask_id: int) -> Rows:
    """Which tokens of paired rows are hidden (docs/method.md, "EntMLM"), and the texts without them.

    Args:
      rows: "tokens", "entity" and "key"; entmlm: the settings `objective.entmlm`.

    Returns:
      {"tokens": [B,L] with `mask_id` at the hidden ones, "positions": int [B,K] of them, "weights": float32 [B,K], 1
      for the slots in use, "dropped": int [B], entities that found no slot}.
    """
    positions, weights, dropped = masking.select_masked_tokens(
        rows["entity"],
        rows["tokens"] != PAD_ID,
        rows_lib.stream(rows["key"], rows_lib.TOKENS),
        probability=entmlm.probability,
        min_share=entmlm.min_share,
        slots=entmlm.slots,
        strategy=entmlm.strategy,
    )
    tokens = masking.mask_tokens(rows["tokens"], positions, weights, mask_id)
    return {"tokens": tokens, "positions": positions, "weights": weights, "dropped": dropped}


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
