"""Records → rows → batches.

Training is an endless sequence of global batches that depends on the seed and the data alone: batch g of a part holds
elements g·B … (g+1)·B − 1 of that part's shuffled stream, and each process takes its contiguous slice of each batch.
Neither the number of processes nor that of threads or workers changes it, and the state to resume from is the number of
the next batch. Each element's random draws come from the seed and the element's position.
"""

import functools
import itertools
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from ml_collections import ConfigDict

from mmclip_jax.data import batch as batch_lib
from mmclip_jax.data import records as record_files
from mmclip_jax.data import texts
from mmclip_jax.data import workers as worker_processes
from mmclip_jax.data.batch import Batch, Row, has_negatives, sizes, stack_rows
from mmclip_jax.data.images import transforms
from mmclip_jax.data.kept import Decoded, Recalled
from mmclip_jax.data.order import ShuffledEpochs, join, op_seed, part_stream
from mmclip_jax.data.schema import Example
from mmclip_jax.data.sources import ExampleSource, Placed, PlacedSource, RecordTable, TrainSet, open_train_sets
from mmclip_jax.data.texts import DrawnText
from mmclip_jax.errors import UserError

# A record that cannot be read or decoded is replaced by the next one of its data set, at most so many places on.
REPLACEMENTS = 8


class RowMaker:
    """Turns examples into rows as `batch` defines them; what the configuration says is read once, here.

    The field `source` is an index into `source_names`, −1 for others; `damaged` is left to who replaces records.
    """

    def __init__(self, config: ConfigDict, tokenizer: Any, source_names: Sequence[str] = ()):
        self._size = int(config.model.image_size)
        self._on_device = batch_lib.augments_on_device(config)
        self._decoded = Decoded(int(config.data.get("keep_decoded", 0)) * 10**6)
        self._length = int(config.model.text.length)
        self._data = plain(config.data)
        self._flips = tuple(config.objective.hard_negatives.flips) if has_negatives(config) else ()
        tokenize = functools.partial(
            tokenizer.tokenize, length=self._length, entity_labels=tuple(config.data.entity_labels)
        )
        self._tokenize = Recalled(tokenize)
        self._source_number = {name: number for number, name in enumerate(source_names)}

    def train_row(self, example: Example, rng: np.random.Generator, record: int) -> Row:
        """A random row. The image's draws come first, then the text's, then those of its hard negative."""
        pixels = self._decoded(record, example.image)
        augmentation = transforms.draw_augmentation(rng, self._data.augment)
        if self._on_device:
            image = transforms.for_device(pixels, self._size, augmentation)
        else:
            image = {"image": transforms.apply_affine(pixels, self._size, *augmentation)}
        drawn = texts.draw_text(example, rng, self._data)
        row = self._row(example, image, drawn, record)
        if self._flips:
            flipped = texts.flipped(drawn, rng, self._flips)
            tokens = self._tokenize(flipped, ()).tokens if flipped else row["tokens"]
            # Alike where nothing was turned round, or only what lies beyond the text's end.
            row["negative"] = np.zeros_like(tokens) if np.array_equal(tokens, row["tokens"]) else tokens
        return row

    def eval_row(self, example: Example, record: int) -> Row:
        """The row that is the same at every call: the whole image, the whole report (see `texts.full_text`)."""
        image = transforms.fit_image(transforms.decode_image(example.image), self._size)
        return self._row(example, {"image": image}, texts.full_text(example, self._data.share_no_finding), record)

    def _row(self, example: Example, image: Row, drawn: DrawnText, record: int) -> Row:
        tokenized = self._tokenize(drawn.text, drawn.entities)
        return {
            **image,
            "tokens": tokenized.tokens,
            "entity": tokenized.entity,
            "affirmed": tokenized.affirmed,
            "text_id": texts.text_ids(drawn),
            "stated": texts.stated(drawn.present, drawn.absent),
            "known": texts.stated(*texts.known(example)),
            "source": np.int32(self._source_number.get(example.source, -1)),
            "record": np.int32(record),
        }


def make_train_iterator(
    config: ConfigDict,
    tokenizer: Any,
    *,
    seed: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    train_sets: Sequence[TrainSet] | None = None,
) -> "TrainIterator":
    """The endless training batches of one process.

    With `data.paired_weights` (or `unpaired_weights`) empty, the records of all data sets are shuffled together, each
    seen once an epoch; else each data set is shuffled by itself and drawn from in proportion to its weight (0 leaves it
    out), to within 1 %.

    Args:
      config: its `data`, `model.image_size` and `model.text.length` count. Batch sizes are global.
      tokenizer: has `tokenize` as `tokenizer.Tokenizer` has.
      seed: default: config.seed.
      process_index: which slice of each global batch, 0 … process_count − 1.
      process_count: how many processes share a global batch.
      train_sets: default: those that the config names (`open_train_sets`).

    Raises:
      UserError: a batch size does not divide among the processes, there are no records for a part that has a batch
        size, or the weights do not fit the data sets. While iterating: neither a record nor any of the
        REPLACEMENTS behind it can be read and decoded.
    """
    if train_sets is None:
        train_sets = open_train_sets(config.data.train, shuffled_labels=config.data.shuffled_labels)
    seed = int(config.seed if seed is None else seed)
    table = RecordTable(train_sets)
    source_names = tuple(dict.fromkeys(name for train_set in train_sets for name in train_set.source_names))
    maker = RowMaker(config, tokenizer, source_names)
    parts: dict[str, grain.MapDataset] = {}
    canvas = batch_lib.image_side(config) if batch_lib.augments_on_device(config) else 0
    for part, size in sizes(config).items():
        if size < 0 or size % process_count:
            raise UserError(f"data.batch_{part} = {size} does not divide among {process_count} processes")
        stream = part_stream(config.data, part, train_sets, table, seed)
        rows = stream.random_map(_TrainRow(maker), seed=op_seed(seed, part, "rows"))
        batches = rows.batch(
            size // process_count, drop_remainder=True, batch_fn=functools.partial(stack_rows, side=canvas)
        )
        # Local batch j·P + p is slice p of global batch j.
        parts[part] = batches.slice(slice(process_index, None, process_count))
    if not parts:
        raise UserError("data.batch_paired and data.batch_unpaired are both 0: there is nothing to train on")
    return TrainIterator(
        join(parts),
        table=table,
        source_names=source_names,
        threads=int(config.data.threads),
        workers=int(config.data.workers),
        order={
            "seed": seed,
            "batch": [int(config.data.batch_paired), int(config.data.batch_unpaired)],
            "records": [[len(train_set.paired), len(train_set.unpaired)] for train_set in train_sets],
        },
    )


def make_row_iterator(
    source: Any,
    make_row: Any,
    ids: Sequence[str],
    *,
    batch: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 1,
    workers: int = 0,
) -> "TrainIterator":
    """Endless batches {"rows": {field: [b, ...]}} of one process over shuffled epochs of any source.

    Args:
      source: random access to elements; to be pickled where there are workers.
      make_row: (element, numpy.random.Generator) -> row {field: [...]}, with "record", the element's number.
      ids: of the elements, for messages.
      batch: global.
      seed: of order and draws.
      process_index: which slice of each global batch.
      process_count: how many processes share a global batch.
      threads: that read.
      workers: processes that make batches; 0: this one.

    Raises:
      UserError: the batch does not divide among the processes.
    """
    if batch % process_count:
        raise UserError(f"a batch of {batch} does not divide among {process_count} processes")
    stream = ShuffledEpochs([source], op_seed(seed, "rows", "shuffle"))
    rows = stream.random_map(make_row, seed=op_seed(seed, "rows", "rows"))
    batches = rows.batch(batch // process_count, drop_remainder=True, batch_fn=stack_rows)
    return TrainIterator(
        join({"rows": batches.slice(slice(process_index, None, process_count))}),
        table=_Ids(tuple(ids)),
        source_names=(),
        threads=threads,
        workers=workers,
        order={"seed": seed, "batch": [batch], "records": [len(ids)]},
    )


class _Ids(NamedTuple):
    """What `TrainIterator.record_ids` asks, where ids are at hand."""

    known: tuple[str, ...]

    def ids(self, records: Iterable[int]) -> list[str]:
        return [self.known[int(record)] for record in records]


class TrainIterator(grain.DatasetIterator):
    """Endless batches {"paired": {field: [b, ...]}, "unpaired": {...}} of one process; see `batch` for the fields.

    The state is the number of the next global batch (with what it refers to, so that it is not applied to other data).
    It is the same in every process and can be restored with another number of processes, threads or workers.
    `grain.checkpoint.CheckpointSave(iterator)` saves it. Call `close` at the end.

    Attributes:
      source_names: what the `source` field of a row indexes.
      table: what the `record` field of a row indexes; has `ids`.
    """

    def __init__(
        self,
        batches: grain.MapDataset,
        *,
        table: Any,
        source_names: tuple[str, ...],
        threads: int,
        workers: int,
        order: dict[str, Any],
    ):
        super().__init__()
        self.table = table
        self.source_names = source_names
        self._batches = batches
        self._threads = threads
        self._workers = workers
        self._order = order
        self._next = 0
        self._iterator: grain.DatasetIterator | None = None

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._open()
        try:
            batch = next(self._iterator)
        except UserError as error:
            # Without the pipeline's traceback notes: the message says all that a user can act on.
            raise UserError(*error.args) from error
        except (RuntimeError, OSError) as error:
            if (problem := worker_processes.named(error)) is error:
                raise
            raise problem from error
        self._next += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """What `set_state` takes, as JSON."""
        return {"next_batch": self._next, "order": self._order}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues at the state's batch.

        Raises:
          UserError: the state is of another seed, other batch sizes or other data.
        """
        for key, value in self._order.items():
            if state["order"].get(key) != value:
                raise UserError(
                    f"the checkpoint's data order has {key} {state['order'].get(key)}, this run has {key} {value}: "
                    "resume with the same configuration and data, or start a new run"
                )
        self._stop()
        self._next = int(state["next_batch"])

    def start_prefetch(self) -> None:
        """Begins to make the next batches in the background, if there are threads or workers."""
        if self._iterator is None:
            self._iterator = self._open()
        self._iterator.start_prefetch()

    def record_ids(self, records: Iterable[int]) -> list[str]:
        """The ids of the examples with these numbers (a batch's `record` field)."""
        return self.table.ids(records)

    def problem(self, record: int) -> dict[str, Any]:
        """What is wrong with the record of this number (a batch's `damaged` field): data set, id if it has one, why."""
        data_set, part, place = self.table.locate(record)
        found = {"data_set": data_set, "part": part, "record": place, "id": "", "problem": ""}
        try:
            example = self.table.example(record)
            found["id"] = example.id
            transforms.decode_image(example.image)
        except Exception as error:  # as in `PlacedSource.row`
            found["problem"] = str(error) or type(error).__name__
        return found

    def close(self) -> None:
        """Ends threads and workers; no batch may be asked for afterwards."""
        self._stop()
        self._closed = True

    def _stop(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _open(self) -> grain.DatasetIterator:
        # An element is a whole batch: two in reserve for each thread is plenty, grain's default of 500 is not.
        read_options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=2 * self._threads)
        batches = self._batches.slice(slice(self._next, None)).to_iter_dataset(read_options)
        if self._workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain hands its debugging flags to the worker processes
            worker_processes.remove_blocks()  # of trainers that were killed
            options = grain.MultiprocessingOptions(num_workers=self._workers)
            batches = batches.mp_prefetch(options, worker_init_fn=worker_processes.start)
        return iter(batches)


def eval_rows(
    examples: ExampleSource | Iterable[Example], tokenizer: Any, config: ConfigDict, source_names: Sequence[str] = ()
) -> Iterator[Row]:
    """The rows of `RowMaker.eval_row`, in order; `record` counts the examples from 0.

    Raises:
      UserError: a record cannot be read or decoded.
    """
    maker = RowMaker(config, tokenizer, source_names)
    sized: Any = examples if hasattr(examples, "__getitem__") else tuple(examples)
    source = PlacedSource(sized, 0, repr(sized) if isinstance(sized, record_files.Records) else "evaluation")
    for index in range(len(source)):
        yield source.row(index, maker.eval_row)


def eval_batches(
    examples: ExampleSource | Iterable[Example],
    tokenizer: Any,
    config: ConfigDict,
    batch_size: int,
    source_names: Sequence[str] = (),
) -> Iterator[dict[str, np.ndarray]]:
    """The rows of `eval_rows` in batches {field: [batch_size, ...]}, plus `valid` bool [batch_size].

    The last batch is padded with zeros, where `valid` is False. No examples give no batch.
    """
    rows = eval_rows(examples, tokenizer, config, source_names)
    while taken := list(itertools.islice(rows, batch_size)):
        missing = batch_size - len(taken)
        batch = {
            name: np.concatenate([values, np.zeros((missing, *values.shape[1:]), values.dtype)]) if missing else values
            for name, values in stack_rows(taken).items()
        }
        yield batch | {"valid": np.arange(batch_size) < len(taken)}


class _TrainRow(NamedTuple):
    """The random map of grain: a class, so that worker processes can unpickle it.

    A damaged record is replaced by the next of its source that is whole, which depends on nothing but its place; the
    row's field `damaged` then names it, and is −1 otherwise.
    """

    maker: RowMaker

    def __call__(self, element: Placed, rng: np.random.Generator) -> Row:
        source, place = element
        errors = []
        for further in range(min(REPLACEMENTS + 1, len(source))):
            try:
                row = source.row((place + further) % len(source), functools.partial(self._row, rng))
            except UserError as error:
                errors.append(error)
            else:
                return row | {"damaged": np.asarray(source.record(place) if errors else -1, np.int32)}
        raise errors[0]

    def _row(self, rng: np.random.Generator, example: Example, record: int) -> Row:
        return self.maker.train_row(example, rng, record)


def plain(config: ConfigDict) -> types.SimpleNamespace:
    """A ConfigDict as plain attributes, which are read several times for each row."""
    return types.SimpleNamespace(
        **{key: plain(value) if hasattr(value, "items") else value for key, value in config.items()}
    )
