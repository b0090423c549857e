"""Floating-point operations of the train step by formula, and the share of a chip's peak that a step reaches.

Counted are matrix products (models/work.py): what grows with the model. The encoders' are counted here, with the
embedding of patches and the projections into the common space; each objective counts its own. The optimizer's work is
not counted.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict

from mmclip_jax import objectives
from mmclip_jax.data import batch
from mmclip_jax.models import encoders
from mmclip_jax.models.inputs import patch_count
from mmclip_jax.models.work import Work, head, product

# Peak of dense bfloat16 products with float32 sums, in FLOP/s a chip, from the makers' data sheets. First match wins:
# the name is looked for in what JAX calls the device, in lower case.
PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("h100 pcie", 756e12),
    ("h100 nvl", 835e12),
    ("h100", 989e12),
    ("h200", 989e12),
    ("a100", 312e12),
    ("l40s", 362e12),
    ("v100", 15.7e12),  # float32's: it has no bfloat16 products
    ("tpu v4", 275e12),
    ("tpu v5 lite", 197e12),
    ("tpu v5e", 197e12),
    ("tpu v5p", 459e12),
    ("tpu v5", 459e12),  # what JAX calls a v5p
    ("tpu v6 lite", 918e12),
    ("tpu v6e", 918e12),
)


def _encoders(model: ConfigDict) -> dict[str, Work]:
    """The work of one row; model: the `model` part of a run's settings."""
    patches, width, embed = patch_count(model.image_size, model.patch_size), model.image.width, model.embed_dim
    image = encoders.image_encoder(model).work(model.image_size, patches)
    image += head(1, width, embed, model.image_head.hidden)
    if model.pool == "map":
        image += product(1, width, 2 * width) + product(patches, width, 2 * width) + product(1, width, patches) * 2
    text = encoders.text_encoder(model).work() + head(1, model.text.width, embed, model.text_head.hidden)
    return {"image_encoder": image, "text_encoder": text}


def train_step_flops(config: ConfigDict) -> dict[str, float]:
    """FLOPs of one train step of the whole global batch, forward and backward.

    Args:
      config: a run's settings, with `model.text.vocab_size` set where EntMLM is on.

    Returns:
      {component: FLOPs}: "image_encoder", "text_encoder", each objective by its name (0 where it is off; further rows
      of an encoder, or a second pass, belong to the objective that asks for them), and "recompute": the forward work
      that is done again in the backward pass to save memory, by `model.remat` and `optimizer.accumulate`. The model
      does not need it.

    Raises:
      UserError: `model.text.vocab_size` is 0.
    """
    sizes = batch.sizes(config)
    encoded = {name: work * sum(sizes.values()) for name, work in _encoders(config.model).items()}
    found = {objective.name: objective.flops(config, sizes) for objective in objectives.active(config)}
    rows = [*encoded.values(), *(each.rows for each in found.values())]
    again = sum(work.again for work in rows)
    if config.optimizer.accumulate > 1:
        again += sum(work.forward for work in rows)
    counted = {name: work.once for name, work in encoded.items()} | dict.fromkeys(objectives.OBJECTIVES, 0.0)
    counted |= {name: (each.rows + each.pairs).once for name, each in found.items()}
    return counted | {"recompute": again}


def model_flops(flops: Mapping[str, float]) -> float:
    """The sum of what `train_step_flops` returns without "recompute": what utilisation is measured by."""
    return sum(value for name, value in flops.items() if name != "recompute")


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a chip by what JAX calls it (`device.device_kind`); None where no figure is known."""
    kind = device_kind.lower()
    return next((peak for name, peak in PEAK_FLOPS if name in kind), None)


def mfu(flops: float, seconds: float, device_kind: str, devices: int = 1) -> float | None:
    """Model FLOPs utilisation: the share of the chips' bfloat16 peak that a step of `seconds` reaches.

    Args:
      flops: of one step of the global batch, without recomputation (`model_flops`).
      seconds: that the step takes.
      device_kind: as JAX calls the device.
      devices: how many share the step.

    Returns:
      A share in [0, 1] (always of the bfloat16 peak, whatever the dtype), None for a device without a known peak, such
      as a CPU.

    Raises:
      ValueError: seconds or devices are not positive.
    """
    if seconds <= 0 or devices < 1:
        raise ValueError(f"a step of {seconds} s on {devices} devices has no utilisation")
    peak = peak_flops(device_kind)
    return None if peak is None else flops / (seconds * peak * devices)
