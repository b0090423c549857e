"""Seconds of a step at best: products over the peak, memory traffic and links over their bandwidths."""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from mmclip_jax import flops
from mmclip_jax.data import batch
from mmclip_jax.plan.memory import Memory
from mmclip_jax.plan.topologies import Topology


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
        return batch.total_rows(self.config)

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


def point(settings: ConfigDict, memory: Memory, links: float, topology: Topology) -> Point:
    """The figures of one batch; links: seconds of a step in which a chip sends."""
    chip, work = topology.chip, flops.train_step_flops(settings)
    return Point(
        settings,
        memory,
        work,
        sum(work.values()) / topology.chips / chip.peak,
        (2 * (memory.state + memory.buffers) + memory.batch) / chip.bandwidth,
        links,
    )
