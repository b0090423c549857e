"""What a run needs of a TPU slice or a GPU cluster: memory, traffic and time of a step, before a chip is rented.

For a TPU topology the run's own step is compiled on this machine's CPU: memory and collectives are the compiler's. For
GPUs both are by formula. Times are rooflines from published figures: no step is faster, real ones are slower.
"""

import bisect
import collections
import dataclasses
import math
import os
import re
import textwrap
import time
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from mmclip_jax import check
from mmclip_jax.errors import DoesNotFitError, UserError
from mmclip_jax.plan import flops

if typing.TYPE_CHECKING:
    import jax

GPUS_A_NODE = 8
SCALAR_BYTES = 4096  # reductions up to this size are allowed whatever they hold
EMBEDDINGS, IDS, SCALARS = "embeddings and their gradients", "ids of texts", "scalars"
GRADIENTS, PARAMETERS, FORBIDDEN = "parameter gradients", "parameters (fsdp)", "NOT ALLOWED"
_REMEDY = "shard the state (--config.mesh.fsdp), chunk the batch (--config.optimizer.accumulate), or take more chips"


# ---------------------------------------------------------------------------------------------------------------------
# Chips and topologies


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one chip.

    device: its name in `flops.PEAK_FLOPS`; memory: bytes; bandwidth: of its memory, bytes/s; links: bytes/s that it can
    send to the chips of its slice or node, all links together; network: bytes/s that a GPU can send out of its node;
    pod: chips of the largest slice; axes: of the torus. The last two are 0 for GPUs.
    """

    device: str
    memory: float
    bandwidth: float
    links: float
    source: str
    network: float = 0.0
    pod: int = 0
    axes: int = 0

    @property
    def peak(self) -> float:
        """FLOP/s of dense bfloat16 products."""
        return flops.peak_flops(self.device) or 0.0


_TPU = "docs.cloud.google.com/tpu/docs/{}; sending: half of the bidirectional figure, in rings that close"
_GPU = "NVIDIA's data sheet of the {}; sending: half of the bidirectional NVLink figure; out of a node {}"
CHIPS = {
    "v5e": Chip("tpu v5e", 16e9, 800e9, 200e9, _TPU.format("v5e"), pod=256, axes=2),
    "v5p": Chip("tpu v5p", 95e9, 2765e9, 600e9, _TPU.format("v5p"), pod=6144, axes=3),
    "v6e": Chip("tpu v6e", 32e9, 1600e9, 400e9, _TPU.format("v6e"), pod=256, axes=2),
    "a100": Chip("a100", 80e9, 2039e9, 300e9, _GPU.format("A100 SXM 80 GB", "200 Gbit/s a GPU"), network=25e9),
    "h100": Chip("h100", 80e9, 3350e9, 450e9, _GPU.format("H100 SXM", "400 Gbit/s a GPU"), network=50e9),
    "h200": Chip("h200", 141e9, 4800e9, 450e9, _GPU.format("H200 SXM", "400 Gbit/s a GPU"), network=50e9),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of TPUs ("v5e:16x16"), or GPUs of a node x nodes ("h100:8x4")."""

    text: str
    kind: str
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    @property
    def chip(self) -> Chip:
        """The figures of one."""
        return CHIPS[self.kind]

    @property
    def is_tpu(self) -> bool:
        """Whether the step can be compiled for it here."""
        return self.chip.axes > 0

    def bandwidth(self, group: int) -> float:
        """Bytes/s at which a chip sends in rings of so many chips at best.

        Those of GPUs leave a node through all its cards where a group is larger than a node.
        """
        if self.is_tpu or group <= self.shape[0]:
            return self.chip.links
        return min(self.chip.links, self.shape[0] * self.chip.network)


def parse_topology(text: str) -> Topology:
    """Reads "v5e:16x16", "v5p:4x4x8" or "h100:8x4".

    Raises:
      UserError: no such chip or shape; the message says what there is.
    """
    found = re.fullmatch(r"(\w+):([1-9]\d{0,5}(?:x[1-9]\d{0,5}){1,2})", text.lower())
    if found is None or found[1] not in CHIPS:
        raise UserError(
            f"--topology {text!r} is not CHIP:AxB or CHIP:AxBxC with a chip of {', '.join(CHIPS)}; for GPUs it is GPUs "
            "of a node x nodes; e.g. v5e:16x16, v5p:4x4x8, h100:8x4"
        )
    topology = Topology(text.lower(), found[1], tuple(int(size) for size in found[2].split("x")))
    chip = topology.chip
    if len(topology.shape) != (chip.axes or 2):
        raise UserError(f"--topology {text!r}: {topology.kind} takes {chip.axes or 2} sizes, not {len(topology.shape)}")
    if not chip.pod and topology.shape[0] > GPUS_A_NODE:
        raise UserError(
            f"--topology {text!r}: {topology.shape[0]} GPUs a node, but the figures are of nodes of up to "
            f"{GPUS_A_NODE}: write {topology.kind}:{GPUS_A_NODE}x4 for four of them"
        )
    if chip.pod and topology.chips > chip.pod:
        raise UserError(f"--topology {text!r}: {topology.chips:,} chips, but the largest slice has {chip.pod:,}")
    return topology


# ---------------------------------------------------------------------------------------------------------------------
# The compiled step


def tpu_devices(topology: Topology) -> list[Any]:
    """The devices of a slice as libtpu describes them; no TPU is needed.

    Raises:
      UserError: libtpu is missing, or does not know the topology.
    """
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),  # no questions to a metadata server
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),  # no chip is taken, so others may plan too
        ("TPU_ACCELERATOR_TYPE", "v5litepod-8"),  # of this host; without it libtpu complains for lines
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_MIN_LOG_LEVEL", "3"),
    ):
        os.environ.setdefault(name, value)
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology.text).devices)
    except RuntimeError as error:
        if "not installed" in str(error):
            raise UserError(
                "libtpu, the compiler for TPUs, is not installed: pip install -r requirements-tpu.txt"
            ) from error
        raise UserError(
            f"libtpu does not take the topology {topology.text} ({error}): sizes go by twos, from {topology.kind}:2x2"
            f"{'x1' if topology.chip.axes == 3 else ''} up"
        ) from error


def compile_step(config: ConfigDict, devices: list[Any], mask_id: int) -> tuple["jax.stages.Compiled", Any]:
    """Compiles the run's own train step for these devices, which need not exist; minutes for ViT-B on a TPU slice.

    Returns:
      (the compiled step, the abstract state).

    Raises:
      DoesNotFitError: the compiler finds no room for it.
    """
    import jax

    from mmclip_jax import sharding
    from mmclip_jax.train import run as training

    mesh = sharding.make_mesh(config.mesh.fsdp, devices)
    built = training.build(config, mesh, mask_id)
    with jax.set_mesh(mesh):
        lowered = built.train_step.lower(built.abstract_state, training.abstract_batch(config, mesh))
    try:
        return lowered.compile(), built.abstract_state
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = str(error).splitlines()[0].rstrip(".")
        raise DoesNotFitError(f"the compiler finds no room for the step ({said}): {_REMEDY}") from error


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


def compiled_memory(compiled: "jax.stages.Compiled", state: Any) -> Memory:
    """What the compiler says that a chip must hold; state: the abstract one, the rest of the arguments is the batch."""
    import jax

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
    before = batch_rows(config)
    factor = rows / before
    gradients = min(4.0 * parameters / config.mesh.fsdp, memory.buffers)
    pairs = pairs_bytes(config, rows, chips) - factor * pairs_bytes(config, before, chips)
    buffers = gradients + factor * (memory.buffers - gradients) + max(pairs, 0.0)
    return Memory(memory.state, memory.batch * factor, buffers, memory.program)


def batch_rows(config: ConfigDict) -> int:
    """Rows of the global batch."""
    return int(config.data.batch_paired + config.data.batch_unpaired)


def row_bytes(config: ConfigDict) -> int:
    """Bytes of one row of the batch."""
    from mmclip_jax.text import prompts

    return config.model.image_size**2 + 9 * config.model.text.length + 16 + len(prompts.KINDS)


def pairs_bytes(config: ConfigDict, rows: float, chips: int) -> float:
    """Bytes on a chip of what the losses hold for pairs of rows; it grows with their square where nothing is chunked.

    The contrastive loss: [rows/chips, rows] for either direction, with targets and gradients. The local loss: the
    similarities of all drawn tokens to a chip's patches, and their gradient.
    """
    from mmclip_jax.objectives import LOGITS_BYTES

    one, chunk = 4.0 * rows * rows / chips, config.objective.contrastive.chunk
    if chunk >= 0:
        one = min(one, 4.0 * rows / chips * chunk if chunk else LOGITS_BYTES)
    local = 0.0
    if config.objective.local.weight:
        patches = (config.model.image_size // config.model.patch_size) ** 2
        local = 2 * 4.0 * rows / chips * patches * rows * config.objective.local.tokens
    return 6 * one + local


# ---------------------------------------------------------------------------------------------------------------------
# Collectives


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
        """Bytes that a chip sends in a step, in rings of its group (a reduction for everybody goes round twice)."""
        if self.operation == "collective-permute":
            return self.total
        if self.operation == "reduce-scatter":  # its result is the chip's share
            return self.total * (self.group - 1)
        return self.total * (2 if self.operation == "all-reduce" else 1) * (self.group - 1) / self.group


_OPERATION = re.compile(
    r" = (\(?.*?\)?) (all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|"
    r"collective-broadcast|send|recv)(-start)?\("
)
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]<=|mesh\[([^\]]*)\][^{]*?\{([^}]*)\})")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+[0-9]+\w*)\[([0-9,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|(?:true|false)_computation|branch_computations|called_computations)="
    r"(?:\{([^}]*)\}|(%?[\w.\-]+))"
)
_CONDITION = re.compile(r" while\(.*\bcondition=%?([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_BOUND = re.compile(r" s32\[\]\S* constant\((\d+)\)")


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation of an HLO text by its name, and the name of the entry."""
    lines: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[1]
            lines[name] = []
            if line.startswith("ENTRY"):
                entry = name
        elif name:
            lines[name].append(line)
    return lines, entry


def _repetitions(lines: Mapping[str, Sequence[str]], entry: str) -> dict[str, int]:
    """How often a step runs each computation.

    The layers are a loop. The compiler notes how often it turns, or else its condition compares with a constant.
    """
    callers: dict[str, list[tuple[str, int]]] = {}
    for caller, own in lines.items():
        for line in own:
            turns = 1
            if loop := _CONDITION.search(line):
                noted = _TRIPS.findall(line)
                bounds = [int(bound) for row in lines.get(loop[1], ()) for bound in _BOUND.findall(row)]
                turns = int(noted[0]) if noted else max(bounds, default=1)
            for several, single in _CALLED.findall(line):
                for name in (several or single).split(", "):
                    callers.setdefault(name.lstrip("%"), []).append((caller, turns))
    times = {entry: 1}

    def count(name: str) -> int:
        if name not in times:
            times[name] = sum(count(caller) * turns for caller, turns in callers.get(name, ()))
        return times[name]

    return {name: count(name) for name in lines}


def _group_size(line: str, chips: int) -> int:
    """How many chips do a collective together, by its replica groups: {{0,1},...}, [64,4]<=[256] or axes of a mesh."""
    found = _GROUPS.search(line)
    if found is None:
        return chips
    listed, sized, axes, taken = found.groups()
    if listed:
        return listed.count(",") + 1
    if sized:
        return int(sized)
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", axes))
    named = re.findall(r"'([^']+)'", taken)
    return math.prod(int(sizes[name]) for name in named) if named and ":" not in taken else chips


def _bare(shape: Iterable[int]) -> tuple[int, ...]:
    """A shape without its order and without axes of one: compilers transpose and reshape."""
    return tuple(sorted(size for size in shape if size != 1))


def _classifier(
    config: ConfigDict, weights: Collection[tuple[int, ...]], chips: int
) -> Callable[[str, str, tuple[int, ...], int], str]:
    """The function (operation, dtype, shape, bytes) -> what it carries, by docs/method.md, "Total".

    Parameters that the compiler pads are not recognised: under fsdp, those of widths that 16 x fsdp does not divide.
    """
    from mmclip_jax.objectives import chunk_of, columns_in_chunks
    from mmclip_jax.text import prompts

    rows, embed = batch_rows(config), config.model.embed_dim
    drawn = config.objective.local.tokens if config.objective.local.weight else 0
    parameters = {_bare(shape) for shape in weights}
    for name in ("image", "text", "image_decoder", "text_decoder"):  # attention's kernels, cut into heads
        width, heads = config.model[name].width, config.model[name].heads
        for shape in weights:
            parameters |= {
                _bare((*shape[:axis], heads, width // heads, *shape[axis + 1 :]))
                for axis, size in enumerate(shape)
                if size == width
            }
    own_rows, columns = rows // chips, (1, 2, len(prompts.KINDS))
    ring_rows = columns_in_chunks(own_rows, chunk_of(config.objective.contrastive.chunk, rows, chips))
    embeddings = {_bare((rows, embed)), _bare((chips, own_rows, embed))}
    ids = {_bare((*count, each)) for count in ((rows,), (chips, own_rows)) for each in columns}
    shares = (own_rows, ring_rows)
    own_embeddings = {_bare((count, embed)) for count in shares}
    own_ids = {_bare((count, each)) for count in shares for each in columns}
    if drawn:
        embeddings |= {_bare((rows, drawn, embed)), _bare((rows * drawn, embed)), _bare((rows * drawn,))}
        ids.add(_bare((rows, drawn)))

    def what(operation: str, dtype: str, shape: tuple[int, ...], size: int) -> str:
        own, is_float = _bare(shape), dtype in ("f32", "bf16")
        if operation not in ("all-gather", "all-reduce", "reduce-scatter", "collective-permute"):
            return FORBIDDEN
        if not own and operation == "all-reduce":
            return SCALARS
        to_chips = operation in ("reduce-scatter", "collective-permute")  # whose results are a chip's share
        if is_float and own in (embeddings | own_embeddings if to_chips else embeddings):
            return EMBEDDINGS
        if not is_float and own in (ids | own_ids if to_chips else ids):
            return IDS
        if is_float and own in parameters:
            if operation in ("all-reduce", "reduce-scatter"):
                return GRADIENTS
            if config.mesh.fsdp > 1:
                return PARAMETERS
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
    lines, entry = _computations(text)
    times = _repetitions(lines, entry)
    seen: set[tuple[str, ...]] = set()
    found: dict[tuple[str, str, int, int], list[tuple[str, int]]] = {}
    for name, own in lines.items():
        for line in own:
            operation = _OPERATION.search(line)
            if operation is None:
                continue
            arrays = _ARRAY.findall(operation[1])
            if operation[3] and operation[2] in ("all-gather", "collective-permute"):
                # What starts one returns its operands, its results, and for permutes two counters.
                counters = 2 if operation[2] == "collective-permute" else 0
                arrays = arrays[: len(arrays) - counters]
                arrays = arrays[len(arrays) // 2 :]
            # A TPU's compiler spreads a collective over several fusions; all of them name its channel.
            if channel := _CHANNEL.search(line):
                key = (channel[1], operation[2], *(f"{dtype}[{sizes}]" for dtype, sizes in arrays))
                if key in seen:
                    continue
                seen.add(key)
            for dtype, sizes in arrays:
                shape = tuple(int(size) for size in sizes.split(",") if size)
                size = _bytes_of(dtype) * math.prod(shape)
                # What nobody is seen to call may run after all.
                carried = what(operation[2], dtype, shape, size) if times[name] else FORBIDDEN
                kind = (carried, operation[2], max(times[name], 1), _group_size(line, chips))
                found.setdefault(kind, []).append((f"{dtype}[{sizes}]", size))
    collectives = [
        Collective(carried, name, tuple(array for array, _ in each), count, sum(size for _, size in each), group)
        for (carried, name, count, group), each in found.items()
    ]
    return sorted(collectives, key=lambda collective: -collective.total)


def _bytes_of(dtype: str) -> int:
    bits = re.search(r"\d+", dtype)
    return max(int(bits[0]) // 8, 1) if bits else 1  # pred


def parameter_shapes(params: Any) -> set[tuple[int, ...]]:
    """Shapes that a gradient or a gathered parameter may have: whole, a shard, all shards; of one layer of a stack."""
    import jax

    shapes: set[tuple[int, ...]] = set()
    for leaf in jax.tree.leaves(params):
        shard = leaf.sharding.shard_shape(leaf.shape)
        count = math.prod(leaf.shape) // max(math.prod(shard), 1)
        shapes |= {leaf.shape, leaf.shape[1:], shard, shard[1:], (count, *shard), (count, *shard[1:])}
    return shapes


# ---------------------------------------------------------------------------------------------------------------------
# By formula


def memory_by_formula(config: ConfigDict, parameters: int, rows: int, chips: int) -> Memory:
    """Bytes a chip for a global batch of `rows`, without compiling.

    State: float32 parameters, two moments, and the average. Buffers: gradients and updates in float32, and activations
    counted by hand: with `model.remat` the input of every layer, and the products of the largest layer twice over, for
    their gradients; without it the products of all layers.
    """
    model, objective = config.model, config.objective
    wide = 2 if model.dtype == "bfloat16" else 4
    patches, tokens = (model.image_size // model.patch_size) ** 2, model.text.length

    towers = [(model.image, patches, 0), (model.text, tokens, 0)]
    if objective.attmim.weight:
        towers += [(model.image_decoder, patches, tokens)]
        if objective.attmim.mask_at == "input":
            towers += [(model.image, patches, 0)]  # a second pass, over the visible patches
    if objective.entmlm.weight:
        towers += [(model.text, tokens, 0), (model.text_decoder, tokens, patches)]
    inputs, products = [], []
    for part, positions, context in towers:
        inputs.append(positions * part.width * wide * part.depth)
        layer = positions * (8 * part.width + 2 * part.mlp_dim) * wide
        products.append(layer + part.heads * positions * (positions + context) * (4 + wide))  # softmax is float32
    if model.remat:
        row = sum(inputs) + 2 * max(products)
    else:
        row = sum(layer * part.depth for layer, (part, _, _) in zip(products, towers, strict=True))
    if objective.entmlm.weight:
        row += 2 * 4 * objective.entmlm.slots * model.text.vocab_size  # logits and their gradient
    return Memory(
        4.0 * parameters * (4 if config.optimizer.ema else 3) / config.mesh.fsdp,
        rows / chips * row_bytes(config),
        8.0 * parameters / config.mesh.fsdp
        + rows / chips / config.optimizer.accumulate * row
        + pairs_bytes(config, rows, chips),
    )


def collectives_by_formula(config: ConfigDict, parameters: int, chips: int) -> list[Collective]:
    """The gathers and reductions that docs/method.md allows, each done once.

    Under fsdp gradients are reduced and scattered in groups that share the state, then summed over these groups.
    """
    rows, embed, fsdp = batch_rows(config), config.model.embed_dim, config.mesh.fsdp

    def one(what: str, operation: str, dtype: str, *shape: int, times: int = 1, group: int = chips) -> Collective:
        array = f"{dtype}[{','.join(map(str, shape))}]"
        return Collective(what, operation, (array,), times, 4 * math.prod(shape), group)

    found = [
        one(EMBEDDINGS, "all-gather", "f32", rows, embed, times=2),
        one(EMBEDDINGS, "reduce-scatter", "f32", rows // chips, embed, times=2),
        one(IDS, "all-gather", "s32", rows, 2),
        one(GRADIENTS, "all-reduce", "f32", parameters // fsdp, group=chips // fsdp),
    ]
    if config.objective.local.weight:
        drawn = (rows, config.objective.local.tokens, embed)
        found += [one(EMBEDDINGS, "all-gather", "f32", *drawn), one(EMBEDDINGS, "all-reduce", "f32", *drawn)]
    if fsdp > 1:
        found.append(one(PARAMETERS, "all-gather", "f32", parameters, times=2, group=fsdp))  # forward and backward
        found.append(one(GRADIENTS, "reduce-scatter", "f32", parameters // fsdp, group=fsdp))
    return sorted(found, key=lambda collective: -collective.total)


# ---------------------------------------------------------------------------------------------------------------------
# The plan


def with_batch(config: ConfigDict, rows: int, chips: int) -> ConfigDict:
    """The settings with a global batch of `rows`, its parts in the recipe's ratio as near as the chips allow.

    Raises:
      UserError: no such split.
    """
    config = config.copy_and_resolve_references()
    paired, unpaired, accumulate = config.data.batch_paired, config.data.batch_unpaired, config.optimizer.accumulate
    chunk, least = chips * accumulate, (paired > 0) + (unpaired > 0)
    if not least:
        raise UserError("data.batch_paired and data.batch_unpaired are both 0")
    chunks = rows // chunk
    if rows % chunk or chunks < least:
        near = max(chunks, least) * chunk
        raise UserError(
            f"a global batch of {rows} rows does not divide over {chips} chips (x optimizer.accumulate={accumulate}): "
            f"take {near}" + (f" or {near + chunk}" if near < rows else "")
        )
    share = round(chunks * paired / (paired + unpaired))
    share = min(max(share, int(paired > 0)), chunks - int(unpaired > 0))
    config.data.update({"batch_paired": share * chunk, "batch_unpaired": (chunks - share) * chunk})
    return config


@dataclasses.dataclass(frozen=True)
class Point:
    """One global batch: the settings, bytes a chip, FLOPs of a step, seconds of products, memory traffic and links."""

    config: ConfigDict
    memory: Memory
    work: Mapping[str, float]
    products: float
    traffic: float
    links: float

    @property
    def rows(self) -> int:
        """Of the global batch."""
        return batch_rows(self.config)

    @property
    def alone(self) -> float:
        """Seconds of a step whose chips need not talk to each other."""
        return max(self.products, self.traffic)

    @property
    def hidden(self) -> float:
        """Seconds if all communication goes on beside the computing."""
        return max(self.alone, self.links)

    @property
    def exposed(self) -> float:
        """Seconds if none does."""
        return self.alone + self.links


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `make_plan` found.

    asked: the batch that was asked for; recipe: the config's own, None where it does not divide over the chips;
    largest: the largest that fits by the estimate, None where none does. compiled: with what, "" if by formula. axes:
    sizes that axes of parameters have.
    """

    topology: Topology
    parameters: int
    collectives: Sequence[Collective]
    asked: Point
    recipe: Point | None
    largest: Point | None
    compiled: str
    axes: Collection[int] = ()

    @property
    def fits(self) -> bool:
        """Whether the batch that was asked for fits into the chips' memory."""
        return self.asked.memory.total <= self.topology.chip.memory

    @property
    def forbidden(self) -> list[Collective]:
        """The collectives that docs/method.md does not allow."""
        return [collective for collective in self.collectives if collective.what == FORBIDDEN]

    def check(self) -> None:
        """Nothing if the step fits and its collectives are those that it may have.

        Raises:
          DoesNotFitError: they are not; the message names the remedy.
        """
        if not self.fits:
            memory, capacity = self.asked.memory.total / 1e9, self.topology.chip.memory / 1e9
            raise DoesNotFitError(
                f"the step needs {memory:.1f} GB a chip, {self.topology.kind} has {capacity:.0f}: {_REMEDY}"
            )
        if self.forbidden:
            names = ", ".join(f"{each.operation} of {each.arrays[0]}" for each in self.forbidden)
            raise DoesNotFitError(f"the compiled step has collectives that docs/method.md does not allow: {names}")

    def __str__(self) -> str:
        return "\n".join([*self._head(), "", *self._table(), "", *self._communication(), "", *self._notes()])

    def _head(self) -> list[str]:
        config, chips = self.asked.config, self.topology.chips
        how = f"compiled by {self.compiled}" if self.compiled else "by formula; nothing was compiled"
        return [
            f"{self.topology.text}: {chips} chips as data {chips // config.mesh.fsdp} x fsdp {config.mesh.fsdp}; {how}",
            f"{self.parameters:,} parameters; {config.model.dtype}; remat {'on' if config.model.remat else 'off'}; "
            f"accumulate {config.optimizer.accumulate}; fits: {'yes' if self.fits else 'NO'}",
        ]

    def _table(self) -> list[str]:
        chips, chip = self.topology.chips, self.topology.chip
        points = {"asked": self.asked, "recipe": self.recipe, "largest that fits": self.largest}
        shown = {name: point for name, point in points.items() if point is not None}
        lines = [f"{'':34}" + "".join(f"{name:>18}" for name in shown)]

        def add(name: str, value: Callable[[Point], str]) -> None:
            lines.append(f"{name:34}" + "".join(f"{value(point):>18}" for point in shown.values()))

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
        add("a step at best: products", lambda p: f"{p.products * 1e3:,.2f} ms")
        add("  memory traffic", lambda p: f"{p.traffic * 1e3:,.2f} ms")
        add("  communication", lambda p: f"{p.links * 1e3:,.2f} ms")
        add("  all, communication hidden", lambda p: f"{p.hidden * 1e3:,.2f} ms")
        add("  all, communication not hidden", lambda p: f"{p.exposed * 1e3:,.2f} ms")
        add("scaling efficiency", lambda p: f"{p.alone / p.exposed:.0%} to {p.alone / p.hidden:.0%}")
        add("images/s at most", lambda p: f"{p.rows / p.hidden:,.0f}")
        return lines

    def _communication(self) -> list[str]:
        lines = ["collectives of a step" + ("" if self.compiled else ", as docs/method.md has them")]
        for collective in self.collectives:
            arrays = collections.Counter(collective.arrays)
            named = ", ".join(f"{count} {array}" for array, count in arrays.items())
            if len(arrays) > 3:
                named = f"{len(collective.arrays)} arrays"
            lines.append(
                f"  {collective.total / 1e6:10.3f} MB  {collective.operation:18} x{collective.times:<3} "
                f"{collective.what}: {named}"
            )
        if self.compiled:
            bad = sum(len(collective.arrays) for collective in self.forbidden)
            lines.append(f"  {bad} arrays that docs/method.md does not allow" if bad else "  nothing else")
        return lines

    def _notes(self) -> list[str]:
        chip, notes = self.topology.chip, []
        if self.recipe is None:
            notes.append(f"The recipe's batch does not divide over {self.topology.chips} chips.")
        if self.largest is None:
            notes.append("No batch fits: shard the state (--config.mesh.fsdp), or take larger chips.")
        notes.append(
            f"A chip: {chip.peak / 1e12:.0f} TFLOP/s bfloat16, {chip.memory / 1e9:.0f} GB at "
            f"{chip.bandwidth / 1e9:,.0f} GB/s, sends {self.topology.bandwidth(self.topology.chips) / 1e9:.0f} GB/s "
            f"({chip.source})."
        )
        if self.compiled:
            notes.append(
                "Memory: the compiler's for the batch asked for. The others are estimates from it, as if all buffers "
                "but the gradients grew with the rows: too much for a larger batch, too little for a smaller one."
            )
        else:
            notes.append("Memory is counted by hand; expect it to be right to a factor of two.")
        notes.append(
            "Times: matrix products, recomputed ones too, by mmclip_jax/plan/flops.py over the peak; state and buffers "
            "read and written once; collectives in rings over the chips that do them together. "
            + ("No step is faster, real ones are slower. " if self.compiled else "As rough as the memory. ")
            + "Efficiency: against chips that need not talk, if communication is exposed and if it is hidden."
        )
        if self.compiled and self.asked.rows in self.axes:
            notes.append(
                f"The batch is as long as an axis of the parameters ({self.asked.rows}): what carries rows cannot be "
                "told from what carries gradients. Plan another batch to see that nothing else is sent."
            )
        if self.compiled and any(c.what in (EMBEDDINGS, IDS) and c.operation == "all-reduce" for c in self.collectives):
            notes.append(
                "An all-reduce of embeddings or ids sums their gradients, or is a gather: the compiler lets each chip "
                "add its own rows to zeros."
            )
        return [textwrap.fill(note, 118, break_long_words=False, break_on_hyphens=False) for note in notes]


def make_plan(config: ConfigDict, topology_text: str, rows: int | None = None) -> Plan:
    """Plans a run on a topology.

    Args:
      config: a run's settings; its batch sizes are the recipe's, and give the ratio of the parts.
      topology_text: see `parse_topology`.
      rows: the global batch to plan for; None: the recipe's.

    Raises:
      UserError: an unknown topology, libtpu missing, a batch that does not divide.
    """
    from mmclip_jax.text.tokenizer import load_tokenizer

    topology = parse_topology(topology_text)
    chips = topology.chips
    recipe = config.copy_and_resolve_references()
    tokenizer = load_tokenizer(recipe.data.tokenizer or None)
    recipe.model.text.vocab_size = recipe.model.text.vocab_size or tokenizer.vocab_size
    if recipe.mesh.fsdp < 1 or chips % recipe.mesh.fsdp:
        raise UserError(f"mesh.fsdp={recipe.mesh.fsdp} does not divide the {chips} chips of {topology.text}")
    check.check_values(recipe)
    config = with_batch(recipe, batch_rows(recipe) if rows is None else rows, chips)
    check.check_config(config, chips)

    if topology.is_tpu:
        devices = tpu_devices(topology)
        logging.info("compiling the step for %s; that of ViT-B/16 takes 8 to 30 minutes", topology.text)
        start = time.perf_counter()
        compiled, state = compile_step(config, devices, tokenizer.mask_id)
        logging.info("compiled in %.0f s", time.perf_counter() - start)
        parameters = count_parameters(state.params)
        memory = compiled_memory(compiled, state)
        shapes = parameter_shapes(state.params)
        axes = {size for shape in shapes for size in shape}
        collectives = collectives_of(compiled.as_text() or "", config, shapes, chips)
    else:
        parameters = count_parameters(_abstract_params(config))
        memory, axes = None, set()
        collectives = collectives_by_formula(config, parameters, chips)

    def memory_at(rows: int) -> Memory:
        if memory is None:
            return memory_by_formula(config, parameters, rows, chips)
        return memory if rows == batch_rows(config) else scaled_memory(memory, config, parameters, rows, chips)

    def point(settings: ConfigDict) -> Point:
        grown = batch_rows(settings) / batch_rows(config)
        links = sum(
            c.sent * (grown if c.what in (EMBEDDINGS, IDS) else 1.0) / topology.bandwidth(c.group) for c in collectives
        )
        return _point(settings, memory_at(batch_rows(settings)), links, topology)

    chunk = chips * recipe.optimizer.accumulate
    recipe_divides = recipe.data.batch_paired % chunk == 0 == recipe.data.batch_unpaired % chunk
    most = largest_batch(config, topology, memory_at)
    return Plan(
        topology,
        parameters,
        collectives,
        point(config),
        point(recipe) if recipe_divides else None,
        point(with_batch(recipe, most, chips)) if most else None,
        _compiler() if topology.is_tpu else "",
        axes,
    )


def _point(settings: ConfigDict, memory: Memory, links: float, topology: Topology) -> Point:
    """links: seconds of a step in which a chip sends."""
    chip, work = topology.chip, flops.train_step_flops(settings)
    return Point(
        settings,
        memory,
        work,
        sum(work.values()) / topology.chips / chip.peak,
        (2 * (memory.state + memory.buffers) + memory.batch) / chip.bandwidth,
        links,
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


def count_parameters(params: Any) -> int:
    """Numbers in a tree of arrays or shapes."""
    import jax

    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _abstract_params(config: ConfigDict) -> Any:
    import jax

    from mmclip_jax.models.mmclip import build_model, init_params

    return jax.eval_shape(lambda: init_params(build_model(config.model), config.model, 0))


def _compiler() -> str:
    from importlib import metadata

    known = []
    for name in ("jax", "libtpu"):
        try:
            known.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(known)
