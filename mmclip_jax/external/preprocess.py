"""Another model's own way from a stored image to the numbers that it takes: a list of steps, then mean and deviation.

Steps, in their order; N is pixels:

    {shortest: N, filter: F}   resize so that the shorter side is N
    {longest: N, filter: F}    resize so that the longer side is N; round: nearest or down, for the other side
    {squash: N, filter: F}     resize to N x N, whatever the shape
    {crop: N}                  the N x N in the middle, black where the image is smaller; round: nearest or down, where
                               the middle of an odd rest is
    {pad: N}                   put into the middle of a black N x N
    {interpolate: N}           bicubic to N x N without antialiasing, as PyTorch does with arrays of numbers

F is one of Pillow's filters (nearest, bilinear, bicubic, lanczos, box, hamming), which all antialias.
"""

import dataclasses
import functools
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmclip_jax.errors import UserError
from mmclip_jax.fields import field, fits

FILTERS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
_RESIZE = ("shortest", "longest", "squash")
_ROUNDED = {"longest": "nearest", "crop": "nearest"}
_KINDS = (*_RESIZE, "crop", "pad", "interpolate")
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
# PyTorch's coefficient of bicubic interpolation of arrays; Pillow's filter has -0.5.
_CUBIC = -0.75


@dataclasses.dataclass(frozen=True)
class Step:
    """One step; see the module's words."""

    kind: str
    size: int
    filter: str = ""
    round: str = ""

    def __str__(self) -> str:
        details = ", ".join(word for word in (self.filter, self.round and f"rounded {self.round}") if word)
        return f"{self.kind} {self.size}" + (f" ({details})" if details else "")


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """steps; mean and std, one or three numbers each, of grey levels from 0 to `white`."""

    steps: tuple[Step, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    white: float = 1.0

    @property
    def size(self) -> int:
        """Pixels a side of what comes out."""
        return self.steps[-1].size

    def enlarges(self, shape: Sequence[int]) -> bool:
        """Whether a step makes a side of an image of this shape (H, W) longer by resizing; black edges do not count."""
        height, width = shape
        for step in self.steps:
            after = _shape_after(step, height, width)
            if step.kind not in ("crop", "pad") and (after[0] > height or after[1] > width):
                return True
            height, width = after
        return False

    def __call__(self, pixels: np.ndarray, channels: int) -> np.ndarray:
        """Uint8 [H,W] -> float32 [size,size,channels], a grey image in every channel."""
        image = pixels
        for step in self.steps:
            image = _apply(step, image)
        levels = image.astype(np.float32)[:, :, np.newaxis] * np.float32(self.white / 255.0)
        mean, std = (np.asarray(values, np.float32)[np.newaxis, np.newaxis] for values in (self.mean, self.std))
        return np.broadcast_to((levels - mean) / std, (*image.shape, channels))

    def __str__(self) -> str:
        units = "grey levels of 0 to 255" if self.white == 255 else f"grey levels of 0 to {self.white:g}"
        numbers = " and ".join(", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"{', '.join(map(str, self.steps))}; mean and deviation {numbers} of {units}"


def parse(where: str, entry: Any) -> Preprocess:
    """The rules of a spec: {steps: [...], mean: [...], std: [...], white: 1 or 255}.

    Raises:
      UserError: a mistake in them, with `where` before it.
    """
    known = ("steps", "mean", "std", "white")
    if not isinstance(entry, Mapping) or set(entry) - set(known) or not {"steps", "mean", "std"} <= set(entry):
        raise UserError(f"{where}: preprocess needs steps, mean and std, may have white, and nothing else")
    if not isinstance(entry["steps"], list) or not entry["steps"]:
        raise UserError(f"{where}: preprocess, steps is no list of steps")
    steps = tuple(_parse_step(where, step) for step in entry["steps"])
    mean, std = (_numbers(f"{where}: preprocess, {name}", entry[name]) for name in ("mean", "std"))
    white = _numbers(f"{where}: preprocess, white", [entry.get("white", 1.0)])[0]
    return _checked(where, Preprocess(steps, mean, std, white))


def of_huggingface(where: str, config: Mapping[str, Any]) -> Preprocess:
    """What a preprocessor_config.json of Hugging Face's says.

    Raises:
      UserError: it says something that is not supported.
    """
    filters = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
    steps = []
    size = config.get("size", {"shortest_edge": 224})
    if field(where, config, "do_resize", bool, True):
        filter = filters.get(field(where, config, "resample", int, 3), "")
        if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
            steps.append(Step("shortest", _side(where, "size", size["shortest_edge"]), filter))
        else:
            # One number is an old way to say it: CLIP's means the shorter side, ViT's both.
            shorter = "crop_size" in config and not isinstance(size, Mapping)
            steps.append(Step("shortest" if shorter else "squash", _side(where, "size", size), filter))
    if field(where, config, "do_center_crop", bool, "crop_size" in config):
        steps.append(Step("crop", _side(where, "crop_size", config.get("crop_size", size)), round="down"))
    whole = all(field(where, config, name, bool, True) for name in ("do_rescale", "do_normalize"))
    if not steps or not whole:
        raise UserError(f"{where}: without resizing, rescaling or normalising; say in the spec how to preprocess")
    white = 255.0 * field(where, config, "rescale_factor", float, 1 / 255)
    mean, std = (_numbers(f"{where}: {key}", config.get(key)) for key in ("image_mean", "image_std"))
    return _checked(where, Preprocess(tuple(steps), mean, std, 1.0 if abs(white - 1) < 1e-6 else white))


def of_open_clip(where: str, config: Mapping[str, Any], size: int) -> Preprocess:
    """What the preprocess_cfg of an open_clip_config.json says, for a model of `size` pixels a side.

    Raises:
      UserError: it says something that is not supported.
    """
    if strange := sorted(set(config) - set(_OPEN_CLIP)):
        raise UserError(f"{where}: {strange[0]} is not supported; say in the spec how to preprocess")
    filter = field(where, config, "interpolation", str, "bicubic")
    modes = {
        "shortest": (Step("shortest", size, filter), Step("crop", size, round="nearest")),
        "longest": (Step("longest", size, filter, "nearest"), Step("pad", size)),
        "squash": (Step("squash", size, filter),),
    }
    mode = field(where, config, "resize_mode", str, "shortest")
    if mode not in modes:
        raise UserError(f"{where}: the resize_mode {mode!r} is not supported")
    if config.get("size") not in (None, size, [size], [size, size]):
        raise UserError(f"{where}: its size is {reprlib.repr(config['size'])}, and the weights' {size}")
    if mode == "longest" and config.get("fill_color") not in (None, 0, [0], [0, 0, 0]):
        raise UserError(f"{where}: edges of fill_color {reprlib.repr(config['fill_color'])} are not supported, only 0")
    mean, std = (
        _numbers(f"{where}: {key}", config.get(key, list(otherwise)))
        for key, otherwise in (("mean", OPENAI_MEAN), ("std", OPENAI_STD))
    )
    return _checked(where, Preprocess(modes[mode], mean, std))


# Fields of a preprocess_cfg that are heeded, or mean nothing for a grey image.
_OPEN_CLIP = ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")


def interpolate(pixels: np.ndarray, size: int) -> np.ndarray:
    """Bicubic interpolation of [H,W] to float32 [size,size] without antialiasing, pixels' centres at halves."""
    rows, columns = (_cubic_matrix(side, size) for side in pixels.shape)
    return (rows @ pixels.astype(np.float64) @ columns.T).astype(np.float32)


@functools.lru_cache(maxsize=64)
def _cubic_matrix(side: int, size: int) -> np.ndarray:
    """float64 [size, side]: what each of `side` pixels in a row adds to each of `size`; edges are continued."""
    center = (np.arange(size) + 0.5) * side / size - 0.5
    first = np.floor(center).astype(int)
    matrix = np.zeros((size, side))
    for tap in range(-1, 3):
        away = np.abs(center - (first + tap))
        near = ((_CUBIC + 2) * away - (_CUBIC + 3)) * away**2 + 1
        far = _CUBIC * (((away - 5) * away + 8) * away - 4)
        weight = np.where(away <= 1, near, np.where(away < 2, far, 0.0))
        np.add.at(matrix, (np.arange(size), np.clip(first + tap, 0, side - 1)), weight)
    return matrix


def _apply(step: Step, image: np.ndarray) -> np.ndarray:
    if step.kind == "interpolate":
        return interpolate(image, step.size)
    if step.kind in _RESIZE:
        return _resize(image, *_shape_after(step, *image.shape), step.filter)
    return _center(image, step.size, step.round)


def _shape_after(step: Step, height: int, width: int) -> tuple[int, int]:
    if step.kind == "shortest":
        short = min(height, width)
        return int(step.size * height / short), int(step.size * width / short)
    if step.kind == "longest":
        ratio = step.size / max(height, width)
        rounded = int if step.round == "down" else round
        return max(1, rounded(height * ratio)), max(1, rounded(width * ratio))
    return step.size, step.size


def _resize(image: np.ndarray, height: int, width: int, filter: str) -> np.ndarray:
    if image.shape == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling[filter.upper()]))


def _center(image: np.ndarray, size: int, rounded: str) -> np.ndarray:
    """The middle of an image on a black square."""
    square = np.zeros((size, size), image.dtype)
    target, source = [], []
    for side in image.shape:
        if side >= size:
            start = round((side - size) / 2) if rounded == "nearest" else (side - size) // 2
            target.append(slice(0, size))
            source.append(slice(start, start + size))
        else:
            start = (size - side) // 2
            target.append(slice(start, start + side))
            source.append(slice(0, side))
    square[tuple(target)] = image[tuple(source)]
    return square


def _parse_step(where: str, entry: Any) -> Step:
    kinds = [kind for kind in _KINDS if isinstance(entry, Mapping) and kind in entry]
    if len(kinds) != 1:
        raise UserError(f"{where}: the step {entry!r} of preprocess is none of {', '.join(_KINDS)}")
    kind = kinds[0]
    allowed = {kind} | ({"filter"} if kind in _RESIZE else set()) | ({"round"} if kind in _ROUNDED else set())
    if unknown := sorted(map(str, set(entry) - allowed)):
        raise UserError(f"{where}: the step {kind} of preprocess has no {unknown[0]!r}")
    size = entry[kind]
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UserError(f"{where}: the step {kind} of preprocess needs a number of pixels, not {size!r}")
    return Step(kind, size, str(entry.get("filter", "")), str(entry.get("round", _ROUNDED.get(kind, ""))))


def _side(where: str, name: str, value: Any) -> int:
    """N, which is said as it is or as {"height": N, "width": N}."""
    sides = value
    if isinstance(value, Mapping) and set(value) == {"height", "width"} and value["height"] == value["width"]:
        sides = value["height"]
    if not fits(sides, int, low=1):
        raise UserError(
            f"{where}: the {name} {reprlib.repr(value)} is not supported; say in the spec how to preprocess"
        )
    return int(sides)


def _checked(where: str, made: Preprocess) -> Preprocess:
    for number, step in enumerate(made.steps):
        if step.kind in _RESIZE and step.filter not in FILTERS:
            raise UserError(f"{where}: {step.kind} of preprocess needs a filter, one of {', '.join(FILTERS)}")
        if step.round not in ("", "nearest", "down"):
            raise UserError(f"{where}: round of {step.kind} is nearest or down, not {step.round!r}")
        if number and made.steps[number - 1].kind == "interpolate" and step.kind in _RESIZE:
            raise UserError(f"{where}: {step.kind} cannot follow interpolate, which leaves no 8-bit image")
    if made.steps[-1].kind in ("shortest", "longest"):
        raise UserError(f"{where}: preprocess ends with {made.steps[-1].kind}, which leaves no square; crop or pad")
    if len(made.mean) not in (1, 3) or len(made.std) != len(made.mean):
        raise UserError(f"{where}: mean and std of preprocess are one number each, or three")
    if min(made.std) <= 0 or made.white <= 0:
        raise UserError(f"{where}: std and white of preprocess are above 0")
    return made


def _numbers(where: str, value: Any) -> tuple[float, ...]:
    if not isinstance(value, Sequence) or not all(fits(v, float) for v in value):
        raise UserError(f"{where} is no list of numbers")
    return tuple(float(v) for v in value)
