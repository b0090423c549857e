"""From a plan to pixels and boxes: exposure, the two hospitals' scanners, noise."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mmclip_jax.data.phantom.anatomy import Scene, compose, draw_chest, draw_position, grid
from mmclip_jax.data.phantom.dice import Dice
from mmclip_jax.data.phantom.findings import Finding, Patient
from mmclip_jax.data.phantom.lesions import draw_lesion
from mmclip_jax.data.schema import Box

# A pixel belongs to a lesion's box if the lesion changes it by this share of its largest change, at least this much.
BOX_SHARE = 0.2
BOX_LEVELS = 3.0


@dataclasses.dataclass(frozen=True)
class Scanner:
    """A hospital's style. noise: standard deviation in grey levels at 64 px."""

    contrast: float
    brightness: float
    noise: float
    marker: float  # chance of a side marker
    marker_right: bool  # on the patient's right
    border: float  # chance of a collimator's edge


SCANNERS = {
    "phantom-a": Scanner(contrast=1.0, brightness=0.0, noise=3.5, marker=0.3, marker_right=True, border=0.1),
    "phantom-b": Scanner(contrast=1.18, brightness=-6.0, noise=5.0, marker=0.8, marker_right=False, border=0.5),
}
_LETTERS = {
    True: ("110", "101", "110", "101", "101"),
    False: ("100", "100", "100", "100", "111"),
}


@dataclasses.dataclass(frozen=True)
class Exposure:
    """What the scanner makes of attenuation: grey = 255 * (1 - exp(-depth * attenuation)), stretched."""

    depth: float
    contrast: float
    brightness: float

    def grey(self, density: np.ndarray) -> np.ndarray:
        """Grey levels (float32, not yet clipped) of an attenuation map."""
        levels = np.exp(density * -self.depth)
        return (127.0 + self.brightness) + (self.contrast * 255.0) * (0.5 - levels)


def render(
    patient: Patient, study: int, findings: Sequence[Finding], source: str, size: int
) -> tuple[np.ndarray, tuple[Box, ...]]:
    """Draws a study: pixels uint8 [size, size] and one box for each finding, or for each side of it."""
    dice = Dice(*patient.key, study, 1)
    scanner = SCANNERS[source]
    position = draw_position(dice)
    exposure = Exposure(
        depth=dice.uniform(1.45, 1.75),
        contrast=scanner.contrast * dice.uniform(0.95, 1.05),
        brightness=scanner.brightness + dice.uniform(-10.0, 10.0),
    )
    frame = grid(size)
    fine = Dice(*patient.key, study, 2)
    scene = draw_chest(patient.anatomy, position, frame, fine)
    drawn = [(finding.kind, layer) for finding in findings for layer in draw_lesion(scene, finding)]
    layers = [layer for _, layer in drawn]
    grey = exposure.grey(compose(scene, layers))
    shown = np.clip(grey, 0.0, 255.0)
    boxes = []
    for index, (kind, _) in enumerate(drawn):
        without = exposure.grey(compose(scene, layers[:index] + layers[index + 1 :]))
        box = change_box(kind, np.abs(np.clip(without, 0.0, 255.0) - shown))
        if box:
            boxes.append(box)
    noise = fine.generator.standard_normal((size, size), dtype=np.float32)
    # Finer pixels catch fewer photons, up to a point.
    grey += noise * (scanner.noise * min(1.5, (size / 64) ** 0.5))
    _overlay(grey, scene, scanner, dice)
    return np.clip(grey + 0.5, 0.0, 255.0).astype(np.uint8), tuple(boxes)


def change_box(kind: str, change: np.ndarray) -> Box | None:
    """The tight box of the pixels [H, W] that a lesion changed (absolute grey levels); None if it is not seen."""
    limit = max(BOX_LEVELS, BOX_SHARE * float(change.max()))
    hit = change >= limit
    columns, rows = np.flatnonzero(hit.any(0)), np.flatnonzero(hit.any(1))
    if not columns.size:
        return None
    height, width = change.shape
    return Box(
        kind,
        float(columns[0] / width),
        float(rows[0] / height),
        float((columns[-1] + 1) / width),
        float((rows[-1] + 1) / height),
    )


def _overlay(grey: np.ndarray, scene: Scene, scanner: Scanner, dice: Dice) -> None:
    """Side marker and collimator's edge, in place; they take no part of the chest."""
    size = len(grey)
    marker, border = dice.chance(scanner.marker), dice.chance(scanner.border)
    width = dice.uniform(0.012, 0.03)
    if border:
        edge = max(1, round(width * size))
        grey[:edge] = grey[-edge:] = 4.0
        grey[:, :edge] = grey[:, -edge:] = 4.0
    if marker:
        letter = np.array([[float(c) for c in row] for row in _LETTERS[scanner.marker_right]], np.float32)
        cell = max(1, round(0.016 * size))
        letter = np.kron(letter, np.ones((cell, cell), np.float32))
        height, width_ = letter.shape
        top = round(0.05 * size)
        start = round(0.05 * size) if scanner.marker_right else size - round(0.05 * size) - width_
        region = grey[top : top + height, start : start + width_]
        np.copyto(region, 245.0, where=letter > 0)
