import io
import resource
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmclip_jax.data.images.store import store_image
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


def test_the_range_of_the_source_is_kept() -> None:
    values = (RAMP * 10 + 300).astype(np.uint16)
    stored = store_image(encoded(values))
    assert (stored.original_min, stored.original_max) == (300, 2850)
    narrow = (RAMP // 2 + 40).astype(np.uint8)
    for data in (encoded(narrow), encoded(narrow, "TIFF"), encoded(Image.fromarray(narrow).convert("RGB"))):
        stored = store_image(data, shorter_side=20)
        assert (stored.original_min, stored.original_max) == (narrow.min(), narrow.max())


@pytest.mark.parametrize("is_adobe", [True, False])
def test_cmyk(is_adobe: bool) -> None:
    """Adobe's CMYK JPEG holds 255 minus the ink and says so in a marker; without it, the ink itself."""
    ink = np.stack([RAMP // 2, RAMP[::-1] // 3, np.full_like(RAMP, 60), RAMP[:, ::-1] // 4], axis=-1).astype(np.uint8)
    data = encoded(Image.frombytes("CMYK", (53, 37), ink.tobytes()), "JPEG", quality=100, subsampling=0)
    at = data.index(b"\xff\xee")  # the Adobe marker, which Pillow writes, as well as the inverted values
    assert data[at + 4 : at + 9] == b"Adobe"
    if not is_adobe:
        data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
        ink = 255 - ink
    cyan, magenta, yellow, black = np.moveaxis(ink / 255, -1, 0)
    luma = 255 * (1 - black) * (0.299 * (1 - cyan) + 0.587 * (1 - magenta) + 0.114 * (1 - yellow))
    np.testing.assert_allclose(store_image(data, encoding="png").pixels, luma, atol=4)


def test_palettes_with_transparency() -> None:
    """A palette of other greys than its indices, of which one is transparent."""
    indices = Image.fromarray((RAMP // 64).astype(np.uint8))
    indices.putpalette([10, 10, 10, 80, 80, 80, 150, 150, 150, 250, 250, 250])
    paletted = Image.frombytes("P", indices.size, indices.tobytes())
    paletted.putpalette([10, 10, 10, 80, 80, 80, 150, 150, 150, 250, 250, 250])
    pixels = store_image(encoded(paletted, transparency=2), encoding="png").pixels
    np.testing.assert_array_equal(pixels, np.array([10, 80, 0, 250])[RAMP // 64])


def test_tiff() -> None:
    wide = (RAMP * 16 + 7).astype(np.uint16)
    expected = np.rint(wide * 255.0 / 4095)
    np.testing.assert_allclose(store_image(encoded(wide, "TIFF"), encoding="png").pixels, expected, atol=1)
    big_endian = io.BytesIO()
    Image.frombytes("I;16B", (53, 37), wide.astype(">u2").tobytes()).save(big_endian, "TIFF")
    np.testing.assert_allclose(store_image(big_endian.getvalue(), encoding="png").pixels, expected, atol=1)
    grey = RAMP.astype(np.uint8)
    for options in ({"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {}):
        np.testing.assert_array_equal(store_image(encoded(grey, "TIFF", **options), encoding="png").pixels, grey)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = store_image(encoded(grey, "TIFF", exif=exif), encoding="png")
    np.testing.assert_array_equal(turned.pixels, np.rot90(grey, -1))
    assert (turned.original_height, turned.original_width) == (53, 37)


def test_several_pages() -> None:
    image = Image.fromarray(RAMP.astype(np.uint8))
    with pytest.raises(UserError, match="several pages"):
        store_image(encoded(image, "TIFF", save_all=True, append_images=[image]))


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims a size and whose data begin well: 10 MB of zeros."""
    small = png(np.zeros((2, 2, 1), np.uint16), 0)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    start = small[:8] + struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    body = zlib.compress(bytes(10_000_000))
    return start + struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body))


@pytest.mark.parametrize(
    ("width", "height"), [(30000, 30000), (13000, 13000), (2**31 - 1, 2**31 - 1), (150_000_001, 1), (0, 7)]
)
def test_decompression_bombs(width: int, height: int) -> None:
    """Of sizes at which Pillow refuses, warns, or says nothing; decoding would take gigabytes."""
    data = bomb(width, height)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=r"megapixels|damaged|decoded"):
            store_image(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000, "KiB"


def test_a_large_image_within_the_limit() -> None:
    """100 megapixels, at which Pillow would warn."""
    pixels = np.zeros((10_000, 10_000), np.uint8)
    pixels[:, 5_000:] = 200
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stored = store_image(encoded(pixels, compress_level=1), shorter_side=20, encoding="png")
    np.testing.assert_allclose(stored.pixels[:, :8], 0, atol=1)
    np.testing.assert_allclose(stored.pixels[:, 12:], 200, atol=1)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PPM", "EPS"])
def test_formats_that_are_not_read(file_format: str) -> None:
    with pytest.raises(UserError, match="no JPEG, PNG, TIFF, BMP or DICOM file"):
        store_image(encoded(RAMP.astype(np.uint8), file_format))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF"])
def test_truncation_anywhere_is_one_error_or_the_image(file_format: str) -> None:
    """What follows the last pixel may be missing; a cut before it never goes unnoticed."""
    data = encoded(RAMP.astype(np.uint8), file_format)
    whole = store_image(data, encoding="png").pixels
    for length in range(0, len(data), 7):
        try:
            pixels = store_image(data[:length], encoding="png").pixels
        except UserError:
            continue
        np.testing.assert_array_equal(pixels, whole)
        assert length > len(data) * 0.6
