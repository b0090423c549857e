"""Damaged tables, lists, reports and archives of the published data sets, for `fuzz.py`.

An input is a download in its published layout (tests/data/builders/layouts.py) of which one file was damaged: bytes as
`fuzz.py` damages them, or cells, columns, rows and the encoding as spreadsheets and careless scripts do. The tables are
always read; every fourth input is built to the end, and the records are read back.
"""

import atexit
import csv
import functools
import gzip
import io
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmclip_jax.data import records
from mmclip_jax.data.builders import registry

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "data"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "data" / "builders"))
import layouts
import workbench

_TEXTS = (".csv", ".txt", ".json", ".xml", ".csv.gz")
# Cells that were found in real tables, or that readers of numbers, dates and lists trip over.
CELLS = (
    *(
        "",
        " ",
        "nan",
        "None",
        "NULL",
        "#N/A",
        "-",
        "?",
        "0",
        "1",
        "-1",
        "1.0",
        "2",
        "-0",
        "1e999",
        "inf",
        "-inf",
        "1_000",
    ),
    *("Woman", "weiblich", "64px", "058Y", "414Y", "0x1F", "1,5", "１２", "²", "9" * 400, "1.0E+07", "10.000", "007"),
    *("../../etc/passwd", "/etc/passwd", "a/b", "x" * 5000, "\x00", "\ud7ff\uffff", "=1+1", '"', "'", "[", "[" * 3000),
    *(
        "['a'",
        "[[1,2]]",
        "{}",
        "a|b|",
        "|",
        ";",
        "\t",
        "yes",
        "TRUE",
        "LL",
        "Unknown",
        "1 2 3",
        "-1 -1",
        "0 0",
        "\u202e",
    ),
)


class Damaged(NamedTuple):
    """A layout (builder, how), the path of a file in it, and what the file holds now."""

    layout: tuple[str, str]
    file: str
    data: bytes


@functools.cache
def _laid_out(layout: tuple[str, str]) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-layout-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    layouts.LAYOUTS[layout](workbench.Bench(folder))
    return folder / "raw"


def seeds(name: str, suffixes: Sequence[str]) -> list[Damaged]:
    """All files of these suffixes in the layouts of a builder, undamaged."""
    found = []
    for layout in layouts.LAYOUTS:
        if layout[0] == name:
            root = _laid_out(layout)
            for file in sorted(root.rglob("*")):
                if file.name.endswith(tuple(suffixes)):
                    found.append(Damaged(layout, str(file.relative_to(root)), file.read_bytes()))
    return found


def mutator(change_bytes: Callable[[Sequence[bytes], str, int, int], bytes]) -> Callable[..., Damaged]:
    """What makes the damaged input of a number; `change_bytes` is `fuzz.mutated`."""

    def mutated(seeds: Sequence[Damaged], name: str, seed: int, number: int) -> Damaged:
        layout, file, data = seeds[number % len(seeds)]
        data = gzip.decompress(data) if file.endswith(".gz") else data
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number, 1])
        if file.endswith((".csv", ".csv.gz")) and rng.random() < 0.75:
            data = _changed_table(data, rng)
        elif rng.random() < 0.85 or file.endswith(".zip"):
            data = change_bytes([data], name, seed, number)
        else:
            data = _other_encoding(data, rng)
        if file.endswith(".gz") and rng.random() < 0.9:  # else text under the name of an archive
            data = gzip.compress(data)
        return Damaged(layout, file, data)

    return mutated


def _changed_table(data: bytes, rng: np.random.Generator) -> bytes:
    rows = list(csv.reader(io.StringIO(data.decode())))
    for _ in range(int(rng.choice([1, 1, 2, 4]))):
        row, column = int(rng.integers(len(rows))), int(rng.integers(max(1, len(rows[0]))))
        match int(rng.integers(0, 8)):
            case 0 | 1 | 2:
                if column < len(rows[row]):
                    rows[row][column] = CELLS[int(rng.integers(len(CELLS)))]
            case 3:  # a column is missing
                rows = [cells[:column] + cells[column + 1 :] for cells in rows]
            case 4:  # a row is ragged
                rows[row] = rows[row][:column] if rng.random() < 0.5 else [*rows[row], "more"]
            case 5:  # a row or the header is there twice, or is missing
                rows[row : row + 1] = [list(rows[row])] * int(rng.integers(0, 3))
            case 6:  # all cells of a column are odd
                odd = CELLS[int(rng.integers(len(CELLS)))]
                rows = [rows[0], *([*cells[:column], odd, *cells[column + 1 :]] for cells in rows[1:])]
            case 7:  # a column is there twice
                rows = [[*cells, *cells[column : column + 1]] for cells in rows]
        rows = rows or [[]]
    text = io.StringIO()
    csv.writer(text, delimiter=",;\t"[int(rng.choice([0, 0, 0, 0, 1, 2]))], lineterminator="\n").writerows(rows)
    changed = text.getvalue().encode("utf-8", "replace")
    return _other_encoding(changed, rng) if rng.random() < 0.2 else changed


def _other_encoding(data: bytes, rng: np.random.Generator) -> bytes:
    text = data.decode("utf-8", "replace")
    match int(rng.integers(0, 6)):
        case 0:
            return text.encode("utf-16")
        case 1:
            return text.encode("latin-1", "replace") + b"\xe9\n"
        case 2:
            return b"\xef\xbb\xbf" + data
        case 3:
            return text.replace("\n", "\r").encode()
        case 4:
            return text.replace("\n", "\r\n\r\n").encode()
        case _:
            return text.encode("utf-8") + b"\0\x1a"


def build(damaged: Damaged) -> object:
    """Reads the tables of a download with one damaged file; builds it every fourth time."""
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "raw"
        shutil.copytree(_laid_out(damaged.layout), raw, copy_function=os.link)
        (raw / damaged.file).unlink()
        (raw / damaged.file).write_bytes(damaged.data)
        name = damaged.layout[0]
        kind = registry.load(name)
        options = kind.Options(str(raw), views="all", on_bad="skip", workers=1)
        if zlib.crc32(damaged.data) % 4:
            builder = kind(options, Path(scratch) / "out")
            return len(builder.items)
        path = registry.build(name, options, Path(scratch) / "out").path
        facts = records.dataset_facts(path)
        found = sum(len(list(records.Records(path, split))) for split in facts["splits"])
        assert found == facts["examples"], "a record was lost"
        return found


def targets() -> dict[str, Callable[[], list[Damaged]]]:
    """Name -> what makes the undamaged inputs: the texts of each builder, and the archives of all."""
    made: dict[str, Callable[[], list[Damaged]]] = {
        name: functools.partial(seeds, name, _TEXTS) for name in sorted(registry.COLLECTIONS)
    }
    made["ZIP"] = lambda: [each for name in sorted(registry.COLLECTIONS) for each in seeds(name, (".zip",))]
    return made
