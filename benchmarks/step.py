"""Speed of the train step: the full step, contrastive alone, and each objective added. Prints one table.

    python benchmarks/step.py                                                    # the demo's sizes, any machine
    python benchmarks/step.py --config mmclip_vitb16 --batch-paired 192 --batch-unpaired 64 --out DIRECTORY

A made-up batch lies on the device: reading data has no part in the figures. Every variant is compiled first; then they
take turns, so that what else the machine does falls on all of them alike. Seconds are medians over the turns. FLOPs are
counted by formula (mmclip_jax/flops.py); MFU is the model's FLOPs, without recomputation, over the device's
bfloat16 peak. Memory is what the compiler plans for one step on one device: state, batch and temporaries. Any
--config.key=value changes a setting, as for `mmclip train`.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a bare checkout too

from mmclip_jax.memory import keep_freed_memory

if __name__ == "__main__":  # before NumPy and JAX start threads
    keep_freed_memory()

import flax
import jax
import numpy as np
from ml_collections import ConfigDict

from mmclip_jax import (
    check,
    flops,
    sharding,
)
from mmclip_jax.data import batch
from mmclip_jax.data.batch import settle_augmentation
from mmclip_jax.errors import UserError
from mmclip_jax.models.mmclip import build_model
from mmclip_jax.settings import read_config
from mmclip_jax.train import flags, optim
from mmclip_jax.train import step as step_lib

# What each variant sets the objectives' weights to; those of the config are kept where one is on.
VARIANTS: dict[str, tuple[str, ...]] = {
    "contrastive": (),
    "contrastive + AttMIM": ("attmim",),
    "contrastive + EntMLM": ("entmlm",),
    "contrastive + local": ("local",),
    "full": ("attmim", "entmlm", "local"),
}
_MASK_ID = 2
_NO_MEMORY = "RESOURCE_EXHAUSTED"


@dataclasses.dataclass
class Row:
    """One line of the table. seconds: of one step, the median; None where the step does not fit into memory.

    processor_seconds: of all cores, on a CPU only: it says more than the clock where the machine is shared.
    """

    name: str
    flops: dict[str, float]
    compile_seconds: float | None = None
    memory_bytes: int | None = None
    seconds: float | None = None
    fastest_seconds: float | None = None
    slowest_seconds: float | None = None
    processor_seconds: float | None = None
    images_per_second: float | None = None
    mfu: float | None = None


def variant_config(config: ConfigDict, name: str) -> ConfigDict:
    """The settings of a variant: the objectives that it has not are switched off, "full" is the config as it is."""
    out = ConfigDict(config.to_dict())
    for objective, part in out.objective.items():
        if "weight" not in part:
            continue
        wanted = objective in VARIANTS[name]
        part.weight = float(part.weight or (0.0 if name == "full" else 1.0)) if wanted else 0.0
    return out


def synthetic_batch(config: ConfigDict, seed: int = 0) -> batch.Batch:
    """Rows as the pipeline makes them: noise for images, random tokens, entities of two tokens in every seven."""
    rng = np.random.default_rng(seed)
    size, length, vocabulary = config.model.image_size, config.model.text.length, config.model.text.vocab_size
    made = batch.zeros(config)
    for number, filled in enumerate(made.values()):
        rows = len(filled["tokens"])
        place = np.arange(length)[None]
        there = place < rng.integers(length // 4, length + 1, (rows, 1))
        entity = np.where(there & (place % 7 < 2), place // 7 + 1, 0)
        drawn = {
            "image": rng.integers(0, 256, filled["image"].shape),
            "tokens": np.where(there, rng.integers(_MASK_ID + 1, vocabulary, (rows, length)), 0),
            "entity": entity,
            "affirmed": (entity > 0) & (entity % 2 == 1),
            "text_id": rng.integers(-(2**31), 2**31, (rows, 2)),
            "stated": rng.integers(-1, 2, filled["stated"].shape),
            "source": np.full(rows, number),
            "damaged": np.full(rows, -1),
            "known": rng.integers(-1, 2, filled["known"].shape),
        }
        if batch.augments_on_device(config):
            # As large as the canvas, turned by nothing.
            side = filled["image"].shape[1]
            augmentation = {
                "extent": (side, side),
                "affine": (side / size, 0, 0, 0, side / size, 0),
                "tone": (0.9, 1.1),
            }
            drawn |= {name: np.array(values) for name, values in augmentation.items()}
        for name, values in drawn.items():
            filled[name][:] = values
    return made


def memory_bytes(compiled: Any) -> int | None:
    """What the compiler plans for one step on one device; None where it does not say."""
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    # The peak that some backends report leaves temporaries out on others: take the larger figure.
    parts = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes + plan.temp_size_in_bytes
    return int(max(parts, getattr(plan, "peak_memory_in_bytes", 0)))


class Bench:
    """Compiled variants over one state, which goes from step to step, so that the memory holds it once."""

    def __init__(self, config: ConfigDict, names: Sequence[str]):
        self.mesh = sharding.make_mesh(config.mesh.fsdp)
        settle_augmentation(config, accelerated=jax.default_backend() != "cpu")
        check.check_config(config, self.mesh.size)
        self._config = config
        self._model = build_model(config.model, self.mesh.devices.flat[0])
        self._optimizer = optim.make_optimizer(config.optimizer, config.train.steps)
        self.rows = {name: Row(name, flops.train_step_flops(variant_config(config, name))) for name in names}
        self._compiled: dict[str, Any] = {}
        with jax.set_mesh(self.mesh):
            self._make_state = functools.partial(step_lib.init_state, self._model, config, self._optimizer)
            shapes = jax.eval_shape(self._make_state)
            self._shardings = sharding.tree_shardings(shapes, self.mesh, config.mesh.shard_optimizer)
            self.parameters = sum(x.size for x in jax.tree.leaves(shapes.params))
            self._reset()
            self._batch = jax.device_put(synthetic_batch(config), sharding.batch_sharding(self.mesh))
            for name, row in self.rows.items():
                self._compile(name, row)

    def _reset(self) -> None:
        self._state = jax.jit(self._make_state, out_shardings=self._shardings)()

    def _compile(self, name: str, row: Row) -> None:
        config = variant_config(self._config, name)
        schedule = optim.learning_rate(config.optimizer, config.train.steps)
        function = jax.jit(
            step_lib.make_train_step(self._model, config, self._optimizer, schedule, _MASK_ID),
            donate_argnums=0,
            out_shardings=(self._shardings, sharding.replicated(self.mesh)),
        )
        start = time.perf_counter()
        with self._memory_may_not_do(name):
            options = flags.step_options(config.train, self.mesh)
            compiled = function.lower(self._state, self._batch).compile(options)
            row.compile_seconds = time.perf_counter() - start
            row.memory_bytes = memory_bytes(compiled)
            self._compiled[name] = compiled
            self.run(name, 1)  # the first run allocates

    @contextlib.contextmanager
    def _memory_may_not_do(self, name: str) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if _NO_MEMORY not in str(error):
                raise
            print(f"{name}: does not fit into the device's memory", file=sys.stderr)
            self._compiled.pop(name, None)
            self._reset()

    def run(self, name: str, steps: int) -> tuple[float, float]:
        """(wall seconds, processor seconds) of a step, over `steps` of them in a row.

        Raises:
          RuntimeError: the loss is not finite: the figures would be those of a broken step.
        """
        with jax.set_mesh(self.mesh):
            start, processor = time.perf_counter(), time.process_time()
            for _ in range(steps):
                self._state, metrics = self._compiled[name](self._state, self._batch)
            finite = float(metrics["finite"])
        if not finite:
            raise RuntimeError(f"{name}: the loss of the benchmark's batch is not finite")
        return (time.perf_counter() - start) / steps, (time.process_time() - processor) / steps

    def measure(self, rounds: int, steps: int) -> list[Row]:
        """Fills in the rows: `rounds` turns of `steps` steps each."""
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in self._compiled}
        for _ in range(rounds):
            for name in list(self._compiled):
                with self._memory_may_not_do(name):
                    times[name].append(self.run(name, steps))
        device = jax.devices()[0]
        images = self._config.data.batch_paired + self._config.data.batch_unpaired
        for name in self._compiled:
            row, walls = self.rows[name], [wall for wall, _ in times[name]]
            row.seconds = statistics.median(walls)
            row.fastest_seconds, row.slowest_seconds = min(walls), max(walls)
            if device.platform == "cpu":
                row.processor_seconds = statistics.median(used for _, used in times[name])
            row.images_per_second = images / row.seconds
            row.mfu = flops.mfu(flops.model_flops(row.flops), row.seconds, device.device_kind, self.mesh.size)
        return list(self.rows.values())

    def profile(self, name: str, directory: Path, steps: int = 3) -> None:
        """Saves a trace of a few steps for TensorBoard's profiler, xprof or Perfetto."""
        with jax.profiler.trace(str(directory), create_perfetto_trace=True):
            self.run(name, steps)


def _number(value: float | None, text: str, factor: float = 1.0) -> str:
    return "–" if value is None else format(value * factor, text)


def markdown(rows: Sequence[Row]) -> str:
    """The table."""
    columns = [
        ("step", [row.name for row in rows]),
        ("ms a step", [_number(row.seconds, ",.1f", 1e3) for row in rows]),
        ("fastest–slowest", [
            f"{_number(row.fastest_seconds, ',.1f', 1e3)}–{_number(row.slowest_seconds, ',.1f', 1e3)}" for row in rows
        ]),
        ("processor ms", [_number(row.processor_seconds, ",.0f", 1e3) for row in rows]),
        ("images/s", [_number(row.images_per_second, ",.1f") for row in rows]),
        ("model GFLOP", [_number(flops.model_flops(row.flops), ",.1f", 1e-9) for row in rows]),
        ("recomputed", [_number(row.flops["recompute"], ",.1f", 1e-9) for row in rows]),
        ("TFLOP/s", [
            _number(row.seconds and flops.model_flops(row.flops) / row.seconds, ",.3g", 1e-12) for row in rows
        ]),
        ("MFU", [_number(row.mfu, ".1%") for row in rows]),
        ("memory MiB", [_number(row.memory_bytes, ",.0f", 2**-20) for row in rows]),
        ("compile s", [_number(row.compile_seconds, ".1f") for row in rows]),
    ]  # fmt: skip
    columns = [(head, cells) for head, cells in columns if head == "MFU" or set(cells) != {"–"}]
    lines = [[head for head, _ in columns], ["---", *["---:"] * (len(columns) - 1)]]
    lines += [[cells[i] for _, cells in columns] for i in range(len(rows))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> dict[str, Any]:
    """Where and with what this ran: enough to compare two tables."""
    device = jax.devices()[0]
    stats = (device.memory_stats() or {}) if device.platform != "cpu" else {}
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = ""
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return {
        "device": f"{jax.device_count()} x {device.device_kind}",
        "platform": device.platform,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": load,
        "memory_limit_bytes": stats.get("bytes_limit"),
        "peak_bytes_in_use": stats.get("peak_bytes_in_use"),  # of the whole process: the largest variant's
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "commit": commit or os.environ.get("MMCLIP_COMMIT", "unknown"),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _vocabulary(config: ConfigDict) -> int:
    from mmclip_jax.text.tokenizer import load_tokenizer

    return load_tokenizer(config.data.tokenizer or None).vocab_size


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, ConfigDict]:
    """The arguments and the settings that they make.

    Raises:
      UserError: an unknown argument, setting or variant.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", default=str(ROOT / "configs" / "demo.py"), metavar="FILE.py[:ARGUMENT]")
    parser.add_argument("--batch-paired", type=int, help="rows; default: the config's")
    parser.add_argument("--batch-unpaired", type=int, help="rows; default: the config's")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of activations; default: the config's")
    parser.add_argument("--vocab-size", type=int, default=0, help="default: the tokenizer's")
    parser.add_argument("--steps", type=int, default=2, help="steps that a variant does in a row")
    parser.add_argument("--rounds", type=int, default=7, help="turns that every variant gets")
    parser.add_argument("--variants", default=",".join(VARIANTS), help=f"of: {', '.join(VARIANTS)}")
    parser.add_argument("--out", type=Path, help="directory for step.md and step.json; default: $OUT, if set")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="saves a profiler trace of the last variant there")
    args, rest = parser.parse_known_args(argv)
    unknown = [word for word in rest if not word.startswith("--config.")]
    if unknown:
        raise UserError(f"unknown argument {unknown[0]}; settings are given as --config.key=value")
    if args.steps < 1 or args.rounds < 1:
        raise UserError("--steps and --rounds are at least 1")
    args.variants = [name.strip() for name in args.variants.split(",")]
    for name in args.variants:
        if name not in VARIANTS:
            raise UserError(f"there is no variant {name!r}; there are: {', '.join(VARIANTS)}")
    config = read_config(args.config, rest)
    for name, value in (("batch_paired", args.batch_paired), ("batch_unpaired", args.batch_unpaired)):
        if value is not None:
            config.data[name] = value
    if args.dtype:
        config.model.dtype = args.dtype
    config.model.text.vocab_size = args.vocab_size or config.model.text.vocab_size or _vocabulary(config)
    if args.out is None and os.environ.get("OUT"):
        args.out = Path(os.environ["OUT"])
    return args, config


def main(argv: Sequence[str]) -> int:
    """Measures and prints; returns the exit status."""
    try:
        args, config = parse(argv)
        bench = Bench(config, args.variants)
    except UserError as error:
        print(f"step.py: {error}", file=sys.stderr)
        return 2
    rows = bench.measure(args.rounds, args.steps)
    facts = machine() | {
        "command": shlex.join(["python", "benchmarks/step.py", *argv]),
        "parameters": bench.parameters,
        "dtype": config.model.dtype,
        "batch": {part: config.data[f"batch_{part}"] for part in ("paired", "unpaired")},
        "rounds": args.rounds,
        "steps": args.steps,
    }
    table = markdown(rows)
    notes = "\n".join(f"- {name}: {value}" for name, value in facts.items() if value not in (None, ""))
    print(f"{table}\n\n{notes}", flush=True)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "step.md").write_text(f"{table}\n\n{notes}\n")
        content = {"machine": facts, "rows": [dataclasses.asdict(row) for row in rows], "config": config.to_dict()}
        (args.out / "step.json").write_text(json.dumps(content, indent=1) + "\n")
    if args.profile is not None:
        bench.profile(args.variants[-1], args.profile)
        print(f"trace: {args.profile}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
