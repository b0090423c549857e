"""Vocabularies of published weights: ids and offsets are those of the libraries, and entities find their tokens."""

import gzip
import json
import pathlib
import pickle
import sys
from typing import Any

import numpy as np
import pytest
from conftest import load_benchmark

pytest.importorskip("tokenizers", reason="tokenizers has an environment of its own: make test-interop")

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mmclip_jax.errors import UserError
from mmclip_jax.text import subwords
from mmclip_jax.text.entities import find_entities
from mmclip_jax.text.schema import Entity
from mmclip_jax.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.torch
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
STRANGE = ["", " ", "naïve Café — ½ 胸部 🫁 \ud800 a\u0301", "don't;3.5cm\nNo [MASK]", "x" * 300]
CORPUS = [
    "No pleural effusion or pneumothorax.",
    "Stable cardiomegaly, small left effusion.",
    "The lungs are clear.",
] * 9


def bert(words: list[str], lowercase: bool = True) -> Tokenizer:
    """BERT's tokenizer from its parts."""
    built = Tokenizer(
        models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    built.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.decoder = decoders.WordPiece()
    marks = [(mark, words.index(mark)) for mark in ("[CLS]", "[SEP]")]
    built.add_special_tokens(MARKS)
    built.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    return built


def word_pieces(texts: list[str], size: int, lowercase: bool = True) -> list[str]:
    """A vocabulary learnt from texts, in its order."""
    learner = bert(MARKS, lowercase)
    learner.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=MARKS))
    vocabulary = learner.get_vocab()
    return sorted(vocabulary, key=lambda word: vocabulary[word])


def byte_pairs(texts: list[str], size: int) -> list[tuple[str, str]]:
    """Merges learnt from texts, in their order."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, end_of_word_suffix="</w>", initial_alphabet=alphabet)
    )
    return [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]


def letters() -> list[str]:
    """A letter for each byte, in the order of OpenAI's vocabulary."""
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]


def clip_pieces(merges: list[tuple[str, str]]) -> list[str]:
    """The vocabulary that OpenAI's list of merges stands for."""
    joined = ["".join(merge) for merge in merges]
    return [*letters(), *(f"{each}</w>" for each in letters()), *joined, "<|startoftext|>", "<|endoftext|>"]


def write_clip(folder: pathlib.Path, merges: list[tuple[str, str]], packed: bool) -> None:
    lines = [" ".join(merge) for merge in merges]
    if packed:
        content = "\n".join(["heading", *lines, ""]).encode()
        (folder / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(content))
    else:
        (folder / "vocab.json").write_text(json.dumps({piece: n for n, piece in enumerate(clip_pieces(merges))}))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]))


@pytest.fixture(scope="module")
def reports(wheel_dir: pathlib.Path) -> list[str]:
    """A thousand reports of Open-I."""
    module = load_benchmark("entities")
    read = module.read_reports(wheel_dir)
    return [report.text for report in read[:: len(read) // 1000]][:1000]


def check_entities(ours: subwords.SubwordTokenizer, text: str) -> int:
    """Checks the masks of a text's entities character by character; returns how many entities there are."""
    found = find_entities(text)
    length = 512
    made = ours.tokenize(text, found, length)
    inside = np.zeros(len(text), int)
    for number, entity in enumerate(found, start=1):
        if entity.label == "modifier":
            continue
        inside[entity.start : entity.end] = number
    n = int((made.tokens != 0).sum())
    assert made.entity[0] == made.entity[n - 1] == -1
    assert not made.spans[[0, n - 1]].any()
    assert not made.entity[n:].any()
    for number, (start, end) in zip(made.entity[1 : n - 1], made.spans[1 : n - 1], strict=True):
        touched = inside[start:end][inside[start:end] > 0]
        assert number == (touched[0] if len(touched) else 0)
    return len(found)


@pytest.mark.wheel
@pytest.mark.parametrize("lowercase", [True, False])
def test_word_pieces_of_a_thousand_real_reports(reports: list[str], tmp_path: pathlib.Path, lowercase: bool) -> None:
    words = word_pieces(reports, 3001, lowercase)
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    theirs, ours = bert(words, lowercase), load_tokenizer(tmp_path)
    assert isinstance(ours, subwords.SubwordTokenizer)
    assert (ours.vocab_size, ours.pad_id, ours.mask_id) == (len(words), 0, words.index("[MASK]"))
    assert (ours.begin, ours.end) == ((words.index("[CLS]"),), (words.index("[SEP]"),))
    entities = 0
    for text in [*reports, *STRANGE]:
        wanted = theirs.encode(text.replace("\ud800", "\ufffd"), add_special_tokens=False)
        assert ours.encode(text) == (wanted.ids, wanted.offsets)
        entities += check_entities(ours, text)
    assert entities > 5000
    assert ours.decode(ours.encode(reports[0])[0]) == theirs.decode(theirs.encode(reports[0]).ids)
    theirs.save(str(tmp_path / "tokenizer.json"))
    whole = load_tokenizer(tmp_path / "tokenizer.json")
    assert [whole.encode(text) for text in reports[:50]] == [ours.encode(text) for text in reports[:50]]


@pytest.mark.wheel
@pytest.mark.parametrize("packed", [True, False])
def test_byte_pairs_of_a_thousand_real_reports(reports: list[str], tmp_path: pathlib.Path, packed: bool) -> None:
    transformers = pytest.importorskip("transformers")
    merges = byte_pairs(reports, 1009)
    write_clip(tmp_path, merges, packed)
    pieces = clip_pieces(merges)
    theirs = transformers.CLIPTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, merges=merges)
    ours = load_tokenizer(tmp_path)
    assert isinstance(ours, subwords.SubwordTokenizer)
    # Their 0 is a piece and ours padding; one more id is for masks.
    assert (ours.vocab_size, ours.pad_id, ours.mask_id) == (len(pieces) + 2, 0, len(pieces) + 1)
    assert (ours.begin, ours.end) == ((len(pieces) - 2,), (len(pieces) - 1,))
    entities = 0
    for text in [*reports, *STRANGE, "why!? !!!"]:
        plain = text.replace("\ud800", "\ufffd")
        wanted = theirs(plain, add_special_tokens=False, return_offsets_mapping=True)
        ids, spans = ours.encode(text)
        assert [len(pieces) if number == 0 else number for number in wanted["input_ids"]] == ids
        assert [tuple(span) for span in wanted["offset_mapping"]] == spans
        entities += check_entities(ours, text)
    assert entities > 5000
    assert ours.rows[ours.encode("why!? !!!")[0]].tolist() == theirs("why!? !!!", add_special_tokens=False)["input_ids"]
    assert ours.rows[[0, len(pieces), len(pieces) + 1]].tolist() == [-1, 0, -1]
    ids, _ = ours.encode("Naïve café: 3 7")
    assert ours.decode([0, *ours.begin, *ids[:-1], ours.mask_id, *ours.end]) == "naïve café : 3 [MASK]"


def test_padding_that_is_not_zero_changes_places_with_what_is(tmp_path: pathlib.Path) -> None:
    words = ["[UNK]", "[CLS]", "no", "[PAD]", "[SEP]", "mass", "##es", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    ours = subwords.load(tmp_path)
    assert ours.encode("no masses elsewhere")[0] == [2, 5, 6, 3]
    assert ours.rows.tolist() == [3, 1, 2, 0, 4, 5, 6, 7]
    assert ours.pieces([0, 3]) == ["[PAD]", "[UNK]"]
    assert ours.decode([1, 2, 5, 6, 7, 4, 0]) == "no masses [MASK]"


def test_a_long_text_keeps_the_mark_of_its_end(tmp_path: pathlib.Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*MARKS, "no", "mass"]) + "\n")
    ours = subwords.load(tmp_path)
    text = "no mass no mass no mass"
    made = ours.tokenize(text, [Entity(3, 7, "mass", "observation", False)], 5)
    assert made.tokens.tolist() == [2, 5, 6, 5, 3]
    assert made.entity.tolist() == [-1, 0, 1, 0, -1]
    assert made.affirmed.tolist() == [False, False, True, False, False]
    ids, count = ours.encode_batch([text, "no"], 5)
    assert ids.tolist() == [[2, 5, 6, 5, 3], [2, 5, 3, 0, 0]]
    assert count.tolist() == [5, 3]


@pytest.mark.parametrize(("words", "lowered"), [(["no", "mass"], True), (["no", "mass", "Mass"], False)])
def test_capital_letters_in_the_vocabulary_say_that_case_counts(
    tmp_path: pathlib.Path, words: list[str], lowered: bool
) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*MARKS, *words]) + "\n")
    assert (subwords.load(tmp_path).encode("No")[0] == [5]) == lowered
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": not lowered}))
    assert (subwords.load(tmp_path).encode("No")[0] == [5]) != lowered


@pytest.mark.parametrize("kind", ["words", "pairs"])
def test_what_a_checkpoint_keeps_is_the_whole_tokenizer(tmp_path: pathlib.Path, kind: str) -> None:
    if kind == "words":
        (tmp_path / "vocab.txt").write_text("\n".join(word_pieces(CORPUS, 53)) + "\n")
    else:
        write_clip(tmp_path, byte_pairs(CORPUS, 300), packed=True)
    ours = load_tokenizer(tmp_path)
    for file in tmp_path.iterdir():
        file.unlink()
    text = "No small effusion &amp; clear"
    for copy in (load_tokenizer(ours.model_bytes), pickle.loads(pickle.dumps(ours))):
        assert copy.model_bytes == ours.model_bytes
        assert copy.encode(text) == ours.encode(text)
        assert copy.encode_batch([text], 11)[0].tolist() == ours.encode_batch([text], 11)[0].tolist()
        for name in ("vocab_size", "mask_id", "begin", "end", "description"):
            assert getattr(copy, name) == getattr(ours, name)
    damaged = ours.model_bytes.replace(b'"type"', b'"kind"')
    for content in (damaged, ours.model_bytes[:-9], ours.model_bytes.replace(b"subwords 1", b"subwords 2")):
        with pytest.raises(UserError) as caught:
            load_tokenizer(content)
        assert "\n" not in str(caught.value)


def test_without_the_library_one_line_says_what_to_install(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*MARKS, "no"]) + "\n")
    content = load_tokenizer(tmp_path).model_bytes
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    sources: list[Any] = [tmp_path, content]
    for source in sources:
        with pytest.raises(UserError, match=r"needs the package tokenizers: install the extra \[interop\]"):
            load_tokenizer(source)
