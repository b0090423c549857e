"""Text to tokens, with the masks that tie tokens to entities.

A SentencePiece byte-pair model with byte fallback over normalised text (see `normalise`): lower case, runs of white
space as one space. The text is cut into words here and SentencePiece, which normalises nothing itself, sees them one by
one: offsets stay exact whatever the text holds. There is no class token and no end token.
"""

import functools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmclip_jax import files
from mmclip_jax.errors import UserError
from mmclip_jax.text import vocabulary
from mmclip_jax.text.entities import lowercase
from mmclip_jax.text.schema import Entity

PAD_ID = 0
UNK_ID = 1
MASK = "[MASK]"
ENTITY_LABELS = ("observation", "device", "anatomy")

_SPACE_MARK = "\u2581"
# Surrogates stand for no character and cannot be encoded; they become the replacement character.
_SURROGATES = re.compile("[\ud800-\udfff]")


# What is white space to str.isspace, and SentencePiece's mark for a space, separates words.
_WORDS = re.compile(rf"[^\s{_SPACE_MARK}]+")
_CACHED_WORDS = 65_536


class TokenizedText(NamedTuple):
    """One text as arrays of L tokens, padded or cut.

    tokens: int32 [L], padded with `Tokenizer.pad_id`. entity: int32 [L], n for tokens of the text's n-th entity counted
    from 1, 0 for others. affirmed: bool [L], tokens of observations and devices that the text does not deny.
    spans: int32 [L, 2], each token's characters [start, end) of the text without white space; 0, 0 for padding.
    """

    tokens: np.ndarray
    entity: np.ndarray
    affirmed: np.ndarray
    spans: np.ndarray


class Tokenizer:
    """A SentencePiece model made by `train_tokenizer`.

    Args:
        model: the serialised model.
        name: what to call it in error messages.

    Raises:
        UserError: not a SentencePiece model, or one without our padding and [MASK] pieces or byte fallback.
    """

    def __init__(self, model: bytes, name: str = "the tokenizer model"):
        import sentencepiece

        self.model_bytes = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
            self._pieces = [self._processor.IdToPiece(i) for i in range(self._processor.GetPieceSize())]
        except (RuntimeError, TypeError, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{name}: not a SentencePiece model: {error}") from None
        self.vocab_size = len(self._pieces)
        self.pad_id = PAD_ID
        self.mask_id = self._pieces.index(MASK) if MASK in self._pieces else -1
        is_byte = [self._processor.IsByte(i) for i in range(self.vocab_size)]
        if self._processor.pad_id() != PAD_ID or self.mask_id < 0 or sum(is_byte) != 256:
            raise UserError(f"{name}: made for another program; train one with tokenizer.train_tokenizer")
        self._bytes = {i: int(self._pieces[i][3:-1], 16) for i in range(self.vocab_size) if is_byte[i]}
        self._name = name
        self._cached_word = functools.lru_cache(_CACHED_WORDS)(self._word)

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes, str]]:
        return Tokenizer, (self.model_bytes, self._name)

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and for each the characters [start, end) of `text` that it stands for, without white space.

        A piece that is white space alone has start == end. The bytes of one character all have that character's span.
        """
        tokens, spans = self._encode(text)
        return tokens.tolist(), [(start, end) for start, end in spans.tolist()]

    def decode(self, ids: Iterable[int]) -> str:
        """The normalised text of tokens; padding is left out and masks read "[MASK]"."""
        parts: list[bytes] = []
        for i in ids:
            i = int(i)
            if i in self._bytes:
                parts.append(bytes([self._bytes[i]]))
            elif i == self.mask_id:
                parts.append(b" " + MASK.encode())
            elif i != self.pad_id:
                parts.append(self._pieces[i].replace(_SPACE_MARK, " ").encode())
        return b"".join(parts).decode("utf-8", errors="replace").removeprefix(" ")

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Each token's piece, with SentencePiece's mark for a leading space."""
        return [self._pieces[int(i)] for i in ids]

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
            length: L; tokens beyond it are cut off.
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
        ids, covered = self._encode(text)
        n = min(len(ids), length)
        ids, covered = ids[:n], covered[:n]
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
        return TokenizedText(tokens, entity, affirmed, spans)

    def _encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [n] and spans int32 [n, 2]."""
        ids: list[int] = []
        starts: list[int] = []
        ends: list[int] = []
        bases: list[int] = []
        counts: list[int] = []
        for match in _WORDS.finditer(_encodable(text)):
            word_ids, word_starts, word_ends = self._cached_word(match.group())
            ids += word_ids
            starts += word_starts
            ends += word_ends
            bases.append(match.start())
            counts.append(len(word_ids))
        spans = np.array((starts, ends), np.int32).T
        return np.array(ids, np.int32), spans + np.repeat(np.array(bases, np.int32), counts)[:, None]

    def _word(self, word: str) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Ids of one word, and the characters [start, end) of it that each covers.

        No piece crosses a space, so that a text's tokens are its words' tokens, and the words can be remembered.
        """
        ids = self._processor.EncodeAsIds(word)
        starts, ends = [], []
        position = 0
        for i in ids:
            byte = self._bytes.get(i)
            if byte is None:
                piece = self._pieces[i].removeprefix(_SPACE_MARK)
                starts.append(position)
                position += len(piece)
            elif 0x80 <= byte < 0xC0:
                starts.append(position - 1)  # a further byte of the character before
            else:
                starts.append(position)
                position += 1
            ends.append(position)
        if position != len(word):
            raise UserError(
                f"{self._name}: its pieces do not spell a word of the text; it was trained with a normalisation"
            )
        return tuple(ids), tuple(starts), tuple(ends)


def normalise(text: str) -> str:
    """What a tokenizer sees and `decode` returns: lower case, single spaces, none at the ends."""
    return " ".join(_WORDS.findall(_encodable(text)))


def _encodable(text: str) -> str:
    """Lower case of the same length that has a UTF-8 form."""
    lowered = lowercase(text)
    return lowered if lowered.isascii() else _SURROGATES.sub("\ufffd", lowered)


def _first_met(spans: np.ndarray, bounds: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
    """For each span the first of the chosen entities that it intersects, or -1. int [n]."""
    if not chosen:
        return np.full(len(spans), -1)
    chosen_bounds = bounds[chosen]
    after = np.searchsorted(chosen_bounds[:, 1], spans[:, 0], side="right")
    candidate = np.minimum(after, len(chosen) - 1)
    meets = (after < len(chosen)) & (chosen_bounds[candidate, 0] < spans[:, 1]) & (spans[:, 0] < spans[:, 1])
    return np.where(meets, np.asarray(chosen)[candidate], -1)


def load_tokenizer(path_or_bytes: str | os.PathLike[str] | bytes | None = None) -> Tokenizer:
    """A tokenizer from a model file or its content; None for the default of `vocabulary.default()`.

    Raises:
        UserError: no such file, or not a tokenizer of ours.
    """
    if isinstance(path_or_bytes, bytes):
        return Tokenizer(path_or_bytes)
    path = vocabulary.default().tokenizer if path_or_bytes is None else files.locate(path_or_bytes)
    try:
        return Tokenizer(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot read the tokenizer: {error.strerror}") from None


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: str | os.PathLike[str] | None = None) -> Tokenizer:
    """Learns a vocabulary from texts; the same texts in the same order give the same model.

    Args:
        texts: reports, prompts: whatever the tokenizer will see. They are normalised here.
        vocab_size: pieces in all, among them 256 bytes and 3 special pieces. If the texts cannot fill it, the model has
            fewer.
        path: where to write the model; None writes nothing.

    Raises:
        UserError: no text at all, or a vocabulary too small for the texts' characters.
    """
    import io

    import sentencepiece

    # A list, so that an error in the caller's iterator does not come out as one of the trainer.
    lines = [normal for text in texts if (normal := normalise(text))]
    if not lines:
        raise UserError("cannot train a tokenizer: there is no text")
    writer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(lines),
            model_writer=writer,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            split_digits=True,
            max_sentencepiece_length=20,
            control_symbols=[MASK],
            pad_id=PAD_ID,
            unk_id=UNK_ID,
            bos_id=-1,
            eos_id=-1,
            pad_piece="<pad>",
            unk_piece="<unk>",
            num_threads=1,
            shuffle_input_sentence=False,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise UserError(f"cannot train a tokenizer of {vocab_size} pieces on these texts: {error}") from None
    model = writer.getvalue()
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(model)
    return Tokenizer(model)
