"""Can the source of an image be read off its embedding? A linear probe, cross-validated by patient.

Reports come from one source and prompts from another, so a model can win part of the contrastive game by telling the
sources apart. Accuracy near the majority share (AUROC near 0.5) means that embeddings hold little of it; accuracy near
1 means that they do, and that scores must not be compared across sources.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmclip_jax.evaluate.base import SOURCES, Card, Context, Evaluation, Part, Result, Results, Section, template
from mmclip_jax.evaluate.report.formats import interval, number
from mmclip_jax.evaluate.rows import thinned
from mmclip_jax.evaluate.stats import metrics
from mmclip_jax.evaluate.stats.bootstrap import DEFAULT, Bootstrap, macro_replicates

FOLDS = 5
MAX_ROWS = 5000
PAGE_SECTION = Section("sources", "Sources", "Sources")


def evaluate(
    embeddings: np.ndarray,
    sources: Sequence[str],
    patients: Sequence[str],
    *,
    folds: int = FOLDS,
    limit: int = MAX_ROWS,
    bootstrap: Bootstrap = DEFAULT,
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
    splits = StratifiedGroupKFold(folds, shuffle=True, random_state=bootstrap.seed).split(x, target, groups)
    for fit, held_out in splits:
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-3, max_iter=200))
        with warnings.catch_warnings():
            # Separable sources make the regression run to its limit; the ranking is what counts.
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe.fit(x[fit], target[fit])
        scores[np.ix_(held_out, probe.classes_)] = probe.predict_proba(x[held_out])
    right = scores.argmax(axis=1) == target
    bootstrap = bootstrap.of(groups)
    accuracy = bootstrap.rate_interval(float(right.mean()), bootstrap.ratio(right.astype(float)))
    one_hot = (target[:, np.newaxis] == np.arange(len(names))).astype(float)
    columns = [1] if len(names) == 2 else list(range(len(names)))
    mean = float(np.mean([metrics.auroc(one_hot[:, c], scores[:, c]) for c in columns]))
    drawn = bootstrap.metric(one_hot[:, columns], scores[:, columns])
    area = bootstrap.logit_interval(mean, macro_replicates(drawn), min(people))
    return {
        "rows": len(rows),
        "sources": {str(name): int((target == c).sum()) for c, name in enumerate(names)},
        "folds": folds,
        "accuracy": float(right.mean()),
        "accuracy_interval": accuracy.bounds,
        "majority": float(np.bincount(target).max() / len(target)),
        "auroc": mean,
        "auroc_interval": area.bounds,
    }


class SourceProbeEvaluation(Evaluation[None]):
    """The linear probe of the image embeddings."""

    name = "source_probe"
    needs = (SOURCES,)
    compared = (("Source probe", "source_probe_auroc"),)

    def run(self, context: Context) -> Result[None]:
        """See `evaluate`."""
        return Result(_of(context))

    def headline(self, results: Results) -> Mapping[str, Any]:
        """The AUROC."""
        probe = results["source_probe"]
        return {"source_probe_auroc": probe and probe["auroc"]}

    def cards(self, results: Results) -> Sequence[Card]:
        """The AUROC."""
        if not (probe := results["source_probe"]):
            return ()
        line = f"Lower is better; accuracy {number(probe['accuracy'])}, majority {number(probe['majority'])}"
        return [Card("Source probe AUROC", number(probe["auroc"]), interval(probe["auroc_interval"]), [line])]

    def parts(self, results: Results, found: None) -> Sequence[Part]:
        """A paragraph, also where there is one source only."""
        return [Part(PAGE_SECTION, template("source_probe"))]

    def quick(self, context: Context) -> Mapping[str, float]:
        """{"source_probe_accuracy", "source_probe_auroc"}, of three folds."""
        probe = _of(context, folds=3)
        if probe is None:
            return {}
        return {"source_probe_accuracy": probe["accuracy"], "source_probe_auroc": probe["auroc"]}


def _of(context: Context, folds: int = FOLDS) -> dict[str, Any] | None:
    sources = [example.source for example in context.rows.examples]
    return evaluate(context.embedded, sources, context.rows.patients, folds=folds, bootstrap=context.bootstrap)


SOURCE_PROBE = SourceProbeEvaluation()
