"""Offsets and masks against character-level and brute-force counterparts; what SentencePiece makes of whole texts."""

import pathlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmclip_jax.data import build_default_tokenizer
from mmclip_jax.errors import UserError
from mmclip_jax.text import prompts, vocabulary
from mmclip_jax.text.entities import find_entities
from mmclip_jax.text.schema import Entity
from mmclip_jax.text.tokenizer import Tokenizer, load_tokenizer, normalise, train_tokenizer

TOKENIZER = load_tokenizer()
TERMS = sorted(vocabulary.load().terms)
PIECES = st.one_of(
    st.sampled_from(TERMS),
    st.sampled_from(
        [" ", "\n", "\t ", "\u3000", "\u2581", ". No ", ", ", "3.5 cm", "\u0130", "\u00c9", "\x00", "\ud800"]
    ),
    st.text(max_size=6),
)
TEXTS = st.lists(PIECES, max_size=10).map("".join) | st.lists(PIECES, max_size=10).map(" ".join)


def is_space(character: str) -> bool:
    return character.isspace() or character == "\u2581"


@given(TEXTS)
@settings(max_examples=300)
def test_spans_cover_each_character_once_in_order(text: str) -> None:
    ids, spans = TOKENIZER.encode(text)
    assert len(ids) == len(spans)
    covered: list[int] = []
    before = (0, 0)
    for start, end in spans:
        assert 0 <= start <= end <= len(text)
        if (start, end) != before or end - start > 1:  # the further bytes of a character repeat its span
            assert start >= before[1]
            covered += range(start, end)
        before = (start, end)
    assert covered == [i for i, character in enumerate(text) if not is_space(character)]


@given(TEXTS)
@settings(max_examples=300)
def test_decode_gives_the_normalised_text(text: str) -> None:
    ids, _ = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == normalise(text)
    lowered = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    plain = "".join(" " if is_space(c) else "\ufffd" if 0xD800 <= ord(c) < 0xE000 else c for c in lowered)
    assert normalise(text) == " ".join(plain.split())


@given(TEXTS)
@settings(max_examples=200)
def test_word_by_word_is_what_sentencepiece_does_with_the_whole(text: str) -> None:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=TOKENIZER.model_bytes)
    ids, _ = TOKENIZER.encode(text)
    assert ids == processor.encode(normalise(text))


@given(TEXTS)
@settings(max_examples=200)
def test_pieces_spell_what_their_spans_cover(text: str) -> None:
    ids, spans = TOKENIZER.encode(text)
    for piece, (start, end) in zip(TOKENIZER.pieces(ids), spans, strict=True):
        if not piece.startswith("<0x"):
            assert piece.removeprefix("\u2581") == "".join(
                c if len(c.lower()) > 1 else c.lower() for c in text[start:end]
            )


@given(TEXTS, st.integers(1, 40), st.sets(st.sampled_from(vocabulary.LABELS)), st.randoms())
@settings(max_examples=300)
def test_masks_against_brute_force(text: str, length: int, labels: set[str], random) -> None:
    entities = find_entities(text)
    if entities and random.random() < 0.3:  # holes between entities, as a user's own finder may leave
        entities.pop(random.randrange(len(entities)))
    ids, spans = TOKENIZER.encode(text)
    got = TOKENIZER.tokenize(text, entities, length, tuple(labels))
    assert got.tokens.shape == got.entity.shape == got.affirmed.shape == (length,)
    assert got.spans.shape == (length, 2)
    assert (got.tokens.dtype, got.entity.dtype, got.affirmed.dtype, got.spans.dtype) == (
        "int32",
        "int32",
        "bool",
        "int32",
    )
    for row in range(length):
        if row >= len(ids):
            assert (got.tokens[row], got.entity[row], got.affirmed[row], *got.spans[row]) == (0, 0, False, 0, 0)
            continue
        start, end = spans[row]
        met = [n for n, e in enumerate(entities, 1) if set(range(start, end)) & set(range(e.start, e.end))]
        numbered = [n for n in met if entities[n - 1].label in labels]
        stated = [e for e in (entities[n - 1] for n in met) if e.label in ("observation", "device") and not e.negated]
        assert got.tokens[row] == ids[row]
        assert got.entity[row] == (numbered[0] if numbered else 0)
        assert got.affirmed[row] == bool(stated)
        assert tuple(got.spans[row]) == (start, end)


def test_masks_by_hand() -> None:
    text = "No left effusion.\nMild EDEMA"
    got = TOKENIZER.tokenize(text, find_entities(text), 11)
    n = int((got.tokens != 0).sum())
    assert [text[a:b] for a, b in got.spans[:n]] == ["No", "left", "effusion", ".", "Mild", "EDEMA"]
    assert got.entity.tolist() == [0, 0, 2, 0, 0, 4, 0, 0, 0, 0, 0]
    assert got.affirmed.tolist() == [False] * 5 + [True] + [False] * 5
    every = TOKENIZER.tokenize(text, find_entities(text), 11, ("observation", "modifier"))
    assert every.entity[:n].tolist() == [0, 1, 2, 0, 3, 4]


def test_truncation_keeps_the_beginning() -> None:
    text = "Edema, mass and a pneumothorax of the left lung"
    whole, cut = (TOKENIZER.tokenize(text, find_entities(text), length) for length in (53, 5))
    for a, b in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(a[:5], b)
    assert (cut.tokens != TOKENIZER.pad_id).all()
    empty = TOKENIZER.tokenize(" \n", [], 7)
    assert not empty.tokens.any()
    assert TOKENIZER.encode("") == ([], [])


@pytest.mark.parametrize(
    "bounds", [[(0, 4), (2, 6)], [(5, 7), (0, 2)], [(0, 99)], [(-3, 2)]], ids=["overlap", "order", "beyond", "before"]
)
def test_entities_of_another_text_are_refused(bounds: list[tuple[int, int]]) -> None:
    entities = [Entity(start, end, "", "observation", False) for start, end in bounds]
    with pytest.raises(UserError, match="find them anew"):
        TOKENIZER.tokenize("effusion here", entities, 8)


def test_special_tokens() -> None:
    assert TOKENIZER.pad_id == 0
    assert TOKENIZER.pieces([TOKENIZER.mask_id]) == ["[MASK]"]
    assert TOKENIZER.mask_id not in TOKENIZER.encode("[MASK] [mask]")[0]
    ids, _ = TOKENIZER.encode("no pleural effusion")
    assert TOKENIZER.decode([ids[0], TOKENIZER.mask_id, ids[-1], 0, 0]) == "no [MASK] effusion"
    assert TOKENIZER.decode(np.array(ids)) == "no pleural effusion"


def test_unknown_characters_become_bytes() -> None:
    ids, spans = TOKENIZER.encode("a\U0001fac1b")
    assert TOKENIZER.pieces(ids)[-5:-1] == ["<0xF0>", "<0x9F>", "<0xAB>", "<0x81>"]
    assert spans[-5:] == [(1, 2)] * 4 + [(2, 3)]


def test_findings_are_few_pieces() -> None:
    names = [prompts.display_name(kind) for kind in prompts.KINDS]
    words = {word for name in names for word in name.replace("-", " ").split() if word.isalpha()}
    assert max(len(TOKENIZER.encode(word)[0]) for word in words) <= 3
    common = [
        "pneumothorax",
        "cardiomegaly",
        "pleural",
        "effusion",
        "atelectasis",
        "consolidation",
        "opacity",
        "normal",
    ]
    assert [len(TOKENIZER.encode(word)[0]) for word in common] == [1] * len(common)


def test_the_packaged_model_is_small_and_ours(tmp_path: pathlib.Path) -> None:
    assert len(TOKENIZER.model_bytes) < 100_000
    assert 1500 <= TOKENIZER.vocab_size <= 2000
    assert TOKENIZER.model_bytes == (vocabulary.PACKAGED / vocabulary.TOKENIZER).read_bytes()


@pytest.mark.slow
def test_the_packaged_model_can_be_made_again(tmp_path: pathlib.Path) -> None:
    build_default_tokenizer.main([str(tmp_path / "again.model")])
    made = load_tokenizer(tmp_path / "again.model")
    message = "the words, the prompts or the phantom changed: run python -m mmclip_jax.data.build_default_tokenizer"
    assert made.pieces(range(made.vocab_size)) == TOKENIZER.pieces(range(TOKENIZER.vocab_size)), message


def test_training_is_deterministic_and_loads_again(tmp_path: pathlib.Path) -> None:
    texts = [f"Zebra sign number {n}.\nNo {term}." for n, term in enumerate(TERMS[:200])]
    first = train_tokenizer(texts, 500, tmp_path / "a.model")
    second = train_tokenizer(iter(texts), 500, None)
    assert first.model_bytes == second.model_bytes == (tmp_path / "a.model").read_bytes()
    assert first.vocab_size <= 500
    assert len(first.encode("zebra")[0]) == 1
    for copy in (
        load_tokenizer(tmp_path / "a.model"),
        load_tokenizer(first.model_bytes),
        pickle.loads(pickle.dumps(first)),
    ):
        assert isinstance(copy, Tokenizer)
        assert copy.encode("Zebra 1 \u00e9 lung") == first.encode("Zebra 1 \u00e9 lung")


def test_mistakes_are_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"none\.model: cannot read"):
        load_tokenizer(tmp_path / "none.model")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"bad\.model: not a SentencePiece model"):
        load_tokenizer(tmp_path / "bad.model")
    with pytest.raises(UserError, match="no text"):
        train_tokenizer([" ", ""], 500, None)
    with pytest.raises(UserError, match="100 pieces"):
        train_tokenizer(["a text"], 100, None)


def test_models_of_other_programs_are_refused(tmp_path: pathlib.Path) -> None:
    import sentencepiece

    prefix = tmp_path / "other"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a small text", "another small text"]),
        model_prefix=str(prefix),
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(UserError, match="another program"):
        load_tokenizer(prefix.with_suffix(".model"))


def test_a_model_whose_pieces_are_no_text_is_refused() -> None:
    model = bytearray(load_tokenizer().model_bytes)
    model[model.index(b"<0x41>") + 1] = 0xF9
    with pytest.raises(UserError, match="not a SentencePiece model"):
        load_tokenizer(bytes(model))
