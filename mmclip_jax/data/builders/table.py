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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmclip_jax.data import prompts, records, reports
from mmclip_jax.data.builders.cells import (
    REPORT_ROLES,
    UNUSED,
    USUAL_NAMES,
    BadRow,
    Columns,
    Frame,
    Kinds,
    RawBox,
    Row,
    Table,
    label_state,
    parse_age,
    parse_boxes,
    parse_frame,
    parse_sex,
    parse_split,
    parse_view,
    read_table,
    separator_of,
    split_labels,
)
from mmclip_jax.data.builders.collection import (
    REJECTS_FILE,
    Collection,
    Item,
    Reject,
    check_storing,
    entities_option,
    listed_labels,
    option,
)
from mmclip_jax.data.schema import SPLITS, LabelState, report_text
from mmclip_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """What `mmclip data build table` can be told. Lists may be given as one comma-separated string.

    A column option is the column's name in the table, "" to find it by its usual names, or "-" to leave it unused.
    """

    table: str = dataclasses.field(metadata={"help": "CSV, TSV or Parquet file, one row an image"})
    images: str = dataclasses.field(metadata={"help": "folder that the image column's paths are relative to"})
    name: str = dataclasses.field(metadata={"help": "name of the data set (directory, and source of its images)"})
    unpaired_table: str = option("", "second table, of images with labels only (its report columns are not read)")
    unpaired_images: str = option("", "folder of the second table's images; default: the same as --images")

    image_column: str = option("", "column of image paths")
    patient_column: str = option("", "column of patient ids (give the image column if each image is another patient)")
    study_column: str = option("", "column of study ids; default: each image is a study of its own")
    view_column: str = option("", "column of views (PA, AP, ...)")
    sex_column: str = option("", "column of sexes")
    age_column: str = option("", "column of ages in years")
    report_column: str = option("", "column of whole reports")
    findings_column: str = option("", "column of reports' findings")
    impression_column: str = option("", "column of reports' impressions")
    split_column: str = option("", "column of splits (train, validation, test); default: by patient, see --shares")
    labels_column: str = option("", "column that lists an image's labels, joined by --label-separator")
    label_columns: tuple[str, ...] = option(
        (),
        "columns of one label each (1 present, 0 absent, -1 uncertain, blank unknown); default: all named like a kind",
    )
    box_columns: tuple[str, ...] = option((), "one column of box lists, or four: x, y, width, height")
    box_kind_column: str = option("", "column of the kind that a row's box shows")

    label_separator: str = option("auto", 'what joins labels: "|", ";", ","; auto: the first of these in use')
    label_universe: tuple[str, ...] = option((), "labels the annotators looked for; default: all seen in the column")
    absent_if_unlisted: bool = option(True, "a label of the universe that a row's list lacks is absent (else unknown)")
    label_map: tuple[str, ...] = option((), 'what label strings mean, e.g. "NORMAL=no_finding"')
    ignore_labels: tuple[str, ...] = option((), "label strings to leave out")
    box_frame: str = option(
        "", '"pixels" of the file, "fraction", or WIDTHxHEIGHT; default: the number in the column\'s name, else pixels'
    )
    box_format: str = option("xywh", "xywh (corner, width, height) or xyxy (two corners)")
    views: tuple[str, ...] = option((), "views to keep; default: all")

    split: str = option("", "put every row into this one split")
    shares: tuple[float, ...] = option((0.8, 0.1, 0.1), "shares of patients in train, validation, test")
    split_salt: str = option("", "another string, another split by patient")

    shorter_side: int = option(256, "pixels of the shorter side of stored images; smaller images stay as they are")
    value_range: str = option("auto", 'white in 16-bit files: "auto", "full" (65535), or the maximum itself')
    encoding: str = option("jpeg", "how changed images are stored: jpeg (quality 95) or png", ("jpeg", "png"))
    max_reject_share: float = option(0.001, "the build stops if more than this share of rows cannot be used")
    entities: str = entities_option()
    csv_encoding: str = option("utf-8", "character encoding of a CSV file")
    workers: int = option(0, "processes that read images; 0: one a core")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "shares":
                parts = value.split(",") if isinstance(value, str) else value
                try:
                    object.__setattr__(self, field.name, tuple(float(part) for part in parts))
                except ValueError:
                    raise UserError(f"shares {value!r} are not numbers; e.g. 0.8,0.1,0.1") from None
            elif isinstance(field.default, tuple):
                parts = value.split(",") if isinstance(value, str) else value
                object.__setattr__(self, field.name, tuple(part.strip() for part in parts if part.strip()))
        self._check()

    def _check(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise UserError(f"name {self.name!r}: use small letters, digits and _ only, a letter first")
        if self.name == "phantom":
            raise UserError("name 'phantom' is that of the built-in data set, whose texts are shown: choose another")
        if len(self.shares) != 3 or min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise UserError(f"shares {self.shares}: three numbers, for train, validation, test, that sum to 1")
        if self.split and self.split not in SPLITS:
            raise UserError(f"split {self.split!r} is not one of {', '.join(SPLITS)}")
        if self.encoding not in ("jpeg", "png"):
            raise UserError(f"encoding {self.encoding!r} is not jpeg or png")
        if self.box_format not in ("xywh", "xyxy"):
            raise UserError(f"box format {self.box_format!r} is not xywh or xyxy")
        if len(self.box_columns) not in (0, 1, 4):
            raise UserError(f"box columns {', '.join(self.box_columns)}: give one column of lists, or four of numbers")
        check_storing(self.shorter_side, self.max_reject_share, self.workers)
        if self.value_range not in ("auto", "full") and not re.fullmatch(r"[1-9]\d{0,4}", self.value_range):
            raise UserError(f"value range {self.value_range!r} is not auto, full or a maximum such as 4095")
        for item in self.label_map:
            if "=" not in item:
                raise UserError(f"label map {item!r}: write LABEL=kind")
        parse_frame(self.box_frame)


@dataclasses.dataclass(frozen=True)
class BuildSummary:
    """What `build_table` did; `str(summary)` is the text shown to a user."""

    path: pathlib.Path
    facts: Mapping[str, Any]
    rejects_path: pathlib.Path
    seconds: float

    def __str__(self) -> str:
        facts = self.facts
        lines = [
            f"built {self.path}: {facts['examples']} images of {facts['patients']} patients in {self.seconds:.1f} s"
        ]
        for part, counts in facts["splits"].items():
            lines.append(f"  {part:20s} {counts['examples']:7d} images {counts['patients']:7d} patients")
        for table in facts["tables"]:
            used = ", ".join(f"{role} = {column}" for role, column in table["columns"].items())
            lines.append(f"  {table['file']}: {table['rows']} rows; {used}")
            if table["columns_not_used"]:
                lines.append(f"    not used: {', '.join(table['columns_not_used'])}")
            if table["rows_of_other_views"]:
                lines.append(f"    {table['rows_of_other_views']} rows of other views left out")
        lines += [f"  {line}" for line in reports.told(facts)]
        meanings: dict[str, list[str]] = {}
        for string, kind in facts["label_strings"].items():
            meanings.setdefault(kind or "(ignored)", []).append(string)
        for kind in sorted(meanings):
            lines.append(f"  label {kind}: {', '.join(meanings[kind])}")
        lines.append(
            f"  {facts['rejects']} rows left out, {facts['cells_left_out']} cells left out: {self.rejects_path}"
        )
        return "\n".join(lines)


def build_table(
    options: TableOptions,
    data_dir: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: bool = False,
    make: records.Make | None = None,
) -> BuildSummary:
    """Builds a data set from a user's table and images under `data_dir`; `make` as `records.build` takes it.

    Raises:
      UserError: something in the table or the options does not hold, or more rows than `max_reject_share` cannot be
        used; the message names the file, the row and the remedy, and the list of rejects is kept.
    """
    start = time.monotonic()
    builder = TableBuilder(options, data_dir)
    path = records.build(builder, overwrite=overwrite, progress=progress, make=make)
    facts = records.dataset_facts(path)
    return BuildSummary(path, facts, path / REJECTS_FILE, time.monotonic() - start)


# ---------------------------------------------------------------------------------------------------------------------
# The builder


@dataclasses.dataclass(frozen=True)
class _Source:
    """One of the tables: its columns, and what holds for all of its rows."""

    table: Table
    columns: Columns
    folder: pathlib.Path
    id_prefix: str
    separator: str
    universe: frozenset[str]  # the kinds that are absent where a row's list lacks them
    frame: Frame
    frame_was_told: bool


class TableBuilder(Collection):
    """The records builder of a user's table; `build_table` is the way to use it."""

    VERSION = "1.0.0"
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

    def facts(self) -> Mapping[str, Any]:
        """The tables as they were understood."""
        strings = dict(sorted(self._label_strings.items()))
        return {"tables": self._tables, "label_strings": strings, **self._reader.facts()}

    def described_options(self) -> dict[str, Any]:
        """The options, with files and folders by their last name only."""
        options = super().described_options()
        for name in ("table", "images", "unpaired_table", "unpaired_images"):
            options[name] = pathlib.Path(options[name]).name
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
        labels = ", ".join(f"{label} ({count} rows)" for label, count in self._unknown.most_common(20))
        return (
            f"Unknown labels: {labels}; say what they mean with --label-map LABEL=KIND, or leave them out with "
            f"--ignore-labels LABEL. "
        )

    # The tables

    def _source(self, path: str, images: str, id_prefix: str, with_reports: bool) -> _Source:
        options = self.options
        folder = pathlib.Path(images).expanduser()
        if not folder.is_dir():
            raise UserError(f"image folder {folder} does not exist")
        table = read_table(path, options.csv_encoding)
        chosen = {role: getattr(options, f"{role.replace(' ', '_')}_column") for role in USUAL_NAMES}
        if not with_reports:
            chosen |= dict.fromkeys(REPORT_ROLES, UNUSED)
        columns = Columns(table, self._kinds, chosen, options.label_columns, options.box_columns, options.box_format)
        self._label_strings |= columns.labels
        separator = options.label_separator
        if separator == "auto":
            separator = separator_of([columns.get(row, "labels") for row in table.rows])
        frame = parse_frame(options.box_frame)
        in_name = re.search(r"\d+$", columns.boxes[0]) if len(columns.boxes) == 1 else None
        return _Source(
            table=table,
            columns=columns,
            folder=folder,
            id_prefix=id_prefix,
            separator=separator,
            universe=self._universe(table, columns, separator),
            frame=frame or (parse_frame(in_name[0]) if in_name else "pixels"),
            frame_was_told=bool(frame),
        )

    def _universe(self, table: Table, columns: Columns, separator: str) -> frozenset[str]:
        if "labels" not in columns.role or not self.options.absent_if_unlisted:
            return frozenset()
        if self.options.label_universe:
            return frozenset(self._kinds.required(label) for label in self.options.label_universe)
        kinds = set()
        for cell in {columns.get(row, "labels") for row in table.rows}:
            try:
                kinds |= {self._kinds(label) for label in split_labels(cell, separator)}
            except BadRow:
                continue  # the row itself is left out, with the reason, when its turn comes
        return frozenset(kind for kind in kinds if kind)

    def _read(self, source: _Source, seen: dict[pathlib.Path, str]) -> Iterator[Item | Reject]:
        """The images of a table. `seen` says where each image file was named first; it is added to."""
        table, columns = source.table, source.columns
        views = {parse_view(view) for view in self.options.views}
        other_views = 0
        rows_of: dict[str, list[Row]] = {}
        for number, reason in table.ragged:
            yield _reject(source, number, "", reason)
        for row in table.rows:
            if views and parse_view(columns.get(row, "view")) not in views:
                other_views += 1
            elif image := columns.get(row, "image"):
                rows_of.setdefault(image, []).append(row)
            else:
                yield _reject(source, row.number, "", "no image is named")
        count = len(table.rows) + len(table.ragged)
        self.rows += count - other_views
        self._tables.append(
            {
                "file": table.file.name,
                "rows": count,
                "rows_of_other_views": other_views,
                "columns": columns.described(),
                "columns_not_used": columns.unused,
                "label_universe": sorted(source.universe),
            }
        )
        for image, rows in rows_of.items():
            same = [rows[0]]
            for row in rows[1:]:
                if problem := self._not_another_box(source, rows[0], row):
                    yield _reject(source, row.number, image, problem)
                else:
                    same.append(row)
            try:
                yield self._item(source, image, same, seen)
            except BadRow as bad:
                for row in same:
                    yield _reject(source, row.number, image, str(bad))

    def _not_another_box(self, source: _Source, first: Row, row: Row) -> str:
        """Where tables have a row for each box, an image has several rows; "" if this is one of these."""
        columns = source.columns
        if len(columns.boxes) != 4:
            return f"the image is in row {first.number} too"
        apart = {*columns.boxes, columns.role.get("box kind", "")}
        for name in source.table.header:
            if name not in apart and columns.cell(first, name) != columns.cell(row, name):
                return f"the image is in row {first.number} too, but column {name!r} differs"
        return ""

    def _item(self, source: _Source, image: str, rows: Sequence[Row], seen: dict[pathlib.Path, str]) -> Item:
        columns, row = source.columns, rows[0]
        file = _find_file(source.folder, image)
        here = f"{source.table.file.name} row {row.number}"
        if seen.setdefault(file.resolve(), here) != here:
            raise BadRow(f"the image is in {seen[file.resolve()]} too")
        patient = columns.get(row, "patient")
        if not patient:
            raise BadRow("no patient is named")
        findings, impression = self._report(columns, row, columns.get(row, "study") or source.id_prefix + image)
        labels = self._labels(source, row)
        if not report_text(findings, impression) and not set(labels.values()) & {LabelState.PRESENT, LabelState.ABSENT}:
            raise BadRow("no report and no label that is present or absent")
        id = source.id_prefix + image
        age = parse_age(columns.get(row, "age"))
        if age is None:
            reason = f"age {columns.get(row, 'age')!r} is not 0 to 120 years"
            self.rejects.append(_reject(source, row.number, image, reason, "age left out"))
        return Item(
            table=str(source.table.file),
            row=row.number,
            file=str(file),
            id=id,
            split=self._split(columns, row),
            patient=patient,
            study=columns.get(row, "study") or id,
            view=parse_view(columns.get(row, "view")),
            sex=parse_sex(columns.get(row, "sex")),
            age=math.nan if age is None else age,
            findings=findings,
            impression=impression,
            labels=labels,
            boxes=tuple((kind, box.numbers) for each in rows for kind, box in self._boxes(columns, each, labels)),
            frame=source.frame,
            frame_was_told=source.frame_was_told,
            box_format=self.options.box_format,
            value_range=self.options.value_range
            if self.options.value_range in ("auto", "full")
            else int(self.options.value_range),
        )

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
            raise BadRow(f"unknown label {label!r}")
        self._label_strings[label] = kind
        return kind

    def _labels(self, source: _Source, row: Row) -> dict[str, LabelState]:
        labels: dict[str, LabelState] = {}
        for name, kind in source.columns.labels.items():
            state = label_state(name, source.columns.cell(row, name))
            if state is not None:
                labels[kind] = state
        listed = split_labels(source.columns.get(row, "labels"), source.separator)
        present = {kind for kind in [self._kind(label) for label in listed] if kind}
        for kind, state in listed_labels(present, source.universe if present else ()).items():
            if labels.setdefault(kind, state) != state and state == LabelState.PRESENT:
                raise BadRow(f"the list of labels has {kind}, its own column says {labels[kind].name.lower()}")
        if labels.get("no_finding") == LabelState.PRESENT:
            found = [
                kind
                for kind, state in labels.items()
                if state == LabelState.PRESENT and kind != "no_finding" and not prompts.is_device(kind)
            ]
            if found:
                raise BadRow(f"labelled as no finding and as {', '.join(found)}")
        return labels

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
                raise BadRow("a box without a label, and the row's labels do not tell which kind it shows")
            yield present[0], box


def _reject(source: _Source, row: int, image: str, reason: str, *consequence: str) -> Reject:
    return Reject(str(source.table.file), row, image, reason, *consequence)


def _find_file(folder: pathlib.Path, image: str) -> pathlib.Path:
    file = folder / image
    if file.is_file():
        return file
    if not file.suffix:
        for suffix in (".png", ".jpg", ".jpeg"):
            if file.with_name(file.name + suffix).is_file():
                return file.with_name(file.name + suffix)
    raise BadRow("there is no such image file")
