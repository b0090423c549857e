"""What a run needs of a TPU slice or a GPU cluster: memory, traffic and time of a step, before a chip is rented.

The run's own step is compiled on this machine's CPU: memory, collectives and kernels are the compiler's. The formula is
the fast first look, and all there is where no compiler is. Times are rooflines from published figures: no step is
faster, real ones are slower.
"""

import dataclasses
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from mmclip_jax import check
from mmclip_jax.data import batch
from mmclip_jax.errors import DoesNotFitError, UserError
from mmclip_jax.models.mmclip import build_model, init_params
from mmclip_jax.plan import compiling, kernels, roofline
from mmclip_jax.plan.collectives import (
    EMBEDDINGS,
    FORBIDDEN,
    IDS,
    Collective,
    bare,
    bare_parameters,
    collectives_by_formula,
    collectives_of,
    parameter_shapes,
    sending,
)
from mmclip_jax.plan.memory import (
    REMEDY,
    Memory,
    compiled_memory,
    count_parameters,
    largest_batch,
    memory_by_formula,
    scaled_memory,
    state_bytes,
)
from mmclip_jax.plan.roofline import Point
from mmclip_jax.plan.topologies import Topology, parse_topology
from mmclip_jax.text.tokenizer import load_tokenizer
from mmclip_jax.train import start


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `make_plan` found.

    asked: the batch that was asked for; recipe: the config's own, None where it does not divide over the chips;
    largest: the largest that fits by the estimate, None where none does. compiled: with what, "" if by formula.
    unsharded: bytes of parameters and optimizer a chip without `mesh.shard_optimizer`. axes: sizes that axes of
    parameters have.
    """

    topology: Topology
    parameters: int
    collectives: Sequence[Collective]
    asked: Point
    recipe: Point | None
    largest: Point | None
    compiled: str
    unsharded: float
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
                f"the step needs {memory:.1f} GB a chip, {self.topology.kind} has {capacity:.0f}: {REMEDY}"
            )
        if self.forbidden:
            names = ", ".join(f"{each.operation} of {each.arrays[0]}" for each in self.forbidden)
            raise DoesNotFitError(f"the compiled step has collectives that docs/method.md does not allow: {names}")


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
class _Found:
    """What is known of a step; params: shapes; counted(grown): seconds with `grown` times the rows.

    memory and counted are None where nothing was compiled.
    """

    params: Any
    collectives: Sequence[Collective]
    memory: Memory | None = None
    axes: Collection[int] = ()
    counted: Callable[[float], roofline.Counted] | None = None

    def memory_at(self, config: ConfigDict, rows: int, topology: Topology) -> Memory:
        """The memory of `rows` rows; config: with the batch that was compiled."""
        if self.memory is None:
            return memory_by_formula(config, self.params, rows, topology)
        if rows == batch.total_rows(config):
            return self.memory
        return scaled_memory(self.memory, config, self.params, rows, topology)


def _compiled(config: ConfigDict, topology: Topology, mask_id: int) -> _Found:
    devices = compiling.devices_of(topology)
    minutes = "8 to 30 minutes" if topology.is_tpu else "one to five minutes"
    logging.info("compiling the step for %s; that of ViT-B/16 takes %s", topology.text, minutes)
    start = time.perf_counter()
    compiled, state = compiling.compile_step(config, devices, mask_id)
    logging.info("compiled in %.0f s", time.perf_counter() - start)
    shapes, text = parameter_shapes(state.params), compiled.as_text() or ""
    return _Found(
        state.params,
        collectives_of(text, config, shapes, topology.chips),
        compiled_memory(compiled, state),
        {size for shape in shapes for size in shape},
        _count_kernels(text, topology, bare_parameters(config, shapes)),
    )


def _count_kernels(
    text: str, topology: Topology, parameters: Collection[tuple[int, ...]]
) -> Callable[[float], roofline.Counted]:
    # By shape alone: rows that look like a parameter, as [256,768] may, count as one. They are few and small.
    found = kernels.kernels(text, lambda dtype, shape: dtype in ("f32", "bf16") and bare(shape) in parameters)
    sent = sending(text, topology)

    def counted(grown: float) -> roofline.Counted:
        hidden = kernels.hidden_seconds(text, found, topology.chip, sent, grown)
        return roofline.Counted(kernels.shares(found, topology.chip, grown), hidden)

    return counted


def _counted(config: ConfigDict, topology: Topology) -> _Found:
    params = abstract_params(config)
    return _Found(params, collectives_by_formula(config, count_parameters(params), topology.chips))


def make_plan(
    config: ConfigDict,
    topology_text: str,
    rows: int | None = None,
    given: Collection[str] = (),
    formula: bool = False,
) -> Plan:
    """Plans a run on a topology.

    Args:
      config: a run's settings; its batch sizes are the recipe's, and give the ratio of the parts.
      topology_text: see `parse_topology`.
      rows: the global batch to plan for; None: the recipe's.
      given: names of settings that the user set, which weights of `config.init` do not change.
      formula: nothing is compiled; so it is for GPUs where their compiler is missing.

    Raises:
      UserError: an unknown topology, libtpu missing, a batch that does not divide, or weights that cannot be read.
    """
    topology = parse_topology(topology_text)
    chips = topology.chips
    recipe = config.copy_and_resolve_references()
    batch.settle_augmentation(recipe, accelerated=True)
    begun = start.prepare(recipe, given=given)  # settings of the model follow from the weights of `init`
    tokenizer = (begun and begun.tokenizer) or load_tokenizer(recipe.data.tokenizer or None)
    recipe.model.text.vocab_size = recipe.model.text.vocab_size or tokenizer.vocab_size
    if recipe.mesh.fsdp < 1 or chips % recipe.mesh.fsdp:
        raise UserError(f"mesh.fsdp={recipe.mesh.fsdp} does not divide the {chips} chips of {topology.text}")
    check.check_values(recipe)
    config = with_batch(recipe, batch.total_rows(recipe) if rows is None else rows, chips)
    check.check_config(config, chips)
    compiles = not formula and compiling.can_compile(topology)
    found = _compiled(config, topology, tokenizer.mask_id) if compiles else _counted(config, topology)

    def memory_at(rows: int) -> Memory:
        return found.memory_at(config, rows, topology)

    def at(settings: ConfigDict) -> Point:
        grown = batch.total_rows(settings) / batch.total_rows(config)
        links = sum(
            each.sent * (grown if each.what in (EMBEDDINGS, IDS) else 1.0) / topology.bandwidth(each.group)
            for each in found.collectives
        )
        counted = found.counted and found.counted(grown)
        return roofline.point(settings, memory_at(batch.total_rows(settings)), links, topology, counted)

    chunk = chips * recipe.optimizer.accumulate
    recipe_divides = recipe.data.batch_paired % chunk == 0 == recipe.data.batch_unpaired % chunk
    most = largest_batch(config, topology, memory_at)
    return Plan(
        topology,
        count_parameters(found.params),
        found.collectives,
        at(config),
        at(recipe) if recipe_divides else None,
        at(with_batch(recipe, most, chips)) if most else None,
        compiling.compiler(topology) if compiles else "",
        state_bytes(found.params, config, chips, shard_optimizer=False),
        found.axes,
    )


def abstract_params(config: ConfigDict) -> Any:
    """Shapes and dtypes of the model's parameters."""
    return jax.eval_shape(lambda: init_params(build_model(config.model), config.model, 0))
