"""The definition of a batch, against what is written down of it and what the pipeline makes."""

from pathlib import Path

import numpy as np
import pytest
import tiny

from mmclip_jax.data import batch, pipeline
from mmclip_jax.data.schema import PARTS
from mmclip_jax.objectives.rows import PART_NUMBER
from mmclip_jax.text.prompts import KINDS
from mmclip_jax.text.tokenizer import load_tokenizer


def test_the_fields_of_a_row() -> None:
    found = batch.fields(tiny.config())  # 20 px, 11 tokens
    assert {name: (field.shape, field.dtype.name) for name, field in found.items()} == {
        "image": ((20, 20, 1), "uint8"),
        "tokens": ((11,), "int32"),
        "entity": ((11,), "int32"),
        "affirmed": ((11,), "bool"),
        "text_id": ((2,), "int32"),
        "stated": ((len(KINDS),), "int8"),
        "known": ((len(KINDS),), "int8"),
        "source": ((), "int32"),
        "damaged": ((), "int32"),
    }
    assert batch.row_bytes(tiny.config()) == 20 * 20 + 9 * 11 + 4 * 4 + 2 * len(KINDS)
    more = batch.fields(tiny.config(objective__hard_negatives__weight=0.5))
    assert more.pop("negative") == ((11,), np.int32)
    assert more == found


def test_parts_without_rows_are_left_out() -> None:
    config = tiny.config(data__batch_paired=0, data__batch_unpaired=6)
    assert batch.sizes(config) == {"unpaired": 6}
    assert batch.total_rows(config) == 6
    zeros = batch.zeros(config)
    assert zeros.keys() == batch.shapes(config).keys() == {"unpaired"}
    assert zeros["unpaired"]["stated"].shape == (6, len(KINDS))
    assert not any(values.any() for values in zeros["unpaired"].values())


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_pipeline_makes_what_is_defined(phantom_dir: Path, weight: float) -> None:
    config = tiny.load_config("demo", "runlocal")
    config.objective.hard_negatives.weight = weight
    config.data.update({"train": (str(phantom_dir),), "batch_paired": 3, "batch_unpaired": 2, "workers": 0})
    made = next(pipeline.make_train_iterator(config, load_tokenizer()))
    found = {part: {name: (x.shape, x.dtype) for name, x in rows.items()} for part, rows in made.items()}
    assert [rows.pop("record") for rows in found.values()] == [((3,), np.int32), ((2,), np.int32)]
    assert found == {part: {name: tuple(x) for name, x in rows.items()} for part, rows in batch.shapes(config).items()}


def test_the_parts_have_the_numbers_that_keys_are_drawn_by() -> None:
    assert {part: number for number, part in enumerate(PARTS)} == PART_NUMBER
