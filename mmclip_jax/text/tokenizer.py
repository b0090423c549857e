"""The way to a tokenizer: ours (SentencePiece), or the vocabulary of published weights (word pieces, byte pairs)."""

import os

from mmclip_jax import files
from mmclip_jax.errors import UserError
from mmclip_jax.text import subwords, vocabulary
from mmclip_jax.text.sentencepieces import SentencePieceTokenizer, normalise, train_tokenizer
from mmclip_jax.text.tokens import MASK, PAD_ID, TokenizedText, Tokenizer

__all__ = ["MASK", "PAD_ID", "TokenizedText", "Tokenizer", "load_tokenizer", "normalise", "train_tokenizer"]


def load_tokenizer(path_or_bytes: str | os.PathLike[str] | bytes | None = None) -> Tokenizer:
    """A tokenizer from a file, or from the bytes that a checkpoint keeps; None for `vocabulary.default().tokenizer`.

    A file of `subwords.NAMES`, or a folder with one, is the vocabulary of published weights; any other is ours.

    Raises:
        UserError: no such file, not a tokenizer, or a library that it needs is missing.
    """
    if isinstance(path_or_bytes, bytes):
        if subwords.is_subwords(path_or_bytes):
            return subwords.of_bytes(path_or_bytes)
        return SentencePieceTokenizer(path_or_bytes)
    path = vocabulary.default().tokenizer if path_or_bytes is None else files.locate(path_or_bytes)
    if path.is_dir() or path.name in subwords.NAMES:
        return subwords.load(path)
    try:
        return SentencePieceTokenizer(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot read the tokenizer: {error.strerror}") from None
