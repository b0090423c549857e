"""Bootstrap intervals: how long they take, and how often they hold the truth. Prints one table.

    python benchmarks/bootstrap.py               # 1,000 resamples of 14 findings in 25,596 images: seconds
    python benchmarks/bootstrap.py --coverage    # 1,000 simulated data sets a row: coverage of the 95 % intervals
    python benchmarks/bootstrap.py --tried       # the same of other intervals of the AUPRC, which are not used
    python benchmarks/bootstrap.py --why         # bias, and deviation by resamples and jackknife, over the true one

A simulated data set: patients have one to four images; how likely an image of a patient shows the finding differs from
patient to patient (a beta distribution), and so does the level of the patient's scores, whose variance is that of the
noise of a single image. The truth is the AUROC or AUPRC of 400,000 patients. "images" resamples images as if they were
independent; "patients" are percentiles over resampled patients; "logit" is `logit_interval` of the same, which
evaluations give of an AUROC, and "jackknife" is that with `left_out`, which they give of an AUPRC. The last three
designs, with other numbers of images a patient, had no part in choosing between intervals.

What was tried besides, all over patients: "arcsine" is "logit" with the arcsine of the root in place of the logit;
"BCa" are Efron's percentiles, corrected for bias and acceleration; "shifted" is "logit" less the resamples' bias on
that scale; "deviation" is "jackknife" with the degrees of freedom of "logit", "freedom" is "logit" with those of
"jackknife", and "jackknife, shifted" subtracts the jackknife's estimate of the bias.
"""

import argparse
import dataclasses
import time
from collections.abc import Sequence

import numpy as np
from scipy import special, stats

from mmclip_jax.evaluate.stats import bootstrap, intervals, metrics
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap

INTERVALS = ("images", "patients", "logit", "jackknife")
TRIED = ("arcsine", "BCa", "shifted", "deviation", "freedom", "jackknife, shifted")


@dataclasses.dataclass(frozen=True)
class Design:
    """A simulated population.

    patients: a data set; prevalence: share of images with the finding; effect: what it adds to a score; images: a
    patient has at most, each number from 1 being as likely.
    """

    patients: int
    prevalence: float
    effect: float
    images: int = 4

    def draw(self, rng: np.random.Generator, patients: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(labels, scores, patient of each image) of one data set."""
        count = patients or self.patients
        groups = np.repeat(np.arange(count), rng.integers(1, self.images + 1, count))
        chance = rng.beta(2 * self.prevalence, 2 * (1 - self.prevalence), count)
        labels = (rng.random(len(groups)) < chance[groups]).astype(float)
        scores = self.effect * labels + 0.5**0.5 * (rng.normal(size=count)[groups] + rng.normal(size=len(groups)))
        return labels, scores, groups


DESIGNS = (Design(100, 0.3, 1.0), Design(150, 0.2, 2.2), Design(300, 0.1, 1.0), Design(300, 0.05, 1.5))
FRESH_DESIGNS = (Design(60, 0.5, 1.5, images=8), Design(500, 0.03, 1.2, images=2), Design(200, 0.15, 0.7, images=12))


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
        point, fewest = metric(labels, scores), bootstrap.fewest_patients(labels, groups)
        drawn = Bootstrap(groups, resamples, seed=number)
        replicates = drawn.metric(labels, scores, metric)
        for name in which:
            if name == "images":
                interval = intervals.percentile_interval(drawn.of(range(len(labels))).metric(labels, scores, metric))
            elif name == "patients":
                interval = intervals.percentile_interval(replicates)
            else:
                left = None
                if name not in ("logit", "arcsine", "shifted"):
                    left = drawn.jackknife(labels, scores, metric)
                interval = intervals.logit_interval(
                    point, replicates, 0.95, fewest, left if name == "jackknife" else None
                )
                if name in TRIED and 0 < point < 1 and (left is None or not np.isnan(left).any()):
                    low, high = tried(name, point, replicates[~np.isnan(replicates)], left, fewest)
                    interval = dataclasses.replace(interval, low=low, high=high)
            held[name] += interval.low <= truth <= interval.high
    return truth, {name: count / datasets for name, count in held.items()}


def tried(name: str, point: float, replicates: np.ndarray, left: np.ndarray | None, fewest: int) -> tuple[float, float]:
    """(low, high) of a 95 % interval of `TRIED`; replicates [R] and left [k] have no NaN."""

    def around(center: float, deviation: float, freedom: float) -> tuple[float, float]:
        reach = stats.t.ppf(0.975, freedom) * deviation
        return float(special.expit(center - reach)), float(special.expit(center + reach))

    slope, center, freedom = 1 / (point * (1 - point)), special.logit(point), max(fewest - 1, 1)
    inside = np.clip(replicates, 1e-4, 1 - 1e-4)
    if name == "arcsine":
        middle, deviation = np.arcsin(point**0.5), np.arcsin(replicates**0.5).std(ddof=1)
        reach = stats.t.ppf(0.975, freedom) * deviation
        low, high = np.sin(np.clip([middle - reach, middle + reach], 0, np.pi / 2)) ** 2
        return float(low), float(high)
    if name == "shifted":
        moved = special.logit(inside)
        return around(2 * center - moved.mean(), moved.std(ddof=1), freedom)
    assert left is not None
    apart = left.mean() - left
    if name == "BCa":
        below = np.mean(replicates < point) + np.mean(replicates == point) / 2
        bias = stats.norm.ppf(np.clip(below, 0.001, 0.999))
        acceleration = (apart**3).sum() / (6 * (apart**2).sum() ** 1.5)
        ends = bias + stats.norm.ppf([0.025, 0.975])
        low, high = np.quantile(replicates, stats.norm.cdf(bias + ends / (1 - acceleration * ends)))
        return float(low), float(high)
    own = 2 / ((apart**4).sum() / (apart**2).sum() ** 2 - 1 / len(left))
    if name == "freedom":
        return around(center, replicates.std(ddof=1) * slope, max(own, 1))
    deviation = ((1 - 1 / len(left)) * (apart**2).sum()) ** 0.5 * slope
    if name == "deviation":
        return around(center, deviation, freedom)
    bias = (len(left) - 1) * (special.logit(np.clip(left, 1e-4, 1 - 1e-4)).mean() - center)
    return around(center - bias, deviation, max(own, 1))


def errors(design: Design, metric: metrics.Metric, datasets: int, resamples: int) -> tuple[float, float, float]:
    """Over the deviation of the metric among data sets: its bias, and what resamples and jackknife take it for.

    The latter two are roots of means of squares; data sets that lack a class or have one patient of it are left out.
    """
    truth = metric(*design.draw(np.random.default_rng(999), 400_000)[:2])
    rng = np.random.default_rng(0)
    rows = []
    for number in range(datasets):
        labels, scores, groups = design.draw(rng)
        if bootstrap.fewest_patients(labels, groups) < 2:
            continue
        drawn = Bootstrap(groups, resamples, seed=number).metric(labels, scores, metric)
        left = Bootstrap(groups).jackknife(labels, scores, metric)
        rows.append((metric(labels, scores), np.nanvar(drawn, ddof=1), (len(left) - 1) * left.var()))
    points, by_resamples, by_jackknife = np.array(rows).T
    deviation = points.std(ddof=1)
    found = (points.mean() - truth, by_resamples.mean() ** 0.5, by_jackknife.mean() ** 0.5)
    return found[0] / deviation, found[1] / deviation, found[2] / deviation


def seconds(resamples: int, findings: int, images: int, patients: int) -> dict[str, tuple[float, float]]:
    """{metric: (elapsed, processor)} of made-up data of this size."""
    rng = np.random.default_rng(0)
    labels = (rng.random((images, findings)) < 0.08).astype(float)
    scores = rng.normal(size=labels.shape) + labels
    groups = rng.integers(0, patients, images)
    taken = {}
    for name, metric in (("AUROC", metrics.auroc), ("AUPRC", metrics.auprc)):
        start = time.perf_counter(), time.process_time()
        replicates = Bootstrap(groups, resamples).metric(labels, scores, metric)
        for k in range(findings):
            Bootstrap(groups).ranking_interval(labels[:, k], scores[:, k], metric, replicates[:, k])
        taken[name] = time.perf_counter() - start[0], time.process_time() - start[1]
    return taken


def main() -> None:
    """Prints one of the two tables."""
    parser = argparse.ArgumentParser(description="Seconds, or coverage, of bootstrap intervals.")
    parser.add_argument("--coverage", action="store_true", help="simulate data sets with known truth")
    parser.add_argument("--tried", action="store_true", help="the same of what is not used, AUPRC only")
    parser.add_argument("--why", action="store_true", help="bias and deviations over the true deviation")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--datasets", type=int, default=1000, help="simulated a row")
    args = parser.parse_args()
    if not (args.coverage or args.tried or args.why):
        print("| metric | seconds | of a processor |\n| --- | ---: | ---: |")
        for name, (elapsed, processor) in seconds(args.resamples, 14, 25_596, 2_797).items():
            print(f"| {name} | {elapsed:.1f} | {processor:.1f} |")
        return
    which = ("bias", "resamples", "jackknife") if args.why else TRIED if args.tried else INTERVALS
    print(f"| patients | images | prevalence | metric | {'' if args.why else 'truth | '}{' | '.join(which)} |")
    print("| --- " * (5 - args.why + len(which)) + "|")
    for design in (*DESIGNS, *FRESH_DESIGNS):
        for name, metric in (("AUROC", metrics.auroc), ("AUPRC", metrics.auprc))[args.tried :]:
            head = f"| {design.patients} | 1–{design.images} | {design.prevalence:g} | {name}"
            if args.why:
                ratios = errors(design, metric, args.datasets, args.resamples)
                print(f"{head} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |", flush=True)
                continue
            truth, held = coverage(design, metric, args.datasets, args.resamples, which)
            shares = " | ".join(f"{100 * share:.1f} %" for share in held.values())
            print(f"{head} | {truth:.3f} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
