"""Damaged inputs: nothing but a UserError may come of them, quickly and silently. Prints one table.

    python benchmarks/fuzz.py --count 3000
    python benchmarks/fuzz.py --count 3000 --only PNG DICOM --seed 1

An input is a valid file of which bytes or bits were changed, put in, taken out, repeated or cut off; `TARGETS` names
what is tried: images, and tables through whole builds, whose records must be readable and complete where a build is
accepted; files of the published data sets are damaged by `fuzz_builders.py`. An input depends on the seed, the target
and its number alone. Inputs run in a process that may crash or hang: the table counts that, and the numbers of such
inputs are printed below it. Exits with 1 if there was any.
"""

import argparse
import functools
import io
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
from PIL import Image, PngImagePlugin

from mmclip_jax.data import records
from mmclip_jax.data.builders import files, inspect, registry, tablefile
from mmclip_jax.data.builders.table import build_table
from mmclip_jax.data.builders.table_options import TableOptions
from mmclip_jax.data.images import dicom_headers
from mmclip_jax.data.images.store import store_image
from mmclip_jax.errors import UserError

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "data"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "data" / "builders"))
sys.path.append(str(Path(__file__).resolve().parent))
import dicoms
import fuzz_builders
import hospital

SECONDS = 20.0  # the limit for one input
SHOWN = 50  # of the inputs that failed
COLUMNS = ("accepted", "refused", "other error", "warning", "hang", "crash")


TELLING = (
    *(b"\xff\xff", b"\0\0", b"\x7f\xff", b"\xff\x7f", b"-1", b"nan", b"1e999"),
    *(b'"', b"\n", b",", b"<", b"&a;", b"\xed\xa0\x80"),
)


class Target(NamedTuple):
    """seeds: makes the valid inputs; function: takes one, damaged; mutate: damages; by default `mutated`, of bytes."""

    seeds: Callable[[], Sequence[Any]]
    function: Callable[[Any], object]
    mutate: Callable[[Sequence[Any], str, int, int], Any] | None = None

    def damaged(self, seeds: Sequence[Any], name: str, seed: int, number: int) -> Any:
        """The damaged input of a number."""
        return (self.mutate or mutated)(seeds, name, seed, number)


def _store(data: bytes) -> object:
    return store_image(data, shorter_side=32)


def _encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def _grey() -> np.ndarray:
    """uint16 [48,61] of 12 bits: smooth, with noise."""
    y, x = np.mgrid[:48, :61]
    return (2000 + 1800 * np.sin(y / 9) * np.cos(x / 7) + np.random.default_rng(0).integers(0, 99, x.shape)).astype(
        "u2"
    )


def png_seeds() -> list[bytes]:
    """Grey of 8 and 16 bits, palette with transparency, colour with alpha, bits; text, gamma and a rotation flag."""
    grey = Image.fromarray((_grey() >> 4).astype(np.uint8))
    images = [grey, Image.fromarray(_grey()), grey.convert("RGB").quantize(16), grey.convert("RGBA"), grey.convert("1")]
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "words " * 9)
    info.add_text("Comment", "words " * 9, zip=True)
    info.add(b"gAMA", (45455).to_bytes(4, "big"))
    exif = Image.Exif()
    exif[0x0112] = 6
    return [_encoded(image, "PNG", pnginfo=info, exif=exif) for image in images]


def jpeg_seeds() -> list[bytes]:
    """Grey, colour, CMYK, progressive, turned by a flag."""
    grey = Image.fromarray((_grey() >> 4).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    colour = grey.convert("RGB")
    return [
        _encoded(grey, "JPEG"),
        _encoded(colour, "JPEG", progressive=True),
        _encoded(grey.convert("CMYK"), "JPEG"),
        _encoded(colour, "JPEG", exif=exif),
    ]


def tiff_seeds() -> list[bytes]:
    """Grey of 8 and 16 bits, colour, compressed by LZW and deflate."""
    grey = Image.fromarray((_grey() >> 4).astype(np.uint8))
    images = [(grey, "tiff_lzw"), (Image.fromarray(_grey()), "raw"), (grey.convert("RGB"), "tiff_adobe_deflate")]
    return [_encoded(image, "TIFF", compression=compression) for image, compression in images]


def bmp_seeds() -> list[bytes]:
    """Grey, colour, bits."""
    grey = Image.fromarray((_grey() >> 4).astype(np.uint8))
    return [_encoded(image, "BMP") for image in (grey, grey.convert("RGB"), grey.convert("1"))]


def dicom_seeds() -> list[bytes]:
    """Each transfer syntax family, with a window, tables of all kinds, padding, colour."""
    window = dicoms.dicom_file(_grey(), WindowCenter=2000, WindowWidth=3000, RescaleSlope=2, RescaleIntercept=-9)
    grey8 = (_grey() >> 4).astype(np.uint8)
    files = [
        window,
        dicoms.dicom_file(_grey().astype(np.int16) - 2000, PixelPaddingValue=-2000),
        dicoms.lut_file(_grey()),
    ]
    files.append(dicoms.dicom_file(np.stack([grey8] * 3, -1), 8))
    files.append(dicoms.jpeg_file(grey8))
    kinds = ("JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless")
    files += [dicoms.compressed(window, kind) for kind in kinds]
    return [*files, *_dicoms_of_rarer_kinds(grey8)]


def _dicoms_of_rarer_kinds(grey8: np.ndarray) -> list[bytes]:
    """Deflated, big-endian, a packed modality LUT, a palette, bits that are not the lowest, YBR 4:2:2."""
    deflated = dicoms.dataset(_grey())
    deflated.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    big = dicoms.dataset(_grey())
    big.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.2"
    big.PixelData = _grey().astype(">u2").tobytes()
    table = dicoms.dataset(_grey())
    table.ModalityLUTSequence = [dicoms.lut(np.arange(4096) // 16, 0, 8)]
    palette = dicoms.dataset(grey8, 8, PhotometricInterpretation="PALETTE COLOR")
    for name in ("Red", "Green", "Blue"):
        setattr(palette, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        palette[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
        setattr(palette, f"{name}PaletteColorLookupTableData", (np.arange(256) * 257).astype("<u2").tobytes())
    shifted = dicoms.dataset(_grey() << 4, HighBit=15)
    shared = dicoms.dataset(np.stack([grey8[:, :60]] * 3, -1), 8, PhotometricInterpretation="YBR_FULL_422")
    shared.PixelData = np.repeat(grey8[:, :60], 2, axis=1).tobytes()
    streams = [io.BytesIO() for _ in range(6)]
    for stream, ds in zip(streams, (deflated, big, table, palette, shifted, shared), strict=True):
        pydicom.dcmwrite(stream, ds, enforce_file_format=True)
    return [stream.getvalue() for stream in streams]


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


def _build_table(data: bytes) -> object:
    """A user's table with three images."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "images").mkdir()
        for number in range(3):
            (folder / "images" / f"{number}.png").write_bytes(png_seeds()[0])
        (folder / "table.csv").write_bytes(data)
        options = TableOptions(
            str(folder / "table.csv"), str(folder / "images"), "mine", max_reject_share=1.0, workers=1
        )
        return _read_back(build_table(options, folder / "out").path)


def _build_openi(data: bytes) -> object:
    """One report of Open-I with its image."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "raw").mkdir()
        (folder / "raw" / "1.xml").write_bytes(data)
        (folder / "raw" / "CXR1_1_IM-0001-3001.png").write_bytes(png_seeds()[0])
        options = registry.load("openi").Options(str(folder / "raw"), views="all", on_bad="skip", workers=1)
        return _read_back(registry.build("openi", options, folder / "out").path)


def parquet_seeds() -> list[bytes]:
    """With images inside, two row groups, numbers, lists."""
    import pyarrow
    import pyarrow.parquet

    images = [{"bytes": png_seeds()[0], "path": f"{n}.png"} for n in range(4)]
    columns = {"image": images, "patient": [1.0, 2, 3, 4], "labels": [["Edema"], ["Mass"], [], None], "age": [5] * 4}
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), stream, row_group_size=2)
    return [stream.getvalue()]


def excel_seeds() -> list[bytes]:
    """A small workbook, whose parts are not compressed: damage gets past the archive more often."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = [["image", "patient", "report", "age"], *([f"{n}.png", n, "No edema.", 50 + n] for n in range(4))]
        return [Path(hospital.xlsx(Path(scratch, "t.xlsx"), rows)).read_bytes()]


def _read_table(suffix: str, data: bytes) -> object:
    """The table alone, and the images inside it."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, f"t{suffix}")
        file.write_bytes(data)
        table = tablefile.read_table(str(file))
        for places in table.pictures.values():
            for place in filter(None, places):
                files.read_bytes(place)
        return table


def _read_dicom_header(data: bytes) -> object:
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "x.dcm").write_bytes(data)
        return dicom_headers.read(f"{scratch}/x.dcm")


def _inspect(data: bytes) -> object:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for number in range(3):
            (folder / f"{number}.png").write_bytes(png_seeds()[0])
        (folder / "table.csv").write_bytes(data)
        return str(inspect.inspect(str(folder / "table.csv"), str(folder), data_dir=str(folder / "DATA")))


def _read_back(path: Path) -> int:
    facts = records.dataset_facts(path)
    found = sum(len(list(records.Records(path, name))) for name in facts["splits"])
    assert found == facts["examples"], "a record was lost"
    return found


TARGETS = {
    "PNG": Target(png_seeds, _store),
    "JPEG": Target(jpeg_seeds, _store),
    "TIFF": Target(tiff_seeds, _store),
    "BMP": Target(bmp_seeds, _store),
    "DICOM": Target(dicom_seeds, _store),
    "CSV": Target(lambda: [_CSV], _build_table),
    "XML": Target(lambda: [_XML], _build_openi),
    "Parquet": Target(parquet_seeds, functools.partial(_read_table, ".parquet")),
    "Excel": Target(excel_seeds, functools.partial(_read_table, ".xlsx")),
    "header": Target(dicom_seeds, _read_dicom_header),
    "inspect": Target(lambda: [_CSV], _inspect),
}


def mutated(seeds: Sequence[bytes], name: str, seed: int, number: int) -> bytes:
    """The damaged input of a number. PNG checksums are repaired in two of three, so that damage gets past them."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
    data = bytearray(seeds[number % len(seeds)])
    # Headers are small: half of the inputs are damaged there alone.
    end = len(data) if rng.random() < 0.5 else min(len(data), 600)
    for _ in range(int(rng.choice([1, 1, 1, 2, 4, 7]))):
        at = int(rng.integers(0, max(1, min(end, len(data)))))
        length = int(rng.integers(1, 9))
        match int(rng.integers(0, 6)):
            case 0:
                data[at : at + 1] = bytes([data[at] ^ (1 << int(rng.integers(8)))]) if data else b""
            case 1:
                data[at : at + length] = rng.bytes(length)
            case 2:
                data[at:at] = rng.bytes(length)
            case 3:
                del data[at : at + length]
            case 4:
                data[at : at + 2] = TELLING[int(rng.integers(len(TELLING)))]
            case 5:
                data[at:at] = data[at : at + 32 * length]
    if rng.random() < 0.1:
        del data[int(rng.integers(0, len(data) + 1)) :]
    return repaired(bytes(data)) if rng.random() < 0.67 else bytes(data)


def repaired(data: bytes) -> bytes:
    """A PNG file with the checksums of its chunks made right; other data as they are."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        parts += [data[at:end], zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")]
        at = end + 4
    return b"".join([*parts, data[at:]])


def outcome(function: Callable[[Any], object], data: Any) -> str:
    """One of the first four of `COLUMNS`, the kind of an error or warning after a colon."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            function(data)
            found = "accepted"
        except UserError:
            found = "refused"
        except Exception as error:
            return f"other error: {type(error).__name__}"
    return f"warning: {caught[0].category.__name__}" if caught else found


TARGETS |= {
    name: Target(seeds, fuzz_builders.build, fuzz_builders.mutator(mutated))
    for name, seeds in fuzz_builders.targets().items()
}


def _work(connection: Connection, target: Target, seeds: Sequence[Any], name: str, seed: int, numbers: range) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    for number in numbers:
        start = time.perf_counter()
        found = outcome(target.function, target.damaged(seeds, name, seed, number))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        connection.send((found, time.perf_counter() - start, peak))
    connection.send(None)


def _take_all(target: Target, seeds: Sequence[Any]) -> None:
    for data in seeds:
        target.function(data)


def run(name: str, count: int, seed: int) -> tuple[Counter[str], float, float, list[str]]:
    """(outcomes, seconds of the slowest, MiB at the peak of the process, what failed)."""
    target = TARGETS[name]
    seeds = target.seeds()
    context = multiprocessing.get_context("fork")  # this process runs no target itself: a fork would lack its threads
    check = context.Process(target=_take_all, args=(target, seeds))
    check.start()
    check.join()
    if check.exitcode:
        raise RuntimeError(f"{name}: an undamaged input is refused")
    counts: Counter[str] = Counter()
    slowest = peak = 0.0
    failures = []
    number = 0
    while number < count:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, target, seeds, name, seed, range(number, count)))
        process.start()
        theirs.close()
        found = None
        while number < count:
            try:
                found = ours.recv() if ours.poll(SECONDS) else ("hang", SECONDS, 0)
            except EOFError:
                found = ("crash", 0.0, 0)
            kind, seconds, memory = found
            counts[kind.split(":")[0]] += 1
            slowest, peak = max(slowest, seconds), max(peak, memory / 1024)
            if kind not in ("accepted", "refused"):
                failures.append(f"{name} {number}: {kind}")
            number += 1
            if kind in ("hang", "crash"):
                process.kill()
                break
        process.join()
        ours.close()
    return counts, slowest, peak, failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 if anything but a UserError came of an input."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=3000, help="inputs of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS))
    options = parser.parse_args(arguments)
    print(f"{'target':<12}{'inputs':>8}" + "".join(f"{column:>13}" for column in COLUMNS) + "   slowest, s   peak, MiB")
    failures = []
    for name in options.only:
        counts, slowest, peak, failed = run(name, options.count, options.seed)
        columns = "".join(f"{counts[column]:>13}" for column in COLUMNS)
        print(f"{name:<12}{options.count:>8}{columns}{slowest:>13.2f}{peak:>12.0f}", flush=True)
        failures += failed
    print("\n".join(failures[:SHOWN]))
    if len(failures) > SHOWN:
        print(f"and {len(failures) - SHOWN} more")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
