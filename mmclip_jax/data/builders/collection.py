"""What the builders of published data sets and of a user's table share: from the rows of tables to records.

A builder reads its tables and yields an `Item` for each image, or a `Reject` that says why there is none. The rest is
done here: reading the images in several processes, a restart that goes on where the last one stopped, the list of what
was left out and the limit on it, splits by patient, training fractions.
"""

import collections
import concurrent.futures
import contextlib
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

import mmclip_jax
from mmclip_jax import spreadsheet
from mmclip_jax.data import dicom, ids, prompts, recognisers, records, resources, spool
from mmclip_jax.data.builders import files, fractions
from mmclip_jax.data.builders.cells import BadRow, Frame, fraction_box, parse_age, parse_sex, parse_view
from mmclip_jax.data.builders.masks import RunLengths, bounds, decode, looks_like_mask, to_png
from mmclip_jax.data.builders.report_language import without_other_languages
from mmclip_jax.data.builders.tablefile import read_table
from mmclip_jax.data.images import store_image
from mmclip_jax.data.resources import NO_FINDING
from mmclip_jax.data.schema import Example, LabelState, Mask
from mmclip_jax.errors import UserError, listed, shorten

REJECTS_FILE = "rejects.csv"
LEFT_OUT = "row left out"
ON_PURPOSE = "left out on purpose"
LABEL_LEFT_OUT = "label left out"
BETWEEN_FAULTS = " | "  # of one row
ID_JOINED = "taken for another spelling of the id"
SHOWN_BY_RANGE = "its values span black to white"

FRONTAL_VIEWS = frozenset({"PA", "AP", "AP_HORIZONTAL", ""})
"""Views that `views="frontal"` keeps; "" is a source that does not tell and is known to be frontal."""

ALIKE_POLICIES = ("refuse", "same", "other")
UNCERTAIN_POLICIES = ("keep", "ones", "zeros", "mixed", "ignore")
_MIXED_ONES = frozenset({"atelectasis", "edema", "pleural_effusion"})

_CHUNK = 64
_CHUNK_SUFFIX = ".chunk"
_ID_COLUMN = re.compile(r"(^|[_ ])[iI][dD]s?$|[a-z]I[dD]$|^(study|subject|patient)$")
_PARTICULAR = re.compile(r"'(?:[^'\\]|\\.)*'…?|\"[^\"]*\"…?|(?<![\w.])-?\d+(?:\.\d+)?(?!\w)")
_NO_FILE = "there is no such image file"


@dataclasses.dataclass(frozen=True)
class Reject:
    """A row that could not be used (or a cell: see `consequence`). `row` counts as a spreadsheet does: header is 1."""

    table: str
    row: int
    image: str
    reason: str
    consequence: str = LEFT_OUT

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", shorten(self.reason))


@dataclasses.dataclass(frozen=True)
class Item:
    """An image that has passed every check that does not need its pixels.

    table, row: where a person finds it; the first row that names it, where there are several.
    file: as `files.read_bytes` takes it, or "" or a `files.NotFound` if it was not found.
    scanner: the manufacturer of the machine, or "".
    from_header: whether a DICOM file's header fills in view, sex and age where they are unknown.
    split: "" has the patient's id decide.
    boxes: (kind, four numbers in units of `frame` as `box_format` says).
    masks: regions; several of one kind are one mask, and each gives a box.
    value_range: what is white in a file of more than 8 bits, see `images.store_image`.
    """

    table: str
    row: int
    file: str
    id: str
    patient: str
    study: str
    split: str = ""
    view: str = ""
    sex: str = ""
    age: float = math.nan
    scanner: str = ""
    from_header: bool = False
    findings: str = ""
    impression: str = ""
    labels: Mapping[str, LabelState] = dataclasses.field(default_factory=dict)
    boxes: tuple[tuple[str, tuple[float, float, float, float]], ...] = ()
    frame: Frame = "pixels"
    frame_was_told: bool = False
    box_format: str = "xywh"
    masks: tuple[RunLengths, ...] = ()
    value_range: str | int = "auto"


def option(default: Any, help: str, choices: Sequence[str] = ()) -> Any:
    """A field of an options class; the command line makes a flag of it."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": tuple(choices)})


def alike_option(default: str) -> Any:
    """What ids mean that differ by padding, case or compatibility forms alone; see `ids.alike`."""
    return option(
        default,
        "patients (and a patient's studies) whose ids differ only by zeros in front, case or full-width letters: "
        "refuse to build, same: they are one, other: they are several",
        ALIKE_POLICIES,
    )


def entities_option() -> Any:
    """Which recogniser finds the entities; a field of the options of collections that have reports."""
    return option(recognisers.LEXICON, f"who finds the entities of reports: {', '.join(recognisers.NAMES)}")


def language_option() -> Any:
    """The language of the reports; a field of the options of collections that have reports."""
    return option(
        resources.ENGLISH,
        f"language of the reports: {', '.join(resources.languages())}, or a folder with the words of another one "
        f"({resources.LEXICON}, {resources.NEGATION}, {resources.WORDS})",
    )


@dataclasses.dataclass(frozen=True)
class CollectionOptions:
    """What the build of a published data set can be told."""

    manual_dir: str = dataclasses.field(metadata={"help": "folder of the downloaded files"})
    views: str = option("frontal", "which views to keep", ("frontal", "all"))
    uncertain: str = option(
        "keep",
        "what becomes of uncertain labels: keep them as such; ones: present; zeros: absent; mixed: present for "
        "atelectasis, edema and pleural effusion, else absent; ignore: unknown",
        UNCERTAIN_POLICIES,
    )
    shorter_side: int = option(256, "pixels of the shorter side of stored images; smaller images stay as they are")
    encoding: str = option("jpeg", "how changed images are stored: jpeg (quality 95) or png", ("jpeg", "png"))
    on_bad: str = option(
        "fail", "when more than --max-reject-share of the rows cannot be used: fail, or skip them", ("fail", "skip")
    )
    max_reject_share: float = option(0.001, "the share of rows that may be unusable without the build failing")
    split_salt: str = option("", "another string, another split by patient (where there is no official one)")
    alike_ids: str = alike_option("same")
    workers: int = option(0, "processes that read images; 0: one a core")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            choices = field.metadata.get("choices")
            if choices and getattr(self, field.name) not in choices:
                name = field.name.replace("_", " ")
                raise UserError(f"{name} {getattr(self, field.name)!r} is not one of {', '.join(choices)}")
        check_storing(self.shorter_side, self.max_reject_share, self.workers)


@dataclasses.dataclass(frozen=True)
class ReportOptions(CollectionOptions):
    """What the build of a published data set with reports can be told."""

    entities: str = entities_option()
    language: str = language_option()


def check_storing(shorter_side: int, max_reject_share: float, workers: int) -> None:
    """Raises UserError where an option that all builders have is out of its range."""
    if shorter_side < 16:
        raise UserError(f"shorter side {shorter_side}: at least 16 pixels")
    if not 0 <= max_reject_share <= 1:
        raise UserError(f"max reject share {max_reject_share} is not between 0 and 1")
    if workers < 0:
        raise UserError(f"workers {workers}: 0 for one a core, or their number")


class Collection(records.RecordsBuilder):
    """A data set that is made of tables and image files.

    A subclass overrides `read`, and sets what a user needs to get the files: `licence`, `instructions` (where to apply,
    which files, how large), `Options` if it has options of its own, and `shares`.

    Attributes:
      rejects: what was left out so far, on purpose or not.
      rows: how many rows the tables have, those left out included.
      notes: what a user must know of this build, such as that patients are unknown; told, and kept in the facts.
      index_depth: how many parts of an image's path tell it from others, see `files.FileIndex`.
      box_flags: the flags that a message about boxes may name; "" where the builder has none.
      refuses_masks: whether an image of two values is refused as a mask.
    """

    Options: ClassVar[type[CollectionOptions]] = CollectionOptions
    licence: ClassVar[str] = ""
    instructions: ClassVar[str] = ""
    shares: Sequence[float] = (0.8, 0.1, 0.1)
    index_depth: ClassVar[int] = 1
    box_flags: ClassVar[str] = ""
    refuses_masks: ClassVar[bool] = True

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

    def facts(self) -> Mapping[str, Any]:
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
            shown = [each for name in names for each in dict.fromkeys((name, name.removesuffix(".gz")))]
            raise UserError(
                f"{self.manual_dir} has no {' or '.join(shown)}; how to get {self.name}: {self.instructions}"
            )
        return found

    def table(self, file: pathlib.Path, *columns: str, count: bool = True) -> Iterator[tuple[int, dict[str, str]]]:
        """The rows of a table as (number, cells by column); rows that are not as long as the header join the rejects.

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
                with contextlib.suppress(ids.BadId):
                    cells[name] = ids.clean_id(cells[name])
            yield row.number, cells

    @staticmethod
    def key(cell: str) -> str:
        """An id by which tables are joined, in the spelling that is stored; as it is where that cannot be told."""
        try:
            return ids.clean_id(cell)
        except ids.BadId:
            return cell

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
        """The kinds that label strings stand for. Strings that nobody knows are listed; unmapped ones are passed over.

        Where "no finding" stands beside a disease, the disease is believed, and the other label is listed.
        """
        kinds = set()
        for label in labels:
            kind = prompts.kind_of(label)
            if kind is not None:
                kinds.add(kind)
            elif not prompts.is_unmapped(label):
                self.rejects.append(Reject(table, row, image, f"unknown label {ids.shown(label)}", LABEL_LEFT_OUT))
        if prompts.beside_no_finding(kinds):
            kinds.remove(NO_FINDING)
            self.rejects.append(Reject(table, row, image, "no finding beside a disease", LABEL_LEFT_OUT))
        return kinds

    def age(self, cell: str, table: str, row: int, image: str) -> float:
        """Years, NaN where unknown; an impossible age is listed."""
        age = parse_age(cell)
        if age is None:
            reason = f"age {ids.shown(cell)} is not 0 to 120 years"
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

    def finish(self, directory: pathlib.Path) -> Mapping[str, Any]:
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

    def described_options(self) -> dict[str, Any]:
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
        """The items, with ids that may be one made one, or kept apart, or refused, as `alike_ids` says."""
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
                    f"{what} {ids.shown(own)} ({item.table} row {item.row}) and {ids.shown(other)} ({twin.table} row "
                    f"{twin.row}) may be one, and there may be more such pairs: --alike-ids same if they are, "
                    f"--alike-ids other if not"
                )
            self.rejects.append(
                Reject(item.table, item.row, item.id, f"{what} {ids.shown(own)} joined {ids.shown(other)}", ID_JOINED)
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
        language = getattr(self.options, "language", resources.ENGLISH)
        recognisers.load(recogniser, language)  # before the work: it may not be there
        _private_folder(self._chunks_dir)
        storing = Storing(
            self.name,
            self.VERSION,
            self.options.shorter_side,
            self.options.encoding,
            recogniser,
            language,
            resources.digest(resources.for_language(language)),
            frontal=getattr(self.options, "views", "all") == "frontal",
            box_flags=self.box_flags,
            refuses_masks=self.refuses_masks,
        )
        return functools.partial(_make_chunk, storing, self._chunks_dir)

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
                "a process that reads images was killed, perhaps for want of memory; run the same command again with "
                "fewer --workers: it goes on where it stopped"
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


def reasons_by_kind(rejects: Iterable[Reject]) -> list[tuple[str, int]]:
    """The reasons without what differs from row to row, and how many rows have each; the most frequent first.

    A row with several faults counts for each.
    """
    kinds: collections.Counter[str] = collections.Counter()
    for reject in rejects:
        for reason in reject.reason.split(BETWEEN_FAULTS):
            kinds[_PARTICULAR.sub("…", reason)] += 1
    return kinds.most_common()


def cleaned(item: Item) -> Item | Reject:
    """The item with ids in the spelling that is stored, or why they cannot be trusted."""
    own_study = item.study == item.id  # a study of its own
    try:
        id, patient = ids.clean_id(item.id), ids.clean_id(item.patient)
        study = id if own_study else ids.clean_id(item.study)
    except ids.BadId as bad:
        return Reject(item.table, item.row, item.id, str(bad))
    for name, value in (("image", id), ("patient", patient), ("study", study)):
        if not value:
            return Reject(item.table, item.row, item.id, f"no {name} is named")
    return dataclasses.replace(item, id=id, patient=patient, study=study)


def chunked(items: Sequence[Item]) -> list[Sequence[Item]]:
    """The items in pieces that one process makes at a time."""
    return [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]


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


def settle_uncertain(labels: Mapping[str, LabelState], policy: str) -> dict[str, LabelState]:
    """Labels with the uncertain ones made present, absent or unknown; `policy` is one of `UNCERTAIN_POLICIES`.

    "mixed" is the common policy for CheXpert: present for atelectasis, edema and effusion, absent for cardiomegaly and
    consolidation (and all others).
    """
    settled: dict[str, LabelState] = {}
    for kind, state in labels.items():
        if state != LabelState.UNCERTAIN or policy == "keep":
            settled[kind] = state
        elif policy == "ones" or (policy == "mixed" and kind in _MIXED_ONES):
            settled[kind] = LabelState.PRESENT
        elif policy in ("zeros", "mixed"):
            settled[kind] = LabelState.ABSENT
    return settled


# ---------------------------------------------------------------------------------------------------------------------
# Making examples, in worker processes


@dataclasses.dataclass(frozen=True)
class Storing:
    """What, beside the items themselves, determines the examples that are made of them."""

    source: str
    version: str
    shorter_side: int
    encoding: str
    entities: str = recognisers.LEXICON
    language: str = resources.ENGLISH
    words: str = ""
    frontal: bool = False
    box_flags: str = ""
    refuses_masks: bool = True
    package: str = mmclip_jax.__version__


def _make_chunk(storing: Storing, directory: pathlib.Path, items: Sequence[Item]) -> list[Example | Reject]:
    """Makes a chunk of examples, or takes it from an earlier run that made it of the same rows and files.

    A chunk is written whole or not at all. One with a reject is not kept: the file may be mended by the next run.
    """
    stamps = [files.stamp(item.file) for item in items]
    digest = hashlib.sha256(repr((storing, items, stamps)).encode()).hexdigest()
    file = directory / f"{digest}{_CHUNK_SUFFIX}"
    if (kept := _read_chunk(file)) is not None:
        return kept
    made = [each for item in items for each in make_example(item, storing)]
    examples = [(n, each) for n, each in enumerate(made) if isinstance(each, Example) and each.text]
    recognised = recognisers.load(storing.entities, storing.language).recognise([each.text for _, each in examples])
    for (n, example), entities in zip(examples, recognised, strict=True):
        made[n] = dataclasses.replace(example, entities=tuple(entities))
    if not any(isinstance(each, Reject) and each.consequence == LEFT_OUT for each in made):
        unfinished = file.with_suffix(f".{os.getpid()}")
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            for each in made:
                if isinstance(each, Reject):
                    spool.write(stream, {"reject": dataclasses.astuple(each)}, [])
                else:
                    spool.write(stream, *spool.example_parts(each))
        os.replace(unfinished, file)
    return made


def _private_folder(folder: pathlib.Path) -> None:
    """Makes the folder of chunks, for its owner alone. What killed builds of other versions left goes."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    for left in folder.iterdir():
        process = left.suffix[1:]
        if left.suffix == _CHUNK_SUFFIX or (process.isdecimal() and pathlib.Path(f"/proc/{process}").exists()):
            continue
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink(missing_ok=True)


def _read_chunk(file: pathlib.Path) -> list[Example | Reject] | None:
    """What an earlier run made; None if there is nothing, or it is damaged."""
    try:
        with open(file, "rb") as stream:
            return [
                Reject(*values["reject"]) if "reject" in values else spool.example_of(values, pictures)
                for values, pictures in spool.read(stream)
            ]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, LookupError):
        return None


def make_example(item: Item, storing: Storing) -> Iterator[Example | Reject]:
    """Yields the example of one image, or why there is none; before it, what its file says in vain of its display.

    Entities are left to the recogniser, which takes many reports at once.
    """
    try:
        data = files.read_bytes(item.file)
        stored = store_image(
            data, shorter_side=storing.shorter_side, value_range=item.value_range, encoding=storing.encoding
        )
        if storing.refuses_masks and looks_like_mask(stored.pixels):
            raise BadRow("the image has two values only: it is a mask, not a radiograph")
        size = (float(stored.original_width), float(stored.original_height))
        try:
            frame = _frame_of(item, size, dicom.is_dicom(data))
            boxes = [fraction_box(kind, numbers, frame, item.box_format) for kind, numbers in item.boxes]
        except BadRow as bad:
            raise BadRow(f"{bad}; see {storing.box_flags}" if storing.box_flags else str(bad)) from None
        regions: dict[str, Any] = {}
        for runs in item.masks:
            _check_shape((float(runs.width), float(runs.height)), size, "the mask")
            inside = decode(runs)
            boxes.append(fraction_box(runs.kind, bounds(inside), (float(runs.width), float(runs.height)), "xywh"))
            regions[runs.kind] = regions[runs.kind] | inside if runs.kind in regions else inside
    except (BadRow, UserError, OSError) as error:
        yield Reject(item.table, item.row, item.id, str(error))
        return
    if item.from_header and dicom.is_dicom(data):
        item = _with_header(item, data)
        if storing.frontal and item.view not in FRONTAL_VIEWS:
            yield Reject(item.table, item.row, item.id, f"view {item.view}", ON_PURPOSE)
            return
    if stored.note:
        yield Reject(item.table, item.row, item.id, stored.note, SHOWN_BY_RANGE)
    yield records.finish_example(
        id=item.id,
        source=storing.source,
        split=item.split,
        patient=item.patient,
        study=item.study,
        image=stored.image,
        pixels=stored.pixels,
        original_size=(stored.original_height, stored.original_width),
        original_min=stored.original_min,
        original_max=stored.original_max,
        findings=item.findings,
        impression=item.impression,
        entities=(),
        labels=item.labels,
        boxes=boxes,
        masks=[Mask(kind, to_png(inside, *stored.pixels.shape)) for kind, inside in sorted(regions.items())],
        view=item.view,
        sex=item.sex,
        age=item.age,
        scanner=item.scanner,
    )


def _with_header(item: Item, data: bytes) -> Item:
    """The item with view, sex and age of its DICOM header where tables tell none; what cannot be read is unknown."""
    try:
        header = dicom.read_header(data)
        view, sex, age = (str(header.get(name) or "") for name in ("ViewPosition", "PatientSex", "PatientAge"))
    except Exception:  # pydicom reads values when they are asked for, and raises whatever a damaged one leads to
        return item
    years = None if age.strip() in ("000Y", "0") else parse_age(age.strip())  # what is written where nothing is known
    try:
        sex = parse_sex(sex.strip())
    except BadRow:
        sex = ""
    return dataclasses.replace(
        item,
        view=item.view or parse_view(view),
        sex=item.sex or sex,
        age=(math.nan if years is None else years) if math.isnan(item.age) else item.age,
    )


RESIZED = (
    "the boxes are in pixels of the DICOM file, and this image is another file that may have been resized: the size of "
    "the original must be told"
)


def _frame_of(item: Item, size: tuple[float, float], is_dicom: bool) -> tuple[float, float]:
    """(width, height) that box numbers are divided by; `size` is the image file's."""
    frame = item.frame
    if frame == "dicom" and item.boxes and not is_dicom:
        raise BadRow(RESIZED)
    if frame == "fraction":
        return 1.0, 1.0
    if isinstance(frame, str):
        return size
    if item.boxes and not item.frame_was_told:
        _check_shape(frame, size, "boxes")
    return frame


def _check_shape(frame: tuple[float, float], size: tuple[float, float], what: str) -> None:
    """Raises BadRow where the frame of boxes or masks and the image are not of one shape."""
    if abs(frame[0] / frame[1] * size[1] / size[0] - 1) > 0.01:
        raise BadRow(
            f"{what} in a frame of {frame[0]:g} x {frame[1]:g}, but the image has {size[0]:g} x {size[1]:g} pixels"
        )
