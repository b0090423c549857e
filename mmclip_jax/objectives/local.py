"""The local objective: single entity tokens against whole images, through the patches that they attend to."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mmclip_jax import sharding
from mmclip_jax.errors import UserError
from mmclip_jax.models import masking
from mmclip_jax.models.inputs import patch_count
from mmclip_jax.models.mmclip import MMCLIP, PAD_ID
from mmclip_jax.models.work import head, product
from mmclip_jax.objectives import rows as rows_lib
from mmclip_jax.objectives.base import (
    EMBEDDINGS,
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
from mmclip_jax.objectives.pairs import EXCLUDED
from mmclip_jax.ranges import Number, Range, count


class Local(Objective):
    """Contrasts drawn tokens of all rows with all images."""

    name = "local"
    ranges: ClassVar[Mapping[str, Range]] = {"weight": Number(0), "tokens": count(1), "temperature": Number(1e-6)}
    fields = ("tokens", "affirmed")

    def check(self, config: ConfigDict) -> None:
        """No more drawn tokens than a text has."""
        drawn, length = self.settings(config).tokens, config.model.text.length
        if drawn > length:
            raise UserError(f"objective.local.tokens={drawn} is not in 1 to {length}")

    def rows(self, context: Context, encoded: Encoded) -> Rows:
        """See `local_rows`."""
        return local_rows(
            context.model,
            context.variables,
            encoded.patches,
            encoded.features,
            encoded.rows,
            self.settings(context.config).tokens,
        )

    def loss(self, context: Context, rows: Rows) -> tuple[jax.Array, Metrics]:
        """See `local_loss`; tokens attend at the temperature of AttMIM's response map."""
        return local_loss(
            rows["patches"],
            rows["token"],
            rows["id"],
            rows["affirmed"],
            attention_temperature=context.config.objective.attmim.temperature,
            temperature=self.settings(context.config).temperature,
        )

    def flops(self, config: ConfigDict, sizes: Mapping[str, int]) -> Flops:
        """Two projections, and the similarities of each drawn token with each patch of the batch."""
        model, drawn, rows = config.model, self.settings(config).tokens, sum(sizes.values())
        patches, embed = patch_count(model.image_size, model.patch_size), model.embed_dim
        one = head(patches, model.image.width, embed, model.image_head.hidden)
        one += head(drawn, model.text.width, embed, model.text_head.hidden)
        return Flops(rows=one * rows, pairs=product(patches, embed, drawn * rows) * rows)

    def buffers(self, config: ConfigDict, rows: float, chips: int) -> Buffers:
        """The similarities of all drawn tokens to a chip's patches, and their gradient."""
        patches = patch_count(config.model.image_size, config.model.patch_size)
        return Buffers(pairs=2 * 4.0 * rows / chips * patches * rows * self.settings(config).tokens)

    def traffic(self, config: ConfigDict, rows: int, chips: int, fields: Mapping[str, Shape]) -> Traffic:
        """Drawn tokens are gathered with their ids; their gradients are summed."""
        drawn, embed = self.settings(config).tokens, config.model.embed_dim
        tokens = (rows, drawn, embed)
        return Traffic(
            exchanges=(
                Exchange(EMBEDDINGS, "all-gather", "f32", tokens),
                Exchange(EMBEDDINGS, "all-reduce", "f32", tokens),
            ),
            embeddings=frozenset({tokens, (rows * drawn, embed), (rows * drawn,)}),
            ids=frozenset({(rows, drawn)}),
        )


def local_rows(model: MMCLIP, variables: Any, patches: jax.Array, features: jax.Array, rows: Rows, count: int) -> Rows:
    """For up to `count` affirmed entity tokens a row, drawn at random, what the local loss compares.

    Returns {"token" [B,G,E], "patches" [B,N,E], both L2-normalised, "id" int [B,G] (the tokens; -1: none there),
    "affirmed" int [B,L] (the ids of all affirmed entity tokens, elsewhere -1)}.
    """
    affirmed = rows["affirmed"] & (rows["tokens"] != PAD_ID)
    keys = rows_lib.stream(rows["key"], rows_lib.LOCAL)
    draw = jax.vmap(lambda key: jax.random.uniform(key, affirmed.shape[1:]))(keys)
    affirmed = jnp.where(affirmed, rows["tokens"], -1)
    place = jnp.argsort(jnp.where(affirmed >= 0, draw, -1.0), axis=1, descending=True)[:, :count]
    token = masking.take_positions(features, place)
    return {
        "token": model.apply(variables, token, method="project_tokens"),
        "patches": model.apply(variables, patches, method="project_patches"),
        "id": jnp.take_along_axis(affirmed, place, axis=1),
        "affirmed": affirmed,
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
    logits = jnp.where(included, logits, EXCLUDED)

    def cross_entropy(axis: int) -> jax.Array:
        target = positive / jnp.maximum(positive.sum(axis=axis, keepdims=True), 1.0)
        log_probability = jnp.where(included, jax.nn.log_softmax(logits, axis=axis), 0.0)
        return -(target * log_probability).sum() / jnp.maximum(target.sum(), 1.0)

    best = jnp.argmax(logits, axis=1)
    hits = jnp.take_along_axis(positive, best[:, None], axis=1).sum()
    rows = jnp.maximum((affirmed >= 0).any(axis=1).sum(), 1)
    return 0.5 * (cross_entropy(1) + cross_entropy(0)), {"accuracy": hits / rows}
