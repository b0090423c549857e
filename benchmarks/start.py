"""Does a start from a former run's image encoder help? Phantom runs of the demo's size, paired by seed.

    python benchmarks/start.py --workdir runs/start

For every seed three runs of as many steps: "former" learns from a phantom of other patients and with another seed;
"scratch" and "started" learn from the demo's phantom with the same seed, and "started" takes the former's image
encoder. The table gives the macro AUROC by prompts on the validation patients of the demo's phantom, and after how many
steps "started" reaches what "scratch" and "former" have at their end. What is finished is not run again.
"""

import argparse
import pathlib

from mmclip_jax.memory import keep_freed_memory

if __name__ == "__main__":  # before NumPy and JAX start threads
    keep_freed_memory()

import numpy as np
from ml_collections import ConfigDict

import mmclip_jax
from mmclip_jax import writers
from mmclip_jax.data.builders.phantom import Phantom
from mmclip_jax.data.phantom import PhantomConfig, scaled_patients
from mmclip_jax.data.records import build
from mmclip_jax.evaluate.run import quick_metrics
from mmclip_jax.settings import read_config
from mmclip_jax.train.loop import validation_examples
from mmclip_jax.train.run import train

CONFIG = pathlib.Path(__file__).resolve().parents[1] / "configs" / "demo.py"
MEASURE = "evaluation/macro_auroc"
RUNS = ("former", "started", "scratch")
FORMER = 1_000  # is added to a seed for the former run, and is the seed of its phantom


def phantom(folder: pathlib.Path, seed: int, scale: float) -> str:
    """The data set of that seed, built where it is missing."""
    if not (folder / "phantom").exists():
        settings = PhantomConfig(seed=seed, patients=scaled_patients(scale))
        build(Phantom(data_dir=str(folder), config=settings))
    return str(folder / "phantom")


def settings(data: str, seed: int, args: argparse.Namespace, start: str = "") -> ConfigDict:
    """The demo's settings for one run."""
    config = read_config(str(CONFIG))
    config.seed = seed
    config.data.train = (data,)
    config.train.steps = args.steps
    config.train.evaluate_every = config.train.log_every = args.every
    config.train.checkpoint_every = args.steps
    config.init.image = start
    return config


def curve(workdir: pathlib.Path) -> dict[int, float]:
    """{step: macro AUROC by prompts} of a run; {} where it was not made."""
    if not (workdir / "metrics.jsonl").exists():
        return {}
    rows = writers.read_rows(workdir / "metrics.jsonl")
    return {int(row["step"] or 0): float(row[MEASURE] or np.nan) for row in rows if MEASURE in row}


def measured(workdir: pathlib.Path, data: str) -> float:
    """The same measure of a finished run, on the validation patients of a data set."""
    return quick_metrics(mmclip_jax.load(workdir), validation_examples((data,)))["macro_auroc"]


def reached(values: dict[int, float], wanted: float) -> int | None:
    """The first step of a curve at which a value is reached, None where it never is."""
    return next((step for step, value in sorted(values.items()) if value >= wanted), None)


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description="Runs that start from a former run's image encoder, and others.")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/start"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--every", type=int, default=25, help="steps between two evaluations")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the phantom's patients")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS, help="which to make, in this order")
    args = parser.parse_args()
    own = phantom(args.workdir / "data", 0, args.scale)
    other = phantom(args.workdir / "data_of_former", FORMER, args.scale)
    for run in args.runs:
        for seed in range(args.seeds):
            begin = str(args.workdir / f"seed_{seed}" / "former")
            config = {
                "former": settings(other, FORMER + seed, args),
                "started": settings(own, seed, args, begin),
                "scratch": settings(own, seed, args),
            }[run]
            train(config, str(args.workdir / f"seed_{seed}" / run))
    print(
        "| seed | former at its end | scratch at its end | started at its end | reaches former's | reaches scratch's |"
    )
    print("|--:|--:|--:|--:|--:|--:|")
    for seed in range(args.seeds):
        former, scratch, started = (
            curve(args.workdir / f"seed_{seed}" / run) for run in ("former", "scratch", "started")
        )
        if former:  # on the patients that the others are measured on
            former = {args.steps: measured(args.workdir / f"seed_{seed}" / "former", own)}
        cells = [f"{values[args.steps]:.3f}" if values else "not run" for values in (former, scratch, started)]
        for values in (former, scratch):
            step = reached(started, values[args.steps]) if values else None
            cells.append("not run" if not values else "not reached" if step is None else f"step {step}")
        print(f"| {seed} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
