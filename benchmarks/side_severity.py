"""Why side and severity are hard to learn: what a model's features hold of them, and what its prompts make of it.

For each finding with boxes, images whose lesions of that kind lie on one side only are asked for the side, and all
images with one lesion of the kind for its size (above or below the median area). Asked are linear probes (logistic
regression, five folds by patient) of the pooled patches and of the image embedding, and the prompts: "left X" less
"right X", "large X" less "small X". Printed are AUROCs, 0.5 by chance, weighted by images over the findings, and the
mean cosine between the two prompts.

  python benchmarks/side_severity.py --workdir runs/demo --data runs/demo/data/phantom --split test
"""

import argparse
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import mmclip_jax
from mmclip_jax.evaluate.rows import Split
from mmclip_jax.text import prompts

LEAST = 30  # images of either class that a finding needs to be counted
QUESTIONS = {"side": ("left {}.", "right {}."), "severity": ("large {}.", "small {}.")}


def probe(features: np.ndarray, truth: np.ndarray, patients: np.ndarray) -> float:
    """AUROC of a logistic regression, five folds by patient."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
        scores = cross_val_predict(
            model, features, truth, groups=patients, cv=GroupKFold(5), method="decision_function"
        )
    return float(roc_auc_score(truth, scores))


def asked(split: Split, kind: str) -> Iterator[tuple[str, list[int], np.ndarray]]:
    """(question, rows, truth bool) of one kind. The left of the patient is on the right of the image."""
    side_rows, side, size_rows, area = [], [], [], []
    for row, example in enumerate(split.examples):
        boxes = [box for box in example.boxes if box.kind == kind]
        sides = {box.x_min + box.x_max > 1.0 for box in boxes}
        if len(sides) == 1:
            side_rows.append(row)
            side.append(sides.pop())
        if len(boxes) == 1:
            size_rows.append(row)
            area.append((boxes[0].x_max - boxes[0].x_min) * (boxes[0].y_max - boxes[0].y_min))
    yield "side", side_rows, np.array(side, bool)
    yield "severity", size_rows, np.array(area) > (np.median(area) if area else 0.0)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--split", default="test")
    args = parser.parse_args()
    model: Any = mmclip_jax.load(args.workdir)
    split = Split.load(args.data, args.split)
    pixels = split.pixels(range(len(split)))
    patients = np.array(split.patients)
    embedded = model.encode_image(pixels)
    patches = []
    for start in range(0, len(pixels), 64):
        batch = model._fit(pixels[start : start + 64])
        full = np.concatenate([batch, np.zeros((64 - len(batch), *batch.shape[1:]), batch.dtype)])
        patches.append(np.asarray(model._patches(full))[: len(batch)])
    features = np.concatenate(patches).astype(np.float32)
    found: dict[str, list[tuple[int, list[float]]]] = {question: [] for question in QUESTIONS}
    for kind in sorted({box.kind for example in split.examples for box in example.boxes}):
        for question, rows, truth in asked(split, kind):
            if min(truth.sum(), (~truth).sum()) < LEAST:
                continue
            pair = model.encode_text([text.format(prompts.display_name(kind)) for text in QUESTIONS[question]])
            scores = embedded[rows] @ (pair[0] - pair[1])
            figures = [
                probe(features[rows].mean(axis=1), truth, patients[rows]),
                probe(features[rows].max(axis=1), truth, patients[rows]),
                probe(embedded[rows], truth, patients[rows]),
                float(roc_auc_score(truth, scores)),
                float(pair[0] @ pair[1]),
            ]
            found[question].append((len(rows), figures))
            print(f"{question:9} {kind:20} {len(rows):5} " + " ".join(f"{figure:6.3f}" for figure in figures))
    print(
        "| question | findings | images | probe, mean of patches | probe, maximum of patches | probe, embedding | "
        "prompts | cosine of the prompts |\n|---|---|---|---|---|---|---|---|"
    )
    for question, lines in found.items():
        counts = [count for count, _ in lines]
        means = np.average([figures for _, figures in lines], axis=0, weights=counts)
        print(f"| {question} | {len(lines)} | {sum(counts)} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")


if __name__ == "__main__":
    main()
