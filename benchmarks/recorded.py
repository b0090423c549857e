"""Ten updates of each shipped config at its smallest, as digests: does a rewrite compute the same, to the bit?

    python benchmarks/recorded.py write before.json      # at the commit before
    python benchmarks/recorded.py check before.json      # at the commit after, on the same machine

Each config runs as NAME:runlocal on one CPU device with a made-up batch. Recorded are, at every step, the loss, every
metric and a digest of all gradients, and at the end digests of every parameter, its average and the optimizer's state
by name. `check` prints what differs and exits with 1. Bits depend on the processor and the versions of JAX, so the file
is no test that travels.
"""

import argparse
import hashlib
import importlib.util
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from mmclip_jax.models.mmclip import build_model
from mmclip_jax.text import prompts
from mmclip_jax.train import optim, step

CONFIGS = ("demo", "real_small", "mmclip_vitb16")
STEPS = 10
MASK_ID = 3


def digest(array: Any) -> str:
    """Of shape, dtype and bytes."""
    values = np.asarray(array)
    return hashlib.sha256(f"{values.shape}{values.dtype}".encode() + values.tobytes()).hexdigest()[:16]


def named(tree: Any) -> dict[str, str]:
    """{path: digest} of every leaf."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): digest(leaf) for path, leaf in leaves}


def made_up(config: ConfigDict, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """A batch of noise with texts of many lengths, entities of one to three tokens, and texts that recur."""
    rng, batch = np.random.default_rng(seed), {}
    size, length, vocabulary = config.model.image_size, config.model.text.length, config.model.text.vocab_size
    for part in ("paired", "unpaired"):
        count = config.data[f"batch_{part}"]
        tokens = rng.integers(5, vocabulary, (count, length)).astype(np.int32)
        tokens[np.arange(length) >= rng.integers(4, length + 1, (count, 1))] = 0
        runs = np.cumsum(rng.random((count, length)) < 0.4, axis=1)
        entity = np.where((runs % 2 == 1) & (tokens > 0), runs, 0).astype(np.int32)
        batch[part] = {
            "image": rng.integers(0, 256, (count, size, size, 1)).astype(np.uint8),
            "tokens": tokens,
            "entity": entity,
            "affirmed": (entity > 0) & (entity % 3 != 0),
            "text_id": rng.integers(0, 7, (count, 2)).astype(np.int32),
            "stated": rng.integers(-1, 2, (count, len(prompts.KINDS))).astype(np.int8),
            "source": np.full(count, int(part == "unpaired"), np.int32),
            "known": np.zeros((count, len(prompts.KINDS)), np.int8),
        }
    return {part: rows for part, rows in batch.items() if len(rows["tokens"])}


def load(name: str) -> ConfigDict:
    """configs/NAME.py:runlocal, every objective switched on."""
    path = pathlib.Path(__file__).resolve().parents[1] / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"recorded_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config: ConfigDict = module.get_config("runlocal")
    config.model.text.vocab_size = config.model.text.vocab_size or 211
    config.objective.attmim.random_share = 0.3
    config.objective.local.weight = config.objective.local.weight or 0.5
    config.optimizer.ema = config.optimizer.ema or 0.9
    return config


def remember_gradients() -> optax.GradientTransformation:
    """Leaves the gradients as they are, and keeps them as its state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda gradients, _, __: (gradients, gradients)
    )


def record(name: str) -> dict[str, Any]:
    """What is to stay the same of one config."""
    config = load(name)
    model = build_model(config.model)
    optimizer = optax.chain(remember_gradients(), optim.make_optimizer(config.optimizer, STEPS))
    schedule = optim.learning_rate(config.optimizer, STEPS)
    update = jax.jit(step.make_train_step(model, config, optimizer, schedule, MASK_ID))
    norms = jax.jit(lambda p, n, b: step.loss_gradient_norms(model, config, MASK_ID, p, n, b))
    state = jax.jit(lambda: step.init_state(model, config, optimizer))()
    found: dict[str, Any] = {"metrics": [], "gradients": []}
    for number in range(STEPS):
        batch = made_up(config, number)
        before = norms(state.params, state.step, batch) if number == STEPS - 1 else {}
        state, metrics = update(state, batch)
        found["metrics"].append({key: np.asarray(value).item() for key, value in (metrics | before).items()})
        found["gradients"].append(named(state.opt_state[0]))
    return found | {part: named(getattr(state, part)) for part in ("params", "ema", "opt_state")}


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Where two records differ, one line a place."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(before.keys() | after.keys())
        return [
            line
            for key in keys
            for line in (
                differences(before[key], after[key], f"{where}/{key}")
                if key in before and key in after
                else [f"{where}/{key}: only {'before' if key in before else 'after'}"]
            )
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for n, (a, b) in pairs for line in differences(a, b, f"{where}/{n}")]
    return [] if before == after else [f"{where}: {before} before, {after} now"]


def main() -> None:
    """Writes the record, or checks against one."""
    parser = argparse.ArgumentParser(description="Ten updates of each config, as digests.")
    parser.add_argument("what", choices=("write", "check"))
    parser.add_argument("file", type=pathlib.Path)
    args = parser.parse_args()
    found = {name: record(name) for name in CONFIGS}
    if args.what == "write":
        args.file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return
    lines = differences(json.loads(args.file.read_text(encoding="utf-8")), json.loads(json.dumps(found)))
    print("\n".join(lines[:100]) if lines else f"equal to the bit: {', '.join(CONFIGS)}")
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
