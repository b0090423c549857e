"""DICOM: each step against pydicom's own functions, NumPy formulae, or the array that the file was written from."""

import io
import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
import zlib
from typing import Any

import numpy as np
import pydicom
import pytest
from dicoms import compressed, dataset, dicom_file, jpeg_file, lut, written
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    RLELossless,
)

from mmclip_jax.data.images import codec, dicom, dicom_headers
from mmclip_jax.data.images.store import StoredImage, store_image
from mmclip_jax.errors import UserError

RNG = np.random.default_rng(0)
STORED = (np.add.outer(np.arange(37) * 61, np.arange(53) * 29) + RNG.integers(0, 200, (37, 53))).astype(
    np.uint16
)  # 12 bits


def store(data: bytes, **options: Any) -> StoredImage:
    return store_image(data, encoding="png", **options)


def by_range(values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """0..255 from `low` to `high`, the range of the values if not given."""
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    return np.rint(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255)


def test_without_window_the_values_present_are_the_range() -> None:
    stored = store(dicom_file(STORED))
    np.testing.assert_array_equal(stored.pixels, by_range(STORED))
    assert (stored.original_min, stored.original_max) == (STORED.min(), STORED.max())
    assert (stored.original_height, stored.original_width, stored.note) == (37, 53, "")


@pytest.mark.parametrize(("value_range", "high"), [("full", 4095), (4095, 4095), (5000, 5000)])
def test_a_given_range_ignores_the_window(value_range: Any, high: int) -> None:
    data = dicom_file(STORED, WindowCenter=1000, WindowWidth=100)
    np.testing.assert_array_equal(store(data, value_range=value_range).pixels, by_range(STORED, 0, high))
    with pytest.raises(UserError, match=r"beyond the given value range 0\.\.3000"):
        store(data, value_range=3000)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("signed", [False, True])
def test_windows_are_pydicoms(function: str | None, photometric: str, signed: bool) -> None:
    """The rescaling comes before the window, the first window counts, the inversion comes last."""
    values = (STORED.astype(np.int16) - 2048) if signed else STORED
    elements = {
        "RescaleSlope": 2.5, "RescaleIntercept": -300, "PhotometricInterpretation": photometric,
        "WindowCenter": [1500, 9], "WindowWidth": [3000, 7],
    }  # fmt: skip
    if function:
        elements["VOILUTFunction"] = function
    ds = dataset(values, **elements)
    rescaled = apply_modality_lut(values, ds)
    shown = apply_voi_lut(rescaled, ds, 0)
    first, last = (-2048, 2047) if signed else (0, 4095)
    expected = by_range(shown, first * 2.5 - 300, last * 2.5 - 300)
    stored = store(written(ds))
    np.testing.assert_allclose(stored.pixels, 255 - expected if photometric == "MONOCHROME1" else expected, atol=1)
    assert np.ptp(expected) > 100
    assert (stored.original_min, stored.original_max) == (rescaled.min(), rescaled.max())


@pytest.mark.parametrize("first", [0, 300])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_voi_lut_before_the_inversion(first: int, photometric: str) -> None:
    entries = np.rint(1023 * (np.arange(3000) / 2999) ** 2).astype(int)  # not symmetric: the order of the steps shows
    ds = dataset(STORED, PhotometricInterpretation=photometric, WindowCenter=7, WindowWidth=3)
    ds.VOILUTSequence = Sequence([lut(entries, first, 10)])
    expected = np.rint(apply_voi_lut(STORED, ds) / 1023 * 255)
    pixels = store(written(ds)).pixels
    np.testing.assert_allclose(pixels, 255 - expected if photometric == "MONOCHROME1" else expected, atol=1)


def test_voi_lut_of_8_bits_and_one_whose_descriptor_is_wrong() -> None:
    entries = np.arange(4096) // 16
    expected = np.rint(entries[STORED])
    for bits in (8, 16):  # pydicom's own look-up wraps for 8: the index gets the entries' type
        ds = dataset(STORED)
        ds.VOILUTSequence = Sequence([lut(entries, 0, bits)])
        np.testing.assert_allclose(store(written(ds)).pixels, expected, atol=1)


def test_modality_lut() -> None:
    entries = (np.arange(4096)[::-1] ** 2 // 300).astype(int)
    ds = dataset(STORED)
    ds.ModalityLUTSequence = Sequence([lut(entries, 0, 16)])
    ds.ModalityLUTSequence[0].ModalityLUTType = "US"
    values = apply_modality_lut(STORED, ds)
    stored = store(written(ds))
    np.testing.assert_allclose(stored.pixels, by_range(values), atol=1)
    assert (stored.original_min, stored.original_max) == (values.min(), values.max())


@pytest.mark.parametrize(
    "window",
    [("nan", "nan"), (1000, 0), (1000, -50), (1000, "nan"), ("inf", 10), (90000, 10)],
)
def test_windows_that_show_nothing_are_ignored_and_noted(window: tuple[Any, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = dataset(STORED)
        ds.add_new("WindowCenter", "DS", str(window[0]))
        ds.add_new("WindowWidth", "DS", str(window[1]))
        data = written(ds)
    stored = store(data)
    np.testing.assert_array_equal(stored.pixels, by_range(STORED))
    assert "window was ignored" in stored.note


def test_damaged_voi_lut_is_ignored_and_noted() -> None:
    ds = dataset(STORED)
    ds.VOILUTSequence = Sequence([lut(np.arange(100), 0, 12)])
    ds.VOILUTSequence[0].LUTDescriptor = [4096, 0, 12]
    stored = store(written(ds))
    np.testing.assert_array_equal(stored.pixels, by_range(STORED))
    assert "VOI LUT was ignored" in stored.note


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("signed", "padding", "limit"), [(False, 0, None), (False, 4095, 4090), (True, -2000, None)])
def test_padding_is_black_and_sets_no_range(photometric: str, signed: bool, padding: int, limit: int | None) -> None:
    values = (STORED % 3000 + 500).astype(np.int16 if signed else np.uint16)
    padded = values.copy()
    padded[:5] = padding
    elements: dict[str, Any] = {"PixelPaddingValue": padding, "PhotometricInterpretation": photometric}
    if limit is not None:
        elements["PixelPaddingRangeLimit"] = limit
        padded[0] = limit
    stored = store(dicom_file(padded, bits=16 if signed else 12, **elements))
    expected = by_range(values[5:])
    np.testing.assert_array_equal(stored.pixels[5:], 255 - expected if photometric == "MONOCHROME1" else expected)
    assert set(stored.pixels[:5].flat) == {0}
    assert (stored.original_min, stored.original_max) == (values[5:].min(), values[5:].max())
    with pytest.raises(UserError, match="every pixel is padding"):
        store(dicom_file(np.full_like(padded, padding), bits=16 if signed else 12, **elements))


def test_unused_bits_do_not_count() -> None:
    overlaid = STORED | np.where(RNG.random(STORED.shape) < 0.5, 0xF000, 0).astype(np.uint16)
    np.testing.assert_array_equal(store(dicom_file(overlaid)).pixels, by_range(STORED))


COMPRESSED = ("JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless")


@pytest.mark.parametrize("kind", COMPRESSED)
@pytest.mark.parametrize("depth", [8, 12])
def test_lossless_transfer_syntaxes(kind: str, depth: int) -> None:
    values = STORED[:36]  # GDCM writes no odd number of bytes
    if depth == 8:
        values = (values >> 4).astype(np.uint8)
    data = compressed(dicom_file(values, depth), kind)
    with pydicom.dcmread(io.BytesIO(data)) as ds:
        assert ds.file_meta.TransferSyntaxUID.is_encapsulated
    np.testing.assert_array_equal(store(data).pixels, by_range(values))


def test_lossy_jpeg_2000() -> None:
    smooth = np.rint(2000 + 1900 * np.sin(np.add.outer(np.arange(80), np.arange(90)) / 25)).astype(np.uint16)
    data = compressed(dicom_file(smooth), "JPEG2000")
    assert len(data) < smooth.nbytes
    np.testing.assert_allclose(store(data, value_range="full").pixels, by_range(smooth, 0, 4095), atol=6)


def test_signed_jpeg_2000() -> None:
    values = STORED.astype(np.int16) - 2048
    np.testing.assert_array_equal(store(compressed(dicom_file(values), "JPEG2000Lossless")).pixels, by_range(values))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_other_encodings_of_the_data_set(syntax: Any) -> None:
    ds = dataset(STORED)
    ds.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        ds.PixelData = STORED.astype(">u2").tobytes()
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, ds, enforce_file_format=True)
    np.testing.assert_array_equal(store(stream.getvalue()).pixels, by_range(STORED))


def test_rle_written_by_pydicom() -> None:
    ds = dataset(STORED)
    ds.compress(RLELossless)
    np.testing.assert_array_equal(store(written(ds)).pixels, by_range(STORED))


@pytest.mark.parametrize("implicit", [False, True])
def test_files_without_preamble(implicit: bool) -> None:
    ds = dataset(STORED)
    if implicit:
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    with_meta = written(ds)[128 + 4 :]
    bare = Dataset()
    bare.update(ds)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, bare, implicit_vr=implicit, little_endian=True)
    for data in (with_meta, stream.getvalue()):
        assert data[128:132] != b"DICM"
        np.testing.assert_array_equal(store(data).pixels, by_range(STORED))


def test_colour_becomes_luminance() -> None:
    rgb = np.stack([STORED >> 4, STORED.T.reshape(37, 53) >> 4, 255 - (STORED >> 4)], axis=-1).astype(np.uint8)
    expected = rgb @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(store(dicom_file(rgb, 8)).pixels, expected, atol=1)
    wide = rgb.astype(np.uint16) * 257
    np.testing.assert_allclose(store(dicom_file(wide, 16)).pixels, expected, atol=1)
    red, green, blue = np.moveaxis(rgb.astype(float), -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    ybr = np.rint(np.stack([luma, 128 + (blue - luma) / 1.772, 128 + (red - luma) / 1.402], axis=-1))
    data = dicom_file(np.clip(ybr, 0, 255).astype(np.uint8), 8, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_allclose(store(data).pixels, expected, atol=3)


def test_jpeg_baseline() -> None:
    """Grey and colour against Pillow's reading of the same JPEG."""
    grey = (STORED >> 4).astype(np.uint8)
    for image, photometric in ((grey, "MONOCHROME2"), (np.stack([grey, grey // 2, 255 - grey], -1), "YBR_FULL_422")):
        data = jpeg_file(image, photometric)
        expected = np.asarray(Image.open(io.BytesIO(_frame(data))).convert("L"))
        if image.ndim == 2:
            expected = by_range(expected)
        np.testing.assert_allclose(store(data).pixels, expected, atol=2)


def test_palette() -> None:
    indices = (STORED >> 4).astype(np.uint8)
    ds = dataset(indices, 8, PhotometricInterpretation="PALETTE COLOR")
    for name, factor in (("Red", 1), ("Green", 2), ("Blue", 3)):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        entries = (np.arange(256) * 257 // factor).astype("<u2")
        setattr(ds, f"{name}PaletteColorLookupTableData", entries.tobytes())
        ds[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
    expected = indices * (0.299 + 0.587 / 2 + 0.114 / 3)
    np.testing.assert_allclose(store(written(ds)).pixels, expected, atol=1)


def _changed(**elements: Any) -> bytes:
    return dicom_file(STORED, **elements)


def _with_frame(frame: bytes, syntax: Any, bits: int = 12, shape: tuple[int, int] = (37, 53)) -> bytes:
    ds = dataset(np.zeros(shape, np.uint16 if bits > 8 else np.uint8), bits)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([frame])
    return written(ds)


def _frame(data: bytes) -> bytes:
    return pydicom.encaps.get_frame(pydicom.dcmread(io.BytesIO(data)).PixelData, 0, number_of_frames=1)


def _deflation_bomb() -> bytes:
    ds = dataset(STORED)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data = written(ds)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = 144 + int.from_bytes(data[140:144], "little")
    zeros = b"".join([*(deflater.compress(bytes(1 << 20)) for _ in range(330)), deflater.flush()])
    return data[:start] + zeros


def _without_pixels() -> bytes:
    ds = dataset(STORED)
    del ds.PixelData
    return written(ds)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _changed(NumberOfFrames=3), "3 frames"),
        (lambda: _changed(Rows=30000, Columns=30000), "30000 x 30000 pixels, more than 150 megapixels"),
        (lambda: _changed(Rows=0), "damaged"),
        (lambda: _changed(Rows=38), "cannot be decoded"),
        (lambda: _changed(BitsAllocated=32, BitsStored=32, HighBit=31), "32 bits allocated"),
        (lambda: _changed(HighBit=13), "high bit 13"),
        (lambda: _changed(RescaleSlope="nan", RescaleIntercept=0), "not a finite number"),
        (lambda: _changed(PhotometricInterpretation="DOE"), "photometric interpretation"),
        (lambda: dicom_file(np.full_like(STORED, 77)), "every pixel has the value"),
        (lambda: dicom_file(STORED)[:-1000], "truncated"),
        (lambda: dicom_file(STORED)[:300], "truncated|damaged"),
        (lambda: dicom_file(STORED)[:132], "truncated|damaged"),
        (lambda: b"\x08\x00\x05\x00 words", "truncated|damaged"),
        (_without_pixels, "no pixel data"),
        (lambda: _with_frame(b"anything", JPEGExtended12Bit), "lossy 12-bit JPEG"),
        (lambda: _with_frame(b"anything", "1.2.840.10008.1.2.4.100"), "transfer syntax is not supported"),
        (_deflation_bomb, "truncated, or has more than 320 MiB"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*:UserWarning:pydicom")
def test_unusable_files(make: Any, message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = make()
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=message) as error:
            store(data)
    assert "DOE" not in str(error.value)


@pytest.mark.parametrize("kind", COMPRESSED)
def test_truncated_inside_the_compressed_frame(kind: str) -> None:
    data = compressed(dicom_file(STORED), kind)
    syntax = pydicom.dcmread(io.BytesIO(data)).file_meta.TransferSyntaxUID
    frame = _frame(data)
    with pytest.raises(UserError, match="decoded"):
        store(_with_frame(frame[: len(frame) // 2], syntax))
    with pytest.raises(UserError, match=r"truncated|damaged"):
        store(data[: -len(frame) // 2])


@pytest.mark.parametrize("kind", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless"])
def test_a_frame_of_another_size_than_the_headers(kind: str) -> None:
    data = compressed(dicom_file(np.tile(STORED, (2, 2))), kind)
    syntax = pydicom.dcmread(io.BytesIO(data)).file_meta.TransferSyntaxUID
    with pytest.raises(UserError, match="has not the header's size"):
        store(_with_frame(_frame(data), syntax))


def test_claimed_sizes_cost_no_memory() -> None:
    data = _changed(Rows=30000, Columns=30000)
    tracemalloc.start()
    with pytest.raises(UserError):
        store(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


def test_a_decoder_that_crashes_or_hangs_costs_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    good = compressed(dicom_file(STORED), "JPEGLosslessProcess14_1")
    frame = bytearray(_frame(good))
    at = frame.index(b"\xff\xc3")
    frame[at + 4] = 0x90  # a precision of 144 bits, at which GDCM crashes
    bad = _with_frame(bytes(frame), pydicom.dcmread(io.BytesIO(good)).file_meta.TransferSyntaxUID)
    for _ in range(2):
        with pytest.raises(UserError, match="decoded"):
            store(bad)
        np.testing.assert_array_equal(store(good).pixels, by_range(STORED))
    child = codec._idle[-1]
    os.kill(child.process.pid, signal.SIGSTOP)
    monkeypatch.setattr(codec, "SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"more than 0\.3 s"):
        store(good)
    assert time.monotonic() - started < 10
    assert child.process.poll() is not None, "it is killed"
    monkeypatch.undo()
    np.testing.assert_array_equal(store(good).pixels, by_range(STORED))


def test_threads_decode_at_once() -> None:
    images = [np.roll(STORED, shift, axis=0) for shift in range(12)]
    files = [compressed(dicom_file(image), "JPEG2000Lossless") for image in images]
    found: dict[int, np.ndarray] = {}

    def work(start: int) -> None:
        for i in range(start, len(files), 3):
            found[i] = store(files[i]).pixels

    threads = [threading.Thread(target=work, args=(start,)) for start in range(3)]
    filters = warnings.filters[:]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(12))
    for i, image in enumerate(images):
        np.testing.assert_array_equal(found[i], by_range(image))
    assert warnings.filters[:] == filters, "overlapping threads leave the filters as they were"


def test_nothing_of_the_header_leaks(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = dataset(STORED)
        ds.add_new("PatientBirthDate", "DA", "DOE^JANE")
        ds.add_new("WindowWidth", "DS", "1234567")
        ds.add_new("WindowCenter", "DS", "1")
        data = written(ds).replace(b"1234567 ", b"DOE^JANE")
    assert "DOE^JANE" in caplog.text, "pydicom itself quotes values"
    caplog.clear()
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings():
        warnings.simplefilter("error")
        stored = store(data)
    assert "DOE" not in stored.note + caplog.text + "".join(capfd.readouterr())
    np.testing.assert_array_equal(stored.pixels, by_range(STORED))


def test_nothing_of_a_header_that_is_read_alone_leaks(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """pydicom looks at a value when it is asked for it, and not when it reads the file."""
    ds = dataset(STORED)
    ds.AccessionNumber = "1.2.3.4"
    data = written(ds)
    at = data.index(ds.SOPInstanceUID.encode(), data.index(b"1.2.840.10008.5.1.4.1.1", 200))
    (tmp_path / "x.dcm").write_bytes(data[:at] + b"DOE^JANE" + data[at + 8 :])
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert dicom_headers.read(str(tmp_path / "x.dcm")) is not None
    assert "DOE" not in caplog.text + "".join(capfd.readouterr()) + " ".join(str(each.message) for each in caught)


def test_pydicom_is_loaded_when_a_dicom_is_met() -> None:
    code = "import sys; import mmclip_jax.data.images.store; assert not {'pydicom', 'gdcm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_size_limit_is_below_pillows() -> None:
    """Pillow's own limits must not speak first: it warns from one limit on and refuses from twice that."""
    assert Image.MAX_IMAGE_PIXELS is not None
    assert dicom.MAX_PIXELS < 2 * Image.MAX_IMAGE_PIXELS
