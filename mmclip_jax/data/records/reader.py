"""Reading a built data set: where it lies, its facts, its examples. Needs neither TFDS nor TensorFlow."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from mmclip_jax import files
from mmclip_jax.data import schema
from mmclip_jax.data.records.facts import COPY_AGAIN, FACTS_FILE, FactsCounter, stored_facts
from mmclip_jax.data.records.message import decode, example_message
from mmclip_jax.data.schema import PARTS, SPLITS, Example
from mmclip_jax.errors import UserError

_INFO_FILE = "dataset_info.json"


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
    if (facts := stored_facts(directory)) is not None:
        return facts
    counter = FactsCounter()
    for name in _split_infos(directory):
        records = Records(directory, name)
        for index in range(len(records)):
            counter.add(records[index])
    return counter.result() | {"name": directory.parent.name, "version": directory.name, "recipe": None}


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
            return schema.from_features(decode(self._open()[index]))

    def texts(self, index: int, names: Sequence[str]) -> tuple[str, ...]:
        """Some of an example's fields that are texts (`schema.Example`), without decoding the rest."""
        with self._reading(index):
            fields = example_message().FromString(self._open()[int(index)]).features.feature
            return tuple(fields[name].bytes_list.value[0].decode() for name in names)

    def image(self, index: int) -> bytes:
        """The stored image file of an example, without decoding the rest."""
        with self._reading(index):
            fields = example_message().FromString(self._open()[int(index)]).features.feature
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
            raise UserError(f"{self.path}: record {index} of {self.split_name} ({said}): {COPY_AGAIN}") from error

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
    info = files.read_json(directory / _INFO_FILE, COPY_AGAIN, ("name",))
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
        raise UserError(f"{directory / _INFO_FILE} is damaged ({said}): {COPY_AGAIN}") from error
    if (facts := stored_facts(directory)) is not None:
        expected = facts["splits"].get(split_name, {}).get("examples", 0)
        if (count := sum(length for _, length in found)) != expected:
            said = f"{count} records of {split_name}, and {FACTS_FILE} {expected}"
            raise UserError(f"{directory / _INFO_FILE} is damaged (it names {said}): {COPY_AGAIN}")
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
