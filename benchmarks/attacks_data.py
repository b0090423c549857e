"""Kinds of attacks on data: leaks, ids, tables, cells, pictures, archives, files that a data folder holds."""

import contextlib
import csv
import functools
import io
import os
import pathlib
import pickle
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import attacks
import numpy as np
from attacks import Attacker, Outcomes, as_test, clear, kind, of_tests, refused

SIDE = 24
SECRET = "Jane Doe has a large effusion on the left, and a mass that was not there before. " * 4


# ---------------------------------------------------------------------------------------------------------------------
# Leakage


def _different_ids(attacker: Attacker, count: int) -> list[str]:
    """Ids as hospitals write them, that differ in more than spelling."""
    chance = attacker.chance
    made: dict[str, str] = {}
    while len(made) < count:
        number = chance.randrange(1, 10**8)
        id = chance.choice(
            (str(number), f"{chance.choice(('pat', 'mr', 'x'))}{number}q", f"Zo{chance.choice('äéñøß')}-{number}")
        )
        made[id.casefold()] = id
    return list(made.values())


@kind("planted leaks under other spellings", "found, or the user is asked about them")
def planted(attacker: Attacker) -> Outcomes:
    """One to six ids of patients, studies or images in both sets, each spelling, in sources of one and of two names."""
    leaks = of_tests("test_leaks")
    check = leaks.test_ids_that_are_written_in_another_way.hypothesis.inner_test
    sources = [("mine", "mine"), ("mine", "ours"), ("ours", "chexpert"), ("padchest", "table")]
    every = [(s, k, p) for s in sorted(leaks.SPELLINGS) for k in ("patient", "study", "image id") for p in sources]
    for spelling, what, pair in attacker.some(every, 20):
        names = _different_ids(attacker, 12)
        count = attacker.chance.randint(1, 6)
        yield f"{count} {what}, {spelling}, {pair}", as_test(check, names, spelling, what, pair, count, attacker.chance)


@kind("unrelated ids", "no leak is reported")
def unrelated(attacker: Attacker) -> Outcomes:
    """No id in common: nothing may be said."""
    check = of_tests("test_leaks").test_different_ids_are_clean.hypothesis.inner_test
    for number in range(8 if attacker.short else 40):
        pair = ("mine", attacker.chance.choice(("mine", "ours")))
        yield f"{number}", as_test(check, _different_ids(attacker, 10), pair, attacker.chance)


@kind("leaks between what is learnt and what is scored", "refused, unless a reason is given")
def learnt_and_scored(attacker: Attacker) -> Outcomes:
    """The same pictures in training, validation or fine-tuning rows and in scored ones, under other ids."""
    from mmclip_jax.data.leakage import audit
    from mmclip_jax.errors import LeakageError
    from mmclip_jax.evaluate import run as evaluation

    made = of_tests("test_audited")

    def leaks(call: Callable[[], Any], expected: bool) -> str:
        try:
            call()
        except LeakageError as error:
            return "" if expected and "\n" not in str(error) else f"said: {error}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "" if not expected else "was not found"

    learnt = made.build(attacker.folder, "a", train=range(30), validation=range(100, 110), test=range(200, 210))
    for number in range(3 if attacker.short else 10):
        first = attacker.chance.choice((0, 25, 29, 30, 60))
        scored = made.build(
            attacker.folder / f"b{number}", "b", validation=range(300, 306), test=range(first, first + 8)
        )
        told, own = made.manifest_of(learnt), first < 30
        for name, call in (
            ("evaluation", lambda s=scored, t=told: evaluation.audit_scored(t, [s], "test", made.PROTOCOL)),
            ("fine-tuning", lambda s=scored: audit.check_rows([learnt, s], {"100 %": list(range(30))}, "test", "")),
        ):
            yield f"{name}, pictures {first} to {first + 8}", leaks(call, own)


@kind(
    "data sets with the same patients, under the builders' ids",
    "found; if the ids are of different families, the result is not clean",
)
def kin(attacker: Attacker) -> Outcomes:
    """Tiny downloads of the published data sets through the real builders, in pairs that share images."""
    tests = of_tests("test_numbering")
    for name in (
        "test_images_of_one_family_are_found_under_each_others_spelling",
        "test_of_kin_under_other_ids_nothing_is_called_clean",
    ):
        test = getattr(tests, name)
        (cases,) = [mark.args[1] for mark in test.pytestmark if mark.name == "parametrize"]
        for number, case in enumerate(attacker.some(list(cases), 3)):
            folder = attacker.folder / f"{name}-{number}"
            folder.mkdir()
            values = getattr(case, "values", case)
            yield " and ".join(getattr(each, "__name__", str(each)) for each in values), as_test(test, folder, *values)


@kind("data or tokenizer changed under a run", "refused by fingerprint, even if the counts are equal")
def changed_data(attacker: Attacker) -> Outcomes:
    """Built anew with other pixels or words and equal counts; another tokenizer of equal size."""
    from mmclip_jax.data.leakage import fingerprint

    made = of_tests("test_fingerprint")
    first = made.build(attacker.folder / "a")
    saved = fingerprint.of_run([first], b"pieces of words")
    for number in range(2 if attacker.short else 6):
        for how in ({"pixels": number + 1}, {"text": f"Effusion {number} seen."}):
            now = fingerprint.of_run([made.build(attacker.folder / "b", **how)], b"pieces of words")
            yield f"{how}", refused(functools.partial(fingerprint.check_same, "run", saved, now), "other contents")
    for number in range(6 if attacker.short else 15):
        other = bytearray(b"pieces of words")
        other[number] ^= 1 << attacker.chance.randrange(8)
        now = fingerprint.of_run([first], bytes(other))
        yield (
            f"tokenizer, byte {number}",
            refused(functools.partial(fingerprint.check_same, "run", saved, now), "tokenizer"),
        )


@kind("ids in two forms of Unicode", "one patient, in one split")
def unicode_ids(attacker: Attacker) -> Outcomes:
    """Patients whose id is written composed in one row and decomposed, padded or with invisible marks in another."""
    from mmclip_jax.data import records
    from mmclip_jax.data.builders.table import TableOptions, build_table

    _pictures(attacker.folder / "images", 16)
    forms = {
        "decomposed": lambda id: unicodedata.normalize("NFD", id),
        "blank": lambda id: f" {id}\u00a0",
        "zero width": lambda id: f"{id[:2]}\u200b{id[2:]}",
        "byte order mark": lambda id: f"\ufeff{id}",
        "soft hyphen": lambda id: f"{id[:1]}\u00ad{id[1:]}",
        "direction": lambda id: f"\u202a{id}\u202c",
    }
    for number, (name, form) in enumerate(attacker.some(sorted(forms.items()), 6)):
        ids = [f"Zoë-{chr(0xE0 + n)}{attacker.chance.randrange(10**6)}" for n in range(8)]
        rows = [["image", "patient_id", "labels"]]
        rows += [[f"{n}.png", (form if n % 2 else str)(ids[n // 2]), "Mass"] for n in range(16)]
        file = _table(attacker.folder / f"{name}.csv", rows)
        options = TableOptions(str(file), str(attacker.folder / "images"), f"t{number}", workers=1)

        def build(options: Any = options) -> None:
            path = build_table(options, attacker.folder / "out").path
            facts = records.dataset_facts(path)
            places: dict[str, set[str]] = {}
            for split in facts["splits"]:
                for example in records.Records(path, split):
                    places.setdefault(example.patient, set()).add(split.split("_")[0])
            assert len(places) == 8, sorted(places)
            assert all(len(each) == 1 for each in places.values()), places

        yield name, clear(build)


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _pictures(folder: pathlib.Path, count: int) -> None:
    workbench = of_tests("workbench")
    for number in range(count):
        workbench.picture(folder / f"{number}.png", number, SIDE, SIDE + 3)


def _table(file: pathlib.Path, rows: Sequence[Sequence[str]]) -> pathlib.Path:
    with open(file, "w", newline="", encoding="utf-8", errors="replace") as stream:
        csv.writer(stream).writerows(rows)
    return file


COLUMNS = ("image", "patient_id", "labels", "report", "age", "sex", "split", "box", "view", "study_id")
CELLS = (
    *(SECRET, "[" * 5000, "[[" * 3000 + "]]" * 3000, '[["Mass",1,2,3]', '[["Mass",NaN,2,3,4]]', "{" * 900, "1" * 400),
    *("-" + "9" * 400, "1e9999", "x" * 300, "a/" * 3000 + "b.png", "../" * 9 + "etc/passwd", "\x00", "\ud7ff\uffff"),
    *("=HYPERLINK(1)", "'" * 99, "٣٤", "²", "0x1F", "1_000", "NaT", "2020-02-31", "()", "__import__('os')", "${HOME}"),
)


@kind("cells of tables", "read, or refused; the message quotes at most 40 characters of the cell")
def cells(attacker: Attacker) -> Outcomes:
    """Over-long, nested, malformed and hostile cells in each column: one row's, or all of them."""
    from mmclip_jax.data.builders.table import TableOptions, build_table

    _pictures(attacker.folder / "images", 4)
    base = ["0.png,p0,Mass,Clear lungs.,44,F,train,,PA,s0".replace("0", str(n)).split(",") for n in range(4)]
    every = [(column, cell, all_rows) for column in COLUMNS for cell in CELLS for all_rows in (False, True)]
    for number, (column, cell, all_rows) in enumerate(attacker.chance.sample(every, 25 if attacker.short else 160)):
        rows = [list(row) for row in base]
        for row in rows if all_rows else rows[:1]:
            row[COLUMNS.index(column)] = cell
        file = _table(attacker.folder / "table.csv", [COLUMNS, *rows])
        options = TableOptions(
            str(file), str(attacker.folder / "images"), f"c{number}", max_reject_share=1.0, workers=1
        )
        name = f"{column}{' (all)' if all_rows else ''}: {cell[:20]!r}"
        yield name, _short_message(functools.partial(build_table, options, attacker.folder / "out"), cell)


def _short_message(call: Callable[[], Any], cell: str) -> str:
    """As `clear`; what is said may show 40 characters of the cell at most."""
    from mmclip_jax.errors import UserError

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            call()
    except UserError as error:
        said.write(str(error))
        if "\n" in str(error):
            return f"several lines: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    long = [cell[at : at + 45] for at in range(0, len(cell) - 45, 5)]
    return next((f"shows {part!r}" for part in long if part in said.getvalue()), "")


@kind("types of Parquet columns", "read, or refused in one line")
def parquet_types(attacker: Attacker) -> Outcomes:
    """Dates, decimals, bytes, nested lists, maps, pictures of Hugging Face's kind, in each column."""
    import datetime
    import decimal

    import pyarrow
    import pyarrow.parquet

    from mmclip_jax.data.builders.table import TableOptions, build_table

    _pictures(attacker.folder / "images", 3)
    whole = (attacker.folder / "images" / "0.png").read_bytes()
    values: dict[str, list[Any]] = {
        "dates": [datetime.date(2020, 1, n) for n in (1, 2, 3)],
        "times": [datetime.datetime(2020, 1, n, 3, tzinfo=datetime.UTC) for n in (1, 2, 3)],
        "durations": [datetime.timedelta(days=n) for n in range(3)],
        "decimals": [decimal.Decimal(f"{n}.50") for n in range(3)],
        "bytes": [b"\xff\x00", b"", None], "floats": [1.0, float("nan"), float("inf")],
        "booleans": [True, False, None],
        "lists": [["Mass"], [], None], "nested lists": [[[1.0]], [], [[2.0, 3.0], []]],
        "structs": [{"a": 1}, None, {"a": 2}],
        "pictures": [{"bytes": whole, "path": "0.png"}, {"bytes": None, "path": "1.png"}, None], "nulls": [None] * 3,
        "large numbers": [2**62, -(2**62), 0],
    }  # fmt: skip
    base: dict[str, list[Any]] = {
        "image": ["0.png", "1.png", "2.png"], "patient_id": ["a", "b", "c"], "labels": ["Mass"] * 3,
        "report": ["Clear."] * 3, "age": [40, 50, 60], "split": ["train"] * 3,
    }  # fmt: skip
    every = [(column, name) for column in base for name in values]
    for number, (column, name) in enumerate(attacker.some(every, 12)):
        file = attacker.folder / "t.parquet"
        pyarrow.parquet.write_table(pyarrow.table(base | {column: values[name]}), file)
        options = TableOptions(
            str(file), str(attacker.folder / "images"), f"q{number}", max_reject_share=1.0, workers=1
        )
        yield f"{column}: {name}", clear(functools.partial(build_table, options, attacker.folder / "out"))


@kind("damaged tables and downloads", "read, or refused; what is accepted is complete")
def damaged_tables(attacker: Attacker) -> Outcomes:
    """The targets of fuzz.py: tables, workbooks, reports, archives and the published data sets."""
    fuzz = of_tests("fuzz")
    names = ["CSV", "XML", "Parquet", "Excel", "header", "inspect", "ZIP", *sorted(fuzz.fuzz_builders.targets())]
    for name in attacker.some(sorted(set(names)), 4):
        target = fuzz.TARGETS[name]
        seeds = target.seeds()
        for number in range(2 if attacker.short else 12):
            found = fuzz.outcome(target.function, target.damaged(seeds, name, attacker.chance.randrange(10**6), number))
            yield f"{name} {number}", "" if found in ("accepted", "refused") else found


@kind("paths outside the folder of images", "refused, unless --allow-outside is given")
def outside(attacker: Attacker) -> Outcomes:
    """Dots, absolute paths, links of files and folders."""
    from mmclip_jax.data import records
    from mmclip_jax.data.builders.table import TableOptions, build_table

    images, secret = attacker.folder / "images", attacker.folder / "secret"
    _pictures(images, 2)
    _pictures(secret, 1)
    (images / "sub").mkdir()
    (images / "link.png").symlink_to(secret / "0.png")
    (images / "folder").symlink_to(secret)
    (images / "sub" / "up").symlink_to("../..")
    paths = ["../secret/0.png", "sub/../../secret/0.png", str(secret / "0.png"), "link.png", "folder/0.png"]
    paths += [
        "sub/up/secret/0.png",
        "./../secret/0.png",
        "..//secret//0.png",
        "..\\secret\\0.png",
        "sub/./../../secret/0.png",
    ]
    for number, path in enumerate(paths):
        rows = [["image", "patient_id", "labels"], [path, "a", "Mass"], ["1.png", "b", "Mass"]]
        file = _table(attacker.folder / "t.csv", rows)
        options = TableOptions(str(file), str(images), f"o{number}", max_reject_share=1.0, workers=1)

        def build(options: Any = options) -> None:
            made = build_table(options, attacker.folder / "out").path
            found = [e.id for name in records.dataset_facts(made)["splits"] for e in records.Records(made, name)]
            assert found == ["1.png"], found

        yield path, clear(build)


@kind("formulas in CSV files", "written as text, so that no spreadsheet runs them")
def formulas(attacker: Attacker) -> Outcomes:
    """Cells that begin as a formula, with blanks, line ends and full-width signs."""
    from mmclip_jax import spreadsheet

    starts = ["=", "+", "-", "@", "\t=", "\r=", "\n=", " =", "\uff1d", "\uff0b", "\uff0d", "\uff20", "  @"]
    for start in starts:
        for rest in ("1+1", "cmd|' /C calc'!A0", "HYPERLINK(1)")[: 1 if attacker.short else 3]:
            stream = io.StringIO()
            spreadsheet.Writer(stream).writerow([start + rest, "x"])
            (row,) = csv.reader(io.StringIO(stream.getvalue()))
            shown = unicodedata.normalize("NFKC", row[0]).lstrip(" ")
            yield repr(start + rest), "" if not shown.startswith(tuple("=+-@\t\r\n")) else f"is {row[0]!r}"


@kind("reports of 5 MB", "read in linear time")
def long_reports(attacker: Attacker) -> Outcomes:
    """Repeated words, blanks, headings, signs, negations: ten times as much takes about ten times as long."""
    import time

    from mmclip_jax.text import entities, reports

    pieces = {
        "sentences": "No pleural effusion or pneumothorax is seen. ", "one word": "effusion", "blanks": "  ",
        "line ends": "\n", "headings": "FINDINGS:\n", "points": ".", "negations": "no ", "underlines": "_",
        "brackets": "[", "numbers": "1. ", "commas": "a,", "stars": "[** **]", "dashes": "- ", "colons": "A: ",
        "or": "mass or ", "letters": "a",
    }  # fmt: skip
    large = 200_000 if attacker.short else 5_000_000
    for name, piece in attacker.some(sorted(pieces.items()), 7):

        def seconds(size: int, piece: str = piece) -> float:
            text = (piece * (size // len(piece) + 1))[:size]
            start = time.process_time()
            report = reports.read_report(text)
            entities.find_entities(f"{report.findings} {report.impression}")
            return time.process_time() - start

        # The faster of two: other work on the machine slows single ones, growth slows both.
        first = max(min(seconds(large // 10) for _ in range(2)), 0.02)
        second = min(seconds(large) for _ in range(2))
        yield (
            f"{name}: {second:.1f} s",
            "" if second < 40 * first else f"{first:.2f} s, {second:.2f} s for ten times as much",
        )


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def _picture(file_format: str, **options: Any) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    grey = Image.fromarray(np.arange(SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint8))
    (grey.convert("RGB") if file_format in ("EPS", "PCX") else grey).save(stream, file_format, **options)
    return stream.getvalue()


@kind("image formats that are not allowed", "refused; no program is started for them")
def formats(attacker: Attacker) -> Outcomes:
    """Everything else that Pillow writes, under every suffix, and as a stored picture."""
    from mmclip_jax.data.images.store import store_image
    from mmclip_jax.data.images.transforms import decode_image
    from mmclip_jax.inference.inputs import as_pixels

    for name in (
        "EPS",
        "PPM",
        "WEBP",
        "GIF",
        "PCX",
        "TGA",
        "ICO",
        "SGI",
        "IM",
        "MSP",
        "PDF",
        "DDS",
        "ICNS",
        "SPIDER",
        "XBM",
    ):
        with contextlib.suppress(Exception):
            data = _picture(name)
            for reader in (store_image, decode_image, as_pixels):
                yield f"{name} by {reader.__name__}", refused(functools.partial(reader, data))
    for name in ("TIFF", "BMP"):  # let in as files of images, and not in records
        yield f"{name} stored", refused(functools.partial(decode_image, _picture(name)))


@kind("decompression bombs", "refused, or read within a limit on memory")
def bombs(attacker: Attacker) -> Outcomes:
    """Pictures that claim gigapixels, texts and deflated DICOM files of gigabytes."""
    bounds = of_tests("test_image_bounds")
    claims = [
        (w, h, b, c)
        for w, h in ((60000, 60000), (2**31 - 1, 9), (12400, 12130))
        for b, c in ((8, 0), (16, 0), (8, 2), (8, 6))
    ]

    def claim(width: int, height: int, bits: int, colour: int) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
        body = zlib.compress(bytes(9000))
        return (
            b"\x89PNG\r\n\x1a\n"
            + bounds.chunk(b"IHDR", header)
            + bounds.chunk(b"IDAT", body)
            + bounds.chunk(b"IEND", b"")
        )

    from mmclip_jax.data.images.store import store_image

    for each in attacker.some(claims, 6):
        yield f"PNG that claims {each}", refused(functools.partial(store_image, claim(*each)))
    for compression in attacker.some((1, 5, 8, 7), 1):
        yield f"TIFF tiles, {compression}", as_test(bounds.test_tiles_that_claim_gigabytes, compression)
    if not attacker.short:
        yield "texts of PNG", as_test(bounds.test_texts_of_png_are_bounded)
        yield "RGBA of 148 megapixels", as_test(bounds.test_148_megapixels_are_read_within_their_own_size, 8, 6, 1000)
    for before in (b"", b"\0" * 128 + b"DICM", b"junk" * 40):
        yield f"deflated DICOM after {len(before)} bytes", _bounded_dicom(bounds, before)
    for preamble in (b"II*\0" + bytes(124), b"\x89PNG\r\n\x1a\n" + bytes(120), b"x" * 128, b"\xff\xd8\xff\xe0" * 32):
        yield f"deflated DICOM, preamble {preamble[:4]!r}", _bounded_dicom(bounds, b"", preamble)


def _bounded_dicom(bounds: Any, before: bytes, preamble: bytes = bytes(128)) -> str:
    """A deflated data set of 3 GB, with something before its preamble."""
    import pydicom

    dicoms = of_tests("dicoms")
    plain = dicoms.dataset(np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE))
    plain.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, plain, enforce_file_format=True)
    data = stream.getvalue()
    length = struct.unpack("<I", data[140:144])[0]
    head = preamble + data[128 : 144 + length]
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    element = struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 3 << 30)
    piece = deflater.compress(element) + deflater.flush(zlib.Z_FULL_FLUSH)
    zeros = deflater.compress(bytes(1 << 20)) + deflater.flush(zlib.Z_FULL_FLUSH)
    said = ""
    try:
        said = bounds.bounded(before + head + piece + zeros * 3072 + deflater.flush(), 700)
    except AssertionError as error:
        return str(error)
    return "" if "\n" not in said.strip() else said


@kind("ZIP members", "limited by their real size; a damaged one costs only its own rows")
def members(attacker: Attacker) -> Outcomes:
    """Bytes of an archive changed: sizes that are not what it says, wrong sums, flags of encryption."""
    from mmclip_jax.data.builders import files

    whole = _picture("PNG")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/0.png", whole)
        archive.writestr("a/1.png", bytes(50_000_000))
    data = stream.getvalue()
    for number in range(10 if attacker.short else 60):
        changed = bytearray(data)
        at = data.rindex(b"PK\x01\x02") if number % 2 else 0
        for _ in range(attacker.chance.choice((1, 1, 2, 4))):
            changed[at + attacker.chance.randrange(len(data) - at)] = attacker.chance.randrange(256)
        file = attacker.folder / f"{number}.zip"
        file.write_bytes(bytes(changed))
        for name in ("a/0.png", "a/1.png"):
            yield f"{number}, {name}", clear(functools.partial(files.read_bytes, f"{file}!{name}"))


@kind("metadata of pictures on pages", "left out, and no pixel changes")
def metadata(attacker: Attacker) -> Outcomes:
    """Names in every part of a PNG or JPEG file that has room for one."""
    bounds = of_tests("test_image_bounds")
    for name, data in bounds.telling_files().items():
        yield name, as_test(bounds.test_metadata_are_stripped_and_pixels_are_not, name)
        stripped = bounds.stored.strip_metadata(data)
        yield f"{name}, twice", "" if bounds.stored.strip_metadata(stripped) == stripped else "changes again"


# ---------------------------------------------------------------------------------------------------------------------
# Files in a data folder


class _Danger:
    """Its pickle would call a function."""

    def __reduce__(self) -> Any:
        return os.mkdir, (str(_Danger.mark),)

    mark = pathlib.Path("nowhere")


@kind("pickles in a data folder", "not read")
def pickles(attacker: Attacker) -> Outcomes:
    """Pickles under the names of everything that lies in a data folder, or in that of an unfinished build."""
    from mmclip_jax.data import info, records
    from mmclip_jax.data.builders.table import TableOptions, build_table
    from mmclip_jax.data.leakage import audit

    _pictures(attacker.folder / "images", 3)
    rows = [["image", "patient_id", "labels"], *([f"{n}.png", f"p{n}", "Mass"] for n in range(3))]
    options = TableOptions(
        str(_table(attacker.folder / "t.csv", rows)), str(attacker.folder / "images"), "mine", workers=1
    )
    out = attacker.folder / "out"
    made = build_table(options, out).path
    _Danger.mark = attacker.folder / "ran"
    danger = pickle.dumps(_Danger())
    names = [
        "x.pickle",
        "looks.npy",
        "looks.npz",
        ".looks.npy",
        "features.pkl",
        "cache.pkl",
        "0.pickle",
        "items.pickle",
    ]
    for name in names:
        for folder in (made, out / ".unfinished-mine", out / "mine"):
            folder.mkdir(exist_ok=True)
            (folder / name).write_bytes(danger)

            def read() -> None:
                info.describe(made)
                audit.read_set(str(made), ("train",))
                build_table(options, out, overwrite=True)
                records.dataset_facts(made)

            said = clear(read)
            yield f"{folder.name}/{name}", "a pickle ran" if _Danger.mark.exists() else said
    for file in [file for file in sorted(made.iterdir()) if file.is_file()]:
        content = file.read_bytes()
        file.write_bytes(danger)
        said = clear(
            lambda: (
                info.describe(made),
                audit.read_set(str(made), ("train",)),
                records.open_records(made, "train", "unpaired")[0],
            )
        )
        yield file.name, "a pickle ran" if _Danger.mark.exists() else said
        file.write_bytes(content)


@kind("damaged data folders", "refused in one line with the remedy, or read whole")
def folders(attacker: Attacker) -> Outcomes:
    """Every file of a built data set flipped, cut off, emptied, removed; then opened, described and audited."""
    import shutil

    from mmclip_jax.data import info, records
    from mmclip_jax.data.leakage import audit

    made = pathlib.Path(
        of_tests("test_audited").build(attacker.folder / "whole", "a", train=range(6), test=range(9, 12))
    )
    every = [
        (file, how)
        for file in sorted(made.iterdir())
        if file.is_file()
        for how in ("flipped", "flipped", "cut off", "emptied", "removed")
    ]
    for number, (file, how) in enumerate(attacker.some(every, 10)):
        copy = attacker.folder / str(number) / "a" / "1.0.0"
        shutil.copytree(made, copy)
        attacks.change(copy / file.name, how, attacker.chance)

        def read(copy: pathlib.Path = copy) -> None:
            for split in ("train", "test"):
                opened = records.open_records(copy, split, "paired")
                for place in range(len(opened)):
                    opened[place]
            info.describe(copy)
            audit.read_set(str(copy), ("train",))

        yield f"{file.name} {how}", clear(read)
