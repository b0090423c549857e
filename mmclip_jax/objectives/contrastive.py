"""The contrastive objective: images against texts over the global batch, with rows of the same text as positives."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mmclip_jax import sharding
from mmclip_jax.models.work import product
from mmclip_jax.objectives import ring
from mmclip_jax.objectives.base import (
    EMBEDDINGS,
    IDS,
    Buffers,
    Context,
    Encoded,
    Exchange,
    Flops,
    Metrics,
    Objective,
    Rows,
    Shape,
    Traffic,
)
from mmclip_jax.objectives.pairs import EXCLUDED, same_text, strengths
from mmclip_jax.ranges import BOOLEAN, Choice, Range, count

LOSSES = ("softmax", "sigmoid")
TARGETS = ("text", "kinds", "known")
# A matrix of logits [B/devices, B] of more bytes than this on a device is computed in chunks, each of at most as many.
LOGITS_BYTES = 128 * 2**20
_IDS = ("text_id", "stated", "known", "source")


class Contrastive(Objective):
    """Always on, with weight 1: its block has none."""

    name = "contrastive"
    ranges: ClassVar[Mapping[str, Range]] = {
        "loss": Choice(LOSSES),
        "targets": Choice(TARGETS),
        "across_sources": BOOLEAN,
        "chunk": count(-1),
    }
    fields = _IDS

    def rows(self, context: Context, encoded: Encoded) -> Rows:
        """The embeddings, and ids by which texts and sources are known."""
        embeddings = {"image_embed": encoded.image_embed, "text_embed": encoded.text_embed}
        return embeddings | {name: encoded.rows[name] for name in _IDS}

    def loss(self, context: Context, rows: Rows) -> tuple[jax.Array, Metrics]:
        """See `contrastive_loss`."""
        settings = self.settings(context.config)
        scale, bias = context.model.apply(context.variables, method="scale_and_bias")
        return contrastive_loss(
            rows["image_embed"],
            rows["text_embed"],
            scale,
            rows["text_id"],
            loss=settings.loss,
            targets=settings.targets,
            stated=rows["stated"],
            known=rows["known"],
            source=rows["source"],
            across_sources=settings.across_sources,
            logit_bias=bias if settings.loss == "sigmoid" else 0.0,
            chunk=settings.chunk,
        )

    def flops(self, config: ConfigDict, sizes: Mapping[str, int]) -> Flops:
        """Two matrices of similarities: image to text, text to image."""
        rows = sum(sizes.values())
        return Flops(pairs=product(rows, config.model.embed_dim, rows) * 2)

    def buffers(self, config: ConfigDict, rows: float, chips: int) -> Buffers:
        """[rows/chips, rows] for either direction, with targets and gradients, as far as it is not chunked."""
        one, chunk = 4.0 * rows * rows / chips, self.settings(config).chunk
        if chunk >= 0:
            one = min(one, 4.0 * rows / chips * chunk if chunk else LOGITS_BYTES)
        return Buffers(pairs=6 * one)

    def traffic(self, config: ConfigDict, rows: int, chips: int, fields: Mapping[str, Shape]) -> Traffic:
        """Embeddings and ids are gathered, or go round a ring in shares that may be filled up to whole chunks."""
        own, embed = rows // chips, config.model.embed_dim
        shares = {own, columns_in_chunks(own, chunk_of(self.settings(config).chunk, rows, chips))}
        ids = {fields[name] for name in _IDS}
        return Traffic(
            exchanges=(
                Exchange(EMBEDDINGS, "all-gather", "f32", (rows, embed), times=2),
                Exchange(EMBEDDINGS, "reduce-scatter", "f32", (own, embed), times=2),
                Exchange(IDS, "all-gather", "s32", (rows, *fields["text_id"])),
            ),
            embeddings=frozenset({(rows, embed), (chips, own, embed)}),
            ids=frozenset((*count, *shape) for shape in ids for count in ((rows,), (chips, own))),
            own_embeddings=frozenset((share, embed) for share in shares),
            own_ids=frozenset((share, *shape) for shape in ids for share in shares),
        )


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
    return ring.filled_up(own, chunk) if chunk > 0 else own


def contrastive_loss(
    image_embed: jax.Array,
    text_embed: jax.Array,
    logit_scale: jax.Array | float,
    text_id: jax.Array,
    *,
    loss: str = "softmax",
    targets: str = "text",
    stated: jax.Array | None = None,
    known: jax.Array | None = None,
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
      loss, targets: targets are "text"; or "kinds": in proportion to the agreement of the stated kinds; or "known": in
        proportion to what a text states that is known of the image, 0 where it says the opposite.
      stated: int [B,K] of +1 (stated present), -1 (stated absent), 0; needed for "kinds" and "known".
      known: int [B,K], the same of what is known of the image, whatever its text states; needed for "known".
      source: int [B], needed when `across_sources` is False, which leaves out pairs of different sources.
      logit_bias: added to every logit; of use to "sigmoid" only.
      chunk: at most so many columns of logits are held at once, in a ring of devices (`ring.sums_by_ring`): the same
        numbers in less memory. 0: where a device's logits would take more than LOGITS_BYTES; −1: never.

    Returns:
      (loss float32, metrics: image_to_text, text_to_image (their losses), accuracy (share of rows whose best match is
      a positive, mean of both directions), positives (mean positives a row)). docs/method.md, "Contrastive".

    Raises:
      ValueError: an unknown option, or an argument that an option needs is missing.
    """
    rows = {"image": image_embed, "text": text_embed, "text_id": text_id[:, None] if text_id.ndim == 1 else text_id}
    rows |= _optional_rows(loss, targets, stated, known, source, across_sources)
    chunk = chunk_of(chunk, len(text_id), sharding.row_shards())
    if chunk > 0:
        sums = ring.sums_by_ring(rows, jnp.float32(logit_scale), jnp.float32(logit_bias), loss, chunk)
    else:
        sums = _sums(rows, logit_scale, logit_bias, loss)
    means = {name: values.mean(dtype=jnp.float32) for name, values in sums.items()}
    return 0.5 * (means["image_loss"] + means["text_loss"]), {
        "image_to_text": means["image_loss"],
        "text_to_image": means["text_loss"],
        "accuracy": 0.5 * (means["image_correct"] + means["text_correct"]),
        "positives": means["positives"],
    }


def _optional_rows(
    loss: str,
    targets: str,
    stated: jax.Array | None,
    known: jax.Array | None,
    source: jax.Array | None,
    across_sources: bool,
) -> Rows:
    """The rows that only some options need; refuses options that there are not."""
    if loss not in LOSSES:
        raise ValueError(f"contrastive.loss {loss!r} is not one of {', '.join(LOSSES)}")
    if targets not in TARGETS:
        raise ValueError(f"contrastive.targets {targets!r} is not one of {', '.join(TARGETS)}")
    rows: Rows = {}
    for name, values, needing in (("stated", stated, ("kinds", "known")), ("known", known, ("known",))):
        if targets in needing:
            if values is None:
                raise ValueError(f'contrastive.targets "{targets}" needs `{name}`')
            rows[name] = values
    if not across_sources:
        if source is None:
            raise ValueError("across_sources=False needs `source`")
        rows["source"] = source
    return rows


def _sums(rows: Rows, scale: jax.Array | float, bias: jax.Array | float, loss: str) -> Metrics:
    """As `ring.sums_by_ring`, with all columns at once.

    Rows of the logits stay on their device; the columns are gathered: [B,E] embeddings and ids, nothing larger.
    """
    everywhere = {name: sharding.replicate(rows[name]) for name in ("text_id", "stated", "known") if name in rows}
    positive = same_text(rows["text_id"], everywhere["text_id"])
    agreement = strengths(rows, everywhere, positive)
    included = jnp.ones_like(positive)
    if "source" in rows:
        included = rows["source"][:, None] == sharding.replicate(rows["source"])[None, :]
    out = {}
    for mine, others in (("image", "text"), ("text", "image")):
        strength = jnp.where(included, agreement[mine], 0.0)
        target = strength / jnp.maximum(strength.sum(axis=1, keepdims=True), 1e-12)
        own = sharding.shard_rows(rows[mine].astype(jnp.float32))
        columns = sharding.replicate(rows[others].astype(jnp.float32))
        logits = scale * jnp.einsum("re,ce->rc", own, columns, precision="highest") + bias
        if loss == "softmax":
            log_probability = jax.nn.log_softmax(jnp.where(included, logits, EXCLUDED), axis=1)
            out[f"{mine}_loss"] = -(target * jnp.where(included, log_probability, 0.0)).sum(axis=1)
        else:
            pair = strength * jax.nn.log_sigmoid(logits) + (1.0 - strength) * jax.nn.log_sigmoid(-logits)
            out[f"{mine}_loss"] = -jnp.where(included, pair, 0.0).sum(axis=1)
        best = jnp.argmax(jnp.where(included, logits, EXCLUDED), axis=1)
        out[f"{mine}_correct"] = jnp.take_along_axis(positive & included, best[:, None], axis=1)[:, 0]
    return out | {"positives": (positive & included).sum(axis=1)}
