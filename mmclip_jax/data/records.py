"""Writing examples to disk and reading them back.

A builder yields `Example`s. `build` runs it once, checks what it yields, and lets TensorFlow Datasets write the
examples as ArrayRecord files, one TFDS split for each split and part ("train_paired", "train_unpaired", ...; empty ones
are left out), with `facts.json` beside them. The result is an ordinary TFDS directory:
`tfds.builder_from_directory(path).as_data_source("train_paired", ...)` opens it.

Reading needs neither TFDS nor TensorFlow: `Records` decodes the `tf.train.Example` messages with protobuf alone, so
that a training machine can do without them.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import io
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from etils import epath

from mmclip_jax import files
from mmclip_jax.data import schema
from mmclip_jax.data import unfinished as unfinished_lib
from mmclip_jax.data.images.stored import open_stored
from mmclip_jax.data.schema import PARTS, SPLITS, Box, Example, LabelState, Mask
from mmclip_jax.errors import UserError
from mmclip_jax.text.schema import Entity

FACTS_FILE = "facts.json"
_LOCK_FILE = "lock"
_INFO_FILE = "dataset_info.json"

_In = TypeVar("_In")
_Out = TypeVar("_Out")


# ---------------------------------------------------------------------------------------------------------------------
# Building


class RecordsBuilder:
    """What a data set's builder gives: a name, a version and its examples, split by split.

    A subclass sets `name` (snake_case: the directory's name) and, if the meaning of its records changes, `VERSION`, and
    overrides `examples`. `recipe` may return the options that determine the result; see `build`.
    """

    name: str = ""
    VERSION: str = "1.0.0"
    description: str = ""
    citation: str = ""

    def __init__(self, data_dir: str | os.PathLike[str]):
        self.data_dir = pathlib.Path(data_dir).expanduser()

    @property
    def path(self) -> pathlib.Path:
        """The version directory that `build` writes: DATA_DIR/name/version."""
        return self.data_dir / self.name / self.VERSION

    def examples(self, split: str) -> Iterator[Example]:
        """Yields the examples of `split`, paired and unpaired in any order; the order does not matter to the result."""
        raise NotImplementedError

    def total(self) -> int | None:
        """How many examples all splits will yield, where known beforehand (only shown as progress)."""
        return None

    def recipe(self) -> Mapping[str, Any] | None:
        """Everything that determines the result, as JSON; None if something outside (a user's files) does too."""
        return None

    def finish(self, directory: pathlib.Path) -> Mapping[str, Any]:
        """Called once after the last example: may refuse the whole (raise), or write files into `directory`.

        What it returns is added to the facts.
        """
        return {}

    def done(self) -> None:
        """Called once the data set is complete and in its place: what was kept for a restart can go."""


def build(
    builder: RecordsBuilder, *, overwrite: bool = False, progress: bool = False, make: "Make | None" = None
) -> pathlib.Path:
    """Writes a data set and returns its version directory. The result depends on the builder's examples alone.

    If the directory exists already: with `overwrite` it is replaced once the new one is complete; else, if the builder
    has a `recipe` and the existing directory was made by the same one, it is returned as it is.

    Args:
      builder: what to build.
      overwrite: see above.
      progress: whether to show bars.
      make: how the examples become files; default: in this process. `builders.beam` has another way.

    Raises:
      UserError: the directory exists (and none of the above holds), there are no examples, two examples share an id, or
        a patient is in two splits; the name of a folder cannot be read back later (`files.check_name`).
    """
    path = builder.path
    files.check_name(path)
    recipe = builder.recipe()
    recipe_json = None if recipe is None else json.loads(json.dumps(recipe, sort_keys=True))
    if path.exists() and not overwrite:
        if recipe_json is not None and _recipe_of(path) == recipe_json:
            return path
        raise UserError(f"{path} exists already: choose another name or directory, or replace it with --overwrite")
    builder.data_dir.mkdir(parents=True, exist_ok=True)
    with _scratch_folder(builder) as scratch:
        extra = scratch / "extra"
        extra.mkdir()
        written, facts = (make or _make)(builder, scratch, extra, progress)
        facts |= {"name": builder.name, "version": builder.VERSION, "recipe": recipe_json}
        for file in extra.iterdir():
            shutil.move(file, written / file.name)
        text = json.dumps(facts | {_DIGEST: _digest_of(facts)}, indent=1, sort_keys=True) + "\n"
        (written / FACTS_FILE).write_text(text, encoding="utf-8")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            os.replace(path, scratch / "replaced")
        os.replace(written, path)
    builder.done()
    return path


@contextlib.contextmanager
def _scratch_folder(builder: RecordsBuilder) -> Iterator[pathlib.Path]:
    """A folder for this build alone, which only its owner may read; those that killed builds left are removed.

    A living build holds a lock in its folder, which ends with its process.
    """
    prefix = f".building-{builder.name}-"
    for left in builder.data_dir.iterdir():
        if left.name.startswith(prefix) and not left.is_symlink():
            with contextlib.suppress(OSError), open(left / _LOCK_FILE, "ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=builder.data_dir) as name:
        folder = pathlib.Path(name)
        with open(folder / _LOCK_FILE, "ab") as lock:
            with contextlib.suppress(OSError):  # a file system without locks: nobody can tell, nothing is removed
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder


def _recipe_of(directory: pathlib.Path) -> Any:
    file = directory / FACTS_FILE
    return files.read_json(file, "replace the data set with --overwrite").get("recipe") if file.exists() else None


_COPY_AGAIN = "copy the data set again, or build it again"
_FACTS = ("name", "version", "examples", "fingerprint", "splits", "sources")
_DIGEST = "digest"  # of all other facts: a flipped bit would be another number


def _digest_of(facts: Mapping[str, Any]) -> str:
    stored = json.loads(json.dumps({name: value for name, value in facts.items() if name != _DIGEST}))
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()


Make = Callable[[RecordsBuilder, pathlib.Path, pathlib.Path, bool], tuple[pathlib.Path, dict[str, Any]]]
"""Takes a builder, a scratch folder, one for the builder's own files, and whether to show bars; gives the version
directory that it wrote in the scratch folder, and the facts."""


def _make(
    builder: RecordsBuilder, scratch: pathlib.Path, extra: pathlib.Path, progress: bool
) -> tuple[pathlib.Path, dict[str, Any]]:
    files, census = _spool(builder, scratch / "spool", progress)
    facts = {**census.facts(), **builder.finish(extra)}
    if not files:
        raise UserError(f"{builder.name}: the builder gave no examples, nothing was written")
    with progress_bar(f"writing {builder.name}", lambda: facts["examples"], progress) as advance:
        return _write_with_tfds(builder, files, scratch / "out", advance), facts


def _spool(
    builder: RecordsBuilder, directory: pathlib.Path, progress: bool
) -> tuple[dict[str, pathlib.Path], "Census"]:
    """Runs the builder once; examples go to one temporary file per TFDS split.

    TFDS wants to know its splits, and that none is empty, before the first example is made.
    """
    directory.mkdir()
    census = Census(builder.name)
    files: dict[str, pathlib.Path] = {}
    with contextlib.ExitStack() as stack:
        streams: dict[str, Any] = {}
        advance = stack.enter_context(progress_bar(f"reading {builder.name}", builder.total, progress))
        for split in SPLITS:
            for example in builder.examples(split):
                census.add(example)
                if example.split != split:
                    raise ValueError(f"{example.id}: examples({split!r}) gave an example of split {example.split!r}")
                name = f"{split}_{example.part}"
                if name not in streams:
                    files[name] = directory / f"{name}.spool"
                    streams[name] = stack.enter_context(open(files[name], "wb"))
                unfinished_lib.write(streams[name], *unfinished_lib.example_parts(example))
                advance()
    return files, census


class Census:
    """Checks each example of a data set, and that ids are unique and patients in one split; counts its facts."""

    def __init__(self, name: str):
        self._name = name
        self._counter = FactsCounter()
        self._seen: set[bytes] = set()
        self._split_of: dict[tuple[str, str], str] = {}

    def add(self, example: Example) -> None:
        """Takes one more example.

        Raises:
          ValueError: it breaks the promises of the schema.
          UserError: its id has been seen, or its patient is in another split.
        """
        check_example(example)
        key = hashlib.blake2b(example.id.encode(), digest_size=16).digest()
        if key in self._seen:
            raise UserError(
                f"{self._name}: example {len(self._seen) + 1} has the id of an earlier one; ids must be unique"
            )
        self._seen.add(key)
        other = self._split_of.setdefault((example.source, example.patient), example.split)
        if other != example.split:
            raise UserError(
                f"{self._name}: the patient of example {len(self._seen)} is in two splits, {other} and "
                f"{example.split}; split by patient"
            )
        self._counter.add(example)

    def facts(self) -> dict[str, Any]:
        """The facts so far, see `dataset_facts`."""
        return self._counter.result()


def _read_spool(file: pathlib.Path) -> Iterator[Example]:
    with open(file, "rb") as stream:
        for values, pictures in unfinished_lib.read(stream):
            yield unfinished_lib.example_of(values, pictures)


@contextlib.contextmanager
def progress_bar(what: str, total: Callable[[], int | None], shown: bool) -> Iterator[Callable[[], object]]:
    """Gives a function to call at each example; `total` is not asked unless the bar is shown."""
    if not shown:
        yield lambda: None
        return
    import tqdm

    with tqdm.tqdm(total=total(), desc=what, unit=" images", file=sys.stderr, mininterval=0.5) as bar:
        yield bar.update


def _write_with_tfds(
    builder: RecordsBuilder, files: Mapping[str, pathlib.Path], data_dir: pathlib.Path, advance: Callable[[], object]
) -> pathlib.Path:
    """Has TFDS write the spooled examples under `data_dir`; returns the version directory. Calls `advance` for each."""

    def generate(file: pathlib.Path) -> Iterator[tuple[str, Any]]:
        for example in _read_spool(file):
            yield example.id, schema.to_features(example)
            advance()

    return write_splits(builder, {name: generate(file) for name, file in sorted(files.items())}, data_dir)


def write_splits(
    builder: RecordsBuilder, splits: Mapping[str, Any], data_dir: pathlib.Path, download_config: Any = None
) -> pathlib.Path:
    """Has TFDS write a data set under `data_dir`; returns the version directory.

    Args:
      builder: gives the name, the version and the description.
      splits: for each TFDS split an iterator of (id, features of `schema.to_features`), or a Beam transform to such.
      data_dir: where the directory NAME/VERSION goes.
      download_config: a `tfds.download.DownloadConfig`, which tells Beam's options.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import writer as tfds_writer

    class CanonicalWriter(tfds_writer.ExampleWriter):  # type: ignore[misc]
        """Puts the fields of every record in one order: protobuf's own is another in each process."""

        def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> Any:
            return super().write(path, ((key, in_one_order(record)) for key, record in examples))

    class SplitsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[misc, call-arg]
        name = builder.name
        code_path = None  # there is no package of checksums or citations beside this class for TFDS to look for
        VERSION = tfds.core.Version(builder.VERSION)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                features=schema.features(),
                description=builder.description or None,
                citation=builder.citation or None,
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return dict(splits)

        def _generate_examples(self) -> Any:
            raise NotImplementedError("the splits come with their examples")

        def _example_writer(self) -> Any:
            return CanonicalWriter(file_format=self.info.file_format)

    tfds_builder = SplitsBuilder(data_dir=str(data_dir), file_format="array_record")
    # TFDS announces a download and draws bars that say "shuffling"; ours is the progress a user needs.
    was_shown = tfds.core.utils.tqdm_utils._active
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            tfds_builder.download_and_prepare(download_dir=str(data_dir / "downloads"), download_config=download_config)
    finally:
        if was_shown:
            tfds.enable_progress_bar()
    return pathlib.Path(tfds_builder.data_path)


def in_one_order(record: bytes) -> bytes:
    """A serialised example with its fields in an order that does not depend on the process."""
    return _example_message().FromString(record).SerializeToString(deterministic=True)


def check_example(example: Example) -> None:
    """Raises ValueError, with the example's id, where an example breaks the promises of the schema."""

    def require(holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(f"example {example.id!r}: {what}")

    require(bool(example.id), "the id is empty")
    require(bool(example.source), "the source is empty")
    require(bool(example.patient) and bool(example.study), "patient or study is empty")
    require(example.split in SPLITS, f"split {example.split!r} is not one of {', '.join(SPLITS)}")
    require(example.image[:8] == b"\x89PNG\r\n\x1a\n" or example.image[:2] == b"\xff\xd8", "image is not PNG or JPEG")
    require(len(example.pixels_sha256) == 64, "pixels_sha256 is missing (use finish_example)")
    require(example.original_height > 0 and example.original_width > 0, "the original size is missing")
    require(example.sex in ("M", "F", ""), f"sex {example.sex!r} is not M, F or empty")
    text = example.text
    end = 0
    for entity in example.entities:
        require(end <= entity.start < entity.end, f"entity {entity} overlaps or is not in order")
        require(text[entity.start : entity.end] == entity.text, f"entity {entity} does not match the text")
        end = entity.end
    for mask in example.masks:
        require(mask.image[:8] == b"\x89PNG\r\n\x1a\n", f"the mask of {mask.kind} is not PNG")
    for box in example.boxes:
        require(0 <= box.x_min < box.x_max <= 1 and 0 <= box.y_min < box.y_max <= 1, f"{box} is not within 0..1")


def finish_example(
    *,
    id: str,
    source: str,
    split: str,
    patient: str,
    study: str,
    image: bytes | None = None,
    pixels: np.ndarray | None = None,
    original_size: tuple[int, int] | None = None,
    findings: str = "",
    impression: str = "",
    entities: Sequence[Entity] | None = None,
    labels: Mapping[str, LabelState] | None = None,
    boxes: Sequence[Box] = (),
    masks: Sequence[Mask] = (),
    original_min: float | None = None,
    original_max: float | None = None,
    view: str = "",
    sex: str = "",
    age: float = float("nan"),
    scanner: str = "",
    laterality: str = "",
) -> Example:
    """An Example with what can be derived filled in: pixel digest, original size, the report's entities.

    Args:
      id: unique in the data set.
      source: the data set's name, which tells hospitals apart.
      split: "train", "validation" or "test".
      patient: all images of a patient are in one split.
      study: images of one study share their report.
      image: the encoded file to store, 8-bit grey PNG or JPEG; or else
      pixels: uint8 [H, W], stored as PNG; given together with `image`, they are taken to be its decoded pixels.
      original_size: (height, width) of the file that the image was made from; default: those of the stored image.
      findings: section of the report; both sections "" make the image unpaired.
      impression: section of the report.
      entities: default: found in the report by `entities.find_entities`.
      labels: kind -> state; kinds that are left out are unknown.
      boxes: lesions, as fractions of the image.
      masks: lesions, as PNG files of the stored image's size.
      original_min: the least value in that file; default: that of the stored image.
      original_max: the greatest, likewise.
      view: e.g. "PA", or "".
      sex: "M", "F" or "".
      age: years, or NaN.
      scanner: the manufacturer of the machine, or "".
      laterality: "L", "R" or "B", or "".

    Raises:
      ValueError: neither image nor pixels, or not 8-bit grey.
    """
    from PIL import Image

    if pixels is None:
        if image is None:
            raise ValueError(f"example {id!r}: neither image nor pixels given")
        with open_stored(image) as opened:
            mode, pixels = f"{opened.format} {opened.mode}", np.asarray(opened)
        if not mode.endswith(" L"):
            raise ValueError(f"example {id!r}: stored images are 8-bit grey PNG or JPEG, not {mode}")
    if pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise ValueError(f"example {id!r}: pixels are uint8 [H, W], not {pixels.dtype} {pixels.shape}")
    if image is None:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        image = stream.getvalue()
    if entities is None:
        from mmclip_jax.text.entities import find_entities

        text = schema.report_text(findings, impression)
        entities = find_entities(text) if text else ()
    height, width = original_size or pixels.shape
    return Example(
        id=id,
        image=image,
        source=source,
        split=split,
        patient=patient,
        study=study,
        view=view,
        sex=sex,
        age=float(age),
        scanner=scanner,
        laterality=laterality,
        findings=findings.strip(),
        impression=impression.strip(),
        entities=tuple(entities),
        labels=dict(labels or {}),
        boxes=tuple(boxes),
        masks=tuple(masks),
        pixels_sha256=schema.pixels_sha256(pixels),
        original_height=int(height),
        original_width=int(width),
        original_min=float(pixels.min()) if original_min is None else float(original_min),
        original_max=float(pixels.max()) if original_max is None else float(original_max),
    )


def map_in_order(function: Callable[[_In], _Out], items: Iterable[_In], threads: int | None = None) -> Iterator[_Out]:
    """`map(function, items)` on several threads, results in the order of `items`, few of them in memory at once.

    Decoding, resizing and encoding images releases the interpreter's lock, so threads are enough.
    """
    threads = threads or os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        yield from in_order(pool, function, items, ahead=4 * threads)


def in_order(
    pool: concurrent.futures.Executor, function: Callable[[_In], _Out], items: Iterable[_In], ahead: int
) -> Iterator[_Out]:
    """`map(function, items)` in a pool, results in the order of `items`, with at most `ahead` items under way."""
    waiting: collections.deque[concurrent.futures.Future[_Out]] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


# ---------------------------------------------------------------------------------------------------------------------
# Facts


class FactsCounter:
    """Counts over examples what `facts.json` says of a data set."""

    def __init__(self) -> None:
        self._parts: dict[str, _PartCounter] = collections.defaultdict(_PartCounter)
        self._patients: set[tuple[str, str]] = set()
        self._studies: set[tuple[str, str]] = set()
        self._digests: list[bytes] = []

    def add(self, example: Example) -> None:
        """Counts one more example."""
        self._parts[f"{example.split}_{example.part}"].add(example)
        self._patients.add((example.source, example.patient))
        self._studies.add((example.source, example.study))
        self._digests.append(_content_digest(example))

    def result(self) -> dict[str, Any]:
        """The facts, see `dataset_facts`."""
        order = [f"{split}_{part}" for split in SPLITS for part in PARTS]
        splits = {name: self._parts[name].result() for name in order if name in self._parts}
        labels: dict[str, collections.Counter[str]] = {}
        sources: dict[str, dict[str, int]] = {}
        for name, part in splits.items():
            for kind, states in part["labels"].items():
                labels.setdefault(kind, collections.Counter({"present": 0, "absent": 0, "uncertain": 0})).update(states)
            for source, entry in part["sources"].items():
                counts = sources.setdefault(source, {"paired": 0, "unpaired": 0})
                counts[name.rpartition("_")[2]] += entry["examples"]
        return {
            "examples": len(self._digests),
            "patients": len(self._patients),
            "studies": len(self._studies),
            "sources": sources,
            "splits": splits,
            "labels": {kind: dict(labels[kind]) for kind in sorted(labels)},
            "fingerprint": hashlib.sha256(b"".join(sorted(self._digests))).hexdigest(),
        }


class _PartCounter:
    """The counts of one split and part, e.g. "train_paired"."""

    def __init__(self) -> None:
        self.examples = 0
        self.image_bytes = 0
        self.patients: set[tuple[str, str]] = set()
        self.studies: set[tuple[str, str]] = set()
        self.views: collections.Counter[str] = collections.Counter()
        self.sexes: collections.Counter[str] = collections.Counter()
        self.ages: collections.Counter[float] = collections.Counter()
        self.labels: dict[str, collections.Counter[str]] = {}
        self.boxes: collections.Counter[str] = collections.Counter()
        self.words: collections.Counter[int] = collections.Counter()
        self.entities: collections.Counter[int] = collections.Counter()
        self.entity_labels: collections.Counter[str] = collections.Counter()
        self.findings: collections.Counter[bool] = collections.Counter()
        self.affirmed: collections.Counter[str] = collections.Counter()
        self.negated: collections.Counter[str] = collections.Counter()
        self.sources: collections.Counter[str] = collections.Counter()
        self.label_kinds: dict[str, set[str]] = collections.defaultdict(set)
        self.report_kinds: dict[str, set[str]] = collections.defaultdict(set)

    def add(self, example: Example) -> None:
        self.examples += 1
        self.image_bytes += len(example.image)
        self.patients.add((example.source, example.patient))
        self.studies.add((example.source, example.study))
        self.views[example.view or "unknown"] += 1
        self.sexes[example.sex or "unknown"] += 1
        if not np.isnan(example.age):
            self.ages[example.age] += 1
        self.sources[example.source] += 1
        for kind, state in example.labels.items():
            if state != LabelState.UNKNOWN:
                counts = self.labels.setdefault(kind, collections.Counter({"present": 0, "absent": 0, "uncertain": 0}))
                counts[LabelState(state).name.lower()] += 1
            if state in (LabelState.PRESENT, LabelState.ABSENT):
                self.label_kinds[example.source].add(kind)
        self.boxes.update(box.kind for box in example.boxes)
        if example.part == "paired":
            self.words[len(example.text.split())] += 1
            self.entities[len(example.entities)] += 1
            for entity in example.entities:
                self.entity_labels[entity.label] += 1
                if entity.label in ("observation", "device"):
                    self.findings[entity.negated] += 1
                if entity.kind:
                    (self.negated if entity.negated else self.affirmed)[entity.kind] += 1
                    if not entity.negated:
                        self.report_kinds[example.source].add(entity.kind)

    def result(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "examples": self.examples,
            "patients": len(self.patients),
            "studies": len(self.studies),
            "image_bytes": self.image_bytes,
            "views": dict(sorted(self.views.items())),
            "sexes": dict(sorted(self.sexes.items())),
            "age": _spread(self.ages),
            "labels": {kind: dict(self.labels[kind]) for kind in sorted(self.labels)},
            "boxes": dict(sorted(self.boxes.items())),
            "sources": {
                source: {
                    "examples": count,
                    "label_kinds": sorted(self.label_kinds[source]),
                    "report_kinds": sorted(self.report_kinds[source]),
                }
                for source, count in sorted(self.sources.items())
            },
        }
        if self.words:
            findings = sum(self.findings.values())
            facts["reports"] = {"words": _spread(self.words)}
            facts["entities"] = {
                "per_report": _spread(self.entities),
                "reports_without": self.entities[0],
                "by_label": dict(sorted(self.entity_labels.items())),
                "negated_share": self.findings[True] / findings if findings else None,
                "affirmed": dict(sorted(self.affirmed.items())),
                "negated": dict(sorted(self.negated.items())),
            }
        return facts


def _spread(counts: Mapping[Any, int]) -> dict[str, float] | None:
    """Number, minimum, median, mean and maximum of values given as value -> how often; None where there are none."""
    number = sum(counts.values())
    if not number:
        return None
    values = sorted(counts)
    cumulative = np.cumsum([counts[value] for value in values])
    low = values[int(np.searchsorted(cumulative, (number - 1) // 2, side="right"))]
    high = values[int(np.searchsorted(cumulative, number // 2, side="right"))]
    mean = sum(value * count for value, count in counts.items()) / number
    return {"number": number, "min": values[0], "median": (low + high) / 2, "mean": mean, "max": values[-1]}


def _content_digest(example: Example) -> bytes:
    """Digest of all that an example says, with its pixels in place of the compressed file."""
    content = dataclasses.asdict(dataclasses.replace(example, image=b"", labels={}))
    content["image"] = ""
    for name in schema.LATER_FIELDS:
        if not content[name]:
            del content[name]
    content["labels"] = {kind: int(state) for kind, state in example.labels.items()}
    # Numbers are hashed as they are stored, so that what is read back has the same digest.
    for name in ("age", "original_min", "original_max"):
        content[name] = repr(np.float32(content[name]))
    for box in content["boxes"]:
        box.update({name: repr(np.float32(box[name])) for name in ("x_min", "y_min", "x_max", "y_max")})
    for mask in content["masks"]:
        mask["image"] = hashlib.sha256(mask["image"]).hexdigest()
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()


def dataset_facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a built data set holds, as written by `build`.

    Keys: name, version, examples, patients, studies, fingerprint (hash of the contents, whatever their order), recipe,
    sources {source: {"paired": n, "unpaired": n}}, labels {kind: {"present": n, "absent": n, "uncertain": n}} over
    everything, and splits {"train_paired": {...}, ...} where each has examples, patients, studies, image_bytes, views,
    sexes, age, labels, boxes {kind: n}, sources {source: {"examples", "label_kinds" (kinds with a present or absent
    label), "report_kinds" (kinds affirmed in reports)}} and, for reports, "reports" {"words"} and "entities". A
    directory without the file (records made elsewhere) is counted anew. Builders may add keys, e.g. "rejects".
    """
    directory = dataset_dir(path)
    file = directory / FACTS_FILE
    if file.exists():
        facts: dict[str, Any] = files.read_json(file, _COPY_AGAIN, _FACTS)
        if facts.pop(_DIGEST, made := _digest_of(facts)) != made:  # data sets of older versions have none
            raise UserError(f"{file} is damaged (it holds other facts than were written): {_COPY_AGAIN}")
        return facts
    counter = FactsCounter()
    for name in _split_names(directory):
        records = Records(directory, name)
        for index in range(len(records)):
            counter.add(records[index])
    return counter.result() | {"name": directory.parent.name, "version": directory.name, "recipe": None}


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def dataset_dir(path: str | os.PathLike[str]) -> epath.Path:
    """The version directory of a built data set, from DIR/name/1.0.0, DIR/name, or a DIR that holds one data set.

    Raises:
      UserError: there is none there, or more than one; the message names what is there.
    """
    place = files.locate(path)
    if not place.is_dir():
        raise UserError(f"{place} is not a directory; give the directory of a built data set")
    level = [place]
    for _ in range(3):
        found = sorted(directory for directory in level if (directory / _INFO_FILE).exists())
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(directory.relative_to(place)) for directory in found)
            raise UserError(f"{place} holds {len(found)} data sets ({names}); give the path of one of them")
        # No glob: a path may have brackets or stars in its name.
        inner = [entry for directory in level for entry in directory.iterdir()]
        level = [entry for entry in inner if not entry.name.startswith(".") and entry.is_dir()]
    inside = sorted(entry.name for entry in place.iterdir())
    shown = ", ".join(inside[:8]) + (f" and {len(inside) - 8} more" if len(inside) > 8 else "")
    raise UserError(
        f"{place} holds no built data set (found there: {shown or 'nothing'}); build one with mmclip data build"
    )


def open_records(path: str | os.PathLike[str], split: str, part: str) -> "Records":
    """The records of one split ("train", "validation", "test") and part ("paired", "unpaired").

    A split that the data set does not have gives `Records` of length 0.

    Raises:
      UserError: unknown split or part, or no data set at `path`.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}: it is one of {', '.join(SPLITS)}")
    if part not in PARTS:
        raise UserError(f"unknown part {part!r}: it is one of {', '.join(PARTS)}")
    return Records(dataset_dir(path), f"{split}_{part}")


class Records:
    """Random access to the examples of one split and part: a source for `grain.MapDataset.source`.

    Thread-safe and cheap to pickle (files are opened on first use in each process).
    """

    def __init__(self, directory: epath.Path, split_name: str):
        self.path = directory
        self.split_name = split_name
        self._shards = shards(directory, split_name)
        self._source: Any = None

    @property
    def empty(self) -> bool:
        """Whether there are no examples, e.g. because the data set lacks the split."""
        return len(self) == 0

    def __len__(self) -> int:
        return sum(length for _, length in self._shards)

    def __getitem__(self, index: int) -> Example:
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.split_name}")
        with self._reading(index):
            return schema.from_features(_decode(self._open()[index]))

    def texts(self, index: int, names: Sequence[str]) -> tuple[str, ...]:
        """Some of an example's fields that are texts (`schema.Example`), without decoding the rest."""
        with self._reading(index):
            fields = _example_message().FromString(self._open()[int(index)]).features.feature
            return tuple(fields[name].bytes_list.value[0].decode() for name in names)

    def image(self, index: int) -> bytes:
        """The stored image file of an example, without decoding the rest."""
        with self._reading(index):
            fields = _example_message().FromString(self._open()[int(index)]).features.feature
            return bytes(fields["image"].bytes_list.value[0])

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"Records({self.path.parent.name}/{self.path.name}, {self.split_name}, {len(self)} examples)"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_source": None}

    @contextlib.contextmanager
    def _reading(self, index: int) -> Iterator[None]:
        """Raises UserError for whatever the layer raises that stumbles over a damaged file."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            said = " ".join(str(error).split())[:120] or type(error).__name__
            raise UserError(f"{self.path}: record {index} of {self.split_name} ({said}): {_COPY_AGAIN}") from error

    def _open(self) -> Any:
        source = self._source
        if source is None:
            from array_record.python import array_record_data_source

            instructions = [_Shard(str(file), 0, length, length) for file, length in self._shards if length]
            # Two threads may both get here: each source works, the last one stays.
            source = self._source = array_record_data_source.ArrayRecordDataSource(instructions)
        return source


@dataclasses.dataclass(frozen=True)
class _Shard:
    """What array_record wants to know of a file, so that it need not open all of them to count their records."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def _split_infos(directory: epath.Path) -> dict[str, Any]:
    info = files.read_json(directory / _INFO_FILE, _COPY_AGAIN, ("name",))
    if info.get("fileFormat") != "array_record":
        raise UserError(f"{directory} is stored as {info.get('fileFormat')!r}; only array_record can be read")
    return {split["name"]: split | {"dataset": info["name"]} for split in info.get("splits", [])}


def _split_names(directory: epath.Path) -> list[str]:
    return list(_split_infos(directory))


def shards(directory: epath.Path, split_name: str) -> list[tuple[epath.Path, int]]:
    """(file, number of examples) of each shard of a split; [] if the data set does not have the split."""
    try:
        found = _shards(directory, split_name)
    except UserError:
        raise
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError) as error:
        said = " ".join(f"{type(error).__name__} {error}".split())[:80]
        raise UserError(f"{directory / _INFO_FILE} is damaged ({said}): {_COPY_AGAIN}") from error
    if (directory / FACTS_FILE).exists():
        expected = dataset_facts(directory)["splits"].get(split_name, {}).get("examples", 0)
        if (count := sum(length for _, length in found)) != expected:
            said = f"{count} records of {split_name}, and {FACTS_FILE} {expected}"
            raise UserError(f"{directory / _INFO_FILE} is damaged (it names {said}): {_COPY_AGAIN}")
    return found


def _shards(directory: epath.Path, split_name: str) -> list[tuple[epath.Path, int]]:
    info = _split_infos(directory).get(split_name)
    if info is None:
        return []
    lengths = [int(length) for length in info.get("shardLengths", [])]
    template = info.get("filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
    there = {file.name for file in directory.iterdir()}
    shards = []
    for index, length in enumerate(lengths):
        name = template.format(
            DATASET=info["dataset"],
            SPLIT=split_name,
            FILEFORMAT="array_record",
            SHARD_X_OF_Y=f"{index:05d}-of-{len(lengths):05d}",
            SHARD_INDEX=f"{index:05d}",
            NUM_SHARDS=f"{len(lengths):05d}",
        )
        if name not in there:
            raise UserError(f"{directory / name} is missing: the data set is incomplete, copy or build it again")
        shards.append((directory / name, length))
    return shards


@functools.cache
def _example_message() -> Any:
    """The protobuf class of `tf.train.Example`, described here so that neither TensorFlow nor TFDS is needed to read.

    Source: tensorflow/core/example/{example,feature}.proto (field names and numbers are its wire format).
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="mmclip_example.proto", package="mmclip", syntax="proto3")

    def message(parent: Any, name: str, *fields: tuple[str, int, int, int, str]) -> Any:
        added = parent.add(name=name)
        for field_name, number, label, kind, type_name in fields:
            added.field.add(name=field_name, number=number, label=label, type=kind, type_name=type_name or None)
        return added

    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    message(file.message_type, "BytesList", ("value", 1, many, field.TYPE_BYTES, ""))
    message(file.message_type, "FloatList", ("value", 1, many, field.TYPE_FLOAT, ""))
    message(file.message_type, "Int64List", ("value", 1, many, field.TYPE_INT64, ""))
    feature = message(
        file.message_type,
        "Feature",
        ("bytes_list", 1, one, field.TYPE_MESSAGE, ".mmclip.BytesList"),
        ("float_list", 2, one, field.TYPE_MESSAGE, ".mmclip.FloatList"),
        ("int64_list", 3, one, field.TYPE_MESSAGE, ".mmclip.Int64List"),
    )
    feature.oneof_decl.add(name="kind")
    for choice in feature.field:
        choice.oneof_index = 0
    entry_name = ".mmclip.Features.FeatureEntry"
    features = message(file.message_type, "Features", ("feature", 1, many, field.TYPE_MESSAGE, entry_name))
    entry = message(
        features.nested_type,
        "FeatureEntry",
        ("key", 1, one, field.TYPE_STRING, ""),
        ("value", 2, one, field.TYPE_MESSAGE, ".mmclip.Feature"),
    )
    entry.options.map_entry = True
    message(file.message_type, "Example", ("features", 1, one, field.TYPE_MESSAGE, ".mmclip.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("mmclip.Example"))


_SEQUENCES = {
    "entities": ("start", "end", "label", "negated", "kind"),
    "labels": ("kind", "state"),
    "boxes": ("kind", "x_min", "y_min", "x_max", "y_max"),
    "masks": ("kind", "image"),
}


def _decode(record: bytes) -> dict[str, Any]:
    """One serialised example as the nested dictionary that `schema.from_features` takes."""
    values: dict[str, Sequence[Any]] = {}
    for key, feature in _example_message().FromString(record).features.feature.items():
        kind = feature.WhichOneof("kind")
        values[key] = getattr(feature, kind).value if kind else ()
    decoded: dict[str, Any] = {
        name: {key: values.get(f"{name}/{key}", ()) for key in keys} for name, keys in _SEQUENCES.items()
    }
    for key, value in values.items():
        if "/" not in key:
            decoded[key] = value[0]
    return decoded
