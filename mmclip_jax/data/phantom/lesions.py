"""How each finding looks: layers over the healthy chest. Sizes are fractions of the image, contrasts attenuation."""

import math
from collections.abc import Callable

import numpy as np

from mmclip_jax.data.phantom.anatomy import Layer, Scene, draw_heart, smooth_field
from mmclip_jax.data.phantom.dice import Dice
from mmclip_jax.data.phantom.findings import Finding

_ZONE_Y = {"upper": (0.20, 0.30), "middle": (0.39, 0.49), "lower": (0.57, 0.66)}


def draw_lesion(scene: Scene, finding: Finding) -> list[Layer]:
    """The layers of a finding, one for each box: one a side, or a single one."""
    return _DRAW[finding.kind](scene, finding, Dice(*finding.key, 1))


def _sign(side: str) -> float:
    return 1.0 if side == "left" else -1.0


def _centre(finding: Finding, dice: Dice) -> tuple[float, float]:
    """A place within the lung's zone, clear of the heart's and diaphragm's shadows."""
    side = finding.sides[0]
    low, high = (0.13, 0.27) if finding.zone == "upper" else (0.16, 0.29)
    if side == "left" and finding.zone == "lower":
        low, high = 0.25, 0.31
    return 0.5 + _sign(side) * dice.uniform(low, high), dice.uniform(*_ZONE_Y[finding.zone])


def _cardiomegaly(scene: Scene, finding: Finding, dice: Dice) -> list[Layer]:
    # To a ratio of 0.53 to 0.66, whatever it was before.
    ratio = 0.53 + 0.13 * finding.severity
    return [Layer(fill=draw_heart(scene, ratio - scene.anatomy.heart_ratio))]


def _pleural_effusion(scene: Scene, finding: Finding, dice: Dice) -> list[Layer]:
    layers = []
    for side in finding.sides:
        depth = 0.13 + 0.28 * finding.severity * dice.uniform(0.85, 1.15)
        bottom = scene.anatomy.dome_left if side == "left" else scene.anatomy.dome_right
        # The meniscus: highest at the chest's wall.
        level = bottom + 0.06 - depth + 0.5 * depth * (1.0 - np.clip((scene.u - 0.1) * (1 / 0.27), 0.0, 1.0) ** 2)
        layers.append(Layer(fill=0.95 * scene.ramp((scene.y - level) * 0.6) * scene.side(side)))
    return layers


def _pneumothorax(scene: Scene, finding: Finding, dice: Dice) -> list[Layer]:
    side = finding.sides[0]
    a = scene.anatomy
    # The lung shrinks towards its hilum; beyond its edge there is air without vessels, and the edge is a fine line.
    retreat = 0.04 + 0.09 * finding.severity
    spread = (scene.u - (a.lung_u - 1.1 * retreat)) * (1 / (a.width - 0.1 * retreat))
    top = a.apex + 1.5 * retreat
    rise = np.maximum((0.62 - scene.y) * (1 / (0.62 - top)), 0.0)
    inside = (1.0 - spread**2 - rise**3) * (0.45 * a.width)
    outside = scene.ramp(-inside) * scene.side(side) * scene.ramp((0.60 + 0.2 * finding.severity) - scene.y)
    outside = outside * scene.ramp(scene.u - 0.085)
    width = max(scene.grid.edge, 0.01)
    line = np.clip(1.0 - np.abs(inside) * (1.0 / width), 0.0, 1.0) * scene.air * scene.side(side)
    line = line * scene.ramp((0.60 + 0.2 * finding.severity) - scene.y) * scene.ramp(scene.u - 0.085)
    return [Layer(clear=outside, add=0.14 * line - 0.09 * outside * scene.air)]


def _edema(scene: Scene, finding: Finding, dice: Dice) -> list[Layer]:
    strength = 0.28 + 0.35 * finding.severity
    haze = strength * np.exp(-((scene.hilum * (1 / 0.19)) ** 2)) + 0.16 * strength
    haze = haze * (0.9 + 0.18 * smooth_field(scene.grid, dice)) + 0.3 * strength * scene.vessels
    # Septal lines: short, level, at the lungs' outer base.
    septa = np.maximum(np.cos(scene.y * (2 * math.pi / 0.05)), 0.0) * scene.ramp(scene.u - 0.29)
    haze = np.clip(haze + 0.3 * strength * septa * scene.ramp(scene.y - 0.5), 0.0, 0.9)
    return [Layer(fill=haze * scene.side(side)) for side in finding.sides]


def _consolidation(scene: Scene, finding: Finding, dice: Dice) -> list[Layer]:
    x, y = _centre(finding, dice)
    wide = (0.095 + 0.045 * finding.severity) * dice.uniform(0.9, 1.15)
    tall = (0.085 + 0.045 * finding.severity) * dice.uniform(0.9, 1.15)
    radius = np.hypot((scene.x - x) * (1 / wide), (scene.y - y) * (1 / tall))
    # Fluffy: a soft edge that smooth noise moves in and out.
    body = np.clip((1.1 - radius) * 1.4 + 0.40 * smooth_field(scene.grid, dice) * (radius < 1.6), 0.0, 1.0)
    return [Layer(fill=(0.44 + 0.2 * finding.severity) * body * scene.side(finding.sides[0]))]


def _round(scene: Scene, x: float, y: float, radius: float, lobes: float, dice: Dice) -> np.ndarray:
    """A disc with a lobulated outline."""
    angle = np.arctan2(scene.y - y, scene.x - x)
    outline = radius * (1.0 + lobes * np.cos(3 * angle + 6.3 * dice.random()) * np.cos(2 * angle + 6.3 * dice.random()))
    return scene.ramp((outline - scene.disc(x, y)) * 0.8)


def _nodule(scene: Scene, finding: Finding, dice: Dice) -> list[Layer]:
    x, y = _centre(finding, dice)
    radius = 0.044 + 0.018 * finding.severity
    disc = scene.ramp((radius - scene.disc(x, y)) * 0.8)
    return [Layer(add=dice.uniform(0.26, 0.38) * disc * scene.lung)]


def _mass(scene: Scene, finding: Finding, dice: Dice) -> list[Layer]:
    x, y = _centre(finding, dice)
    radius = 0.085 + 0.045 * finding.severity
    disc = _round(scene, x, y, radius, 0.16, dice)
    return [Layer(add=dice.uniform(0.32, 0.44) * disc * scene.lung * scene.side(finding.sides[0]))]


def _atelectasis(scene: Scene, finding: Finding, dice: Dice) -> list[Layer]:
    side = finding.sides[0]
    x, y = _centre(finding, dice)
    mask = np.zeros_like(scene.x)
    half = 0.085 + 0.035 * finding.severity
    tilt = dice.uniform(-0.25, 0.35) * _sign(side)
    for number in range(1 if finding.severity < 0.4 else 2):
        middle = y + (-0.035 if number else 0.03) * (finding.severity >= 0.4)
        ends = [(x - half, middle - tilt * half), (x + half, middle + tilt * half)]
        mask = np.maximum(mask, scene.line(ends, 0.024 + 0.008 * finding.severity))
    return [Layer(add=(0.26 + 0.1 * finding.severity) * mask * scene.lung * scene.side(side))]


def _fibrosis(scene: Scene, finding: Finding, dice: Dice) -> list[Layer]:
    # A net of coarse lines, at the lung's outer base or at its apex.
    turn = 2 * math.pi / dice.uniform(0.062, 0.072)
    warp = 0.012 * smooth_field(scene.grid, dice)
    one = np.abs(np.sin(0.5 * turn * (0.87 * scene.x + 0.5 * scene.y + warp) + 6.3 * dice.random()))
    two = np.abs(np.sin(0.5 * turn * (0.87 * scene.x - 0.5 * scene.y - warp) + 6.3 * dice.random()))
    net = (1.0 - np.minimum(one, two)) ** 2 * 1.15 - 0.15
    strength = 0.24 + 0.14 * finding.severity
    layers = []
    for side in finding.sides:
        if finding.zone == "lower":
            place = np.clip((scene.y - (0.56 - 0.05 * finding.severity)) * 9, 0.0, 1.0)
            place = place * np.clip((scene.u - 0.14) * 9, 0.0, 1.0)
        else:
            place = np.clip((0.33 + 0.05 * finding.severity - scene.y) * 9, 0.0, 1.0)
        layers.append(Layer(add=strength * net * place * scene.air * scene.side(side)))
    return layers


def _hernia(scene: Scene, finding: Finding, dice: Dice) -> list[Layer]:
    # A stomach above the diaphragm, behind the heart: a rounded wall, gas above a fluid level.
    radius = 0.065 + 0.035 * finding.severity
    x, y = 0.5 + dice.uniform(0.0, 0.05), scene.anatomy.dome_left - dice.uniform(0.01, 0.03) - 0.6 * radius
    distance = scene.disc(x, y)
    inside = scene.ramp(radius - distance)
    wall = inside - scene.ramp(radius - 0.022 - distance)
    gas = scene.ramp(radius - 0.022 - distance) * scene.ramp(y + 0.25 * radius - scene.y)
    return [Layer(add=0.28 * wall + 0.08 * inside - (0.42 + 0.1 * finding.severity) * gas)]


def _support_device(scene: Scene, finding: Finding, dice: Dice) -> list[Layer]:
    if finding.device == "pacemaker":
        x, y = 0.5 + dice.uniform(0.24, 0.29), dice.uniform(0.20, 0.25)
        flat = np.maximum(np.abs(scene.x - x) * (1 / 0.052), np.abs(scene.y - y) * (1 / 0.042))
        can = scene.ramp((1.0 - flat) * 0.042)
        lead = scene.line([(x - 0.04, y), (0.56, 0.20), (0.485, 0.34), (0.50, 0.55), (0.60, 0.70)], 0.011)
        return [Layer(add=1.1 * np.maximum(can, 0.8 * lead))]
    if finding.device == "endotracheal tube":
        x, end = 0.5 + dice.uniform(-0.006, 0.006), dice.uniform(0.29, 0.35)
        return [Layer(add=1.0 * scene.line([(x, -0.1), (x, end)], 0.019))]
    end = dice.uniform(0.40, 0.47)
    points = [(0.40, -0.05), (0.405, 0.10), (0.44, 0.19), (0.455, 0.30), (0.46, end)]
    return [Layer(add=1.0 * scene.line(points, 0.016))]


_DRAW: dict[str, Callable[[Scene, Finding, Dice], list[Layer]]] = {
    "atelectasis": _atelectasis,
    "cardiomegaly": _cardiomegaly,
    "consolidation": _consolidation,
    "edema": _edema,
    "fibrosis": _fibrosis,
    "hernia": _hernia,
    "mass": _mass,
    "nodule": _nodule,
    "pleural_effusion": _pleural_effusion,
    "pneumothorax": _pneumothorax,
    "support_device": _support_device,
}
