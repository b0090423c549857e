"""The base class of the builders of published data sets and of users' tables: from the rows of tables to records.

A builder reads its tables and yields an `Item` for each image, or a `Reject` that says why there is none. The rest is
done here: ids that may mean the same, splits by patient, images in several processes, the list of what was left out
and the limit on it, training fractions.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import math
import multiprocessing
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from mmclip_jax import spreadsheet
from mmclip_jax.data import ids, records
from mmclip_jax.data.builders import files, fractions
from mmclip_jax.data.builders.cells import BadRow, parse_age, parse_sex
from mmclip_jax.data.builders.items import (
    FRONTAL_VIEWS,
    ID_JOINED,
    LABEL_LEFT_OUT,
    LEFT_OUT,
    ON_PURPOSE,
    REJECTS_FILE,
    Item,
    Reject,
    cleaned,
    reasons_by_kind,
)
from mmclip_jax.data.builders.labels import Beside, settle_no_finding, settle_uncertain
from mmclip_jax.data.builders.making import Storing, chunked, make_chunk, private_folder
from mmclip_jax.data.builders.options import CollectionOptions
from mmclip_jax.data.builders.report_language import without_other_languages
from mmclip_jax.data.builders.tablefile import read_table
from mmclip_jax.data.schema import Example, LabelState
from mmclip_jax.errors import UserError, listed, shown
from mmclip_jax.text import prompts, recognisers, vocabulary

_ID_COLUMN = re.compile(r"(^|[_ ]|^u)[iI][dD]s?$|[a-z]I[dD]$|^(study|subject|patient)$")
_NO_FILE = "there is no such image file"


class Collection(records.RecordsBuilder):
    """A data set that is made of tables and image files.

    A subclass overrides `read`, and sets what a user needs to get the files: `licence`, `instructions` (where to apply,
    which files, how large), `Options` if it has options of its own, and `shares`.

    Attributes:
      rejects: what was left out so far, on purpose or not.
      rows: how many rows the tables have, those left out included.
      notes: what the user must know about this build, such as that patients are unknown; shown, and kept in the facts.
      index_depth: how many parts of an image's path tell it from others, see `files.FileIndex`.
      box_flags: the flags that a message about boxes may name; "" where the builder has none.
      refuses_masks: whether an image of two values is refused as a mask.
      no_finding: what "no finding" beside a disease means in this source; each builder states it.
    """

    Options: ClassVar[type[CollectionOptions]] = CollectionOptions
    licence: ClassVar[str] = ""
    instructions: ClassVar[str] = ""
    shares: Sequence[float] = (0.8, 0.1, 0.1)
    index_depth: ClassVar[int] = 1
    box_flags: ClassVar[str] = ""
    refuses_masks: ClassVar[bool] = True
    no_finding: ClassVar[Beside]

    def __init__(self, options: Any, data_dir: str | os.PathLike[str]):
        super().__init__(data_dir)
        self.options = options
        self.rejects: list[Reject] = []
        self.rows = 0
        self.notes: list[str] = []
        self._train_rows: list[fractions.Row] = []
        self._language: Mapping[str, Any] = {}

    def read(self) -> Iterator[Item | Reject]:
        """Yields an item for each image of the tables, or why a row gives none; adds to `rows`."""
        raise NotImplementedError

    def facts(self) -> Mapping[str, object]:
        """What the subclass adds to the facts."""
        return {}

    @property
    def manual_dir(self) -> pathlib.Path:
        """The folder of the downloaded files.

        Raises:
          UserError: it does not exist; the message tells how to get the files.
        """
        folder = pathlib.Path(self.options.manual_dir).expanduser()
        if not folder.is_dir():
            raise UserError(f"folder {folder} does not exist; how to get {self.name}: {self.instructions}")
        return folder

    @functools.cached_property
    def index(self) -> files.FileIndex:
        """All files below the manual directory; made when first asked for, since large sets take minutes."""
        return files.FileIndex(self.manual_dir, self.index_depth)

    def optional(self, *names: str) -> pathlib.Path | None:
        """The first of these tables, perhaps packed (.gz, .zip): in the manual directory, else anywhere below it.

        Raises:
          UserError: several different files below it have the name; the message names two.
        """
        packed = [name.removesuffix(".gz") + packing for name in names for packing in files.TABLE_PACKINGS]
        for name in packed:
            if (self.manual_dir / name).is_file():
                return self.manual_dir / name
        return next(filter(None, map(self.index.find_table, packed)), None)

    def required(self, *names: str) -> pathlib.Path:
        """As `optional`.

        Raises:
          UserError: there is none; the message tells how to get it.
        """
        found = self.optional(*names)
        if found is None:
            either = [each for name in names for each in dict.fromkeys((name, name.removesuffix(".gz")))]
            raise UserError(
                f"{self.manual_dir} has no {' or '.join(either)}; how to get {self.name}: {self.instructions}"
            )
        return found

    def table(self, file: pathlib.Path, *columns: str, count: bool = True) -> Iterator[tuple[int, dict[str, str]]]:
        """The rows of a table as (number, cells by column); rows that are not as long as the header join the rejects.

        Cells of columns of ids, by the names of the columns, are spelt as ids are stored.

        Args:
          file: CSV, perhaps packed, as `required` gives it.
          columns: those that must be there.
          count: whether its rows are what the limit on rejects is a share of (those of a side table are not).

        Raises:
          UserError: it cannot be read, or lacks a column.
        """
        with files.plain_table(file) as plain:
            try:
                read = read_table(str(plain))
            except UserError as error:
                message, flag, _ = str(error).replace(str(plain), str(file)).partition("; give its encoding")
                # Published tables are UTF-8, and there is no flag for another encoding.
                raise UserError(f"{message}, as it was published: download it again" if flag else message) from error
        missing = [name for name in columns if name not in read.header]
        if missing:
            raise UserError(f"table {file}: there is no column {missing[0]!r} among {listed(read.header)}")
        if count:
            self.rows += len(read.rows) + len(read.ragged)
        self.rejects += [Reject(file.name, number, "", reason) for number, reason in read.ragged]
        id_columns = [name for name in read.header if _ID_COLUMN.search(name)]
        for row in read.rows:
            cells = dict(zip(read.header, row.cells, strict=True))
            for name in id_columns:  # tables are joined by them
                cells[name] = ids.spelt(cells[name])
            yield row.number, cells

    def attempt(self, table: str, row: int, image: str, make: Callable[..., Item], *args: Any) -> Item | Reject:
        """What `make` returns, or the reject of the row where it raises BadRow or BadId."""
        try:
            return make(*args)
        except (BadRow, ids.BadId) as bad:
            return Reject(table, row, image, str(bad))

    def divided(self, patient: str) -> str:
        """Which of train and validation (a tenth of the patients) a patient of an official training part belongs to."""
        return split_of_patient(patient, (0.9, 0.1, 0), self.options.split_salt)

    def kinds_of(self, labels: Iterable[str], table: str, row: int, image: str) -> set[str]:
        """The kinds that label strings stand for. Unknown strings become rejects; those of unmapped.yaml are skipped.

        Where "no finding" stands beside a disease, the builder's policy holds; a label that it leaves out is listed.

        Raises:
          BadRow: the policy is to refuse such a row.
        """
        kinds = set()
        for label in labels:
            kind = prompts.kind_of(label)
            if kind is not None:
                kinds.add(kind)
            elif not prompts.is_unmapped(label):
                self.rejects.append(Reject(table, row, image, f"unknown label {shown(label)}", LABEL_LEFT_OUT))
        settled = settle_no_finding(kinds, self.no_finding)
        if settled != kinds:
            self.rejects.append(Reject(table, row, image, "no finding beside a disease", LABEL_LEFT_OUT))
        return settled

    def age(self, cell: str, table: str, row: int, image: str) -> float:
        """Years, NaN where unknown; an impossible age is listed."""
        age = parse_age(cell)
        if age is None:
            reason = f"age {shown(cell)} is not 0 to 120 years"
            self.rejects.append(Reject(table, row, image, reason, "age left out"))
        return math.nan if age is None else age

    def sex(self, cell: str, table: str, row: int, image: str) -> str:
        """M, F, or "" where unknown; a cell that says something else is listed."""
        try:
            return parse_sex(cell)
        except BadRow as bad:
            self.rejects.append(Reject(table, row, image, str(bad), "sex left out"))
            return ""

    # What records.build calls

    def total(self) -> int:
        """How many images the tables name, less those whose rows cannot be used."""
        return len(self.items)

    def examples(self, split: str) -> Iterator[Example]:
        """Yields the images of one split; those that cannot be read join the rejects."""
        items = [item for item in self.items if item.split == split]
        for made in self._make_all(items):
            if isinstance(made, Reject):
                self.rejects.append(made)
                if len(self._left_out()) > max(100, 10 * self.options.max_reject_share * self.rows):
                    self._check_rejects()  # no use in going on
                continue
            self.keep(made)
            yield made

    def keep(self, example: Example) -> None:
        """Remembers what the training fractions need to know of an example."""
        if example.split == "train":
            present = frozenset(kind for kind, state in example.labels.items() if state == LabelState.PRESENT)
            self._train_rows.append(fractions.Row(example.id, example.patient, present))

    def finish(self, directory: pathlib.Path) -> Mapping[str, object]:
        """Writes the rejects and the training fractions, and says in the facts what was read and how."""
        self._check_rejects()
        self._write_rejects(directory / REJECTS_FILE)
        (self.data_dir / self.name / REJECTS_FILE).unlink(missing_ok=True)  # of a build that was stopped
        left_out = len(self._left_out())
        on_purpose = collections.Counter(each.reason for each in self.rejects if each.consequence == ON_PURPOSE)
        joined = sum(each.consequence == ID_JOINED for each in self.rejects)
        return {
            "rows": self.rows,
            "rejects": left_out,
            "notes": self.notes,
            **self._passed_over(),
            "left_out_on_purpose": dict(sorted(on_purpose.items())),
            "cells_left_out": len(self.rejects) - left_out - on_purpose.total() - joined,
            "ids_joined": joined,
            "fractions": fractions.write(self._train_rows, directory) if self._train_rows else {},
            "options": self.described_options(),
            **({"language": self._language} if self._language else {}),
            **self.facts(),
        }

    def _passed_over(self) -> dict[str, int]:
        """How many files were no part of the data set; {} where no folder was searched."""
        if "index" not in self.__dict__:
            return {}
        return {"companions_passed_over": self.index.companions, "masks_passed_over": self.index.masks}

    def described_options(self) -> dict[str, object]:
        """The options as the facts keep them: a record of what was asked, not of this machine."""
        options = dataclasses.asdict(self.options)
        options.pop("manual_dir", None)
        if "language" in options:
            options["language"] = pathlib.Path(options["language"]).name  # of a folder its name
        del options["workers"]
        return options

    def done(self) -> None:
        """Removes the chunks that an interrupted build would have gone on from."""
        shutil.rmtree(self._chunks_dir, ignore_errors=True)

    # Items

    @functools.cached_property
    def items(self) -> list[Item]:
        """All images that can be used as far as their rows tell, each with its split."""
        items: list[Item] = []
        first: dict[str, Item] = {}
        for read in self.read():
            if isinstance(read, Item):
                read = cleaned(read)
            if isinstance(read, Reject):
                self.rejects.append(read)
            elif problem := self._unwanted(read):
                self.rejects.append(Reject(read.table, read.row, read.id, problem, ON_PURPOSE))
            elif not read.file:
                self.rejects.append(Reject(read.table, read.row, read.id, str(read.file) or _NO_FILE))
            elif (other := first.setdefault(read.id, read)) is not read:
                problem = f"the image's id is that of {other.table} row {other.row} too"
                self.rejects.append(Reject(read.table, read.row, read.id, problem))
            else:
                items.append(read)
        items = self.settled_ids(items)
        for n, item in enumerate(items):
            split = item.split or split_of_patient(item.patient, self.shares, self.options.split_salt)
            labels = settle_uncertain(item.labels, getattr(self.options, "uncertain", "keep"))
            items[n] = dataclasses.replace(item, split=split, labels=labels)
        self.check_patients(items)
        self._check_rejects()
        if hasattr(self.options, "language"):
            items, rejects, self._language = without_other_languages(items, self.options.language)
            self.rejects += rejects
        return items

    def settled_ids(self, items: list[Item]) -> list[Item]:
        """The items; ids that may mean the same are joined, kept apart or refused, as `alike_ids` says."""
        policy = getattr(self.options, "alike_ids", "same")
        if policy == "other":
            return items
        one = {id: group[0] for group in ids.alike(item.patient for item in items) for id in group}
        studies: dict[str, set[str]] = collections.defaultdict(set)
        for item in items:
            studies[one.get(item.patient, item.patient)].add(item.study)
        one_study = {
            (patient, id): group[0] for patient, each in studies.items() for group in ids.alike(each) for id in group
        }
        settled = []
        for item in items:
            patient = one.get(item.patient, item.patient)
            study = one_study.get((patient, item.study), item.study)
            if (patient, study) == (item.patient, item.study):
                settled.append(item)
                continue
            what, own, other = "study", item.study, study
            if patient != item.patient:
                what, own, other = "patient", item.patient, patient
            if policy == "refuse":
                twin = next(each for each in items if getattr(each, what) == other)
                raise UserError(
                    f"{shown(own)} ({item.table} row {item.row}) and {shown(other)} ({twin.table} row {twin.row}) may "
                    f"be the same {what}, and there may be more pairs. Say --alike-ids same or --alike-ids other"
                )
            self.rejects.append(
                Reject(item.table, item.row, item.id, f"{what} {shown(own)} joined {shown(other)}", ID_JOINED)
            )
            settled.append(dataclasses.replace(item, patient=patient, study=study))
        return settled

    def _unwanted(self, item: Item) -> str:
        """Why an image is left out on purpose; "" if it is not."""
        if getattr(self.options, "views", "all") == "frontal" and item.view not in FRONTAL_VIEWS:
            return f"view {item.view}"
        return ""

    def check_patients(self, items: Iterable[Item]) -> None:
        """Raises UserError where a patient is in two splits."""
        first: dict[str, Item] = {}
        for item in items:
            other = first.setdefault(item.patient, item)
            if other.split != item.split:
                raise UserError(
                    f"a patient is in two splits: {other.split} ({other.table} row {other.row}) and "
                    f"{item.split} ({item.table} row {item.row}); {self.split_remedy}"
                )

    split_remedy: ClassVar[str] = "correct the table"

    # Images

    @property
    def _chunks_dir(self) -> pathlib.Path:
        return self.data_dir / f".unfinished-{self.name}"

    def maker(self) -> Callable[[Sequence[Item]], list[Example | Reject]]:
        """What makes the examples of a chunk, in whatever process."""
        recogniser = getattr(self.options, "entities", recognisers.LEXICON)
        language = getattr(self.options, "language", vocabulary.ENGLISH)
        recognisers.load(recogniser, language)  # before the work: it may not be there
        private_folder(self._chunks_dir)
        storing = Storing(
            self.name,
            self.VERSION,
            self.options.shorter_side,
            self.options.encoding,
            recogniser,
            language,
            vocabulary.digest(vocabulary.for_language(language)),
            frontal=getattr(self.options, "views", "all") == "frontal",
            box_flags=self.box_flags,
            refuses_masks=self.refuses_masks,
        )
        return functools.partial(make_chunk, storing, self._chunks_dir)

    def _make_all(self, items: Sequence[Item]) -> Iterator[Example | Reject]:
        """Makes examples, `_CHUNK` of them at a time in one of the worker processes, in the order of `items`."""
        make, chunks = self.maker(), chunked(items)
        workers = self.options.workers or os.cpu_count() or 1
        if workers == 1 or len(chunks) < 2:
            for chunk in chunks:
                yield from make(chunk)
            return
        # A fresh process each: a fork of one that runs JAX may hang.
        context = multiprocessing.get_context("spawn")
        try:
            with concurrent.futures.ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context) as pool:
                for examples in records.in_order(pool, make, chunks, ahead=4 * workers):
                    yield from examples
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError(
                "a process that reads images was killed, perhaps because memory ran out. Run the same command with "
                "fewer --workers; it continues where it stopped"
            ) from error

    # Rejects

    def _left_out(self) -> list[Reject]:
        return [reject for reject in self.rejects if reject.consequence == LEFT_OUT]

    def reject_hint(self) -> str:
        """What is known of the cause and remedy of many rejects; ends with a space if not empty."""
        hint = ""
        if "index" in self.__dict__ and any(each.reason == _NO_FILE for each in self.rejects):
            if self.index.packed:
                hint += f"{self.index.packed[0]} is not read: unpack it. "
            if self.index.masks:
                hint += f"{self.index.masks} images were passed over since their folders are named as masks. "
        return hint

    def _check_rejects(self) -> None:
        """Raises UserError, and keeps the list, if too many rows cannot be used."""
        left_out = self._left_out()
        limit = self.options.max_reject_share * self.rows
        if len(left_out) <= limit or getattr(self.options, "on_bad", "fail") == "skip":
            return
        file = self.data_dir / self.name / REJECTS_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        self._write_rejects(file)
        first = min(left_out, key=lambda reject: (reject.table, reject.row))
        remedy = (
            "--on-bad skip leaves them out" if hasattr(self.options, "on_bad") else "allow more with --max-reject-share"
        )
        kinds = reasons_by_kind(left_out)
        several = "" if len(kinds) < 2 else "; in all " + ", ".join(f"{n} x {kind}" for kind, n in kinds[:10])
        raise UserError(
            f"{len(left_out)} of {self.rows} rows cannot be used, more than {100 * self.options.max_reject_share:g} %; "
            f"the first: {first.table} row {first.row}: {first.reason}{several}. All are listed in {file}. "
            f"{self.reject_hint()}"
            f"Correct the files, or {remedy}."
        )

    def _write_rejects(self, file: pathlib.Path) -> None:
        with open(file, "w", newline="", encoding="utf-8") as stream:
            writer = spreadsheet.Writer(stream)
            writer.writerow([field.name for field in dataclasses.fields(Reject)])
            for reject in sorted(self.rejects, key=lambda reject: (reject.table, reject.row, reject.reason)):
                writer.writerow(dataclasses.astuple(reject))


def split_of_patient(patient: str, shares: Sequence[float], salt: str = "") -> str:
    """The split of a patient, from nothing but the id: the same patient is in the same split in every table.

    Args:
      patient: the id as the table has it.
      shares: of patients in train, validation, test; their sum is 1.
      salt: another string gives another, independent split.
    """
    digest = hashlib.sha256(f"{salt}\0{patient}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < shares[0]:
        return "train"
    return "validation" if place < shares[0] + shares[1] or shares[2] == 0 else "test"
