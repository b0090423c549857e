"""Training rows of a classifier: augmented images, or features that were computed before."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mmclip_jax.data.batch import Row
from mmclip_jax.data.images import transforms
from mmclip_jax.evaluate.rows import Split


class Images(NamedTuple):
    """Training rows as (number, file, target): a source for `pipeline.make_row_iterator`."""

    split: Split
    rows: np.ndarray
    targets: np.ndarray

    def at(self, number: int) -> tuple[int, bytes, np.ndarray]:
        """One row."""
        return number, self.split.image(int(self.rows[number])), self.targets[number]


class Source:
    """Random access to whatever `at` gives."""

    def __init__(self, at: Callable[[int], Any], count: int):
        self._at, self._count = at, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Any:
        return self._at(number)


class ImageRow(NamedTuple):
    """An augmented training image."""

    size: int
    augment: Any

    def __call__(self, element: tuple[int, bytes, np.ndarray], rng: np.random.Generator) -> Row:
        """The row that the step takes; rng: of this row in this pass."""
        number, data, target = element
        image = transforms.augment_image(transforms.decode_image(data), self.size, rng, self.augment)
        return {"image": image, "target": target, "record": np.array(number, np.int32)}


class Features(NamedTuple):
    """Training rows whose features were computed before."""

    features: np.ndarray
    targets: np.ndarray

    def at(self, number: int) -> Row:
        """One row."""
        return {"features": self.features[number], "target": self.targets[number], "record": np.array(number, np.int32)}


def as_it_is(element: Row, rng: np.random.Generator) -> Row:
    """A row that needs no work."""
    return element
