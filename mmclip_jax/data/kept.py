"""What a process remembers of its rows: decoded images, and tokenised texts that recur."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmclip_jax.data.images import transforms
from mmclip_jax.text.schema import Entity

# Texts of each kind of maker: about 20 MB at 128 tokens.
TEXTS = 16_384


class Decoded:
    """Images by the number of their record, as long as there is room; those that came first stay.

    An epoch sees every image once, so none is worth more than another: what is kept is never exchanged. Not pickled,
    each process keeps its own.
    """

    def __init__(self, room: int):
        self._room = room  # bytes
        self._known: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __call__(self, record: int, image: bytes) -> np.ndarray:
        """The pixels [H, W] of the stored image of a record, not to be written into; errors as `decode_image`."""
        pixels = self._known.get(record)
        if pixels is None:
            pixels = transforms.decode_image(image)
            with self._lock:  # threads share the room
                if pixels.nbytes <= self._room and record not in self._known:
                    self._room -= pixels.nbytes
                    self._known[record] = pixels
        return pixels

    def __reduce__(self) -> tuple[Any, ...]:
        return Decoded, (self._room + sum(pixels.nbytes for pixels in self._known.values()),)


class Recalled:
    """A tokenizer's function that tokenises a text once and remembers it, up to TEXTS of them."""

    def __init__(self, tokenize: Callable[[str, Sequence[Entity]], Any]):
        self._tokenize = tokenize
        self._known: dict[tuple[str, tuple[Entity, ...]], Any] = {}

    def __call__(self, text: str, entities: Sequence[Entity]) -> Any:
        """What the tokenizer makes of a text with these entities; its arrays are not to be written into."""
        key = (text, tuple(entities))
        found = self._known.get(key)
        if found is None:
            found = self._tokenize(text, entities)
            if len(self._known) < TEXTS:
                self._known[key] = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_known": {}}
