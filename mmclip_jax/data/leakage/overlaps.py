"""What two sets of images share: patients, studies, image ids, pixels, looks, reports, and kin sources.

numbering.py says which ids mean the same, likeness.py which images are alike. audit.py reads the sets and decides.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mmclip_jax.data.leakage import likeness as likeness_lib
from mmclip_jax.data.leakage import numbering
from mmclip_jax.data.leakage.likeness import ALIKE, HASH_BITS
from mmclip_jax.data.leakage.numbering import NOTHING_STATED, IdStatements, Key

_COMMON_REPORT = 3  # a text that so many training patients share is a phrase, not a copy

LEAKS = ("patient", "study", "image id", "pixels", "alike")
"""Kinds of overlap that make a test set unfit."""

LOOKS = ("patient?", "study?", "image id?")
"""Equal ids that may or may not mean the same. They are refused like a leak until the user has said which."""

NOTES = ("report", "kin", "no patients")
"""Notes: shown to the user, no proof of leakage. The last two say that patients could not be compared."""

LIST = "list"
"""The source that rows of a list of ids have."""

_WHAT = {"patient": "patient", "study": "study", "image id": "image"}


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What one image is compared by; "" for what a list of ids does not say."""

    id: str
    source: str
    patient: str = ""
    study: str = ""
    pixels: str = ""
    report: str = ""

    def of(self, what: str) -> str:
        """Its id of a kind of `numbering.WHATS`."""
        return self.id if what == "image" else self.patient if what == "patient" else self.study


@dataclasses.dataclass(frozen=True)
class AuditSet:
    """The rows of one set under the name that reports call it by.

    looks: of the rows, in their order; None if the images were not compared. place, split: of a built data set.
    problem: why a part of it could not be compared, "" if all was.
    """

    name: str
    rows: Sequence[Row]
    looks: np.ndarray | None = None
    place: str = ""
    split: str = ""
    problem: str = ""

    def only(self, chosen: Iterable[int], name: str) -> "AuditSet":
        """Some of its rows, under another name."""
        numbers = [int(number) for number in chosen]
        seen = self.looks
        if seen is not None and len(numbers) < len(self.rows):
            seen = seen[numbers]
        return dataclasses.replace(self, name=name, rows=[self.rows[number] for number in numbers], looks=seen)


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What a test set shares with a training set.

    kind: one of `LEAKS`, `LOOKS` or `NOTES`; pairs: (row of training, row of test), one pair for each row of test that
    is concerned; note: what the user should know about it.
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

    @property
    def is_open(self) -> bool:
        """Whether the user has to say what it means."""
        return self.kind in LOOKS and bool(self.pairs)


def audit(
    train: Sequence[AuditSet], test: Sequence[AuditSet], stated_ids: IdStatements = NOTHING_STATED
) -> list[Overlap]:
    """Everything that each test set shares with each training set; only overlaps that are there are listed."""
    return [overlap for one in train for other in test for overlap in _compare(one, other, stated_ids)]


def _compare(train: AuditSet, test: AuditSet, stated_ids: IdStatements) -> Iterator[Overlap]:
    def overlap(kind: str, pairs: Iterable[tuple[int, int]], note: str = "") -> Iterator[Overlap]:
        found = tuple(pairs)
        if found or (note and kind in NOTES[1:]):
            yield Overlap(kind, train.name, test.name, found, len(test.rows), note)

    for kind in _WHAT:
        leaks, open_pairs, note = _IdComparison(train, test, _WHAT[kind], stated_ids).run()
        yield from overlap(kind, leaks)
        yield from overlap(f"{kind}?", open_pairs, note)
    identical = _shared([row.pixels for row in train.rows], [row.pixels for row in test.rows])
    yield from overlap("pixels", identical)
    if train.looks is not None and test.looks is not None:
        known = {b for _, b in identical}
        note = f"hashes within {HASH_BITS} bits and thumbnails correlated by {ALIKE} or more"
        alike = likeness_lib.alike(train.looks, test.looks)
        yield from overlap("alike", (pair for pair in alike if pair[1] not in known), note)
    note = f"texts of fewer than {_COMMON_REPORT} training patients; short reports may agree by chance"
    yield from overlap("report", _shared(_rare_reports(train.rows), [row.report for row in test.rows]), note)
    ours, theirs = _patients_of(train.rows), _patients_of(test.rows)
    yield from overlap("kin", (), _kin_note(ours, theirs))
    yield from overlap("no patients", (), _patients_note(ours, theirs))


def _shared(train: Sequence[Any], test: Sequence[Any]) -> tuple[tuple[int, int], ...]:
    """(first index in train, index in test) of keys that are in both; empty keys are in neither."""
    first: dict[Any, int] = {}
    for index, key in enumerate(train):
        if key:
            first.setdefault(key, index)
    return tuple((first[key], index) for index, key in enumerate(test) if key and key in first)


def _rare_reports(rows: Sequence[Row]) -> list[str]:
    """The reports that few patients have; "" for the others."""
    patients: dict[str, set[str]] = collections.defaultdict(set)
    for row in rows:
        if row.report and len(patients[row.report]) < _COMMON_REPORT:
            patients[row.report].add(row.patient)
    return [row.report if row.report and len(patients[row.report]) < _COMMON_REPORT else "" for row in rows]


class _IdComparison:
    """Ids of one kind (`what`) of two sets: which mean the same, and about which the user has to say it."""

    def __init__(self, train: AuditSet, test: AuditSet, what: str, stated_ids: IdStatements):
        self._train, self._test, self._what, self._stated_ids = train.rows, test.rows, what, stated_ids
        loose = [[numbering.loose_id(row.of(what)) for row in one.rows] for one in (train, test)]
        if what == "image" and (not train.place or train.place != test.place):
            # Of one data set all paths are written alike: a file in another folder is another file.
            loose = numbering.tails(loose)
        self._loose_test = loose[1]
        self._exact: dict[str, dict[Key, int]] = collections.defaultdict(dict)
        self._loose: dict[str, dict[str, int]] = collections.defaultdict(dict)
        for number, (row, spelling) in enumerate(zip(train.rows, loose[0], strict=True)):
            if key := numbering.canonical_id(row.source, row.of(what), what):
                self._exact[row.source].setdefault(key, number)
                self._loose[row.source].setdefault(spelling, number)
        self._read_as: dict[tuple[str, str], dict[Key, int]] = {}

    def run(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]], str]:
        """(pairs that are leaks, pairs that the user has to decide on, the question about these)."""
        leaks: dict[int, int] = {}
        open_pairs: dict[int, int] = {}
        open_sources: set[tuple[str, str]] = set()
        for number, row in enumerate(self._test):
            key = numbering.canonical_id(row.source, row.of(self._what), self._what)
            if key is None:
                continue
            for source in self._exact:
                found, is_exact = self._find(source, row, key, self._loose_test[number])
                if found is None:
                    continue
                meaning = self._relation(source, found, row.source, key)
                if meaning == "told same" or (is_exact and (meaning == "same" or source == row.source)):
                    leaks.setdefault(number, found)
                elif meaning != "other":
                    open_pairs.setdefault(number, found)
                    open_sources.add((source, row.source))
        still_open = [(a, b) for b, a in open_pairs.items() if b not in leaks]
        return [(a, b) for b, a in leaks.items()], still_open, _open_note(open_sources) if still_open else ""

    def _find(self, source: str, row: Row, key: Key, spelling: str) -> tuple[int | None, bool]:
        """The training row of a source that has an id of a test row, and whether it is the very same id."""
        if (found := self._exact[source].get(key)) is not None:
            return found, True
        if (found := self._loose[source].get(spelling)) is not None and self._may_be_one(found, row):
            return found, False
        # A table may hold ids of a published family: read them as the family writes them.
        ours, theirs = (numbering.is_published(numbering.families(name)[0]) for name in (source, row.source))
        if ours and not theirs:
            other = numbering.canonical_id(source, row.of(self._what), self._what)
            return (self._exact[source].get(other) if other else None), False
        if theirs and not ours:
            return self._as_written_by(source, row.source).get(key), False
        return None, False

    def _may_be_one(self, found: int, row: Row) -> bool:
        if self._what != "image":
            return True
        return numbering.may_be_one(*(numbering.loose_id(each.id) for each in (self._train[found], row)))

    def _as_written_by(self, source: str, family_of: str) -> dict[Key, int]:
        """The training rows of a source by their ids as another source would read them."""
        if (source, family_of) not in self._read_as:
            read: dict[Key, int] = {}
            for number in self._exact[source].values():
                if key := numbering.canonical_id(family_of, self._train[number].of(self._what), self._what):
                    read.setdefault(key, number)
            self._read_as[source, family_of] = read
        return self._read_as[source, family_of]

    def _relation(self, source: str, found: int, other: str, key: Key) -> str:
        ours = numbering.canonical_id(source, self._train[found].of(self._what), self._what)
        assert ours is not None
        return numbering.relation(source, ours.family, other, key.family, self._stated_ids)


def _open_note(sources: set[tuple[str, str]]) -> str:
    pairs = sorted({tuple(sorted(pair)) for pair in sources})
    questions = "; ".join(
        f"do equal ids of {a} and {b} mean the same? --same-ids {a},{b} or --other-ids {a},{b}" if a != b
        else f"do ids of {a} that differ only in spelling mean the same? --same-ids {a},{a} or --other-ids {a},{a}"
        for a, b in pairs[:3]
    )  # fmt: skip
    return questions + (f"; and {len(pairs) - 3} more pairs of sources" if len(pairs) > 3 else "")


Patients = dict[tuple[str, str], list[Row]]
"""Rows by source and the family that their patients are numbered in."""


def _patients_of(rows: Sequence[Row]) -> Patients:
    found: dict[tuple[str, str], list[Row]] = collections.defaultdict(list)
    for row in rows:
        if key := numbering.canonical_id(row.source, row.patient, "patient"):
            found[row.source, key.family].append(row)
    return found


def _kin_note(train: Patients, test: Patients) -> str:
    """Which sources hold the same patients under other ids, and why."""
    notes = {
        f"{a} and {b}: {why}; they hold the same patients under different ids"
        for (a, one), (b, other) in itertools.product(train, test)
        if one != other and (why := numbering.kin(one, other))
    }
    return "; ".join(sorted(notes))


def _patients_note(train: Patients, test: Patients) -> str:
    """Which sources do not say who their patients are: every image counts as a patient."""
    shared = {family for _, family in train} & {family for _, family in test}
    hidden = {
        source
        for side in (train, test)
        for (source, family), rows in side.items()
        if family in shared and all(_is_own_patient(row) for row in rows)
    }
    names = ", ".join(sorted(hidden))
    return f"the patients of {names} are unknown: every image has a patient of its own" if names else ""


def _is_own_patient(row: Row) -> bool:
    """Whether the patient's id is the image's."""
    keys = [numbering.canonical_id(row.source, row.of(what), what) for what in ("image", "patient")]
    if all(keys) and keys[0] == keys[1]:
        return True
    image, patient = (numbering.loose_id(row.of(what)).rpartition("/")[2] for what in ("image", "patient"))
    return image == patient
