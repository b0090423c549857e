"""Pneumonia against no finding on held-out patients of small real collections: by prompts, and a supervised floor.

    python benchmarks/real_small.py --workdir runs/real/small --data runs/real/data/kermany runs/real/data/nih

For each data set: the checkpoint's score for "pneumonia" by prompts on the test split, what scikit-learn makes of the
same training rows' 64 x 64 pixels (the floor: PCA, then logistic regression), and of the checkpoint's image embeddings
(a linear probe: what the image encoder knows, whatever the prompt says). Rows are those labelled pneumonia or no
finding; AUROC with 95 % patient-clustered bootstrap intervals. Floor and probe learn from labels of the same source;
the column "exposure" says what the prompts have seen, from the checkpoint's own record.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import mmclip_jax
from mmclip_jax.data.images import transforms
from mmclip_jax.data.records import open_records
from mmclip_jax.data.schema import PARTS, LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate.stats import auroc, bootstrap_ci
from mmclip_jax.inference.exposure import exposure

FINDING = "pneumonia"
FLOOR_SIZE = 64
COMPONENTS = 100


def labelled_rows(directory: Path, split: str) -> tuple[list[np.ndarray], np.ndarray, list[str]]:
    """(images uint8 [H,W], labels float [n], patients) of the rows that are labelled pneumonia or no finding."""
    images, labels, patients = [], [], []
    for part in PARTS:
        records = open_records(directory, split, part)
        for example in (records[i] for i in range(len(records))):
            has = example.labels.get(FINDING) == LabelState.PRESENT
            if has or example.labels.get("no_finding") == LabelState.PRESENT:
                images.append(transforms.decode_image(example.image))
                labels.append(float(has))
                patients.append(example.patient)
    return images, np.array(labels), patients


def sources(directory: Path) -> set[str]:
    """The sources of the test rows."""
    records = [open_records(directory, "test", part) for part in PARTS]
    return {part[i].source for part in records for i in range(len(part))}


def flat_pixels(images: list[np.ndarray]) -> np.ndarray:
    """The images at 64 x 64, in [0, 1], float64 [n, 4096]."""
    return np.stack([transforms.fit_image(image, FLOOR_SIZE).ravel() for image in images]) / 255.0


def linear_scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray, *before: Any) -> np.ndarray:
    """Scores of test rows by logistic regression on the standardised features of training rows."""
    model = make_pipeline(*before, StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    model.fit(train, labels)
    return model.decision_function(test)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="training run to score")
    parser.add_argument("--step", type=int, help="its checkpoint; the newest unless given")
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="built data sets")
    args = parser.parse_args()
    try:
        table(args)
    except UserError as error:
        sys.exit(f"real_small.py: {error}")


def table(args: argparse.Namespace) -> None:
    """Prints a row for each data set."""
    model = mmclip_jax.load(args.workdir, args.step)
    print(f"checkpoint: step {model.step} of {args.workdir}")
    print("| data set | test rows (pneumonia) | patients | by prompts | exposure | supervised floor | linear probe |")
    print("|---|---|---|---|---|---|---|")
    for directory in args.data:
        images, labels, patients = labelled_rows(directory, "test")
        if len(set(labels)) < 2:
            raise UserError(f"{directory} has no test rows of pneumonia and of no finding")
        train_images, train_labels, _ = labelled_rows(directory, "train")
        pca = PCA(COMPONENTS, random_state=0)
        cells = []
        for values in (
            model.zero_shot(images, [FINDING])[FINDING],
            linear_scores(flat_pixels(train_images), train_labels, flat_pixels(images), pca),
            linear_scores(model.encode_image(train_images), train_labels, model.encode_image(images)),
        ):
            low, high = bootstrap_ci(labels, values, patients)
            cells.append(f"{auroc(labels, values):.3f} ({low:.3f} to {high:.3f})")
        count = f"{len(labels)} ({int(labels.sum())})"
        stamps = sorted({exposure(FINDING, source, model.manifest) for source in sources(directory)})
        cells.insert(1, ", ".join(stamps))
        print(" | ".join(["| " + directory.name, count, str(len(set(patients))), *cells]) + " |")


if __name__ == "__main__":
    main()
