"""Pictures of what a model does to an image: its response map over it, its masked patches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmclip_jax.data.schema import Box

if TYPE_CHECKING:
    from PIL import Image, ImageFont

# Shown pixels a side of the pictures that are drawn on; smaller images are enlarged by whole pixels first.
PICTURE_SIDE = 256
_HEAT = np.array([255.0, 150.0, 20.0])
_BOX = (64, 200, 255)
_POINT = (255, 255, 255)
SHOWN_SIDE = 512  # of the two pictures of `explained`
_MARGIN, _PAPER, _INK = 8, (255, 255, 255), (20, 24, 28)


def as_bytes(pixels: np.ndarray) -> np.ndarray:
    """Pixels in 0..255 of any type as uint8; what lies outside is cut off, NaN is black."""
    return np.clip(np.rint(np.nan_to_num(np.asarray(pixels, np.float64))), 0, 255).astype(np.uint8)


def overlay(image: np.ndarray, response: np.ndarray, boxes: Sequence[Box] = ()) -> np.ndarray:
    """The image with the response in orange over it, boxes outlined, and a ring where the response is highest.

    Args:
      image: uint8 [S, S].
      response: [gh, gw].
      boxes: fractions of the square.

    Returns:
      uint8 [P, P, 3].
    """
    from PIL import Image, ImageDraw

    base = _enlarged(image)
    side = len(base)
    low, high = float(response.min()), float(response.max())
    share = (response - low) / (high - low) if high > low else np.zeros_like(response)
    heat = np.asarray(Image.fromarray(as_bytes(255 * share)).resize((side, side), Image.Resampling.NEAREST))
    alpha = 0.7 * (heat.astype(np.float64) / 255)[:, :, np.newaxis]
    picture = Image.fromarray(as_bytes((1 - alpha) * base[:, :, np.newaxis] + alpha * _HEAT))
    draw = ImageDraw.Draw(picture)
    for box in boxes:
        corners = [side * box.x_min, side * box.y_min, side * box.x_max - 1, side * box.y_max - 1]
        draw.rectangle(corners, outline=_BOX, width=max(2, side // 128))
    row, column = np.unravel_index(int(np.argmax(response)), response.shape)
    x, y = side * (column + 0.5) / response.shape[1], side * (row + 0.5) / response.shape[0]
    radius = side / 40
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], outline=(0, 0, 0), width=4)
    draw.ellipse([x - radius + 1, y - radius + 1, x + radius - 1, y + radius - 1], outline=_POINT, width=2)
    return np.asarray(picture)


def masked_image(image: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """The image uint8 [S, S] with its masked patches bool [gh, gw] flat blue-grey: uint8 [P, P, 3]."""
    from PIL import Image

    base = np.repeat(_enlarged(image)[:, :, np.newaxis], 3, axis=2)
    side = len(base)
    hidden = np.asarray(Image.fromarray(masked).resize((side, side), Image.Resampling.NEAREST))
    base[hidden] = (86, 104, 124)
    return base


def _enlarged(image: np.ndarray) -> np.ndarray:
    """By a whole factor to about PICTURE_SIDE, or reduced to it: uint8 [P, P]."""
    from PIL import Image

    factor = max(1, round(PICTURE_SIDE / len(image)))
    if factor > 1:
        return np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)
    if len(image) > 2 * PICTURE_SIDE:
        return np.asarray(Image.fromarray(image).resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BILINEAR))
    return image.copy()


def explained(image: np.ndarray, response: np.ndarray, lines: Sequence[str]) -> "Image.Image":
    """A figure: the image, beside it the response over it, and lines of words below, the first one larger.

    Args:
      image: uint8 [S, S] with S = `SHOWN_SIDE`.
      response: [gh, gw].
      lines: each is broken where it is too long for the figure.
    """
    from PIL import Image, ImageDraw, ImageFont

    width = 2 * SHOWN_SIDE + 3 * _MARGIN
    wrapped = []
    for number, line in enumerate(lines):
        font = ImageFont.load_default(20 if number == 0 else 15)
        wrapped += [(part, font) for part in _wrap(line, font, width - 2 * _MARGIN)]
    heights = [round(1.35 * font.size) for _, font in wrapped]
    figure = Image.new("RGB", (width, SHOWN_SIDE + 3 * _MARGIN + sum(heights)), _PAPER)
    figure.paste(Image.fromarray(image), (_MARGIN, _MARGIN))
    figure.paste(Image.fromarray(overlay(image, response)), (2 * _MARGIN + SHOWN_SIDE, _MARGIN))
    draw, y = ImageDraw.Draw(figure), SHOWN_SIDE + 2 * _MARGIN
    for (part, font), height in zip(wrapped, heights, strict=True):
        draw.text((_MARGIN, y), part, fill=_INK, font=font)
        y += height
    return figure


def _wrap(line: str, font: "ImageFont.FreeTypeFont", width: float) -> list[str]:
    """Cuts a line between words, and within a word that is too long alone."""
    parts, now = [], ""
    for word in line.split():
        while font.getlength(word) > width:
            fits = next(n for n in range(len(word), 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            parts += [now] if now else []
            parts.append(word[:fits])
            now, word = "", word[fits:]
        joined = f"{now} {word}".strip()
        if font.getlength(joined) > width:
            parts.append(now)
            joined = word
        now = joined
    return [*parts, now] if now or not parts else parts
