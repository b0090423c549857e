"""DICOM files for tests, written with pydicom, and compressed with GDCM."""

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid


def dataset(stored: np.ndarray, bits: int = 12, **elements: Any) -> FileDataset:
    """A radiograph of stored values, [H, W] or RGB [H, W, 3]; further elements by their keywords."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1")
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["test"])
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.PatientName = "DOE^JANE"
    ds.Rows, ds.Columns = stored.shape[:2]
    ds.SamplesPerPixel = 3 if stored.ndim == 3 else 1
    if stored.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = "RGB" if stored.ndim == 3 else "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8 * stored.dtype.itemsize, bits, bits - 1
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    ds.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    ds["PixelData"].VR = "OW" if stored.dtype.itemsize == 2 else "OB"
    for name, value in elements.items():
        setattr(ds, name, value)
    return ds


def written(ds: FileDataset) -> bytes:
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def dicom_file(stored: np.ndarray, bits: int = 12, **elements: Any) -> bytes:
    return written(dataset(stored, bits, **elements))


def compressed(data: bytes, kind: str) -> bytes:
    """The file in another transfer syntax, by its name in GDCM."""
    import gdcm

    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory, "source.dcm"), Path(directory, "target.dcm")
        source.write_bytes(data)
        reader = gdcm.ImageReader()
        reader.SetFileName(str(source))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, kind)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(target))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return target.read_bytes()


def lut(entries: np.ndarray, first: int, bits: int) -> Dataset:
    """An item of a look-up table sequence."""
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.LUTData = [int(entry) for entry in entries]
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    return item


def lut_file(stored: np.ndarray) -> bytes:
    """MONOCHROME1 of 12 bits with a VOI LUT."""
    ds = dataset(stored, PhotometricInterpretation="MONOCHROME1")
    ds.VOILUTSequence = Sequence([lut(np.arange(4096) // 4, 0, 10)])
    return written(ds)


def jpeg_file(image: np.ndarray, photometric: str = "MONOCHROME2") -> bytes:
    """8-bit baseline JPEG by Pillow."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=95)
    ds = dataset(image, 8, PhotometricInterpretation=photometric)
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.PixelData = encapsulate([stream.getvalue()])
    return written(ds)
