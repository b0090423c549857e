"""A contrastive training step beside what a user would pick instead: PyTorch's same model, open_clip, transformers.

    python benchmarks/peers.py                                             # the demo's sizes
    python benchmarks/peers.py --config mmclip_vitb16 --config.model.dtype=float32 --batch 16

On a CPU, in float32, with AdamW and clipped gradients. Every program has a process of its own, and they take turns of a
few steps, so that what else the machine does falls on all of them. "PyTorch, same model" is that of `mmclip export`,
layer for layer; open_clip and transformers have their own CLIP of the same widths, depths and lengths. Ours runs as
`mmclip train` does: compiler's flags, malloc, average of the parameters. Times are medians; the ratio is that of the
medians. What is not installed is said. PyTorch and the others: requirements-interop.txt.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

OURS = "mmclip-jax"
Update = Callable[[], object]
Loss = Callable[[Any, Any, Any], Any]


class UnavailableError(Exception):
    """Why a program cannot run here."""


@contextlib.contextmanager
def _needed(package: str) -> Iterator[None]:
    """Says why where imports from a package fail: it is missing, or its libraries do not fit together."""
    if importlib.util.find_spec(package) is None:
        raise UnavailableError(f"{package} is not installed")
    try:
        yield
    except ImportError as error:
        raise UnavailableError(f"{package} cannot be imported here ({error})") from error


def same_model(model: Any) -> tuple[Any, Loss, int]:
    """(our model in PyTorch, its loss, channels of its images); model: the settings."""
    with _needed("transformers"):
        import torch

        from mmclip_jax.export.remote.configuration_mmclip import MMCLIPConfig
        from mmclip_jax.export.remote.modeling_mmclip import MMCLIPModel

    def loss(net: Any, images: Any, tokens: Any) -> Any:
        logits = net(input_ids=tokens, pixel_values=images).logits_per_image
        own = torch.arange(len(logits), device=logits.device)
        return (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)) / 2

    settings = json.loads(model.to_json())
    return MMCLIPModel(MMCLIPConfig(settings=settings)), loss, 1


def open_clip(model: Any) -> tuple[Any, Loss, int]:
    """open_clip's CLIP of the same sizes."""
    with _needed("open_clip"):
        from open_clip.loss import ClipLoss
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    image = CLIPVisionCfg(
        layers=model.image.depth, width=model.image.width, head_width=model.image.width // model.image.heads,
        patch_size=model.patch_size, image_size=model.image_size,
    )  # fmt: skip
    text = CLIPTextCfg(
        context_length=model.text.length, vocab_size=model.text.vocab_size, width=model.text.width,
        heads=model.text.heads, layers=model.text.depth,
    )  # fmt: skip
    contrast = ClipLoss()

    def loss(net: Any, images: Any, tokens: Any) -> Any:
        v, u, scale = net(images, tokens)[:3]
        return contrast(v, u, scale)

    return CLIP(model.embed_dim, image, text), loss, 3


def transformers(model: Any) -> tuple[Any, Loss, int]:
    """Hugging Face's CLIP of the same sizes."""
    with _needed("transformers"):
        from transformers import CLIPConfig, CLIPModel

    image, text = (
        {
            "hidden_size": part.width,
            "intermediate_size": part.mlp_dim,
            "num_hidden_layers": part.depth,
            "num_attention_heads": part.heads,
        }
        for part in (model.image, model.text)
    )
    image |= {"image_size": model.image_size, "patch_size": model.patch_size}
    text |= {"vocab_size": model.text.vocab_size, "max_position_embeddings": model.text.length, "eos_token_id": 2}
    config = CLIPConfig(
        text_config=text, vision_config=image, projection_dim=model.embed_dim, attn_implementation="sdpa"
    )

    def loss(net: Any, images: Any, tokens: Any) -> Any:
        return net(pixel_values=images, input_ids=tokens, return_loss=True).loss

    return CLIPModel(config), loss, 3


def torch_update(
    made: tuple[Any, Loss, int], model: Any, rows: int, device: str = "cpu", autocast: bool = False, whole: bool = False
) -> Update:
    """A step of PyTorch: loss, gradients, clipping to a norm of 1, AdamW; whole: compiled by torch.compile."""
    import torch

    net, losses, channels = made
    net = net.to(device).train()
    run = torch.compile(losses) if whole else losses
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=device == "cuda")
    images = torch.randn(rows, channels, model.image_size, model.image_size, device=device)
    tokens = torch.randint(3, model.text.vocab_size, (rows, model.text.length), device=device)

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            loss = run(net, images, tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return update


def _ours(config: Any) -> Update:
    import step as bench

    made = bench.Bench(config, ["contrastive"])
    return lambda: made.run("contrastive", 1)


PROGRAMS: dict[str, Callable[[Any], Update]] = {
    OURS: _ours,
    "PyTorch, same model": lambda c: torch_update(same_model(c.model), c.model, _rows(c)),
    "PyTorch, same model, compiled": lambda c: torch_update(same_model(c.model), c.model, _rows(c), whole=True),
    "open_clip": lambda c: torch_update(open_clip(c.model), c.model, _rows(c)),
    "transformers": lambda c: torch_update(transformers(c.model), c.model, _rows(c)),
}


def _rows(config: Any) -> int:
    return int(config.data.batch_paired + config.data.batch_unpaired)


def read(args: argparse.Namespace, overrides: Sequence[str]) -> Any:
    """The settings, with 2,000 tokens where the tokenizer would decide, and `--batch` rows, half of them paired."""
    from mmclip_jax.settings import read_config

    config = read_config(args.config, list(overrides))
    config.model.text.vocab_size = config.model.text.vocab_size or 2000
    if args.batch:
        config.data.batch_paired, config.data.batch_unpaired = args.batch - args.batch // 2, args.batch // 2
    return config


def work(name: str, config: Any) -> None:
    """A program's process: each line of stdin is a number of steps, answered with seconds a step of clock and cores."""
    try:
        update = PROGRAMS[name](config)
        update()
        update()
    except UnavailableError as error:
        print(json.dumps({"missing": str(error)}), flush=True)
        return
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        start, processor = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            update()
        seconds, used = time.perf_counter() - start, time.process_time() - processor
        print(json.dumps({"seconds": seconds / int(line), "processor": used / int(line)}), flush=True)


def measure(names: Sequence[str], words: Sequence[str], rounds: int, steps: int) -> dict[str, Any]:
    """{program: {"seconds": [...], "processor": [...]} or {"missing": why}}; words: of the command line."""
    workers: dict[str, subprocess.Popen[str]] = {}
    found: dict[str, Any] = {}
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    try:
        for name in names:
            command = [sys.executable, __file__, *words, "--work", name]
            worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
            assert worker.stdout
            said = json.loads(worker.stdout.readline() or '{"missing": "it failed: see above"}')
            found[name] = said if "missing" in said else {"seconds": [], "processor": []}
            if "missing" not in said:
                workers[name] = worker
        for turn in range(rounds):
            order = list(workers)
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                worker = workers[name]
                assert worker.stdin
                assert worker.stdout
                print(steps, file=worker.stdin, flush=True)
                for key, value in json.loads(worker.stdout.readline()).items():
                    found[name][key].append(value)
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown: medians, the spread, and each program's time in parts of ours."""
    lines = ["| program | ms a step | fastest–slowest | processor ms | time ÷ ours |", "|---|---:|---:|---:|---:|"]
    ours = statistics.median(found[OURS]["seconds"]) if found.get(OURS, {}).get("seconds") else None
    for name, row in found.items():
        if "missing" in row:
            lines.append(f"| {name} | not run: {row['missing']} | | | |")
            continue
        each, used = [1000 * s for s in row["seconds"]], [1000 * s for s in row["processor"]]
        ratio = "–" if ours is None else f"{statistics.median(row['seconds']) / ours:.2f}"
        spread = f"{min(each):.1f}–{max(each):.1f}"
        lines.append(f"| {name} | {statistics.median(each):.1f} | {spread} | {statistics.median(used):.0f} | {ratio} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, and writes peers.json where --out is given."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0], allow_abbrev=False)
    parser.add_argument("--config", default="demo", metavar="NAME|FILE.py")
    parser.add_argument("--batch", type=int, default=0, help="rows; default: the config's")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each program")
    parser.add_argument("--steps", type=int, default=3, help="steps a turn")
    parser.add_argument("--programs", nargs="+", choices=tuple(PROGRAMS), default=tuple(PROGRAMS))
    parser.add_argument("--out", type=Path, help="directory for peers.json; default: $OUT, if set")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args, overrides = parser.parse_known_args(words)
    if args.work == OURS:  # before NumPy and JAX start threads
        from mmclip_jax.memory import keep_freed_memory

        keep_freed_memory()
    config = read(args, overrides)
    if args.work:
        work(args.work, config)
        return 0
    found = measure(args.programs, words, args.rounds, args.steps)
    print(table(found))
    out = args.out or (Path(os.environ["OUT"]) if os.environ.get("OUT") else None)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "peers.json").write_text(json.dumps({"command": words, "found": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
