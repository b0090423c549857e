"""Bytes on a chip: what the compiler says of the step, and a count by hand."""

import bisect
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from mmclip_jax import objectives, sharding
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


def scaled_memory(memory: Memory, config: ConfigDict, params: Any, rows: int, topology: Topology) -> Memory:
    """The memory of `rows` rows from that of `config`: buffers grow with the rows, all but `steady_bytes`.

    The optimizer's buffers do not grow either, so on TPUs it errs towards too much for larger batches. At least the
    activations of the formula grow, as far as they are no more than half of the buffers. Logits grow with the square of
    the rows, as far as the loss does not chunk them.
    """
    before, chips = batch.total_rows(config), topology.chips
    factor = rows / before
    by_formula = min(activation_bytes(config, before, chips), memory.buffers / 2)
    growing = max(memory.buffers - steady_bytes(config, params, topology), by_formula)
    pairs = pairs_bytes(config, rows, chips) - factor * pairs_bytes(config, before, chips)
    buffers = memory.buffers + (factor - 1) * growing + max(pairs, 0.0)
    return Memory(memory.state, memory.batch * factor, buffers, memory.program)


def steady_bytes(config: ConfigDict, params: Any, topology: Topology) -> float:
    """Bytes on a chip of buffers that do not grow with the rows, as compiled programs have them.

    Float32 gradients. With `mesh.shard_optimizer` also the gathered parameters: GPUs gather them in float32. TPUs
    gather them in the dtype of computing, and reduce gradients as each layer makes them, so that few are held at a
    time: a quarter of what is gathered. Where gradients are summed over chunks of a batch, all are held.
    """
    numbers = count_parameters(params) / config.mesh.fsdp
    if not _gathers(config, topology):
        return 4.0 * numbers
    if not topology.is_tpu:
        return 8.0 * numbers
    return numbers * (1.25 * _wide(config) + 4.0 * (config.optimizer.accumulate > 1))


def _gathers(config: ConfigDict, topology: Topology) -> bool:
    """Whether parameters are cut along the mesh axis "data", and gathered in each step."""
    return bool(config.mesh.shard_optimizer) and topology.chips > config.mesh.fsdp


def _wide(config: ConfigDict) -> int:
    return 2 if config.model.dtype == "bfloat16" else 4


def count_parameters(params: Any) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def state_bytes(params: Any, config: ConfigDict, chips: int, shard_optimizer: bool) -> float:
    """Bytes on a chip of float32 parameters, two moments and the average; an array that does not divide stays whole.

    Args:
      params: a tree of arrays or shapes.
      config: a run's settings.
      chips: of the mesh.
      shard_optimizer: cut over all chips (`mesh.shard_optimizer`); else over `mesh.fsdp` of them.
    """
    fsdp = int(config.mesh.fsdp)
    mesh = jax.sharding.AbstractMesh((chips // fsdp, fsdp), sharding.ROW_AXES)
    shardings = sharding.tree_shardings(params, mesh, shard_optimizer)
    sizes = jax.tree.map(lambda leaf, place: math.prod(place.shard_shape(leaf.shape)), params, shardings)
    return 4.0 * (4 if config.optimizer.ema else 3) * sum(jax.tree.leaves(sizes))


def _buffers(config: ConfigDict, rows: float, chips: int) -> list[Buffers]:
    return [objective.buffers(config, rows, chips) for objective in objectives.active(config)]


def pairs_bytes(config: ConfigDict, rows: float, chips: int) -> float:
    """Bytes on a chip of what the losses hold for pairs of rows: their square, where nothing is chunked."""
    return sum(each.pairs for each in _buffers(config, rows, chips))


def memory_by_formula(config: ConfigDict, params: Any, rows: int, topology: Topology) -> Memory:
    """Bytes a chip for a global batch of `rows`, without compiling; params: a tree of shapes.

    State: see `state_bytes`. Buffers: `steady_bytes`, as much again for the float32 updates of a state that is not cut,
    activations (`activation_bytes`), and what the losses hold for pairs of rows.
    """
    steady, chips = steady_bytes(config, params, topology), topology.chips
    return Memory(
        state_bytes(params, config, chips, config.mesh.shard_optimizer),
        rows / chips * batch.row_bytes(config),
        steady * (1 if _gathers(config, topology) else 2)
        + activation_bytes(config, rows, chips)
        + pairs_bytes(config, rows, chips),
    )


def activation_bytes(config: ConfigDict, rows: int, chips: int) -> float:
    """Bytes on a chip of what the backward pass needs of the forward pass, for a global batch of `rows`.

    With `model.remat` the input of every layer, and the products of the largest layer twice over, for their gradients;
    without it the products of all layers.
    """
    model, wide = config.model, _wide(config)
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
    return rows / chips / config.optimizer.accumulate * (row + sum(each.row for each in more))


def largest_batch(config: ConfigDict, topology: Topology, memory_at: Callable[[int], Memory]) -> int:
    """The largest global batch that fits, a multiple of the chips (x accumulate); 0 if none does.

    memory_at: rows of the global batch -> memory, which grows with them.
    """
    chunk = topology.chips * config.optimizer.accumulate
    least = (config.data.batch_paired > 0) + (config.data.batch_unpaired > 0)
    sizes = range(least * chunk, 10**6 * chunk, chunk)
    fitting = bisect.bisect_right(sizes, topology.chip.memory, key=lambda rows: memory_at(rows).total)
    return sizes[fitting - 1] if fitting else 0
