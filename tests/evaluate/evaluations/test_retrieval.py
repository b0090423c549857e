"""Recall among a whole gallery: by hand, with ties; a model whose recall is known."""

import itertools

import numpy as np
import pytest
import toy
from scipy import special, stats

from mmclip_jax.data.schema import Example
from mmclip_jax.evaluate.evaluations import retrieval
from mmclip_jax.evaluate.rows import Split
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap
from mmclip_jax.evaluate.stats.ranks import retrieval_ranks


def test_one_embedding_for_everything_finds_nothing() -> None:
    same = np.ones((12, 3)) / np.sqrt(3)
    found = retrieval.recall_numbers(same, same, np.arange(12)[:, np.newaxis], Bootstrap(range(12), 10))
    assert [found["image_to_text"][f"recall@{k}"]["value"] for k in (1, 5, 10)] == [0, 0, 0]
    assert found["image_to_text"]["median_rank"]["value"] == 12


def test_chance_is_what_all_orders_give() -> None:
    n, positives = 6, np.array([1, 2, 4])
    for k in (1, 2, 5, 10):
        for i, p in enumerate(positives):
            hits = [min(order.index(e) for e in range(p)) < k for order in itertools.permutations(range(n))]
            assert retrieval._random_recall(positives, n, k)[i] == pytest.approx(np.mean(hits))


def _known_ranks(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images and texts such that image i finds its text at rank 1, 4, 7 or 12, in turn."""
    want = np.array([(1, 4, 7, 12)[i % 4] for i in range(n)])
    text = np.eye(n)
    image = np.zeros((n, n))
    for i in range(n):
        image[i] = -1.0 - 0.001 * np.arange(n)
        image[i, i] = 0.0
        image[i, (i + 1 + np.arange(want[i] - 1)) % n] = 0.5  # so many others come first
    return image, text, want


def test_known_recall() -> None:
    image, text, want = _known_ranks(40)
    found = retrieval.recall_numbers(
        image, text, np.arange(40)[:, np.newaxis], Bootstrap([i // 2 for i in range(40)], 200)
    )
    values = {name: entry["value"] for name, entry in found["image_to_text"].items()}
    assert values == {"recall@1": 0.25, "recall@5": 0.5, "recall@10": 0.75, "median_rank": np.median(want)}
    assert found["image_to_text"]["recall@5"]["random"] == pytest.approx(5 / 40)
    low, high = found["image_to_text"]["recall@5"]["interval"]
    assert 0.2 < low < 0.5 < high < 0.8
    # Patients hold ranks (1, 4) or (7, 12): their resamples are means of 1s and 0s.
    draws = np.random.default_rng(0)
    replicates = [np.mean([draw % 2 == 0 for draw in draws.integers(0, 20, 20)]) for _ in range(200)]
    reach = stats.t.ppf(0.975, 19) * np.std(replicates, ddof=1) / 0.25  # of the logit of one half
    assert [low, high] == pytest.approx(special.expit([-reach, reach]).tolist())


def test_joint_positives_raise_the_rank_to_the_best_of_them() -> None:
    image, text, _ = _known_ranks(40)
    ids = np.arange(40)[:, np.newaxis]
    ids[[3, 4]] = 99  # image 3 finds text 4 first, which is the same report as its own
    found = retrieval.recall_numbers(image, text, ids, Bootstrap(range(40), 5))
    assert retrieval_ranks(image, text, np.arange(40)[:, np.newaxis])[0][3] == 12
    assert retrieval_ranks(image, text, ids)[0][3] == 11  # ten others are as like as text 4
    assert found["with_several"] == 2


class _Planted(toy.ToyModel):
    """Texts of report number i have the i-th unit vector."""

    def encode_text(self, texts):
        return np.eye(16, dtype=np.float32)[[int(text.split()[-1].strip(".")) for text in texts]]


def _row(number: int, report: int, study: str) -> Example:
    import dataclasses

    row = toy.example(number, toy.plant([0] * 5), {}, report=f"Report number {report}.", patient=f"p{number}")
    return dataclasses.replace(row, study=study)


def test_a_model_with_known_recall_through_the_evaluator() -> None:
    # Reports 0 to 9, and once more report 0; images 8 and 9 are of one study, with the report of image 8.
    reports = [*range(8), 8, 8, 0]
    studies = [*(f"s{n}" for n in range(8)), "both", "both", "s10"]
    split = Split.of([_row(n, r, s) for n, (r, s) in enumerate(zip(reports, studies, strict=True))], "test")
    image = np.eye(16, dtype=np.float32)[reports]
    image[3] = np.eye(16)[4]  # finds another's report first
    found = retrieval.evaluate(_Planted(), split, image, recall=Bootstrap(resamples=20))["recall"]
    (here,) = found
    assert here["rows"] == 11
    assert here["with_several"] == 4
    assert here["image_to_text"]["recall@1"]["value"] == pytest.approx(10 / 11)
    # Its own text ties with the nine others that it is not at all like.
    assert here["image_to_text"]["recall@10"]["value"] == pytest.approx(10 / 11)
    assert here["text_to_image"]["recall@1"]["value"] == pytest.approx(9 / 11)  # text 3: none; text 4: image 3 ties


def test_two_normal_reports_in_other_words_are_not_each_others_answer() -> None:
    """Training takes them for one text (both say "no finding"); a gallery does not, or recall would be too good."""
    words = ["No pleural effusion. No pneumothorax.", "No focal consolidation or edema.", "No acute fracture."]
    rows = [toy.example(n, toy.plant([0] * 5), {}, report=words[n % 3]) for n in range(6)]
    model = toy.ToyModel()
    split = Split.of(rows)
    embedded = np.asarray(model.encode_image(split.pixels(range(6))))
    (found,) = retrieval.evaluate(model, split, embedded, recall=Bootstrap(resamples=5))["recall"]
    assert (found["rows"], found["with_several"]) == (6, 6)  # each of the three texts twice
    got = [found["image_to_text"][f"recall@{k}"]["random"] for k in (1, 5, 10)]
    assert got == pytest.approx([2 / 6, 1.0, 1.0])  # two of six are right, not all
