"""Images of a split are embedded in order, and decoded while others are encoded."""

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from mmclip_jax.errors import UserError
from mmclip_jax.evaluate.rows import CHUNK, embed_images


class Rows:
    """Stands for a split: image n is n, once it is decoded; `begun` holds the rows whose decoding has begun."""

    def __init__(self, count: int, broken: int | None = None):
        self.count, self.broken, self.begun = count, broken, set[int]()
        self.more = threading.Condition()

    def __len__(self) -> int:
        return self.count

    def pixels(self, rows: Iterable[int]) -> list[np.ndarray]:
        rows = list(rows)
        with self.more:
            self.begun.update(rows)
            self.more.notify_all()
        if self.broken in rows:
            raise UserError(f"row {self.broken} is damaged")
        return [np.full(1, row, np.float32) for row in rows]


class Waits:
    """Stands for a model: an image is its own embedding, when the decoding of the next chunk has begun."""

    def __init__(self, rows: Rows):
        self.rows, self.sizes = rows, []  # type: ignore[var-annotated]

    def encode_image(self, images: Sequence[np.ndarray]) -> np.ndarray:
        self.sizes.append(len(images))
        following = int(images[-1][0]) + 1
        with self.rows.more:
            assert following == len(self.rows) or self.rows.more.wait_for(lambda: following in self.rows.begun, 60)
        return np.stack(images)


@pytest.mark.parametrize("count", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_every_row_once_in_order_and_the_next_ones_are_decoded_meanwhile(count: int) -> None:
    rows = Rows(count)
    model: Any = Waits(rows)
    np.testing.assert_array_equal(embed_images(model, rows)[:, 0], np.arange(count))  # type: ignore[arg-type]
    assert model.sizes == [CHUNK] * (count // CHUNK) + [count % CHUNK] * bool(count % CHUNK)


@pytest.mark.parametrize("broken", [0, CHUNK + 1])
def test_a_damaged_image_is_said(broken: int) -> None:
    rows = Rows(2 * CHUNK, broken)
    model: Any = Waits(rows)
    with pytest.raises(UserError, match=f"row {broken} is damaged"):
        embed_images(model, rows)  # type: ignore[arg-type]
