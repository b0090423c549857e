"""From a stored file to the pixels that a model sees.

The whole image is always kept: it is padded to a square with black, never cropped (a centre crop cuts the apices and
the costophrenic angles), and never flipped (left and right mean something). The steps are in docs/method.md.

Coordinates: x to the right, y down, measured in pixel widths from the left upper corner of the image, so that the
first pixel's centre is at (0.5, 0.5). The padded square has the side max(height, width).
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmclip_jax.data.images.stored import decode_grey_jpeg, open_stored
from mmclip_jax.data.schema import Box
from mmclip_jax.errors import UserError

_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


@dataclasses.dataclass(frozen=True)
class Affine:
    """How the content of the padded square moves: p' = zoom · R(angle) · p + shift.

    p, p' are (x, y) from the square's centre in fractions of its side; angle in degrees, clockwise as seen (R =
    [[cos, -sin], [sin, cos]] with y down); shift in fractions of the side.
    """

    angle: float = 0.0
    shift_x: float = 0.0
    shift_y: float = 0.0
    zoom: float = 1.0


class Augmentation(NamedTuple):
    """What was drawn for an image: its map, and the factors of brightness and contrast."""

    affine: Affine
    brightness: float
    contrast: float


def decode_image(data: bytes) -> np.ndarray:
    """The pixels [H, W] uint8 of a stored PNG or JPEG; those of an 8-bit grey file are exactly its own.

    Colours become luminance; grey stored as colour stays exact.

    Raises:
      UserError: not an image, damaged, or more than 8 bits deep (the true range is the builder's to know).
    """
    if (pixels := decode_grey_jpeg(data)) is not None:
        return pixels
    with open_stored(data) as image:
        if image.mode not in _EIGHT_BIT_MODES:
            raise UserError(f"the image's mode is {image.mode}: only 8-bit images are decoded here")
        return np.asarray(image if image.mode == "L" else image.convert("L"))


def fit_image(pixels: np.ndarray, size: int) -> np.ndarray:
    """The whole image for evaluation: centred on a black square and resized with antialiasing.

    Args:
      pixels: uint8 [H, W] or [H, W, 1].
      size: pixels of the result's side.

    Returns:
      uint8 [size, size, 1]; `pixels` themselves where they are that size already.
    """
    pixels = _two_dimensional(pixels)
    height, width = pixels.shape
    if height != width:
        side, left, top = _square(height, width)
        square = np.zeros((side, side), np.uint8)
        square[top : top + height, left : left + width] = pixels
        pixels = square
    if pixels.shape[0] != size:
        # Of Pillow's antialiasing filters, Hamming is the one that blurs most like the block average of `apply_affine`.
        shrinks = pixels.shape[0] > size
        kind = Image.Resampling.HAMMING if shrinks else Image.Resampling.BILINEAR
        pixels = np.asarray(Image.fromarray(pixels).resize((size, size), kind))
    return pixels[:, :, np.newaxis]


def draw_augmentation(rng: np.random.Generator, augment: Any) -> Augmentation:
    """Draws a random affine map, brightness and contrast, never a flip.

    Args:
      rng: where the six draws come from.
      augment: has the attributes rotate (degrees, at most), shift (fraction of the side, at most), scale (zoom is drawn
        from 1 ± scale), brightness and contrast (factors are drawn from 1 ± these); `config.data.augment`.
    """
    # One call, always of the same length, so that a setting does not shift the draws of the others.
    angle, shift_x, shift_y, zoom, brightness, contrast = rng.uniform(-1.0, 1.0, 6).tolist()
    affine = Affine(
        augment.rotate * angle, augment.shift * shift_x, augment.shift * shift_y, 1.0 + augment.scale * zoom
    )
    return Augmentation(affine, 1.0 + augment.brightness * brightness, 1.0 + augment.contrast * contrast)


def augment_image(pixels: np.ndarray, size: int, rng: np.random.Generator, augment: Any) -> np.ndarray:
    """The image for training: what `draw_augmentation` draws, done to `pixels` uint8 [H, W] or [H, W, 1].

    Returns:
      uint8 [size, size, 1].
    """
    return apply_affine(pixels, size, *draw_augmentation(rng, augment))


def for_device(pixels: np.ndarray, size: int, drawn: Augmentation) -> dict[str, np.ndarray]:
    """What a device needs to do `apply_affine` by itself (`models.inputs.augmented`).

    An image that shrinks by more than 1.5 is averaged over blocks here, and gets its brightness and contrast before.

    Args:
      pixels: uint8 [H, W] or [H, W, 1].
      size: pixels of the result's side.
      drawn: what is to be done.

    Returns:
      "image" uint8 [h, w], the pixels, averaged or not; "extent" int32 [2], h and w; "affine" float32 [6], from the
      result's x, y to those of "image" as in `Image.transform`; "tone" float32 [2], brightness and contrast.
    """
    pixels, (affine, brightness, contrast) = _two_dimensional(pixels), drawn
    coefficients: tuple[float, ...] = (1, 0, 0, 0, 1, 0)
    if affine == Affine() and brightness == contrast == 1.0:
        pixels = fit_image(pixels, size)[:, :, 0]
    else:
        block, coefficients = _inverse(pixels.shape[0], pixels.shape[1], size, affine)
        if block > 1:
            pixels = np.asarray(_toned(pixels, brightness, contrast).reduce(block))
            brightness = contrast = 1.0
    return {
        "image": pixels,
        "extent": np.array(pixels.shape, np.int32),
        "affine": np.array(coefficients, np.float32),
        "tone": np.array((brightness, contrast), np.float32),
    }


def apply_affine(
    pixels: np.ndarray, size: int, affine: Affine, brightness: float = 1.0, contrast: float = 1.0
) -> np.ndarray:
    """Maps the padded square by `affine`, in one bilinear interpolation, and changes brightness and contrast.

    An image that shrinks by more than 1.5 is first averaged over blocks of whole pixels. Outside the image stays black,
    whatever the brightness: y = clip(brightness · (mean + contrast · (x − mean))) applies to the image alone.

    Returns:
      uint8 [size, size, 1].
    """
    pixels = _two_dimensional(pixels)
    if affine == Affine() and brightness == contrast == 1.0:
        return fit_image(pixels, size)
    block, coefficients = _inverse(pixels.shape[0], pixels.shape[1], size, affine)
    image = _toned(pixels, brightness, contrast)
    if block > 1:
        image = image.reduce(block)
    mapped = image.transform((size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    return np.asarray(mapped)[:, :, np.newaxis]


def _inverse(height: int, width: int, size: int, affine: Affine) -> tuple[int, tuple[float, ...]]:
    """(block to average over first, coefficients from the result's pixels to those of the averaged image)."""
    side, left, top = _square(height, width)
    block = max(1, round(side / (size * affine.zoom)))
    # Output pixel -> fraction of the square, from its centre -> undo the map -> pixel of the (reduced) image.
    # cos and sin already hold 1/zoom; `per_pixel` source pixels are one output pixel.
    cos = math.cos(math.radians(affine.angle)) / affine.zoom
    sin = math.sin(math.radians(affine.angle)) / affine.zoom
    per_pixel = side / size / block
    x0, y0 = -0.5 - affine.shift_x, -0.5 - affine.shift_y
    return block, (
        cos * per_pixel,
        sin * per_pixel,
        ((cos * x0 + sin * y0 + 0.5) * side - left) / block,
        -sin * per_pixel,
        cos * per_pixel,
        ((-sin * x0 + cos * y0 + 0.5) * side - top) / block,
    )


def _toned(pixels: np.ndarray, brightness: float, contrast: float) -> Image.Image:
    image = Image.fromarray(pixels)
    if brightness == contrast == 1.0:
        return image
    return image.point(_tone_table(pixels.mean(), brightness, contrast).tolist())


def fit_boxes(boxes: Iterable[Box], height: int, width: int) -> tuple[Box, ...]:
    """Boxes as fractions of the padded square, from fractions of the stored image of `height` × `width` pixels."""
    side, left, top = _square(height, width)
    return tuple(
        Box(
            box.kind,
            (box.x_min * width + left) / side,
            (box.y_min * height + top) / side,
            (box.x_max * width + left) / side,
            (box.y_max * height + top) / side,
        )
        for box in boxes
    )


def _square(height: int, width: int) -> tuple[int, int, int]:
    """(side, left, top): the padded square's side and where the image lies in it, in whole pixels."""
    side = max(height, width)
    return side, (side - width) // 2, (side - height) // 2


def _two_dimensional(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim != 2 or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(f"pixels are uint8 [H, W] or [H, W, 1], not {pixels.dtype} {list(pixels.shape)}")
    return pixels


def _tone_table(mean: float, brightness: float, contrast: float) -> np.ndarray:
    """Brightness and contrast as a table of the 256 grey levels; contrast turns about the image's mean."""
    levels = brightness * (mean + contrast * (np.arange(256.0) - mean))
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)
