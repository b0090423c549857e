"""How often the intervals of every kind of number hold the truth, and how often `compare` calls chance a difference.

    python benchmarks/intervals.py               # 1,000 simulated data sets a row: coverage of the 95 % intervals
    python benchmarks/intervals.py --compare     # type I error of p < 0.05 by the patients that have the finding

A simulated patient has one to three images and a level of his own, which all of his images share. The truth is that of
400,000 patients (200,000 for the median rank). "percentiles" is what would be got from the same resamples without the
rules of `mmclip_jax.evaluate.stats.intervals`. For --compare two models read the same images with independent noise of
the same size, so no difference between them is true. benchmarks/bootstrap.py does the same for a single AUROC or AUPRC.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from mmclip_jax.evaluate.report import comparison
from mmclip_jax.evaluate.stats import bootstrap, calibration, intervals, metrics
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap

RESAMPLES = 500
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Sample:
    """Rows of one data set: two models' success [n], labels [n, K], two models' scores [n, K], patients [n]."""

    success: np.ndarray
    labels: np.ndarray
    scores: tuple[np.ndarray, np.ndarray]
    groups: np.ndarray

    @property
    def patients(self) -> int:
        """How many there are."""
        return bootstrap.count_patients(self.groups)


def draw(rng: np.random.Generator, patients: int, rate: float, findings: int = 5) -> Sample:
    """A data set in which the first model succeeds in `rate` of the rows, and the second in 0.15 fewer at most."""
    groups = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    n = len(groups)
    level = rng.beta(3 * rate, 3 * (1 - rate), patients)[groups]
    worse = np.clip(level - 0.15, 0, 1)
    success = np.stack([rng.random(n) < level, rng.random(n) < worse], axis=1).astype(float)
    shown = rng.beta(0.4, 1.6, (patients, findings))[groups]
    labels = (rng.random((n, findings)) < shown).astype(float)
    common = rng.normal(size=(patients, findings))[groups] + rng.normal(size=(n, findings))
    scores = tuple(
        effect * labels + 0.6 * common + 0.4 * rng.normal(size=(patients, findings))[groups] for effect in (1.4, 1.0)
    )
    return Sample(success, labels, (scores[0], scores[1]), groups)


Rule = Callable[[float, np.ndarray, Sample], intervals.Interval]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of number: its value [..., one], its resamples [R], and its interval."""

    name: str
    value: Callable[[Sample], float]
    replicates: Callable[[Sample, int], np.ndarray]
    rule: Rule


def areas(sample: Sample, model: int) -> float:
    """The mean AUROC over findings."""
    columns = range(sample.labels.shape[1])
    return float(np.nanmean([metrics.auroc(sample.labels[:, k], sample.scores[model][:, k]) for k in columns]))


def drawn_areas(sample: Sample, model: int, seed: int) -> np.ndarray:
    """The same of resamples [R]."""
    found = Bootstrap(sample.groups, RESAMPLES, seed=seed).metric(sample.labels, sample.scores[model])
    return bootstrap.macro_replicates(found)


def drawn_rates(sample: Sample, seed: int) -> np.ndarray:
    """Both models' rates of success in resamples [R, 2]."""
    return Bootstrap(sample.groups, RESAMPLES, seed=seed).ratio(sample.success)


def chances(sample: Sample) -> np.ndarray:
    """Probabilities that are too sure of themselves, [n, K]."""
    return 1 / (1 + np.exp(-2 * (sample.scores[0] - 1)))


def drawn_calibration(sample: Sample, seed: int) -> np.ndarray:
    """Calibration error and Brier score of resamples [R, 2]."""
    return calibration.resample_calibration(
        sample.labels,
        chances(sample),
        Bootstrap(sample.groups, RESAMPLES, seed=seed),
    )


def rank_of(sample: Sample) -> np.ndarray:
    """Whole ranks from 1, skewed, [n]."""
    return np.ceil(np.exp(2 * sample.scores[0][:, 0] + 3))


def drawn_median(sample: Sample, seed: int) -> np.ndarray:
    """The median rank of resamples [R]."""
    rank = rank_of(sample)

    def median(_: np.ndarray, drawn: np.ndarray) -> float:
        return float(np.median(drawn))

    return Bootstrap(sample.groups, RESAMPLES, seed=seed).metric(np.zeros(len(rank)), rank, median)


KINDS = (
    Kind(
        "rate (recall, pointing, sensitivity, restored entities)",
        lambda s: float(s.success[:, 0].mean()),
        lambda s, seed: drawn_rates(s, seed)[:, 0],
        lambda p, r, s: intervals.rate_interval(p, r, LEVEL, s.patients),
    ),
    Kind(
        "difference of two rates (drop of EntMLM)",
        lambda s: float(s.success[:, 0].mean() - s.success[:, 1].mean()),
        lambda s, seed: drawn_rates(s, seed) @ np.array([1.0, -1.0]),
        lambda p, r, s: intervals.difference_interval(p, r, LEVEL, s.patients),
    ),
    Kind(
        "mean of any size (contrast)",
        lambda s: float(s.scores[0][:, 0].mean()),
        lambda s, seed: Bootstrap(s.groups, RESAMPLES, seed=seed).ratio(s.scores[0][:, 0]),
        lambda p, r, s: intervals.mean_interval(p, r, LEVEL, s.patients),
    ),
    Kind(
        "mean AUROC of five findings (zero-shot, studies, fine-tuning, source probe)",
        lambda s: areas(s, 0),
        lambda s, seed: drawn_areas(s, 0, seed),
        lambda p, r, s: intervals.logit_interval(p, r, LEVEL),
    ),
    Kind(
        "difference of two mean AUROCs (subgroups)",
        lambda s: areas(s, 0) - areas(s, 1),
        lambda s, seed: drawn_areas(s, 0, seed) - drawn_areas(s, 1, seed),
        lambda p, r, s: intervals.difference_interval(p, r, LEVEL),
    ),
    Kind(
        "Brier score",
        lambda s: calibration.brier(s.labels, chances(s)),
        lambda s, seed: drawn_calibration(s, seed)[:, 1],
        lambda p, r, s: intervals.rate_interval(p, r, LEVEL, s.patients),
    ),
    Kind(
        "calibration error",
        lambda s: calibration.ece(s.labels, chances(s)),
        lambda s, seed: drawn_calibration(s, seed)[:, 0],
        lambda p, r, s: intervals.percentile_interval(r, LEVEL),
    ),
    Kind(
        "median rank",
        lambda s: float(np.median(rank_of(s))),
        drawn_median,
        lambda p, r, s: intervals.percentile_interval(r, LEVEL),
    ),
)  # fmt: skip


def coverage(kind: Kind, patients: int, rate: float, datasets: int) -> tuple[float, float, float]:
    """(truth, share of intervals that hold it, the same of percentiles)."""
    truth = kind.value(draw(np.random.default_rng(999), 400_000 if kind.name != "median rank" else 200_000, rate))
    rng, held = np.random.default_rng(0), np.zeros(2)
    for seed in range(datasets):
        sample = draw(rng, patients, rate)
        point, replicates = kind.value(sample), kind.replicates(sample, seed)
        for which, interval in enumerate(
            (kind.rule(point, replicates, sample), intervals.percentile_interval(replicates, LEVEL))
        ):
            held[which] += interval.low <= truth <= interval.high
    return truth, held[0] / datasets, held[1] / datasets


def type_one(
    positive: int, patients: int, metric: metrics.Metric, datasets: int, findings: int = 1, shared: bool = False
) -> tuple[float, int]:
    """(share of equal models with p < 0.05, how many p were refused) of the mean over findings.

    Each finding has `positive` patients: others than the next one has, with noise of its own, or, if `shared`, the same
    ones, with noise that is nearly the same.
    """
    rng, small, refused = np.random.default_rng(1), 0, 0
    for seed in range(datasets):
        groups = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
        apart = 0 if shared else patients // findings
        labels = np.stack([((groups - apart * k) % patients < positive).astype(float) for k in range(findings)], axis=1)

        def normal(rows: int) -> np.ndarray:
            own = rng.normal(size=(rows, findings))
            return 0.9**0.5 * rng.normal(size=(rows, 1)) + 0.1**0.5 * own if shared else own

        def noise(of: np.ndarray = groups) -> np.ndarray:
            return normal(patients)[of] + normal(len(of))

        base = 1.2 * labels + 0.5**0.5 * noise()
        scores = [base + 0.5 * noise() for _ in range(2)]
        resampled = Bootstrap(groups, RESAMPLES, LEVEL, seed)
        found = comparison.compared(metric, labels, scores, range(findings), resampled)
        mean = comparison.mean_of(found, metric, labels, scores, resampled) if findings > 1 else found[0]
        change = mean.entry(resampled)["differences"][1]
        assert change is not None
        small += change["p"] < 0.05
        refused += bool(np.isnan(change["p"]))
    return small / datasets, refused


def rows_of_coverage(datasets: int) -> Iterator[str]:
    """The lines of the first table."""
    yield "| number | patients | rate | truth | interval | percentiles |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    for kind in KINDS:
        for patients, rate in ((30, 0.6), (100, 0.9)):
            truth, held, percentiles = coverage(kind, patients, rate, datasets)
            shown = f"{rate:g}" if "rate" in kind.name else ""
            yield f"| {kind.name} | {patients} | {shown} | {truth:.3f} | {held:.1%} | {percentiles:.1%} |"


def rows_of_comparison(datasets: int) -> Iterator[str]:
    """The lines of the second table."""
    means = "mean AUROC of 5 | mean AUPRC of 5 | of the same patients: AUROC | AUPRC"
    yield f"| patients with the finding, of 150 | AUROC | AUPRC | {means} |"
    yield "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for positive in (1, 2, 3, 5, 10, 30):
        cells = []
        for findings, shared in ((1, False), (5, False), (5, True)):
            for metric in (metrics.auroc, metrics.auprc):
                share, refused = type_one(positive, 150, metric, datasets, findings, shared)
                cells.append("refused" if refused == datasets else f"{share:.1%}")
        yield f"| {positive} | {' | '.join(cells)} |"


def main() -> None:
    """Prints one of the two tables."""
    parser = argparse.ArgumentParser(description="Coverage of intervals, or type I error of comparisons.")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--datasets", type=int, default=1000, help="simulated a row")
    args = parser.parse_args()
    for line in (rows_of_comparison if args.compare else rows_of_coverage)(args.datasets):
        print(line, flush=True)


if __name__ == "__main__":
    main()
