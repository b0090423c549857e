"""Chips by their makers' figures, and how many of them a run has: a slice of TPUs or nodes of GPUs."""

import dataclasses
import math
import re

from mmclip_jax import flops
from mmclip_jax.errors import UserError

GPUS_A_NODE = 8


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one chip.

    device: its name in `flops.PEAK_FLOPS`; memory: bytes; bandwidth: of its memory, bytes/s; links: bytes/s that it can
    send to the chips of its slice or node, all links together; network: bytes/s that a GPU can send out of its node;
    pod: chips of the largest slice; axes: of the torus. The last two are 0 for GPUs. float32: FLOP/s of a
    GPU's products in full float32.
    """

    device: str
    memory: float
    bandwidth: float
    links: float
    source: str
    network: float = 0.0
    pod: int = 0
    axes: int = 0
    float32: float = 0.0

    @property
    def peak(self) -> float:
        """FLOP/s of dense bfloat16 products."""
        return flops.peak_flops(self.device) or 0.0

    def peak_of(self, precision: str) -> float:
        """FLOP/s of products: "" of bfloat16; of float32 "default", "high" or "highest", as JAX calls the precision.

        On GPUs the first two are TensorFloat-32, at half the rate of bfloat16. TPUs make them of bfloat16 products: of
        one, three or six.
        """
        if self.axes:
            return self.peak / {"": 1, "default": 1, "high": 3, "highest": 6}[precision]
        if precision == "highest":
            return self.float32
        return self.peak / 2 if precision and self.peak > self.float32 else self.peak


_TPU = "docs.cloud.google.com/tpu/docs/{}; sending: half of the bidirectional figure, in rings that close"
_GPU = "NVIDIA's data sheet of the {}; sending: half of the bidirectional NVLink figure; out of a node {}"
CHIPS = {
    "v5e": Chip("tpu v5e", 16e9, 800e9, 200e9, _TPU.format("v5e"), pod=256, axes=2),
    "v5p": Chip("tpu v5p", 95e9, 2765e9, 600e9, _TPU.format("v5p"), pod=6144, axes=3),
    "v6e": Chip("tpu v6e", 32e9, 1600e9, 400e9, _TPU.format("v6e"), pod=256, axes=2),
    "a100": Chip(
        "a100", 80e9, 2039e9, 300e9, _GPU.format("A100 SXM 80 GB", "200 Gbit/s a GPU"), network=25e9, float32=19.5e12
    ),
    "h100": Chip("h100", 80e9, 3350e9, 450e9, _GPU.format("H100 SXM", "400 Gbit/s a GPU"), network=50e9, float32=67e12),
    "h200": Chip(
        "h200", 141e9, 4800e9, 450e9, _GPU.format("H200 SXM", "400 Gbit/s a GPU"), network=50e9, float32=67e12
    ),
    "l40s": Chip(
        "l40s",
        48e9,
        864e9,
        32e9,
        "NVIDIA's data sheet of the L40S; sending: PCIe 4.0, one way; out of a node 100 Gbit/s a GPU",
        network=12.5e9,
        float32=91.6e12,
    ),
    "v100": Chip(
        "v100",
        32e9,
        900e9,
        150e9,
        _GPU.format("V100 SXM2 32 GB", "100 Gbit/s a GPU; the peak is that of float32, as it has no bfloat16 products"),
        network=12.5e9,
        float32=15.7e12,
    ),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of TPUs ("v5e:16x16"), or GPUs of a node x nodes ("h100:8x4"; "h100:8" is one node)."""

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
        """Whether it is a slice of TPUs."""
        return self.chip.axes > 0

    def bandwidth(self, group: int) -> float:
        """Bytes/s at which a chip sends in rings of so many chips at best.

        Those of GPUs leave a node through all its cards where a group is larger than a node.
        """
        if self.is_tpu or group <= self.shape[0]:
            return self.chip.links
        return min(self.chip.links, self.shape[0] * self.chip.network)


def parse_topology(text: str) -> Topology:
    """Reads "v5e:16x16", "v5p:4x4x8", "h100:8x4" or "h100:8".

    Raises:
      UserError: no such chip or shape; the message says what there is.
    """
    found = re.fullmatch(r"(\w+):([1-9]\d{0,5}(?:x[1-9]\d{0,5}){0,2})", text.lower())
    if found is None or found[1] not in CHIPS:
        raise UserError(
            f"--topology {text!r} is not CHIP:AxB or CHIP:AxBxC with a chip of {', '.join(CHIPS)}; for GPUs it is GPUs "
            "of a node x nodes; e.g. v5e:16x16, v5p:4x4x8, h100:8x4"
        )
    shape = tuple(int(size) for size in found[2].split("x"))
    if len(shape) == 1 and not CHIPS[found[1]].axes:
        shape = (*shape, 1)
    topology = Topology(text.lower(), found[1], shape)
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
