"""The image encoder IE: a vision transformer over non-overlapping patches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmclip_jax.models.inputs import patchify
from mmclip_jax.models.transformer import Dtype, Transformer, layer_norm, sincos_codes


def sincos_positions(side: int, width: int) -> np.ndarray:
    """2-D sine-cosine codes [side*side, width], half of the width for each image axis (as in MAE).

    Raises:
      ValueError: width is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"a 2-D position code needs a width that is a multiple of 4, not {width}")
    y, x = np.divmod(np.arange(side * side), side)
    return np.concatenate([sincos_codes(axis, width // 2) for axis in (y, x)], axis=-1)


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
        x = x.reshape(len(x), -1, self.width)
        return nn.Dense(self.width, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name="out")(x)


class ImageEncoder(nn.Module):
    """V = IE(x): images [B,S,S,1] -> (patch features [B,N,D], class token [B,D] or None, attention or None).

    stem: "patch", one linear map of each patch's pixels, or "conv" (`ConvStem`). The position embedding is learnt and
    starts at the sine-cosine code. With `class_token` one more token runs along; it is never one of the N patches.
    """

    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    stem: str = "patch"
    class_token: bool = False
    dtype: Dtype = jnp.float32
    remat: bool = False
    unroll: bool = False
    return_attention: bool = False

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
        position = self.param("position", lambda _: jnp.asarray(sincos_positions(side, self.width)))
        x = x + position.astype(self.dtype)[None]
        if visible is not None:
            x = jnp.take_along_axis(x, visible[:, :, None], axis=1)
        if self.class_token:
            token = self.param("class_token", nn.initializers.normal(0.02), (1, 1, self.width))
            x = jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (len(x), 1, self.width)), x], axis=1)
        x, attention = Transformer(
            self.depth,
            self.heads,
            self.mlp_dim,
            self.dtype,
            self.remat,
            self.unroll,
            self.return_attention,
            name="transformer",
        )(x)
        if self.class_token:
            return x[:, 1:], x[:, 0], attention
        return x, None, attention
