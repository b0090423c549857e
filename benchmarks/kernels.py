"""What one compiled step costs, kernel by kernel. Prints one table; no accelerator is needed.

    PYTHONPATH=.gpu python benchmarks/kernels.py --topology h100:8 --batch 2048 --save step.hlo
    PYTHONPATH=.tpu python benchmarks/kernels.py --topology v5e:4x4 --batch 512
    python benchmarks/kernels.py --topology h200:8 --hlo step.hlo        # a program that was saved, on another chip

The step is compiled as `mmclip plan` does it, and its text is read by mmclip_jax/plan/kernels.py: bytes and products
of each kernel times how often it runs, against the published bandwidth and peak. Kernels of one kind at one place of
the model are one line. Any --config.key=value changes a setting, as for `mmclip train`.
"""

import argparse
import collections
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a bare checkout too

from mmclip_jax.data import batch
from mmclip_jax.data.batch import settle_augmentation
from mmclip_jax.errors import UserError
from mmclip_jax.plan import collectives, compiling, hlo, kernels, plan, topologies
from mmclip_jax.settings import read_config
from mmclip_jax.text.tokenizer import load_tokenizer

_WRAPPED = re.compile(r"(jit|jvp|vmap|checkpoint|remat|rematted_computation|transpose)\(([^()]*)\)")


def place(where: str) -> str:
    """JAX's name of an operation without what wraps it: "backward image_encoder/layers/mlp_in"."""
    backward = "backward " if "transpose(" in where else "forward "
    while _WRAPPED.search(where):
        where = _WRAPPED.sub(r"\2", where)
    words = [
        word for word in where.split("/") if word and word not in ("update", "while", "body", "closed_call", "MMCLIP")
    ]
    if "update_state" in words:
        return "update_state"
    return backward + "/".join(words[:-1][-4:] or words[:1])


def table(found: list[kernels.Kernel], chip: topologies.Chip) -> list[dict[str, Any]]:
    """One entry for each kind and place, the longest first: ms, GB, TFLOP and runs of a step."""
    groups: dict[tuple[str, str], list[kernels.Kernel]] = collections.defaultdict(list)
    for kernel in found:
        groups[kernel.kind, place(kernel.where)].append(kernel)
    entries = [
        {
            "kind": kind,
            "place": where,
            "ms": sum(k.seconds(chip) for k in each) * 1e3,
            "GB": sum(k.bytes * k.times for k in each) / 1e9,
            "TFLOP": sum(k.flops * k.times for k in each) / 1e12,
            "runs": sum(k.times for k in each),
        }
        for (kind, where), each in groups.items()
    ]
    return sorted(entries, key=lambda entry: -float(str(entry["ms"])))


def compiled_text(
    args: argparse.Namespace, rest: list[str], topology: topologies.Topology
) -> tuple[str, dict[str, Any]]:
    """The program's text, and what compiling said."""
    config = read_config(args.config, rest)
    tokenizer = load_tokenizer(config.data.tokenizer or None)
    config.model.text.vocab_size = config.model.text.vocab_size or tokenizer.vocab_size
    settle_augmentation(config, accelerated=True)
    config = plan.with_batch(config, args.batch or batch.total_rows(config), topology.chips)
    if not compiling.can_compile(topology):
        raise UserError(f"{topology.text}: its compiler is not installed (requirements-gpu.txt)")
    start = time.perf_counter()
    compiled, state = compiling.compile_step(config, compiling.devices_of(topology), tokenizer.mask_id)
    memory = plan.compiled_memory(compiled, state)
    facts = {"compiled in s": round(time.perf_counter() - start, 1), "memory a chip, GB": round(memory.total / 1e9, 2)}
    return compiled.as_text() or "", facts


def main() -> int:
    """Compiles, counts and prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", default=str(ROOT / "configs" / "mmclip_vitb16.py"), metavar="FILE.py[:ARGUMENT]")
    parser.add_argument("--topology", required=True, metavar="CHIP:AxB")
    parser.add_argument("--batch", type=int, metavar="ROWS", help="of all chips; default: the config's")
    parser.add_argument("--top", type=int, default=25, help="lines of the table")
    parser.add_argument("--hlo", type=Path, metavar="FILE", help="reads a saved program in place of compiling")
    parser.add_argument("--save", type=Path, metavar="FILE", help="writes the program")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the whole table")
    args, rest = parser.parse_known_args()
    try:
        topology = topologies.parse_topology(args.topology)
        text, facts = (args.hlo.read_text(), {}) if args.hlo else compiled_text(args, rest, topology)
    except UserError as error:
        print(f"kernels.py: {error}", file=sys.stderr)
        return 2
    if args.save:
        args.save.write_text(text)
    found = kernels.kernels(text)
    entries, shares = table(found, topology.chip), kernels.shares(found, topology.chip)
    by_name = collectives.sending(text, topology)
    links = sum(seconds * runs for seconds, runs in by_name.values())
    sent = sum(collectives.sent_by(each) * each.times for each in hlo.collectives(text, topology.chips))
    hidden = kernels.hidden_seconds(text, found, topology.chip, by_name)
    print(f"{'ms':>9}{'GB':>9}{'TFLOP':>9}{'runs':>8}  kind       place")
    for entry in entries[: args.top]:
        print("{ms:9.3f}{GB:9.2f}{TFLOP:9.3f}{runs:8d}  {kind:10} {place}".format(**entry))
    left = entries[args.top :]
    if left:
        print(f"{sum(float(entry['ms']) for entry in left):9.3f}  {len(left)} more")
    facts |= {f"{kind}, ms": round(seconds * 1e3, 2) for kind, seconds in shares.items()}
    # By the name of a kernel's first operation: what is fused into another kernel is not counted.
    masking = [k for k in found if k.kind == "other" and "masking" in k.where]
    facts |= {
        "of other: selections and gathers of masks, us": round(sum(k.seconds(topology.chip) for k in masking) * 1e6, 2),
        "of other: their kernels": sum(k.times for k in masking),
        "all kernels, ms": round(sum(shares.values()) * 1e3, 2),
        "traffic, GB": round(sum(k.bytes * k.times for k in found) / 1e9, 1),
        "communication, ms": round(links * 1e3, 2),
        "of it hidden, ms": round(hidden * 1e3, 2),
        "sent by a chip, MB": round(sent / 1e6, 1),
        "of it beside no kernel, MB, at the mean bandwidth": round(sent / 1e6 * (1 - hidden / max(links, 1e-12)), 1),
    }
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    if args.json:
        args.json.write_text(json.dumps({"facts": facts, "kernels": entries}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
