"""The healthy chest: a patient's anatomy, and its drawing as an attenuation map.

Geometry is in fractions of the image: x to the right, y down, both 0..1. As radiographs are hung, the patient's right
is on the image's left. `u` is the distance from the midline, so that both lungs are drawn in one go. Attenuation is in
arbitrary units: about 0.3 for aerated lung behind the chest wall, 0.9 for solid tissue;
`render.Exposure` makes grey of it.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable

import numpy as np

from mmclip_jax.data.phantom.dice import Dice

SIDES = ("right", "left")
# Cells of the coarse grid that smooth random fields are interpolated from.
COARSE = 14
AIR = 0.56  # attenuation that lung tissue lacks against solid tissue


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """What stays the same in all studies of a patient (fractions of the image unless stated)."""

    age: int
    sex: str
    width: float  # half-width of a lung
    lung_u: float  # distance of a lung's centre from the midline
    apex: float  # y of the lungs' top
    dome_right: float
    dome_left: float
    dome_depth: float  # how far the costophrenic angle lies below the dome
    heart_ratio: float  # heart's width by the chest's inner width, without disease
    heart_tilt: float  # radians
    aorta: float
    body: float  # half-width of the trunk
    wall: float  # attenuation of the chest wall
    ribs: float
    rib_spacing: float
    rib_phase: float
    rib_slope: float
    clavicle: float
    spine: float
    vessels: float
    vessel_turns: int
    vessel_phase: float
    bubble: float  # radius of the gastric air bubble, 0 for none
    breasts: float


def draw_anatomy(dice: Dice) -> Anatomy:
    """Draws a patient."""
    sex = "F" if dice.chance(0.5) else "M"
    dome_right = dice.uniform(0.735, 0.80)
    return Anatomy(
        age=int(dice.uniform(20, 90)),
        sex=sex,
        width=dice.uniform(0.185, 0.21),
        lung_u=dice.uniform(0.195, 0.215),
        apex=dice.uniform(0.075, 0.12),
        dome_right=dome_right,
        dome_left=dome_right + dice.uniform(0.01, 0.04),
        dome_depth=dice.uniform(0.07, 0.12),
        heart_ratio=dice.uniform(0.40, 0.485),
        heart_tilt=dice.uniform(0.35, 0.6),
        aorta=dice.uniform(0.035, 0.06),
        body=dice.uniform(0.455, 0.49),
        wall=dice.uniform(0.16, 0.24),
        ribs=dice.uniform(0.035, 0.06),
        rib_spacing=dice.uniform(0.078, 0.092),
        rib_phase=dice.uniform(0.0, 2 * math.pi),
        rib_slope=dice.uniform(1.0, 1.5),
        clavicle=dice.uniform(0.10, 0.16),
        spine=dice.uniform(0.05, 0.09),
        vessels=dice.uniform(0.09, 0.14),
        vessel_turns=dice.choice((5, 6, 7)),
        vessel_phase=dice.uniform(0.0, 2 * math.pi),
        bubble=dice.uniform(0.03, 0.05) if dice.chance(0.4) else 0.0,
        breasts=dice.uniform(0.03, 0.07) if sex == "F" else 0.0,
    )


@dataclasses.dataclass(frozen=True)
class Position:
    """How the patient stood: shift (fractions), rotation (radians), scale, and depth of inspiration (fractions)."""

    shift_x: float
    shift_y: float
    rotation: float
    scale: float
    inspiration: float


def draw_position(dice: Dice) -> Position:
    """Draws the positioning of one study."""
    return Position(
        shift_x=dice.uniform(-0.025, 0.025),
        shift_y=dice.uniform(-0.02, 0.02),
        rotation=dice.uniform(-0.05, 0.05),
        scale=dice.uniform(0.96, 1.04),
        inspiration=dice.uniform(-0.02, 0.015),
    )


@dataclasses.dataclass(frozen=True)
class Grid:
    """Pixel centres [S, S] and the matrix [S, COARSE] that interpolates smooth fields, float32."""

    size: int
    x: np.ndarray
    y: np.ndarray
    edge: float
    upsample: np.ndarray


@functools.lru_cache(maxsize=4)
def grid(size: int) -> Grid:
    """The grid of an image of `size` x `size` pixels. Edges are one pixel wide, at fine sizes 0.006 of the image."""
    centres = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(centres, centres)
    knots = centres * (COARSE - 1)
    upsample = np.clip(1 - np.abs(knots[:, None] - np.arange(COARSE)), 0, 1)
    upsample = upsample**2 * (3 - 2 * upsample)
    return Grid(
        size,
        x.astype(np.float32),
        y.astype(np.float32),
        max(1.0 / size, 0.006),
        (upsample / upsample.sum(1, keepdims=True)).astype(np.float32),
    )


@dataclasses.dataclass
class Scene:
    """The drawn chest of one study without disease; arrays are float32 [S, S], masks 0..1.

    x, y, u: patient coordinates; left: 1 on the image's right half; lung: both lungs, the heart not cut out;
    air: where aerated lung is seen; dome: y of the diaphragm; hilum: distance from the nearer hilum; vessels: their
    pattern; texture: vessels and mottle of aerated lung; fixed: attenuation of all else. `compose` adds it up.
    """

    anatomy: Anatomy
    grid: Grid
    x: np.ndarray
    y: np.ndarray
    u: np.ndarray
    left: np.ndarray
    body: np.ndarray
    lung: np.ndarray
    air: np.ndarray
    dome: np.ndarray
    hilum: np.ndarray
    vessels: np.ndarray
    texture: np.ndarray
    fixed: np.ndarray

    def ramp(self, distance: np.ndarray) -> np.ndarray:
        """1 inside (positive distance, in fractions), 0 outside, one edge width of transition."""
        return np.clip(distance * (1.0 / self.grid.edge) + 0.5, 0.0, 1.0)

    def side(self, side: str) -> np.ndarray:
        """Mask of the image half of `side`."""
        return self.left if side == "left" else 1.0 - self.left

    def disc(self, x: float, y: float) -> np.ndarray:
        """Distance of each pixel from (x, y)."""
        return np.sqrt((self.x - x) ** 2 + (self.y - y) ** 2)

    def line(self, points: list[tuple[float, float]], width: float) -> np.ndarray:
        """Mask of a polyline of this width."""
        distance = np.full_like(self.x, 9.0)
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            dx, dy = x1 - x0, y1 - y0
            along = np.clip(((self.x - x0) * dx + (self.y - y0) * dy) * (1.0 / (dx * dx + dy * dy)), 0.0, 1.0)
            np.minimum(distance, np.hypot(self.x - x0 - along * dx, self.y - y0 - along * dy), out=distance)
        # A line thinner than a pixel covers only part of it.
        cover = min(1.0, width / self.grid.edge)
        return cover * self.ramp(max(width, self.grid.edge) / 2 - distance)


def smooth_field(grid_: Grid, dice: Dice) -> np.ndarray:
    """A smooth random field [S, S] of about unit variance; the same at every image size."""
    coarse = dice.generator.standard_normal((COARSE, COARSE), dtype=np.float32)
    return 1.3 * (grid_.upsample @ coarse @ grid_.upsample.T)


@dataclasses.dataclass(frozen=True)
class Layer:
    """What a lesion does to the picture; each array float32 [S, S] or None.

    fill: share of the air that is replaced by solid or fluid (0..1); clear: share of the lung's texture that is gone
    (0..1); add: attenuation on top.
    """

    fill: np.ndarray | None = None
    clear: np.ndarray | None = None
    add: np.ndarray | None = None


def compose(scene: Scene, layers: Iterable[Layer]) -> np.ndarray:
    """The attenuation map [S, S] of the chest with these lesions."""
    air, texture, density = scene.air, scene.texture, scene.fixed
    for layer in layers:
        if layer.fill is not None:
            air = air * (1.0 - layer.fill)
        if layer.clear is not None:
            texture = texture * (1.0 - layer.clear)
        if layer.add is not None:
            density = density + layer.add
    return density + air * (texture - AIR)


def heart_shape(anatomy: Anatomy, enlarged: float) -> tuple[float, float, float, float]:
    """(x, y, half-width, half-height) of the heart's ellipse along its own axes; x is relative to the midline.

    enlarged: what disease adds to the ratio of the heart's to the chest's width (0 for none).
    """
    ratio = anatomy.heart_ratio + enlarged
    half = ratio * (anatomy.lung_u + anatomy.width)  # of the shadow, across
    tall = 0.66 * half + 0.035
    cos2 = math.cos(anatomy.heart_tilt) ** 2
    along = math.sqrt(max((half**2 - tall**2 * (1 - cos2)) / cos2, tall**2))
    return 0.34 * half, anatomy.dome_left - 0.72 * tall, along, tall


def draw_heart(scene: Scene, enlarged: float) -> np.ndarray:
    """Mask of the heart's shadow."""
    x, y, along, tall = heart_shape(scene.anatomy, enlarged)
    dx, dy = scene.x - (0.5 + x), scene.y - y
    cos, sin = math.cos(scene.anatomy.heart_tilt), math.sin(scene.anatomy.heart_tilt)
    radius = np.hypot((dx * cos + dy * sin) * (1.0 / along), (dy * cos - dx * sin) * (1.0 / tall))
    return scene.ramp((1.0 - radius) * tall)


def draw_chest(anatomy: Anatomy, position: Position, grid_: Grid, dice: Dice) -> Scene:
    """Draws the chest without disease. `dice` gives the fine texture."""
    cos, sin = math.cos(position.rotation) / position.scale, math.sin(position.rotation) / position.scale
    dx, dy = grid_.x - (0.5 + position.shift_x), grid_.y - (0.5 + position.shift_y)
    x, y = 0.5 + cos * dx + sin * dy, 0.5 + cos * dy - sin * dx
    u = np.abs(x - 0.5)
    left = (x > 0.5).astype(np.float32)
    ones = np.ones_like(x)
    scene = Scene(anatomy, grid_, x, y, u, left, *([ones] * 8))
    a = anatomy
    # Trunk, shoulders and neck.
    shoulder = np.clip((y - 0.02) * (1 / 0.17), 0.0, 1.0)
    scene.body = scene.ramp(0.17 + (a.body - 0.17) * shoulder * (2 - shoulder) - u)
    # Lungs: two domes, cut below by the diaphragm.
    spread = (u - a.lung_u) * (1 / a.width)
    height = 0.58 - a.apex
    rise = np.maximum((0.58 - y) * (1 / height), 0.0)
    outline = (1.0 - spread**2 - rise**3) * (0.45 * a.width)
    dome = a.dome_right + (a.dome_left - a.dome_right) * left + position.inspiration
    scene.dome = dome + a.dome_depth * ((u - 0.16) * (1 / 0.2)) ** 2
    below = scene.ramp(y - scene.dome)
    scene.lung = scene.ramp(outline) * (1.0 - below)
    # The mediastinum: great vessels above, broader at the root of the lungs, with the aortic knob on the left.
    band = 0.062 + 0.03 * np.clip((y - 0.3) * 4, 0.0, 1.0)
    knob = scene.ramp(a.aorta - scene.disc(0.5 + 0.05, 0.30))
    middle = np.maximum(scene.ramp(band - u), knob)
    scene.air = scene.lung * (1.0 - np.maximum(middle, draw_heart(scene, 0.0))) * scene.body
    # Vessels spread from the hila and thin out; a fine mottle on top.
    du, dv = u - 0.105, y - 0.45 - 0.02 * (1 - left)
    scene.hilum = np.hypot(du, dv)
    angle = np.arctan2(dv, du)
    branches = np.cos(
        a.vessel_turns * angle + a.vessel_phase + 2.5 * left + 1.3 * np.sin(19 * scene.hilum + a.rib_phase)
    )
    branches = np.maximum(branches, 0.0) * np.minimum(scene.hilum * 25, 1.0)
    scene.vessels = np.exp(scene.hilum * (-1 / 0.14)) * (branches * branches + 0.3)
    scene.texture = a.vessels * 2.0 * scene.vessels + 0.018 * smooth_field(grid_, dice)
    thick = np.exp((u * (-1 / 0.24)) * (u * (1 / 0.24)))  # the chest is thickest in the middle
    fixed = scene.body * (a.wall + AIR - 0.06 + 0.20 * thick + 0.10 * y + 0.14 * below + _bones(scene))
    # Trachea; the stomach's air bubble; the breasts' shadows.
    fixed -= 0.16 * scene.ramp(0.022 - u) * scene.ramp(0.36 - y)
    if a.bubble:
        fixed -= 0.25 * scene.ramp(a.bubble - scene.disc(0.5 + 0.17, a.dome_left + 0.10))
    if a.breasts:
        fixed += a.breasts * scene.ramp(0.16 - np.hypot(u - 0.24, y - 0.62))
    scene.fixed = fixed
    return scene


def _bones(scene: Scene) -> np.ndarray:
    """Ribs (behind and in front), clavicles and spine."""
    a, u, y = scene.anatomy, scene.u, scene.y
    turn = 2 * math.pi / a.rib_spacing
    cage = scene.ramp(0.94 * a.body - u) * np.clip((0.9 - y) * 8, 0.0, 1.0) * np.clip((u - 0.03) * 20, 0.0, 1.0)
    posterior = np.maximum(np.cos(turn * (y - a.rib_slope * (u - 0.1) ** 2) + a.rib_phase), 0.0)
    anterior = np.maximum(np.cos(turn * 0.8 * (y - 0.55 * (0.4 - u)) + a.rib_phase), 0.0)
    bones = a.ribs * cage * (posterior + 0.45 * anterior * np.clip((u - 0.08) * 8, 0.0, 1.0))
    along = np.clip((u - 0.03) * (1 / 0.33), 0.0, 1.0)
    clavicle = 0.175 - 0.05 * along - 0.03 * np.sin(3.1 * along)
    bones += a.clavicle * scene.ramp(0.014 - np.abs(y - clavicle)) * (along > 0) * (along < 1)
    discs = 0.7 + 0.3 * np.cos(y * (2 * math.pi / 0.07) + a.rib_phase)
    return bones + a.spine * scene.ramp(0.042 - u) * discs
