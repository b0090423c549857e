"""What an evaluation costs on large test sets: ranks of retrieval, and resamples of AUROC and AUPRC. Prints one table.

    python benchmarks/large.py --json large.json     # 100,000 x 100,000 and a million rows: a minute on two idle cores
    python benchmarks/large.py --pairs 8192 --rows 50000 --resamples 100

Retrieval: random embeddings of 128 numbers, ranks in both directions. Resamples: one finding with a prevalence of 0.1,
a patient has one to four images. Each has a process of its own, and "MiB" is its highest resident memory less that
before, when the input was there.
"""

import argparse
import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mmclip_jax.memory import keep_freed_memory

if __name__ == "__main__":  # before NumPy and JAX start threads
    keep_freed_memory()

import numpy as np

from mmclip_jax.evaluate.stats import metrics
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap
from mmclip_jax.evaluate.stats.ranks import retrieval_ranks

WIDTH, PREVALENCE = 128, 0.1


def ranks(options: argparse.Namespace) -> Callable[[], object]:
    """Ranks of random embeddings in both directions."""
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, options.pairs, WIDTH), np.float32)
    return lambda: retrieval_ranks(first, second, np.arange(options.pairs)[:, np.newaxis])


def resamples(options: argparse.Namespace, metric: metrics.Metric) -> Callable[[], object]:
    """Resamples of one finding."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(options.rows), rng.integers(1, 5, options.rows))[: options.rows]
    labels = (rng.random(options.rows) < PREVALENCE).astype(float)
    scores = labels + rng.normal(size=options.rows)
    bootstrap = Bootstrap(patients, options.resamples)
    return lambda: bootstrap.metric(labels, scores, metric)


CASES: dict[str, Callable[[argparse.Namespace], Callable[[], object]]] = {
    "ranks of {pairs:,} x {pairs:,}, both directions": ranks,
    "AUROC, {resamples:,} resamples of {rows:,} rows": lambda options: resamples(options, metrics.auroc),
    "AUPRC, {resamples:,} resamples of {rows:,} rows": lambda options: resamples(options, metrics.auprc),
}


def cost(function: Callable[[], object]) -> dict[str, float]:
    """Seconds by the clock and of the processor, and by how many MiB the process grew at its largest."""
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, processor = time.perf_counter(), time.process_time()
    function()
    spent = {"seconds": time.perf_counter() - start, "processor": time.process_time() - processor}
    return spent | {"MiB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="where the numbers go, too")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(cost(list(CASES.values())[options.case](options))))
        return
    found = {}
    print("| what | seconds | processor seconds | MiB |\n|---|---:|---:|---:|")
    for number, name in enumerate(CASES):
        command = [sys.executable, *sys.argv, "--case", str(number)]
        spent = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        what = name.format(**vars(options))
        print(f"| {what} | {spent['seconds']:.1f} | {spent['processor']:.1f} | {spent['MiB']:,.0f} |", flush=True)
        found[what] = spent
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
