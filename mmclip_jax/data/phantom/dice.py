"""Random numbers drawn in blocks: a scalar call of NumPy's generator costs as much as a thousand numbers do."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

_T = TypeVar("_T")
_BLOCK = 128


class Dice:
    """A stream of draws that depends on `key` (non-negative integers) alone."""

    def __init__(self, *key: int):
        self.generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
        self._left: list[float] = []

    def random(self) -> float:
        """A number in [0, 1)."""
        if not self._left:
            self._left = self.generator.random(_BLOCK).tolist()
        return self._left.pop()

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.random()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random() < probability

    def choice(self, items: Sequence[_T]) -> _T:
        """One of `items`, each as likely."""
        return items[int(self.random() * len(items))]

    def shuffled(self, items: Sequence[_T]) -> list[_T]:
        """`items` in random order."""
        return [item for _, item in sorted(((self.random(), item) for item in items), key=lambda pair: pair[0])]
