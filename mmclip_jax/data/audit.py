"""The audit of data sets against leakage: is anything of the test sets in the training sets?

Compared are patients, studies and image ids (between sources whose ids mean the same), pixels (identical, and alike),
reports, and the known kinship of sources (resources/kinship.yaml). Sets are built data sets or lists of ids that others
published.
"""

import collections
import dataclasses
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from mmclip_jax import files, spreadsheet
from mmclip_jax.data import records, resources
from mmclip_jax.data.builders.tablefile import read_table
from mmclip_jax.data.schema import PARTS, SPLITS, Example
from mmclip_jax.data.stored import open_stored
from mmclip_jax.errors import LeakageError, UserError, listed

HASH_BITS = 12
"""Perceptual hashes that differ in at most this many of 63 bits are looked at closely."""

ALIKE = 0.985
"""Two images are alike if their thumbnails correlate at least so much."""

_THUMBNAIL = 64
_COMMON_REPORT = 3  # a text that so many training patients share is a phrase, not a copy

LEAKS = ("patient", "study", "image id", "pixels", "alike")


@dataclasses.dataclass(frozen=True)
class Row:
    """What one image is compared by; "" where a list of ids does not tell. `look` is its hash and thumbnail."""

    id: str
    source: str
    patient: str = ""
    study: str = ""
    pixels: str = ""
    report: str = ""
    look: "Look | None" = None


@dataclasses.dataclass(frozen=True)
class Look:
    """A perceptual hash, and a thumbnail float32 [64 * 64] of mean 0 and norm 1."""

    bits: int
    thumbnail: np.ndarray


@dataclasses.dataclass(frozen=True)
class AuditSet:
    """The rows of one set under the name that reports call it by."""

    name: str
    rows: Sequence[Row]

    @property
    def sources(self) -> set[str]:
        """The sources of its rows."""
        return {row.source for row in self.rows}


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What a test set shares with a training set.

    kind: one of `LEAKS`, or "report" or "kin", which are no proof of a leak; pairs: (row of training, row of test), one
    pair for each row of test that is concerned; note: what to know of it.
    """

    kind: str
    train: str
    test: str
    pairs: tuple[tuple[int, int], ...]
    test_rows: int
    note: str = ""

    @property
    def is_leak(self) -> bool:
        """Whether it makes the test set unfit to judge a model of this training set."""
        return self.kind in LEAKS and bool(self.pairs)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_set(spec: str, splits: Sequence[str], *, looks: bool = True, patient_pattern: str = "") -> AuditSet:
    """Reads a built data set or a list of ids.

    Args:
      spec: "DIR" or "DIR:SPLIT" of a built data set; or "FILE.csv:COLUMN", "FILE.txt" (an id a line).
      splits: of a built data set, where `spec` names none.
      looks: whether to decode the images, for finding those that are alike.
      patient_pattern: regular expression that finds the patient in an id of a list; "" if ids do not tell.

    Raises:
      UserError: there is no such set, column or split, or an id without a patient.
    """
    place, _, what = spec.rpartition(":")
    if place and files.locate(place).is_dir():
        if what not in SPLITS:
            raise UserError(f"{spec}: {what!r} is not one of {', '.join(SPLITS)}")
        return _read_built(files.locate(place), spec, (what,), looks)
    if files.locate(spec).is_dir():
        return _read_built(files.locate(spec), spec, splits, looks)
    return _read_list(spec, patient_pattern)


def _read_built(place: epath.Path, name: str, splits: Sequence[str], looks: bool) -> AuditSet:
    rows = []
    for split in splits:
        for part in PARTS:
            rows += [row_of(example, looks) for example in records.open_records(place, split, part)]
    return AuditSet(name, rows)


def row_of(example: Example, looks: bool = True) -> Row:
    """What an example is compared by."""
    words = re.findall(r"[a-z0-9]+", example.text.lower())
    report = hashlib.sha256(" ".join(words).encode()).hexdigest() if words else ""
    look = look_of(example.image) if looks else None
    return Row(
        example.id, example.source, example.patient, example.study, example.pixels_sha256, report, look
    )  # fmt: skip


def _read_list(spec: str, patient_pattern: str) -> AuditSet:
    place, _, column = spec.rpartition(":")
    if pathlib.Path(spec).is_file():
        place, column = spec, ""
    file = pathlib.Path(place).expanduser()
    if not file.is_file():
        raise UserError(f"{spec} is neither a built data set nor a list of ids (FILE.csv:COLUMN)")
    if column:
        table = read_table(str(file))
        if column not in table.header:
            raise UserError(f"{file}: there is no column {column!r} among {listed(table.header)}")
        index = table.header.index(column)
        ids = [(row.number, row.cells[index]) for row in table.rows]
    else:
        lines = file.read_text(encoding="utf-8").splitlines()
        ids = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    rows = []
    for number, id in ids:
        match = re.search(patient_pattern, id) if patient_pattern else None
        if patient_pattern and match is None:
            raise UserError(f"{file} row {number}: the id has no patient by the pattern {patient_pattern!r}")
        rows.append(Row(id, "", match[0] if match else ""))
    return AuditSet(spec, rows)


def look_of(image: bytes) -> Look:
    """The look of a stored image: what is left of it by resizing, recompression and another brightness."""
    import scipy.fft
    from PIL import Image

    with open_stored(image) as opened:
        small = opened.convert("L").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    pixels = np.asarray(small, np.float32)
    low = scipy.fft.dctn(pixels)[:8, :8].ravel()[1:]
    bits = int.from_bytes(np.packbits(np.append(low > np.median(low), False)).tobytes(), "big")
    centred = (pixels - pixels.mean()).ravel()
    return Look(bits, centred / max(float(np.linalg.norm(centred)), 1e-6))


# ---------------------------------------------------------------------------------------------------------------------
# Comparing


def audit(train: Sequence[AuditSet], test: Sequence[AuditSet]) -> list[Overlap]:
    """Everything that each test set shares with each training set; only overlaps that are there are listed."""
    found = []
    for one in train:
        for other in test:
            found += list(_compare(one, other))
    return found


def _compare(train: AuditSet, test: AuditSet) -> Iterator[Overlap]:
    keys = {
        "patient": lambda row: row.patient and (_family(row.source), row.patient),
        "study": lambda row: row.study and (_family(row.source), row.study),
        "image id": lambda row: row.id and (_family(row.source), row.id),
        "pixels": lambda row: row.pixels,
    }
    for kind, key in keys.items():
        pairs = _shared([key(row) for row in train.rows], [key(row) for row in test.rows])
        if pairs:
            yield Overlap(kind, train.name, test.name, pairs, len(test.rows))
    identical = {b for _, b in _shared([row.pixels for row in train.rows], [row.pixels for row in test.rows])}
    alike = tuple(pair for pair in _alike(train.rows, test.rows) if pair[1] not in identical)
    if alike:
        note = f"hashes within {HASH_BITS} bits and thumbnails correlated by {ALIKE} or more"
        yield Overlap("alike", train.name, test.name, alike, len(test.rows), note)
    patients: dict[str, set[str]] = collections.defaultdict(set)
    for row in train.rows:
        patients[row.report].add(row.patient)
    rare = [row.report if len(patients[row.report]) < _COMMON_REPORT else "" for row in train.rows]
    reports = _shared(rare, [row.report for row in test.rows])
    if reports:
        note = f"texts of fewer than {_COMMON_REPORT} training patients; short reports may agree by chance"
        yield Overlap("report", train.name, test.name, reports, len(test.rows), note)
    for a in sorted(train.sources):
        for b in sorted(test.sources):
            if a != b and (kin := kinship().get(a, {}).get(b)):
                note = f"{a} and {b}: {kin['why']}; ids are {kin['ids']}"
                yield Overlap("kin", train.name, test.name, (), len(test.rows), note)


def _shared(train: Sequence[Any], test: Sequence[Any]) -> tuple[tuple[int, int], ...]:
    """(first index in train, index in test) of keys that are in both; empty keys are in neither."""
    first: dict[Any, int] = {}
    for index, key in enumerate(train):
        if key:
            first.setdefault(key, index)
    return tuple((first[key], index) for index, key in enumerate(test) if key and key in first)


def _alike(train: Sequence[Row], test: Sequence[Row]) -> Iterator[tuple[int, int]]:
    """(index in train, index in test) of the most similar training image, where one is alike."""
    ours = [(index, row.look) for index, row in enumerate(train) if row.look is not None]
    theirs = [(index, row.look) for index, row in enumerate(test) if row.look is not None]
    if not ours or not theirs:
        return
    bits = np.array([look.bits for _, look in ours], np.uint64)
    thumbnails = np.stack([look.thumbnail for _, look in ours])
    for index, look in theirs:
        near = np.flatnonzero(np.bitwise_count(bits ^ np.uint64(look.bits)) <= HASH_BITS)
        if len(near):
            alike = thumbnails[near] @ look.thumbnail
            best = int(alike.argmax())
            if alike[best] >= ALIKE:
                yield ours[near[best]][0], index


def check(
    train: Sequence[str | os.PathLike[str]], test: Sequence[str | os.PathLike[str]], split: str, allowed: str = ""
) -> dict[str, Any]:
    """The audit that training and evaluation do themselves: all but look-alikes, which need every image decoded.

    Args:
      train: directories of built data sets whose train split a model learns from; those that are gone are named.
      test: directories of built data sets.
      split: of `test`.
      allowed: why a leak is accepted; "" if it is not.

    Returns:
      {"status": "clean", "leaks" or "not audited", "missing": names of training sets that are not here, "allowed",
      "overlaps": [{"kind", "is_leak", "train", "test", "rows", "of", "note"}]}, as results keep it.

    Raises:
      LeakageError: there is a leak, and no reason to accept it.
    """
    here = [path for path in train if _is_here(path)]
    missing = [pathlib.Path(path).parent.name for path in train if path not in here]

    def read(paths: Sequence[str | os.PathLike[str]], split: str) -> list[AuditSet]:
        places = [records.dataset_dir(path) for path in paths]
        return [_read_built(place, f"{place.parent.name}:{split}", (split,), looks=False) for place in places]

    overlaps = [
        {
            "kind": each.kind, "is_leak": each.is_leak, "train": each.train, "test": each.test,
            "rows": len(each.pairs), "of": each.test_rows, "note": each.note,
        }
        for each in (audit(read(here, "train"), read(test, split)) if here else [])
    ]  # fmt: skip
    leaks = [each for each in overlaps if each["is_leak"]]
    if leaks and not allowed:
        told = "; ".join(f"{e['kind']}: {e['rows']} of {e['of']} images of {e['test']} in {e['train']}" for e in leaks)
        raise LeakageError(
            f"test images are known from training ({told}). Leave that data set out (mmclip data audit lists them), "
            f"or say why it does not matter: --config.data.allow_leakage=REASON in training, --allow-leakage REASON in "
            f"evaluation"
        )
    status = "leaks" if leaks else "clean" if here and not missing else "not audited"
    return {"status": status, "missing": missing, "allowed": allowed if leaks else "", "overlaps": overlaps}


def _is_here(path: str | os.PathLike[str]) -> bool:
    try:
        return files.locate(path).is_dir()
    except UserError:  # in a bucket, and what reads it is not installed
        return False


@functools.cache
def kinship() -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    """Source -> kin source -> {"ids": "same" or "renamed", "why"}, in both directions."""
    import yaml

    read = yaml.safe_load((resources.PACKAGED / "kinship.yaml").read_text(encoding="utf-8"))
    graph: dict[str, dict[str, Mapping[str, str]]] = collections.defaultdict(dict)
    for source, kin in read.items():
        for other, about in kin.items():
            graph[source][other] = graph[other][source] = about
    return graph


@functools.cache
def _family(source: str) -> str:
    """One name for all sources whose ids mean the same."""
    family, new = {source}, {source}
    while new:
        new = {b for a in new for b, about in kinship().get(a, {}).items() if about["ids"] == "same"} - family
        family |= new
    return min(family)


# ---------------------------------------------------------------------------------------------------------------------
# Telling


def describe(
    found: Iterable[Overlap], train: Sequence[AuditSet], test: Sequence[AuditSet], show_ids: bool = False
) -> str:
    """The overlaps as a table for a person; ids of images only with `show_ids`."""
    rows_of = {each.name: each.rows for each in [*train, *test]}
    lines = [f"training: {', '.join(f'{s.name} ({len(s.rows)})' for s in train)}"]
    lines += [f"test: {', '.join(f'{s.name} ({len(s.rows)})' for s in test)}", ""]
    found = list(found)
    for each in found:
        share = f" ({100 * len(each.pairs) / max(1, each.test_rows):.1f} %)" if each.pairs else ""
        lines.append(
            f"{'LEAK ' if each.is_leak else 'note '} {each.kind:9s} {each.test} in {each.train}: "
            + (f"{len(each.pairs)} of {each.test_rows} test images{share}" if each.pairs else each.note)
            + (f"; {each.note}" if each.pairs and each.note else "")
        )
        if show_ids and each.pairs:
            a, b = each.pairs[0]
            lines.append(f"      for example {rows_of[each.test][b].id} and {rows_of[each.train][a].id}")
    leaks = sum(each.is_leak for each in found)
    lines.append(f"{leaks} kinds of leak found" if leaks else "no leak found")
    return "\n".join(lines)


def write_csv(
    found: Iterable[Overlap], train: Sequence[AuditSet], test: Sequence[AuditSet], file: pathlib.Path
) -> None:
    """Every pair of images that share something, a row each (with their ids: as confidential as these)."""
    rows_of = {each.name: each.rows for each in [*train, *test]}
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = spreadsheet.Writer(stream)
        writer.writerow(["kind", "is_leak", "train", "train_id", "test", "test_id", "note"])
        for each in found:
            for a, b in each.pairs or [(None, None)]:
                train_id = "" if a is None else rows_of[each.train][a].id
                test_id = "" if b is None else rows_of[each.test][b].id
                writer.writerow([each.kind, each.is_leak, each.train, train_id, each.test, test_id, each.note])
