"""A plan as text."""

import collections
import textwrap
from collections.abc import Callable

from mmclip_jax import flops
from mmclip_jax.objectives.base import EMBEDDINGS, IDS
from mmclip_jax.plan import targets
from mmclip_jax.plan.collectives import GRADIENTS
from mmclip_jax.plan.plan import Plan
from mmclip_jax.plan.roofline import Point


def text(plan: Plan) -> str:
    """What `mmclip plan` prints."""
    return "\n".join([*_head(plan), "", *_table(plan), "", *_communication(plan), "", *_notes(plan)])


def _head(plan: Plan) -> list[str]:
    config, chips = plan.asked.config, plan.topology.chips
    how = f"compiled by {plan.compiled}" if plan.compiled else "by formula, a first look; nothing was compiled"
    return [
        f"{plan.topology.text}: {chips} chips as data {chips // config.mesh.fsdp} x fsdp {config.mesh.fsdp}; {how}",
        f"{plan.parameters:,} parameters; {config.model.dtype}; remat {'on' if config.model.remat else 'off'}; "
        f"accumulate {config.optimizer.accumulate}; fits: {'yes' if plan.fits else 'NO'}",
    ]


def _table(plan: Plan) -> list[str]:
    chips, chip = plan.topology.chips, plan.topology.chip
    points = {"asked": plan.asked, "recipe": plan.recipe, "largest that fits": plan.largest}
    shown = {name: point for name, point in points.items() if point is not None}
    lines = [f"{'':34}" + "".join(f" {name:>17}" for name in shown)]

    def add(name: str, value: Callable[[Point], str]) -> None:
        lines.append(f"{name:34}" + "".join(f" {value(point):>17}" for point in shown.values()))

    add("global batch", lambda p: f"{p.rows:,}")
    add("  paired + unpaired", lambda p: f"{p.config.data.batch_paired:,} + {p.config.data.batch_unpaired:,}")
    add("  rows a chip", lambda p: f"{p.rows / chips:,.0f}")
    add(f"memory a chip, of {chip.memory / 1e9:.0f} GB", lambda p: f"{p.memory.total / 1e9:.2f} GB")
    add("  parameters and optimizer", lambda p: f"{p.memory.state / 1e9:.2f} GB")
    add("  batch", lambda p: f"{p.memory.batch / 1e9:.3f} GB")
    add("  buffers of the step", lambda p: f"{p.memory.buffers / 1e9:.2f} GB")
    add("  program", lambda p: f"{p.memory.program / 1e9:.2f} GB")
    add("TFLOP a step, all chips", lambda p: f"{flops.model_flops(p.work) / 1e12:,.1f}")
    add("  recomputed beside them", lambda p: f"{p.work['recompute'] / 1e12:,.1f}")
    if plan.compiled:
        _add_kernels(add)
    else:
        add("a step at best: products", lambda p: f"{p.products * 1e3:,.2f} ms")
        add("  memory traffic", lambda p: f"{p.traffic * 1e3:,.2f} ms")
        add("  communication", lambda p: f"{p.links * 1e3:,.2f} ms")
    add("  all, communication hidden", lambda p: f"{p.hidden * 1e3:,.2f} ms")
    add("  all, communication not hidden", lambda p: f"{p.exposed * 1e3:,.2f} ms")
    if plan.compiled:
        add("  all, in the compiler's order", lambda p: f"{p.step * 1e3:,.2f} ms")
    add("utilisation (MFU) at most", lambda p: f"{_utilisation(plan, p):.0%}")
    add("hours of the run's steps", lambda p: f"{p.hours:,.2f}")
    add("chip-hours", lambda p: f"{p.hours * chips:,.1f}")
    add("scaling efficiency", lambda p: f"{p.alone / p.exposed:.0%} to {p.alone / p.hidden:.0%}")
    add("images/s at most", lambda p: f"{p.rows / p.hidden:,.0f}")
    return lines


_RINGS = "collectives in rings over the chips that do them together."
_KERNELS = (
    "of each kernel of the program its bytes over the memory's bandwidth or its products over the peak, whichever "
    f"takes longer, times how often it runs; {_RINGS} No step is faster, real ones are slower."
)
_FORMULA = (
    "matrix products, recomputed ones too, by mmclip_jax/flops.py over the peak; state and buffers read and written "
    f"once; {_RINGS} As rough as the memory: a compiled step moves several times as much."
)
_NAMES = {
    "attention": "a step at best: attention",
    "products": "  other products",
    "norms": "  norms",
    "optimizer": "  optimizer",
    "other": "  other elementwise work",
}


def _add_kernels(add: Callable[[str, Callable[[Point], str]], None]) -> None:
    """The time of each kind of kernel with its share, and of communication."""

    def share(kind: str) -> Callable[[Point], str]:
        def shown(p: Point) -> str:
            seconds = p.counted.shares[kind] if p.counted else 0.0
            return f"{seconds * 1e3:,.2f} ms {seconds / p.step:4.0%}"

        return shown

    for kind, name in _NAMES.items():
        add(name, share(kind))
    add("  communication, hidden", lambda p: f"{(p.links - p.waiting) * 1e3:,.2f} ms     ")
    add("  communication, not hidden", lambda p: f"{p.waiting * 1e3:,.2f} ms {p.waiting / p.step:4.0%}")


def _utilisation(plan: Plan, point: Point) -> float:
    return flops.model_flops(point.work) / point.step / plan.topology.chip.peak / plan.topology.chips


def _communication(plan: Plan) -> list[str]:
    lines = ["collectives of a step" + ("" if plan.compiled else ", as docs/method.md has them")]
    for collective in plan.collectives:
        arrays = collections.Counter(collective.arrays)
        named = ", ".join(f"{count} {array}" for array, count in arrays.items())
        if len(arrays) > 3:
            named = f"{len(collective.arrays)} arrays"
        lines.append(
            f"  {collective.total / 1e6:10.3f} MB  {collective.operation:18} x{collective.times:<3} "
            f"{collective.what}: {named}"
        )
    if plan.compiled:
        bad = sum(len(collective.arrays) for collective in plan.forbidden)
        lines.append(f"  {bad} arrays that docs/method.md does not allow" if bad else "  nothing else")
    return lines


def _notes(plan: Plan) -> list[str]:
    chip, notes = plan.topology.chip, []
    if plan.recipe is None:
        notes.append(f"The recipe's batch does not divide over {plan.topology.chips} chips.")
    if plan.largest is None:
        notes.append("No batch fits: shard the state (--config.mesh.fsdp), or take larger chips.")
    if plan.topology.kind in targets.TARGETS and not plan.compiled:
        notes.append("With requirements-gpu.txt installed, and without --formula, the step is compiled for these GPUs.")
    if plan.asked.config.mesh.shard_optimizer:
        notes.append(
            f"mesh.shard_optimizer: {plan.asked.memory.state / 1e9:.2f} GB of parameters and optimizer a chip; without "
            f"it {plan.unsharded / 1e9:.2f} GB."
        )
    notes.append(
        f"A chip: {chip.peak / 1e12:.0f} TFLOP/s bfloat16, {chip.memory / 1e9:.0f} GB at "
        f"{chip.bandwidth / 1e9:,.0f} GB/s, sends {plan.topology.bandwidth(plan.topology.chips) / 1e9:.0f} GB/s "
        f"({chip.source})."
    )
    if plan.compiled:
        notes.append(
            "Memory and times: of the compiled program for the batch asked for. The other batches are estimates from "
            "it: state, program, gradients, the optimizer, and what parameters move and send stay; the rest grows with "
            "the rows. Plan the batch that you will run."
        )
    else:
        notes.append("Memory is counted by hand; expect it to be right to a factor of two.")
    notes.append(
        f"Times: {_KERNELS if plan.compiled else _FORMULA} Hours: of train.steps, without evaluation and checkpoints. "
        "Efficiency: against chips that need not talk, if communication is exposed and if it is hidden."
    )
    if plan.compiled and plan.asked.rows in plan.axes:
        notes.append(
            f"The batch is as long as an axis of the parameters ({plan.asked.rows}): what carries rows cannot be "
            "told from what carries gradients. Plan another batch to see that nothing else is sent."
        )
    summed = {each.what for each in plan.collectives if each.operation == "all-reduce"} if plan.compiled else set()
    if summed & {EMBEDDINGS, IDS}:
        notes.append(
            "An all-reduce of embeddings or ids sums their gradients, or is a gather: the compiler lets each chip "
            "add its own rows to zeros."
        )
    if GRADIENTS in summed and plan.asked.config.mesh.shard_optimizer:
        notes.append(
            "An all-reduce of parameter gradients sums them, or is a gather of parameters, likewise: each chip adds "
            "its own piece to zeros."
        )
    return [textwrap.fill(note, 118, break_long_words=False, break_on_hyphens=False) for note in notes]
