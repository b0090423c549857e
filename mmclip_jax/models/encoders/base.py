"""What every encoder gives and says of itself; `mmclip_jax.models.encoders` names them."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol

import jax
import numpy as np

from mmclip_jax.models.work import Work


class Stage(NamedTuple):
    """Layers that are alike: sizes (width, depth, heads, mlp_dim; 0 heads without attention), positions of a row."""

    sizes: Mapping[str, int]
    positions: int


class ImageEncoder(Protocol):
    """An image encoder: a Flax module with these attributes.

    Attributes:
      layers: how many there are.
      width: D, of its features.
      patch_size: pixels a side of the patch that a feature stands for.
      can_drop_tokens: whether it can encode some patches without looking at the others (`visible`).
      has_class_token: whether it gives one.
      gives_attention: whether it can return attention weights.
    """

    gives_attention: ClassVar[bool]

    @property
    def layers(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def patch_size(self) -> int: ...

    @property
    def can_drop_tokens(self) -> bool: ...

    @property
    def has_class_token(self) -> bool: ...

    def __call__(
        self, images: jax.Array, visible: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
        """Encodes images [B,S,S,C], or of their patches those that visible int [B,M] names.

        Returns:
          (V [B,N,D] or [B,M,D], patches row by row; class token [B,D] or None; attention weights or None).
        """

    def layer_numbers(self, path: str) -> np.ndarray:
        """The layer of a parameter, 0 for what comes before the first; `path` is "a/b/kernel" within the encoder.

        Returns:
          int [], or int [depth] where the parameter is stacked over layers along its axis 0; layers + 1 for what comes
          after the last one.
        """

    def stages(self, image_size: int, seen: int) -> Sequence[Stage]:
        """Its layers for one image of image_size pixels a side, of whose patches `seen` are encoded."""

    def work(self, image_size: int, seen: int) -> Work:
        """FLOPs of one image of image_size pixels a side: all patches are embedded, `seen` of them encoded."""


class TextEncoder(Protocol):
    """A text encoder: a Flax module with these attributes.

    Attributes:
      layers: how many there are.
      width: D_t, of its features.
      length: tokens of the longest text.
      vocab_size: rows of the token embedding.
    """

    @property
    def layers(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def length(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    def __call__(self, tokens: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Encodes tokens int [B,L], valid bool [B,L] -> (T [B,L,D_t], attention weights or None)."""

    def attend_vocabulary(self, x: jax.Array) -> jax.Array:
        """Logits float32 [...,V] of features x [...,D_t] against the token embedding."""

    def layer_numbers(self, path: str) -> np.ndarray:
        """As `ImageEncoder.layer_numbers`."""

    def work(self) -> Work:
        """FLOPs of one text of `length` tokens."""


def transformer_layer_numbers(path: str, depth: int) -> np.ndarray:
    """`layer_numbers` of an encoder around `Transformer`: embeddings 0, layers 1 to depth, final norm depth + 1."""
    if path.startswith("transformer/layers/"):
        return np.arange(1, depth + 1)
    return np.asarray(depth + 1 if path.startswith("transformer/norm/") else 0)
