"""AttMIM: patches that answer to the text are hidden and restored from the others and the text."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mmclip_jax.errors import UserError
from mmclip_jax.models import encoders, masking
from mmclip_jax.models.inputs import patch_count, patchify, standardize
from mmclip_jax.models.mmclip import MMCLIP, PAD_ID, RESPONSES
from mmclip_jax.models.work import head, layers, product
from mmclip_jax.objectives import rows as rows_lib
from mmclip_jax.objectives.base import (
    Buffers,
    Context,
    Encoded,
    Flops,
    Metrics,
    Objective,
    Rows,
    Tower,
    image_towers,
)
from mmclip_jax.ranges import SHARE, Choice, Number, Range

MASK_AT = ("features", "input")


class AttMIM(Objective):
    """Mean squared error of masked patches, over all rows."""

    name = "attmim"
    ranges: ClassVar[Mapping[str, Range]] = {
        "weight": Number(0),
        "mask_ratio": SHARE,
        "hint": SHARE,
        "strategy": Choice(masking.STRATEGIES),
        "response": Choice(RESPONSES),
        "temperature": Number(1e-6),
        "mask_at": Choice(MASK_AT),
        "random_share": SHARE,
    }
    fields = ("image", "tokens", "affirmed")

    def check(self, config: ConfigDict) -> None:
        """A mask that hides something, and a stem that does not look under it."""
        settings = self.settings(config)
        if not settings.weight:
            return
        if settings.mask_at == "input" and not encoders.image_encoder(config.model).can_drop_tokens:
            raise UserError(
                "objective.attmim.mask_at='input' needs model.image.encoder='vit' with model.stem='patch': "
                "convolutions see hidden neighbours"
            )
        if not masking.masked_count(_patches(config), settings.mask_ratio):
            raise UserError(f"objective.attmim.mask_ratio={settings.mask_ratio} masks no patch")

    def rows(self, context: Context, encoded: Encoded) -> Rows:
        """See `attmim_rows`."""
        made = attmim_rows(
            context.model,
            context.variables,
            encoded.images,
            encoded.patches,
            encoded.features,
            encoded.rows,
            context.config.objective,
            self._at_random(context),
        )
        return {"error": made["error"]}

    def loss(self, context: Context, rows: Rows) -> tuple[jax.Array, Metrics]:
        """The mean of the rows' errors."""
        patches = _patches(context.config)
        masked = masking.masked_count(patches, self.settings(context.config).mask_ratio)
        at_random = self._at_random(context).astype(jnp.float32)
        return rows["error"].mean(), {"masked_share": jnp.float32(masked / patches), "random": at_random}

    def _at_random(self, context: Context) -> jax.Array:
        """bool scalar: the first steps mask at random."""
        return context.step < round(self.settings(context.config).random_share * context.config.train.steps)

    def flops(self, config: ConfigDict, sizes: Mapping[str, int]) -> Flops:
        """The response map has no gradient; masking at the input costs a second pass through the image encoder."""
        model, settings = config.model, self.settings(config)
        part, patches, tokens, embed = model.image_decoder, _patches(config), model.text.length, model.embed_dim
        width, text_width, masked = model.image.width, model.text.width, round(settings.mask_ratio * patches)
        one = product(tokens, embed, patches, gradients=0) + product(1, tokens, patches, gradients=0)  # the response
        if settings.response == "similarity":  # the other one's projections are those of the attended text
            one += head(patches, width, embed, model.image_head.hidden, gradients=0)
            one += head(tokens, text_width, embed, model.text_head.hidden, gradients=0)
        # The attended text A_r.
        one += product(patches, width, embed) + product(tokens, text_width, embed)
        one += product(patches, embed, tokens) + product(patches, tokens, text_width)
        if settings.mask_at == "input":
            one += encoders.image_encoder(model).work(model.image_size, patches - masked)
        one += product(patches, width, part.width) + product(patches, text_width, part.width)
        one += product(tokens, text_width, part.width) + layers(part, patches, tokens, remat=model.remat)
        one += product(masked, part.width, model.patch_size**2)
        return Flops(rows=one * sum(sizes.values()))

    def buffers(self, config: ConfigDict, rows: float, chips: int) -> Buffers:
        """The decoder; the second pass through the encoder, over the visible patches, is counted as if over all."""
        model, patches = config.model, _patches(config)
        towers = [Tower(model.image_decoder, patches, model.text.length)]
        if self.settings(config).mask_at == "input":
            towers += image_towers(model)
        return Buffers(towers=tuple(towers))


def _patches(config: ConfigDict) -> int:
    return patch_count(config.model.image_size, config.model.patch_size)


@masking.in_masking
def masked_patches(
    response: jax.Array, key_data: jax.Array, config: ConfigDict, use_random: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """AttMIM's (masked, visible) patches; where the scalar bool `use_random` holds, those of the strategy "random".

    config is the `objective.attmim` part. Both selections have the same static shapes, so the switch is a select.
    """
    keys = rows_lib.stream(key_data, rows_lib.PATCHES)
    options = {"ratio": config.mask_ratio, "hint": config.hint}
    chosen = masking.select_masked_patches(response, keys, strategy=config.strategy, **options)
    if config.strategy == "random":
        return chosen
    at_random = masking.select_masked_patches(response, keys, strategy="random", **options)
    return tuple(jnp.where(use_random, r, c) for r, c in zip(at_random, chosen, strict=True))  # type: ignore[return-value]


@masking.in_masking
def _spread_visible(features: jax.Array, masked: jax.Array, patches: int) -> jax.Array:
    """Features of the visible patches [B,N-K,D] -> [B,N,D] in image order; hidden positions hold some visible one."""
    hidden = masking.hidden_patches(masked, patches)
    place = jnp.maximum(jnp.cumsum(~hidden, axis=1) - 1, 0)
    return masking.take_positions(features, place)


def attmim_rows(
    model: MMCLIP,
    variables: Any,
    images: jax.Array,
    patches: jax.Array,
    features: jax.Array,
    rows: Rows,
    config: ConfigDict,
    use_random: jax.Array,
) -> Rows:
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
    error = reconstruction_error(predicted, patchify(images, model.patch_size), masked)
    return {"error": error, "masked": masked, "predicted": predicted, "response": response}


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
    target = normalized_pixels(masking.take_positions(patches, masked))
    return jnp.square(predicted.astype(jnp.float32) - target).mean(axis=(1, 2))
