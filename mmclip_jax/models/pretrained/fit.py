"""Published weights made to fit a run: other image sizes, grey pixels, shorter texts, another order of words."""

from collections.abc import Sequence

import numpy as np

from mmclip_jax.errors import UserError
from mmclip_jax.models.inputs import PIXEL_MEAN, PIXEL_STD
from mmclip_jax.models.pretrained.blocks import Params, grid
from mmclip_jax.models.pretrained.single import Encoder

Resized = dict[str, str]
"""What was changed of a parameter, by its path."""


def fit_image(
    encoder: Encoder, image_size: int, normal: tuple[Sequence[float], Sequence[float]] | None = None
) -> tuple[Params, Resized]:
    """The image encoder's parameters for grey images of this size, standardised as ours are.

    normal: (mean, std) of the pixels that the weights were trained on; None for what is known of them.

    Raises:
      UserError: the image is no multiple of the encoder's patches.
    """
    params, notes = dict(encoder.params), Resized()
    if image_size % encoder.patch_size:
        raise UserError(
            f"model.image_size={image_size} is no multiple of the {encoder.patch_size} pixels of a patch of "
            f"{encoder.file}: give --config.model.image_size={_nearest(image_size, encoder.patch_size)}"
        )
    side, _, channels = grid(params, str(encoder.file))
    wanted = image_size // encoder.patch_size
    if side != wanted:
        params["position"] = resize_positions(params["position"], wanted)
        notes["position"] = f"{side} × {side} places resized to {wanted} × {wanted}, bicubic"
    normal = normal or encoder.normal
    params["patch"] = fold(params["patch"], channels, *normal)
    mean, std = (", ".join(f"{value:g}" for value in dict.fromkeys(values)) for values in normal)
    notes["patch"] = f"{channels} channel(s) of mean {mean} and std {std} folded into one of ours"
    return params, notes


def _nearest(size: int, patch_size: int) -> int:
    return max(round(size / patch_size), 1) * patch_size


def fold(layer: Params, channels: int, mean: Sequence[float], std: Sequence[float]) -> Params:
    """A layer of patches [P*P*C, D] that are normalised by (mean, std), as one of grey patches standardised as ours.

    A grey pixel x in [0, 1] is the same in all channels: sum_c k_c (x - mean_c) / std_c is linear in x, and so in our
    (x - 0.5) / 0.25. The fold is exact; only rounding differs.
    """
    kernel = layer["kernel"].astype(np.float64).reshape(-1, channels, layer["kernel"].shape[1])
    shift, scale = _per_channel(mean, channels), _per_channel(std, channels)
    bias = layer["bias"] + np.einsum("pcd,c->d", kernel, (PIXEL_MEAN - shift) / scale)
    grey = np.einsum("pcd,c->pd", kernel, PIXEL_STD / scale)
    return {"kernel": grey.astype(np.float32), "bias": bias.astype(np.float32)}


def _per_channel(values: Sequence[float], channels: int) -> np.ndarray:
    """One number for each channel; several for a grey one are averaged."""
    return np.broadcast_to(np.asarray(values if len(values) == channels else np.mean(values), np.float64), (channels,))


def resize_positions(position: np.ndarray, side: int) -> np.ndarray:
    """Positions [N,D] of a square grid resized to side x side, bicubic with antialiasing, as timm does it."""
    old = round(len(position) ** 0.5)
    weights = _bicubic(old, side)
    square = position.astype(np.float64).reshape(old, old, -1)
    resized = np.einsum("ai,bj,ijd->abd", weights, weights, square)
    return resized.reshape(side * side, -1).astype(np.float32)


def _bicubic(old: int, new: int) -> np.ndarray:
    """The weights [new, old] of each old place in each new one: Keys' kernel of a = -0.5, stretched where it shrinks.

    Weights beyond the border are left out and the others scaled up, as PIL does, and PyTorch with antialias=True.
    """
    scale = old / new
    stretch = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale
    x = np.abs((np.arange(old)[None] + 0.5 - centres[:, None]) / stretch)
    weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)


def fit_words(embedding: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of a word embedding [V',D] in the order of a tokenizer's ids, [V,D]; what has none gets the mean of all."""
    return np.where((rows >= 0)[:, None], embedding[rows], embedding.mean(axis=0, keepdims=True))


def fit_text(encoder: Encoder, length: int, rows: np.ndarray) -> tuple[Params, Resized]:
    """The text encoder's parameters for texts of `length` tokens, words in the order of a tokenizer's ids.

    Raises:
      UserError: the weights have fewer positions.
    """
    params, notes = dict(encoder.params), Resized()
    places = len(params["position"])
    if length > places:
        raise UserError(
            f"model.text.length={length}, but {encoder.file} has {places} positions: give --config.model.text.length="
            f"{places} or less"
        )
    if length < places:
        params["position"], notes["position"] = params["position"][:length], f"the first {length} of {places}"
    words = params["embed"]["embedding"]
    if not np.array_equal(rows, np.arange(len(words))):
        params["embed"] = {"embedding": fit_words(words, rows)}
        notes["embed/embedding"] = f"{len(words):,} rows as {len(rows):,} in the order of the tokenizer's ids"
    return params, notes
