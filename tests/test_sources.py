"""The benchmark of sources: AUROCs by scikit-learn, and a shift that is known."""

import math

import numpy as np
import pytest
from conftest import load_benchmark
from sklearn import metrics


def test_sources_are_compared_row_by_row() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (70, 3)).astype(float)
    labels[::7, 1] = math.nan
    scores = labels + rng.normal(size=labels.shape)
    scores[np.isnan(scores)] = 0.5
    sources = [np.arange(0, 70, 2), np.arange(1, 70, 2)]
    areas, _ = load_benchmark("sources").compare(labels, scores, sources)
    for rows, area in zip([*sources, np.arange(70)], areas, strict=True):
        known = [rows[~np.isnan(labels[rows, k])] for k in range(3)]
        expected = [metrics.roc_auc_score(labels[known[k], k], scores[known[k], k]) for k in range(3)]
        assert area == pytest.approx(np.mean(expected), abs=1e-12)


def test_the_shift_is_that_of_the_two_sources_furthest_apart() -> None:
    labels = np.array([[0, 1], [1, 0]] * 3, float)
    scores = np.array([[-1, -1], [1, 1]] * 3, float)
    scores[2:4] += 1
    scores[4:] += [4, 1]
    rows = [np.arange(0, 2), np.arange(2, 4), np.arange(4, 6)]
    # Apart by (4, 1), (3, 0) and (1, 1): in standard deviations of each finding's scores, their mean over the findings.
    expected = np.mean(np.array([4, 1]) / scores.std(axis=0))
    assert load_benchmark("sources").compare(labels, scores, rows)[1] == pytest.approx(expected, abs=1e-12)
