import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmclip_jax.data.images import store_image
from mmclip_jax.errors import UserError

RAMP = np.add.outer(np.arange(37), np.arange(53)) * 255 // 88  # 0..255 over 37 x 53


def encoded(image: Any, file_format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, file_format, **options)
    return stream.getvalue()


def png(samples: np.ndarray, colour_type: int) -> bytes:
    """A 16-bit PNG written by hand, [H, W, C] uint16: Pillow cannot write 16-bit colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = samples.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_small_grey_files_are_kept_byte_for_byte(file_format: str) -> None:
    data = encoded(RAMP.astype(np.uint8), file_format)
    stored = store_image(data, shorter_side=37)
    assert stored.image == data
    np.testing.assert_array_equal(stored.pixels, np.asarray(Image.open(io.BytesIO(data))))
    assert (stored.original_height, stored.original_width) == (37, 53)


@pytest.mark.parametrize(
    ("shape", "expected"), [((74, 106), (37, 53)), ((111, 37 * 6), (37, 74)), ((300, 38), (292, 37))]
)
@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_larger_images_are_reduced_to_the_shorter_side(
    shape: tuple[int, int], expected: tuple[int, int], encoding: str
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    stored = store_image(encoded(pixels), shorter_side=37, encoding=encoding)
    assert stored.pixels.shape == expected
    assert (stored.original_height, stored.original_width) == shape
    with Image.open(io.BytesIO(stored.image)) as image:
        assert (image.format, image.mode) == (encoding.upper(), "L")
        np.testing.assert_array_equal(np.asarray(image), stored.pixels)


def test_reduction_is_antialiased() -> None:
    stripes = np.zeros((120, 120), np.uint8)
    stripes[:, ::2] = 200  # finer than the target can show: all that is left is the mean
    stripes[:60] //= 2
    pixels = store_image(encoded(stripes), shorter_side=12, encoding="png").pixels
    assert np.abs(pixels[:5].astype(int) - 50).max() <= 8
    assert np.abs(pixels[7:].astype(int) - 100).max() <= 8


def test_the_decoders_own_reduction_changes_little() -> None:
    y, x = np.mgrid[:1300, :1700]
    scene = (127 + 80 * np.sin(x / 90) * np.cos(y / 70) + 30 * (np.hypot(x - 800, y - 600) < 200)).astype(np.uint8)
    from_jpeg = store_image(encoded(scene, "JPEG", quality=97), shorter_side=101, encoding="png").pixels
    from_png = store_image(encoded(scene), shorter_side=101, encoding="png").pixels
    assert from_jpeg.shape == from_png.shape == (101, 132)
    assert np.abs(from_jpeg.astype(int) - from_png.astype(int)).mean() < 1
    assert np.abs(from_jpeg.astype(int) - from_png.astype(int)).max() < 12


@pytest.mark.parametrize(
    ("maximum", "value_range", "white"),
    [
        (255, "auto", 255),
        (256, "auto", 1023),
        (1023, "auto", 1023),
        (3000, "auto", 4095),
        (4095, "auto", 4095),
        (4096, "auto", 16383),
        (60000, "auto", 65535),
        (3000, "full", 65535),
        (3000, 4095, 4095),
        (3000, 3000, 3000),
    ],
)
def test_sixteen_bit_files_by_their_true_range(maximum: int, value_range: Any, white: int) -> None:
    values = (RAMP.astype(np.int64) * maximum // 255).astype(np.uint16)
    assert values.max() == maximum
    stored = store_image(encoded(values), value_range=value_range, encoding="png")
    expected = np.rint(values.astype(np.float64) * 255 / white)
    np.testing.assert_allclose(stored.pixels, expected, atol=1)
    assert stored.pixels.max() == round(maximum * 255 / white)
    assert (stored.original_height, stored.original_width) == (37, 53)


def test_sixteen_bit_files_are_reduced_without_wrapping() -> None:
    values = np.zeros((120, 120), np.uint16)
    values[:, 60:] = 65535
    pixels = store_image(encoded(values), shorter_side=40, encoding="png").pixels
    assert set(pixels[:, :15].flat) == {0}
    assert set(pixels[:, 25:].flat) == {255}


def test_values_beyond_the_given_range() -> None:
    with pytest.raises(UserError, match=r"maximum 4095 is above the given value range 0\.\.3000"):
        store_image(encoded((RAMP * 16 + RAMP // 16).astype(np.uint16)), value_range=3000)


def test_sixteen_bit_colour() -> None:
    wide = np.repeat((RAMP * 257).astype(np.uint16)[..., None], 3, axis=2)
    np.testing.assert_allclose(store_image(png(wide, 2), encoding="png").pixels, RAMP, atol=1)
    with pytest.raises(UserError, match="16-bit colour"):
        store_image(png(wide // 16, 2))


def test_colour_and_palette_become_the_same_grey() -> None:
    grey = Image.fromarray(RAMP.astype(np.uint8))
    for mode in ("RGB", "P", "LA", "RGBA"):
        stored = store_image(encoded(grey.convert(mode)), encoding="png")
        np.testing.assert_array_equal(stored.pixels, RAMP)
        with Image.open(io.BytesIO(stored.image)) as image:
            assert image.mode == "L"
    bits = RAMP > 100
    np.testing.assert_array_equal(store_image(encoded(bits), encoding="png").pixels, np.where(bits, 255, 0))
    rgb = np.stack([RAMP, RAMP * 0, RAMP * 0], axis=-1).astype(np.uint8)
    luma = store_image(encoded(rgb), encoding="png").pixels
    np.testing.assert_allclose(luma, 0.299 * RAMP, atol=1)


def test_transparent_pixels_are_black() -> None:
    rgba = np.dstack([np.full((37, 53, 3), 200), np.where(RAMP > 100, 255, 0)]).astype(np.uint8)
    np.testing.assert_array_equal(store_image(encoded(rgba), encoding="png").pixels, np.where(RAMP > 100, 200, 0))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("shorter_side", [256, 20])
def test_rotation_flags_are_honoured(orientation: int, shorter_side: int) -> None:
    """Orientation 6: the file's first row is the image's right side; 8: its left side; 3: its last row, turned."""
    corner = np.zeros((40, 60), np.uint8)
    corner[:20, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = store_image(encoded(corner, "JPEG", exif=exif, quality=95), shorter_side=shorter_side, encoding="png")
    turns = {1: 0, 3: 2, 6: -1, 8: 1}[orientation]  # of 90 degrees, counterclockwise
    expected = np.rot90(corner, turns)
    assert (stored.original_height, stored.original_width) == expected.shape
    step = 1 if shorter_side == 256 else 2
    assert stored.pixels.shape == (expected.shape[0] // step, expected.shape[1] // step)
    np.testing.assert_array_equal(stored.pixels > 127, expected[::step, ::step] > 127)
    # A reader decodes the stored file without looking at flags.
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stored.image))), stored.pixels)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"PK\x03\x04 not an image", "cannot be decoded"),
        (encoded(RAMP.astype(np.uint8), "JPEG")[:-200], "cannot be decoded"),
        (encoded(RAMP.astype(np.uint8))[:120], "cannot be decoded"),
        (encoded(np.full((20, 20), 7, np.uint8)), "every pixel has the value 7"),
        (encoded(np.full((20, 20), 700, np.uint16)), "every pixel has the value"),
        (encoded(RAMP.astype(np.float32), "TIFF"), "not those of an 8 or 16 bit"),
    ],
)
def test_unusable_files(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        store_image(data)
