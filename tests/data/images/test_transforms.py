import io
import math
import types

import numpy as np
import pytest
from PIL import Image

from mmclip_jax.data.images import transforms
from mmclip_jax.data.images.transforms import Affine
from mmclip_jax.data.schema import Box
from mmclip_jax.errors import UserError

AUGMENT = types.SimpleNamespace(rotate=10.0, shift=0.06, scale=0.1, brightness=0.2, contrast=0.2)
IDENTITY = types.SimpleNamespace(rotate=0.0, shift=0.0, scale=0.0, brightness=0.0, contrast=0.0)


def encoded(pixels, file_format="PNG", mode=None):
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, file_format)
    return stream.getvalue()


def smooth(height, width, seed=0):
    """An image whose structures are several pixels wide, with values over most of 0..255."""
    noise = np.random.default_rng(seed).uniform(0, 255, (height // 8 + 1, width // 8 + 1)).astype(np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def centroid(image):
    weights = image[:, :, 0].astype(float)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return (weights * columns).sum() / weights.sum(), (weights * rows).sum() / weights.sum()


def reference_affine(pixels, size, affine):
    """The same map in float64 NumPy, pixel by pixel: bilinear between pixel centres, black outside the image."""
    height, width = pixels.shape
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    angle = math.radians(affine.angle)
    inverse = np.linalg.inv(
        affine.zoom * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    )
    result = np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            moved = np.array([(column + 0.5) / size - 0.5 - affine.shift_x, (row + 0.5) / size - 0.5 - affine.shift_y])
            x, y = (inverse @ moved + 0.5) * side - (left, top)
            if not (0 <= x < width and 0 <= y < height):
                continue
            x, y = np.clip(x - 0.5, 0, width - 1), np.clip(y - 0.5, 0, height - 1)
            x0, y0 = int(x), int(y)
            x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
            above = pixels[y0, x0] * (1 - x + x0) + pixels[y0, x1] * (x - x0)
            below = pixels[y1, x0] * (1 - x + x0) + pixels[y1, x1] * (x - x0)
            result[row, column] = above * (1 - y + y0) + below * (y - y0)
    return result


def test_grey_png_decodes_to_exactly_its_pixels():
    pixels = np.random.default_rng(1).integers(0, 256, (13, 17), dtype=np.uint8)
    np.testing.assert_array_equal(transforms.decode_image(encoded(pixels)), pixels)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_grey_stored_as_colour_stays_exact(mode):
    pixels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    np.testing.assert_array_equal(transforms.decode_image(encoded(pixels, mode=mode)), pixels)


def test_deeper_than_eight_bits_is_refused():
    with pytest.raises(UserError, match="8-bit"):
        transforms.decode_image(encoded(np.arange(35, dtype=np.uint16).reshape(5, 7) * 1000))


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"not an image"]
)
@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_damaged_file_is_a_user_error(damage, file_format):
    data = encoded(smooth(59, 61), file_format)
    with pytest.raises(UserError, match="cannot be decoded"):
        transforms.decode_image(damage(data))


@pytest.mark.parametrize(("height", "width"), [(40, 23), (23, 40), (31, 31)])
def test_fit_keeps_the_whole_image_its_aspect_ratio_and_centre(height, width):
    pixels = np.full((height, width), 200, np.uint8)
    side = max(height, width)
    fitted = transforms.fit_image(pixels, 4 * side)[:, :, 0]
    assert fitted.shape == (4 * side, 4 * side)
    rows, columns = np.flatnonzero(fitted.max(1) > 100), np.flatnonzero(fitted.max(0) > 100)
    assert len(rows) == 4 * height
    assert len(columns) == 4 * width
    # Black on both sides, alike to within the one pixel of an odd remainder.
    assert abs(rows[0] - (4 * side - 1 - rows[-1])) <= 4
    assert abs(columns[0] - (4 * side - 1 - columns[-1])) <= 4


def test_fit_of_the_right_size_changes_nothing():
    pixels = smooth(37, 37)
    np.testing.assert_array_equal(transforms.fit_image(pixels[:, :, None], 37)[:, :, 0], pixels)


def test_fit_averages_when_it_shrinks():
    # A fine checkerboard must become grey; without antialiasing it would stay black and white.
    pixels = (np.indices((124, 124)).sum(0) % 2 * 254).astype(np.uint8)
    fitted = transforms.fit_image(pixels, 31)[2:-2, 2:-2]
    assert np.abs(fitted.astype(int) - 127).max() <= 4


def test_wrong_pixels_are_refused():
    for pixels in (np.zeros((5, 7), np.float32), np.zeros((5, 7, 3), np.uint8), np.zeros((0, 7), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            transforms.fit_image(pixels, 11)


@pytest.mark.parametrize(("height", "width"), [(41, 41), (37, 29), (29, 37)])
@pytest.mark.parametrize(
    "affine", [Affine(), Affine(10, 0.06, -0.04, 1.1), Affine(-7, -0.05, 0.03, 0.9), Affine(0, 0.25, 0, 1)]
)
def test_affine_agrees_with_numpy(height, width, affine):
    pixels = smooth(height, width)
    size = 41
    ours = transforms.apply_affine(pixels, size, affine, brightness=1.0000001)[:, :, 0].astype(float)
    expected = reference_affine(pixels, size, affine)
    difference = np.abs(ours - expected)
    # A pixel whose centre lies on the image's very edge may fall on either side of it.
    assert (difference > 1.01).mean() < 0.005
    assert np.abs(ours - reference_affine(pixels, size, Affine(affine.angle, 0.0, 0.0, 1.3))).mean() > 5


def test_dot_lands_where_the_formula_says():
    height, width, size = 300, 260, 150
    x, y = 61, 212
    pixels = np.zeros((height, width), np.uint8)
    pixels[y - 4 : y + 5, x - 4 : x + 5] = 255
    affine = Affine(angle=8, shift_x=0.05, shift_y=-0.03, zoom=1.07)
    # From the square's centre in fractions of its side (300; the image is padded by 20 on the left).
    px, py = (x + 0.5 + 20) / 300 - 0.5, (y + 0.5) / 300 - 0.5
    cos, sin = math.cos(math.radians(8)), math.sin(math.radians(8))
    expected = (1.07 * (cos * px - sin * py) + 0.05 + 0.5) * size, (1.07 * (sin * px + cos * py) - 0.03 + 0.5) * size
    assert centroid(transforms.apply_affine(pixels, size, affine)) == pytest.approx(expected, abs=0.2)


def test_positive_angle_turns_clockwise():
    pixels = np.zeros((101, 101), np.uint8)
    pixels[5:16, 45:56] = 255  # at 12 o'clock
    x, y = centroid(transforms.apply_affine(pixels, 101, Affine(angle=90)))
    assert (x, y) == pytest.approx((90.5, 50.5), abs=0.6)  # at 3 o'clock


@pytest.mark.parametrize("size", [32, 97, 200])
def test_left_stays_left_and_upper_stays_upper(size):
    pixels = np.zeros((97, 89), np.uint8)
    pixels[15:35, 10:25] = 255
    for seed in range(50):
        x, y = centroid(transforms.augment_image(pixels, size, np.random.default_rng(seed), AUGMENT))
        assert x < 0.45 * size
        assert y < 0.45 * size


@pytest.mark.parametrize("shape", [(64, 64), (53, 47), (256, 211), (512, 512)])
def test_identity_settings_give_the_evaluation_image(shape):
    pixels = smooth(*shape)
    fitted = transforms.fit_image(pixels, 64)
    np.testing.assert_array_equal(transforms.augment_image(pixels, 64, np.random.default_rng(3), IDENTITY), fitted)


@pytest.mark.parametrize("side", [40, 64, 73, 128, 150, 256, 512])
def test_nearly_no_map_is_nearly_the_evaluation_image(side):
    # The map's own path, not the shortcut for the identity: it must not be a pixel off at any scale.
    pixels = smooth(side, side)
    ours = transforms.apply_affine(pixels, 64, Affine(shift_x=1e-7)).astype(float)
    fitted = transforms.fit_image(pixels, 64).astype(float)
    shifted = np.roll(fitted, 1, axis=1)
    assert np.abs(ours - fitted).mean() < 0.4 * np.abs(shifted - fitted).mean() + 0.5
    assert np.abs(ours - fitted).mean() < 6


def test_map_averages_when_it_shrinks():
    pixels = (np.indices((256, 256)).sum(0) % 2 * 254).astype(np.uint8)
    mapped = transforms.apply_affine(pixels, 64, Affine(angle=3))[16:-16, 16:-16]
    assert np.abs(mapped.astype(int) - 127).max() <= 4


def test_augmentation_depends_on_the_generator_alone():
    pixels = smooth(71, 67)
    one, same, other = (transforms.augment_image(pixels, 64, np.random.default_rng(s), AUGMENT) for s in (5, 5, 6))
    np.testing.assert_array_equal(one, same)
    assert (one != other).mean() > 0.5
    assert one.shape == (64, 64, 1)
    assert one.dtype == np.uint8


def test_draws_stay_within_their_ranges(monkeypatch):
    drawn = []
    monkeypatch.setattr(transforms, "apply_affine", lambda pixels, size, *settings: drawn.append(settings))
    rng = np.random.default_rng(0)
    for _ in range(2000):
        transforms.augment_image(np.zeros((7, 7), np.uint8), 7, rng, AUGMENT)
    values = np.array([(a.angle, a.shift_x, a.shift_y, a.zoom, b, c) for a, b, c in drawn])
    low, high = np.array([-10, -0.06, -0.06, 0.9, 0.8, 0.8]), np.array([10, 0.06, 0.06, 1.1, 1.2, 1.2])
    assert (values >= low).all()
    assert (values <= high).all()
    # All of each range is used, and no two settings are tied together.
    assert (values.min(0) < low + 0.02 * (high - low)).all()
    assert (values.max(0) > high - 0.02 * (high - low)).all()
    assert np.abs(np.corrcoef(values.T) - np.eye(6)).max() < 0.1


def test_brightness_and_contrast_are_as_stated_and_the_padding_stays_black():
    pixels = np.zeros((40, 20), np.uint8)
    pixels[:20], pixels[20:] = 60, 140  # mean 100
    changed = transforms.apply_affine(pixels, 40, Affine(), brightness=1.2, contrast=0.8)[:, :, 0]
    assert set(np.unique(changed[:, 10:30])) == {round(1.2 * (100 - 0.8 * 40)), round(1.2 * (100 + 0.8 * 40))}
    assert (changed[:, :10] == 0).all()
    assert (changed[:, 30:] == 0).all()


@pytest.mark.parametrize(("height", "width"), [(50, 31), (31, 50), (43, 43)])
def test_boxes_follow_the_padding(height, width):
    box = Box("nodule", 0.2, 0.3, 0.6, 0.5)
    pixels = np.zeros((height, width), np.uint8)
    x_min, x_max = round(0.2 * width), round(0.6 * width)
    y_min, y_max = round(0.3 * height), round(0.5 * height)
    pixels[y_min:y_max, x_min:x_max] = 255
    size = 200
    lit = transforms.fit_image(pixels, size)[:, :, 0] > 127
    (fitted,) = transforms.fit_boxes([box], height, width)
    assert fitted.kind == "nodule"
    rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
    found = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    expected = np.array([fitted.x_min, fitted.y_min, fitted.x_max, fitted.y_max]) * size
    # Rounding the painted box to whole source pixels moves it by up to half of one.
    assert np.abs(np.array(found) - expected).max() <= 0.5 * size / max(height, width) + 1
