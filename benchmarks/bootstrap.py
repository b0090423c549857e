"""Bootstrap intervals: how long they take, and how often they hold the truth. Prints one table.

    python benchmarks/bootstrap.py               # 1,000 resamples of 14 findings in 25,596 images: seconds
    python benchmarks/bootstrap.py --coverage    # 1,000 simulated data sets a row: coverage of the 95 % intervals

A simulated data set: patients have one to four images; how likely an image of a patient shows the finding differs from
patient to patient (a beta distribution), and so does the level of the patient's scores, whose variance is that of the
noise of a single image. The truth is the AUROC or AUPRC of 400,000 patients. "images" resamples images as if they were
independent; "patients" are percentiles over resampled patients; "logit" is `metrics.logit_interval`, which evaluations
use.
"""

import argparse
import dataclasses
import time
from collections.abc import Sequence

import numpy as np

from mmclip_jax.evaluate import metrics

INTERVALS = ("images", "patients", "logit")


@dataclasses.dataclass(frozen=True)
class Design:
    """A simulated population: patients a data set, share of images with the finding, what it adds to a score."""

    patients: int
    prevalence: float
    effect: float

    def draw(self, rng: np.random.Generator, patients: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(labels, scores, patient of each image) of one data set."""
        count = patients or self.patients
        groups = np.repeat(np.arange(count), rng.integers(1, 5, count))
        chance = rng.beta(2 * self.prevalence, 2 * (1 - self.prevalence), count)
        labels = (rng.random(len(groups)) < chance[groups]).astype(float)
        scores = self.effect * labels + 0.5**0.5 * (rng.normal(size=count)[groups] + rng.normal(size=len(groups)))
        return labels, scores, groups


DESIGNS = (Design(100, 0.3, 1.0), Design(150, 0.2, 2.2), Design(300, 0.1, 1.0), Design(300, 0.05, 1.5))


def coverage(
    design: Design, metric: metrics.Metric, datasets: int, resamples: int, which: Sequence[str] = INTERVALS
) -> tuple[float, dict[str, float]]:
    """(truth, share of 95 % intervals that hold it by kind); data sets that lack a class are drawn again."""
    truth = metric(*design.draw(np.random.default_rng(999), 400_000)[:2])
    rng, held = np.random.default_rng(0), dict.fromkeys(which, 0)
    for number in range(datasets):
        labels, scores, groups = design.draw(rng)
        while labels.min() == labels.max():
            labels, scores, groups = design.draw(rng)
        for name in which:
            replicates = metrics.resample_metric(
                labels, scores, None if name == "images" else groups, metric=metric, resamples=resamples, seed=number
            )
            interval = metrics.percentile_interval(replicates)
            if name == "logit":
                fewest = metrics.fewest_patients(labels, groups)
                interval = metrics.logit_interval(metric(labels, scores), replicates, 0.95, fewest)
            held[name] += interval.low <= truth <= interval.high
    return truth, {name: count / datasets for name, count in held.items()}


def seconds(resamples: int, findings: int, images: int, patients: int) -> dict[str, tuple[float, float]]:
    """{metric: (elapsed, processor)} of made-up data of this size."""
    rng = np.random.default_rng(0)
    labels = (rng.random((images, findings)) < 0.08).astype(float)
    scores = rng.normal(size=labels.shape) + labels
    groups = rng.integers(0, patients, images)
    taken = {}
    for name, metric in (("AUROC", metrics.auroc), ("AUPRC", metrics.auprc)):
        start = time.perf_counter(), time.process_time()
        metrics.resample_metric(labels, scores, groups, metric=metric, resamples=resamples)
        taken[name] = time.perf_counter() - start[0], time.process_time() - start[1]
    return taken


def main() -> None:
    """Prints one of the two tables."""
    parser = argparse.ArgumentParser(description="Seconds, or coverage, of bootstrap intervals.")
    parser.add_argument("--coverage", action="store_true", help="simulate data sets with known truth")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--datasets", type=int, default=1000, help="simulated a row")
    args = parser.parse_args()
    if not args.coverage:
        print("| metric | seconds | of a processor |\n| --- | ---: | ---: |")
        for name, (elapsed, processor) in seconds(args.resamples, 14, 25_596, 2_797).items():
            print(f"| {name} | {elapsed:.1f} | {processor:.1f} |")
        return
    print(f"| patients | prevalence | metric | truth | {' | '.join(INTERVALS)} |\n{'| --- ' * (4 + len(INTERVALS))}|")
    for design in DESIGNS:
        for name, metric in (("AUROC", metrics.auroc), ("AUPRC", metrics.auprc)):
            truth, held = coverage(design, metric, args.datasets, args.resamples)
            shares = " | ".join(f"{100 * share:.1f} %" for share in held.values())
            print(f"| {design.patients} | {design.prevalence:g} | {name} | {truth:.3f} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
