"""Prints the phantom's difficulty as measured on its own data: `python -m mmclip_jax.data.phantom.describe`."""

import argparse
import collections
import dataclasses

import numpy as np

from mmclip_jax.data.phantom.findings import KINDS, draw_findings
from mmclip_jax.data.phantom.generate import (
    PAIRED_SOURCE,
    PhantomConfig,
    generate,
    patient_of,
    scaled_patients,
)
from mmclip_jax.data.phantom.render import BOX_LEVELS, BOX_SHARE, SCANNERS, render
from mmclip_jax.data.schema import Box, Example, LabelState

# Contrast needs each image drawn once more for each finding, so it is taken from the first patients only.
_CONTRAST_PATIENTS = 400


@dataclasses.dataclass
class KindFacts:
    """What the data say of one kind.

    prevalence: share of studies; told: share of the studies with it whose report names it; areas: of single boxes,
    covered: of all boxes of a study together, as shares of the image; contrast: mean change of the changed pixels by
    the standard deviation of the noise.
    """

    prevalence: float
    told: float
    areas: np.ndarray
    covered: np.ndarray
    contrast: float


@dataclasses.dataclass
class Facts:
    """What the data say of the whole: studies, share without disease, words of reports, one `KindFacts` a kind."""

    studies: int
    normal: float
    words: np.ndarray
    kinds: dict[str, KindFacts]


def measure(config: PhantomConfig, split: str = "train") -> Facts:
    """Measures the paired part of a split."""
    examples = list(generate(config, split, PAIRED_SOURCE))
    present = collections.Counter(
        kind for example in examples for kind, state in example.labels.items() if state == LabelState.PRESENT
    )
    told = collections.Counter(kind for example in examples for kind in _told_kinds(example))
    contrast = _contrasts(config, split)
    kinds = {}
    for kind in KINDS:
        boxes = [[box for box in example.boxes if box.kind == kind] for example in examples]
        kinds[kind] = KindFacts(
            prevalence=present[kind] / len(examples),
            told=told[kind] / max(present[kind], 1),
            areas=np.array([_area(box) for some in boxes for box in some]),
            covered=np.array([sum(map(_area, some)) for some in boxes if some]),
            contrast=contrast[kind],
        )
    return Facts(
        studies=len(examples),
        normal=present["no_finding"] / len(examples),
        words=np.array([len(example.text.split()) for example in examples]),
        kinds=kinds,
    )


def table(facts: Facts) -> str:
    """The facts as a Markdown table and a line on the whole."""
    areas = np.concatenate([kind.areas for kind in facts.kinds.values()])
    covered = np.concatenate([kind.covered for kind in facts.kinds.values()])
    lines = [
        "| kind | % of studies | % named in the report | box area, % of the image: 10th, 50th, 90th percentile "
        "| contrast / noise |",
        "|---|---|---|---|---|",
    ]
    for name, kind in facts.kinds.items():
        low, middle, high = np.percentile(kind.areas, [10, 50, 90]) * 100
        lines.append(
            f"| {name} | {100 * kind.prevalence:.1f} | {100 * kind.told:.0f} | {low:.1f}, {middle:.1f}, {high:.1f} "
            f"| {kind.contrast:.1f} |"
        )
    low, middle, high = np.percentile(areas, [10, 50, 90]) * 100
    lines.append(f"| all boxes | | | {low:.1f}, {middle:.1f}, {high:.1f} | |")
    word = np.percentile(facts.words, [5, 50, 95])
    return "\n".join(
        [
            *lines,
            "",
            f"{facts.studies} studies; {100 * facts.normal:.1f} % without disease; {len(areas) / facts.studies:.2f} "
            f"boxes a study; a random point hits a finding's boxes in {100 * covered.mean():.1f} %; words a report: "
            f"{word[0]:.0f} (5th percentile), {word[1]:.0f} (median), {word[2]:.0f} (95th).",
        ]
    )


def _area(box: Box) -> float:
    return (box.x_max - box.x_min) * (box.y_max - box.y_min)


def _told_kinds(example: Example) -> set[str]:
    devices = {entity.label == "device" and "support_device" for entity in example.entities if not entity.negated}
    told = {entity.kind for entity in example.entities if not entity.negated} | {"support_device"} & devices
    return {kind for kind in told if example.labels.get(kind) == LabelState.PRESENT}


def _contrasts(config: PhantomConfig, split: str) -> dict[str, float]:
    """Mean change of the pixels that each kind changes, by the noise."""
    changes: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(min(_CONTRAST_PATIENTS, config.patients[PAIRED_SOURCE][split])):
        patient = patient_of(config.seed, split, PAIRED_SOURCE, number)
        findings = draw_findings(patient, 1)
        for index, finding in enumerate(findings):
            others = findings[:index] + findings[index + 1 :]
            pixels, bare = (
                render(patient, 1, some, PAIRED_SOURCE, config.image_size)[0].astype(np.float32)
                for some in (findings, others)
            )
            change = np.abs(pixels - bare)
            changes[finding.kind].append(change[change >= max(BOX_LEVELS, BOX_SHARE * change.max())].mean())
    noise = SCANNERS[PAIRED_SOURCE].noise
    return {kind: float(np.mean(values)) / noise if values else float("nan") for kind, values in changes.items()}


def probe(config: PhantomConfig) -> dict[str, float]:
    """AUROC of each kind on the paired test split for ridge regression from the pixels of the paired train split.

    A floor for any model: what needs no learnt features, given all labels.
    """
    (train, train_labels), (test, test_labels) = (_pixels_and_labels(config, split) for split in ("train", "test"))
    mean, spread = train.mean(0), train.std(0) + 1.0
    train, test = (train - mean) / spread, (test - mean) / spread
    # As strong as a pixel's variance times the number of examples.
    gram = train.T @ train + np.float32(len(train)) * np.eye(train.shape[1], dtype=np.float32)
    scores = test @ np.linalg.solve(gram, train.T @ (train_labels - train_labels.mean(0)))
    areas = {}
    for index, kind in enumerate(KINDS):
        positive = test_labels[:, index] > 0
        ranks = np.empty(len(test))
        ranks[np.argsort(scores[:, index])] = np.arange(len(test))
        hits, misses = positive.sum(), (~positive).sum()
        areas[kind] = float((ranks[positive].sum() - hits * (hits - 1) / 2) / (hits * misses))
    return areas


def _pixels_and_labels(config: PhantomConfig, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [n, size * size] and labels [n, kinds] of the paired part, float32."""
    pixels, labels = [], []
    for number in range(config.patients[PAIRED_SOURCE][split]):
        patient = patient_of(config.seed, split, PAIRED_SOURCE, number)
        for study in range(1, patient.studies + 1):
            findings = draw_findings(patient, study)
            pixels.append(render(patient, study, findings, PAIRED_SOURCE, config.image_size)[0].ravel())
            present = {finding.kind for finding in findings}
            labels.append([kind in present for kind in KINDS])
    return np.array(pixels, np.float32), np.array(labels, np.float32)


def main() -> None:
    """Prints the table of a data set with the given options."""
    parser = argparse.ArgumentParser(description="Print the chest phantom's difficulty, measured on its own data.")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the default number of patients")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="train", choices=("train", "validation", "test"))
    parser.add_argument("--probe", action="store_true", help="also the AUROC of a linear model of the pixels")
    options = parser.parse_args()
    config = PhantomConfig(options.seed, options.image_size, scaled_patients(options.scale))
    print(table(measure(config, options.split)))
    if options.probe:
        areas = probe(config)
        print("\nAUROC of ridge regression from pixels, paired train to paired test:")
        print(
            ", ".join(f"{kind} {area:.2f}" for kind, area in areas.items())
            + f"; mean {np.mean(list(areas.values())):.3f}"
        )


if __name__ == "__main__":
    main()
