"""One picture in every form that a user may hand over: the same pixels, against plain NumPy formulae, or one error."""

import io
import pathlib
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from PIL import Image

from mmclip_jax.errors import UserError
from mmclip_jax.inference.inputs import (
    BATCH,
    as_pixels,
    batch_size,
    check_equal,
    check_numbers,
    check_several,
    pad,
)

Y, X = np.mgrid[:31, :44]
GREY = ((Y * 5 + X * 2) % 256).astype(np.uint8)
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)
ALPHA = (255 - 8 * Y).clip(0, 255).astype(np.uint8)


def luma(rgb: np.ndarray) -> np.ndarray:
    return rgb.astype(float) @ np.array([0.299, 0.587, 0.114])


def encoded(image: Any, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, file_format, **options)
    return stream.getvalue()


def png(samples: np.ndarray, bits: int, colour_type: int, extra: bytes = b"") -> bytes:
    """A PNG of any depth, [H, W] or [H, W, C] of samples below 2**bits; `extra`: chunks before the data."""
    height, width = samples.shape[:2]
    flat = samples.reshape(height, -1).astype(np.uint32)
    each = (flat[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    lines = np.packbits(each.reshape(height, -1).astype(np.uint8), axis=1)
    raw = b"".join(b"\0" + line.tobytes() for line in lines)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    )


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def forms(data: bytes, folder: pathlib.Path) -> dict[str, Any]:
    """A file in every form that it can have."""
    file = folder / "a picture.of.dots"
    file.write_bytes(data)
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    return {
        "path": file,
        "string": str(file),
        "bytes": data,
        "bytearray": bytearray(data),
        "stream": io.BytesIO(data),
        "opened": Image.open(io.BytesIO(data)),
        "loaded": loaded,
    }


def check_forms(data: bytes, folder: pathlib.Path, expected: np.ndarray, atol: float) -> None:
    first = as_pixels(data)
    np.testing.assert_allclose(first.astype(float), expected, atol=atol)
    for name, form in forms(data, folder).items():
        pixels = as_pixels(form)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, first, err_msg=name)


# Files


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("has_clear_value", [False, True])
def test_grey_png_of_every_depth(bits: int, has_clear_value: bool, tmp_path: pathlib.Path) -> None:
    samples = (GREY.astype(np.uint32) * 257) >> (16 - bits)
    clear = int(samples[4, 9])
    extra = chunk(b"tRNS", struct.pack(">H", clear)) if has_clear_value else b""
    expected = 255 * samples / (2**bits - 1)
    if has_clear_value:
        expected = np.where(samples == clear, 0, expected)
    check_forms(png(samples, bits, 0, extra), tmp_path, expected, 0.51)


@pytest.mark.parametrize("bits", [8, 16])
def test_png_with_alpha_lies_on_black(bits: int, tmp_path: pathlib.Path) -> None:
    factor = 257 if bits == 16 else 1
    with_alpha = np.concatenate([RGB, ALPHA[..., None]], axis=-1).astype(np.uint32) * factor
    check_forms(png(with_alpha, bits, 6), tmp_path, luma(RGB) * ALPHA / 255, 1.5)
    grey_alpha = np.stack([GREY, ALPHA], axis=-1).astype(np.uint32) * factor
    check_forms(png(grey_alpha, bits, 4), tmp_path, GREY * (ALPHA / 255), 1.5)
    colour = RGB.astype(np.uint32) * factor
    clear = chunk(b"tRNS", struct.pack(">HHH", *(int(v) for v in colour[3, 3])))
    expected = np.where((colour == colour[3, 3]).all(axis=-1), 0, luma(RGB))
    if bits == 8:
        check_forms(png(colour, bits, 2, clear), tmp_path, expected, 1)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("has_alpha", [False, True])
def test_palettes(bits: int, has_alpha: bool, tmp_path: pathlib.Path) -> None:
    indices = GREY >> (8 - bits)
    colours = np.random.default_rng(bits).integers(0, 256, (2**bits, 3))
    alphas = np.random.default_rng(9).integers(0, 256, 2**bits) if has_alpha else np.full(2**bits, 255)
    extra = chunk(b"PLTE", colours.astype(np.uint8).tobytes())
    if has_alpha:
        extra += chunk(b"tRNS", alphas.astype(np.uint8).tobytes())
    check_forms(png(indices, bits, 3, extra), tmp_path, (luma(colours) * alphas / 255)[indices], 1.5)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """By the table of EXIF 2.3: what row 0 and column 0 of the file show."""
    turned = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1],
        5: pixels.T, 6: pixels[::-1].T, 7: pixels[::-1, ::-1].T, 8: pixels[:, ::-1].T,
    }  # fmt: skip
    return turned[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "deep PNG", "colour JPEG", "progressive JPEG"])
def test_rotation_flags(file_format: str, orientation: int, tmp_path: pathlib.Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = (Y * 4 + X).astype(np.uint8)
    image = smooth.astype(np.uint16) * 257 if file_format == "deep PNG" else smooth
    picture = Image.fromarray(image).convert("RGB") if file_format == "colour JPEG" else Image.fromarray(image)
    options = {"quality": 100} if "JPEG" in file_format else {}
    if file_format == "progressive JPEG":
        options["progressive"] = True
    data = encoded(picture, file_format.split()[-1], exif=exif, **options)
    check_forms(data, tmp_path, upright(smooth, orientation), 3 if "JPEG" in file_format else 0.51)


def tiff(samples: np.ndarray, bits: int, order: str, photometric: int, kind: int = 1) -> bytes:
    """An uncompressed grey TIFF; kind: 1 unsigned, 2 signed, 3 floating-point."""
    height, width = samples.shape
    code = {1: "u", 2: "i", 3: "f"}[kind]
    data = samples.astype(f"{'<' if order == 'II' else '>'}{code}{bits // 8}").tobytes()
    sign = "<" if order == "II" else ">"
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    entries += [(278, height), (279, len(data)), (339, kind)]
    body = struct.pack(f"{sign}H", len(entries))
    for tag, value in entries:
        body += struct.pack(f"{sign}HHII", tag, 4, 1, value)
    start = struct.pack(f"{sign}2sHI", order.encode(), 42, 8 + len(data))
    return start + data + body + struct.pack(f"{sign}I", 0)


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize(("bits", "white"), [(8, 255), (16, 4095), (16, 65535)])
def test_grey_tiff(bits: int, white: int, photometric: int, order: str, tmp_path: pathlib.Path) -> None:
    """Photometric interpretation 0: zero is white."""
    samples = GREY.astype(np.uint32) * white // 255
    data = tiff(samples, bits, order, photometric)
    if (order, photometric, bits) == ("MM", 0, 16):
        with pytest.raises(UserError, match="a kind of TIFF that is not supported: save it as PNG"):
            as_pixels(data)
        return
    expected = 255 * samples / white
    check_forms(data, tmp_path, 255 - expected if photometric == 0 else expected, 0.51)


@pytest.mark.parametrize("order", ["II", "MM"])
def test_floats_and_signed_numbers_in_tiff(order: str, tmp_path: pathlib.Path) -> None:
    check_forms(tiff(GREY / 255, 32, order, 1, 3), tmp_path, GREY, 0.51)
    check_forms(tiff(GREY.astype(np.int32) * 100, 16, order, 1, 2), tmp_path, GREY * (100 * 255 / 65535), 0.51)
    for bad in (tiff(GREY - 300.0, 32, order, 1, 3), tiff(GREY.astype(np.int32) - 300, 16, order, 1, 2)):
        with pytest.raises(UserError, match="not those of an 8 or 16 bit"):
            as_pixels(bad)


def test_cmyk_and_bitmaps(tmp_path: pathlib.Path) -> None:
    ink = np.stack([GREY // 2, GREY[::-1] // 3, np.full_like(GREY, 60), GREY[:, ::-1] // 4], axis=-1)
    cyan, magenta, yellow, black = np.moveaxis(ink / 255, -1, 0)
    expected = 255 * (1 - black) * (0.299 * (1 - cyan) + 0.587 * (1 - magenta) + 0.114 * (1 - yellow))
    check_forms(encoded(Image.fromarray(ink, mode="CMYK"), "TIFF"), tmp_path, expected, 2)
    for image, grey in ((GREY, GREY), (RGB, luma(RGB)), (GREY > 99, np.where(GREY > 99, 255, 0))):
        check_forms(encoded(image, "BMP"), tmp_path, grey, 1)


@pytest.mark.parametrize("marker", ["CMYK by Adobe", "CMYK without a marker", "YCCK by Adobe"])
def test_jpeg_of_four_inks(marker: str, tmp_path: pathlib.Path) -> None:
    """Adobe's hold 255 minus the ink, as CMYK or, by transform 2, with the first three as YCbCr."""
    raw = np.stack([90 + GREY // 3, 110 + GREY[::-1] // 8, 120 + Y, 200 - X], axis=-1).astype(np.uint8)
    image = Image.frombytes("CMYK", (44, 31), (255 - raw).tobytes())  # Pillow writes it inverted
    data = bytearray(encoded(image, "JPEG", quality=100, subsampling=0))
    at = data.index(b"\xff\xee")
    light = raw / 255  # of each ink, what it lets through
    if marker == "YCCK by Adobe":
        data[at + 15] = 2
        luma, blueness, redness, _ = np.moveaxis(raw.astype(float), -1, 0)
        red, blue = luma + 1.402 * (redness - 128), luma + 1.772 * (blueness - 128)
        green = luma - 0.714136 * (redness - 128) - 0.344136 * (blueness - 128)
        light[..., :3] = 1 - np.stack([red, green, blue], axis=-1).clip(0, 255) / 255
    elif marker == "CMYK without a marker":
        del data[at : at + 16]
        light = 1 - light
    expected = 255 * (light[..., :3] * light[..., 3:]) @ np.array([0.299, 0.587, 0.114])
    check_forms(bytes(data), tmp_path, expected, 4)


def test_of_a_jpeg_with_two_pictures_the_first_counts(tmp_path: pathlib.Path) -> None:
    smooth = (Y * 4 + X).astype(np.uint8)
    data = encoded(smooth, "MPO", save_all=True, append_images=[Image.fromarray(255 - smooth)], quality=100)
    check_forms(data, tmp_path, smooth, 3)


@pytest.mark.parametrize("name", ["x", "x.PNG", "x.Jpg", "x.dcm", "a.b.c", ".hidden", "x.png.txt", "ä ö.tif"])
def test_names_do_not_matter(name: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / name).write_bytes(encoded(GREY, "TIFF"))
    np.testing.assert_array_equal(as_pixels(tmp_path / name), GREY)


@pytest.mark.parametrize(("marker", "precision"), [(0xC1, 12), (0xC3, 16), (0xF7, 12)])
def test_jpeg_of_more_than_8_bits_is_called_so(marker: int, precision: int) -> None:
    data = bytearray(encoded(GREY, "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, precision
    with pytest.raises(UserError, match=f"JPEG of {precision} bits is not supported: convert it to a 16-bit PNG"):
        as_pixels(bytes(data))


# PIL images and arrays


def pil_images() -> dict[str, tuple[Image.Image, np.ndarray, float]]:
    """mode: (image, what it shows by formula, tolerance)."""
    grey, colour = Image.fromarray(GREY), Image.fromarray(RGB)
    rgba = Image.fromarray(np.concatenate([RGB, ALPHA[..., None]], axis=-1))
    faded, faded_grey = luma(RGB) * ALPHA / 255, GREY * (ALPHA / 255)
    grey_alpha = Image.fromarray(np.stack([GREY, ALPHA], axis=-1))
    full = np.concatenate([RGB, np.full((31, 44, 1), 255, np.uint8)], axis=-1)
    hue = colour.convert("HSV")
    palette_alpha = Image.frombytes("PA", (44, 31), grey_alpha.tobytes())
    palette_alpha.putpalette(np.repeat(np.arange(256), 3).astype(np.uint8).tobytes())
    wide = GREY.astype(np.uint16) * 16
    return {
        "1": (Image.fromarray(GREY > 99), np.where(GREY > 99, 255, 0), 0),
        "L": (grey, GREY, 0),
        "P": (grey.convert("P"), GREY, 0),
        "LA": (grey_alpha, faded_grey, 1.5),
        "La": (grey_alpha.convert("La"), faded_grey, 1.5),
        "PA": (palette_alpha, faded_grey, 1.5),
        "RGB": (colour, luma(RGB), 1),
        "RGBX": (Image.frombytes("RGBX", (44, 31), full.tobytes()), luma(RGB), 1),
        "RGBA": (rgba, faded, 1.5),
        "RGBa": (rgba.convert("RGBa"), faded, 1.5),
        "CMYK": (colour.convert("CMYK"), luma(RGB), 2),
        "YCbCr": (colour.convert("YCbCr"), luma(RGB), 3),
        "HSV": (hue, luma(np.asarray(hue.convert("RGB"))), 1),
        "I": (Image.fromarray(GREY.astype(np.int32) * 16), GREY * (16 * 255 / 4095), 0.51),
        "F": (Image.fromarray(GREY.astype(np.float32) / 255), GREY, 0.51),
        "I;16": (Image.fromarray(wide), GREY * (16 * 255 / 4095), 0.51),
        "I;16L": (Image.frombytes("I;16L", (44, 31), wide.astype("<u2").tobytes()), GREY * (16 * 255 / 4095), 0.51),
        "I;16B": (Image.frombytes("I;16B", (44, 31), wide.astype(">u2").tobytes()), GREY * (16 * 255 / 4095), 0.51),
    }


@pytest.mark.parametrize("mode", pil_images())
def test_pil_images_of_every_mode(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image, expected, tolerance = pil_images()[mode]
    assert image.mode == mode
    before = image.tobytes()
    found = as_pixels(image)
    np.testing.assert_allclose(found.astype(float), expected, atol=tolerance)
    assert (image.mode, image.tobytes()) == (mode, before), "it is the user's"
    monkeypatch.setattr("mmclip_jax.data.images.grey._BAND", 100)  # two rows at a time
    np.testing.assert_array_equal(as_pixels(image), found)


_SHAPES = st.tuples(st.integers(1, 9), st.integers(2, 9))


@settings(max_examples=60)
@given(st.data())
def test_arrays_are_what_their_files_are(data: Any) -> None:
    shape = data.draw(_SHAPES)
    kind = data.draw(st.sampled_from(["u1", "u2", ">u2", "i4", "i8", "f4", "f8", "f2", "bool"]))
    if kind[-2] == "f":
        values = data.draw(st_numpy.arrays(kind, shape, elements=st.floats(0, 1, width=16)))
        expected = np.rint(values.astype(float) * 255)
    elif kind == "bool":
        values = data.draw(st_numpy.arrays(bool, shape))
        expected = values * 255.0
    else:
        top = data.draw(st.sampled_from([255] if kind == "u1" else [255, 1023, 4095, 16383, 65535]))
        values = data.draw(st_numpy.arrays(np.dtype(kind), shape, elements=st.integers(0, top)))
        white = 255 if kind == "u1" else next(2**b - 1 for b in (8, 10, 12, 14, 16) if values.max() < 2**b)
        expected = values * (255.0 / white)
    if np.ptp(np.rint(expected)) <= 1:
        return
    if kind[-2] == "f" and expected.max() <= 16:
        with pytest.raises(UserError, match="all but black"):
            as_pixels(values)
        return
    found = as_pixels(values)
    np.testing.assert_allclose(found.astype(float), expected, atol=0.51)
    np.testing.assert_array_equal(as_pixels(values[..., None]), found)
    if kind in ("u1", "u2", "bool"):
        np.testing.assert_array_equal(as_pixels(encoded(values, "PNG")), found)
        np.testing.assert_array_equal(as_pixels(Image.fromarray(values)), found)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_dark_floats_are_refused_whatever_their_alpha(channels: int) -> None:
    dark = np.repeat(GREY[..., None] * np.float32(4095 / 65535 / 255), channels, axis=2)
    if channels in (2, 4):
        dark[..., -1] = 1.0
    with pytest.raises(UserError, match="all but black"):
        as_pixels(dark)


def test_colour_arrays() -> None:
    expected = as_pixels(encoded(RGB, "PNG"))
    np.testing.assert_allclose(expected.astype(float), luma(RGB), atol=1)
    for form in (RGB, RGB.astype(np.uint16) * 257, RGB / 255, (RGB / 255).astype(np.float32), np.asfortranarray(RGB)):
        np.testing.assert_array_equal(as_pixels(form), expected)
    rgba = np.concatenate([RGB, ALPHA[..., None]], axis=-1)
    np.testing.assert_array_equal(as_pixels(rgba), as_pixels(encoded(rgba, "PNG")))
    np.testing.assert_array_equal(as_pixels(rgba / 255), as_pixels(rgba))


class Path:
    def __fspath__(self) -> str:
        return "nowhere.png"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, "not None"),
        (np.array([[0, 255], [3, 4]], np.float32), "float32 must be 0 to 1"),
        (np.array([[0, np.nan], [1, 0]], np.float32), "float32 must be 0 to 1"),
        (np.array([[0, -1], [3, 4]]), "from -1 to 4"),
        (np.array([[0, 70000], [3, 4]]), "from 0 to 70000"),
        (np.array([[1j, 2], [3, 4]]), "complex128"),
        (np.array([["a", "b"]]), "not of <U1"),
        (np.zeros((3, 9, 9), np.uint8), r"not uint8 \[3, 9, 9\]"),
        (np.zeros((2, 9, 9, 3), np.uint8), r"\[2, 9, 9, 3\]"),
        (np.zeros(9, np.uint8), r"\[9\]"),
        (np.zeros((0, 9), np.uint8), "9 x 0 pixels"),
        (np.broadcast_to(np.uint8(0), (20000, 20000)), "150 megapixels"),
        (np.full((9, 9, 3), 7, np.uint8), "every pixel has the value 7"),
        (np.full((9, 9), 0.5, np.float32), "every pixel has the value"),
        (7, r"\[\]"),
        ([[1, 2], [3]], "an image is a path"),
        ({"image": 3}, "not of object|object"),
        ("", "directory|no such|No such"),
        ("nowhere.png", "nowhere.png: No such file"),
        ("a\0b", "path|null|embedded"),
        (Path(), "nowhere.png: No such file"),
        (pathlib.Path("/"), "/: Is a directory"),
        (b"", "empty"),
        (b"words", "no JPEG, PNG, TIFF, BMP or DICOM file"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(bad: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        as_pixels(bad)
    assert "\n" not in str(raised.value)


def test_a_pil_image_of_a_truncated_file_is_refused(tmp_path: pathlib.Path) -> None:
    data = encoded(np.random.default_rng(0).integers(0, 256, (90, 90), dtype=np.uint8), "PNG")
    with pytest.raises(UserError, match="cannot be decoded"):
        as_pixels(Image.open(io.BytesIO(data[: len(data) // 2])))
    closed = Image.open(io.BytesIO(data))
    closed.close()
    with pytest.raises(UserError, match="cannot be decoded"):
        as_pixels(closed)


# Lists


@pytest.mark.parametrize(
    "one", [None, "x", b"x", bytearray(b"x"), pathlib.Path("x"), Image.new("L", (2, 2)), 3, {"a": 1}]
)
def test_what_is_no_list_is_refused(one: Any) -> None:
    with pytest.raises(UserError, match="images must be a list"):
        check_several("images", one)


def test_texts_are_strings_and_lists_are_of_one_length() -> None:
    bad: Any
    for bad in (None, 3, b"x", 1.5):
        with pytest.raises(UserError, match=r"texts\[1\] must be a string, not"):
            check_several("texts", ["a", bad])
    with pytest.raises(UserError, match="3 images, 2 texts"):
        check_equal(images=[1, 2, 3], texts=["a", "b"])
    check_equal(images=np.zeros((2, 3, 5)), texts=("a", "b"))
    for wrong in ([5], [-1], [0.5], [None], None, "0"):
        with pytest.raises(UserError, match="masked"):
            check_numbers("masked", wrong, 5)
    check_numbers("masked", np.arange(5), 5)


def test_stored_pixels_of_one_value_are_pixels() -> None:
    """An evaluation shows the model grey images: what is left of a score then is what shape and padding give away."""
    grey_image = np.full((9, 13), 128, np.uint8)
    np.testing.assert_array_equal(as_pixels(grey_image), grey_image)


def test_a_name_of_several_lines_is_one_line_of_a_message() -> None:
    with pytest.raises(UserError, match=r"^no such: No such file") as caught:
        as_pixels("no\nsuch")
    assert "\n" not in str(caught.value)


# Arrays that must not be taken for something else


@settings(max_examples=60)
@given(st.data())
def test_arrays_of_zeros_and_ones_are_refused_unless_they_are_bitmaps(data: Any) -> None:
    """As 8 or 16 bit pixels they would be black; as floats, or bool, they are what they say."""
    shape = data.draw(st.sampled_from([(5, 7), (5, 7, 1), (5, 7, 3)]))
    values = data.draw(st_numpy.arrays(bool, shape))
    values[0, 0], values[0, 1] = True, False
    kind = data.draw(st.sampled_from(["u1", "u2", "i4", "i8"]))
    deep_colour = shape[-1] == 3 and kind != "u1"
    message = "16-bit colour|empty" if deep_colour else "from 0 to 1 is all but black, where white is"
    with pytest.raises(UserError, match=message) as raised:
        as_pixels(values.astype(kind))
    assert "\n" not in str(raised.value)
    if len(shape) == 2:
        for meant in (values, values.astype(np.float32)):
            np.testing.assert_array_equal(as_pixels(meant), np.where(values, 255, 0))
    for dark in (values.astype(np.float64) / 255, values.astype(np.float32) * np.float32(4095 / 65535)):
        with pytest.raises(UserError, match="all but black, where white is 1:"):
            as_pixels(dark)


@settings(max_examples=40)
@given(
    shape=st.sampled_from([(9, 8), (9, 8, 1), (9, 8, 3), (9, 8, 4), (3, 3, 3)]),
    kind=st.sampled_from(["u1", "u2", "f4"]),
)
def test_one_array_is_no_list_of_its_rows(shape: tuple[int, ...], kind: str) -> None:
    with pytest.raises(UserError, match=r"images must be a list: an array \[.*\] is one image, give \[image\]"):
        check_several("images", np.ones(shape, kind))
    check_several("images", np.ones((2, *shape[:2], 5), kind))
    check_several("images", np.ones((2, 9, 8), kind))
    check_several("images", [np.ones(shape, kind)])


def test_a_pydicom_data_set_is_what_its_file_is(tmp_path: pathlib.Path) -> None:
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian

    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 31, 44, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = GREY.tobytes()
    dataset.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    expected = as_pixels(tmp_path / "x.dcm")
    np.testing.assert_array_equal(as_pixels(dataset), expected)
    np.testing.assert_array_equal(as_pixels(pydicom.dcmread(tmp_path / "x.dcm")), expected)
    del dataset.file_meta
    with pytest.raises(UserError, match="cannot be written as a file"):
        as_pixels(dataset)


def test_batches_are_padded_to_few_sizes() -> None:
    assert [batch_size(rows) for rows in (0, 1, 2, 3, 5, 33, 64, 65, 1000)] == [1, 1, 2, 4, 8, 64, 64, 64, 64]
    assert {batch_size(rows) for rows in range(300)} == {1, 2, 4, 8, 16, 32, 64}
    assert [batch_size(rows, 8) for rows in (1, 8, 9, 64, 65)] == [8, 8, 16, 64, 64]
    assert all(batch_size(rows) >= min(rows, BATCH) for rows in range(300))
    padded = pad(np.arange(6).reshape(3, 2), 4)
    np.testing.assert_array_equal(padded, [[0, 1], [2, 3], [4, 5], [4, 5]])
