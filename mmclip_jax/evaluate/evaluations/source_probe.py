"""Can the source of an image be read off its embedding? A linear probe, cross-validated by patient.

Reports come from one source and prompts from another, so a model can win part of the contrastive game by telling the
sources apart. Accuracy near the majority share (AUROC near 0.5) means that embeddings hold little of it; accuracy near
1 means that they do, and that scores must not be compared across sources.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmclip_jax.evaluate.base import thinned
from mmclip_jax.evaluate.stats import intervals, metrics

FOLDS = 5
MAX_ROWS = 5000


def evaluate(
    embeddings: np.ndarray,
    sources: Sequence[str],
    patients: Sequence[str],
    *,
    folds: int = FOLDS,
    limit: int = MAX_ROWS,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Logistic regression on standardised embeddings [n, E]; scores are out of fold.

    Returns (for JSON): "rows", "sources" {source: rows}, "folds", "accuracy" with "accuracy_interval", "majority" (the
    accuracy of always naming the largest source), "auroc" with "auroc_interval" (mean over sources of one against the
    rest; with two sources, the AUROC). None if there is one source, or one has fewer patients than folds.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = np.array(thinned(range(len(sources)), limit))
    names, target = np.unique(np.array(sources)[rows], return_inverse=True)
    groups = np.unique(np.array(patients)[rows], return_inverse=True)[1]
    people = [len(np.unique(groups[target == c])) for c in range(len(names))]
    if len(names) < 2 or min(people) < folds:
        return None
    x = np.asarray(embeddings, np.float64)[rows]
    scores = np.zeros((len(rows), len(names)))
    splits = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(x, target, groups)
    for fit, held_out in splits:
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-3, max_iter=200))
        with warnings.catch_warnings():
            # Separable sources make the regression run to its limit; the ranking is what counts.
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe.fit(x[fit], target[fit])
        scores[np.ix_(held_out, probe.classes_)] = probe.predict_proba(x[held_out])
    right = scores.argmax(axis=1) == target
    accuracy = intervals.rate_interval(
        float(right.mean()),
        metrics.resample_ratio(right.astype(float), 1.0, groups, resamples=resamples, seed=seed),
        level,
        intervals.count_patients(groups),
    )
    one_hot = (target[:, np.newaxis] == np.arange(len(names))).astype(float)
    columns = [1] if len(names) == 2 else list(range(len(names)))
    mean = float(np.mean([metrics.auroc(one_hot[:, c], scores[:, c]) for c in columns]))
    drawn = metrics.resample_metric(one_hot[:, columns], scores[:, columns], groups, resamples=resamples, seed=seed)
    area = metrics.logit_interval(mean, metrics.macro_replicates(drawn), level, min(people))
    return {
        "rows": len(rows),
        "sources": {str(name): int((target == c).sum()) for c, name in enumerate(names)},
        "folds": folds,
        "accuracy": float(right.mean()),
        "accuracy_interval": [accuracy.low, accuracy.high],
        "majority": float(np.bincount(target).max() / len(target)),
        "auroc": mean,
        "auroc_interval": [area.low, area.high],
    }
