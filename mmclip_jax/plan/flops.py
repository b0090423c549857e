"""Floating-point operations of the train step by formula, and the share of a chip's peak that a step reaches.

Counted are matrix products, 2·m·k·n for [m,k]·[k,n]: what grows with the model. Elementwise work, softmax, norms,
sorting, embedding look-ups and the optimizer are not. One transformer layer of width W, its MLP of width M, on n
positions with a context of c:

    self-attention    8·n·W² + 4·n²·W
    cross-attention   4·n·W² + 4·c·W² + 4·n·c·W
    MLP               4·n·W·M

Beside the layers there are the embedding of patches (a linear map, or the stem's convolutions), the projections into
the common space, the response map, the attended text, the decoders' inputs and outputs, the vocabulary's logits at the
masked slots, the two matrices of similarities of the contrastive loss, and the local loss's similarities of each drawn
token with each patch of the global batch. The backward pass costs twice the forward
pass, except where a gradient stops: the response map that chooses the mask has none, and the first map of the image has
none towards the pixels.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict

from mmclip_jax.errors import UserError
from mmclip_jax.models.inputs import patch_count
from mmclip_jax.models.work import Work, image_encoder, layers, product

COMPONENTS = ("image_encoder", "text_encoder", "contrastive", "attmim", "entmlm", "local", "recompute")

# Peak of dense bfloat16 products with float32 sums, in FLOP/s a chip, from the makers' data sheets. First match wins:
# the name is looked for in what JAX calls the device, in lower case.
PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("h100 pcie", 756e12),
    ("h100 nvl", 835e12),
    ("h100", 989e12),
    ("h200", 989e12),
    ("a100", 312e12),
    ("tpu v4", 275e12),
    ("tpu v5 lite", 197e12),
    ("tpu v5e", 197e12),
    ("tpu v5p", 459e12),
    ("tpu v5", 459e12),  # what JAX calls a v5p
    ("tpu v6 lite", 918e12),
    ("tpu v6e", 918e12),
)


def _rows(config: ConfigDict) -> dict[str, Work]:
    """The work of the whole batch but for the contrasts between rows: parts that are chunked under accumulation."""
    model, objective = config.model, config.objective
    image, text = model.image, model.text
    patches = patch_count(model.image_size, model.patch_size)
    pixels = model.patch_size**2
    tokens, embed, width, text_width = text.length, model.embed_dim, image.width, text.width
    paired = config.data.batch_paired
    both = paired + config.data.batch_unpaired
    remat = model.remat

    def encode_image(seen: int) -> Work:
        return image_encoder(
            image, model.image_size, model.patch_size, seen, model.stem, model.pool == "cls", model.remat
        )

    encoded = encode_image(patches) + product(1, width, embed)
    if model.pool == "map":
        encoded += product(1, width, 2 * width) + product(patches, width, 2 * width) + product(1, width, patches) * 2
    encoded_text = layers(text, tokens, remat=remat)
    work = {"image_encoder": encoded * both, "text_encoder": (encoded_text + product(1, text_width, embed)) * both}

    attmim = objective.attmim
    if attmim.weight:
        part, masked = model.image_decoder, round(attmim.mask_ratio * patches)
        one = product(tokens, embed, patches, gradients=0) + product(1, tokens, patches, gradients=0)  # the response
        if attmim.response == "similarity":  # the other one's projections are those of the attended text
            one += product(patches, width, embed, gradients=0) + product(tokens, text_width, embed, gradients=0)
        # The attended text A_r.
        one += product(patches, width, embed) + product(tokens, text_width, embed)
        one += product(patches, embed, tokens) + product(patches, tokens, text_width)
        if attmim.mask_at == "input":
            one += encode_image(patches - masked)
        one += product(patches, width, part.width) + product(patches, text_width, part.width)
        one += product(tokens, text_width, part.width) + layers(part, patches, tokens, remat=remat)
        one += product(masked, part.width, pixels)
        work["attmim"] = one * both

    entmlm = objective.entmlm
    if entmlm.weight and paired:
        part = model.text_decoder
        if not text.vocab_size:
            raise UserError("model.text.vocab_size is 0: set it to the tokenizer's size before counting FLOPs")
        one = encoded_text + product(tokens, text_width, part.width) + product(patches, width, part.width)
        one += layers(part, tokens, patches, remat=remat)
        one += product(entmlm.slots, part.width, text_width) + product(entmlm.slots, text_width, text.vocab_size)
        work["entmlm"] = one * paired

    if objective.local.weight:
        drawn = objective.local.tokens
        one = product(patches, width, embed) + product(drawn, text_width, embed)
        work["local"] = (one + product(patches, embed, drawn * both)) * both
    return work


def train_step_flops(config: ConfigDict) -> dict[str, float]:
    """FLOPs of one train step of the whole global batch, forward and backward.

    Args:
      config: a run's settings, with `model.text.vocab_size` set where EntMLM is on.

    Returns:
      {component: FLOPs} for every one of COMPONENTS. "entmlm" includes the second pass through the text encoder,
      "attmim" that through the image encoder where `mask_at` is "input". "recompute" is the forward work that is done
      again in the backward pass to save memory, by `model.remat` and `optimizer.accumulate`: the model needs it not.

    Raises:
      UserError: `model.text.vocab_size` is 0.
    """
    work = _rows(config)
    rows = config.data.batch_paired + config.data.batch_unpaired
    contrast = product(rows, config.model.embed_dim, rows) * 2  # image to text, text to image
    again = sum(part.again for part in work.values())
    if config.optimizer.accumulate > 1:
        again += sum(part.forward for part in work.values())
    work["contrastive"] = contrast
    flops = {name: part.forward + part.backward for name, part in work.items()}
    return {name: flops.get(name, 0.0) for name in COMPONENTS[:-1]} | {"recompute": again}


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
