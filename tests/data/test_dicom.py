import io
import pathlib
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

from mmclip_jax.data.dicom import decode_dicom
from mmclip_jax.data.images import store_image
from mmclip_jax.errors import UserError

HEIGHT, WIDTH = 37, 53
TWELVE_BITS = (np.add.outer(np.arange(HEIGHT) * 61, np.arange(WIDTH) * 31) % 4096).astype(np.uint16)


def dataset(pixels: np.ndarray = TWELVE_BITS, bits: int = 12, **elements: Any) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    made.Rows, made.Columns = pixels.shape[:2]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = 8 * pixels.dtype.itemsize
    made.BitsStored, made.HighBit = bits, bits - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def written(made: FileDataset) -> bytes:
    stream = io.BytesIO()
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def linear_window(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """The formula of DICOM PS3.3, C.11.2.1.2.1, onto 0..255."""
    return np.clip(((values - (centre - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)


def test_without_a_window_the_values_that_occur_span_black_to_white() -> None:
    pixels = TWELVE_BITS // 2 + 300
    decoded = decode_dicom(written(dataset(pixels)))
    low, high = pixels.min(), pixels.max()
    np.testing.assert_allclose(decoded.grey, (pixels - float(low)) / float(high - low) * 255, atol=1e-3)
    assert (decoded.low, decoded.high) == (low, high)


def test_rescale_then_window_then_inversion() -> None:
    made = dataset(
        RescaleSlope="2", RescaleIntercept="-1000", WindowCenter=[1500, 9], WindowWidth=[2500, 5],
        PhotometricInterpretation="MONOCHROME1",
    )  # fmt: skip
    decoded = decode_dicom(written(made))
    expected = 255 - linear_window(TWELVE_BITS * 2.0 - 1000, 1500, 2500)
    np.testing.assert_allclose(decoded.grey, expected, atol=0.1)
    assert (decoded.low, decoded.high) == (2 * int(TWELVE_BITS.min()) - 1000, 2 * int(TWELVE_BITS.max()) - 1000)


def test_sigmoid_and_exact_windows() -> None:
    sigmoid = decode_dicom(written(dataset(WindowCenter=2000, WindowWidth=900, VOILUTFunction="SIGMOID"))).grey
    expected = 255 / (1 + np.exp(-4 * (TWELVE_BITS - 2000.0) / 900))
    np.testing.assert_allclose(sigmoid, expected, atol=0.1)
    exact = decode_dicom(written(dataset(WindowCenter=2000, WindowWidth=0.5, VOILUTFunction="LINEAR_EXACT"))).grey
    np.testing.assert_allclose(
        exact, np.where(TWELVE_BITS > 2000, 255, np.where(TWELVE_BITS < 2000, 0, 127.5)), atol=0.1
    )


def test_a_lookup_table_of_a_monochrome1_image() -> None:
    table = (np.sqrt(np.arange(4096) / 4095) * 1023).astype(np.uint16)
    lut = pydicom.Dataset()
    lut.LUTDescriptor = [4096, 0, 10]
    lut.LUTData = table.tobytes()
    lut["LUTData"].VR = "OW"
    lut["LUTDescriptor"].VR = "US"
    made = dataset(VOILUTSequence=[lut], PhotometricInterpretation="MONOCHROME1", WindowCenter=1, WindowWidth=2)
    expected = 255 - table[TWELVE_BITS] * (255 / 1023)
    np.testing.assert_allclose(decode_dicom(written(made)).grey, expected, atol=0.01)


def test_signed_values() -> None:
    pixels = TWELVE_BITS.astype(np.int16) - 2048
    grey = decode_dicom(written(dataset(pixels, bits=16, WindowCenter=-100, WindowWidth=1000))).grey
    np.testing.assert_allclose(grey, linear_window(pixels.astype(float), -100, 1000), atol=0.1)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_set_the_range(photometric: str) -> None:
    pixels = TWELVE_BITS // 4 + 1000
    pixels[:5] = 4095
    pixels[-4:] = 4090
    made = dataset(pixels, PixelPaddingValue=4090, PixelPaddingRangeLimit=4095, PhotometricInterpretation=photometric)
    decoded = decode_dicom(written(made))
    assert not decoded.grey[:5].any()
    assert not decoded.grey[-4:].any()
    inner = pixels[5:-4].astype(float)
    assert (decoded.low, decoded.high) == (inner.min(), inner.max())
    expected = (inner - inner.min()) / (inner.max() - inner.min()) * 255
    np.testing.assert_allclose(decoded.grey[5:-4], 255 - expected if photometric[-1] == "1" else expected, atol=1e-3)


LOSSLESS = {
    "RLE": uid.RLELossless,
    "JPEG lossless": uid.JPEGLosslessSV1,
    "JPEG lossless, any predictor": uid.JPEGLossless,
    "JPEG-LS": uid.JPEGLSLossless,
    "JPEG 2000": uid.JPEG2000Lossless,
}


def compressed(made: FileDataset, syntax: str, folder: pathlib.Path) -> bytes:
    """The same image in another transfer syntax, by GDCM's own writer."""
    import gdcm

    kinds = {
        uid.RLELossless: gdcm.TransferSyntax.RLELossless,
        uid.JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
        uid.JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14,
        uid.JPEGLSLossless: gdcm.TransferSyntax.JPEGLSLossless,
        uid.JPEG2000Lossless: gdcm.TransferSyntax.JPEG2000Lossless,
    }
    plain, packed = folder / "plain.dcm", folder / "packed.dcm"
    plain.write_bytes(written(made))
    reader = gdcm.ImageReader()
    reader.SetFileName(str(plain))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(kinds[uid.UID(syntax)]))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(packed))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert pydicom.dcmread(packed, stop_before_pixels=True).file_meta.TransferSyntaxUID == syntax
    return packed.read_bytes()


@pytest.mark.parametrize("name", LOSSLESS)
def test_compressed_files_give_the_pixels_of_the_uncompressed(name: str, tmp_path: pathlib.Path) -> None:
    made = dataset(WindowCenter=1800, WindowWidth=3001, PhotometricInterpretation="MONOCHROME1")
    packed = decode_dicom(compressed(made, LOSSLESS[name], tmp_path))
    np.testing.assert_array_equal(packed.grey, decode_dicom(written(made)).grey)
    np.testing.assert_allclose(packed.grey, 255 - linear_window(TWELVE_BITS.astype(float), 1800, 3001), atol=0.1)


def test_lossy_jpeg_and_deflated_files() -> None:
    smooth = (np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)) * 255 / 88).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(smooth).save(stream, "JPEG", quality=90)
    made = dataset(smooth, bits=8, WindowCenter=128, WindowWidth=256)
    made.PixelData = encapsulate([stream.getvalue()])
    made["PixelData"].is_undefined_length = True
    made.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    np.testing.assert_allclose(decode_dicom(written(made)).grey, np.asarray(Image.open(stream)), atol=2)
    deflated = dataset()
    deflated.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    np.testing.assert_array_equal(decode_dicom(written(deflated)).grey, decode_dicom(written(dataset())).grey)


def test_colour_becomes_luminance() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    made = dataset(rgb, bits=8, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    expected = rgb @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(decode_dicom(written(made)).grey, expected, atol=1)


def test_a_file_without_preamble_is_known_by_its_contents() -> None:
    made = dataset()
    made.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    whole = written(made)
    stream = io.BytesIO()
    del made.file_meta, made.preamble
    made.save_as(stream, implicit_vr=True, little_endian=True)
    bare = stream.getvalue()
    assert bare[128:132] != b"DICM"
    np.testing.assert_array_equal(store_image(bare).pixels, store_image(whole).pixels)


def test_what_is_stored_of_a_dicom_file() -> None:
    pixels = np.kron(TWELVE_BITS, np.ones((8, 8), np.uint16))
    stored = store_image(written(dataset(pixels, WindowCenter=2048, WindowWidth=4096)), shorter_side=37, encoding="png")
    assert (stored.original_height, stored.original_width) == (HEIGHT * 8, WIDTH * 8)
    assert stored.pixels.shape == (37, 53)
    assert (stored.original_min, stored.original_max) == (TWELVE_BITS.min(), TWELVE_BITS.max())
    blocks = linear_window(TWELVE_BITS.astype(float), 2048, 4096)
    assert np.abs(stored.pixels - blocks).mean() < 12, "the same picture, but for ringing at the jumps of the ramp"


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "frames": ({"NumberOfFrames": 2, "PixelData": TWELVE_BITS.tobytes() * 2}, "2 frames"),
    "bomb": ({"Rows": 30_000, "Columns": 30_000}, "claims 30000 x 30000 pixels"),
    "short": ({"PixelData": TWELVE_BITS.tobytes()[:-40]}, "damaged or incomplete"),
    "zero width": ({"WindowCenter": 5, "WindowWidth": 0}, "window makes no sense"),
    "negative width": ({"WindowCenter": 5, "WindowWidth": -3}, "window makes no sense"),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
    "padding": ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4095}, "every pixel is padding"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_files_are_one_clear_error(name: str) -> None:
    elements, message = UNUSABLE[name]
    with pytest.raises(UserError, match=message):
        store_image(written(dataset(**elements)))


def test_a_window_that_is_no_number() -> None:
    data = written(dataset(WindowCenter="100.00", WindowWidth="2000.0"))
    broken = data.replace(b"2000.0", b"nan   ")
    assert broken != data
    with pytest.raises(UserError, match="window makes no sense"):
        store_image(broken)


def test_no_pixels_and_an_unknown_compression() -> None:
    made = dataset()
    del made.PixelData
    with pytest.raises(UserError, match="no pixels"):
        store_image(written(made))
    data = written(dataset()).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.102\0"[:20])
    with pytest.raises(UserError, match="DICOM"):
        store_image(data)


@pytest.mark.parametrize("length", [200, 500, 1000, 3000])
def test_truncated_files(length: int) -> None:
    with pytest.raises(UserError, match="DICOM"):
        store_image(written(dataset())[:length])
