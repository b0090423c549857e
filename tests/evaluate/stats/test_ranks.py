"""Ranks of best matches in both directions: by sorting, and by float64 products of all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmclip_jax.evaluate.stats import ranks


def _matches(ids: np.ndarray) -> np.ndarray:
    return (ids[:, np.newaxis] == ids[np.newaxis]).any(axis=2)


def _rank_by_sorting(likeness: np.ndarray, positive: np.ndarray) -> list[int]:
    """The first positive of each row in descending order, among equals the others first."""
    return [
        1 + [bool(positive[i, j]) for j in sorted(range(len(row)), key=lambda j: (-row[j], positive[i, j]))].index(True)
        for i, row in enumerate(likeness)
    ]


@settings(max_examples=40)
@given(n=st.integers(1, 23), seed=st.integers(0, 10_000), grid=st.sampled_from([0, 1, 2]))
def test_ranks_equal_a_sort_with_ties_and_duplicates(n: int, seed: int, grid: int) -> None:
    rng = np.random.default_rng(seed)
    image, text = rng.normal(size=(2, n, 3)).astype(np.float32)
    if grid:  # few values: many ties
        image, text = np.round(image * grid) / grid, np.round(text * grid) / grid
    ids = rng.integers(0, 1 + n // 2, (n, 2))
    likeness = image.astype(np.float64) @ text.T.astype(np.float64)
    there, back = ranks.retrieval_ranks(image, text, ids)
    assert there.tolist() == _rank_by_sorting(likeness, _matches(ids))
    assert back.tolist() == _rank_by_sorting(likeness.T, _matches(ids))


@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-4])
def test_ranks_over_many_tiles_are_those_of_float64(monkeypatch: pytest.MonkeyPatch, spread: float) -> None:
    # At 1e-2 single pairs are too close for float32, at 1e-4 whole blocks are.
    monkeypatch.setattr(ranks, "_ROWS", 128)
    monkeypatch.setattr(ranks, "_COLUMNS", 192)
    n, width = 701, 48
    rng = np.random.default_rng(1)
    text = 1.0 + spread * rng.normal(size=(n, width))
    image = text + 2 * spread * rng.normal(size=(n, width))
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    text[1::7] = text[::7][: len(text[1::7])]  # equal embeddings that do not match
    image, text = image.astype(np.float32), text.astype(np.float32)
    ids = np.stack([np.arange(n), rng.integers(0, 300, n)], axis=1)
    there, back = ranks.retrieval_ranks(image, text, ids)
    likeness, other = image.astype(np.float64) @ text.T.astype(np.float64), ~_matches(ids)
    # Products in any order: equal embeddings are given the same number.
    likeness[:, 1::7] = likeness[:, ::7][:, : likeness[:, 1::7].shape[1]]
    for got, like in ((there, likeness), (back, likeness.T)):
        best = np.where(other, -np.inf, like).max(axis=1, keepdims=True)
        np.testing.assert_array_equal(got, 1 + ((like >= best) & other).sum(axis=1))
    assert there.max() > 100


def test_match_counts_are_those_of_all_pairs() -> None:
    ids = np.random.default_rng(2).integers(0, 9, (83, 3))
    np.testing.assert_array_equal(ranks.match_counts(ids), _matches(ids).sum(axis=1))
