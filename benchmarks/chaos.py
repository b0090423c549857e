"""Kills a training run again and again; what is resumed must equal an undisturbed run to the bit.

    python benchmarks/chaos.py --workdir runs/chaos --data runs/demo/data/phantom/1.0.0

A run of one process is killed with SIGKILL while it writes its first checkpoint, evaluates, resumes, or writes metrics
(of which half a line is left), at random steps, while a checkpoint is being written, and at random moments of its
start; twice its newest checkpoint is truncated, once some bits of it are flipped. Then a run of two processes gets
SIGTERM in one of them, and SIGKILL in one of them with that one's part of the newest checkpoint damaged. After each,
the newest checkpoint is compared with the undisturbed run's of the same step, and in the end all arrays of the last
step are. Compiled code is kept between starts, as on a machine that restarts. Prints a table in Markdown; the exit
status is 1 if any bit differs, a step was lost that a checkpoint held, or an evaluation was not made up.
"""

import argparse
import dataclasses
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
EVERY = 10  # steps between checkpoints
STEPS_A_KILL = 25
FIRST = "in the first checkpoint"
MOMENTS = ("in an evaluation", "at resume", "in metrics", "at a step", "in a write", "at the start")
PATIENCE = 600.0
SETTINGS = {
    "train.checkpoint_every": EVERY, "train.log_every": 1, "train.evaluate_every": 0, "train.gradient_norms_every": 0,
    "train.compiler_options": "",
}  # fmt: skip


@dataclasses.dataclass
class Row:
    """One disturbance: what was done, the last step logged then, the newest checkpoint, whether its bits are right."""

    what: str
    logged: int
    checkpoint: int
    same: bool
    resumed: int = -1

    @property
    def good(self) -> bool:
        """Right bits, and the run went on from there (from the one before, where that checkpoint was damaged)."""
        return self.same and self.resumed == self.checkpoint


class Trainer:
    """Starts processes of one run in `workdir`."""

    def __init__(self, workdir: Path, data: Path, steps: int, processes: int = 1, **settings: Any):
        self.workdir, self.steps, self.processes = workdir, steps, processes
        self._running: list[subprocess.Popen[bytes]] = []
        self._starts = 0
        settings = SETTINGS | {"train.steps": steps, "data.train": (str(data),)} | settings
        self._command = [sys.executable, "-m", "mmclip_jax.cli", "train", "--config", "configs/demo.py:runlocal"]
        self._command += ["--workdir", str(workdir), *(f"--config.{name}={value}" for name, value in settings.items())]
        self._environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
            "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        }

    def start(self) -> None:
        """Starts all processes; their output goes to files beside the workdir."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._starts += 1
        more: list[list[str]] = [[]]
        if self.processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            told = ["--coordinator", address, "--processes", str(self.processes), "--process"]
            more = [[*told, str(number)] for number in range(self.processes)]
        self._running = []
        for number, words in enumerate(more):
            with open(self._log(number), "wb") as log:
                self._running.append(
                    subprocess.Popen([*self._command, *words], env=self._environment, cwd=ROOT, stdout=log, stderr=log)
                )

    def _log(self, number: int = 0) -> Path:
        return self.workdir.parent / f"{self.workdir.name}_{self._starts}_{number}.log"

    def said(self, number: int = 0) -> str:
        """What a process has written since it was last started."""
        return self._log(number).read_text(errors="replace")

    def wait(self, until: Callable[[], bool]) -> bool:
        """Waits until something holds; False if a process has ended before."""
        limit = time.monotonic() + PATIENCE
        while not until():
            if any(process.poll() is not None for process in self._running):
                return until()
            if time.monotonic() > limit:
                self.end(signal.SIGKILL)
                raise TimeoutError(f"{self.workdir}: nothing happened in {PATIENCE:.0f} s:\n{self.said()[-2000:]}")
            time.sleep(0.002)
        return True

    def send(self, number: int, which: signal.Signals) -> None:
        """Sends a signal to one process."""
        self._running[number].send_signal(which)

    def end(self, which: signal.Signals | None = None) -> list[int]:
        """The exit statuses of all processes, after a signal to each of them if one is given."""
        for number in range(len(self._running) if which else 0):
            if self._running[number].poll() is None:
                self.send(number, which)  # type: ignore[arg-type]
        return [process.wait(PATIENCE) for process in self._running]

    def run(self) -> list[int]:
        """Starts all processes and waits for their end."""
        self.start()
        return self.end()

    def metrics(self) -> list[dict[str, Any]]:
        """The rows that are whole on disk."""
        file = self.workdir / "metrics.jsonl"
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
        return [json.loads(line) for line in lines]

    def logged(self) -> int:
        """The last step whose metrics are on disk; 0 if there is none."""
        rows = self.metrics()
        return int(rows[-1]["step"]) if rows else 0

    def evaluated(self) -> set[int]:
        """The steps whose evaluation is on disk."""
        return {int(row["step"]) for row in self.metrics() if any(name.startswith("evaluation/") for name in row)}

    def evaluating(self) -> bool:
        """Whether the evaluation of the last step is under way, or was when the process was killed."""
        last = self.logged()
        return last > 0 and last % EVERY == 0 and last not in self.evaluated()

    def checkpoints(self) -> list[int]:
        """The steps of finished checkpoints."""
        folder = self.workdir / "checkpoints"
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []

    def folder_of(self, step: int) -> tuple[int, int]:
        """What tells a checkpoint's folder from one that takes its place."""
        return step, (self.workdir / "checkpoints" / str(step)).stat().st_mtime_ns

    def writing(self) -> bool:
        """Whether a checkpoint is being written, or was when the process was killed."""
        return any((self.workdir / "checkpoints").glob("*-tmp"))

    def resumed_at(self) -> int:
        """The step that the running process said it goes on from; 0 for a new start, −1 if it has said neither."""
        said = self.said()
        found = re.search(r"resuming at step (\d+)", said)
        return int(found[1]) if found else 0 if "; starting" in said else -1


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by its path, read on this process's devices."""
    import jax
    import orbax.checkpoint as ocp

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    found = {}
    for item in ("params", "ema", "optimizer"):
        path = workdir.absolute() / "checkpoints" / str(step) / item
        with ocp.StandardCheckpointer() as checkpointer:
            shapes = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
                dict(checkpointer.metadata(path).item_metadata),
            )
            tree = checkpointer.restore(path, shapes)
        for place, leaf in jax.tree_util.tree_leaves_with_path(tree):
            found[item + jax.tree_util.keystr(place)] = np.asarray(leaf)
    return found


def same_bits(one: Path, other: Path, step: int) -> bool:
    """Whether two runs' checkpoints of a step hold the same bits."""
    a, b = arrays(one, step), arrays(other, step)
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def damage(checkpoint: Path, how: str, pattern: str = "params/**/d/*") -> None:
    """Halves the files of the parameters' data ("truncated"), or changes a bit in the middle of each ("flipped")."""
    files = [path for path in checkpoint.glob(pattern) if path.is_file()]
    if not files:
        raise FileNotFoundError(f"{checkpoint} has no {pattern}")
    for file in files:
        content = bytearray(file.read_bytes())
        if how == "truncated":
            del content[len(content) // 2 :]
        elif len(content) > 4000:
            content[len(content) // 2] ^= 4
        file.write_bytes(content)


def kill_one_process(
    workdir: Path, data: Path, kills: int, seed: int = 0, show: Callable[[str], object] = print
) -> list[Row]:
    """Kills a run of one process `kills` times; returns one row for each kill and each damage, and one for the end."""
    chance = random.Random(seed)
    steps = STEPS_A_KILL * (kills + 1)
    whole = Trainer(workdir / "whole", data, steps, **{"train.keep": steps})
    if whole.run() != [0]:
        raise RuntimeError(whole.said())
    run = Trainer(workdir / "killed", data, steps, **{"train.evaluate_every": EVERY})
    rows: list[Row] = []
    spoilt: set[tuple[int, int]] = set()
    damages = {2 * kills // 3: "truncated", kills // 3: "truncated", kills // 2: "flipped"} if kills > 2 else {}
    start_up = 1.0  # seconds that a start takes, measured
    for number in range(kills):
        begun = time.monotonic()
        run.start()
        target = min(STEPS_A_KILL * (number + 1) + chance.randrange(STEPS_A_KILL), steps - 2)
        kind = MOMENTS[(number - 1) % len(MOMENTS)] if number else FIRST
        if kind == "at the start":
            time.sleep(chance.uniform(0, start_up))
        elif kind == FIRST:
            run.wait(run.writing)
        elif kind == "at resume":
            run.wait(lambda: run.resumed_at() >= 0)
            rows[-1].resumed = run.resumed_at()
            time.sleep(chance.uniform(0, 0.5))
        else:
            run.wait(lambda: run.resumed_at() >= 0)
            start_up = time.monotonic() - begun
            if rows:
                rows[-1].resumed = run.resumed_at()
            run.wait(lambda at=target: run.logged() >= at)  # type: ignore[misc]
            if kind == "in a write":
                run.wait(run.writing)
                time.sleep(chance.uniform(0, 0.03))
            elif kind == "in an evaluation":
                run.wait(run.evaluating)
                time.sleep(chance.uniform(0, 0.05))
            elif kind == "in metrics":
                size = (run.workdir / "metrics.jsonl").stat().st_size
                run.wait(lambda size=size: (run.workdir / "metrics.jsonl").stat().st_size != size)  # type: ignore[misc]
            else:
                time.sleep(chance.uniform(0, 0.2))
        if run.end(signal.SIGKILL) != [-signal.SIGKILL]:
            raise RuntimeError(f"it ended before it was killed:\n{run.said()[-3000:]}")
        if kind == "at the start" and rows and run.resumed_at() >= 0:
            rows[-1].resumed = run.resumed_at()
        if kind in ("at a step", "in a write"):  # elsewhere an unfinished checkpoint may be that of the kill before
            kind = "in a write" if run.writing() else "at a step"
        if kind == "in an evaluation" and not run.evaluating():
            kind = "after an evaluation"
        if kind == "in metrics":  # as a file system may leave a line
            with open(run.workdir / "metrics.jsonl", "ab") as file:
                file.write(b'{"step": 7, "lo')
        # One that was damaged lies there until the run comes to its step again.
        newest = max((step for step in run.checkpoints() if run.folder_of(step) not in spoilt), default=0)
        row = Row(f"SIGKILL {kind}", run.logged(), newest, not newest or same_bits(whole.workdir, run.workdir, newest))
        if kind == "at the start" and rows and rows[-1].resumed < 0 and newest == rows[-1].checkpoint:
            rows[-1].resumed = newest  # killed before it had said where it goes on: nothing has changed
        rows.append(row)
        show(f"{len(rows)}: {row}")
        if number + 1 in damages:
            run.start()
            run.wait(lambda before=newest: len(run.checkpoints()) > 1 and max(run.checkpoints()) > before)  # type: ignore[misc]
            rows[-1].resumed = run.resumed_at()
            run.end(signal.SIGKILL)
            how = damages[number + 1]
            newest, before = sorted(run.checkpoints())[-1:-3:-1]
            damage(run.workdir / "checkpoints" / str(newest), how)
            spoilt.add(run.folder_of(newest))
            same = same_bits(whole.workdir, run.workdir, before)
            rows.append(Row(f"SIGKILL, checkpoint {newest} {how}", run.logged(), before, same))
            show(f"{len(rows)}: {rows[-1]}")
    if run.run() != [0]:
        raise RuntimeError(run.said()[-3000:])
    rows[-1].resumed = run.resumed_at()
    rows.append(Row("the end", run.logged(), steps, same_bits(whole.workdir, run.workdir, steps), steps))
    due = set(range(EVERY, steps + 1, EVERY)) | {steps}
    made_up = run.evaluated() == due
    rows.append(Row(f"evaluations of {len(due)} steps", run.logged(), steps, made_up, steps))
    return rows


def disturb_two_processes(workdir: Path, data: Path, show: Callable[[str], object] = print) -> list[Row]:
    """SIGTERM to one of two processes, a checkpoint of which one process's part is damaged, SIGKILL to one of them."""
    steps, settings = 4 * STEPS_A_KILL, {"mesh.fsdp": 2}
    whole = Trainer(workdir / "whole_two", data, steps, 2, **settings, **{"train.keep": steps})
    if whole.run() != [0, 0]:
        raise RuntimeError(whole.said() + whole.said(1))
    run = Trainer(workdir / "disturbed_two", data, steps, 2, **settings)
    run.start()
    run.wait(lambda: run.logged() >= STEPS_A_KILL)
    run.send(1, signal.SIGTERM)
    statuses = run.end()
    if statuses != [75, 75]:
        raise RuntimeError(run.said()[-3000:] + run.said(1)[-3000:])
    newest = max(run.checkpoints())
    # The undisturbed run has no checkpoint at this step: that both saved it is what is seen here, its bits at the end.
    row = Row(f"SIGTERM to one of two: statuses {statuses}", run.logged(), newest, statuses == [75, 75])
    show(str(row))
    run.start()
    run.wait(lambda: max(run.checkpoints()) > newest)
    row.resumed = run.resumed_at()
    rows = [row]
    run.wait(lambda: len([step for step in run.checkpoints() if step > newest]) > 1)
    run.send(1, signal.SIGKILL)
    statuses = run.end()
    newest, before = sorted(run.checkpoints())[-1:-3:-1]
    damage(run.workdir / "checkpoints" / str(newest), "truncated", "params/ocdbt.process_1/d/*")
    # Orbax merges what is small into one file that both read.
    same = same_bits(whole.workdir, run.workdir, before)
    what = f"SIGKILL to one of two: statuses {statuses}; checkpoint {newest}: its part truncated"
    rows.append(Row(what, run.logged(), before, same))
    show(str(rows[-1]))
    if run.run() != [0, 0]:
        raise RuntimeError(run.said()[-3000:] + run.said(1)[-3000:])
    rows[-1].resumed = run.resumed_at()
    rows.append(Row("the end", run.logged(), steps, same_bits(whole.workdir, run.workdir, steps), steps))
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| | disturbance | last step logged | newest whole checkpoint | resumed at | steps again | bits |"]
    lines.append("|---|---|---|---|---|---|---|")
    for number, row in enumerate(rows, 1):
        again = max(row.logged - row.resumed, 0)
        bits = "the same" if row.same else "OTHER"
        lines.append(f"| {number} | {row.what} | {row.logged} | {row.checkpoint} | {row.resumed} | {again} | {bits} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs both series and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--workdir", type=Path, required=True, help="an empty or missing directory")
    parser.add_argument("--data", type=Path, required=True, help="a built data set; the phantom will do")
    parser.add_argument("--kills", type=int, default=24, help="of the run of one process")
    parser.add_argument(
        "--processes", type=int, nargs="+", choices=(1, 2), default=[1, 2], help="which of the two runs"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    args = parser.parse_args(argv)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if args.workdir.exists() and any(args.workdir.iterdir()):
        parser.error(f"{args.workdir} is not empty")

    def show(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    rows: list[Row] = []
    if 1 in args.processes:
        rows += kill_one_process(args.workdir, args.data, args.kills, args.seed, show)
    if 2 in args.processes:
        rows += disturb_two_processes(args.workdir, args.data, show)
    print(table(rows))
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
