"""A vision transformer over non-overlapping patches: ours, timm's, Hugging Face's, MAE's, DINOv2's, CLIP's."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmclip_jax.models import work
from mmclip_jax.models.attention import PLAIN
from mmclip_jax.models.encoders.base import Stage, transformer_layer_numbers
from mmclip_jax.models.inputs import patch_count, patchify
from mmclip_jax.models.masking import take_positions
from mmclip_jax.models.transformer import OURS, Dtype, Transformer, Variant, layer_norm, sincos_positions

STEMS = ("patch", "conv")


class ConvStem(nn.Module):
    """Images [B,S,S,1] -> patch tokens [B,N,D] by 3x3 convolutions of stride 2, one for each halving down to a patch.

    Learns from far fewer images than one linear map of a patch (Xiao et al. 2021, "Early convolutions help transformers
    see better"). A token sees some pixels of its neighbours' patches.
    """

    patch_size: int
    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        stages = int(np.log2(self.patch_size))
        x = images.astype(self.dtype)
        for stage in range(stages):
            channels = self.width >> (stages - 1 - stage)
            x = nn.Conv(channels, (3, 3), strides=2, dtype=self.dtype, name=f"conv_{stage}")(x)
            x = nn.gelu(layer_norm(x, f"norm_{stage}"))
        x = x.reshape(x.shape[0], -1, self.width)
        return nn.Dense(self.width, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name="out")(x)


def _positions(key: jax.Array, side: int, width: int) -> jax.Array:
    if width % 4:
        return nn.initializers.normal(0.02)(key, (side * side, width))
    return jnp.asarray(sincos_positions(side, width))


class ViT(nn.Module):
    """V = IE(x): images [B,S,S,C] -> (patch features [B,N,D], class token [B,D] or None, attention or None).

    stem: "patch", one linear map of each patch's pixels, or "conv" (`ConvStem`). The position embedding is the patches'
    alone; it is learnt and starts at the sine-cosine code (at noise, where the width is no multiple of 4). With
    `class_token` one more token runs along, before the patches, and between the two so many `registers` (Darcet et al.
    2023), which nobody reads. Attention [depth,B,heads,N',N'] is that of all tokens.
    """

    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    stem: str = "patch"
    class_token: bool = False
    registers: int = 0
    variant: Variant = OURS
    dtype: Dtype = jnp.float32
    remat: bool = False
    unroll: bool = False
    return_attention: bool = False
    attention: str = PLAIN
    gives_attention: ClassVar[bool] = True

    @property
    def can_drop_tokens(self) -> bool:
        """Whether a patch can be encoded without its neighbours: the convolutional stem looks at them."""
        return self.stem == "patch"

    @property
    def has_class_token(self) -> bool:
        """Whether it gives a class token."""
        return self.class_token

    @nn.compact
    def __call__(
        self, images: jax.Array, visible: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
        """visible: int [B,M], the patches to encode (gathered before the first layer); None encodes all N."""
        side = images.shape[1] // self.patch_size
        if self.stem == "conv":
            x = ConvStem(self.patch_size, self.width, self.dtype, name="stem")(images)
        else:
            x = patchify(images, self.patch_size).astype(self.dtype)
            x = nn.Dense(self.width, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name="patch")(x)
        position = self.param("position", _positions, side, self.width)
        x = x + position.astype(self.dtype)[None]
        if visible is not None:
            x = take_positions(x, visible)
        first = [("class_token", 1)] * self.class_token + [("registers", self.registers)] * bool(self.registers)
        tokens = [self.param(name, nn.initializers.normal(0.02), (1, n, self.width)) for name, n in first]
        if tokens:
            ahead = [jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], *token.shape[1:])) for token in tokens]
            x = jnp.concatenate([*ahead, x], axis=1)
        if self.variant.first_norm:
            x = layer_norm(x, "norm_pre", self.variant.epsilon)
        x, attention = Transformer(
            self.depth,
            self.heads,
            self.mlp_dim,
            self.variant,
            self.dtype,
            self.remat,
            self.unroll,
            self.return_attention,
            self.attention,
            name="transformer",
        )(x)
        token = x[:, 0] if self.class_token else None
        return x[:, sum(n for _, n in first) :] if first else x, token, attention

    @property
    def layers(self) -> int:
        """How many there are."""
        return self.depth

    def layer_numbers(self, path: str) -> np.ndarray:
        """As `base.ImageEncoder.layer_numbers`."""
        return transformer_layer_numbers(path, self.depth)

    def stages(self, image_size: int, seen: int) -> list[Stage]:
        """As `base.ImageEncoder.stages`."""
        sizes = {"width": self.width, "depth": self.depth, "heads": self.heads, "mlp_dim": self.mlp_dim}
        return [Stage(sizes, seen + self.class_token + self.registers)]

    def work(self, image_size: int, seen: int) -> work.Work:
        """As `base.ImageEncoder.work`."""
        if self.stem == "conv":
            embedded = work.conv_stem(image_size, self.patch_size, self.width)
        else:
            patches = patch_count(image_size, self.patch_size)
            embedded = work.product(patches, self.patch_size**2, self.width, gradients=1)
        [(sizes, positions)] = self.stages(image_size, seen)
        return embedded + work.layers(sizes, positions, remat=self.remat)
