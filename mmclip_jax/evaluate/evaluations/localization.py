"""How well a response map covers a region: IoU and Dice at thresholds, contrast-to-noise ratio.

Maps and regions are compared on a square of SIDE x SIDE points: maps are interpolated bilinearly and stretched to 0..1
image by image, regions are boxes or masks of the stored image, placed in the padded square.
"""

import functools
from collections.abc import Sequence

import numpy as np

from mmclip_jax.data.images.stored import open_stored
from mmclip_jax.data.schema import Box
from mmclip_jax.errors import UserError

SIDE = 128
THRESHOLDS = np.round(np.arange(1, 20) * 0.05, 2)


@functools.lru_cache(maxsize=16)
def _weights(points: int, cells: int) -> np.ndarray:
    """Linear interpolation [points, cells] from the centres of cells to the centres of points; constant beyond."""
    place = np.clip((np.arange(points) + 0.5) * cells / points - 0.5, 0, cells - 1)
    low = np.minimum(place.astype(int), max(cells - 2, 0))
    weights = np.zeros((points, cells))
    weights[np.arange(points), low] = 1.0 - (place - low)
    if cells > 1:
        weights[np.arange(points), low + 1] = place - low
    return weights


def enlarge(response: np.ndarray, side: int = SIDE) -> np.ndarray:
    """A map [gh, gw] as float64 [side, side], bilinear."""
    height, width = response.shape
    return _weights(side, height) @ response.astype(np.float64) @ _weights(side, width).T


def stretch(response: np.ndarray) -> np.ndarray:
    """A map with its minimum at 0 and its maximum at 1; a constant one is 0 everywhere.

    Raises:
      UserError: a response that is NaN.
    """
    if np.isnan(response).any():
        raise UserError("a response map holds NaN: the checkpoint is broken, choose an earlier step")
    low, high = float(response.min()), float(response.max())
    return (response - low) / (high - low) if high > low else np.zeros_like(response)


def inside_boxes(boxes: Sequence[Box], grid: tuple[int, int]) -> np.ndarray:
    """Whose centre lies inside any of the boxes (fractions of the same square; edges count): bool [gh, gw]."""
    height, width = grid
    y = ((np.arange(height) + 0.5) / height)[:, np.newaxis]
    x = ((np.arange(width) + 0.5) / width)[np.newaxis, :]
    inside = np.zeros(grid, bool)
    for box in boxes:
        inside |= (box.y_min <= y) & (y <= box.y_max) & (box.x_min <= x) & (x <= box.x_max)
    return inside


def inside_mask(mask: bytes, grid: tuple[int, int]) -> np.ndarray:
    """The pixel of a mask (a PNG of the stored image's size) under each centre of the padded square: bool [gh, gw]."""
    with open_stored(mask) as image:
        white = np.asarray(image.convert("L")) > 127
    height, width = white.shape
    side = max(height, width)
    y, x = (np.floor((np.arange(n) + 0.5) * side / n).astype(int) for n in grid)
    y, x = y - (side - height) // 2, x - (side - width) // 2
    rows, columns = (y >= 0) & (y < height), (x >= 0) & (x < width)
    inside = np.zeros(grid, bool)
    inside[np.ix_(rows, columns)] = white[np.ix_(y[rows], x[columns])]
    return inside


def overlaps(stretched: np.ndarray, region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(IoU, Dice), float64 [T] each, of {stretched >= t} with the region, for every t of `THRESHOLDS`.

    stretched: [S, S] in 0..1; region: bool [S, S], not empty.
    """
    passed = np.searchsorted(THRESHOLDS, stretched.ravel(), side="right")  # how many thresholds are reached
    inside = region.ravel()
    count = len(THRESHOLDS) + 1
    # Points that reach at least threshold t: those with passed > t.
    both = np.bincount(passed[inside], minlength=count)[::-1].cumsum()[::-1][1:].astype(np.float64)
    found = np.bincount(passed, minlength=count)[::-1].cumsum()[::-1][1:].astype(np.float64)
    size = float(inside.sum())
    return both / (found + size - both), 2.0 * both / (found + size)


def contrast_to_noise(response: np.ndarray, region: np.ndarray) -> float:
    """(mean inside - mean outside) / sqrt(variance inside + variance outside); NaN if either is empty or both are flat.

    Boecking et al. (ECCV 2022) with the sign kept: a map that is darker inside is worse than none.
    """
    inside, outside = response[region], response[~region]
    if not len(inside) or not len(outside):
        return float("nan")
    noise = float(np.sqrt(inside.var() + outside.var()))
    return float(inside.mean() - outside.mean()) / noise if noise else float("nan")
