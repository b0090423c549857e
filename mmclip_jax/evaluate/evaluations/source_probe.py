"""Can the source of an image be read off its embedding? A linear probe, cross-validated by patient.

Reports come from one source and prompts from another, so a model can win part of the contrastive game by telling the
sources apart. Accuracy near the majority share (AUROC near 0.5) means that embeddings hold little of it; accuracy near
1 means that they do, and that scores must not be compared across sources.
"""

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
_C = 0.1  # the inverse strength of the penalty
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
    """Logistic regression on standardised embeddings [n, E]; scores are out of fold, and a patient is in one fold.

    Returns (for JSON): "rows", "sources" {source: rows}, "folds", "accuracy" with "accuracy_interval", "majority" (the
    accuracy of always naming the largest source), "auroc" with "auroc_interval" (mean over sources of one against the
    rest; with two sources, the AUROC). None if there is one source, or one has fewer patients than folds.
    """
    rows = np.array(thinned(range(len(sources)), limit))
    names, target = np.unique(np.array(sources)[rows], return_inverse=True)
    groups = np.unique(np.array(patients)[rows], return_inverse=True)[1]
    people = [len(np.unique(groups[target == c])) for c in range(len(names))]
    if len(names) < 2 or min(people) < folds:
        return None
    x = np.asarray(embeddings, np.float64)[rows]
    scores = np.zeros((len(rows), len(names)))
    fold_of = assign_folds(target, groups, folds, bootstrap.seed)
    for fold in range(folds):
        held_out = fold_of == fold
        scores[held_out] = class_probabilities(x[~held_out], target[~held_out], x[held_out], len(names))
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


def assign_folds(target: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of every row, int [n]: groups stay whole, and the folds have about equal shares of each class.

    Largest group first, in random order among equals, each goes where it makes the shares most even.

    Args:
      target: int [n], the class of each row, 0..C-1.
      groups: int [n], 0..G-1.
      folds: how many; at least two.
      seed: of the order.
    """
    counts = np.zeros((groups.max() + 1, target.max() + 1))
    np.add.at(counts, (groups, target), 1)
    shares = counts / counts.sum(axis=0)
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    filled = np.zeros((folds, counts.shape[1]))
    chosen = np.zeros(len(counts), int)
    for group in order:
        # What the sum of squares of all shares grows by.
        growth = (2 * filled * shares[group]).sum(axis=1)
        chosen[group] = np.lexsort((filled.sum(axis=1), growth))[0]
        filled[chosen[group]] += shares[group]
    return chosen[groups]


def class_probabilities(x: np.ndarray, target: np.ndarray, new: np.ndarray, classes: int) -> np.ndarray:
    """The probabilities [m, C] of new rows [m, E], by logistic regression on standardised x [n, E].

    Minimises the summed cross-entropy plus |weights|² / (2 · `_C`); with two classes the weights are those of their
    difference, as is usual. Intercepts are not penalised.
    """
    from scipy import optimize, special

    center, spread = x.mean(axis=0), x.std(axis=0)
    spread[spread == 0] = 1.0
    inputs = np.hstack([(x - center) / spread, np.ones((len(x), 1))])
    one_hot = np.eye(classes)[target]
    # Of two classes, both get a half of the difference with opposite signs, which halves the sum of squares.
    penalty = (2.0 if classes == 2 else 1.0) / _C

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(-1, classes)
        logits = inputs @ weights
        penalised = weights.copy()
        penalised[-1] = 0.0
        log_probabilities = special.log_softmax(logits, axis=1)
        gradient = inputs.T @ (np.exp(log_probabilities) - one_hot) + penalty * penalised
        value = -(one_hot * log_probabilities).sum() + penalty / 2 * (penalised**2).sum()
        return float(value) / len(x), gradient.ravel() / len(x)

    start = np.zeros(inputs.shape[1] * classes)
    options = {"maxiter": 200, "gtol": 1e-4}  # separable sources run long; the ranking is what counts
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    logits = np.hstack([(new - center) / spread, np.ones((len(new), 1))]) @ found.x.reshape(-1, classes)
    return special.softmax(logits, axis=1)


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
