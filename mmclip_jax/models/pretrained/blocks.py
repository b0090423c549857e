"""What all families share: the weights of a transformer under their names, as parameters of ours."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmclip_jax.errors import UserError
from mmclip_jax.models.pretrained.weights import Weights

Params = dict[str, Any]
Arrays = dict[str, np.ndarray]
HEAD_WIDTH = 64
# Widths whose published models have heads of another width than 64 (ViT-H, ViT-g, ViT-bigG).
_HEADS = {1280: 16, 1408: 16, 1664: 16}


@dataclasses.dataclass(frozen=True)
class Names:
    """What a family calls the parts of a block.

    joint: how the weight and bias of query, key and value in one begin; separate: their names one by one. scale_self,
    scale_mlp: the factors of the branches, where it has them.
    """

    norm_self: str
    norm_mlp: str
    out: str
    mlp_in: str
    mlp_out: str
    joint: str = ""
    separate: Sequence[str] = ()
    scale_self: str = ""
    scale_mlp: str = ""


OPENAI = Names("ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj", joint="attn.in_proj_")
TIMM = Names(
    *("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2"),
    joint="attn.qkv.",
    scale_self="ls1.gamma",
    scale_mlp="ls2.gamma",
)
CLIP = Names(
    *("layer_norm1", "layer_norm2", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"),
    separate=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
)
_ATTENTION = tuple(f"attention.attention.{name}" for name in ("query", "key", "value"))
VIT = Names(
    *("layernorm_before", "layernorm_after", "attention.output.dense", "intermediate.dense", "output.dense"),
    separate=_ATTENTION,
)
DINOV2 = Names(
    *("norm1", "norm2", "attention.output.dense", "mlp.fc1", "mlp.fc2"),
    separate=_ATTENTION,
    scale_self="layer_scale1.lambda1",
    scale_mlp="layer_scale2.lambda1",
)
BERT = Names(
    *("attention.output.LayerNorm", "output.LayerNorm", "attention.output.dense", "intermediate.dense", "output.dense"),
    separate=tuple(f"attention.self.{name}" for name in ("query", "key", "value")),
)


def layers(weights: Weights, prefix: str, names: Names, width: int) -> Params:
    """The blocks "PREFIX0.…" to "PREFIXn.…", each weight stacked over the depth: [depth, …].

    Raises:
      UserError: a weight is missing or of another shape, or the MLP is gated.
    """
    for gate in ("mlp.w12.weight", "mlp.weights_in.weight", "mlp.fc1_g.weight"):
        if f"{prefix}0.{gate}" in weights:
            raise UserError(f"{weights.where}: its MLPs are gated (SwiGLU), which is not supported")
    numbered = re.compile(re.escape(prefix) + r"(\d+)\.")
    depth = 1 + max((int(match[1]) for name in weights.names() if (match := numbered.match(name))), default=0)
    blocks = [_block(weights, f"{prefix}{number}.", names, width) for number in range(depth)]
    return _stacked(blocks)


def _stacked(trees: Sequence[Any]) -> Any:
    first = trees[0]
    if isinstance(first, dict):
        return {name: _stacked([tree[name] for tree in trees]) for name in first}
    return np.stack(trees)


def _block(weights: Weights, prefix: str, names: Names, width: int) -> Params:
    attention: Params = {}
    if names.joint:
        kernels = np.split(weights.take(f"{prefix}{names.joint}weight", 3 * width, width), 3)
        joint_bias = f"{prefix}{names.joint}bias"
        joint = weights.take(joint_bias, 3 * width) if joint_bias in weights else np.zeros(3 * width, np.float32)
        for part, kernel, bias in zip(("query", "key", "value"), kernels, np.split(joint, 3), strict=True):
            attention[part] = {"kernel": kernel.T, "bias": bias}
    else:
        for part, name in zip(("query", "key", "value"), names.separate, strict=True):
            attention[part] = biased(dense(weights, prefix + name, width, width))
    attention["out"] = biased(dense(weights, prefix + names.out, width, width))
    block: Params = {"self_attention": attention}
    block["norm_self"] = norm(weights, prefix + names.norm_self, width)
    block["norm_mlp"] = norm(weights, prefix + names.norm_mlp, width)
    block["mlp_in"] = biased(dense(weights, prefix + names.mlp_in, None, width))
    block["mlp_out"] = biased(dense(weights, prefix + names.mlp_out, width, block["mlp_in"]["kernel"].shape[1]))
    for ours, theirs in (("scale_self", names.scale_self), ("scale_mlp", names.scale_mlp)):
        if theirs and prefix + theirs in weights:
            block[ours] = weights.take(prefix + theirs, width)
    return block


def dense(weights: Weights, name: str, outputs: int | None, inputs: int | None) -> dict[str, np.ndarray]:
    """A linear layer as PyTorch keeps it, [outputs, inputs], with its bias if it has one."""
    kernel = weights.take(f"{name}.weight", outputs, inputs).T
    if f"{name}.bias" in weights:
        return {"kernel": kernel, "bias": weights.take(f"{name}.bias", kernel.shape[1])}
    return {"kernel": kernel}


def biased(layer: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The layer, or layers stacked along their first axis, with a bias, of zeros if it had none."""
    kernel = layer["kernel"]
    return {"bias": np.zeros(kernel.shape[:-2] + kernel.shape[-1:], np.float32)} | layer


def norm(weights: Weights, name: str, width: int) -> dict[str, np.ndarray]:
    """A layer norm."""
    return {"scale": weights.take(f"{name}.weight", width), "bias": weights.take(f"{name}.bias", width)}


def patch(weights: Weights, name: str) -> tuple[dict[str, np.ndarray], int]:
    """(convolution [D,C,P,P] over whole patches as a dense layer of their pixels, row by row, channels last; D)."""
    kernel = weights.take(f"{name}.weight", None, None, None, None)
    width = kernel.shape[0]
    layer = {"kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, width)}
    if f"{name}.bias" in weights:
        layer["bias"] = weights.take(f"{name}.bias", width)
    return biased(layer), width


def put_layers(stacked: Params, prefix: str, names: Names) -> Arrays:
    """The inverse of `layers`: each weight by its name; keys without a bias get one of zeros."""
    out: Arrays = {}
    attention = {part: biased(layer) for part, layer in stacked["self_attention"].items()}
    for number in range(len(stacked["mlp_in"]["kernel"])):
        at = f"{prefix}{number}."
        parts = [{kind: array[number] for kind, array in attention[p].items()} for p in ("query", "key", "value")]
        if names.joint:
            out[f"{at}{names.joint}weight"] = np.concatenate([part["kernel"].T for part in parts])
            out[f"{at}{names.joint}bias"] = np.concatenate([part["bias"] for part in parts])
        else:
            for part, name in zip(parts, names.separate, strict=True):
                out |= put_dense(part, at + name)
        dense_parts = {names.out: attention["out"], names.mlp_in: stacked["mlp_in"], names.mlp_out: stacked["mlp_out"]}
        for name, layer in dense_parts.items():
            out |= put_dense({kind: array[number] for kind, array in layer.items()}, at + name)
        for name, layer in ((names.norm_self, stacked["norm_self"]), (names.norm_mlp, stacked["norm_mlp"])):
            out |= put_norm({kind: array[number] for kind, array in layer.items()}, at + name)
        for ours, theirs in (("scale_self", names.scale_self), ("scale_mlp", names.scale_mlp)):
            if ours in stacked:
                out[at + theirs] = stacked[ours][number]
    return out


def put_dense(layer: Params, name: str) -> Arrays:
    """The inverse of `dense`."""
    return {f"{name}.weight": layer["kernel"].T} | ({f"{name}.bias": layer["bias"]} if "bias" in layer else {})


def put_norm(layer: Params, name: str) -> Arrays:
    """The inverse of `norm`."""
    return {f"{name}.weight": layer["scale"], f"{name}.bias": layer["bias"]}


def put_patch(layer: Params, name: str, shares: Sequence[float], with_bias: bool) -> Arrays:
    """The inverse of `patch`, of a grey kernel [P*P,D]; each channel gets its share of it."""
    pixels, width = layer["kernel"].shape
    side = round(pixels**0.5)
    grey = layer["kernel"].reshape(side, side, width).transpose(2, 0, 1)
    out = {f"{name}.weight": np.stack([grey * np.float32(share) for share in shares], axis=1)}
    return out | ({f"{name}.bias": layer["bias"]} if with_bias else {})


def grid(encoder: Params, where: str) -> tuple[int, int, int]:
    """(patches a side, pixels a side of a patch, channels) of an image encoder.

    Raises:
      UserError: its patches are no square of grey or RGB squares.
    """
    pixels, patches = encoder["patch"]["kernel"].shape[0], encoder["position"].shape[0]
    side = round(patches**0.5)
    channels = next((c for c in (1, 3) if round((pixels / c) ** 0.5) ** 2 * c == pixels), 0)
    if side * side != patches or not channels:
        raise UserError(f"{where}: its {patches} patches of {pixels} values are no square of grey or RGB patches")
    return side, round((pixels / channels) ** 0.5), channels


def places(token: np.ndarray | None, position: np.ndarray, registers: np.ndarray | None = None) -> Params:
    """The class token [D] and registers [R,D] with their own places, and the places of the patches, of positions [n,D].

    Positions are of the patches alone, or of the class token, or class token and registers too, which come first.
    """
    made: Params = {}
    ahead = [row for row in (None if token is None else token[np.newaxis], registers) if row is not None]
    tokens = np.concatenate(ahead) if ahead else np.zeros((0, position.shape[1]), np.float32)
    count = next(
        (n for n in (len(tokens), 1, 0) if n <= len(tokens) and _is_square(len(position) - n)), min(1, len(tokens))
    )
    tokens = tokens + np.pad(position[:count], ((0, len(tokens) - count), (0, 0)))
    if token is not None:
        made["class_token"] = tokens[np.newaxis, :1]
        tokens = tokens[1:]
    if registers is not None:
        made["registers"] = tokens[np.newaxis]
    return made | {"position": position[count:]}


def _is_square(number: int) -> bool:
    return round(max(number, 0) ** 0.5) ** 2 == number


def sizes(encoder: Params) -> Params:
    """The settings of `model.image` or `model.text` that an encoder's parameters tell."""
    inside = encoder["transformer"]["layers"]
    depth, width, mlp_dim = inside["mlp_in"]["kernel"].shape
    return {"width": width, "depth": depth, "mlp_dim": mlp_dim, "key_bias": True}


def image_sizes(encoder: Params) -> Params:
    """`sizes`, and those that image encoders alone have."""
    return sizes(encoder) | {
        "norm": "pre",
        "first_norm": "norm_pre" in encoder,
        "final_norm": "norm" in encoder["transformer"],
        "layer_scale": "scale_self" in encoder["transformer"]["layers"],
        "class_token": "class_token" in encoder,
        "registers": encoder["registers"].shape[1] if "registers" in encoder else 0,
    }


def heads_of(where: str, part: str, width: int, stated: int, remedy: str = "") -> int:
    """The number of heads: what is stated, or of 0, what published models of this width have.

    Raises:
      UserError: the width is no multiple of it, or nothing says it; remedy: how to say it.
    """
    count = stated or _HEADS.get(width, 0) or (width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 0)
    if not count:
        raise UserError(
            f"{where}: the {part} encoder's width {width} is no multiple of {HEAD_WIDTH}, and nothing says how "
            f"many heads it has; {remedy or f'give --config.model.{part}.heads'}"
        )
    if width % count:
        raise UserError(f"{where}: the {part} encoder's width {width} is no multiple of {count} heads")
    return count
