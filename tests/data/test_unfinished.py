"""Examples come back from a spool as they went in, whatever they hold."""

import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmclip_jax.data import unfinished as unfinished_lib
from mmclip_jax.data.schema import Box, Example, LabelState, Mask
from mmclip_jax.text.schema import Entity

_TEXT = st.text(max_size=20)
_FLOAT = st.floats(allow_nan=False)
_EXAMPLES = st.builds(
    Example,
    **dict.fromkeys(("id", "source", "split", "patient", "study", "view", "sex", "findings", "impression"), _TEXT),
    image=st.binary(max_size=50),
    age=_FLOAT,
    entities=st.lists(st.builds(Entity, st.integers(), st.integers(), _TEXT, _TEXT, st.booleans(), _TEXT)).map(tuple),
    labels=st.dictionaries(_TEXT, st.sampled_from(LabelState)),
    boxes=st.lists(st.builds(Box, _TEXT, _FLOAT, _FLOAT, _FLOAT, _FLOAT), max_size=3).map(tuple),
    masks=st.lists(st.builds(Mask, _TEXT, st.binary(max_size=9)), max_size=3).map(tuple),
    original_height=st.integers(),
    original_min=_FLOAT,
    original_max=_FLOAT,
)


@settings(max_examples=30)
@given(st.lists(_EXAMPLES, max_size=4))
def test_examples_come_back(examples: list[Example]) -> None:
    stream = io.BytesIO()
    for example in examples:
        unfinished_lib.write(stream, *unfinished_lib.example_parts(example))
    stream.seek(0)
    found = [unfinished_lib.example_of(values, pictures) for values, pictures in unfinished_lib.read(stream)]
    assert found == examples
    for one, other in zip(found, examples, strict=True):
        assert list(one.labels.items()) == list(other.labels.items()), "the order stays"


def test_numbers_of_numpy_and_unknown_ages() -> None:
    numbers: dict[str, Any] = {"age": np.float32(63), "original_width": np.int32(7), "original_min": math.nan}
    example = Example("a", b"x", "s", "train", "p", "t", boxes=(Box("mass", *np.array([0, 0.1, 0.2, 0.3])),), **numbers)
    stream = io.BytesIO()
    unfinished_lib.write(stream, *unfinished_lib.example_parts(example))
    stream.seek(0)
    ((values, pictures),) = unfinished_lib.read(stream)
    found = unfinished_lib.example_of(values, pictures)
    assert (found.age, found.original_width, found.boxes) == (63, 7, example.boxes)
    assert math.isnan(found.original_min)


def test_any_flipped_bit_and_any_cut_is_noticed() -> None:
    stream = io.BytesIO()
    unfinished_lib.write(stream, {"id": "a", "n": 3}, [b"picture", b""])
    data = stream.getvalue()
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << (at % 8)
        for wrong in (bytes(changed), data[:at] if at else data[:1]):
            with pytest.raises(ValueError, match="cut off"):
                list(unfinished_lib.read(io.BytesIO(wrong)))
