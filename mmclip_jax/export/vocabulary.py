"""A run's tokenizer as `tokenizer.json`, the format of the package `tokenizers`: the same ids for the same text.

Written as JSON alone, so nothing needs to be installed for it.
"""

import json
from typing import Any

from mmclip_jax.errors import UserError
from mmclip_jax.text import subwords
from mmclip_jax.text.sentencepieces import SentencePieceTokenizer
from mmclip_jax.text.tokens import MASK, PAD_ID, Tokenizer

_SPACE = "\u2581"


def is_subwords(tokenizer: Tokenizer) -> bool:
    """Whether it is the vocabulary of published weights."""
    return isinstance(tokenizer, subwords.SubwordTokenizer)


def pad_piece(tokenizer: Tokenizer) -> str:
    """The piece of id 0."""
    return tokenizer.pieces([PAD_ID])[0]


def settings(tokenizer: Tokenizer, length: int) -> dict[str, Any]:
    """The content of tokenizer_config.json; length: tokens of the longest text."""
    said: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "pad_token": pad_piece(tokenizer),
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    return said


def as_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of tokenizer.json; ids are those of the run (padding is 0)."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _sentencepieces(tokenizer)
    assert isinstance(tokenizer, subwords.SubwordTokenizer)
    return _renumbered(tokenizer)


def _sentencepieces(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    scores = tokenizer.piece_scores()
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    numbers = {piece: number for number, piece in enumerate(pieces)}
    merges = []
    for number, piece in enumerate(pieces):
        if scores[number] is None:  # padding, masks and bytes are no result of a merge
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in numbers and right in numbers:
                merges.append((scores[number], numbers[left], numbers[right], left, right))
    merges.sort(key=lambda merge: (-merge[0], merge[1], merge[2]))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": _lower_case(),
        # No piece crosses white space, and each word begins with the mark of a space.
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": _white_space()},
                    "behavior": "Removed",
                    "invert": False,
                },
                {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "always", "split": False},
            ],
        },
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": numbers,
            "merges": [[left, right] for *_, left, right in merges],
        },
    }


def _white_space() -> str:
    """A regular expression of what separates words: Python's white space, and SentencePiece's mark."""
    spaces = "".join(f"\\x{{{code:x}}}" for code in range(0x110000) if chr(code).isspace())
    return f"[{spaces}{_SPACE}]+"


def _lower_case() -> dict[str, Any]:
    """Lower case as Python's, which alone knows the form of a sigma that ends a word.

    One letter differs: İ stays as it is in a run, and becomes i with a dot above here.
    """
    final_sigma = {"type": "Replace", "pattern": {"Regex": r"(?<=\p{L})Σ(?!\p{L})"}, "content": "ς"}
    return {"type": "Sequence", "normalizers": [final_sigma, {"type": "Lowercase"}]}


def _renumbered(tokenizer: subwords.SubwordTokenizer) -> dict[str, Any]:
    """The vocabulary's own tokenizer.json with the run's numbers, padding 0, and the pieces that it had to add."""
    said: dict[str, Any] = json.loads(tokenizer.model_bytes)["tokenizer"]
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    numbers = {piece: number for number, piece in enumerate(pieces)}
    model = said["model"]
    own = model["vocab"]
    if not isinstance(own, dict):
        raise UserError(f"a vocabulary of kind {model['type']} has no numbers that can be changed: it is not exported")
    model["vocab"] = {piece: numbers[piece] for piece in own} | {
        piece: numbers[piece] for piece in (pieces[PAD_ID], MASK) if piece not in own and piece in numbers
    }
    for token in said.get("added_tokens") or []:
        token["id"] = numbers[token["content"]]
    for token in ((said.get("post_processor") or {}).get("special_tokens") or {}).values():
        token["ids"] = [numbers[piece] for piece in token["tokens"]]
    return said
