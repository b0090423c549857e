"""Other models' texts as token ids, by the vocabulary that came with them; nothing is downloaded.

What a vocabulary is, its files say: tokenizer.json (any), vocab.json with merges.txt (CLIP's byte pairs as Hugging Face
keeps them), bpe_simple_vocab_16e6.txt.gz (the same as OpenAI and open_clip keep it), vocab.txt (BERT's word pieces).
"""

import gzip
import html
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmclip_jax.errors import UserError
from mmclip_jax.external.fields import field
from mmclip_jax.external.weights import INSTALL, read_json

OPENAI_MERGES = "bpe_simple_vocab_16e6.txt.gz"
_OPENAI_ENDING = ".txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
# Merges of OpenAI's list that its tokenizer uses; its file has more lines.
_OPENAI_MERGES = 49152 - 256 - 2
# Words of CLIP's tokenizer: its marks, English endings, runs of letters, single digits, runs of anything else.
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_STEP = 16


class Subwords:
    """Texts to token ids, with the marks that the model expects, cut at its longest text.

    Attributes: vocab_size; file, where the vocabulary came from.
    """

    def __init__(self, tokenizer: Any, file: pathlib.Path):
        self._tokenizer, self.file = tokenizer, file
        # The programs whose vocabulary this is (OpenAI's, CheXzero, open_clip) resolve HTML's entities, twice.
        self._escaped = file.name.endswith(_OPENAI_ENDING)
        self.vocab_size = int(tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str], context: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [n,L], number of tokens of each [n]); L is a multiple of 16, or `context` if that is less.

        A longer text loses its end; the closing mark stays. Behind a text the ids are 0.
        """
        words = [html.unescape(html.unescape(text)) for text in texts] if self._escaped else list(texts)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(context)
        rows = [encoded.ids for encoded in self._tokenizer.encode_batch(words)]
        count = np.array([len(row) for row in rows], np.int32)
        length = min(context, -(-int(count.max(initial=1)) // _STEP) * _STEP)
        ids = np.zeros((len(rows), length), np.int32)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = tokens
        return ids, count


def load(path: str | os.PathLike[str], vocab_size: int) -> Subwords:
    """Reads a vocabulary: one of the files, or a folder that holds one of them.

    Args:
      path: the file or folder.
      vocab_size: rows of the model's token embedding.

    Raises:
      UserError: no vocabulary there, one that cannot be read, or one of another size than the model's.
    """
    path = pathlib.Path(path).expanduser()
    file = _find(path)
    try:
        tokenizer = _build(file)
    except ImportError as error:
        raise UserError(f"{file} needs the package tokenizers; {INSTALL}") from error
    except UserError:
        raise
    except Exception as error:  # the library raises a bare Exception; a damaged file fails in many ways
        raise UserError(f"{file} is no vocabulary ({' '.join(str(error).split())})") from error
    subwords = Subwords(tokenizer, file)
    if subwords.vocab_size != vocab_size:
        raise UserError(
            f"{file} has {subwords.vocab_size} entries and the model's token embedding {vocab_size} rows: it is the "
            "vocabulary of another model"
        )
    if subwords.encode([""], 16)[1][0] != 2:
        raise UserError(f"{file}: it does not put a text between two marks, which the model needs")
    return subwords


def _build(file: pathlib.Path) -> Any:
    import tokenizers

    if file.name.endswith(_OPENAI_ENDING):
        return _clip(*_openai_vocabulary(file))
    if file.name == "vocab.txt":
        return _word_pieces(file)
    if file.name == "vocab.json":
        return _clip(*_huggingface_vocabulary(file))
    return tokenizers.Tokenizer.from_file(str(file))


def _find(path: pathlib.Path) -> pathlib.Path:
    if path.is_file():
        return path
    names = ("tokenizer.json", "vocab.json", OPENAI_MERGES, "vocab.txt")
    for name in names:
        if (path / name).is_file():
            return path / name
    raise UserError(
        f"{path} holds no vocabulary ({', '.join(names)}); take it from where the checkpoint came from, and name it "
        "with --vocabulary"
    )


def _openai_vocabulary(file: pathlib.Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(pieces, merges) of OpenAI's list of merges, gzipped: a heading, then a merge a line."""
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        lines = stream.read().rstrip("\n").split("\n")[1:]
    merges = _merges(file, lines[:_OPENAI_MERGES])
    letters = _byte_letters()
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges), START, END]
    return {piece: number for number, piece in enumerate(pieces)}, merges


def _huggingface_vocabulary(file: pathlib.Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    merges = file.with_name("merges.txt")
    if not merges.is_file():
        raise UserError(f"{merges} is missing; it belongs to {file.name}")
    lines = merges.read_text(encoding="utf-8").split("\n")
    return read_json(file), _merges(merges, [line for line in lines if line and not line.startswith("#version")])


def _merges(file: pathlib.Path, lines: Sequence[str]) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(lines):
        parts = line.split()
        if len(parts) != 2:
            raise UserError(f"{file}: merge {number + 1} is {line!r} and not two pieces")
        merges.append((parts[0], parts[1]))
    return merges


def _byte_letters() -> list[str]:
    """A printable letter for each of the 256 bytes, in the order of OpenAI's vocabulary.

    Bytes that are printable stand for themselves and come first; the others take the letters from 256 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(256 + number) for number in range(others)]


def _clip(pieces: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """CLIP's tokenizer: lower case, words in bytes, merged pair by pair, between the marks of start and end."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    if START not in pieces or END not in pieces:
        raise ValueError(f"it lacks {START} or {END}, so it is not CLIP's")
    tokenizer = Tokenizer(models.BPE(pieces, merges, end_of_word_suffix="</w>", unk_token=END, fuse_unk=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, pieces[START]), (END, pieces[END])]
    )
    return tokenizer


def _word_pieces(file: pathlib.Path) -> Any:
    """BERT's tokenizer; lower case unless tokenizer_config.json beside it says otherwise."""
    from tokenizers import BertWordPieceTokenizer

    lines = file.read_text(encoding="utf-8").splitlines()
    if missing := [mark for mark in ("[CLS]", "[SEP]", "[UNK]") if mark not in lines]:
        raise UserError(f"{file} lacks {missing[0]}: it is not BERT's vocabulary")
    beside = file.with_name("tokenizer_config.json")
    lowercase = field(str(beside), read_json(beside), "do_lower_case", bool, True) if beside.is_file() else True
    return BertWordPieceTokenizer(str(file), lowercase=lowercase)
