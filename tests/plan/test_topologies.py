"""Names of slices and clusters, and what they hold."""

import re

import pytest

from mmclip_jax.errors import UserError
from mmclip_jax.plan import topologies


def test_topologies_are_read() -> None:
    for text, chips, bandwidth in (
        ("v5e:16x16", 256, 200e9),
        ("v5p:4x4x8", 128, 600e9),
        ("V6E:2x2", 4, 400e9),
        ("h100:8x1", 8, 450e9),  # NVLink
        ("h100:8x4", 32, 400e9),  # eight network cards of 50 GB/s
        ("h100:2x4", 8, 100e9),
    ):
        topology = topologies.parse_topology(text)
        assert (topology.chips, topology.bandwidth(chips)) == (chips, bandwidth), text
        assert topology.is_tpu == text.lower().startswith("v")
    assert all(chip.peak > 1e13 for chip in topologies.CHIPS.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v9:2x2", "a chip of v5e, v5p"),
        ("v5e", "is not CHIP:AxB"),
        ("v5e:0x4", "is not CHIP:AxB"),
        ("v5e:4x4x4", "v5e takes 2 sizes, not 3"),
        ("v5p:4x4", "v5p takes 3 sizes, not 2"),
        ("h100:8x2x2", "h100 takes 2 sizes"),
        ("v5e:32x16", "512 chips, but the largest slice has 256"),
    ],
)
def test_unknown_topologies_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        topologies.parse_topology(text)
