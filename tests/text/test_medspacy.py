"""medspaCy behind the interface of recognisers, in an environment of its own: make test-medspacy."""

import pytest

from mmclip_jax.text import recognisers

pytest.importorskip("medspacy", reason="medspaCy has an environment of its own: make test-medspacy")

REPORT = "No evidence of pneumothorax following chest tube removal.\nModerate cardiomegaly; clear lungs."


def test_medspacy_finds_the_lexicons_terms_with_its_own_polarity() -> None:
    (entities,) = recognisers.load("medspacy").recognise([REPORT])
    by_text = {e.text.lower(): e for e in entities}
    told = {word: (by_text[word].negated, by_text[word].kind) for word in ("pneumothorax", "cardiomegaly")}
    assert told == {"pneumothorax": (True, "pneumothorax"), "cardiomegaly": (False, "cardiomegaly")}


def test_a_prompt_is_read_the_same_way() -> None:
    """Polarity of short sentences, which prompts are, by ConText."""
    sentences = {"There is a pleural effusion.": False, "No pleural effusion.": True, "Without pleural effusion.": True}
    for entities, denied in zip(
        recognisers.load("medspacy").recognise(list(sentences)), sentences.values(), strict=True
    ):
        assert [(e.kind, e.negated) for e in entities] == [("pleural_effusion", denied)]
