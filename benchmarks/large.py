"""What an evaluation costs on large test sets: ranks of retrieval, and resamples of AUROC and AUPRC. Prints one table.

    python benchmarks/large.py --json large.json     # 100,000 x 100,000 and a million rows: ten minutes on two cores
    python benchmarks/large.py --pairs 8192 --rows 50000 --resamples 100

Retrieval: random embeddings of 128 numbers, ranks in both directions. Resamples: one finding with a prevalence of 0.1,
a patient has one to four images. "MiB" is how much the process grew (its highest resident memory less that before).
"""

import argparse
import json
import resource
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


def cost(function: Callable[[], object]) -> dict[str, float]:
    """Seconds by the clock and of the processor, and megabytes (2**20 bytes) that the process grew by."""
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
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, options.pairs, WIDTH)).astype(np.float32)
    patients = np.repeat(np.arange(options.rows), rng.integers(1, 5, options.rows))[: options.rows]
    labels = (rng.random(options.rows) < PREVALENCE).astype(float)
    scores = labels + rng.normal(size=options.rows)
    bootstrap = Bootstrap(patients, options.resamples)
    pairs = f"{options.pairs:,} x {options.pairs:,}"
    resamples = f"{options.resamples:,} resamples of {options.rows:,} rows"
    found = {
        f"ranks of {pairs}, both directions": cost(
            lambda: retrieval_ranks(first, second, np.arange(options.pairs)[:, np.newaxis])
        ),
        f"AUROC, {resamples}": cost(lambda: bootstrap.metric(labels, scores, metrics.auroc)),
        f"AUPRC, {resamples}": cost(lambda: bootstrap.metric(labels, scores, metrics.auprc)),
    }
    print("| what | seconds | processor seconds | MiB |\n|---|---:|---:|---:|")
    for what, spent in found.items():
        print(f"| {what} | {spent['seconds']:.1f} | {spent['processor']:.1f} | {spent['MiB']:,.0f} |")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
