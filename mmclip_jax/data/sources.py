"""What training draws from: the records of data sets, numbered, and how a place that cannot be read is named."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from mmclip_jax.data import records as record_files
from mmclip_jax.data.batch import Row
from mmclip_jax.data.schema import PARTS, Example
from mmclip_jax.errors import UserError

# Examples of a part whose image files are no more than this together are read once and kept in memory.
MEMORY_BYTES = 64 * 2**20


class ExampleSource(Protocol):
    """Random access to examples, as `records.Records` gives it; a list of examples will do."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


@dataclasses.dataclass(frozen=True)
class TrainSet:
    """The training records of one built data set. source_names: all `Example.source` that occur in it."""

    name: str
    paired: ExampleSource
    unpaired: ExampleSource
    source_names: tuple[str, ...]


def open_train_sets(
    directories: Iterable[str | os.PathLike[str]], split: str = "train", shuffled_labels: bool = False
) -> tuple[TrainSet, ...]:
    """Opens data sets for training; shuffled_labels: unpaired images have the labels of others (`OthersLabels`).

    Raises:
      UserError: a directory holds no data set, or its unpaired images have no usable label at all.
    """
    opened = []
    for directory in directories:
        facts = record_files.dataset_facts(directory)
        sources: dict[str, ExampleSource] = {}
        for part in PARTS:
            examples = record_files.open_records(directory, split, part)
            size = facts["splits"].get(f"{split}_{part}", {}).get("image_bytes", 0)
            sources[part] = Remembered(examples) if size <= MEMORY_BYTES else examples
        if shuffled_labels:
            sources["unpaired"] = OthersLabels(sources["unpaired"])
        train_set = TrainSet(str(directory), sources["paired"], sources["unpaired"], tuple(sorted(facts["sources"])))
        labels = facts["splits"].get(f"{split}_unpaired", {}).get("labels", {})
        if len(train_set.unpaired) and not any(c.get("present", 0) or c.get("absent", 0) for c in labels.values()):
            raise UserError(
                f"{directory}: none of the {len(train_set.unpaired)} unpaired images of {split} has a label that is "
                "present or absent; check how the table's label columns were read, and build again"
            )
        opened.append(train_set)
    return tuple(opened)


class Remembered:
    """A source that keeps what it has read (not across processes: each keeps its own)."""

    def __init__(self, examples: ExampleSource):
        self._examples = examples
        self._known: dict[int, Example] = {}

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        example = self._known.get(index)
        if example is None:
            example = self._known[index] = self._examples[index]
        return example

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_known": {}}


class OthersLabels:
    """A control: each example has the labels of the one half the source away, so that all of them stay as frequent."""

    def __init__(self, examples: ExampleSource):
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        other = self._examples[(index + len(self) // 2) % len(self)]
        return dataclasses.replace(self._examples[index], labels=other.labels)


class RecordTable:
    """Numbers all training records of all data sets: data set by data set, paired before unpaired.

    The number is the `record` field of a row.
    """

    def __init__(self, sets: Sequence[TrainSet]):
        self._pieces: list[tuple[int, str, str, ExampleSource]] = []
        self._offsets: dict[tuple[int, str], int] = {}
        total = 0
        for number, train_set in enumerate(sets):
            for part in PARTS:
                examples: ExampleSource = getattr(train_set, part)
                self._offsets[number, part] = total
                self._pieces.append((total, train_set.name, part, examples))
                total += len(examples)
        self._total = total
        if total > np.iinfo(np.int32).max:
            raise UserError(f"{total} training records are more than int32 can number")

    def __len__(self) -> int:
        return self._total

    def offset(self, set_number: int, part: str) -> int:
        """The number of the first record of a part."""
        return self._offsets[set_number, part]

    def example(self, record: int) -> Example:
        """The example with this number; reads it from disk."""
        if not 0 <= record < self._total:
            raise IndexError(f"record {record} of {self._total}")
        start, _, _, examples = self._piece(record)
        return examples[record - start]

    def locate(self, record: int) -> tuple[str, str, int]:
        """(data set, part, place in it) of the example with this number."""
        start, name, part, _ = self._piece(record)
        return name, part, record - start

    def _piece(self, record: int) -> tuple[int, str, str, ExampleSource]:
        return next(piece for piece in reversed(self._pieces) if piece[0] <= record)

    def ids(self, records: Iterable[int]) -> list[str]:
        """The ids of the examples with these numbers."""
        return [self.example(int(record)).id for record in records]


class PlacedSource:
    """A source of `Placed` elements, with the number of its first record, and its name for messages."""

    def __init__(self, examples: ExampleSource, offset: int, name: str):
        self._examples = examples
        self._offset = offset
        self._name = name

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> "Placed":
        return Placed(self, index)

    def __repr__(self) -> str:
        return f"{self._name} ({len(self)} records)"

    def record(self, place: int) -> int:
        """The number in the record table of the example at a place."""
        return self._offset + place

    def row(self, place: int, make: Callable[[Example, int], Row]) -> Row:
        """What `make` makes of the example at a place and its record number; its errors name the place."""
        try:
            example = self._examples[place]
        except Exception as error:  # damaged files raise whatever the layer that stumbled raises
            raise UserError(
                f"{self._name}: record {place} cannot be read ({error or type(error).__name__}); "
                "copy the data set again, or build it again"
            ) from error
        try:
            return make(example, self.record(place))
        except UserError as error:
            raise UserError(f"{self._name}: record {place}: {error}") from error


class Placed(NamedTuple):
    """A place of a source; it is read when its row is made."""

    source: PlacedSource
    place: int
