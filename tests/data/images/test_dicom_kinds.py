"""What DICOM allows and real files hold: each kind against pixels computed by hand."""

import io
import pathlib
import resource
import struct
import subprocess
import sys
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pydicom
import pytest
from dicoms import compressed, dataset, dicom_file, jpeg_file, lut, written
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from mmclip_jax.data.images import codec, luts
from mmclip_jax.data.images.dicom import Decoded, decode_dicom, read_elements
from mmclip_jax.errors import UserError

Y, X = np.mgrid[:36, :52]
STORED = (Y * 61 + X * 29).astype(np.uint16)  # 0..3614, 12 bits, odd and even
WEIGHTS = np.array([0.299, 0.587, 0.114])


def pixels(data: bytes, **options: Any) -> np.ndarray:
    return decode_dicom(data, **options).pixels


def spread(values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """0..255 from low to high, in the plainest words."""
    low, high = (values.min() if low is None else low), (values.max() if high is None else high)
    return np.rint(255 * np.clip((values.astype(float) - low) / (high - low), 0, 1))


def in_syntax(ds: Any, syntax: Any) -> bytes:
    ds.file_meta.TransferSyntaxUID = syntax
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, ds, enforce_file_format=True)
    return stream.getvalue()


# Look-up tables


def table_item(entries: np.ndarray, first: int, bits: int, form: str, *, big: bool = False) -> Dataset:
    """A table as integers (US), as words of bytes (OW), or two 8-bit entries in a word."""
    item = lut(entries, 0, bits)
    del item.LUTDescriptor
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    if form != "US":
        data = entries.astype("u1").tobytes() if form == "packed" else entries.astype("<u2").tobytes()
        words = np.frombuffer(data, "<u2").astype(">u2" if big else "<u2").tobytes()
        del item.LUTData
        item.add_new("LUTData", "OW", words)
    return item


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("form", ["US", "OW"])
@pytest.mark.parametrize("bits", range(8, 17))
def test_modality_tables_of_every_depth(bits: int, form: str, photometric: str) -> None:
    entries = (np.arange(4096) ** 2) // (4096**2 // 2**bits)
    ds = dataset(STORED, PhotometricInterpretation=photometric)
    ds.ModalityLUTSequence = Sequence([table_item(entries, 0, bits, form)])
    found = decode_dicom(written(ds))
    expected = spread(entries[STORED])
    np.testing.assert_array_equal(found.pixels, 255 - expected if photometric == "MONOCHROME1" else expected)
    assert (found.minimum, found.maximum) == (entries[STORED].min(), entries[STORED].max())
    full = spread(entries[STORED], 0, 2**bits - 1)
    full = 255 - full if photometric == "MONOCHROME1" else full
    np.testing.assert_array_equal(pixels(written(ds), value_range="full"), full)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("count", [4096, 4095])
@pytest.mark.parametrize("sequence", ["ModalityLUTSequence", "VOILUTSequence"])
def test_entries_of_8_bits_packed_in_words(sequence: str, count: int, big: bool) -> None:
    entries = 255 - np.arange(4096) // 16
    ds = dataset(STORED)
    item = table_item(entries, 0, 8, "packed", big=big)
    item.LUTDescriptor = [count, 0, 8]
    setattr(ds, sequence, Sequence([item]))
    if big:
        ds.PixelData = STORED.astype(">u2").tobytes()
    data = in_syntax(ds, ExplicitVRBigEndian) if big else written(ds)
    shown = entries[STORED]
    expected = spread(shown) if sequence.startswith("Modality") else spread(shown, 0, 255)
    np.testing.assert_array_equal(pixels(data), expected)


@pytest.mark.parametrize("implicit", [False, True])
def test_a_table_of_65536_entries_and_one_that_starts_below_zero(implicit: bool) -> None:
    entries = np.arange(65536) // 32
    signed = (STORED.astype(np.int16) - 1800) * 9
    for values, first in ((STORED * 18, 0), (signed, -32768)):
        ds = dataset(values, 16)
        ds.ModalityLUTSequence = Sequence([table_item(entries, first, 16, "OW")])
        data = in_syntax(ds, ImplicitVRLittleEndian) if implicit else written(ds)
        found = decode_dicom(data)
        np.testing.assert_array_equal(found.pixels, spread(entries[values.astype(int) - first]))


def test_a_first_value_whose_sign_is_wrong() -> None:
    """Files with signed pixels state -1800 as 63736, and the reverse."""
    values = STORED.astype(np.int16) - 1800
    entries = np.arange(4096) ** 2 // 4096
    ds = dataset(values)
    ds.ModalityLUTSequence = Sequence([table_item(entries, 65536 - 1800, 12, "US")])
    np.testing.assert_array_equal(pixels(written(ds)), spread(entries[values.astype(int) + 1800]))
    high = STORED + np.uint16(40000)
    ds = dataset(high, 16)
    ds.ModalityLUTSequence = Sequence([table_item(entries, 40000 - 65536, 12, "US")])
    np.testing.assert_array_equal(pixels(written(ds)), spread(entries[STORED]))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_voi_tables_are_white_at_the_depth_that_they_state(bits: int) -> None:
    entries = np.arange(4096) * (2**bits // 2) // 4096 + 2 ** (bits - 2)  # a quarter to three quarters of the depth
    ds = dataset(STORED)
    ds.VOILUTSequence = Sequence([table_item(entries, 0, bits, "OW")])
    np.testing.assert_array_equal(pixels(written(ds)), spread(entries[STORED], 0, 2**bits - 1))


@settings(max_examples=60)
@given(st.data())
def test_tables_are_read_by_the_rule_of_the_standard(data: Any) -> None:
    bits = data.draw(st.integers(8, 16))
    count = data.draw(st.integers(2, 300))
    entries = np.array(data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count)))
    first = data.draw(st.integers(-400, 400))
    little, form = data.draw(st.booleans()), data.draw(st.sampled_from(["list", "words", "packed"]))
    if form == "packed" and bits == 8 and count > 2:
        raw: Any = np.append(entries, [0] * (count % 2)).astype("u1").tobytes()
        raw = raw if little else np.frombuffer(raw, "<u2").astype(">u2").tobytes()
    else:
        raw = entries.astype("<u2" if little else ">u2").tobytes() if form == "words" else entries.tolist()
    values = np.arange(-500, 800)
    table = luts.read_table([count, first, bits], raw, little, values.min(), values.max())
    expected = [entries[min(max(value - first, 0), count - 1)] for value in values.tolist()]
    np.testing.assert_array_equal(table(values), expected)
    with pytest.raises(ValueError, match="descriptor"):
        luts.read_table([2 * count + 2, first, bits], raw, little, 0, 1)


def test_a_window_behind_a_modality_table() -> None:
    entries = (np.arange(4096) * 16).astype(int)
    ds = dataset(STORED, WindowCenter=20000, WindowWidth=20001, VOILUTFunction="LINEAR")
    ds.ModalityLUTSequence = Sequence([table_item(entries, 0, 16, "US")])
    shown = (entries[STORED] - (20000 - 0.5)) / (20001 - 1) + 0.5  # PS3.3 C.11.2.1.2.1
    np.testing.assert_allclose(pixels(written(ds)), 255 * np.clip(shown, 0, 1), atol=1)


def test_a_damaged_modality_table_is_refused() -> None:
    ds = dataset(STORED)
    ds.ModalityLUTSequence = Sequence([table_item(np.arange(100), 0, 12, "US")])
    ds.ModalityLUTSequence[0].LUTDescriptor = [4096, 0, 12]
    with pytest.raises(UserError, match="modality LUT is damaged"):
        pixels(written(ds))


@pytest.mark.parametrize(("slope", "intercept"), [("2", None), (None, "-1024"), ("-1", "100"), ("0.5", "")])
def test_rescaling_with_one_of_its_two_numbers(slope: str | None, intercept: str | None) -> None:
    ds = dataset(STORED, WindowCenter=500, WindowWidth=1001)
    if slope is not None:
        ds.add_new("RescaleSlope", "DS", slope)
    if intercept is not None:
        ds.add_new("RescaleIntercept", "DS", intercept)
    values = STORED * float(slope or 1) + float(intercept or 0)
    found = decode_dicom(written(ds))
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    np.testing.assert_allclose(found.pixels, 255 * np.clip((values - 499.5) / 1000 + 0.5, 0, 1), atol=1)


# Windows, shapes, enhanced objects


@pytest.mark.parametrize("shape", ["IDENTITY", "INVERSE", None])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_the_inversion_happens_once(photometric: str, shape: str | None) -> None:
    elements = {"PhotometricInterpretation": photometric} | ({"PresentationLUTShape": shape} if shape else {})
    is_inverted = photometric == "MONOCHROME1" or shape == "INVERSE"
    expected = spread(STORED)
    np.testing.assert_array_equal(pixels(dicom_file(STORED, **elements)), 255 - expected if is_inverted else expected)


def test_photometric_interpretations_in_small_letters() -> None:
    data = dicom_file(STORED).replace(b"MONOCHROME2 ", b"monochrome1 ")
    np.testing.assert_array_equal(pixels(data), 255 - spread(STORED))


@pytest.mark.parametrize("groups", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
def test_enhanced_objects_keep_rescaling_and_window_in_groups(groups: str) -> None:
    rescale, window, group = Dataset(), Dataset(), Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept = 2, -1000
    window.WindowCenter, window.WindowWidth = 1000, 2001
    group.PixelValueTransformationSequence = Sequence([rescale])
    group.FrameVOILUTSequence = Sequence([window])
    data = dicom_file(STORED, NumberOfFrames=1, **{groups: Sequence([group])})
    values = STORED * 2.0 - 1000
    np.testing.assert_allclose(pixels(data), 255 * np.clip((values - 999.5) / 2000 + 0.5, 0, 1), atol=1)


# Where the bits lie


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("bits", "high"), [(12, 15), (12, 13), (10, 15), (15, 15), (8, 15)])
@pytest.mark.parametrize("syntax", [None, RLELossless, ExplicitVRBigEndian])
def test_bits_that_are_not_the_lowest(bits: int, high: int, signed: bool, syntax: Any) -> None:
    """As ACR-NEMA and early DICOM writers put them; the bits beside them hold overlays."""
    values = STORED.astype(np.int32) * 2**bits // 4096 - (2 ** (bits - 1) if signed else 0)
    shift = high + 1 - bits
    for beside in (0, 0xFFFF):
        raw = ((values & (2**bits - 1)) << shift) | (beside & ~(((2**bits) - 1) << shift))
        ds = dataset(raw.astype(np.uint16), bits)
        ds.HighBit, ds.PixelRepresentation = high, int(signed)
        if syntax is ExplicitVRBigEndian:
            ds.PixelData = raw.astype(">u2").tobytes()
            data = in_syntax(ds, syntax)
        else:
            if syntax is not None:
                ds.BitsStored, ds.HighBit = 16, 15  # else it writes one byte a pixel
                ds.compress(syntax)
                ds.BitsStored, ds.HighBit = bits, high
            data = written(ds)
        found = decode_dicom(data)
        np.testing.assert_array_equal(found.pixels, spread(values))
        assert (found.minimum, found.maximum) == (values.min(), values.max())


@pytest.mark.parametrize("kind", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_signed_values_in_every_lossless_syntax(kind: str, bits: int) -> None:
    values = ((STORED >> 2).astype(np.int32) - 450).astype(np.int16)  # fits 10 bits with a sign
    found = decode_dicom(compressed(dicom_file(values, bits), kind))
    np.testing.assert_array_equal(found.pixels, spread(values))
    assert (found.minimum, found.maximum) == (values.min(), values.max())


@pytest.mark.parametrize("bits", [8, 7, 5])
@pytest.mark.parametrize("signed", [False, True])
def test_8_bit_pixels_in_big_endian_words(bits: int, signed: bool) -> None:
    values = (STORED % 2**bits).astype(np.int16) - (2 ** (bits - 1) if signed else 0)
    small = values.astype(np.int8 if signed else np.uint8)
    ds = dataset(small, bits)
    ds.PixelData = np.frombuffer(small.tobytes(), "<u2").astype(">u2").tobytes()
    ds["PixelData"].VR = "OW"
    np.testing.assert_array_equal(pixels(in_syntax(ds, ExplicitVRBigEndian)), spread(values))


def test_baseline_jpeg_with_16_bits_allocated() -> None:
    grey = (STORED >> 4).astype(np.uint8)
    data = jpeg_file(grey)
    ds = pydicom.dcmread(io.BytesIO(data))
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 8, 7
    ds["PixelData"].VR = "OB"
    np.testing.assert_array_equal(pixels(written(ds)), pixels(data))


def test_a_12_bit_jpeg_is_called_so_whatever_the_header_says() -> None:
    ds = pydicom.dcmread(io.BytesIO(jpeg_file((STORED >> 4).astype(np.uint8))))
    frame = bytearray(pydicom.encaps.get_frame(ds.PixelData, 0, number_of_frames=1))
    at = frame.index(b"\xff\xc0")
    frame[at + 1], frame[at + 4] = 0xC1, 12
    ds.PixelData = encapsulate([bytes(frame)])
    with pytest.raises(UserError, match="lossy 12-bit JPEG"):
        pixels(written(ds))


# Colour


def colours() -> np.ndarray:
    return np.stack([STORED >> 4, (Y * 7) % 256, (X * 4) % 256], axis=-1).astype(np.uint8)


def ybr(rgb: np.ndarray) -> np.ndarray:
    """By PS3.3 C.7.6.3.1.2."""
    red, green, blue = np.moveaxis(rgb.astype(float), -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    blueness = -0.168736 * red - 0.331264 * green + 0.5 * blue + 128
    redness = 0.5 * red - 0.418688 * green - 0.081312 * blue + 128
    return np.rint(np.stack([luma, blueness, redness], axis=-1)).clip(0, 255).astype(np.uint8)


def grey_of_ybr(samples: np.ndarray) -> np.ndarray:
    """Through RGB, which is cut off at 0 and 255."""
    luma, blueness, redness = np.moveaxis(samples.astype(float), -1, 0)
    red, blue = luma + 1.402 * (redness - 128), luma + 1.772 * (blueness - 128)
    green = luma - 0.714136 * (redness - 128) - 0.344136 * (blueness - 128)
    return np.stack([red, green, blue], axis=-1).clip(0, 255) @ WEIGHTS


@pytest.mark.parametrize(("photometric", "planar"), [("RGB", 0), ("RGB", 1), ("YBR_FULL", 0), ("YBR_FULL", 1)])
def test_uncompressed_colour(photometric: str, planar: int) -> None:
    rgb = colours()
    samples = rgb if photometric == "RGB" else ybr(rgb)
    ds = dataset(samples, 8, PhotometricInterpretation=photometric, PlanarConfiguration=planar)
    if planar:
        ds.PixelData = np.moveaxis(samples, -1, 0).tobytes()
    np.testing.assert_allclose(pixels(written(ds)), rgb @ WEIGHTS, atol=2)


def test_two_pixels_that_share_their_colour() -> None:
    """4:2:2: Y of one, Y of the other, and the two differences of both."""
    samples = ybr(colours()).reshape(36, 26, 2, 3)
    ds = dataset(samples.reshape(36, 52, 3), 8, PhotometricInterpretation="YBR_FULL_422")
    first, second = samples[:, :, 0], samples[:, :, 1]
    ds.PixelData = np.stack([first[..., 0], second[..., 0], first[..., 1], first[..., 2]], axis=-1).tobytes()
    samples[:, :, 1, 1:] = first[..., 1:]
    np.testing.assert_allclose(pixels(written(ds)), grey_of_ybr(samples.reshape(36, 52, 3)), atol=2)


@pytest.mark.parametrize("kind", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_compressed_colour(kind: str, photometric: str) -> None:
    if kind == "JPEG2000Lossless":
        photometric = "RGB"  # it has a colour transform of its own
    rgb = colours()
    samples = rgb if photometric == "RGB" else ybr(rgb)
    data = compressed(dicom_file(samples, 8, PhotometricInterpretation=photometric), kind)
    np.testing.assert_allclose(pixels(data), rgb @ WEIGHTS, atol=3)


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_deep_colour(bits: int) -> None:
    rgb = (colours().astype(np.uint32) * (2**bits - 1) // 255).astype(np.uint16)
    np.testing.assert_allclose(pixels(dicom_file(rgb, bits)), colours() @ WEIGHTS, atol=2)


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "YBR_PARTIAL_422", "ARGB", "HSV", "DOE"])
def test_colour_that_is_not_read(photometric: str) -> None:
    with pytest.raises(UserError, match="photometric interpretation") as raised:
        pixels(dicom_file(colours(), 8, PhotometricInterpretation=photometric))
    assert "DOE" not in str(raised.value)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("first", [0, 20])
def test_palettes_of_every_depth(bits: int, first: int, big: bool) -> None:
    indices = (STORED >> 4).astype(np.uint8)
    white = 2**bits - 1
    tables = [np.arange(256) * white // 255, white - np.arange(256) * white // 510, np.full(256, white // 3)]
    ds = dataset(indices, 8, PhotometricInterpretation="PALETTE COLOR")
    for name, entries in zip(("Red", "Green", "Blue"), tables, strict=True):
        words = entries.astype("u1" if bits == 8 else "<u2").tobytes()
        words = np.frombuffer(words, "<u2").astype(">u2" if big else "<u2").tobytes()
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [256, first, bits])
        ds[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
        setattr(ds, f"{name}PaletteColorLookupTableData", words)
    if big:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
        ds["PixelData"].VR = "OW"
    data = in_syntax(ds, ExplicitVRBigEndian) if big else written(ds)
    places = np.clip(indices.astype(int) - first, 0, 255)
    expected = sum(weight * table[places] / white * 255 for weight, table in zip(WEIGHTS, tables, strict=True))
    np.testing.assert_allclose(pixels(data), expected, atol=1)


def test_a_palette_with_alpha_lies_on_black_and_one_without_blue_is_refused() -> None:
    indices = (STORED >> 4).astype(np.uint8)
    ds = dataset(indices, 8, PhotometricInterpretation="PALETTE COLOR")
    for name in ("Red", "Green", "Blue"):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 8])
        ds[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
        setattr(ds, f"{name}PaletteColorLookupTableData", np.full(256, 200, np.uint8).tobytes())
    alpha = np.arange(256)[::-1]
    ds.AlphaPaletteColorLookupTableData = alpha.astype(np.uint8).tobytes()
    np.testing.assert_allclose(pixels(written(ds)), 200 * alpha[indices] / 255, atol=1)
    del ds.BluePaletteColorLookupTableData
    with pytest.raises(UserError, match="palette is missing or damaged"):
        pixels(written(ds))


# Bounds


def deflated(size: int, head: bytes, before: bytes = b"") -> bytes:
    """A file whose data set inflates to `size` MiB of zeros."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = deflater.compress(bytes(1 << 20)) + deflater.flush(zlib.Z_FULL_FLUSH)
    body = piece * size + deflater.flush()
    uid = str(DeflatedExplicitVRLittleEndian).encode()
    return head + before + b"\x02\x00\x10\x00UI" + struct.pack("<H", len(uid)) + uid + body


_LONG = b"\x02\x00\x02\x01OB\0\0" + struct.pack("<I", 1 << 16) + bytes(1 << 16)  # private information of 64 KiB

_BOUNDED = """
import resource, sys
from mmclip_jax.data.images.dicom import decode_dicom
from mmclip_jax.errors import UserError
import pydicom, pydicom.pixels
data = sys.stdin.buffer.read()
before = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (before + (1 << 30), before + (1 << 30)))
try:
    decode_dicom(data)
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("head", "before"), [(bytes(128) + b"DICM", _LONG), (b"x" * 128 + b"DICM", b""), (b"", b""), (b"", _LONG)]
)
def test_deflated_files_are_bounded_whatever_stands_in_front(head: bytes, before: bytes) -> None:
    """2 GiB of zeros, in a process that may take 1 GiB."""
    data = deflated(2048, head, before)
    done = subprocess.run([sys.executable, "-c", _BOUNDED], input=data, capture_output=True, check=True)
    assert b"more than 320 MiB" in done.stdout, done.stderr[-300:]


def test_run_lengths_that_expand_are_bounded() -> None:
    """Two bytes say 128 times the second: 32 MiB would make 2 GiB."""
    ds = dataset(STORED)
    ds.file_meta.TransferSyntaxUID = RLELossless
    run = b"\x81\0" * (16 << 20)
    frame = struct.pack("<16I", 2, 64, 64 + len(run), *[0] * 13) + run + run[:64]
    ds.PixelData = encapsulate([frame])
    data = written(ds)
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with pytest.raises(UserError, match="more compressed data than pixels"):
        pixels(data)
    codec._close()  # what a child took is counted when it has ended
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(children, 500_000), "KiB"


def test_a_deflated_file_without_preamble_is_read() -> None:
    data = in_syntax(dataset(STORED), DeflatedExplicitVRLittleEndian)
    for whole in (data, data[132:], b"y" * 128 + data[128:]):
        np.testing.assert_array_equal(pixels(whole), spread(STORED))


@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_elements_are_read_without_the_pixels(syntax: Any, tmp_path: pathlib.Path) -> None:
    ds = dataset(STORED, PatientID="7", ViewPosition="PA")
    data = written(ds) if syntax is None else in_syntax(ds, syntax)
    for whole in (data, data[132:]):
        (tmp_path / "x").write_bytes(whole)
        found = read_elements(tmp_path / "x", ["PatientID", "ViewPosition"])
        assert (found.PatientID, found.ViewPosition, "PixelData" in found) == ("7", "PA", False)


def test_elements_of_a_file_that_inflates_to_gigabytes(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x").write_bytes(deflated(2048, b""))
    tracemalloc.start()
    try:
        read_elements(tmp_path / "x", ["PatientID"])
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 200e6


def test_the_grey_of_colour_is_pillows() -> None:
    rgb = colours()
    found: Decoded = decode_dicom(dicom_file(rgb, 8))
    np.testing.assert_array_equal(found.pixels, np.asarray(Image.fromarray(rgb).convert("L")))


# What real files were reported to hold


@pytest.mark.parametrize("kind", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"])
@pytest.mark.parametrize("has_offsets", [False, True])
def test_one_frame_in_several_fragments(kind: str, has_offsets: bool) -> None:
    """Writers with small buffers cut a frame; NumberOfFrames may be missing, and the offset table empty."""
    ds = pydicom.dcmread(io.BytesIO(compressed(dicom_file(STORED), kind)))
    frame = pydicom.encaps.get_frame(ds.PixelData, 0, number_of_frames=1)
    ds.PixelData = encapsulate([frame], fragments_per_frame=4, has_bot=has_offsets)
    np.testing.assert_array_equal(pixels(written(ds)), spread(STORED))


@pytest.mark.parametrize("bits", [12, 13, 16])
@pytest.mark.parametrize("kind", ["JPEG2000Lossless", "JPEGLSLossless", "JPEGLosslessProcess14_1"])
def test_signed_pixels_in_a_stream_that_is_not(kind: str, bits: int) -> None:
    """The stream holds two's complement in as many bits, and says that it is unsigned."""
    values = STORED.astype(np.int32) // 2 - 900
    ds = pydicom.dcmread(io.BytesIO(compressed(dicom_file((values & (2**bits - 1)).astype(np.uint16), bits), kind)))
    ds.PixelRepresentation = 1
    found = decode_dicom(written(ds))
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    np.testing.assert_array_equal(found.pixels, spread(values))


def test_a_negative_slope_turns_the_picture_over() -> None:
    """As an Agfa writer does: MONOCHROME2 of 8 bits, slope -10, intercept 3000."""
    grey = (STORED >> 4).astype(np.uint8)
    data = dicom_file(grey, 8, RescaleSlope=-10, RescaleIntercept=3000)
    values = 3000 - 10 * grey.astype(int)
    np.testing.assert_array_equal(pixels(data), spread(values))
    window = dicom_file(grey, 8, RescaleSlope=-10, RescaleIntercept=3000, WindowCenter=2000, WindowWidth=1001)
    shown = (values - 1999.5) / 1000 + 0.5
    np.testing.assert_allclose(pixels(window), 255 * np.clip(shown, 0, 1), atol=1)


@pytest.mark.parametrize("stated", [16, 8])
def test_a_voi_table_whose_descriptor_tells_its_storage(stated: int) -> None:
    """As Agfa CR writes it: 16 bits for entries of 12."""
    entries = np.arange(4096)
    ds = dataset(STORED)
    ds.VOILUTSequence = Sequence([table_item(entries, 0, stated, "OW")])
    np.testing.assert_array_equal(pixels(written(ds)), spread(STORED, 0, 4095))


def test_a_table_of_unsigned_entries_behind_signed_pixels() -> None:
    """IHE's consistency tests: only the first value takes the pixels' sign, the entries do not."""
    values = STORED.astype(np.int16) - 1800
    entries = np.arange(4096) * 16  # up to 65520, which is negative as a signed word
    ds = dataset(values)
    item = table_item(entries, -1800, 16, "OW")
    words = entries.astype(np.uint16).view(np.int16).tolist()
    del item.LUTData
    item.add_new("LUTData", "SS", words)
    ds.ModalityLUTSequence = Sequence([item])
    found = decode_dicom(written(ds))
    np.testing.assert_array_equal(found.pixels, spread(entries[STORED]))
    assert found.maximum == entries[STORED].max()


@pytest.mark.parametrize("damage", [(b"US\x02\0\0\0", b"Us\x02\0\0\0"), (b"US\x02\0\0\0", b"US\x02\0\x07\0")])
def test_a_damaged_pixel_representation_is_one_line(damage: tuple[bytes, bytes]) -> None:
    tag = b"\x28\0\x03\x01"
    data = dicom_file(STORED)
    assert tag + damage[0] in data
    with pytest.raises(UserError, match=r"damaged"):
        pixels(data.replace(tag + damage[0], tag + damage[1]))


def test_bytes_behind_the_pixels_do_not_count() -> None:
    ds = dataset(STORED)
    ds.PixelData = STORED.tobytes() + bytes(64)
    np.testing.assert_array_equal(pixels(written(ds)), spread(STORED))


@pytest.mark.parametrize("window", [(0, 1), (2000, 1), (2000, 2)])
def test_windows_of_one_step(window: tuple[int, int]) -> None:
    """Width 1 is a threshold (PS3.3 C.11.2.1.2.1); one that shows nothing is noted."""
    center, width = window
    found = decode_dicom(dicom_file(STORED, WindowCenter=center, WindowWidth=width))
    if center == 0:
        assert "shows one value" in found.note
    else:
        place = STORED - (center - 0.5)
        assert set(found.pixels[place <= -(width - 1) / 2].flat) == {0}
        assert set(found.pixels[place > (width - 1) / 2].flat) == {255}
