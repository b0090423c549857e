"""What every tokenizer does, and the tokens of a text with the masks that tie them to entities.

A model sees ids from 0: 0 is padding, whatever the vocabulary's own file numbers so.
"""

import abc
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mmclip_jax.errors import UserError
from mmclip_jax.text.schema import Entity

PAD_ID = 0
MASK = "[MASK]"
ENTITY_LABELS = ("observation", "device", "anatomy")
MARK_OF_TEXT = -1  # in place of an entity's number: the token begins or ends the text, and is never masked


class TokenizedText(NamedTuple):
    """One text as arrays of L tokens, padded or cut.

    tokens: int32 [L], padded with `Tokenizer.pad_id`. entity: int32 [L], n for tokens of the text's n-th entity counted
    from 1, 0 for others, `MARK_OF_TEXT` for those that begin and end the text. affirmed: bool [L], tokens of
    observations and devices that the text does not deny. spans: int32 [L, 2], each token's characters [start, end) of
    the text without white space; 0, 0 for padding and marks.
    """

    tokens: np.ndarray
    entity: np.ndarray
    affirmed: np.ndarray
    spans: np.ndarray


class Tokenizer(abc.ABC):
    """Texts to token ids and back.

    Attributes:
      vocab_size: V, ids in all.
      mask_id: of [MASK].
      begin, end: the ids that stand before and behind every text, () where the vocabulary has no such marks.
      rows: int32 [V], for each id the row of the published weights' embedding, -1 where they have none.
      model_bytes: what a checkpoint keeps; `tokenizer.load_tokenizer` makes the same tokenizer of them.
      description: kind and size in a line.
    """

    pad_id = PAD_ID
    vocab_size: int
    mask_id: int
    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    rows: np.ndarray
    model_bytes: bytes
    description: str

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids without marks, and for each the characters [start, end) of `text` that it stands for.

        A piece that is white space alone has start == end. The bytes of one character all have that character's span.
        """
        tokens, spans = self._encode(text)
        return tokens.tolist(), [(start, end) for start, end in spans.tolist()]

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens; padding and marks are left out and masks read "[MASK]"."""

    @abc.abstractmethod
    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Each token's piece as the vocabulary writes it."""

    @abc.abstractmethod
    def _encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [n] and spans int32 [n, 2], without marks."""

    def encode_batch(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [n, length] padded, number of tokens of each [n]), with marks; a longer text loses its end."""
        ids = np.full((len(texts), length), self.pad_id, np.int32)
        count = np.zeros(len(texts), np.int32)
        for number, text in enumerate(texts):
            row, _ = self._marked(*self._encode(text), length)
            ids[number, : len(row)], count[number] = row, len(row)
        return ids, count

    def tokenize(
        self,
        text: str,
        entities: Sequence[Entity],
        length: int,
        entity_labels: Sequence[str] = ENTITY_LABELS,
    ) -> TokenizedText:
        """Tokens of a text with its entities, padded or cut to `length`.

        A token belongs to an entity if its span intersects the entity's characters; where it meets two, the first
        counts. `entity` holds numbers of entities with a label among `entity_labels`; `affirmed` does not depend on it.

        Args:
            text: any text.
            entities: entities of this very text, sorted and without overlaps, as `find_entities` returns them.
            length: L; tokens beyond it are cut off, the mark at the end is not.
            entity_labels: whose tokens `entity` numbers.

        Raises:
            UserError: entities that overlap, are out of order or lie outside of the text.
        """
        bounds = np.array([(e.start, e.end) for e in entities], np.int32).reshape(-1, 2)
        flat = bounds.ravel()
        if len(flat) and (flat[0] < 0 or flat[-1] > len(text) or (flat[1:] < flat[:-1]).any()):
            raise UserError(
                f"the {len(entities)} entities of a text of {len(text)} characters overlap, are out of order or lie "
                "outside of it: "
                "find them anew with mmclip_jax.text.entities.find_entities"
            )
        ids, covered = self._marked(*self._encode(text), length)
        n = len(ids)
        tokens = np.full(length, self.pad_id, np.int32)
        entity = np.zeros(length, np.int32)
        affirmed = np.zeros(length, bool)
        spans = np.zeros((length, 2), np.int32)
        tokens[:n], spans[:n] = ids, covered
        if entities:
            chosen = [i for i, e in enumerate(entities) if e.label in entity_labels]
            hit = _first_met(covered, bounds, chosen)
            entity[:n] = np.where(hit >= 0, hit + 1, 0)
            stated = [i for i, e in enumerate(entities) if not e.negated and e.label in ("observation", "device")]
            affirmed[:n] = _first_met(covered, bounds, stated) >= 0
        entity[: min(len(self.begin), n)] = MARK_OF_TEXT
        entity[n - min(len(self.end), n) : n] = MARK_OF_TEXT
        return TokenizedText(tokens, entity, affirmed, spans)

    def _marked(self, ids: np.ndarray, spans: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids [n] and spans [n, 2] with the marks around them, at most `length`."""
        room = max(length - len(self.begin) - len(self.end), 0)
        ids, spans = ids[:room], spans[:room]
        if not self.begin and not self.end:
            return ids, spans
        marks = np.zeros((len(self.begin) + len(self.end), 2), np.int32)
        joined = np.concatenate([self.begin, ids, self.end]).astype(np.int32)
        return joined[:length], np.concatenate([marks[: len(self.begin)], spans, marks[len(self.begin) :]])[:length]


def _first_met(spans: np.ndarray, bounds: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
    """For each span the first of the chosen entities that it intersects, or -1. int [n]."""
    if not chosen:
        return np.full(len(spans), -1)
    chosen_bounds = bounds[chosen]
    after = np.searchsorted(chosen_bounds[:, 1], spans[:, 0], side="right")
    candidate = np.minimum(after, len(chosen) - 1)
    meets = (after < len(chosen)) & (chosen_bounds[candidate, 0] < spans[:, 1]) & (spans[:, 0] < spans[:, 1])
    return np.where(meets, np.asarray(chosen)[candidate], -1)
