from collections.abc import Sequence

import numpy as np
import pytest
import toy

from mmclip_jax.data.schema import Example
from mmclip_jax.evaluate.evaluations import counterfactual
from mmclip_jax.evaluate.rows import Split, embed_images
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap
from mmclip_jax.text import flips
from mmclip_jax.text.entities import find_entities

ROWS = toy.collection(patients=80, paired_only=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There is a small left pleural effusion.", "There is no small left pleural effusion."),
        ("Small left pleural effusion.", "No small left pleural effusion."),
        ("A pneumothorax is seen.", "No pneumothorax is seen."),
        ("The heart is large. Mild edema is present.", "The heart is large. No mild edema is present."),
        ("Chest shows edema.", "Chest shows no edema."),
        ("No pleural effusion.", "Pleural effusion."),
        ("There is no large pneumothorax.", "There is large pneumothorax."),
        ("Clear lungs without edema.", "Clear lungs with edema."),
        ("No evidence of pneumonia.", "Evidence of pneumonia."),
        ("Thoracic spondylosis.", None),  # "Thoracic no spondylosis" is no English
        ("Pleural effusion is not seen.", None),
    ],
)
def test_polarity_is_flipped_as_one_would_write_it(text: str, expected: str | None) -> None:
    (entity,) = [e for e in find_entities(text) if e.kind and e.label == "observation" and e.kind != "cardiomegaly"]
    changed = flips.flip_polarity(text, entity)
    assert changed == expected
    if changed is not None:
        (after,) = [e for e in find_entities(changed) if e.kind == entity.kind]
        assert after.negated != entity.negated


def test_the_nearest_word_of_the_sentence_is_exchanged() -> None:
    text = "The right lung is clear. Left basilar atelectasis and small right pleural effusion."
    atelectasis, effusion = (e for e in find_entities(text) if e.kind in ("atelectasis", "pleural_effusion"))
    assert flips.flip_word(text, atelectasis, flips.SIDES) == text.replace("Left bas", "Right bas")
    assert flips.flip_word(text, effusion, flips.SIDES) == text.replace("small right", "small left")
    large = flips.flip_word(text, effusion, flips.SEVERITIES)
    assert large == text.replace("small", "large")
    (nodule,) = [e for e in find_entities("Left lung. A nodule.") if e.kind]
    assert flips.flip_word("Left lung. A nodule.", nodule, flips.SIDES) is None


def test_flips_change_one_thing_for_the_reader_of_reports() -> None:
    pairs, counts = counterfactual.pairs_of(Split.of(ROWS, "test"))
    assert counts["polarity"]["candidates"] == len(ROWS) >= counts["polarity"]["flipped"] > 0.9 * len(ROWS)
    for pair in pairs:
        before = [(e.kind, e.negated) for e in find_entities(pair.true)]
        after = [(e.kind, e.negated) for e in find_entities(pair.flipped)]
        assert pair.true == ROWS[pair.row].text
        assert len(before) == len(after)
        (changed,) = [n for n in range(len(before)) if before[n] != after[n]]
        assert before[changed] == (pair.kind, not pair.affirmed)
        assert after[changed] == (pair.kind, pair.affirmed)


class Reader(toy.ToyModel):
    """Sums what a report says of each kind; "left" and "right" are the two places that hold an image's source."""

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        out = np.full((len(texts), 12), 0.0)
        for row, text in zip(out, texts, strict=True):
            for e in find_entities(text):
                if e.kind in toy.KINDS:
                    row[toy.KINDS.index(e.kind) + e.negated * len(toy.KINDS)] += 1
            row[-2], row[-1] = text.lower().count("left"), text.lower().count("right")
        return out.astype(np.float32)


def test_polarity_is_won_where_the_planted_score_says_so() -> None:
    split, model = Split.of(ROWS, "test"), Reader()
    found = counterfactual.evaluate(model, split, embed_images(model, split), bootstrap=Bootstrap(resamples=100))
    assert found is not None
    pairs, _ = counterfactual.pairs_of(split)
    planted = [toy.planted_scores(p) for p in split.pixels(range(len(ROWS)))]
    # The text moves from the place of sin(angle) to that of cos(angle), or back.
    wins = [(planted[p.row][toy.KINDS.index(p.kind)] > toy.MOST / 2) == p.affirmed for p in pairs]
    affirmed = [p.affirmed for p in pairs]
    flips = {each["flip"]: each for each in found["flips"]}
    assert flips["polarity"]["rate"] == pytest.approx(np.mean(wins))
    assert flips["polarity: affirmed, now denied"]["rate"] == pytest.approx(np.mean(np.array(wins)[affirmed]))
    assert flips["polarity: affirmed, now denied"]["pairs"] == sum(affirmed)
    assert flips["polarity"]["interval"][0] < flips["polarity"]["rate"] < flips["polarity"]["interval"][1]
    assert sum(each["pairs"] for each in found["findings"]) == flips["polarity"]["pairs"] == len(pairs)
    assert flips["side"]["pairs"] == 0
    assert np.isnan(flips["side"]["rate"])


@pytest.mark.parametrize(("see", "rate", "ties"), [(1.0, 0.75, 0), (0.0, 0.5, 40)])
def test_sides_are_won_by_a_model_that_sees_them(see: float, rate: float, ties: int) -> None:
    rows: list[Example] = []
    for n in range(40):  # of every fourth report the side is wrong
        side = ("left", "right")[(n % 2) ^ (n % 4 == 3)]
        report = f"There is a small {side} pleural effusion."
        rows.append(toy.example(n, toy.plant([5000] * 5, source=n % 2), {}, report=report))
    split, model = Split.of(rows, "test"), Reader(see_source=see)
    found = counterfactual.evaluate(model, split, embed_images(model, split), bootstrap=Bootstrap(resamples=50))
    assert found is not None
    flips = {each["flip"]: each for each in found["flips"]}
    assert (flips["side"]["rate"], flips["side"]["ties"], flips["side"]["pairs"]) == (rate, ties, 40)
    assert (flips["severity"]["rate"], flips["severity"]["ties"]) == (0.5, 40)  # this model reads no sizes
    assert found["counts"]["severity"] == {"candidates": 40, "flipped": 40}


def test_without_reports_there_is_nothing_to_flip() -> None:
    split = Split.of([toy.example(0, toy.plant([1] * 5), {})])
    assert counterfactual.evaluate(toy.ToyModel(), split, np.zeros((1, 12), np.float32)) is None
