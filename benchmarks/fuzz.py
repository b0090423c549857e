"""Mutated inputs through the readers of data sets: nothing but a UserError may come out, and nothing may hang.

    python benchmarks/fuzz.py --count 2500

Each kind of input starts from valid files and gets bytes flipped, cut out, doubled or replaced by telling ones. A build
that succeeds must give records that can be read back whole.
"""

import argparse
import collections
import io
import pathlib
import random
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from mmclip_jax.data import records
from mmclip_jax.data.builders import registry
from mmclip_jax.data.builders.table import TableOptions, build_table
from mmclip_jax.data.images import store_image
from mmclip_jax.errors import UserError

_TELLING = [
    b"",
    b"\0",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"-1",
    b"nan",
    b"1e999",
    b'"',
    b"\n",
    b",",
    b"<",
    b"&a;",
    b"\xed\xa0\x80",
]
_SECONDS = 20


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A copy with one to four changes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        span = rng.choice([1, 2, 4, 16, 200])
        match rng.choice([0, 0, 1, 1, 2, 2, 3, 3, 4]):
            case 0:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del out[at : at + span]
            case 2:
                out[at:at] = out[at : at + span]
            case 3:
                out[at : at + span] = rng.choice(_TELLING)
            case _:
                del out[max(at, 1) :]
    return bytes(out)


def picture(file_format: str, dtype: Any = np.uint8) -> bytes:
    """A small valid image file."""
    stream = io.BytesIO()
    top = np.iinfo(dtype).max
    Image.fromarray((np.add.outer(np.arange(41), np.arange(59)) * (top // 98)).astype(dtype)).save(stream, file_format)
    return stream.getvalue()


def dicom() -> bytes:
    """A small valid DICOM radiograph with a window."""
    import pydicom
    from pydicom import uid
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = uid.UID("1.2.3")
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, uid.UID("1.2.3")
    made.Rows, made.Columns, made.SamplesPerPixel = 41, 59, 1
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
    made.PhotometricInterpretation, made.WindowCenter, made.WindowWidth = "MONOCHROME1", 900, 1500
    made.PixelData = (np.add.outer(np.arange(41), np.arange(59)) * 20).astype(np.uint16).tobytes()
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, made, enforce_file_format=True)
    return stream.getvalue()


def compressed_dicoms() -> list[bytes]:
    """The same, compressed by RLE and JPEG 2000."""
    import pydicom
    from pydicom import uid

    found = []
    for syntax in (uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless):
        dataset = pydicom.dcmread(io.BytesIO(dicom()))
        try:
            dataset.compress(syntax, generate_instance_uid=False)
        except (NotImplementedError, RuntimeError, ValueError):
            continue  # no encoder is installed for it
        stream = io.BytesIO()
        pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
        found.append(stream.getvalue())
    return found


def _image(data: bytes, folder: pathlib.Path) -> None:
    store_image(data, shorter_side=32)


def _table(data: bytes, folder: pathlib.Path) -> None:
    (folder / "table.csv").write_bytes(data)
    options = TableOptions(str(folder / "table.csv"), str(folder / "images"), "mine", max_reject_share=1.0, workers=1)
    summary = build_table(options, folder / "out", overwrite=True)
    _read_back(summary.path)


def _openi(data: bytes, folder: pathlib.Path) -> None:
    (folder / "raw").mkdir(exist_ok=True)
    (folder / "raw" / "1.xml").write_bytes(data)
    (folder / "raw" / "CXR1_1_IM-0001-3001.png").write_bytes(picture("PNG"))
    options = registry.load("openi").Options(str(folder / "raw"), views="all", on_bad="skip", workers=1)
    _read_back(registry.build("openi", options, folder / "out", overwrite=True).path)


def _read_back(path: pathlib.Path) -> None:
    facts = records.dataset_facts(path)
    found = sum(len(list(records.Records(path, name))) for name in facts["splits"])
    assert found == facts["examples"], "a record was lost"


_CSV = (
    b"image,patient_id,labels,report,age,sex,box,split\n"
    b'0.png,7,Edema|Mass,"No edema, seen.",058Y,F,"[[""Mass"",1,2,3,4]]",train\n'
    b"1.png,8,No Finding,,44,M,,test\n2.png,9,Effusion,Effusion.,,,,\n"
)
_XML = (
    b'<eCitation><uId id="CXR1"/><Abstract><AbstractText Label="FINDINGS">Clear lungs.</AbstractText>'
    b'<AbstractText Label="IMPRESSION">Normal.</AbstractText></Abstract><MeSH><major>normal</major></MeSH>'
    b'<parentImage id="CXR1_1_IM-0001-3001"/></eCitation>'
)

TARGETS: dict[str, tuple[Callable[[], list[bytes]], Callable[[bytes, pathlib.Path], None]]] = {
    "PNG": (lambda: [picture("PNG"), picture("PNG", np.uint16)], _image),
    "JPEG": (lambda: [picture("JPEG")], _image),
    "DICOM": (lambda: [dicom(), *compressed_dicoms()], _image),
    "CSV": (lambda: [_CSV], _table),
    "XML": (lambda: [_XML], _openi),
}


def outcomes(name: str, count: int, seed: int = 0) -> Iterator[str]:
    """The outcome of each mutated input: "refused" or "read".

    Raises:
      Whatever a reader lets through that is no UserError; TimeoutError if it takes more than 20 s.
    """
    make, run = TARGETS[name]
    seeds = make()
    rng = random.Random(f"{name} {seed}")

    def late(*_: Any) -> None:
        raise TimeoutError(f"{name}: an input takes more than {_SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        (folder / "images").mkdir()
        for number in range(3):
            (folder / "images" / f"{number}.png").write_bytes(picture("PNG"))
        for number in range(count):
            data = mutated(rng.choice(seeds), rng)
            signal.alarm(_SECONDS)
            try:
                run(data, folder)
                yield "read"
            except UserError:
                yield "refused"
            except BaseException:
                pathlib.Path(f"fuzz-{name}-{number}.bin").write_bytes(data)
                raise
            finally:
                signal.alarm(0)


def main() -> None:
    """Prints a table of outcomes."""
    parser = argparse.ArgumentParser(description="Mutated inputs through the readers of data sets.")
    parser.add_argument("--count", type=int, default=2500, help="inputs of each kind")
    parser.add_argument("--kinds", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    args = parser.parse_args()
    warnings.simplefilter("error")
    print("| input | mutated | read | refused | seconds |\n|---|---|---|---|---|")
    for name in args.kinds:
        start = time.monotonic()
        counts = collections.Counter(outcomes(name, args.count))
        print(
            f"| {name} | {args.count} | {counts['read']} | {counts['refused']} | {time.monotonic() - start:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
