"""What chips send each other in a step: named by what it carries, for compiled programs and by formula."""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax
from ml_collections import ConfigDict

from mmclip_jax import objectives
from mmclip_jax.data import batch
from mmclip_jax.objectives.base import EMBEDDINGS, IDS, Traffic
from mmclip_jax.plan import hlo
from mmclip_jax.plan.topologies import Topology

SCALAR_BYTES = 4096  # reductions up to this size are allowed whatever they hold
SCALARS = "scalars"
GRADIENTS, PARAMETERS, FORBIDDEN = "parameter gradients", "sharded parameters", "NOT ALLOWED"
PIECES = "pieces of sharded parameters or gradients"


@dataclasses.dataclass(frozen=True)
class Collective:
    """Communication of one kind in a step: what it carries, the operation, how often, bytes of the results on a chip.

    arrays: "dtype[shape]" of each result; a step does all of them `times` times; size: bytes of all, once; group: how
    many chips do each together.
    """

    what: str
    operation: str
    arrays: tuple[str, ...]
    times: int
    size: int
    group: int

    @property
    def total(self) -> int:
        """Bytes of a step."""
        return self.times * self.size

    @property
    def sent(self) -> float:
        """Bytes that a chip sends in a step."""
        return self.times * _sent(self.operation, self.size, self.group)


def _sent(operation: str, size: float, group: int) -> float:
    """Bytes that a chip sends in rings of its group, once (a reduction for everybody goes round twice)."""
    if operation == "collective-permute":
        return size
    if operation == "reduce-scatter":  # its result is the chip's share
        return size * (group - 1)
    return size * (2 if operation == "all-reduce" else 1) * (group - 1) / group


def sent_by(operation: hlo.Operation) -> float:
    """Bytes that a chip sends in one run of a program's collective."""
    size = sum(hlo.bytes_of(dtype) * math.prod(shape) for dtype, shape in operation.arrays)
    return _sent(operation.name, size, operation.group)


def sending(text: str, topology: Topology) -> dict[str, tuple[float, int]]:
    """(seconds of one run at best, runs) of each collective of a compiled program, by `hlo.channel`."""
    return {
        name: (sent_by(each) / topology.bandwidth(each.group), each.times)
        for name, each in hlo.named_collectives(text, topology.chips)
    }


def bare(shape: Iterable[int]) -> tuple[int, ...]:
    """A shape without its order and without axes of one: compilers transpose and reshape."""
    return tuple(sorted(size for size in shape if size != 1))


def _with_flat(shapes: Iterable[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """Bare shapes, and each as one axis of all its numbers: compilers flatten what they send."""
    found = {bare(shape) for shape in shapes}
    return found | {(math.prod(shape),) for shape in found}


def _traffic(config: ConfigDict, chips: int) -> list[Traffic]:
    rows, shapes = batch.total_rows(config), {name: field.shape for name, field in batch.fields(config).items()}
    return [objective.traffic(config, rows, chips, shapes) for objective in objectives.active(config)]


def bare_parameters(config: ConfigDict, weights: Collection[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """Bare shapes of parameters, those of attention's kernels also cut into heads; weights: see `parameter_shapes`."""
    found = _with_flat(weights)
    for name in ("image", "text", "image_decoder", "text_decoder"):
        width, heads = config.model[name].width, config.model[name].heads
        for shape in weights:
            found |= {
                bare((*shape[:axis], heads, width // heads, *shape[axis + 1 :]))
                for axis, size in enumerate(shape)
                if size == width
            }
    return found


def _classifier(
    config: ConfigDict, weights: Collection[tuple[int, ...]], chips: int
) -> Callable[[str, str, tuple[int, ...], int], str]:
    """The function (operation, dtype, shape, bytes) -> what it carries, by docs/method.md, "Total".

    Parameters that the compiler pads are not recognised: under fsdp, those of widths that 16 x fsdp does not divide.
    """
    parameters, traffic = bare_parameters(config, weights), _traffic(config, chips)
    embeddings = _with_flat(shape for each in traffic for shape in each.embeddings)
    own_embeddings = _with_flat(shape for each in traffic for shape in each.own_embeddings)
    ids = _with_flat(shape for each in traffic for shape in each.ids)
    own_ids = _with_flat(shape for each in traffic for shape in each.own_ids)

    def what(operation: str, dtype: str, shape: tuple[int, ...], size: int) -> str:
        own, is_float = bare(shape), dtype in ("f32", "bf16")
        if operation not in ("all-gather", "all-reduce", "reduce-scatter", "collective-permute"):
            return FORBIDDEN
        if not own and operation == "all-reduce":
            return SCALARS
        to_chips = operation in ("reduce-scatter", "collective-permute")  # whose results are a chip's share
        flat = len(own) == 1 and own in parameters  # as long as a flat array of embeddings may be, too
        if is_float and not flat and own in (embeddings | own_embeddings if to_chips else embeddings):
            return EMBEDDINGS
        if not is_float and own in (ids | own_ids if to_chips else ids):
            return IDS
        if is_float and own in parameters:
            if operation in ("all-reduce", "reduce-scatter"):
                return GRADIENTS
            if config.mesh.fsdp > 1 or config.mesh.shard_optimizer:
                return PIECES if operation == "collective-permute" else PARAMETERS
        return SCALARS if operation == "all-reduce" and size <= SCALAR_BYTES else FORBIDDEN

    return what


def collectives_of(text: str, config: ConfigDict, weights: Collection[tuple[int, ...]], chips: int) -> list[Collective]:
    """The collectives of a compiled step, the largest first.

    Args:
      text: of the compiled program (HLO).
      config: the run's settings, with the batch that was compiled.
      weights: shapes that parameters have: whole, as shards, of a single layer.
      chips: of the mesh.
    """
    what = _classifier(config, weights, chips)
    found: dict[tuple[str, str, int, int], list[tuple[str, int]]] = {}
    for operation in hlo.collectives(text, chips):
        for dtype, shape in operation.arrays:
            size = hlo.bytes_of(dtype) * math.prod(shape)
            # What nobody is seen to call may run after all.
            carried = what(operation.name, dtype, shape, size) if operation.times else FORBIDDEN
            kind = (carried, operation.name, max(operation.times, 1), operation.group)
            found.setdefault(kind, []).append((f"{dtype}[{','.join(map(str, shape))}]", size))
    collectives = [
        Collective(carried, name, tuple(array for array, _ in each), count, sum(size for _, size in each), group)
        for (carried, name, count, group), each in found.items()
    ]
    return sorted(collectives, key=lambda collective: -collective.total)


def parameter_shapes(params: Any) -> set[tuple[int, ...]]:
    """Shapes that a gradient or a gathered parameter may have: whole, a shard, all shards; of one layer of a stack."""
    shapes: set[tuple[int, ...]] = set()
    for leaf in jax.tree.leaves(params):
        shard = leaf.sharding.shard_shape(leaf.shape)
        count = math.prod(leaf.shape) // max(math.prod(shard), 1)
        shapes |= {leaf.shape, leaf.shape[1:], shard, shard[1:], (count, *shard), (count, *shard[1:])}
        if shard:
            shapes.add((count * shard[0], *shard[1:]))  # shards one below the other
    return shapes


def collectives_by_formula(config: ConfigDict, parameters: int, chips: int) -> list[Collective]:
    """The gathers and reductions that docs/method.md allows, each done once.

    Under fsdp gradients are reduced and scattered in groups that share the state, then summed over these groups.
    """
    fsdp = config.mesh.fsdp

    def one(
        what: str, operation: str, dtype: str, shape: tuple[int, ...], times: int = 1, group: int = chips
    ) -> Collective:
        array = f"{dtype}[{','.join(map(str, shape))}]"
        return Collective(what, operation, (array,), times, 4 * math.prod(shape), group)

    data = chips // fsdp
    found = [one(*exchange) for each in _traffic(config, chips) for exchange in each.exchanges]
    if config.mesh.shard_optimizer and data > 1:
        found.append(one(PARAMETERS, "all-gather", "f32", (parameters // fsdp,), group=data))
        found.append(one(GRADIENTS, "reduce-scatter", "f32", (parameters // chips,), group=data))
    else:
        found.append(one(GRADIENTS, "all-reduce", "f32", (parameters // fsdp,), group=data))
    if fsdp > 1:
        # Forward and backward.
        found.append(one(PARAMETERS, "all-gather", "f32", (parameters,), times=2, group=fsdp))
        found.append(one(GRADIENTS, "reduce-scatter", "f32", (parameters // fsdp,), group=fsdp))
    return sorted(found, key=lambda collective: -collective.total)
