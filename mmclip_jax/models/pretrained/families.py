"""The encoders of each family: its names for the weights, as parameters of ours.

Every reader takes the weights and what stands before the names of this encoder's, and gives the parameters of
`mmclip_jax.models.encoders`. The kernel of image patches is still that of the family's own channels.
"""

from mmclip_jax.errors import UserError
from mmclip_jax.models.pretrained import blocks
from mmclip_jax.models.pretrained.blocks import Params, layers, norm, patch, places
from mmclip_jax.models.pretrained.weights import Weights

# ---------------------------------------------------------------------------------------------------------------------
# Images


def openai_image(weights: Weights, prefix: str) -> Params:
    """The image encoder of OpenAI's CLIP, "visual." there."""
    layer, width = patch(weights, f"{prefix}conv1")
    token = weights.take(f"{prefix}class_embedding", width)
    return {
        "patch": layer,
        **places(token, weights.take(f"{prefix}positional_embedding", None, width)),
        "norm_pre": norm(weights, f"{prefix}ln_pre", width),
        "transformer": {
            "layers": layers(weights, f"{prefix}transformer.resblocks.", blocks.OPENAI, width),
            "norm": norm(weights, f"{prefix}ln_post", width),
        },
    }


def timm(weights: Weights, prefix: str) -> Params:
    """The vision transformer of timm, and of the programs that took its names: MAE, DINO, DINOv2.

    A norm that timm puts behind the pooling (fc_norm) is no part of the encoder.
    """
    layer, width = patch(weights, f"{prefix}patch_embed.proj")
    token = weights.take(f"{prefix}cls_token", 1, 1, width)[0, 0] if f"{prefix}cls_token" in weights else None
    name = next((prefix + name for name in ("reg_token", "register_tokens") if prefix + name in weights), None)
    registers = weights.take(name, 1, None, width)[0] if name else None
    encoder: Params = {
        "patch": layer,
        **places(token, weights.take(f"{prefix}pos_embed", 1, None, width)[0], registers),
        "transformer": {"layers": layers(weights, f"{prefix}blocks.", blocks.TIMM, width)},
    }
    if f"{prefix}norm_pre.weight" in weights:
        encoder["norm_pre"] = norm(weights, f"{prefix}norm_pre", width)
    if f"{prefix}norm.weight" in weights or f"{prefix}fc_norm.weight" not in weights:
        encoder["transformer"]["norm"] = norm(weights, f"{prefix}norm", width)
    return encoder


def clip_image(weights: Weights, prefix: str) -> Params:
    """CLIP's image encoder of Hugging Face's."""
    layer, width = patch(weights, f"{prefix}embeddings.patch_embedding")
    token = weights.take(f"{prefix}embeddings.class_embedding", width)
    return {
        "patch": layer,
        **places(token, weights.take(f"{prefix}embeddings.position_embedding.weight", None, width)),
        "norm_pre": norm(weights, f"{prefix}pre_layrnorm", width),
        "transformer": {
            "layers": layers(weights, f"{prefix}encoder.layers.", blocks.CLIP, width),
            "norm": norm(weights, f"{prefix}post_layernorm", width),
        },
    }


def vit(weights: Weights, prefix: str, names: blocks.Names = blocks.VIT) -> Params:
    """The vision transformer of Hugging Face's, its MAE's and, under the names of `blocks.DINOV2`, DINOv2's."""
    layer, width = patch(weights, f"{prefix}embeddings.patch_embeddings.projection")
    name = f"{prefix}embeddings.register_tokens"
    registers = weights.take(name, 1, None, width)[0] if name in weights else None
    token = weights.take(f"{prefix}embeddings.cls_token", 1, 1, width)[0, 0]
    return {
        "patch": layer,
        **places(token, weights.take(f"{prefix}embeddings.position_embeddings", 1, None, width)[0], registers),
        "transformer": {
            "layers": layers(weights, f"{prefix}encoder.layer.", names, width),
            "norm": norm(weights, f"{prefix}layernorm", width),
        },
    }


def dinov2(weights: Weights, prefix: str) -> Params:
    """DINOv2 of Hugging Face's, with registers or without."""
    return vit(weights, prefix, blocks.DINOV2)


# ---------------------------------------------------------------------------------------------------------------------
# Texts


def openai_text(weights: Weights, prefix: str) -> Params:
    """The text encoder of OpenAI's CLIP; open_clip puts "text." before its names."""
    words = weights.take(f"{prefix}token_embedding.weight", None, None)
    width = words.shape[1]
    return {
        "embed": {"embedding": words},
        "position": weights.take(f"{prefix}positional_embedding", None, width),
        "transformer": {
            "layers": layers(weights, f"{prefix}transformer.resblocks.", blocks.OPENAI, width),
            "norm": norm(weights, f"{prefix}ln_final", width),
        },
    }


def clip_text(weights: Weights, prefix: str) -> Params:
    """CLIP's text encoder of Hugging Face's."""
    words = weights.take(f"{prefix}embeddings.token_embedding.weight", None, None)
    width = words.shape[1]
    return {
        "embed": {"embedding": words},
        "position": weights.take(f"{prefix}embeddings.position_embedding.weight", None, width),
        "transformer": {
            "layers": layers(weights, f"{prefix}encoder.layers.", blocks.CLIP, width),
            "norm": norm(weights, f"{prefix}final_layer_norm", width),
        },
    }


def bert(weights: Weights, prefix: str) -> Params:
    """BERT; its segment embedding is always that of the first segment."""
    words = weights.take(f"{prefix}embeddings.word_embeddings.weight", None, None)
    width = words.shape[1]
    segments = weights.take(f"{prefix}embeddings.token_type_embeddings.weight", None, width)
    if len(segments) == 1:
        raise UserError(f"{weights.where}: a RoBERTa (it has one segment), which is not supported")
    return {
        "embed": {"embedding": words},
        "position": weights.take(f"{prefix}embeddings.position_embeddings.weight", None, width) + segments[:1],
        "norm_pre": norm(weights, f"{prefix}embeddings.LayerNorm", width),
        "transformer": {"layers": layers(weights, f"{prefix}encoder.layer.", blocks.BERT, width)},
    }
