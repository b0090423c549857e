"""What a user's table and images hold, every fault of them by kind, and the command that builds a data set of them.

Values are shown where they are words of a fixed set (sex, view, labels, yes and no). Reports, names and whatever else
stands in columns that nobody reads are counted only.
"""

import collections
import dataclasses
import itertools
import math
import os
import pathlib
import re
import shlex
import statistics
from collections.abc import Mapping, Sequence

from mmclip_jax.data.builders import cells, files
from mmclip_jax.data.builders.columns import JOINS, REPORT_ROLES, UNUSED, USUAL_NAMES, Columns, Kinds
from mmclip_jax.data.builders.items import LEFT_OUT, Item, Reject, cleaned, reasons_by_kind
from mmclip_jax.data.builders.report_language import REPORT_LEFT_OUT, without_other_languages
from mmclip_jax.data.builders.table import TableBuilder
from mmclip_jax.data.builders.table_options import TableOptions
from mmclip_jax.data.builders.tablefile import EXCEL, PARQUET, Table, guess_encoding, load_bytes, read_table
from mmclip_jax.data.images import dicom_headers, store
from mmclip_jax.errors import CELL, UserError, brief, shown
from mmclip_jax.text import prompts, vocabulary

READ = 2000  # images that are decoded by default
_TRIES = 500  # rows that a way of joining is tried on
_VALUES = 6  # words of a column that are shown
_MIXED = re.compile(
    "\u00c3[\u00a4\u00b6\u00bc\u0178\u00a9\u00a8\u00a1\u00ad\u00b3\u00b1]|\u00e2\u20ac"
)  # UTF-8 read as cp1252
_ICD = re.compile(r"[A-TV-Z]\d[\dA-Z](\.?[\dA-Z-]{1,4})?[!*+]?", re.IGNORECASE)
_SEPARATORS = ("|", ";", ",", "/", "+")

# What a reason for leaving a row out says -> what to do about it.
_REMEDIES = {
    "no such image file": "is --images the right folder? Are the files there under these names?",
    "it may be": "give the suffix in the table, or take away one of the files",
    "leads out of": "copy the files into the folder, or --allow-outside",
    "unknown label": "--label-map LABEL=KIND says what it means, --ignore-labels LABEL leaves it out",
    "no report and no label": "nothing can be learnt from these rows; take them out of the table",
    "no patient": "fill in the patient; an image without one could be in train and in test",
    "cells where the header has": "quote cells that hold the separator or line breaks, then export again",
    "the image is in": "an image has one row; take the others away",
    "lost digits": "format the column as text, and export again",
    "not 1, 0, -1": "--label-columns NAMES says which columns are labels",
    "split": "--split-column - divides patients anew",
    "cannot be decoded": "export these files again",
    "has this": "were all files exported? Is the column the right one?",
    "sex left out": "--sex-map WORD=M says what a word means; the rows stay",
    "age left out": "the rows stay",
    REPORT_LEFT_OUT: "they are in another language than the others; their images stay, without text",
}


@dataclasses.dataclass(frozen=True)
class ColumnReading:
    """A column as it is read: its role (or why it is not used), and what is in it, in a few words."""

    name: str
    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Problem:
    """A kind of fault, how many rows or cells have it, and the remedy."""

    kind: str
    count: int
    remedy: str


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What `inspect` found; `str` of it is the text shown to a user.

    command: words of the command that builds the data set; () if none can be given until a problem is solved.
    choices: why the command has each of its options; found: images that the rows mean, by how they were found.
    """

    file: str
    form: str
    rows: int
    notes: Sequence[str]
    columns: Sequence[ColumnReading]
    files: Mapping[str, int]
    found: Sequence[str]
    views: Mapping[str, int]
    problems: Sequence[Problem]
    choices: Sequence[str]
    command: Sequence[str]

    def __str__(self) -> str:
        width = max((len(column.name) for column in self.columns), default=0)
        role = max((len(column.role) for column in self.columns), default=0)
        lines = [f"{self.file}: {self.form}, {self.rows} rows", *(f"  {note}" for note in self.notes), "", "Columns"]
        lines += [f"  {c.name:{width}s}  {c.role:{role}s}  {c.content}".rstrip() for c in self.columns]
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.files.items())
        lines += ["", "Images", f"  files: {kinds or 'none'}", *(f"  {line}" for line in self.found)]
        if self.views:
            lines.append("  views: " + ", ".join(f"{view or 'unknown'} {n}" for view, n in self.views.items()))
        lines += ["", "Problems" if self.problems else "Problems: none"]
        lines += [f"  {p.count} x {p.kind}" + (f" -> {p.remedy}" if p.remedy else "") for p in self.problems]
        if self.choices:
            lines += ["", "Why these options", *(f"  {choice}" for choice in self.choices)]
        if self.command:
            lines += ["", "Command", shlex.join(self.command)]
        return "\n".join(lines)


def inspect(
    table: str, images_folder: str, *, name: str = "", data_dir: str = "DATA", read_images: int = READ
) -> Inspection:
    """Reads a table and the images that it means, and proposes how to build a data set of them. Writes nothing.

    Args:
      table: CSV, TSV, Excel or Parquet.
      images_folder: of its images.
      name: of the data set; "" makes one of the table's name.
      data_dir: for the command.
      read_images: how many images are decoded at most, spread over the table; the others are looked for only.

    Raises:
      UserError: the table cannot be read at all, or the folder does not exist.
    """
    return _Inspector(table, images_folder, name, data_dir, read_images).run()


class _Inspector:
    def __init__(self, table: str, folder: str, name: str, data_dir: str, read_images: int):
        self.folder = pathlib.Path(folder).expanduser()
        if not self.folder.is_dir():
            raise UserError(f"image folder {self.folder} does not exist")
        self.read_images = read_images
        self.data_dir = data_dir
        self.given = {"table": table, "images": folder, "name": name or _name_of(table, data_dir)}
        self.options: dict[str, str] = {}  # beside those that are given
        self.choices: list[str] = []
        self.problems: list[Problem] = []
        self.is_foreign = False  # the reports are in no language that there are words for, or in several
        self.table = self._read(table)
        self.cells_of = {
            column: [row.cells[n] for row in self.table.rows] for n, column in enumerate(self.table.header)
        }

    def _read(self, path: str) -> Table:
        file = pathlib.Path(path).expanduser()
        encoding = "utf-8"
        if file.is_file() and file.suffix.lower() not in (*PARQUET, *EXCEL):
            encoding = guess_encoding(load_bytes(file))
            if encoding in ("cp1252", "latin-1"):
                if _MIXED.search(load_bytes(file).decode(encoding)):
                    self._found_problem("parts of the table are in UTF-8, parts are not", 1, "export it again")
                self._choose("csv_encoding", encoding, "the text is not UTF-8; look whether accents come out right")
        return read_table(path, encoding)

    def _found_problem(self, kind: str, count: int, remedy: str = "") -> None:
        self.problems.append(Problem(kind, count, remedy))

    def _choose(self, option: str, value: str, why: str) -> None:
        self.options[option] = value
        self.choices.append(f"--{option.replace('_', '-')} {shlex.quote(value)}: {why}")

    # What the columns are

    def run(self) -> Inspection:
        columns = self._find_join()
        if columns is None:
            return self._result(None, [], [])
        self._choose_labels(columns)
        items, rejects = self._try()
        self._choose_rest(items, rejects)
        rejects += self._choose_language(items)
        rejects += self._decode(items)
        self._count(rejects)
        left_out, rows = sum(reject.consequence == LEFT_OUT for reject in rejects), max(1, self.builder.rows)
        if left_out > 0.001 * rows:
            share = min(1.0, math.ceil(1000 * left_out / rows) / 1000)
            self._choose("max_reject_share", f"{share:g}", f"{left_out} of {rows} rows cannot be used, see above")
        return self._result(columns, items, rejects)

    def _columns(self, **chosen: str) -> Columns:
        roles = dict.fromkeys(USUAL_NAMES, "") | {k: v for k, v in chosen.items() if k in USUAL_NAMES}
        return Columns(self.table, Kinds(), roles, (UNUSED,), join=chosen.get("join", "path"))

    def _find_join(self) -> Columns | None:
        """The columns, with the way of joining that finds most images; None where none is possible.

        Paths are preferred: where they find most images, the others are missing.
        """
        best: tuple[int, str, Columns] | None = None
        reasons = []
        for join in JOINS:
            try:
                columns = self._columns(join=join)
            except UserError as error:
                reasons.append(str(error))
                continue
            found = self._try_join(join, columns)
            if best is None or found > best[0]:
                best = (found, join, columns)
            if join == "path" and 2 * found >= min(len(self.table.rows), _TRIES):
                break
        if best is None:
            self.problems.append(
                Problem(
                    reasons[0].partition(": ")[2].partition(";")[0], len(self.table.rows), reasons[0].partition("; ")[2]
                )
            )
            return None
        _, join, columns = best
        if join != "path":
            role = next(role for role in JOINS[join][0] if role in columns.role)
            self._choose("join", join, f"column {columns.role[role]!r} finds the images")
        return columns

    def _try_join(self, join: str, columns: Columns) -> int:
        from mmclip_jax.data.builders.table_images import TableImages

        role = next(role for role in JOINS[join][0] if role in columns.role)
        finder = TableImages(self.folder, join)
        names = [name for row in self.table.rows if (name := columns.get(row, role))]
        if role == "image" and columns.role["image"] in self.table.pictures:
            return len(names)
        finder.strip_prefix(names)
        found = 0
        for name in names[:: max(1, len(names) // _TRIES)]:
            try:
                found += bool(finder.find(name))
            except (cells.BadRow, ValueError):
                continue
        return found

    def _choose_labels(self, columns: Columns) -> None:
        self._choose_list(columns)
        kinds = Kinds()
        taken = {*columns.role.values(), *columns.boxes}
        good: dict[str, str] = {}
        bad: list[str] = []
        for name in self.table.header:
            kind = kinds(name) if name not in taken else None
            if not kind:
                continue
            states = collections.Counter(_readable(name, cell) for cell in self.cells_of[name])
            if kind in good:
                bad.append(name)
                self._found_problem(f"column {name!r} means {kind}, as {good[kind]!r} does", 1, "the first is used")
            elif states[False]:
                bad.append(name)
                kind = f"column {name!r} is named like a label, but has cells that say neither yes nor no"
                self._found_problem(kind, states[False], "write yes, no or nothing; the column is not used")
            elif states[True]:
                good[kind] = name
        if bad:
            self._choose("label_columns", ",".join(good.values()) or UNUSED, f"without {', '.join(map(repr, bad))}")

    def _choose_list(self, columns: Columns) -> None:
        """Whether the column of lists holds labels, and what parts them."""
        name = columns.role.get("labels")
        if not name:
            return
        texts = [cell for cell in self.cells_of[name] if cell]
        best: tuple[float, str, collections.Counter[str]] = (-1.0, "", collections.Counter())
        auto = cells.separator_of(texts)
        for mark in (auto, *(mark for mark in _SEPARATORS if mark != auto)):
            labels: collections.Counter[str] = collections.Counter()
            for text in texts:
                try:
                    labels.update(cells.split_labels(text, mark))
                except cells.BadRow:
                    continue
            known = sum(n for label, n in labels.items() if prompts.kind_of(label) is not None)
            if (share := known / max(1, labels.total())) > best[0]:
                best = (share, mark, labels)
        share, mark, labels = best
        unknown = {label: n for label, n in labels.items() if prompts.kind_of(label) is None}
        if share == 0 or any("," in label for label in unknown):
            codes = sum(n for label, n in labels.items() if _ICD.fullmatch(label))
            what = "codes (ICD)" if codes > labels.total() / 2 else "words that are no labels known here"
            self._choose("labels_column", UNUSED, f"column {name!r} holds {what}")
            self.problems.append(
                Problem(
                    f"column {name!r} holds {what}",
                    len(texts),
                    "it is not used; --label-map LABEL=KIND says what a label means",
                )
            )
            return
        if mark != auto:
            self._choose("label_separator", mark, f"it parts the labels of column {name!r}")
        if unknown:
            self._choose(
                "ignore_labels", ",".join(unknown), "nobody knows these labels; --label-map says what one means"
            )
            self._found_problem(f"unknown labels in column {name!r}", sum(unknown.values()), "they are left out")

    # What a build would do

    def _options(self) -> TableOptions:
        return TableOptions(**{**self.given, **self.options})  # type: ignore[arg-type]

    def _try(self) -> tuple[list[Item], list[Reject]]:
        """All images and all faults of a build, as far as rows tell them."""
        self.builder = TableBuilder(self._options(), self.data_dir)
        items: list[Item] = []
        rejects: list[Reject] = []
        try:
            for read in self.builder.read():
                made = cleaned(read) if isinstance(read, Item) else read
                (items if isinstance(made, Item) else rejects).append(made)  # type: ignore[arg-type]
        except UserError as error:
            self._found_problem(str(error), 1, "")
        return items, rejects + self.builder.rejects

    def _choose_rest(self, items: list[Item], rejects: list[Reject]) -> None:
        """What the build's own checks of all images say: ids that may mean the same, patients in two splits."""
        try:
            items[:] = self.builder.settled_ids(items)
        except UserError as error:
            self._choose(
                "alike_ids", "same", "some ids may mean the same patient or study; as one, they cannot be in two splits"
            )
            self._found_problem(str(error).partition(", and there")[0], 1, "joined; --alike-ids other keeps them apart")
            items[:] = TableBuilder(self._options(), self.data_dir).settled_ids(items)
        try:
            self.builder.check_patients(items)
        except UserError as error:
            self._choose("split_column", UNUSED, "patients are divided anew")
            self._found_problem(str(error).partition(";")[0], 1, "the column of splits is not used")

    def _choose_language(self, items: list[Item]) -> list[Reject]:
        """The reports in another language than most; English is tried first, as it is the default of builds."""
        failed = ""
        for language in vocabulary.languages():
            try:
                items[:], rejects, _ = without_other_languages(items, language)
            except UserError as error:
                failed = failed or str(error).partition(". What")[0]
                continue
            if language != vocabulary.ENGLISH:
                name = vocabulary.for_language(language).language_name
                self._choose("language", language, f"the reports are in {name}, as far as their words tell")
            return rejects
        self.is_foreign = True
        self._found_problem(failed, 1, "one language a table, or --language FOLDER with the words of another one")
        return []

    def _decode(self, items: Sequence[Item]) -> list[Reject]:
        """Why images cannot be read, of at most `read_images` of them."""
        rejects = []
        every = max(1, math.ceil(len(items) / max(1, self.read_images)))
        looked = items[::every] if self.read_images else []
        for item in looked:
            try:
                store.store_image(files.read_bytes(item.file))
            except (UserError, OSError) as error:
                rejects.append(Reject(item.table, item.row, item.id, str(error)))
        self.nothing_to_read = bool(looked) and len(rejects) == len(looked)
        self.looked = f"{len(looked)} of {len(items)} images were decoded"
        return rejects

    def _count(self, rejects: Sequence[Reject]) -> None:
        for kind, count in reasons_by_kind(r for r in rejects if r.consequence == LEFT_OUT):
            self._found_problem(kind, count, _remedy(kind))
        others = collections.Counter(
            r.consequence for r in rejects if r.consequence.endswith("left out") and r.consequence != LEFT_OUT
        )
        for consequence, count in sorted(others.items()):
            self._found_problem(f"cells not understood: {consequence}", count, _remedy(consequence))

    # The result

    def _result(self, columns: Columns | None, items: Sequence[Item], rejects: Sequence[Reject]) -> Inspection:
        table = self.table
        form = {True: f"encoding {table.encoding}, separator {_spoken(table.separator)}"}.get(
            bool(table.separator), table.file.suffix.lower().lstrip(".")
        )
        finder_notes = [note for each in self.builder.table_notes() for note in each] if columns is not None else []
        found = (
            [f"{len(items)} images of {len({i.row for i in items})} rows are used", *finder_notes] if columns else []
        )
        views = collections.Counter(item.view for item in items)
        on_purpose = collections.Counter(r.reason for r in rejects if r.consequence == "left out on purpose")
        found += [f"{count} left out on purpose: {reason}" for reason, count in sorted(on_purpose.items())]
        found += [self.looked] if columns is not None else []
        command: list[str] = []
        if items and not self.nothing_to_read and not self.is_foreign:
            command = ["mmclip", "data", "build", "table"]
            words = {**self.given, **self.options, "data_dir": self.data_dir}
            for option, value in words.items():
                flag = f"--{option.replace('_', '-')}"
                command += [f"{flag}={value}"] if value.startswith("-") and value != UNUSED else [flag, value]
        return Inspection(
            file=str(table.file),
            form=form,
            rows=len(table.rows) + len(table.ragged),
            notes=table.notes,
            columns=[dataclasses.replace(self._describe(name, columns), name=brief(name)) for name in table.header],
            files=_kinds_of_files(self.folder),
            found=found,
            views=dict(sorted(views.items())),
            problems=self.problems,
            choices=self.choices,
            command=command,
        )

    def _describe(self, name: str, columns: Columns | None) -> ColumnReading:
        texts = self.cells_of[name]
        filled = [text for text in texts if text]
        blank = f", {len(texts) - len(filled)} blank" if len(filled) < len(texts) else ""
        different = len(set(filled))
        roles = [role for role, column in columns.role.items() if column == name] if columns is not None else []
        if roles[:1] == ["labels"] and self.options.get("labels_column") == UNUSED:
            roles = []
        kind = prompts.kind_of(name)
        chosen = self.options.get("label_columns")
        is_label = bool(kind and not roles and filled and (chosen is None or name in chosen.split(",")))
        words = bool(filled) and all(cells.plain(text) in cells.LABEL_STATES for text in set(filled))
        if set(roles) & set(REPORT_ROLES):
            middle = int(statistics.median(map(len, filled))) if filled else 0
            return ColumnReading(name, roles[0], f"{len(filled)} texts{blank}, {middle} characters in the middle")
        if is_label or set(roles) & {"sex", "view", "split", "labels", "box kind"} or (words and different <= 3):
            content = _top(filled) + blank
        else:
            content = f"{different} different{blank}"
        if is_label:
            return ColumnReading(name, f"label {kind}", content)
        if columns is not None and name in columns.boxes:
            return ColumnReading(name, "boxes", content)
        role = ", ".join(roles) or "not used"
        if not roles and words and different <= 3 and not kind:
            content += f" -> yes and no; a finding? --label-map {shlex.quote(f'{name}=KIND')}"
        elif not roles and filled and sum(bool(_ICD.fullmatch(text)) for text in filled) > len(filled) / 2:
            content += ", codes (ICD)"
        return ColumnReading(name, role, content)


def _readable(name: str, cell: str) -> bool | None:
    try:
        return None if cells.label_state(name, cell) is None else True
    except cells.BadRow:
        return False


def _remedy(kind: str) -> str:
    return next((remedy for words, remedy in _REMEDIES.items() if words in kind), "")


def _top(texts: Sequence[str]) -> str:
    counts = collections.Counter(texts).most_common()
    words = [f"{text if len(text) <= CELL else shown(text)} {count}" for text, count in counts[:_VALUES]]
    return ", ".join(words) + (f" and {len(counts) - _VALUES} others" if len(counts) > _VALUES else "")


def _spoken(separator: str) -> str:
    return {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar"}.get(separator, repr(separator))


def _name_of(table: str, data_dir: str) -> str:
    """A name made of the table's, which no data set has yet."""
    name = re.sub(r"[^a-z0-9]+", "_", cells.plain(pathlib.Path(table).name.partition(".")[0])).strip("_")
    name = name if name[:1].isalpha() else f"data_{name}".rstrip("_")
    name = name if name != "phantom" else "my_phantom"
    taken = pathlib.Path(data_dir).expanduser()
    return next(each for n in itertools.count(1) if not (taken / (each := name if n == 1 else f"{name}_{n}")).exists())


def _kinds_of_files(folder: pathlib.Path) -> dict[str, int]:
    """How many files of each suffix there are below a folder; DICOM files without a suffix are called so."""
    from mmclip_jax.data.builders.table_images import SUFFIXES, TableImages

    counts: collections.Counter[str] = collections.Counter()
    for path in TableImages(folder).files:
        suffix = os.path.splitext(path)[1]
        if suffix.lower() not in SUFFIXES:
            suffix = "without suffix, DICOM" if dicom_headers.is_dicom_file(folder / path) else "others"
        counts[suffix] += 1
    return dict(counts.most_common())
