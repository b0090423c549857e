"""Records: a data set on disk, written once and read at any place.

A builder yields `Example`s. `build` runs it once, checks what it yields, and lets TensorFlow Datasets write the
examples as ArrayRecord files, one TFDS split for each split and part ("train_paired", "train_unpaired", ...; empty ones
are left out), with `facts.json` beside them. The result is an ordinary TFDS directory:
`tfds.builder_from_directory(path).as_data_source("train_paired", ...)` opens it.

Reading needs neither TFDS nor TensorFlow: `Records` decodes the `tf.train.Example` messages with protobuf alone, so
that a training machine can do without them.
"""

from mmclip_jax.data.records.builder import RecordsBuilder
from mmclip_jax.data.records.example import check_example, finish_example
from mmclip_jax.data.records.facts import FACTS_FILE, Census, FactsCounter
from mmclip_jax.data.records.parallel import in_order, map_in_order, progress_bar
from mmclip_jax.data.records.reader import Records, dataset_dir, dataset_facts, open_records, shards
from mmclip_jax.data.records.tfds import write_splits
from mmclip_jax.data.records.writer import Make, build

__all__ = [
    "FACTS_FILE",
    "Census",
    "FactsCounter",
    "Make",
    "Records",
    "RecordsBuilder",
    "build",
    "check_example",
    "dataset_dir",
    "dataset_facts",
    "finish_example",
    "in_order",
    "map_in_order",
    "open_records",
    "progress_bar",
    "shards",
    "write_splits",
]
