"""How long commands take to start: import, --help, and a training run to its first step. Prints one table.

    python benchmarks/startup.py --data runs/demo/data/phantom

"second start" is `mmclip train` with configs/demo.py and JAX's persistent cache of compiled programs
(JAX_COMPILATION_CACHE_DIR), from the start of the process until the first step is logged; the first start fills the
cache. All take turns; figures are medians by the clock, and of the processor time, which other work hardly changes.
"""

import argparse
import functools
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parents[1]
CLI = [sys.executable, "-m", "mmclip_jax.cli"]


def timed(command: list[str], until: str = "", **environment: str) -> tuple[float, float]:
    """(seconds, processor seconds) of a command to its end; the seconds until a line of its output holds `until`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start, reached = time.perf_counter(), 0.0
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=os.environ | environment, **pipe) as process:  # type: ignore[call-overload]
        said = []
        for line in process.stdout:
            said.append(line)
            if until and until in line and not reached:
                reached = time.perf_counter() - start
    spent = time.perf_counter() - start
    if process.returncode or (until and not reached):
        sys.exit("".join(said[-20:]))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return reached or spent, used


def train(folder: pathlib.Path, number: int, data: str) -> tuple[float, float]:
    """One start of the demo's training."""
    settings = {"train.steps": 1, "train.log_every": 1, "train.evaluate_every": 1_000_000, "data.workers": 0}
    given = [f"--config.{name}={value}" for name, value in settings.items()]
    command = [*CLI, "train", "--config", str(ROOT / "configs" / "demo.py"), "--workdir", str(folder / f"run{number}")]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return timed([*command, *given, f'--config.data.train=("{data}",)'], "step 1/1", **cache)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="a built data set; without it no training run is started")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, help="where the numbers go, too")
    options = parser.parse_args()
    measured: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if options.data:
            measured["first start to the first step"] = [train(folder, 0, str(pathlib.Path(options.data).resolve()))]
        for number in range(1, options.repeats + 1):
            rounds: dict[str, Callable[[], tuple[float, float]]] = {}
            rounds["import mmclip_jax"] = lambda: timed([sys.executable, "-c", "import mmclip_jax"])
            rounds["mmclip --help"] = lambda: timed([*CLI, "--help"])
            if options.data:
                rounds["second start to the first step"] = functools.partial(
                    train, folder, number, str(pathlib.Path(options.data).resolve())
                )
            for what, function in rounds.items():
                measured.setdefault(what, []).append(function())
    found = {what: [statistics.median(column) for column in zip(*each, strict=True)] for what, each in measured.items()}
    print(f"{'':<34}{'seconds':>9}{'processor seconds':>20}")
    for what, (clock, processor) in found.items():
        print(f"{what:<34}{clock:>9.2f}{processor:>20.2f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
