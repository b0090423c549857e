"""Augmentation on the device against the host's form, and grey JPEG files against Pillow."""

import io
import types

import jax
import numpy as np
import pytest
from PIL import Image

from mmclip_jax.data.images import stored, transforms
from mmclip_jax.data.images.transforms import Affine, Augmentation
from mmclip_jax.models.inputs import augmented

AUGMENT = types.SimpleNamespace(rotate=10.0, shift=0.06, scale=0.1, brightness=0.2, contrast=0.2)
STRONG = types.SimpleNamespace(rotate=180.0, shift=0.3, scale=0.5, brightness=0.9, contrast=0.9)


def smooth(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    noise = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def side_of(size: int, augment: types.SimpleNamespace) -> int:
    return int(1.5 * size * (1 + augment.scale)) + 1


def on_device(pixels: list[np.ndarray], size: int, side: int, drawn: list[Augmentation]) -> np.ndarray:
    rows = [transforms.on_canvas(*each, size=size, side=side, drawn=d) for *each, d in zip(pixels, drawn, strict=True)]
    fields = [np.stack([row[name] for row in rows]) for name in ("image", "extent", "affine", "tone")]
    return np.asarray(jax.jit(augmented, static_argnames="size")(*fields, size=size))


@pytest.mark.parametrize("augment", [AUGMENT, STRONG])
@pytest.mark.parametrize(
    ("size", "shape"), [(32, (32, 32)), (32, (41, 37)), (32, (20, 29)), (32, (150, 97)), (31, (48, 300)), (48, (1, 9))]
)
def test_the_device_does_what_the_host_does(size: int, shape: tuple[int, int], augment: types.SimpleNamespace) -> None:
    # Enlarged, as large, shrunk a little (interpolated alone) and much (averaged before), wide and high.
    rng = np.random.default_rng(size)
    pixels = [smooth(*shape, rng) for _ in range(24)]
    drawn = [transforms.draw_augmentation(rng, augment) for _ in pixels]
    got = on_device(pixels, size, side_of(size, augment), drawn)
    want = np.stack([transforms.apply_affine(each, size, *d) for each, d in zip(pixels, drawn, strict=True)])
    difference = np.abs(got.astype(int) - want)
    # Where an image's border falls on a pixel's centre, float32 may take it for outside.
    assert (difference > 1).mean() <= 2e-4
    assert (difference > 0).mean() <= 2e-3
    assert want.std() > 10


def test_nothing_drawn_is_the_fitted_image() -> None:
    rng, nothing = np.random.default_rng(5), Augmentation(Affine(), 1.0, 1.0)
    pixels = [smooth(40, 33, rng), smooth(20, 64, rng)]
    want = np.stack([transforms.fit_image(each, 32) for each in pixels])
    np.testing.assert_array_equal(on_device(pixels, 32, side_of(32, AUGMENT), [nothing, nothing]), want)


def jpeg(pixels: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.mark.skipif(stored.simplejpeg is None, reason="simplejpeg is not there")
def test_grey_jpeg_pixels_are_pillows_to_the_bit() -> None:
    rng = np.random.default_rng(7)
    for number in range(150):
        height, width = (int(side) for side in rng.integers(1, 300, 2))
        pixels = rng.integers(0, 256, (height, width), dtype=np.uint8) if number % 3 else smooth(height, width, rng)
        data = jpeg(pixels, quality=int(rng.integers(5, 101)), progressive=number % 4 == 0, optimize=number % 2 == 0)
        found = stored.decode_grey_jpeg(data)
        assert found is not None
        np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(data))))


def test_what_is_no_whole_grey_jpeg_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = smooth(64, 72, np.random.default_rng(9))
    whole = jpeg(pixels)
    coloured = jpeg(np.stack([pixels, pixels[::-1], pixels[:, ::-1]], axis=2))
    assert [stored.decode_grey_jpeg(data) for data in (coloured, whole[: len(whole) // 2], b"\xff\xd8", b"")] == [
        None
    ] * 4
    with Image.open(io.BytesIO(coloured)) as image:
        np.testing.assert_array_equal(transforms.decode_image(coloured), np.asarray(image.convert("L")))
    decoded = transforms.decode_image(whole)
    monkeypatch.setattr(stored, "simplejpeg", None)
    np.testing.assert_array_equal(transforms.decode_image(whole), decoded)
