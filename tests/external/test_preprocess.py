"""Other models' preprocessing, step by step, against Pillow and NumPy by hand."""

import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmclip_jax.errors import UserError
from mmclip_jax.external import preprocess
from mmclip_jax.external.preprocess import Preprocess, Step

RNG = np.random.default_rng(0)
# Smooth enough that a wrong filter or offset shows as more than noise.
PICTURE = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (11, 7)).astype(np.uint8)).resize((61, 97), Image.Resampling.BICUBIC)
)


def plain(*steps: Step) -> np.ndarray:
    """The pixels after the steps: grey levels as they are."""
    return Preprocess(steps, (0.0,), (1.0,), 255.0)(PICTURE, 1)[..., 0]


def resized(height: int, width: int, filter: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(PICTURE).resize((width, height), filter), np.float32)


def test_the_shorter_side_and_the_middle() -> None:
    # 97 x 61: 32 * 97 / 61 = 50.9 rows; 18 are too many.
    tall = resized(50, 32, Image.Resampling.BICUBIC)
    assert np.array_equal(plain(Step("shortest", 32, "bicubic"), Step("crop", 32, round="nearest")), tall[9:41])
    # An odd rest: 45 rows are cut to 32, of which 6 or 7 are above.
    tall = resized(int(28 * 97 / 61), 28, Image.Resampling.BILINEAR)
    assert tall.shape == (44, 28)
    cut = plain(Step("shortest", 28, "bilinear"), Step("crop", 27, round="down"))
    assert np.array_equal(cut, tall[8:35, 0:27])
    # 8.5 and 0.5 are rounded to the even number, as Python does.
    cut = plain(Step("shortest", 28, "bilinear"), Step("crop", 27, round="nearest"))
    assert np.array_equal(cut, tall[8:35, 0:27])
    cut = plain(Step("shortest", 28, "bilinear"), Step("crop", 25, round="nearest"))
    assert np.array_equal(cut, tall[10:35, 2:27])
    assert np.array_equal(plain(Step("shortest", 28, "bilinear"), Step("crop", 25, round="down")), tall[9:34, 1:26])


@pytest.mark.parametrize(("rounded", "width"), [("down", 20), ("nearest", 21)])
def test_the_longer_side_on_black(rounded: str, width: int) -> None:
    # 33 * 61 / 97 = 20.75
    small = resized(33, width, Image.Resampling.LANCZOS)
    wanted = np.zeros((33, 33), np.float32)
    start = (33 - width) // 2
    wanted[:, start : start + width] = small
    made = plain(Step("longest", 33, "lanczos", rounded), Step("pad", 33))
    assert np.array_equal(made, wanted)
    assert made[:, start].any()
    assert not made[:, start - 1].any()


def test_squashed() -> None:
    assert np.array_equal(plain(Step("squash", 40, "hamming")), resized(40, 40, Image.Resampling.HAMMING))


def test_interpolation_of_arrays() -> None:
    """Against Keys' cubic convolution, a = -0.75, written out; edges repeat."""

    def kernel(x: float) -> float:
        x = abs(x)
        if x < 1:
            return 1.25 * x**3 - 2.25 * x**2 + 1
        return -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3 if x < 2 else 0.0

    made = preprocess.interpolate(PICTURE, 23)
    for row, column in ((0, 0), (0, 22), (11, 5), (22, 13)):
        y, x = (row + 0.5) * 97 / 23 - 0.5, (column + 0.5) * 61 / 23 - 0.5
        total = 0.0
        for j in range(math.floor(y) - 1, math.floor(y) + 3):
            for i in range(math.floor(x) - 1, math.floor(x) + 3):
                pixel = float(PICTURE[min(max(j, 0), 96), min(max(i, 0), 60)])
                total += kernel(y - j) * kernel(x - i) * pixel
        assert made[row, column] == pytest.approx(total, abs=1e-3)


def test_what_is_enlarged_on_the_way() -> None:
    chexzero = (Step("longest", 320, "lanczos", "down"), Step("pad", 320), Step("interpolate", 224))
    openai = (Step("shortest", 224, "bicubic"), Step("crop", 224, round="nearest"))
    for steps, shape, enlarged in [
        (chexzero, (256, 300), True),
        (chexzero, (256, 320), False),
        (chexzero, (7, 320), False),
        (openai, (180, 256), True),
        (openai, (256, 223), True),
        (openai, (224, 256), False),
        ((Step("squash", 224, "box"),), (400, 223), True),
        ((Step("squash", 224, "box"),), (224, 400), False),
        ((Step("shortest", 50, "box"), Step("crop", 40), Step("interpolate", 60)), (70, 70), True),
        ((Step("crop", 40), Step("squash", 30, "box")), (20, 25), False),
    ]:
        assert Preprocess(steps, (0.5,), (0.5,)).enlarges(shape) == enlarged, (steps, shape)


def test_mean_and_deviation_of_each_channel() -> None:
    mean, std = (0.4, 0.5, 0.1), (0.2, 0.25, 0.5)
    made = Preprocess((Step("squash", 5, "box"),), mean, std)(PICTURE, 3)
    grey = resized(5, 5, Image.Resampling.BOX) / 255
    for channel in range(3):
        np.testing.assert_allclose(made[..., channel], (grey - mean[channel]) / std[channel], atol=1e-6)
    levels = Preprocess((Step("squash", 5, "box"),), (100.0,), (50.0,), 255.0)(PICTURE, 3)
    np.testing.assert_allclose(levels, np.repeat((grey * 255 - 100)[..., None] / 50, 3, axis=2), atol=1e-5)


def test_what_a_folder_of_hugging_face_says() -> None:
    config: dict[str, Any] = {
        "crop_size": {"height": 27, "width": 27}, "do_center_crop": True, "do_resize": True, "resample": 3,
        "size": {"shortest_edge": 28}, "image_mean": [0.5], "image_std": [0.25], "rescale_factor": 1 / 255,
    }  # fmt: skip
    rules = preprocess.of_huggingface("f", config)
    assert rules == Preprocess((Step("shortest", 28, "bicubic"), Step("crop", 27, "", "down")), (0.5,), (0.25,), 1.0)
    assert preprocess.of_huggingface("f", config | {"size": 28, "crop_size": 27}) == rules
    vit: dict[str, Any] = {
        "size": {"height": 28, "width": 28},
        "resample": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    assert preprocess.of_huggingface("f", vit).steps == (Step("squash", 28, "bilinear"),)
    assert preprocess.of_huggingface("f", vit | {"rescale_factor": 2 / 255}).white == pytest.approx(2)
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"size": {"longest_edge": 3}}, r"f: the size \{'longest_edge': 3\} is not supported"),
        ({"do_rescale": False}, "without resizing, rescaling or normalising"),
        ({"image_mean": None}, "f: image_mean is no list of numbers"),
        ({"crop_size": {"width": 3}, "do_center_crop": True}, "the crop_size"),
        ({"resample": 9}, "squash of preprocess needs a filter"),
        ({"resample": [3]}, r"f: resample is a whole number, not \[3\]"),
        ({"size": {"shortest_edge": "x"}}, "f: the size 'x' is not supported"),
        ({"size": {"shortest_edge": 0}}, "f: the size 0 is not supported"),
        ({"size": {"shortest_edge": -3}}, "f: the size -3 is not supported"),
        ({"size": {"height": 28, "width": 29}}, "f: the size .* is not supported"),
        ({"crop_size": 0}, "f: the crop_size 0 is not supported"),
        ({"crop_size": {"height": 21, "width": 99}}, "f: the crop_size .* is not supported"),
        ({"rescale_factor": "x"}, "f: rescale_factor is a number, not 'x'"),
        ({"do_resize": "false"}, "f: do_resize is true or false, not 'false'"),
        ({"image_mean": [10**400] * 3}, "f: image_mean is no list of numbers"),
        ({"image_mean": [True] * 3}, "f: image_mean is no list of numbers"),
    ]
    for change, message in mistakes:
        with pytest.raises(UserError, match=message):
            preprocess.of_huggingface("f", vit | change)


def test_what_a_folder_of_open_clip_says() -> None:
    rules = preprocess.of_open_clip("f", {"mean": [0.1] * 3, "std": [0.2] * 3}, 28)
    assert rules.steps == (Step("shortest", 28, "bicubic"), Step("crop", 28, "", "nearest"))
    longest = preprocess.of_open_clip("f", {"resize_mode": "longest", "interpolation": "bilinear"}, 28)
    assert longest.steps == (Step("longest", 28, "bilinear", "nearest"), Step("pad", 28))
    assert longest.mean == (0.48145466, 0.4578275, 0.40821073)
    harmless = {"size": [28, 28], "mode": "RGB", "fill_color": 9, "interpolation": None}
    assert preprocess.of_open_clip("f", harmless, 28).steps == rules.steps
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"resize_mode": "random"}, "f: the resize_mode 'random' is not supported"),
        ({"resize_mode": ["longest"]}, r"f: resize_mode is a word, not \['longest'\]"),
        ({"interpolation": 3}, "f: interpolation is a word, not 3"),
        ({"size": 29}, "f: its size is 29, and the weights' 28"),
        ({"resize_mode": "longest", "fill_color": 9}, "f: edges of fill_color 9 are not supported"),
        ({"color_jitter": 1}, "f: color_jitter is not supported"),
    ]
    for change, message in mistakes:
        with pytest.raises(UserError, match=message):
            preprocess.of_open_clip("f", change, 28)


GOOD = {"steps": [{"squash": 5, "filter": "box"}], "mean": [0.5], "std": [0.5]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": []}, "steps is no list of steps"),
        ({"steps": ["squash"]}, "the step 'squash' of preprocess is none of shortest"),
        ({"steps": [{"squash": 5}]}, "squash of preprocess needs a filter"),
        ({"steps": [{"squash": 5, "filter": "cubic"}]}, "squash of preprocess needs a filter, one of nearest"),
        ({"steps": [{"squash": 5, "filter": "box", "round": "down"}]}, "the step squash of preprocess has no 'round'"),
        ({"steps": [{"crop": 0}]}, "crop of preprocess needs a number of pixels, not 0"),
        ({"steps": [{"crop": 5, "round": "up"}]}, "round of crop is nearest or down, not 'up'"),
        ({"steps": [{"longest": 5, "filter": "box"}]}, "ends with longest, which leaves no square"),
        ({"steps": [{"interpolate": 9}, {"squash": 5, "filter": "box"}]}, "squash cannot follow interpolate"),
        ({"mean": 0.5}, "preprocess, mean is no list of numbers"),
        ({"mean": [0.5, 0.5]}, "one number each, or three"),
        ({"std": [0.0]}, "std and white of preprocess are above 0"),
        ({"white": -1}, "std and white of preprocess are above 0"),
        ({"size": 5}, "may have white, and nothing else"),
    ],
)
def test_mistakes_in_a_spec(change: dict[str, Any], message: str) -> None:
    assert preprocess.parse("here", GOOD).size == 5
    with pytest.raises(UserError, match=f"here: .*{message}"):
        preprocess.parse("here", GOOD | change)
