"""Seconds of a step at best: by the kernels of the compiled program, or by formula.

By formula: products over the peak, state and buffers over the memory's bandwidth once each, collectives over the links.
"""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from mmclip_jax import flops
from mmclip_jax.data import batch
from mmclip_jax.plan.memory import Memory
from mmclip_jax.plan.topologies import Topology


@dataclasses.dataclass(frozen=True)
class Counted:
    """Seconds of a step that was compiled: {kind of kernel: seconds}, and of communication that it hides."""

    shares: Mapping[str, float]
    beside: float


@dataclasses.dataclass(frozen=True)
class Point:
    """One global batch: the settings, bytes a chip, FLOPs of a step, seconds of products, memory traffic and links.

    counted: what the kernels say; None where nothing was compiled.
    """

    config: ConfigDict
    memory: Memory
    work: Mapping[str, float]
    products: float
    traffic: float
    links: float
    counted: Counted | None = None

    @property
    def rows(self) -> int:
        """Of the global batch."""
        return batch.total_rows(self.config)

    @property
    def alone(self) -> float:
        """Seconds of a step whose chips need not talk to each other."""
        if self.counted:
            return sum(self.counted.shares.values())
        return max(self.products, self.traffic)

    @property
    def hidden(self) -> float:
        """Seconds if all communication goes on beside the computing."""
        return max(self.alone, self.links)

    @property
    def exposed(self) -> float:
        """Seconds if none does."""
        return self.alone + self.links

    @property
    def waiting(self) -> float:
        """Seconds of communication that nothing hides; all of it, where nothing was compiled."""
        return self.links - min(self.counted.beside, self.links) if self.counted else self.links

    @property
    def step(self) -> float:
        """Seconds of a step at best."""
        return self.alone + self.waiting

    @property
    def hours(self) -> float:
        """Of all steps of the run at best, without evaluation and checkpoints."""
        return self.config.train.steps * self.step / 3600


def point(
    settings: ConfigDict, memory: Memory, links: float, topology: Topology, counted: Counted | None = None
) -> Point:
    """The figures of one batch; links: seconds of a step in which a chip sends."""
    chip, work = topology.chip, flops.train_step_flops(settings)
    return Point(
        settings,
        memory,
        work,
        sum(work.values()) / topology.chips / chip.peak,
        (2 * (memory.state + memory.buffers) + memory.batch) / chip.bandwidth,
        links,
        counted,
    )
