"""Our own tokenizer, and how it is trained.

A SentencePiece byte-pair model with byte fallback over normalised text (see `normalise`): lower case, runs of white
space as one space. The text is cut into words here and SentencePiece, which normalises nothing itself, sees them one by
one: offsets stay exact whatever the text holds. There is no class token and no end token.
"""

import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mmclip_jax.errors import UserError
from mmclip_jax.text.entities import lowercase
from mmclip_jax.text.tokens import MASK, PAD_ID, Tokenizer

UNK_ID = 1
_SPACE_MARK = "\u2581"
# Surrogates stand for no character and cannot be encoded; they become the replacement character.
_SURROGATES = re.compile("[\ud800-\udfff]")


# What is white space to str.isspace, and SentencePiece's mark for a space, separates words.
_WORDS = re.compile(rf"[^\s{_SPACE_MARK}]+")
_CACHED_WORDS = 65_536


class SentencePieceTokenizer(Tokenizer):
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
        self.mask_id = self._pieces.index(MASK) if MASK in self._pieces else -1
        is_byte = [self._processor.IsByte(i) for i in range(self.vocab_size)]
        if self._processor.pad_id() != PAD_ID or self.mask_id < 0 or sum(is_byte) != 256:
            raise UserError(f"{name}: made for another program; train one with mmclip tokenizer train")
        self._bytes = {i: int(self._pieces[i][3:-1], 16) for i in range(self.vocab_size) if is_byte[i]}
        self.rows = np.arange(self.vocab_size, dtype=np.int32)
        self.description = f"SentencePiece, {self.vocab_size:,} pieces"
        self._name = name
        self._cached_word = functools.lru_cache(_CACHED_WORDS)(self._word)

    def __reduce__(self) -> tuple[type["SentencePieceTokenizer"], tuple[bytes, str]]:
        return SentencePieceTokenizer, (self.model_bytes, self._name)

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

    def piece_scores(self) -> list[float | None]:
        """Each piece's score: of all that two neighbours can become, the highest is merged. None: no merge gives it."""
        model = self._processor
        special = (model.IsControl, model.IsUnknown, model.IsByte, model.IsUnused)
        return [
            None if any(check(i) for check in special) else float(model.GetScore(i)) for i in range(self.vocab_size)
        ]

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


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, path: str | os.PathLike[str] | None = None
) -> SentencePieceTokenizer:
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
    return SentencePieceTokenizer(model)
