"""Other people's dual encoders as models that can be evaluated: one checkpoint, or several averaged."""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmclip_jax import sharding
from mmclip_jax.config import default_config
from mmclip_jax.errors import UserError
from mmclip_jax.external.preprocess import Preprocess
from mmclip_jax.inference.inputs import BATCH, as_pixels, batch_size, batches, check_several, pad, shared
from mmclip_jax.models.mmclip import MMCLIP, build_model
from mmclip_jax.models.pretrained import dual as layouts
from mmclip_jax.models.pretrained.weights import find_weights, sha256
from mmclip_jax.text import subwords
from mmclip_jax.text.tokens import Tokenizer

_STEP = 16


def build(encoder: layouts.DualEncoder, vocab_size: int = 0) -> MMCLIP:
    """The model that runs a dual encoder: in float32, these are other people's numbers. Its decoders have no weights.

    vocab_size: rows of the token embedding where a tokenizer has more than the checkpoint.

    Raises:
      UserError: sizes that do not fit together.
    """
    config = default_config().model
    config.update(encoder.settings)
    config.update({"dtype": "float32", "remat": False})
    config.text.vocab_size = vocab_size or encoder.vocab_size
    return build_model(config)


@functools.partial(jax.jit, static_argnames="model")
def embed_images(params: layouts.Params, images: jax.Array, *, model: MMCLIP) -> jax.Array:
    """[B,S,S,C] float32, normalised as the model wants it -> embeddings [B,E], L2-normalised."""
    with jax.default_matmul_precision("highest"):
        _, embedding = model.apply({"params": params}, images, method="encode_image")
    return jnp.asarray(embedding)


@functools.partial(jax.jit, static_argnames="model")
def embed_texts(params: layouts.Params, tokens: jax.Array, count: jax.Array, *, model: MMCLIP) -> jax.Array:
    """Token ids int32 [B,L] with the number of true ones [B] -> embeddings [B,E], L2-normalised."""
    valid = jnp.arange(tokens.shape[1])[None] < count[:, None]
    with jax.default_matmul_precision("highest"):
        features = model.apply({"params": params}, tokens, valid, method="encode_text")
        return jnp.asarray(model.apply({"params": params}, features, valid, method="embed_text"))


class ForeignModel:
    """Dual encoders that take the same pixels and tokens, as one model.

    The embedding of an image or text is those of the members side by side, each over the root of their number: its
    similarities are the means of theirs.

    Attributes:
      manifest: {"foreign": True}, and "exposure" where somebody has stated it.
      logit_scale: what similarities are multiplied by to give logits of published probabilities (of several, the mean).
      trained_logit_scale: what they were multiplied by in training (of several, the mean).
      members: (columns of its embedding, its logit scale) of each.
      description: the sizes in a line.
    """

    def __init__(
        self,
        encoders: Sequence[layouts.DualEncoder],
        words: Tokenizer,
        preprocess: Preprocess,
        *,
        logit_scale: float | None = None,
        manifest: Mapping[str, Any] | None = None,
        all_devices: bool = False,
    ):
        self._mesh = _mesh(all_devices)
        self._processes = jax.process_count() if all_devices else 1
        self._encoders, self._words, self._preprocess = list(encoders), words, preprocess
        self._params = [jax.device_put(each.params, sharding.replicated(self._mesh)) for each in encoders]
        self._models = [build(each, words.vocab_size) for each in encoders]
        for params in self._params:  # the embedding in the order of the tokenizer's ids
            words_of = params["text_encoder"]["embed"]["embedding"]
            params["text_encoder"] = params["text_encoder"] | {"embed": {"embedding": words_of[words.rows]}}
        self._first = self._encoders[0]
        self.manifest: Mapping[str, Any] = {"foreign": True, **(manifest or {})}
        scales = [each.logit_scale for each in encoders]
        used = [logit_scale] * len(scales) if logit_scale is not None else scales
        self.logit_scale, self.trained_logit_scale = float(np.mean(used)), float(np.mean(scales))
        edges = np.cumsum([0, *(each.embed_dim for each in encoders)]).tolist()
        self.members = [
            (slice(start, end), scale) for start, end, scale in zip(edges[:-1], edges[1:], used, strict=True)
        ]
        self.embed_dim = edges[-1]
        several = f"{len(scales)} checkpoints, " if len(scales) > 1 else ""
        self.description = several + self._first.description

    def encode_image(self, images: Sequence[Any]) -> np.ndarray:
        """Image embeddings float32 [n,E], L2-normalised; of paths, bytes, PIL images or arrays."""
        check_several("images", images)
        return shared(images, self._encode_images, self.embed_dim, self._processes)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Text embeddings float32 [n,E], L2-normalised; a text beyond the model's length loses its end."""
        check_several("texts", texts)
        rows = []
        size = self._size(texts)
        for (batch,) in batches(list(texts)):
            ids, count = self._words.encode_batch(batch, self._first.context)
            ids = ids[:, : -(-int(count.max(initial=1)) // _STEP) * _STEP]  # few lengths: each is compiled
            rows.append(self._run(embed_texts, size, ids, count))
        return np.concatenate(rows) if rows else np.zeros((0, self.embed_dim), np.float32)

    def _encode_images(self, images: Sequence[Any]) -> np.ndarray:
        rows, size = [], self._size(images)
        for (batch,) in batches(images):
            fitted = np.stack([self._preprocess(as_pixels(image), self._first.channels) for image in batch])
            rows.append(self._run(embed_images, size, fitted))
        return np.concatenate(rows) if rows else np.zeros((0, self.embed_dim), np.float32)

    def _size(self, rows: Sequence[Any]) -> int:
        """What the batches of a call for these rows are padded to."""
        return batch_size(len(rows), self._mesh.size)

    def _run(self, embed: Callable[..., jax.Array], size: int, *arrays: np.ndarray) -> np.ndarray:
        """Embeddings [n,E] of a batch, padded to `size` rows, by every member."""
        placed = jax.device_put(tuple(pad(array, size) for array in arrays), sharding.batch_sharding(self._mesh))
        made = [
            np.asarray(embed(params, *placed, model=model))
            for model, params in zip(self._models, self._params, strict=True)
        ]
        return np.concatenate(made, axis=1)[: len(arrays[0])] / np.float32(math.sqrt(len(made)))


def _mesh(all_devices: bool) -> jax.sharding.Mesh:
    """As many of this process's devices as share every batch evenly, or the first one."""
    count = math.gcd(BATCH, jax.local_device_count()) if all_devices else 1
    return sharding.make_mesh(1, jax.local_devices()[:count])


def load_encoders(
    paths: Sequence[str | os.PathLike[str]],
    layout: str,
    *,
    activation: str = "",
    heads: Mapping[str, int] | None = None,
    all_devices: bool = False,
) -> list[layouts.DualEncoder]:
    """Reads the members of an ensemble (or a single one), each put on the devices before the next is read.

    Raises:
      UserError: one cannot be read, they do not take the same pixels and tokens, or two hold the same weights.
    """
    files = [find_weights(path) for path in paths]
    digests = [sha256(file) for file in files]
    first: dict[str, pathlib.Path] = {}
    for file, digest in zip(files, digests, strict=True):
        if (twin := first.setdefault(digest, file)) is not file:
            raise UserError(f"{twin} and {file} are the same weights; name each member of an ensemble once")
    place = sharding.replicated(_mesh(all_devices))
    encoders = []
    for file, digest in zip(files, digests, strict=True):
        encoder = layouts.load(file, layout, activation=activation, heads=heads)
        encoders.append(dataclasses.replace(encoder, params=jax.device_put(encoder.params, place), sha256=digest))
    for file, encoder in zip(files, encoders, strict=True):
        for name in ("image_size", "channels", "context", "vocab_size"):
            ours, theirs = getattr(encoders[0], name), getattr(encoder, name)
            if ours != theirs:
                raise UserError(f"{files[0]} and {file} are no ensemble: their {name} is {ours} and {theirs}")
    return encoders


def load(
    paths: Sequence[str | os.PathLike[str]],
    encoders: Sequence[layouts.DualEncoder],
    preprocess: Preprocess,
    vocabulary: str | os.PathLike[str] | None = None,
    **options: Any,
) -> tuple[ForeignModel, pathlib.Path]:
    """Puts encoders, vocabulary and preprocessing together; returns the model and the file of its vocabulary.

    Args:
      paths: of the checkpoints; where the first lies, its vocabulary is looked for.
      encoders: of `load_encoders`.
      preprocess: from stored pixels to the encoders'.
      vocabulary: a file or folder; None for the checkpoint's folder.
      options: of `ForeignModel`.

    Raises:
      UserError: the three do not fit each other.
    """
    first = encoders[0]
    if preprocess.size != first.image_size:
        raise UserError(
            f"preprocessing ends with {preprocess.size} pixels a side, and {find_weights(paths[0])} takes "
            f"{first.image_size}; the spec must say {first.image_size}"
        )
    if len(preprocess.mean) not in (1, first.channels):
        raise UserError(f"preprocessing has {len(preprocess.mean)} means, and the model {first.channels} channels")
    file = subwords.find(vocabulary or find_weights(paths[0]).parent)
    words = subwords.load(file)
    subwords.check_rows(words, first.vocab_size, str(file))
    return ForeignModel(encoders, words, preprocess, **options), file
