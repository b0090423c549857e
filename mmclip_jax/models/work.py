"""Floating-point operations of matrix products, by formula: 2·m·k·n for [m,k]·[k,n].

Elementwise work, softmax, norms, sorting and embedding look-ups are not counted. One transformer layer of width W, its
MLP of width M, on n positions with a context of c:

    self-attention    8·n·W² + 4·n²·W
    cross-attention   4·n·W² + 4·c·W² + 4·n·c·W
    MLP               4·n·W·M

The backward pass costs twice the forward pass, except where a gradient stops.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Work:
    """FLOPs: forward; backward; again: the forward work that rematerialised layers repeat in the backward pass."""

    forward: float = 0.0
    backward: float = 0.0
    again: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.forward + other.forward, self.backward + other.backward, self.again + other.again)

    def __mul__(self, factor: float) -> "Work":
        return Work(self.forward * factor, self.backward * factor, self.again * factor)

    @property
    def once(self) -> float:
        """Forward and backward, without what is repeated."""
        return self.forward + self.backward


NOTHING = Work()


def product(m: float, k: float, n: float, gradients: int = 2) -> Work:
    """[m,k]·[k,n]; gradients: towards how many of the two factors there is one."""
    flops = 2.0 * m * k * n
    return Work(flops, gradients * flops)


def head(rows: float, width: int, embed: int, hidden: int = 0, gradients: int = 2) -> Work:
    """A projection [rows,width] -> [rows,embed], through `hidden` values a row where that is not 0."""
    if not hidden:
        return product(rows, width, embed, gradients)
    return product(rows, width, hidden, gradients) + product(rows, hidden, embed, gradients)


def layers(part: Mapping[str, int], positions: int, context: int = 0, remat: bool = False) -> Work:
    """The layers of an encoder or decoder for one row.

    Args:
      part: width, depth, mlp_dim.
      positions: n.
      context: c of the cross-attention; 0 if there is none.
      remat: whether a layer's forward pass is repeated. Its last product is not: no gradient needs the result.
    """
    width, mlp = part["width"], part["mlp_dim"]
    layer = product(positions, width, 4 * width) + product(positions, width, positions) * 2
    if context:
        layer += product(positions, width, 2 * width) + product(context, width, 2 * width)
        layer += product(positions, width, context) * 2
    layer += product(positions, width, mlp) * 2
    again = layer.forward - product(positions, mlp, width).forward if remat else 0.0
    return Work(layer.forward, layer.backward, again) * part["depth"]


def conv_stem(image_size: int, patch_size: int, width: int) -> Work:
    """The convolutions that halve an image down to its patches, for one row; padding counts as pixels."""
    stages = patch_size.bit_length() - 1
    work, channels_in = NOTHING, 1
    for stage in range(stages):
        side, channels = image_size >> (stage + 1), width >> (stages - 1 - stage)
        work += product(side * side, 9 * channels_in, channels, gradients=2 if stage else 1)
        channels_in = channels
    return work + product((image_size >> stages) ** 2, width, width)
