"""The day of a GPU: one command for everything that only a chip can say. Needs less than ten minutes.

    python benchmarks/gpu_day.py --out DIRECTORY          # or $OUT
    JAX_PLATFORMS=cpu python benchmarks/gpu_day.py --small --out DIRECTORY       # the same on any machine, in small

Parts, each in a process of its own, so that its memory is given back and that one's failure ends no other:

- equality: attention by cuDNN against the plain form, outputs and gradients, with padding; then the whole step;
- ceiling: what the chip does in bfloat16 products, 8192 x 8192 x 8192;
- full, contrastive: the step of ViT-B/16, 224 px, 192 paired and 64 unpaired rows, with all objectives and with the
  contrastive loss alone; MFU of the published peak and of the measured ceiling; memory. Layers are unrolled and nothing
  is computed again, as in the peers;
- peers: contrastive alone of the same sizes and batch in open_clip (compiled) and transformers (compiled): bfloat16
  autocast, scaled_dot_product_attention, fused AdamW. Their images have three channels, ours one;
- pipeline: rows a second that training input makes on this machine;
- remat (only if named in --parts: two more minutes): the full step as the config has it, a loop over layers that are
  computed again. It needs a fifth of the memory.

What could not run is said and is no zero. Writes gpu_day.json after every part.
"""

import argparse
import functools
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(HERE)]

# Seconds that each part may take; those of the default parts together leave half a minute of the ten.
LIMITS = {
    "equality": 90, "ceiling": 30, "full": 160, "contrastive": 110, "open_clip": 70, "transformers": 70, "pipeline": 40,
    "remat": 120,
}  # fmt: skip
# bfloat16 has 8 bits; outputs and gradients are of order 1, and the forms round at other places.
TOLERANCE = 0.04
STEPS, ROUNDS = 5, 5
Facts = dict[str, Any]


class Unavailable(Exception):
    """Why a part cannot run here."""


def _configured(small: bool) -> Any:
    from mmclip_jax.settings import read_config

    name = "demo.py:runlocal" if small else "mmclip_vitb16.py"
    config = read_config(str(ROOT / "configs" / name))
    config.data.batch_paired, config.data.batch_unpaired = (8, 8) if small else (192, 64)
    config.model.text.vocab_size = config.model.text.vocab_size or 2000
    return config


def _seconds(run: Callable[[], object], steps: int = STEPS, rounds: int = ROUNDS) -> float:
    """Median seconds of one run; `run` waits for the device."""
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(steps):
            run()
        times.append((time.perf_counter() - start) / steps)
    return statistics.median(times)


def equality(small: bool) -> Facts:
    """Largest differences between the forms of attention on this device, and of the step's loss."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import step as bench

    from mmclip_jax.models import attention
    from mmclip_jax.models.mmclip import build_model, init_params
    from mmclip_jax.train import step as step_lib

    device, rng = jax.devices()[0], np.random.default_rng(0)
    form = attention.choose("auto", "bfloat16", [64], device)
    form = "xla" if form == attention.PLAIN else form
    rows, length, context, heads = (2, 16, 12, 2) if small else (32, 196, 128, 12)
    found: Facts = {"form": form}
    for name, keys, lengths in (("self", length, None), ("padded", context, rng.integers(1, context + 1, rows))):
        arrays = [jnp.asarray(rng.normal(size=(rows, n, heads, 64)), jnp.bfloat16) for n in (length, keys, keys)]
        valid = None if lengths is None else jnp.arange(keys)[None] < jnp.asarray(lengths)[:, None]
        weights = jnp.asarray(rng.normal(size=(rows, length, heads, 64)), jnp.float32)

        def out(form: str, q: Any, k: Any, v: Any, valid: Any = valid, weights: Any = weights) -> Any:
            attended = attention.attend(form, q, k, v, valid, False)[0].astype(jnp.float32)
            return (attended * weights).sum(), attended

        results = []
        for each in ("plain", form):
            run = jax.jit(jax.grad(functools.partial(out, each), (0, 1, 2), has_aux=True))
            results.append(jax.tree.map(lambda x: np.asarray(x, np.float32), run(*arrays)))
        names = ("query", "key", "value", "output")
        pairs = zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True)
        for of, (a, b) in zip(names, pairs, strict=True):
            found[f"{name}/{of}"] = float(np.abs(a - b).max() / max(np.abs(a).max(), 1.0))
    config = _configured(small)
    config.model.dtype = "bfloat16"
    config.objective.attmim.random_share = 1.0  # masks by the response may differ where it is nearly equal
    params = init_params(build_model(config.model), config.model, 0)
    made = jax.device_put(bench.synthetic_batch(config))
    losses = {}
    for each in ("plain", form):
        config.model.attention = each
        model = build_model(config.model, device)
        compute = jax.jit(lambda p, b, model=model: step_lib.compute_loss(model, config, 2, p, jnp.int32(0), b)[0])
        losses[each] = float(compute(params, made))
    found |= {"loss, plain": losses["plain"], f"loss, {form}": losses[form]}
    found["loss, relative difference"] = abs(losses[form] / losses["plain"] - 1)
    differences = [value for name, value in found.items() if "/" in name] + [found["loss, relative difference"]]
    found["passed"] = max(differences) <= TOLERANCE
    return found


def ceiling(small: bool) -> Facts:
    """FLOP/s of a chain of bfloat16 products."""
    import jax
    import jax.numpy as jnp

    side, chain = (256, 4) if small else (8192, 8)
    x = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)

    @jax.jit
    def products(x: jax.Array) -> jax.Array:
        y = x
        for _ in range(chain):
            y = (x @ y) * jnp.bfloat16(side**-0.5)
        return y

    seconds = _seconds(lambda: products(x).block_until_ready(), 3)
    return {"side": side, "TFLOP/s": 2 * side**3 * chain / seconds / 1e12, "seconds": seconds}


def _step(config: Any, variant: str) -> Facts:
    import dataclasses

    import jax
    import step as bench

    rows = bench.Bench(config, [variant]).measure(ROUNDS, STEPS)
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "rows": [dataclasses.asdict(row) for row in rows],
        "machine": bench.machine(),
        "peak_bytes_in_use": stats.get("peak_bytes_in_use"),
    }


def _unrolled(small: bool) -> Any:
    config = _configured(small)
    config.model.remat, config.model.unroll = False, True
    return config


def full(small: bool) -> Facts:
    """The step with all objectives, in the fastest form that the memory of an H100 allows."""
    return _step(_unrolled(small), "full")


def contrastive(small: bool) -> Facts:
    """The same with the contrastive loss alone."""
    return _step(_unrolled(small), "contrastive")


def remat(small: bool) -> Facts:
    """The full step that computes layers again."""
    config = _configured(small)
    config.model.remat, config.model.unroll = True, False
    return _step(config, "full")


def _torch_step(build: Callable[[Any], Any], small: bool) -> Facts:
    """The contrastive step of a program of benchmarks/peers.py on this device."""
    import peers

    model = _configured(small).model
    try:
        made = build(model)
    except peers.UnavailableError as error:
        raise Unavailable(str(error)) from error
    import torch

    where = "cuda" if torch.cuda.is_available() else "cpu"
    if not small and where == "cpu":
        raise Unavailable("PyTorch sees no GPU")
    torch.set_float32_matmul_precision("high")
    update = peers.torch_update(made, model, 16 if small else 256, where, autocast=True, whole=where == "cuda")
    seconds = _seconds(update)
    peak = torch.cuda.max_memory_allocated() if where == "cuda" else None
    parameters = sum(p.numel() for p in made[0].parameters())
    return {"seconds": seconds, "peak_bytes_in_use": peak, "parameters": parameters, "torch": torch.__version__}


def open_clip(small: bool) -> Facts:
    """open_clip's CLIP of the same sizes."""
    import peers

    return _torch_step(peers.open_clip, small)


def transformers(small: bool) -> Facts:
    """Hugging Face's CLIP of the same sizes."""
    import peers

    return _torch_step(peers.transformers, small)


def pipeline(small: bool) -> Facts:
    """Rows a second of the training input, from an artificial data set that is built first."""
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise Unavailable("tensorflow-datasets, which builds the artificial data set, is not installed")
    import jax

    from mmclip_jax.data import pipeline as input_pipeline
    from mmclip_jax.data.batch import settle_augmentation
    from mmclip_jax.text.tokenizer import load_tokenizer

    config = _configured(small)
    settle_augmentation(config, accelerated=jax.default_backend() != "cpu")
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "mmclip_jax.cli", "data", "build", "phantom", "--data-dir", directory]
        subprocess.run([*command, "--scale", "0.01"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        config.data.train, config.data.paired_weights, config.data.unpaired_weights = (f"{directory}/phantom",), (), ()
        config.data.workers = 0 if small else min(os.cpu_count() or 1, 8)
        config.data.batch_paired = config.data.batch_unpaired = 8 if small else 64
        iterator = input_pipeline.make_train_iterator(config, load_tokenizer())
        next(iterator)
        start, rows = time.perf_counter(), 0
        while time.perf_counter() - start < (2 if small else 15):
            rows += sum(len(part["tokens"]) for part in next(iterator).values())
        seconds = time.perf_counter() - start
        iterator.close()
    return {"rows/s": rows / seconds, "workers": config.data.workers, "cores": os.cpu_count()}


PARTS: dict[str, Callable[[bool], Facts]] = {
    "equality": equality, "ceiling": ceiling, "full": full, "contrastive": contrastive,
    "open_clip": open_clip, "transformers": transformers, "pipeline": pipeline, "remat": remat,
}  # fmt: skip
DEFAULT = [part for part in PARTS if part != "remat"]


def summary(found: dict[str, Facts]) -> list[tuple[str, str, str]]:
    """(what, figure, target) of what was measured."""
    lines: list[tuple[str, str, str]] = []
    if "passed" in found.get("equality", {}):
        said = "equal" if found["equality"]["passed"] else "DIFFERS"
        lines.append((f"attention by {found['equality']['form']} against the plain form", said, f"within {TOLERANCE}"))
    top = found.get("ceiling", {}).get("TFLOP/s")
    if top:
        lines.append(("bfloat16 products", f"{top:,.3g} TFLOP/s", ""))
    rows = {part: row for part in ("full", "contrastive", "remat") for row in found.get(part, {}).get("rows", [])}
    for name, row in rows.items():
        if not row["seconds"]:
            lines.append((f"step, {name}", "not measured: it does not fit into the device's memory", ""))
            continue
        lines.append((f"step, {name}", f"{row['seconds'] * 1e3:,.1f} ms", ""))
        if row["memory_bytes"]:
            lines.append(
                ("  memory", f"{row['memory_bytes'] / 1e9:,.1f} GB", "at most 9 GB" if name == "remat" else "")
            )
        if top:
            work = sum(value for part, value in row["flops"].items() if part != "recompute")
            share = work / row["seconds"] / 1e12 / top
            lines.append(("  of the measured ceiling", f"{share:.0%}", "at least 50 %" if name == "full" else ""))
    ours = rows.get("contrastive", {}).get("seconds")
    for peer in ("open_clip", "transformers"):
        theirs = found.get(peer, {}).get("seconds")
        if ours and theirs:
            lines.append((f"contrastive step, {peer} / ours", f"{theirs / ours:.2f}", "at least 1.3"))
            memory, own = found[peer].get("peak_bytes_in_use"), rows["contrastive"]["memory_bytes"]
            if memory and own:
                lines.append((f"memory, {peer} / ours", f"{memory / own:.2f}", "above 1"))
    if "rows/s" in found.get("pipeline", {}):
        lines.append(("input pipeline", f"{found['pipeline']['rows/s']:,.0f} rows/s", ""))
    lines += [(name, f"not measured: {facts['failed']}", "") for name, facts in found.items() if "failed" in facts]
    return lines


def main() -> int:
    """Runs all parts; returns 1 where equality fails or was not checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--small", action="store_true", help="tiny sizes, for any machine")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    parser.add_argument("--parts", default=",".join(DEFAULT), help=f"of: {', '.join(PARTS)}")
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)  # what a process of its own does
    args = parser.parse_args()
    if args.one:
        try:
            print(json.dumps(PARTS[args.one](args.small)))
        except Unavailable as error:
            print(json.dumps({"failed": str(error)}))
        return 0
    chosen = args.parts.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Facts] = {}
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # so that the peak is what was needed
    for name in chosen:
        command = [sys.executable, __file__, "--one", name, *(["--small"] if args.small else [])]
        start = time.perf_counter()
        limit = LIMITS[name] * (20 if args.small else 1)  # a small machine may be a slow one
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
            last = done.stdout.strip().splitlines()[-1:]
            found[name] = json.loads(last[0]) if done.returncode == 0 and last else {
                "failed": (done.stderr.strip().splitlines() or ["no output"])[-1]
            }  # fmt: skip
        except subprocess.TimeoutExpired:
            found[name] = {"failed": f"more than {limit} s"}
        found[name]["wall_seconds"] = round(time.perf_counter() - start, 1)
        (args.out / "gpu_day.json").write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name}: {found[name]['wall_seconds']} s", file=sys.stderr, flush=True)
    for what, figure, target in summary(found):
        print(f"{what:<52}{figure:>18}  {target}")
    return 0 if found.get("equality", {}).get("passed", "equality" not in chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
