"""Bytes on a chip: what the compiler says of the step, and a count by hand."""

import bisect
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from mmclip_jax import objectives
from mmclip_jax.data import batch
from mmclip_jax.objectives.base import Buffers, Tower, image_towers
from mmclip_jax.plan.topologies import Topology

REMEDY = "shard the state (--config.mesh.fsdp), chunk the batch (--config.optimizer.accumulate), or take more chips"


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes a chip: parameters, optimizer and average; its rows of the batch; buffers of the step; the program."""

    state: float
    batch: float
    buffers: float
    program: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.state + self.batch + self.buffers + self.program


def compiled_memory(compiled: jax.stages.Compiled, state: Any) -> Memory:
    """What the compiler says that a chip must hold; state: the abstract one, the rest of the arguments is the batch."""
    said = compiled.memory_analysis()
    assert said is not None
    leaves = jax.tree.leaves(state)
    held = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    outputs = said.output_size_in_bytes - said.alias_size_in_bytes  # what does not take the place of the old state
    return Memory(
        held, said.argument_size_in_bytes - held, said.temp_size_in_bytes + outputs, said.generated_code_size_in_bytes
    )


def scaled_memory(memory: Memory, config: ConfigDict, parameters: int, rows: int, chips: int) -> Memory:
    """The memory of `rows` rows from that of `config`: buffers grow with the rows, all but the float32 gradients.

    The optimizer's buffers do not grow either, so it errs towards too much for larger batches. Logits grow with the
    square of the rows, as far as the loss does not chunk them.
    """
    before = batch.total_rows(config)
    factor = rows / before
    gradients = min(4.0 * parameters / config.mesh.fsdp, memory.buffers)
    pairs = pairs_bytes(config, rows, chips) - factor * pairs_bytes(config, before, chips)
    buffers = gradients + factor * (memory.buffers - gradients) + max(pairs, 0.0)
    return Memory(memory.state, memory.batch * factor, buffers, memory.program)


def state_shards(config: ConfigDict, chips: int) -> int:
    """Over how many chips parameters, moments and average are cut."""
    return chips if config.mesh.shard_optimizer else int(config.mesh.fsdp)


def _buffers(config: ConfigDict, rows: float, chips: int) -> list[Buffers]:
    return [objective.buffers(config, rows, chips) for objective in objectives.active(config)]


def pairs_bytes(config: ConfigDict, rows: float, chips: int) -> float:
    """Bytes on a chip of what the losses hold for pairs of rows: their square, where nothing is chunked."""
    return sum(each.pairs for each in _buffers(config, rows, chips))


def memory_by_formula(config: ConfigDict, parameters: int, rows: int, chips: int) -> Memory:
    """Bytes a chip for a global batch of `rows`, without compiling.

    State: float32 parameters, two moments, and the average, cut over all chips by `mesh.shard_optimizer`. Buffers:
    gradients and updates in float32 (with it gathered parameters and gradients), and activations
    counted by hand: with `model.remat` the input of every layer, and the products of the largest layer twice over, for
    their gradients; without it the products of all layers.
    """
    model = config.model
    wide = 2 if model.dtype == "bfloat16" else 4
    more = _buffers(config, rows, chips)
    towers = [
        *image_towers(model),
        Tower(model.text, model.text.length),
        *(tower for each in more for tower in each.towers),
    ]
    inputs, products = [], []
    for part, positions, context in towers:
        inputs.append(positions * part["width"] * wide * part["depth"])
        layer = positions * (8 * part["width"] + 2 * part["mlp_dim"]) * wide
        # The softmax is float32.
        products.append(layer + part["heads"] * positions * (positions + context) * (4 + wide))
    if model.remat:
        row: float = sum(inputs) + 2 * max(products)
    else:
        row = sum(layer * tower.part["depth"] for layer, tower in zip(products, towers, strict=True))
    return Memory(
        4.0 * parameters * (4 if config.optimizer.ema else 3) / state_shards(config, chips),
        rows / chips * batch.row_bytes(config),
        8.0 * parameters / config.mesh.fsdp
        + rows / chips / config.optimizer.accumulate * (row + sum(each.row for each in more))
        + sum(each.pairs for each in more),
    )


def largest_batch(config: ConfigDict, topology: Topology, memory_at: Callable[[int], Memory]) -> int:
    """The largest global batch that fits, a multiple of the chips (x accumulate); 0 if none does.

    memory_at: rows of the global batch -> memory, which grows with them.
    """
    chunk = topology.chips * config.optimizer.accumulate
    least = (config.data.batch_paired > 0) + (config.data.batch_unpaired > 0)
    sizes = range(least * chunk, 10**6 * chunk, chunk)
    fitting = bisect.bisect_right(sizes, topology.chip.memory, key=lambda rows: memory_at(rows).total)
    return sizes[fitting - 1] if fitting else 0
