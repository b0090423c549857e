"""Hard negatives: a paired image against its own report with one thing turned round."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mmclip_jax.models import encoders
from mmclip_jax.models.mmclip import PAD_ID
from mmclip_jax.models.work import head
from mmclip_jax.objectives.base import Buffers, Context, Encoded, Flops, Metrics, Objective, Rows, Tower
from mmclip_jax.ranges import Choice, Number, Range, Several
from mmclip_jax.text.flips import FLIPS


class HardNegatives(Objective):
    """The mean over rows that have a flipped report of -log of the share of the true one, of the two."""

    name = "hard_negatives"
    ranges: ClassVar[Mapping[str, Range]] = {
        "weight": Number(0),
        "flips": Several(Choice(FLIPS), least=1, distinct=True),
    }
    fields = ("negative",)
    part = "paired"

    def prepare(self, context: Context, parts: Mapping[str, Rows]) -> Rows:
        """The flipped reports, empty where there is none."""
        return {"tokens": parts[self.part]["negative"]}

    def rows(self, context: Context, encoded: Encoded) -> Rows:
        """Similarities of each image to its report and to the flipped one: "true", "flipped", and "there": 0 or 1."""
        prepared = encoded.prepared[self.name]
        valid = prepared["tokens"] != PAD_ID
        flipped = context.model.apply(context.variables, prepared["features"], valid, method="embed_text")
        image = encoded.of_part(encoded.image_embed, self.part)
        text = encoded.of_part(encoded.text_embed, self.part)
        return {
            "true": (image * text).sum(axis=1),
            "flipped": (image * flipped).sum(axis=1),
            "there": valid.any(axis=1).astype(jnp.float32),
        }

    def loss(self, context: Context, rows: Rows) -> tuple[jax.Array, Metrics]:
        """docs/method.md, "Hard negatives"."""
        scale, _ = context.model.apply(context.variables, method="scale_and_bias")
        margin, there = rows["true"] - rows["flipped"], rows["there"]
        count = jnp.maximum(there.sum(), 1.0)
        return (there * jax.nn.softplus(-scale * margin)).sum() / count, {
            "accuracy": (there * (margin > 0)).sum() / count,
            "share": there.mean(),
        }

    def flops(self, config: ConfigDict, sizes: Mapping[str, int]) -> Flops:
        """As many rows more through the text encoder."""
        model = config.model
        one = encoders.text_encoder(model).work()
        one += head(1, model.text.width, model.embed_dim, model.text_head.hidden)
        return Flops(rows=one * sizes.get(self.part, 0))

    def buffers(self, config: ConfigDict, rows: float, chips: int) -> Buffers:
        """The text encoder once more."""
        return Buffers(towers=(Tower(config.model.text, config.model.text.length),))
