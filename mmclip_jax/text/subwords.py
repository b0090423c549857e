"""The vocabulary of published weights: BERT's word pieces, CLIP's byte pairs; nothing is downloaded.

What a vocabulary is, its files say: tokenizer.json (any), vocab.json with merges.txt (CLIP's byte pairs as Hugging Face
keeps them), bpe_simple_vocab_16e6.txt.gz (the same as OpenAI and open_clip keep it), vocab.txt (BERT's word pieces).
The package `tokenizers` cuts the texts.

Ids are those of the vocabulary, with two changes where it needs them. Padding is 0: whatever the vocabulary numbers 0
takes the number of its padding, or the first free one if it has none. A vocabulary without a piece for masked tokens
(CLIP's) gets one more id for it.
"""

import gzip
import html
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mmclip_jax.errors import UserError, extra
from mmclip_jax.fields import field, read_json
from mmclip_jax.text.tokens import MASK, PAD_ID, Tokenizer

OPENAI_MERGES = "bpe_simple_vocab_16e6.txt.gz"
NAMES = ("tokenizer.json", "vocab.json", OPENAI_MERGES, "vocab.txt")
START, END = "<|startoftext|>", "<|endoftext|>"
_OPENAI_ENDING = ".txt.gz"
# Merges of OpenAI's list that its tokenizer uses; its file has more lines.
_OPENAI_MERGES = 49152 - 256 - 2
# Words of CLIP's tokenizer: its marks, English endings, runs of letters, single digits, runs of anything else.
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_WORD_END = "</w>"
_PADS, _MASKS = ("[PAD]", "<pad>"), ("[MASK]", "<mask>")
_SCHEMA = "mmclip-jax subwords 1"  # how the bytes that a checkpoint keeps begin


class SubwordTokenizer(Tokenizer):
    """A tokenizer of the package `tokenizers` that puts a text between two marks.

    Args:
      tokenizer: a `tokenizers.Tokenizer`.
      name: what to call it in error messages.
      resolves_html: whether `encode_batch` resolves HTML's entities, twice, as the programs do whose vocabulary it is
        (OpenAI's, CheXzero, open_clip). What a run learns from has been cleaned of them when it was built.

    Raises:
      UserError: it does not put a text between two marks.
    """

    def __init__(self, tokenizer: Any, name: str, resolves_html: bool = False):
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer, self._resolves_html = tokenizer, resolves_html
        pieces = [tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size())]
        if None in pieces:
            raise UserError(f"{name}: it has no piece number {pieces.index(None)}; its ids must have no gaps")
        rows = list(range(len(pieces)))
        pad = next((pieces.index(piece) for piece in _PADS if piece in pieces), None)
        if pad is None:
            pad, pieces, rows = len(pieces), [*pieces, _PADS[0]], [*rows, -1]
        rows[PAD_ID], rows[pad] = rows[pad], rows[PAD_ID]
        mask = next((pieces.index(piece) for piece in _MASKS if piece in pieces), None)
        if mask is None:
            mask, pieces, rows = len(pieces), [*pieces, MASK], [*rows, -1]
        self._renamed = np.arange(len(pieces), dtype=np.int32)  # from the vocabulary's numbers to ours, and back
        self._renamed[[PAD_ID, pad]] = pad, PAD_ID
        self._pieces = [pieces[number] for number in self._renamed]
        self.rows = np.asarray(rows, np.int32)
        self.vocab_size = len(pieces)
        self.mask_id = int(self._renamed[mask])
        marks = [int(self._renamed[number]) for number in tokenizer.encode("").ids]
        if len(marks) != 2:
            raise UserError(f"{name}: it does not put a text between two marks, which the model needs")
        self.begin, self.end = (marks[0],), (marks[1],)
        self._suffix = getattr(tokenizer.model, "end_of_word_suffix", None) == _WORD_END
        kind = type(tokenizer.model).__name__
        self.description = f"{kind}, {len(tokenizer.get_vocab()):,} pieces"
        content = {"schema": _SCHEMA, "name": name, "html": resolves_html, "tokenizer": json.loads(tokenizer.to_str())}
        self.model_bytes = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8")

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return of_bytes, (self.model_bytes,)

    @property
    def embedding_rows(self) -> int:
        """Rows of the token embedding that belongs to the vocabulary."""
        return int(self.rows.max()) + 1

    def _encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        # Lone surrogates stand for no character.
        plain = text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        encoded = self._tokenizer.encode(plain, add_special_tokens=False)
        ids = self._renamed[np.asarray(encoded.ids, np.int32)]
        return ids, np.asarray(encoded.offsets, np.int32).reshape(-1, 2)

    def encode_batch(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [n, length] padded, number of tokens of each [n]), with marks; a longer text loses its end."""
        plain = [html.unescape(html.unescape(text)) for text in texts] if self._resolves_html else texts
        return super().encode_batch(plain, length)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens; padding and marks are left out and masks read "[MASK]"."""
        parts: list[str] = []
        run: list[int] = []
        for number in [*map(int, ids), self.mask_id]:
            if number == self.mask_id:
                parts.append(self._text(run))
                run = []
            elif number not in (self.pad_id, *self.begin, *self.end):
                run.append(number)
        return " ".join(part for text in parts for part in (text, MASK) if part).removesuffix(MASK).strip()

    def _text(self, ids: Sequence[int]) -> str:
        if not self._suffix:
            return str(self._tokenizer.decode([int(self._renamed[number]) for number in ids]))
        letters = {letter: byte for byte, letter in zip(_letter_bytes(), _byte_letters(), strict=True)}
        words = "".join(self._pieces[number] for number in ids).split(_WORD_END)
        spelled = (bytes(letters[letter] for letter in word if letter in letters) for word in words)
        return " ".join(word.decode("utf-8", errors="replace") for word in spelled).strip()

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Each token's piece as the vocabulary writes it."""
        return [self._pieces[int(number)] for number in ids]


def is_subwords(content: bytes) -> bool:
    """Whether these bytes are those of a `SubwordTokenizer`."""
    return content.startswith(b'{"schema":"mmclip-jax subwords')


def of_bytes(content: bytes) -> SubwordTokenizer:
    """The tokenizer whose `model_bytes` these are.

    Raises:
      UserError: damaged, of a newer version, or the package `tokenizers` is missing.
    """
    try:
        read = json.loads(content)
        schema, name, resolves_html, said = (read[key] for key in ("schema", "name", "html", "tokenizer"))
    except (ValueError, KeyError) as error:
        raise UserError(f"the tokenizer of the checkpoint is damaged ({error})") from error
    if schema != _SCHEMA:
        raise UserError(f"the tokenizer {name} was saved as {schema!r}, which this version of mmclip-jax cannot read")
    with _named_errors(name):
        from tokenizers import Tokenizer as Library

        return SubwordTokenizer(Library.from_str(json.dumps(said)), name, bool(resolves_html))


def load(path: str | os.PathLike[str]) -> SubwordTokenizer:
    """Reads a vocabulary: one of the files `NAMES`, or a folder that holds one of them.

    Raises:
      UserError: no vocabulary there, one that cannot be read, or the package `tokenizers` is missing.
    """
    file = find(path)
    with _named_errors(str(file)):
        return SubwordTokenizer(_build(file), str(file), file.name.endswith(_OPENAI_ENDING))


def check_rows(tokenizer: Tokenizer, rows: int, name: str) -> None:
    """Refuses a tokenizer that is not of the weights' token embedding, of so many rows.

    Raises:
      UserError: naming both sizes.
    """
    known = int(tokenizer.rows.max()) + 1
    if known != rows:
        raise UserError(
            f"{name} has {known} entries and the model's token embedding {rows} rows: it is the vocabulary of another "
            "model"
        )


class _named_errors:
    """Turns what the library raises into one line; it raises a bare Exception, and damage shows in many ways."""

    def __init__(self, name: str):
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        if isinstance(error, ImportError):
            raise UserError(f"{self._name} needs the package tokenizers: install {extra('interop')}") from error
        if isinstance(error, Exception) and not isinstance(error, UserError):
            raise UserError(f"{self._name} is no vocabulary ({' '.join(str(error).split())[:200]})") from error


def _build(file: pathlib.Path) -> Any:
    import tokenizers

    if file.name.endswith(_OPENAI_ENDING):
        return _clip(*_openai_vocabulary(file))
    if file.name == "vocab.txt":
        return _word_pieces(file)
    if file.name == "vocab.json":
        return _clip(*_huggingface_vocabulary(file))
    return tokenizers.Tokenizer.from_file(str(file))


def find(path: str | os.PathLike[str]) -> pathlib.Path:
    """The file of a vocabulary: the path itself, or one in the folder.

    Raises:
      UserError: there is none.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_file():
        return path
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    raise UserError(
        f"{path} holds no vocabulary ({', '.join(NAMES)}); take it from where the weights came from, and put it beside "
        "them or name it (data.tokenizer in training, --vocabulary in evaluation)"
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


def _letter_bytes() -> list[int]:
    """All bytes in the order of OpenAI's vocabulary: the printable ones first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*printable, *sorted(set(range(256)) - set(printable))]


def _byte_letters() -> list[str]:
    """A printable letter for each of `_letter_bytes`.

    Bytes that are printable stand for themselves; the others take the letters from 256 on.
    """
    codes = _letter_bytes()
    printable = codes.index(0)
    return [chr(code) for code in codes[:printable]] + [chr(256 + number) for number in range(256 - printable)]


def _clip(pieces: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """CLIP's tokenizer: lower case, words in bytes, merged pair by pair, between the marks of start and end."""
    from tokenizers import Regex, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Library

    if START not in pieces or END not in pieces:
        raise ValueError(f"it lacks {START} or {END}, so it is not CLIP's")
    tokenizer = Library(models.BPE(pieces, merges, end_of_word_suffix=_WORD_END, unk_token=END, fuse_unk=False))
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
    """BERT's tokenizer.

    In lower case if tokenizer_config.json beside it says so; where nothing says it, if no piece has a capital letter.
    """
    from tokenizers import BertWordPieceTokenizer
    from tokenizers import Tokenizer as Library

    lines = file.read_text(encoding="utf-8").splitlines()
    if missing := [mark for mark in ("[CLS]", "[SEP]", "[UNK]") if mark not in lines]:
        raise UserError(f"{file} lacks {missing[0]}: it is not BERT's vocabulary")
    beside = file.with_name("tokenizer_config.json")
    told = read_json(beside) if beside.is_file() else {}
    cased = any(letter.isupper() for line in lines if not line.startswith("[") for letter in line)
    lowercase = field(str(beside), told, "do_lower_case", bool, not cased)
    made = BertWordPieceTokenizer(
        str(file),
        lowercase=lowercase,
        strip_accents=field(str(beside), told, "strip_accents", bool, None),
        handle_chinese_chars=field(str(beside), told, "tokenize_chinese_chars", bool, True),
    )
    return Library.from_str(made.to_str())
