"""Checks data sets for leakage: is anything that is scored also in what was learnt from?

A set is a built data set, some of its rows, or a list of ids that others published. overlaps.py compares sets. `judge`
is the one place that decides: training, evaluation, fine-tuning and `mmclip data audit` call it.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from mmclip_jax import files, spreadsheet
from mmclip_jax.data import records
from mmclip_jax.data.builders.files import read_text
from mmclip_jax.data.builders.tablefile import read_table
from mmclip_jax.data.leakage import fingerprint
from mmclip_jax.data.leakage import likeness as likeness_lib
from mmclip_jax.data.leakage.numbering import NOTHING_STATED, IdStatements
from mmclip_jax.data.leakage.overlaps import LIST, AuditSet, Overlap, Row, audit
from mmclip_jax.data.schema import PARTS, SPLITS
from mmclip_jax.errors import LeakageError, UserError, listed

__all__ = ["NOTHING_STATED", "AuditSet", "IdStatements", "Overlap", "Row", "audit", "check", "judge", "read_set"]

STATUSES = ("clean", "not comparable", "not audited", "to be looked at", "leaks")
"""What an audit may end with, the worse the later."""

AUTOMATIC_LOOKS = 50_000
"""An audit inside another command decodes at most so many images without stored looks: a minute on two cores."""

AUTOMATIC_PAIRS = 2 * 10**10
"""Such an audit compares at most so many pairs of looks: about a minute and a half of a core."""


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_set(spec: str, splits: Sequence[str], *, looks: bool = True, patient_pattern: str = "") -> AuditSet:
    """Reads a built data set or a list of ids.

    Args:
      spec: "DIR" or "DIR:SPLIT" of a built data set; or "FILE.csv:COLUMN", "FILE.txt" (an id a line).
      splits: of a built data set, where `spec` names none.
      looks: whether to read the images to find those that are alike; their looks are stored beside the records.
      patient_pattern: regular expression that finds the patient in an id of a list; "" if ids do not hold it.

    Raises:
      UserError: there is no such set, column or split, or an id without a patient.
    """
    place, _, what = spec.rpartition(":")
    if place and files.locate(place).is_dir():
        if what not in SPLITS:
            raise UserError(f"{spec}: {what!r} is not one of {', '.join(SPLITS)}")
        splits = (what,)
    elif files.locate(spec).is_dir():
        place = spec
    else:
        return _read_list(spec, patient_pattern)
    read = [read_built(place, split) for split in splits]
    if looks:
        read, _ = with_looks(read, limit=None)
    seen = [one.looks for one in read if one.looks is not None]
    return AuditSet(
        spec,
        [row for one in read for row in one.rows],
        (seen[0] if len(seen) == 1 else np.concatenate(seen)) if looks else None,
        read[0].place,
        read[0].split if len(read) == 1 else "",
        "; ".join(one.problem for one in read if one.problem),
    )


def read_built(directory: str | os.PathLike[str], split: str) -> AuditSet:
    """The rows of one split of a built data set, in the order of its records, paired ones first.

    A record that cannot be read is an empty row, and counted in the set's `problem`.
    """
    place = records.dataset_dir(directory)
    rows = [_row_of(texts) for part in PARTS for texts in _texts(records.open_records(place, split, part))]
    damaged = sum(not row.id for row in rows)
    problem = f"{damaged} of its records cannot be read" if damaged else ""
    return AuditSet(f"{place.parent.name}:{split}", rows, None, str(place), split, problem)


def _texts(source: records.Records) -> Iterator[Sequence[str]]:
    for index in range(len(source)):
        try:
            yield source.texts(index, ("id", "source", "patient", "study", "pixels_sha256", "findings", "impression"))
        except Exception:  # damaged files raise whatever the layer that stumbled raises
            yield ("",) * 7


def _row_of(texts: Sequence[str]) -> Row:
    id, source, patient, study, pixels, findings, impression = texts
    words = re.findall(r"\w+", f"{findings} {impression}".casefold())
    report = hashlib.blake2b(" ".join(words).encode(), digest_size=16).hexdigest() if words else ""
    return Row(id, sys.intern(source), patient, study, pixels, report)


def _lines(file: pathlib.Path) -> list[tuple[int, str]]:
    """(number, id) of each line. Another kind of file is refused: it would match nothing, and the audit pass."""
    try:
        lines = read_text(file).splitlines()
    except UserError as error:
        raise UserError(
            f"{error}, and it is not a list with one id on each line. For a table write {file}:COLUMN"
        ) from error
    ids = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    for number, id in ids:
        if mark := next((mark for mark in ',;|\t{"' if mark in id), ""):
            raise UserError(
                f"{file} row {number}: {mark!r} in a list with one id on each line. For a table write {file}:COLUMN"
            )
    if ids and all(len(id.split()) > 2 for _, id in ids):
        raise UserError(f"{file}: each line has several words. Write a list with one id on each line")
    if not ids:
        raise UserError(f"{file} holds no id")
    return ids


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
        ids = _lines(file)
    try:
        pattern = re.compile(patient_pattern)
    except re.error as error:
        raise UserError(f"the pattern of patients {patient_pattern!r} is no regular expression: {error}") from None
    rows = []
    for number, id in ids:
        match = pattern.search(id) if patient_pattern else None
        if patient_pattern and match is None:
            raise UserError(f"{file} row {number}: the id has no patient by the pattern {patient_pattern!r}")
        rows.append(Row(id, LIST, match[0] if match else ""))
    return AuditSet(spec, rows)


def with_looks(sets: Sequence[AuditSet], limit: int | None) -> tuple[list[AuditSet], str]:
    """Built sets with the looks of their images, stored ones or new ones.

    Args:
      sets: as `read_built` gives them.
      limit: no image is read if more images than this have no stored looks; None for no limit.

    Returns:
      (the sets, why they have no looks; "" if they have).
    """
    stores = [
        likeness_lib.Store(epath.Path(one.place), one.split, _identity(one.place)[1], len(one.rows)) for one in sets
    ]
    found = [store.stored() for store in stores]
    without = sum(store.count for store, seen in zip(stores, found, strict=True) if seen is None)
    if limit is not None and without > limit:
        return list(sets), f"{without:,} images have no stored looks, more than {limit:,}"
    made = []
    for one, store, seen in zip(sets, stores, found, strict=True):
        if seen is None:
            seen = store.make(functools.partial(_images, one), records.map_in_order)
        damaged = likeness_lib.unreadable(seen)
        problem = "; ".join(filter(None, [one.problem, f"{damaged} of its images cannot be read" if damaged else ""]))
        made.append(dataclasses.replace(one, looks=seen, problem=problem))
    return made, ""


def _images(one: AuditSet) -> Iterator[bytes]:
    for part in PARTS:
        source = records.open_records(one.place, one.split, part)
        for index in range(len(source)):
            try:
                yield source.image(index)
            except Exception:  # as in `_texts`
                yield b""


# ---------------------------------------------------------------------------------------------------------------------
# Deciding


def judge(
    train: Sequence[AuditSet],
    test: Sequence[AuditSet],
    *,
    allowed: str = "",
    stated_ids: IdStatements = NOTHING_STATED,
    missing: Sequence[str] = (),
    without_looks: str = "",
) -> dict[str, Any]:
    """Compares what is learnt from with what is scored.

    Args:
      train: what a model, a classifier, a threshold is learnt from.
      test: what is scored.
      allowed: why a leak is accepted; "" if it is not.
      stated_ids: what the user has said about equal ids.
      missing: names of training sets that are not here.
      without_looks: why images were not compared; "" if they were.

    Returns:
      For JSON: {"status": one of `STATUSES`, "missing", "allowed", "told", "alike": "run" or why not, "problems": what
      could not be read, "overlaps": [{"kind", "is_leak", "is_open", "train", "test", "rows", "of", "note"}]}.

    Raises:
      LeakageError: there is a leak, or ids are equal and nobody has said whether they mean the same, and no reason to
        accept it is given.
    """
    found = audit(train, test, stated_ids) if train else []
    overlaps = [
        {
            "kind": each.kind, "is_leak": each.is_leak, "is_open": each.is_open, "train": each.train,
            "test": each.test, "rows": len(each.pairs), "of": each.test_rows, "note": each.note,
        }
        for each in found
    ]  # fmt: skip
    if not allowed:
        _refuse(overlaps)
    looked = all(one.looks is not None for one in (*train, *test))
    result: dict[str, Any] = {
        "status": _status(overlaps, bool(train), missing),
        "missing": list(missing),
        "allowed": "",
        "told": stated_ids.as_json(),
        "alike": "run" if train and looked else without_looks or "there was nothing to compare with",
        "problems": sorted({f"{one.name}: {one.problem}" for one in (*train, *test) if one.problem}),
        "overlaps": overlaps,
    }
    if result["status"] in STATUSES[-2:]:
        result["allowed"] = allowed
    return result


def _status(overlaps: Sequence[Mapping[str, Any]], is_compared: bool, missing: Sequence[str]) -> str:
    if any(each["is_leak"] for each in overlaps):
        return "leaks"
    if any(each["is_open"] for each in overlaps):
        return "to be looked at"
    if missing or not is_compared:
        return "not audited"
    return "not comparable" if any(each["kind"] in ("kin", "no patients") for each in overlaps) else "clean"


def _refuse(overlaps: Sequence[Mapping[str, Any]]) -> None:
    def listed(name: str) -> str:
        return "; ".join(
            f"{e['kind'].rstrip('?')}: {e['rows']} of {e['of']} images of {e['test']} in {e['train']}"
            for e in overlaps
            if e[name]
        )

    remedy = "say why it does not matter with --allow-leakage REASON"
    if leaks := listed("is_leak"):
        raise LeakageError(
            f"test images are known from training ({leaks}). Leave that data set out (mmclip data audit lists them), "
            f"or {remedy}"
        )
    if open_ids := listed("is_open"):
        notes = "; ".join(dict.fromkeys(each["note"] for each in overlaps if each["is_open"]))
        raise LeakageError(
            f"Some ids of test and training sets are equal ({open_ids}). Say with --same-ids or --other-ids whether "
            f"they mean the same: {notes}. Or {remedy}"
        )


def check(
    train: Sequence[str | os.PathLike[str]] | Mapping[str, Mapping[str, Any]],
    test: Sequence[str | os.PathLike[str]],
    split: str,
    allowed: str = "",
    stated_ids: IdStatements = NOTHING_STATED,
    *,
    learnt: str = "train",
) -> dict[str, Any]:
    """The audit inside training and evaluation, of whole splits of data sets.

    Args:
      train: directories of built data sets that are learnt from, perhaps with {"fingerprint"} of what they held then;
        those that are gone, or hold something else now, are named as missing.
      test: directories of built data sets.
      split: of `test`.
      allowed: see `judge`.
      stated_ids: likewise.
      learnt: split of `train`.

    Returns:
      See `judge`.

    Raises:
      LeakageError: see `judge`.
    """
    places, missing = _places(train, test)
    key = (tuple(map(_identity, places)), tuple(map(_identity, test)), learnt, split, stated_ids, tuple(missing))
    if key not in _DONE:
        ours, theirs, why = looked_at(
            [read_built(place, learnt) for place in places], [read_built(place, split) for place in test]
        )
        # What is found does not depend on whether it is accepted.
        _DONE[key] = judge(
            ours, theirs, allowed="any reason", stated_ids=stated_ids, missing=missing, without_looks=why
        )
    result = {**_DONE[key], "allowed": ""}
    if result["status"] in STATUSES[-2:]:
        result["allowed"] = allowed
        if not allowed:
            _refuse(result["overlaps"])
    return result


_DONE: dict[Any, dict[str, Any]] = {}  # results of this process: `ablate` asks for the same one in each run


def _identity(place: str | os.PathLike[str]) -> tuple[str, str, str]:
    """(directory, digest of its contents, digest of its files)."""
    digests = fingerprint.of_data_set(place)
    return str(records.dataset_dir(place)), digests["fingerprint"], digests["records"]


def _places(
    train: Sequence[str | os.PathLike[str]] | Mapping[str, Mapping[str, Any]], test: Sequence[str | os.PathLike[str]]
) -> tuple[list[Any], list[str]]:
    """(training sets that are here, names of those that are not)."""
    here: list[Any] = []
    missing = []
    for path in train:
        expected = str(train[str(path)].get("fingerprint", "")) if isinstance(train, Mapping) else ""
        name = pathlib.Path(path).parent.name
        if _is_here(path) and (not expected or _identity(path)[1] == expected):
            here.append(path)
        elif expected and (moved := [other for other in test if _identity(other)[1] == expected]):
            here.append(moved[0])
        else:
            missing.append(f"{name} (built anew since)" if _is_here(path) else name)
    return here, missing


def _is_here(path: str | os.PathLike[str]) -> bool:
    try:
        return files.locate(path).is_dir()
    except UserError:  # in a bucket, and what reads it is not installed
        return False


def check_rows(
    data: Sequence[str | os.PathLike[str]],
    chosen: Mapping[str, Sequence[int]],
    split: str,
    allowed: str = "",
    stated_ids: IdStatements = NOTHING_STATED,
) -> dict[str, dict[str, Any]]:
    """The audit of some training rows against a split of the same data sets.

    Args:
      data: directories of built data sets.
      chosen: name -> numbers of rows of all train splits together, in the order of the data sets.
      split: that is scored.
      allowed: see `judge`.
      stated_ids: likewise.

    Returns:
      For each name what `judge` returns.

    Raises:
      LeakageError: see `judge`.
    """
    learnt, scored, why = looked_at(
        [read_built(place, "train") for place in data], [read_built(place, split) for place in data]
    )
    results = {}
    for name, numbers in chosen.items():
        start, parts = 0, []
        for one in learnt:
            mine = [number - start for number in numbers if start <= number < start + len(one.rows)]
            parts.append(one.only(mine, f"{one.name}, {name}"))
            start += len(one.rows)
        results[name] = judge(parts, scored, allowed=allowed, stated_ids=stated_ids, without_looks=why)
    return results


def looked_at(
    train: Sequence[AuditSet], test: Sequence[AuditSet]
) -> tuple[Sequence[AuditSet], Sequence[AuditSet], str]:
    """Both sets with looks, unless that takes too long; then also the reason why they have none."""
    pairs = sum(len(one.rows) for one in train) * sum(len(one.rows) for one in test)
    if not pairs:
        return train, test, ""
    if pairs > AUTOMATIC_PAIRS:
        return train, test, f"{pairs:.1e} pairs of images are more than {AUTOMATIC_PAIRS:.0e}"
    made, why = with_looks([*train, *test], AUTOMATIC_LOOKS)
    return made[: len(train)], made[len(train) :], why


def combine(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Several results of `judge` as one, in the same form: the worst status, and what each part ended with."""
    results = list(parts.values())
    alike = [each["alike"] for each in results if each["alike"] != "run"]
    return {
        "status": max((each["status"] for each in results), key=STATUSES.index),
        "missing": sorted({name for each in results for name in each["missing"]}),
        "allowed": next((each["allowed"] for each in results if each["allowed"]), ""),
        "told": results[0]["told"],
        "alike": alike[0] if alike else "run",
        "problems": sorted({problem for each in results for problem in each["problems"]}),
        "overlaps": [overlap for each in results for overlap in each["overlaps"]],
        "parts": {name: each["status"] for name, each in parts.items()},
    }


def not_audited(note: str) -> dict[str, Any]:
    """A result in the form of `judge` where nothing can be compared; note: why."""
    return judge([], []) | {"note": note}


def text(result: Mapping[str, Any] | None) -> str:
    """What an audit found, in a line, for pages and cards."""
    if result is None:
        return "not audited: these rows were not compared with the training data"
    status = result["status"]
    said = {
        "leaks": f"images are known from training; accepted because: {result['allowed']}",
        "to be looked at": "equal ids, and nobody has said whether they mean the same; accepted because: "
        f"{result['allowed']}",
        "not audited": "not audited: "
        + (result.get("note") or f"training data are not here ({', '.join(result['missing']) or 'no record of them'})"),
        "not comparable": "no identical image, but patients could not be compared: "
        + "; ".join(each["note"] for each in result["overlaps"] if each["kind"] in ("kin", "no patients")),
        "clean": "no patient, study, image id or pixels in common with the training data",
    }.get(status, str(result.get("note", status)))
    if status in ("clean", "not comparable") and "alike" in result:
        said += "; no image alike" if result["alike"] == "run" else f"; alike not run: {result['alike']}"
    if others := result.get("told", {}).get("other", ()):
        said += f"; the user said that equal ids differ in meaning: {', '.join(' and '.join(pair) for pair in others)}"
    return "; ".join([said, *result.get("problems", ())])


# ---------------------------------------------------------------------------------------------------------------------
# Output


def describe(
    found: Iterable[Overlap], train: Sequence[AuditSet], test: Sequence[AuditSet], show_ids: bool = False
) -> str:
    """The overlaps as a table to read; ids of images only with `show_ids`."""
    rows_of = {each.name: each.rows for each in [*train, *test]}
    lines = [f"training: {', '.join(f'{s.name} ({len(s.rows)})' for s in train)}"]
    lines += [f"test: {', '.join(f'{s.name} ({len(s.rows)})' for s in test)}", ""]
    found = list(found)
    for each in found:
        share = f" ({100 * len(each.pairs) / max(1, each.test_rows):.1f} %)" if each.pairs else ""
        lines.append(
            f"{'LEAK ' if each.is_leak else 'LOOK ' if each.is_open else 'note '} {each.kind:11s} "
            f"{each.test} in {each.train}: "
            + (f"{len(each.pairs)} of {each.test_rows} test images{share}" if each.pairs else each.note)
            + (f"; {each.note}" if each.pairs and each.note else "")
        )
        if show_ids and each.pairs:
            a, b = each.pairs[0]
            lines.append(f"      for example {rows_of[each.test][b].id} and {rows_of[each.train][a].id}")
    lines += [f"note  {one.name}: {one.problem}" for one in [*train, *test] if one.problem]
    leaks, open_kinds = (sum(getattr(each, name) for each in found) for name in ("is_leak", "is_open"))
    lines.append(f"{leaks} kinds of leak found" if leaks else "no leak found")
    if open_kinds:
        lines.append(f"{open_kinds} kinds of equal ids are still to be decided (--same-ids, --other-ids)")
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
