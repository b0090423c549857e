"""The parts of the source probe: folds of whole patients, and the regression against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmclip_jax.evaluate.evaluations import source_probe


@pytest.mark.parametrize("classes", [2, 3])
def test_the_regression_is_that_of_scikit_learn(classes: int) -> None:
    rng = np.random.default_rng(classes)
    target = rng.integers(0, classes, 211)
    x = rng.normal(size=(211, 7)) * [1, 2, 3, 4, 5, 6, 1] + 3 * target[:, np.newaxis] * rng.normal(size=7)
    x[:, 6] = 4.0  # says nothing, and has no spread
    new = rng.normal(size=(13, 7))
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8, max_iter=1000)).fit(x, target)
    got = source_probe.class_probabilities(x, target, new, classes)
    np.testing.assert_allclose(got, probe.predict_proba(new), atol=2e-3)


def test_folds_keep_patients_whole_and_have_equal_shares_of_each_source() -> None:
    rng = np.random.default_rng(0)
    groups = np.sort(rng.integers(0, 120, 600))
    target = (groups < 30).astype(int)
    target[groups == 31] = 1  # patients of both
    target[groups >= 100] = rng.integers(0, 2, (groups >= 100).sum())
    fold = source_probe.assign_folds(target, groups, 5, seed=3)
    assert all(len(set(fold[groups == group])) == 1 for group in np.unique(groups))
    for source in (0, 1):
        sizes = np.bincount(fold[target == source], minlength=5)
        assert sizes.max() - sizes.min() <= 0.06 * sizes.sum()
    assert not np.array_equal(fold, source_probe.assign_folds(target, groups, 5, seed=4))
