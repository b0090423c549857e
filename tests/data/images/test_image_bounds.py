"""Large and hostile pictures, in processes whose memory is limited; and what stands in a file beside its pixels."""

import ast
import base64
import io
import pathlib
import re
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

import mmclip_jax
from mmclip_jax.data.images import stored
from mmclip_jax.data.images.store import store_image
from mmclip_jax.data.images.transforms import decode_image
from mmclip_jax.errors import UserError

Y, X = np.mgrid[:40, :56]
GREY = (Y * 4 + X).astype(np.uint8)

_BOUNDED = """
import resource, sys
import PIL.Image, PIL.PngImagePlugin, PIL.TiffImagePlugin
from mmclip_jax.data.images.store import store_image
from mmclip_jax.errors import UserError
data, most = sys.stdin.buffer.read(), int(sys.argv[1]) << 20
before = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (before + most, before + most))
try:
    print(store_image(data, shorter_side=16).pixels.shape)
except UserError as error:
    print(error)
"""


def bounded(data: bytes, mebibytes: int) -> str:
    """What storing an image says in a process that may take so much beside what it has."""
    command = [sys.executable, "-c", _BOUNDED, str(mebibytes)]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-400:]
    return done.stdout.decode()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def large_png(width: int, height: int, bits: int, colour_type: int) -> bytes:
    """Its left half is black, its right half white; compressed to little, and quickly made."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    half = width * channels * bits // 16
    rows = (b"\0" + bytes(half) + b"\xff" * half) * 10
    deflater = zlib.compressobj(1, zlib.DEFLATED, -15)
    piece = deflater.compress(rows) + deflater.flush(zlib.Z_FULL_FLUSH)
    check = 1
    for _ in range(height // 10):
        check = zlib.adler32(rows, check)
    body = b"\x78\x01" + piece * (height // 10) + deflater.flush() + struct.pack(">I", check)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("bits", "colour_type", "mebibytes"),
    [(8, 6, 1000), (16, 0, 1250)],  # decoded by Pillow, 148 megapixels take 565 and 283 MiB; the second becomes floats
)
def test_148_megapixels_are_read_within_their_own_size(bits: int, colour_type: int, mebibytes: int) -> None:
    assert bounded(large_png(12200, 12130, bits, colour_type), mebibytes).startswith("(16, 16)")


@pytest.mark.parametrize("encoding", ["jpeg", "png"])
def test_images_that_are_too_long_are_refused(encoding: str) -> None:
    """A JPEG has 65,500 pixels a side at most."""
    data = encoded(np.tile(GREY[:1], (9, 1200)))
    with pytest.raises(UserError, match="67200 x 9 pixels: no radiograph is so long"):
        store_image(data, encoding=encoding)


def test_more_is_refused_before_it_is_decoded() -> None:
    assert "more than 150 megapixels" in bounded(large_png(12400, 12130, 8, 6), 100)


def tiff(entries: list[tuple[int, int]], data: bytes) -> bytes:
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + body + bytes(4)


@pytest.mark.parametrize("compression", [1, 5, 8, 7])
def test_tiles_that_claim_gigabytes(compression: int) -> None:
    """A small image in one tile of 60,000 x 60,000."""
    data = zlib.compress(bytes(9000))
    entries = [(256, 50), (257, 50), (258, 8), (259, compression), (262, 1), (277, 1), (322, 60000), (323, 60000)]
    said = bounded(tiff([*entries, (324, 8), (325, len(data))], data), 300)
    assert "decoded" in said or said.startswith("(16, 16)")


def test_texts_of_png_are_bounded() -> None:
    """A compressed text of 2 GiB."""
    deflater = zlib.compressobj(9)
    piece = deflater.compress(bytes(1 << 20)) + deflater.flush(zlib.Z_FULL_FLUSH)
    text = chunk(b"zTXt", b"Comment\0\0" + piece * 2048)
    plain = encoded(GREY)
    said = bounded(plain[:33] + text + plain[33:], 300)
    assert "decoded" in said or said.startswith("(16, 22)")


# Metadata


def encoded(pixels: Any, file_format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, file_format, **options)
    return stream.getvalue()


def telling_files() -> dict[str, bytes]:
    """Grey pictures with a name in every place that has room for one."""
    info = PngImagePlugin.PngInfo()
    info.add_text("PatientName", "DOE^JANE")
    info.add_text("Comment", "DOE^JANE", zip=True)
    info.add_itxt("XML:com.adobe.xmp", "<x>DOE^JANE</x>")
    exif = Image.Exif()
    exif[0x010E] = "DOE^JANE"
    jpeg: dict[str, Any] = {"exif": exif, "comment": b"DOE^JANE", "icc_profile": b"DOE^JANE", "quality": 95}
    return {
        "PNG": encoded(GREY, pnginfo=info, exif=exif, icc_profile=b"DOE^JANE") + b"DOE^JANE",
        "1 bit": encoded(GREY > 90, pnginfo=info),
        "JPEG": encoded(GREY, "JPEG", **jpeg) + b"DOE^JANE",
        "progressive": encoded(GREY, "JPEG", progressive=True, **jpeg) + b"\xff\xd9DOE^JANE",
        "restarts": encoded(GREY, "JPEG", restart_marker_blocks=1, **jpeg),
        "arithmetic colour": encoded(np.stack([GREY, GREY.T.reshape(GREY.shape), GREY], -1), "JPEG", **jpeg),
    }


@pytest.mark.parametrize("name", telling_files())
def test_metadata_are_stripped_and_pixels_are_not(name: str) -> None:
    data = telling_files()[name]
    assert b"DOE" in data
    stripped = stored.strip_metadata(data)
    assert b"DOE" not in stripped
    assert b"x\x9c" not in stripped.replace(b"IDATx\x9c", b""), "no compressed text"
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(stripped)) as after:
        np.testing.assert_array_equal(np.asarray(before), np.asarray(after))
        assert not set(after.info) - {"jfif", "jfif_version", "jfif_unit", "jfif_density", "progressive", "progression"}
    assert stored.strip_metadata(stripped) == stripped


def test_a_file_that_has_none_keeps_every_byte() -> None:
    for data in (encoded(GREY), encoded(GREY, "JPEG"), encoded(GREY, "JPEG", progressive=True)):
        assert stored.strip_metadata(data) == data


@pytest.mark.parametrize("name", ["PNG", "JPEG"])
def test_cut_files_are_no_pictures(name: str) -> None:
    data = telling_files()[name][: -len(b"DOE^JANE")]
    for length in range(0, len(data) - 1, 37):
        with pytest.raises(ValueError, match=r"PNG|JPEG"):
            stored.strip_metadata(data[:length])


@settings(max_examples=300)
@given(st.sampled_from(sorted(telling_files())), st.data())
def test_damaged_files_are_stripped_or_refused(name: str, data: Any) -> None:
    changed = bytearray(telling_files()[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        stripped = stored.strip_metadata(bytes(changed))
    except ValueError:
        return
    assert len(stripped) <= len(changed)
    assert stored.strip_metadata(stripped) == stripped


# Formats


@pytest.mark.parametrize("file_format", ["EPS", "GIF", "TIFF", "BMP", "WEBP", "PPM"])
def test_stored_pictures_are_png_or_jpeg(file_format: str) -> None:
    data = encoded(GREY, file_format)
    with pytest.raises(UserError, match="cannot be decoded"):
        decode_image(data)
    with pytest.raises(UserError, match="cannot be decoded"), stored.open_stored(data):
        pass


def test_stored_pictures_are_bounded() -> None:
    claims = encoded(GREY)
    claims = claims[:16] + struct.pack(">II", 60000, 60000) + claims[24:29] + b"\0" * 4 + claims[33:]
    claims = claims[:29] + struct.pack(">I", zlib.crc32(claims[12:29])) + claims[33:]
    with pytest.raises(UserError, match=r"megapixels|decoded"):
        decode_image(claims)


def test_nothing_opens_a_picture_without_naming_the_formats() -> None:
    """Pillow would try all that it knows: an EPS file starts Ghostscript."""
    found = []
    for file in pathlib.Path(mmclip_jax.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and re.search(r"(Image|PIL\.Image)\.open$", ast.unparse(node.func)):
                found.append(file.name)
                assert any(word.arg == "formats" for word in node.keywords), f"{file}:{node.lineno}"
    assert sorted(found) == ["app.py", "grey.py", "stored.py"]  # app.py: the size of an upload, by its header


def test_data_uris_are_stripped() -> None:
    from mmclip_jax.data import page

    uri = page._data_uri(telling_files()["PNG"])
    assert uri.startswith("data:image/png;base64,")
    assert b"DOE" not in base64.b64decode(uri.partition(",")[2])
    with pytest.raises(UserError, match="damaged"):
        page._data_uri(b"GIF89a")
