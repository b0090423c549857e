"""ConvNeXt (Liu et al. 2022, "A ConvNet for the 2020s"): an image encoder without attention."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmclip_jax import sharding
from mmclip_jax.models import work
from mmclip_jax.models.encoders.base import Stage
from mmclip_jax.models.transformer import ACTIVATIONS, OURS, Dtype, Variant, layer_norm

STEM = 4  # pixels a side of the first patches; each later stage halves the grid
_WINDOW = 7
_INIT = nn.initializers.truncated_normal(0.02)
_FIRST_SCALE = 1e-6  # a block starts close to the identity


class ConvBlock(nn.Module):
    """x [B,H,W,D] -> x + scale · MLP(norm(depthwise convolution of x)), and None (for the scan)."""

    variant: Variant = OURS
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        width = x.shape[-1]
        y = nn.Conv(
            width,
            (_WINDOW, _WINDOW),
            feature_group_count=width,
            dtype=self.dtype,
            kernel_init=_INIT,
            name="depthwise",
        )(x)
        y = layer_norm(y, "norm", self.variant.epsilon)
        y = nn.Dense(4 * width, dtype=self.dtype, kernel_init=_INIT, name="mlp_in")(y)
        y = ACTIVATIONS[self.variant.activation](y)
        y = nn.Dense(width, dtype=self.dtype, kernel_init=_INIT, name="mlp_out")(y)
        scale = self.param("scale_mlp", nn.initializers.constant(_FIRST_SCALE), (width,))
        return sharding.shard_rows(x + y * scale.astype(y.dtype)[None, None, None]), None


class ConvNeXt(nn.Module):
    """V = IE(x): images [B,S,S,C] -> (features [B,N,D] of the last stage's grid, None, None).

    depths: blocks of each stage; width: D, of the last stage, each stage before is half as wide as the next. A layer
    norm follows each feature. A feature sees far beyond its patch, so patches cannot be left out.
    """

    depths: tuple[int, ...]
    width: int
    variant: Variant = OURS
    dtype: Dtype = jnp.float32
    remat: bool = False
    unroll: bool = False
    can_drop_tokens: ClassVar[bool] = False
    has_class_token: ClassVar[bool] = False
    gives_attention: ClassVar[bool] = False

    @property
    def patch_size(self) -> int:
        """Pixels a side of the patch that a feature stands for."""
        return STEM << (len(self.depths) - 1)

    @property
    def _widths(self) -> list[int]:
        return [self.width >> later for later in reversed(range(len(self.depths)))]

    @nn.compact
    def __call__(self, images: jax.Array, visible: jax.Array | None = None) -> tuple[jax.Array, None, None]:
        """visible: None, as patches cannot be left out."""
        if visible is not None:
            raise ValueError("a ConvNeXt cannot leave patches out")
        block = nn.remat(ConvBlock, prevent_cse=self.unroll) if self.remat else ConvBlock  # as in transformer.py
        x = images.astype(self.dtype)
        for stage, (depth, width) in enumerate(zip(self.depths, self._widths, strict=True)):
            if stage:
                x = layer_norm(x, f"down_norm_{stage}", self.variant.epsilon)
            size = 2 if stage else STEM
            name = f"down_{stage}" if stage else "stem"
            x = nn.Conv(width, (size, size), (size, size), "VALID", dtype=self.dtype, kernel_init=_INIT, name=name)(x)
            if not stage:
                x = layer_norm(x, "stem_norm", self.variant.epsilon)
            layers = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=depth,
                unroll=depth if self.unroll else 1,
            )(self.variant, self.dtype, name=f"layers_{stage}")
            x, _ = layers(sharding.shard_rows(x))
        x = layer_norm(x, "norm", self.variant.epsilon)
        return x.reshape(x.shape[0], -1, self.width), None, None

    @property
    def layers(self) -> int:
        """The blocks of all stages."""
        return sum(self.depths)

    def layer_numbers(self, path: str) -> np.ndarray:
        """As `base.ImageEncoder.layer_numbers`; between two stages is the layer of the next block."""
        first = np.cumsum([1, *self.depths])
        name = path.partition("/")[0]
        kind, _, stage = name.rpartition("_")
        if kind == "layers":
            return np.arange(first[int(stage)], first[int(stage) + 1])
        if kind in ("down", "down_norm"):
            return np.asarray(first[int(stage)])
        return np.asarray(first[-1] if name == "norm" else 0)

    def stages(self, image_size: int, seen: int) -> list[Stage]:
        """As `base.ImageEncoder.stages`; all patches are encoded."""
        return [
            Stage({"width": width, "depth": depth, "heads": 0, "mlp_dim": 4 * width}, (image_size // (STEM << n)) ** 2)
            for n, (depth, width) in enumerate(zip(self.depths, self._widths, strict=True))
        ]

    def work(self, image_size: int, seen: int) -> work.Work:
        """As `base.ImageEncoder.work`; all patches are encoded."""
        total, channels = work.Work(), 1
        for stage, (sizes, positions) in enumerate(self.stages(image_size, seen)):
            width, depth = sizes["width"], sizes["depth"]
            size = 2 if stage else STEM
            total += work.product(positions, size**2 * channels, width, gradients=2 if stage else 1)
            mlp = work.product(positions, width, 4 * width)
            block = work.product(positions * width, _WINDOW**2, 1) + mlp * 2
            again = block.forward - mlp.forward if self.remat else 0.0
            total += work.Work(block.forward, block.backward, again) * depth
            channels = width
        return total
