"""The encoders of each family: its names for the weights, as parameters of ours, and back.

A table says what a family calls the parts of an encoder. `read_image` and `read_text` take weights and what stands
before the names of this encoder's, and give the parameters of `mmclip_jax.models.encoders`; `write_image` and
`write_text` are their inverse. The kernel of image patches is that of the family's own channels.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from mmclip_jax.errors import UserError
from mmclip_jax.models.pretrained import blocks
from mmclip_jax.models.pretrained.blocks import (
    Arrays,
    Params,
    layers,
    norm,
    patch,
    places,
    put_layers,
    put_norm,
    put_patch,
)
from mmclip_jax.models.pretrained.weights import Weights

# ---------------------------------------------------------------------------------------------------------------------
# Images


@dataclasses.dataclass(frozen=True)
class ImageNames:
    """What a family calls the parts of a vision transformer.

    axes: of length one that stand before those of class token [D] and positions [N,D]. registers: the names that they
    may have. biased: whether the patches have a bias. varies: class token, norm in front and norm at the end are each
    there or not, as the names of the weights say.
    """

    patch: str
    token: str
    position: str
    layers: str
    blocks: blocks.Names
    norm: str
    norm_pre: str = ""
    registers: Sequence[str] = ()
    axes: int = 0
    biased: bool = True
    varies: bool = False


OPENAI_IMAGE = ImageNames(
    *("conv1", "class_embedding", "positional_embedding", "transformer.resblocks.", blocks.OPENAI, "ln_post", "ln_pre"),
    biased=False,
)
TIMM = ImageNames(
    *("patch_embed.proj", "cls_token", "pos_embed", "blocks.", blocks.TIMM, "norm", "norm_pre"),
    registers=("reg_token", "register_tokens"),
    axes=1,
    varies=True,
)
CLIP_IMAGE = ImageNames(
    *("embeddings.patch_embedding", "embeddings.class_embedding", "embeddings.position_embedding.weight"),
    *("encoder.layers.", blocks.CLIP, "post_layernorm", "pre_layrnorm"),
    biased=False,
)
VIT = ImageNames(
    *("embeddings.patch_embeddings.projection", "embeddings.cls_token", "embeddings.position_embeddings"),
    *("encoder.layer.", blocks.VIT, "layernorm"),
    registers=("embeddings.register_tokens",),
    axes=1,
)
DINOV2 = dataclasses.replace(VIT, blocks=blocks.DINOV2)


def read_image(names: ImageNames, weights: Weights, prefix: str) -> Params:
    """The image encoder.

    A norm that timm puts behind the pooling (fc_norm) is no part of it.
    """
    layer, width = patch(weights, prefix + names.patch)
    ones = (1,) * names.axes
    token = None
    if not names.varies or prefix + names.token in weights:
        token = weights.take(prefix + names.token, *ones, *ones, width).reshape(width)
    name = next((prefix + name for name in names.registers if prefix + name in weights), None)
    registers = weights.take(name, 1, None, width)[0] if name else None
    positions = weights.take(prefix + names.position, *ones, None, width).reshape(-1, width)
    encoder: Params = {
        "patch": layer,
        **places(token, positions, registers),
        "transformer": {"layers": layers(weights, prefix + names.layers, names.blocks, width)},
    }
    if names.norm_pre and (not names.varies or f"{prefix}{names.norm_pre}.weight" in weights):
        encoder["norm_pre"] = norm(weights, prefix + names.norm_pre, width)
    if not names.varies or f"{prefix}{names.norm}.weight" in weights or f"{prefix}fc_norm.weight" not in weights:
        encoder["transformer"]["norm"] = norm(weights, prefix + names.norm, width)
    return encoder


def write_image(names: ImageNames, encoder: Params, prefix: str, shares: Sequence[float]) -> Arrays:
    """The inverse of `read_image`, of an encoder of grey images that has a class token, if the family has one.

    shares: the part of the grey kernel that each channel gets; their sum is 1, and powers of two lose nothing. A bias
    of the patches that the family lacks is added to the positions.
    """
    out = put_patch(encoder["patch"], prefix + names.patch, shares, names.biased)
    ones = (1,) * names.axes
    position, ahead = encoder["position"], []
    if not names.biased:
        position = position + encoder["patch"]["bias"]
    if "class_token" in encoder:
        token = encoder["class_token"]
        out[prefix + names.token] = token.reshape(*ones, *ones, -1)
        ahead = [np.zeros_like(token[0])]
    out[prefix + names.position] = np.concatenate([*ahead, position]).reshape(*ones, -1, position.shape[1])
    if "registers" in encoder:
        out[prefix + names.registers[0]] = encoder["registers"]
    if "norm_pre" in encoder:
        out |= put_norm(encoder["norm_pre"], prefix + names.norm_pre)
    if "norm" in encoder["transformer"]:
        out |= put_norm(encoder["transformer"]["norm"], prefix + names.norm)
    return out | put_layers(encoder["transformer"]["layers"], prefix + names.layers, names.blocks)


openai_image = functools.partial(read_image, OPENAI_IMAGE)
timm = functools.partial(read_image, TIMM)
clip_image = functools.partial(read_image, CLIP_IMAGE)
vit = functools.partial(read_image, VIT)
dinov2 = functools.partial(read_image, DINOV2)


# ---------------------------------------------------------------------------------------------------------------------
# Texts


@dataclasses.dataclass(frozen=True)
class TextNames:
    """What a family calls the parts of a text encoder.

    segments: of the embedding of segments; that of the first is always added.
    """

    words: str
    position: str
    layers: str
    blocks: blocks.Names
    norm: str = ""
    norm_pre: str = ""
    segments: str = ""


OPENAI_TEXT = TextNames(
    *("token_embedding.weight", "positional_embedding", "transformer.resblocks.", blocks.OPENAI, "ln_final")
)
CLIP_TEXT = TextNames(
    *("embeddings.token_embedding.weight", "embeddings.position_embedding.weight"),
    *("encoder.layers.", blocks.CLIP, "final_layer_norm"),
)
BERT = TextNames(
    *("embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight", "encoder.layer.", blocks.BERT),
    norm_pre="embeddings.LayerNorm",
    segments="embeddings.token_type_embeddings.weight",
)


def read_text(names: TextNames, weights: Weights, prefix: str) -> Params:
    """The text encoder.

    Raises:
      UserError: a RoBERTa.
    """
    words = weights.take(prefix + names.words, None, None)
    width = words.shape[1]
    segments = weights.take(prefix + names.segments, None, width) if names.segments else None
    if segments is not None and len(segments) == 1:
        raise UserError(f"{weights.where}: a RoBERTa (it has one segment), which is not supported")
    position = weights.take(prefix + names.position, None, width)
    encoder: Params = {
        "embed": {"embedding": words},
        "position": position if segments is None else position + segments[:1],
        "transformer": {"layers": layers(weights, prefix + names.layers, names.blocks, width)},
    }
    if names.norm_pre:
        encoder["norm_pre"] = norm(weights, prefix + names.norm_pre, width)
    if names.norm:
        encoder["transformer"]["norm"] = norm(weights, prefix + names.norm, width)
    return encoder


def write_text(names: TextNames, encoder: Params, prefix: str) -> Arrays:
    """The inverse of `read_text`; the embeddings of segments are zeros."""
    words = encoder["embed"]["embedding"]
    out = {prefix + names.words: words, prefix + names.position: encoder["position"]}
    if names.segments:
        out[prefix + names.segments] = np.zeros((2, words.shape[1]), np.float32)
    if names.norm_pre:
        out |= put_norm(encoder["norm_pre"], prefix + names.norm_pre)
    if names.norm:
        out |= put_norm(encoder["transformer"]["norm"], prefix + names.norm)
    return out | put_layers(encoder["transformer"]["layers"], prefix + names.layers, names.blocks)


openai_text = functools.partial(read_text, OPENAI_TEXT)
clip_text = functools.partial(read_text, CLIP_TEXT)
bert = functools.partial(read_text, BERT)


# ---------------------------------------------------------------------------------------------------------------------
# Any module of PyTorch's whose parts have our names

_STACKED = "layers"  # parts of this name, and "layers_0", …, hold what is stacked over the depth
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def as_module(params: Mapping[str, np.ndarray]) -> Arrays:
    """Parameters {"a/layers/b/kernel": [depth, …]} as the state of a module of PyTorch's: {"a.layers.0.b.weight": …}.

    Kernels are transposed to PyTorch's order. `of_module` is the inverse.
    """
    out: Arrays = {}
    for path, array in params.items():
        *folders, leaf = path.split("/")
        stack = next((n for n, name in enumerate(folders) if name.split("_")[0] == _STACKED), None)
        rows = {(): array} if stack is None else {(str(n),): row for n, row in enumerate(array)}
        for number, row in rows.items():
            at = len(folders) if stack is None else stack + 1
            name = ".".join([*folders[:at], *number, *folders[at:], _LEAVES.get(leaf, leaf)])
            if leaf == "kernel":
                row = row.transpose(3, 2, 0, 1) if row.ndim == 4 else row.T
            out[name] = np.asarray(row, order="C")
    return out


def of_module(weights: Mapping[str, np.ndarray]) -> Arrays:
    """The parameters whose `as_module` these are."""
    stacks: dict[str, dict[int, np.ndarray]] = {}
    out: Arrays = {}
    for name, array in weights.items():
        *folders, leaf = name.split(".")
        if leaf == "weight":
            leaf = "embedding" if folders[-1] == "embed" else "scale" if array.ndim == 1 else "kernel"
        if leaf == "kernel":
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        number = next((n for n, word in enumerate(folders) if word.isdigit()), None)
        if number is None:
            out["/".join([*folders, leaf])] = np.asarray(array, order="C")
        else:
            path = "/".join([*folders[:number], *folders[number + 1 :], leaf])
            stacks.setdefault(path, {})[int(folders[number])] = array
    return out | {path: np.stack([rows[n] for n in range(len(rows))]) for path, rows in stacks.items()}
