# Copyright the authors of mmclip-jax. Licensed under the Apache License, Version 2.0; see
# https://www.apache.org/licenses/LICENSE-2.0. Distributed "as is", without warranties or conditions of any kind.
"""From an X-ray to the pixels of an exported MMCLIP, for transformers: the whole image on a black square, resized."""

import numpy as np
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import make_flat_list_of_images


class MMCLIPImageProcessor(BaseImageProcessor):
    """Images (PIL of 8 bits, or uint8 arrays [H,W], [H,W,1], [H,W,3]) -> pixel_values float32 [B,channels,S,S].

    size: {"height": S, "width": S}. channels: how many equal ones the model takes.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(self, size=None, image_mean=0.5, image_std=0.25, channels=1, **kwargs):
        super().__init__(**kwargs)
        self.size = size or {"height": 224, "width": 224}
        self.image_mean, self.image_std, self.channels = image_mean, image_std, channels

    def preprocess(self, images, return_tensors=None, **kwargs):
        """Pads with black to a square, resizes and standardises."""
        size = self.size["height"]
        mean, std = (float(np.ravel(value)[0]) for value in (self.image_mean, self.image_std))
        rows = []
        for image in make_flat_list_of_images(images):
            pixels = fit(grey(image), size).astype(np.float32) / np.float32(255)
            rows.append(np.repeat(((pixels - mean) / std).astype(np.float32)[None], self.channels, axis=0))
        return BatchFeature({"pixel_values": np.stack(rows)}, tensor_type=return_tensors)


def grey(image):
    """uint8 [H,W] of one image; colours become luminance."""
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            raise ValueError(f"an image is uint8 [H,W], [H,W,1] or [H,W,3], not {array.dtype} {array.shape}")
        image = Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"an image of mode {image.mode} has more than 8 bits: bring its range to 0 to 255 first")
    return np.asarray(image if image.mode == "L" else image.convert("L"))


def fit(pixels, size):
    """uint8 [H,W] -> [size,size]: centred on black, resized with antialiasing."""
    height, width = pixels.shape
    side = max(height, width)
    square = np.zeros((side, side), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    if side == size:
        return square
    kind = Image.Resampling.HAMMING if side > size else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(square).resize((size, size), kind))
