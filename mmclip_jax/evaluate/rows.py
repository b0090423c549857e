"""The rows of a split: their labels, reports, pixels and embeddings."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmclip_jax.data import records as record_files
from mmclip_jax.data import texts
from mmclip_jax.data.images.stored import open_stored
from mmclip_jax.data.images.transforms import decode_image
from mmclip_jax.data.schema import PARTS, SPLITS, Example, LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate.model import Encoder, Pixels, Supervised
from mmclip_jax.text import prompts
from mmclip_jax.text.entities import find_entities
from mmclip_jax.text.schema import Entity
from mmclip_jax.text.vocabulary import ENGLISH

# Rows handed to the model at a time; the model cuts them into batches of its own size.
CHUNK = 256


@dataclasses.dataclass
class Split:
    """The rows of a split, without their pixels, which are decoded when asked for.

    name: "train", "validation" or "test"; examples: image bytes left out; shapes: (height, width) of each stored image;
    sets: what is known of each data set (name, version, fingerprint, what its builder made of uncertain labels, rows).
    weak_labels: how many rows have labels that were made from their reports (`with_labels_from_reports`).
    languages: of the reports of each data set, as its facts name it; "en" where they say nothing.
    """

    name: str
    examples: list[Example]
    shapes: list[tuple[int, int]]
    sets: list[dict[str, Any]]
    _sources: list[Any]
    _places: list[tuple[int, int]]
    weak_labels: int = 0
    languages: Sequence[str] = ()

    @classmethod
    def load(cls, directories: Iterable[Any], split: str) -> "Split":
        """Reads one split of built data sets, paired rows and unpaired ones.

        Raises:
          UserError: no data set there, or none of them has a row in this split.
        """
        sources, sets, languages = [], [], []
        for directory in directories:
            facts = record_files.dataset_facts(directory)
            parts = [record_files.open_records(directory, split, part) for part in PARTS]
            sources += parts
            languages.append(str(facts.get("language", {}).get("name", ENGLISH)))
            sets.append(
                {
                    "name": facts["name"],
                    "version": facts["version"],
                    "fingerprint": facts["fingerprint"],
                    "uncertain": facts.get("options", {}).get("uncertain", "keep"),
                    "rows": sum(len(part) for part in parts),
                    "splits": {
                        name: sum(facts["splits"].get(f"{name}_{part}", {}).get("examples", 0) for part in PARTS)
                        for name in SPLITS
                    },
                }
            )
        loaded = dataclasses.replace(cls._read(split, sources, sets), languages=languages)
        if not len(loaded):
            there = "; ".join(
                f"{s['name']}: " + ", ".join(f"{name} {n}" for name, n in s["splits"].items() if n) for s in sets
            )
            raise UserError(f"there are no rows in split {split!r} ({there or 'no data set given'}); choose another")
        return loaded

    @classmethod
    def load_if_any(cls, directories: Iterable[Any], split: str) -> "Split | None":
        """The same; None where there are no rows."""
        try:
            return cls.load(directories, split)
        except UserError:
            return None

    @classmethod
    def of(cls, examples: Sequence[Example], name: str = "validation") -> "Split":
        """The split that holds just these examples, which stay in memory."""
        return cls._read(name, [examples], [])

    @classmethod
    def _read(cls, name: str, sources: list[Any], sets: list[dict[str, Any]]) -> "Split":
        examples, shapes, places = [], [], []
        for s, source in enumerate(sources):
            for i in range(len(source)):
                example = source[i]
                try:
                    with open_stored(example.image) as image:  # reads the header only
                        width, height = image.size
                except UserError as error:
                    raise UserError(f"row {i} of {source!r}: {error}") from error
                examples.append(dataclasses.replace(example, image=b""))
                shapes.append((height, width))
                places.append((s, i))
        return cls(name, examples, shapes, sets, sources, places)

    def __len__(self) -> int:
        return len(self.examples)

    def only(self, rows: Iterable[int]) -> "Split":
        """The split that holds just these of its rows, in this order."""
        chosen = [int(row) for row in rows]
        return dataclasses.replace(
            self,
            examples=[self.examples[row] for row in chosen],
            shapes=[self.shapes[row] for row in chosen],
            _places=[self._places[row] for row in chosen],
        )

    def with_labels_from_reports(self) -> "Split":
        """The same rows, those with a report and without any label being labelled by what their report says.

        These are weak labels: the entity recogniser reads them, and nobody looked at the image for them. A finding that
        the report affirms is present, and so is a broader one; one that it only denies is absent; the rest is unknown.
        """
        examples = [
            dataclasses.replace(example, labels=_labels_from(example)) if _needs_labels(example) else example
            for example in self.examples
        ]
        made = sum(
            _needs_labels(example) and bool(new.labels) for example, new in zip(self.examples, examples, strict=True)
        )
        return dataclasses.replace(self, examples=examples, weak_labels=made)

    @property
    def labelled_rows(self) -> int:
        """How many rows have a label of any finding, uncertain ones included."""
        return sum(not _lacks_labels(example) for example in self.examples)

    def rows_of_set(self, number: int) -> np.ndarray:
        """The rows of the data set that was named as the `number`-th (from 0): int [m]."""
        per_set = len(self._sources) // max(len(self.sets), 1)
        return np.array([i for i, (s, _) in enumerate(self._places) if s // per_set == number], np.int64)

    def is_english(self, row: int) -> bool:
        """Whether the report of a row is English, as its data set was built."""
        per_set = len(self._sources) // max(len(self.languages), 1)
        return not self.languages or self.languages[self._places[row][0] // per_set] == ENGLISH

    def entities(self, row: int) -> Sequence[Entity]:
        """What a row's report says: found anew where it is English, else as its data set has stored it."""
        example = self.examples[row]
        return find_entities(example.text) if self.is_english(row) else example.entities

    def image(self, row: int) -> bytes:
        """The stored file of a row."""
        number, index = self._places[row]
        source = self._sources[number]
        data: bytes = source.image(index) if isinstance(source, record_files.Records) else source[index].image
        return data

    def pixels(self, rows: Iterable[int]) -> list[Pixels]:
        """The stored images [H, W] uint8 of these rows."""
        return [decode_image(self.image(row)) for row in rows]

    @property
    def patients(self) -> list[str]:
        """Who each row is of; patients of different sources are different."""
        return [f"{example.source}\0{example.patient}" for example in self.examples]

    def rows_of(self, source: str) -> np.ndarray:
        """The rows of a source: int [m]."""
        return np.array([i for i, example in enumerate(self.examples) if example.source == source], np.int64)

    @property
    def source_counts(self) -> dict[str, dict[str, int]]:
        """{source: {"paired": n, "unpaired": n}}, in order of appearance."""
        counts: dict[str, dict[str, int]] = {}
        for example in self.examples:
            counts.setdefault(example.source, dict.fromkeys(PARTS, 0))[example.part] += 1
        return counts


def _lacks_labels(example: Example) -> bool:
    return all(state == LabelState.UNKNOWN for state in example.labels.values())


def _needs_labels(example: Example) -> bool:
    return example.part == "paired" and _lacks_labels(example)


def _labels_from(example: Example) -> dict[str, LabelState]:
    affirmed, denied = texts.report_kinds(example.entities)
    labels = dict.fromkeys(denied, LabelState.ABSENT) | dict.fromkeys(
        prompts.with_ancestors(affirmed), LabelState.PRESENT
    )
    if texts.is_normal(example.entities):
        labels[texts.NO_FINDING] = LabelState.PRESENT
    elif example.entities:
        labels[texts.NO_FINDING] = LabelState.ABSENT
    return labels


class Embedded(NamedTuple):
    """The n rows of a split with the embeddings of their images float32 [n, E]."""

    rows: Split
    images: np.ndarray


def embed_images(model: Encoder | Supervised, split: Split, progress: "Progress | None" = None) -> np.ndarray:
    """float32 [n, E] of all rows of a split; of a classifier its features.

    Raises:
      UserError: an embedding is not finite (the checkpoint is broken).
    """
    chunks = []
    with concurrent.futures.ThreadPoolExecutor(1) as ahead:  # images are decoded while the last ones are encoded
        decoded = ahead.submit(split.pixels, range(min(CHUNK, len(split))))
        for rows in chunked(range(len(split)), progress, "embedding images"):
            images = decoded.result()
            decoded = ahead.submit(split.pixels, range(rows[-1] + 1, min(rows[-1] + 1 + CHUNK, len(split))))
            chunks.append(np.asarray(model.encode_image(images), np.float32))
    embedded = np.concatenate(chunks)
    if not np.isfinite(embedded).all():
        raise UserError("some image embeddings are not finite: the checkpoint is broken, choose an earlier step")
    return embedded


def labels_of(examples: Sequence[Example], findings: Sequence[str]) -> np.ndarray:
    """float64 [n, K]: 1 present, 0 absent, NaN for unknown and for uncertain."""
    values = {LabelState.PRESENT: 1.0, LabelState.ABSENT: 0.0}
    return np.array(
        [[values.get(e.labels.get(kind, LabelState.UNKNOWN), np.nan) for kind in findings] for e in examples],
        np.float64,
    ).reshape(len(examples), len(findings))


def uncertain_only(examples: Iterable[Example]) -> dict[str, int]:
    """The kinds whose labels are uncertain wherever they are known, with how many there are, in the vocabulary's order.

    Nothing can be scored for them, so they are in no table: a result must name them.
    """
    states: dict[str, collections.Counter[LabelState]] = collections.defaultdict(collections.Counter)
    for example in examples:
        for kind, state in example.labels.items():
            states[kind][LabelState(state)] += 1
    return {
        kind: seen[LabelState.UNCERTAIN]
        for kind in prompts.KINDS
        if (seen := states.get(kind)) and seen.keys() - {LabelState.UNKNOWN} == {LabelState.UNCERTAIN}
    }


def uncertain_text(entry: Mapping[str, Any]) -> str:
    """Which findings of a part have uncertain labels alone, with their counts; "" if none (or the file is older)."""
    counts = entry.get("uncertain_only") or {}
    named = ", ".join(f"{prompts.display_name(kind)} ({count:,})" for kind, count in counts.items())
    return f"every label is uncertain, so that nothing is scored, of: {named}" if named else ""


def in_order(kinds: Iterable[str]) -> list[str]:
    """These kinds, each once, in the vocabulary's order."""
    there = set(kinds)
    return [kind for kind in prompts.KINDS if kind in there]


class Progress:
    """Bars on stderr, or nothing at all."""

    def __init__(self, shown: bool = True):
        self._shown = shown

    @contextlib.contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[int], object]]:
        """A bar of `total` rows; call what it gives with the number of rows done."""
        if not self._shown:
            yield lambda count: None
            return
        import tqdm

        with tqdm.tqdm(
            total=total, desc=label, unit=" rows", file=sys.stderr, mininterval=0.5, leave=sys.stderr.isatty()
        ) as bar:
            yield bar.update


def chunked(rows: Sequence[int], progress: Progress | None, label: str, size: int = CHUNK) -> Iterator[list[int]]:
    """Cuts rows into lists of at most `size`, with a progress bar."""
    with (progress or Progress(False)).bar(label, len(rows)) as advance:
        for start in range(0, len(rows), size):
            part = list(rows[start : start + size])
            yield part
            advance(len(part))


def thinned(rows: Sequence[Any], limit: int) -> list[Any]:
    """At most `limit` of the rows, evenly spread and the same at every call."""
    if len(rows) <= limit:
        return list(rows)
    return [rows[i] for i in np.linspace(0, len(rows) - 1, limit).round().astype(int)]
