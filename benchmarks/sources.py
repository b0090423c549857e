"""What it costs that a model tells sources apart: the same findings in each source, and how far their scores are apart.

    python benchmarks/sources.py runs/demo --data runs/demo/data/phantom

A row a run: the macro AUROC by prompts in each source and in all of them together, over the findings that have both
classes in every source, and the shift. That is how far the mean scores of two sources are apart, in standard
deviations of a finding's scores: its mean over the findings, for the two sources that are furthest apart. A finding
that is rarer in one source shifts its scores, too: compare runs, not with 0. `mmclip evaluate` has the source probe.
"""

import argparse
import itertools
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a bare checkout too

import mmclip_jax
from mmclip_jax.evaluate.evaluations.scored import findings_of
from mmclip_jax.evaluate.rows import Split, embed_images, labels_of
from mmclip_jax.evaluate.stats import metrics
from mmclip_jax.inference import scoring


def macro(labels: np.ndarray, scores: np.ndarray) -> float:
    """The mean AUROC of the findings: labels [n,K] (NaN: unknown), scores [n,K]."""
    return float(np.mean([metrics.auroc(labels[:, k], scores[:, k]) for k in range(labels.shape[1])]))


def compare(labels: np.ndarray, scores: np.ndarray, sources: Sequence[np.ndarray]) -> tuple[list[float], float]:
    """The macro AUROC of each source and of all rows, and the largest shift between two sources.

    Args:
      labels: [n,K], 0 or 1 (NaN: unknown), both in every source.
      scores: [n,K].
      sources: the rows of each.
    """
    areas = [macro(labels[rows], scores[rows]) for rows in sources] + [macro(labels, scores)]
    means = [scores[rows].mean(axis=0) for rows in sources]
    shift = max(float((np.abs(a - b) / scores.std(axis=0)).mean()) for a, b in itertools.combinations(means, 2))
    return areas, shift


def main() -> None:
    """Prints a row a run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", help="runs, or checkpoints of them")
    parser.add_argument("--data", nargs="+", required=True, help="built data sets")
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    split = Split.load(options.data, options.split)
    sources = {name: split.rows_of(name) for name in split.source_counts}
    if len(sources) < 2:
        parser.error(f"all images are of {next(iter(sources))}: there is nothing to compare")
    findings = findings_of(split)
    labels = labels_of(split.examples, findings)
    both = [
        k for k in range(len(findings)) if all({0.0, 1.0} <= set(labels[rows, k].tolist()) for rows in sources.values())
    ]
    if not both:
        parser.error("no finding is both present and absent in every source")
    findings, labels = [findings[k] for k in both], labels[:, both]
    print(f"{len(findings)} findings: {', '.join(findings)}\n")
    heads = ["run", *(f"{name} ({len(rows)})" for name, rows in sources.items()), "together", "shift"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for run in options.runs:
        model = mmclip_jax.load(run)
        texts = scoring.prompt_embeddings(model, findings)
        scores = scoring.score_images(embed_images(model, split), *texts)["difference"]
        areas, shift = compare(labels, scores, list(sources.values()))
        print(f"| {run} | {' | '.join(f'{area:.3f}' for area in areas)} | {shift:.2f} |", flush=True)


if __name__ == "__main__":
    main()
