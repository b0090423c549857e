"""A user's own data: a CSV or Parquet table and a folder of images.

`build_table(TableOptions(table="metadata.csv", images="images", name="mine"), data_dir)` finds the columns by their
names, maps label strings to the vocabulary of kinds, keeps every patient within one split, and stores the images once
at a common size. A row that cannot be used is never dropped in silence: it is listed in `rejects.csv`, and too many of
them stop the build. docs/data.md tells the same for users.
"""

import collections
import dataclasses
import math
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mmclip_jax.data import records
from mmclip_jax.data.builders.cells import (
    BadRow,
    Frame,
    RawBox,
    label_state,
    parse_age,
    parse_boxes,
    parse_frame,
    parse_split,
    separator_of,
    sex_meanings,
    sex_of,
    split_labels,
)
from mmclip_jax.data.builders.collection import Collection
from mmclip_jax.data.builders.columns import JOINS, REPORT_ROLES, UNUSED, USUAL_NAMES, Columns, Kinds
from mmclip_jax.data.builders.files import OTHER_SUFFIXES
from mmclip_jax.data.builders.items import BETWEEN_FAULTS, ON_PURPOSE, Item, Reject
from mmclip_jax.data.builders.labels import Beside, listed_labels, without_contradiction
from mmclip_jax.data.builders.summary import TableSummary
from mmclip_jax.data.builders.table_images import Found, TableImages
from mmclip_jax.data.builders.table_options import TableOptions
from mmclip_jax.data.builders.tablefile import Row, Table, read_table
from mmclip_jax.data.ids import BadId
from mmclip_jax.data.images import dicom_headers
from mmclip_jax.data.images.views import plain, view_of
from mmclip_jax.data.schema import LabelState
from mmclip_jax.errors import UserError, brief, shown
from mmclip_jax.text import reports
from mmclip_jax.text.schema import report_text


def build_table(
    options: TableOptions,
    data_dir: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: bool = False,
    make: records.Make | None = None,
) -> TableSummary:
    """Builds a data set from a user's table and images under `data_dir`; `make` as `records.build` takes it.

    Raises:
      UserError: something in the table or the options does not hold, or more rows than `max_reject_share` cannot be
        used; the message names the file, the row and the remedy, and the list of rejects is kept.
    """
    start = time.monotonic()
    builder = TableBuilder(options, data_dir)
    path = records.build(builder, overwrite=overwrite, progress=progress, make=make)
    facts = records.dataset_facts(path)
    return TableSummary(path, facts, time.monotonic() - start)


# ---------------------------------------------------------------------------------------------------------------------
# The builder


@dataclasses.dataclass(frozen=True)
class _Source:
    """One of the tables: its columns, and what holds for all of its rows."""

    table: Table
    columns: Columns
    images: TableImages
    id_prefix: str
    separator: str
    universe: frozenset[str]  # the kinds that are absent where a row's list lacks them
    frame: Frame
    frame_was_told: bool
    sexes: Mapping[str, str]  # what words of the sex column mean, if it is not what they usually mean


class _OtherView(Exception):
    """A row cannot be used, but its images are left out on purpose anyway."""


class TableBuilder(Collection):
    """The records builder of a user's table; `build_table` is the way to use it."""

    VERSION = "1.0.0"
    box_flags = "--box-frame and --box-format"
    refuses_masks = False
    no_finding = Beside.REFUSE
    split_remedy = f"correct the table, or have patients divided anew with --split-column {UNUSED}"

    def __init__(self, options: TableOptions, data_dir: str | os.PathLike[str]):
        super().__init__(options, data_dir)
        self.name = options.name
        self.shares = options.shares
        self._kinds = Kinds(options.label_map, options.ignore_labels)
        self._label_strings: dict[str, str] = {}
        self._unknown: collections.Counter[str] = collections.Counter()
        self._tables: list[dict[str, Any]] = []
        self._reader = reports.Reader()

    def table_notes(self) -> list[list[str]]:
        """How the images of each table were found, for a person."""
        return [table["notes"] for table in self._tables]

    def facts(self) -> Mapping[str, object]:
        """The tables as they were understood."""
        strings = dict(sorted(self._label_strings.items()))
        return {"tables": self._tables, "label_strings": strings, **self._reader.facts()}

    def described_options(self) -> dict[str, object]:
        """The options, with files and folders by their last name only."""
        options = super().described_options()
        for name in ("table", "images", "unpaired_table", "unpaired_images"):
            options[name] = pathlib.Path(getattr(self.options, name)).name
        return options

    def read(self) -> Iterator[Item | Reject]:
        """All images of the one or two tables."""
        options = self.options
        given = [(options.table, options.images, "", True)]
        if options.unpaired_table:
            other_folder = options.unpaired_images not in ("", options.images)
            folder = options.unpaired_images or options.images
            given.append((options.unpaired_table, folder, "unpaired/" if other_folder else "", False))
        seen: dict[pathlib.Path, str] = {}
        for table, folder, id_prefix, with_reports in given:
            yield from self._read(self._source(table, folder, id_prefix, with_reports), seen)

    def reject_hint(self) -> str:
        """The label strings that nobody knows, and what to do about them."""
        if not self._unknown:
            return ""
        labels = ", ".join(f"{shown(label)} ({count} rows)" for label, count in self._unknown.most_common(20))
        return (
            f"Unknown labels: {labels}; say what they mean with --label-map LABEL=KIND, leave them out with "
            f"--ignore-labels LABEL, or the whole column with --labels-column -. "
        )

    # The tables

    def _source(self, path: str, images: str, id_prefix: str, with_reports: bool) -> _Source:
        options = self.options
        folder = pathlib.Path(images).expanduser()
        if not folder.is_dir():
            raise UserError(f"image folder {folder} does not exist")
        table = read_table(path, options.csv_encoding, options.csv_separator, options.sheet)
        chosen = {role: getattr(options, f"{role.replace(' ', '_')}_column") for role in USUAL_NAMES}
        if not with_reports:
            chosen |= dict.fromkeys(REPORT_ROLES, UNUSED)
        columns = Columns(
            table, self._kinds, chosen, options.label_columns, options.box_columns, options.box_format, options.join
        )
        self._label_strings |= columns.labels
        separator = options.label_separator
        if separator == "auto":
            separator = separator_of([columns.get(row, "labels") for row in table.rows])
        frame = parse_frame(options.box_frame)
        in_name = re.search(r"\d+$", columns.boxes[0]) if len(columns.boxes) == 1 else None
        finder = TableImages(folder, options.join, options.allow_outside)
        finder.strip_prefix([columns.get(row, "image") for row in table.rows])
        told = {plain(word): sex for word, _, sex in (item.rpartition("=") for item in options.sex_map)}
        return _Source(
            table=table,
            columns=columns,
            images=finder,
            id_prefix=id_prefix,
            separator=separator,
            universe=self._universe(table, columns, separator),
            frame=frame or (parse_frame(in_name[0]) if in_name else "pixels"),
            frame_was_told=bool(frame),
            sexes=sex_meanings(columns.get(row, "sex") for row in table.rows) | told,
        )

    def _universe(self, table: Table, columns: Columns, separator: str) -> frozenset[str]:
        if "labels" not in columns.role or not self.options.absent_if_unlisted:
            return frozenset()
        if self.options.label_universe:
            return frozenset(self._kinds.required(label) for label in self.options.label_universe)
        kinds = set()
        for cell in {columns.get(row, "labels") for row in table.rows}:
            try:
                labels = split_labels(cell, separator)
                kinds |= {self._kinds(label) for label in labels if self._kinds.denies(label)}
            except BadRow:
                continue  # the row itself is left out, with the reason, when its turn comes
        return frozenset(kind for kind in kinds if kind)

    def _read(self, source: _Source, seen: dict[pathlib.Path, str]) -> Iterator[Item | Reject]:
        """The images of a table. `seen` says where each image file was named first; it is added to."""
        table, columns = source.table, source.columns
        role = next(role for role in (*JOINS[self.options.join][0], "image") if role in columns.role)
        rows_of: dict[str, list[Row]] = {}
        for number, reason in table.ragged:
            yield _reject(source, number, "", reason)
        for row in table.rows:
            if image := columns.get(row, role):
                rows_of.setdefault(image, []).append(row)
            else:
                yield _reject(source, row.number, "", f"no {role} is named")
        count = len(table.rows) + len(table.ragged)
        self.rows += count
        other_views: set[int] = set()
        for image, rows in rows_of.items():
            same = [rows[0]]
            for row in rows[1:]:
                if problem := self._not_another_box(source, rows[0], row):
                    yield _reject(source, row.number, image, problem)
                else:
                    same.append(row)
            try:
                for item in self._items(source, image, same, seen):
                    if unwanted := self._unwanted_view(item.view):
                        other_views |= {row.number for row in same}
                        yield _reject(source, item.row, item.id, unwanted, ON_PURPOSE)
                    else:
                        yield item
            except _OtherView as bad:
                other_views |= {row.number for row in same}
                for row in same:
                    yield _reject(source, row.number, image, str(bad), ON_PURPOSE)
            except BadRow as bad:
                for row in same:
                    yield _reject(source, row.number, image, str(bad))
        self.rows -= len(other_views)
        self._tables.append(
            {
                "file": table.file.name,
                "rows": count,
                "rows_of_other_views": len(other_views),
                "columns": columns.described(),
                "columns_not_used": columns.unused,
                "label_universe": sorted(source.universe),
                "notes": [*table.notes, *source.images.notes()],
            }
        )

    def _unwanted_view(self, view: str) -> str:
        """Why an image of this view is left out; "" if it is kept."""
        kept = {view_of(view) for view in self.options.views}
        if not kept or "all" in kept:
            return ""
        if "frontal" in kept and view != "LATERAL":
            return ""
        return "" if view in kept else f"view {brief(view) or 'unknown'}"

    def _not_another_box(self, source: _Source, first: Row, row: Row) -> str:
        """Why a row is not one of several that a study has, or an image (a row for each box); "" if it is."""
        columns = source.columns
        if self.options.join != "path":
            used = {*columns.role.values(), *columns.labels, *columns.boxes}
            differs = [n for n in source.table.header if n in used and columns.cell(first, n) != columns.cell(row, n)]
            return f"the study is in row {first.number} too, but column {differs[0]!r} differs" if differs else ""
        if len(columns.boxes) != 4:
            return f"the image is in row {first.number} too"
        apart = {*columns.boxes, columns.role.get("box kind", "")}
        for name in source.table.header:
            if name not in apart and columns.cell(first, name) != columns.cell(row, name):
                return f"the image is in row {first.number} too, but column {name!r} differs"
        return ""

    def _items(self, source: _Source, image: str, rows: Sequence[Row], seen: dict[pathlib.Path, str]) -> Iterator[Item]:
        """The images that rows with one name of an image, or of a study, mean.

        Raises:
          BadRow: all that is wrong with the row.
        """
        columns, row = source.columns, rows[0]
        problems: list[str] = []

        def checked(read: Callable[[], Any], otherwise: Any) -> Any:
            try:
                return read()
            except (BadRow, BadId) as bad:
                problems.append(str(bad))
                return otherwise

        found: Sequence[Found] = checked(lambda: self._found(source, image, row), ())
        problems += _seen_before(found, f"{source.table.file.name} row {row.number}", seen)
        patient = columns.get(row, "patient")
        if not patient:
            problems.append("no patient is named")
        findings, impression = self._report(columns, row, columns.get(row, "study") or source.id_prefix + image)
        labels = checked(lambda: self._labels(source, row), None)
        told = labels is None or set(labels.values()) & {LabelState.PRESENT, LabelState.ABSENT}
        if not told and not report_text(findings, impression):
            problems.append("no report and no label that is present or absent")
        split = checked(lambda: self._split(columns, row), "")
        boxes = checked(lambda: tuple((kind, box.numbers) for each in rows for kind, box in
                                      self._boxes(columns, each, labels or {})), ())  # fmt: skip
        if boxes and len(found) > 1:
            problems.append(f"boxes, but the row means {len(found)} images")
        if problems:
            self._check_view(columns, row, found)
            raise BadRow(BETWEEN_FAULTS.join(dict.fromkeys(problems)))
        by_path = self.options.join == "path"
        own_study = columns.get(row, "study") or (image if self.options.join in ("accession", "folder") else "")
        for each in found:
            id = source.id_prefix + (image if by_path else each.name)
            view, sex, age, study, laterality = self._of_header(source, row, image, each)
            yield Item(
                table=str(source.table.file),
                row=row.number,
                file=each.place,
                id=id,
                split=split,
                patient=patient,
                study=own_study or study or id,
                view=view,
                sex=sex,
                age=age,
                laterality=laterality,
                findings=findings,
                impression=impression,
                labels=labels,
                boxes=boxes,
                frame=source.frame,
                frame_was_told=source.frame_was_told,
                box_format=self.options.box_format,
                value_range=self.options.white,
            )

    def _check_view(self, columns: Columns, row: Row, found: Sequence[Found]) -> None:
        """Raises _OtherView where all that a row means is of views that are left out: its faults do not matter then."""
        told = view_of(columns.get(row, "view"))
        views = [told] if told else [(dicom_headers.read(each.place) or dicom_headers.Header()).view for each in found]
        unwanted = [self._unwanted_view(view) for view in views if view]
        if unwanted and len(unwanted) == len(views) and all(unwanted):
            raise _OtherView(unwanted[0])

    def _found(self, source: _Source, image: str, row: Row) -> Sequence[Found]:
        pictures = source.table.pictures.get(source.columns.role.get("image", ""), ())
        place = pictures[row.number - 2] if pictures else ""
        return [Found(place, image)] if place else source.images.find(image)

    def _of_header(self, source: _Source, row: Row, image: str, found: Found) -> tuple[str, str, float, str, str]:
        """(view, sex, age, study, laterality) of an image: the table's, else its DICOM header's.

        What cannot be read is listed. Tables have no column of sides.
        """
        columns = source.columns
        view = view_of(columns.get(row, "view"))
        sex = sex_of(columns.get(row, "sex"), source.sexes)
        age = parse_age(columns.get(row, "age"))
        for name, value in (("sex", sex), ("age", age)):
            if value is None:
                means = "not M, F or unknown (--sex-map says what it means)" if name == "sex" else "not 0 to 120 years"
                reason = f"{name} {shown(columns.get(row, name))} is {means}"
                left_out = _reject(source, row.number, image, reason, f"{name} left out")
                if left_out not in self.rejects[-2:]:  # a row may mean several images
                    self.rejects.append(left_out)
        study = laterality = ""
        told_all = view and sex and age == age and columns.get(row, "study")
        if not (told_all and found.place.lower().endswith(OTHER_SUFFIXES)):
            header = dicom_headers.read(found.place) or dicom_headers.Header()
            source.images.how["with a DICOM header"] += bool(header.sop)
            source.images.compare_patient(columns.get(row, "patient"), header, row.number)
            view = view or header.view
            sex = sex_of(header.sex) if sex == "" else sex
            age = parse_age(header.age) if age is not None and math.isnan(age) else age
            study = header.study
            laterality = header.laterality if header.laterality in ("L", "R", "B") else ""
        return view, sex or "", math.nan if age is None else age, study, laterality

    def _report(self, columns: Columns, row: Row, study: str) -> tuple[str, str]:
        """(findings, impression) of a row, from these columns or else from that of whole reports."""
        findings, impression = columns.get(row, "findings"), columns.get(row, "impression")
        if findings or "report" not in columns.role:
            report = self._reader.columns(study, findings, impression)
        elif impression:
            report = self._reader.columns(study, columns.get(row, "report"), impression)
        else:
            report = self._reader.report(study, columns.get(row, "report"))
        return report.findings, report.impression

    def _split(self, columns: Columns, row: Row) -> str:
        if self.options.split:
            return self.options.split
        if "split" in columns.role:
            return parse_split(columns.get(row, "split"))
        return ""

    def _kind(self, label: str) -> str:
        kind = self._kinds(label)
        if kind is None:
            self._unknown[label] += 1
            raise BadRow(f"unknown label {shown(label)}")
        self._label_strings[label] = kind
        return kind

    def _labels(self, source: _Source, row: Row) -> dict[str, LabelState]:
        labels: dict[str, LabelState] = {}
        for name, kind in source.columns.labels.items():
            state = label_state(name, source.columns.cell(row, name))
            if state is not None and (state != LabelState.ABSENT or self._kinds.denies(name)):
                labels[kind] = state
        listed = split_labels(source.columns.get(row, "labels"), source.separator)
        present = {kind for kind in [self._kind(label) for label in listed] if kind}
        for kind, state in listed_labels(present, source.universe if present else (), listed).items():
            if labels.setdefault(kind, state) != state and kind in present:
                raise BadRow(f"the list of labels has {kind}, its own column says {labels[kind].name.lower()}")
        return without_contradiction(labels, self.no_finding)

    def _boxes(self, columns: Columns, row: Row, labels: Mapping[str, LabelState]) -> Iterator[tuple[str, RawBox]]:
        """(kind, box) of a row. A box without a label shows the one kind that the row says is present."""
        cells = [columns.cell(row, name) for name in columns.boxes]
        for box in parse_boxes(cells, columns.get(row, "box kind")):
            if box.label:
                if kind := self._kind(box.label):
                    yield kind, box
                continue
            present = [kind for kind, state in labels.items() if state == LabelState.PRESENT and kind != "no_finding"]
            if len(present) != 1:
                raise BadRow("a box without a label, and the row's labels do not tell which finding it shows")
            yield present[0], box


def _seen_before(found: Sequence[Found], here: str, seen: dict[pathlib.Path, str]) -> Iterator[str]:
    """Which of a row's images another row has named; the others are noted as this row's."""
    for each in found:
        file = pathlib.Path(each.place).resolve()
        if seen.setdefault(file, here) != here:
            yield f"the image is in {seen[file]} too"


def _reject(source: _Source, row: int, image: str, reason: str, *consequence: str) -> Reject:
    return Reject(str(source.table.file), row, image, reason, *consequence)
