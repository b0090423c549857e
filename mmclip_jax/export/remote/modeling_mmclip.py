# Copyright the authors of mmclip-jax. Licensed under the Apache License, Version 2.0; see
# https://www.apache.org/licenses/LICENSE-2.0. Distributed "as is", without warranties or conditions of any kind.
"""The encoders of an exported MMCLIP in PyTorch, for transformers (trust_remote_code). For research, not for diagnosis.

Names of modules are those of the run's own parameters. What only training needs, the decoders, is not here.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_mmclip import MMCLIPConfig

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "tanh": torch.tanh,
}
EPSILON = 1e-6  # of the norms of a convolutional stem
STEM = 4  # pixels a side of the first patches of a ConvNeXt

TEXT_LAYERS = {  # what the name of a text encoder says of its layers
    "transformer": {},
    "bert": {"norm": "post", "final_norm": False},
    "clip": {"causal": True},
}


@dataclasses.dataclass
class MMCLIPOutput(ModelOutput):
    """logits_per_image [images, texts]; embeddings [n,E], L2-normalised."""

    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None


class Attention(nn.Module):
    """Multi-head attention of x [B,Q,D] over y [B,C,D]."""

    def __init__(self, width, heads, key_bias=False, causal=False):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query, self.value, self.out = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=key_bias)

    def forward(self, x, y, valid=None):
        """valid: bool [B,C], what may be looked at."""

        def split(z):
            return z.view(*z.shape[:2], self.heads, -1).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(y)), split(self.value(y))
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        hidden = torch.finfo(logits.dtype).min
        if valid is not None:
            logits = logits.masked_fill(~valid[:, None, None], hidden)
        if self.causal:
            later = torch.ones(x.shape[1], y.shape[1], dtype=torch.bool, device=x.device).triu(1)
            logits = logits.masked_fill(later, hidden)
        attended = logits.softmax(dim=-1) @ v
        return self.out(attended.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """Self-attention and MLP, each with a residual and a norm before ("pre") or after it ("post")."""

    def __init__(self, part, norm, causal, layer_scale):
        super().__init__()
        width = part["width"]
        self.pre, self.activation = norm == "pre", ACTIVATIONS[part["activation"]]
        self.norm_self, self.norm_mlp = (nn.LayerNorm(width, eps=part["epsilon"]) for _ in range(2))
        self.self_attention = Attention(width, part["heads"], part["key_bias"], causal)
        self.mlp_in, self.mlp_out = nn.Linear(width, part["mlp_dim"]), nn.Linear(part["mlp_dim"], width)
        self.scale_self, self.scale_mlp = (nn.Parameter(torch.ones(width)) if layer_scale else None for _ in range(2))

    def forward(self, x, valid=None):
        """x [B,N,D]."""

        def attend(y):
            y = self.self_attention(y, y, valid)
            return y if self.scale_self is None else y * self.scale_self

        def mlp(y):
            y = self.mlp_out(self.activation(self.mlp_in(y)))
            return y if self.scale_mlp is None else y * self.scale_mlp

        for norm, branch in ((self.norm_self, attend), (self.norm_mlp, mlp)):
            x = x + branch(norm(x)) if self.pre else norm(x + branch(x))
        return x


class Transformer(nn.Module):
    """Blocks, then a norm where there is one."""

    def __init__(self, part, norm="pre", final_norm=True, causal=False, layer_scale=False):
        super().__init__()
        self.layers = nn.ModuleList(Block(part, norm, causal, layer_scale) for _ in range(part["depth"]))
        self.norm = nn.LayerNorm(part["width"], eps=part["epsilon"]) if final_norm else None

    def forward(self, x, valid=None):
        """x [B,N,D]; valid: bool [B,N]."""
        for layer in self.layers:
            x = layer(x, valid)
        return x if self.norm is None else self.norm(x)


class ConvStem(nn.Module):
    """Images [B,1,S,S] -> patch tokens [B,N,D] by convolutions of stride 2."""

    def __init__(self, patch_size, width):
        super().__init__()
        self.stages = patch_size.bit_length() - 1
        channels = 1
        for stage in range(self.stages):
            wider = width >> (self.stages - 1 - stage)
            setattr(self, f"conv_{stage}", nn.Conv2d(channels, wider, 3, stride=2))
            setattr(self, f"norm_{stage}", nn.LayerNorm(wider, eps=EPSILON))
            channels = wider
        self.out = nn.Linear(width, width)

    def forward(self, x):
        """The padding of an odd rest stands behind the last pixel."""
        for stage in range(self.stages):
            rests = [max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in (x.shape[3], x.shape[2])]
            x = F.pad(x, [side for rest in rests for side in (rest // 2, rest - rest // 2)])
            x = getattr(self, f"conv_{stage}")(x).permute(0, 2, 3, 1)
            x = F.gelu(getattr(self, f"norm_{stage}")(x), approximate="tanh").permute(0, 3, 1, 2)
        return self.out(x.flatten(2).transpose(1, 2))


class ViT(nn.Module):
    """Images [B,1,S,S] -> (patches [B,N,D], class token [B,D] or None)."""

    def __init__(self, settings):
        super().__init__()
        part, self.patch_size = settings["image"], settings["patch_size"]
        width = part["width"]
        if settings["stem"] == "conv":
            self.stem = ConvStem(self.patch_size, width)
        else:
            self.patch = nn.Linear(self.patch_size**2, width)
        self.has_stem = settings["stem"] == "conv"
        count = (settings["image_size"] // self.patch_size) ** 2
        self.position = nn.Parameter(torch.zeros(count, width))
        has_token = settings["pool"] == "cls" or part["class_token"]
        self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if has_token else None
        self.registers = nn.Parameter(torch.zeros(1, part["registers"], width)) if part["registers"] else None
        self.norm_pre = nn.LayerNorm(width, eps=part["epsilon"]) if part["first_norm"] else None
        self.transformer = Transformer(part, part["norm"], part["final_norm"], layer_scale=part["layer_scale"])

    def forward(self, images):
        """images: standardised pixels."""
        if self.has_stem:
            x = self.stem(images)
        else:
            x = self.patch(F.unfold(images, self.patch_size, stride=self.patch_size).transpose(1, 2))
        x = x + self.position
        first = [each for each in (self.class_token, self.registers) if each is not None]
        x = torch.cat([*(each.expand(len(x), -1, -1) for each in first), x], dim=1)
        if self.norm_pre is not None:
            x = self.norm_pre(x)
        x = self.transformer(x)
        token = None if self.class_token is None else x[:, 0]
        return x[:, sum(each.shape[1] for each in first) :], token


class ConvBlock(nn.Module):
    """x [B,H,W,D] -> x + scale · MLP(norm(depthwise convolution of x))."""

    def __init__(self, part, width):
        super().__init__()
        self.activation = ACTIVATIONS[part["activation"]]
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=part["epsilon"])
        self.mlp_in, self.mlp_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale_mlp = nn.Parameter(torch.ones(width))

    def forward(self, x):
        """Channels last."""
        y = self.norm(self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return x + self.mlp_out(self.activation(self.mlp_in(y))) * self.scale_mlp


class ConvNeXt(nn.Module):
    """Images [B,1,S,S] -> (features [B,N,D] of the last stage's grid, None)."""

    def __init__(self, settings):
        super().__init__()
        part = settings["image"]
        self.stages = len(part["depths"])
        widths = [part["width"] >> later for later in reversed(range(self.stages))]
        before = 1
        for stage, (depth, width) in enumerate(zip(part["depths"], widths, strict=True)):
            size = 2 if stage else STEM
            if stage:
                setattr(self, f"down_norm_{stage}", nn.LayerNorm(before, eps=part["epsilon"]))
            setattr(self, f"down_{stage}" if stage else "stem", nn.Conv2d(before, width, size, stride=size))
            if not stage:
                self.stem_norm = nn.LayerNorm(width, eps=part["epsilon"])
            setattr(self, f"layers_{stage}", nn.ModuleList(ConvBlock(part, width) for _ in range(depth)))
            before = width
        self.norm = nn.LayerNorm(part["width"], eps=part["epsilon"])

    def forward(self, images):
        """images: standardised pixels."""
        x = images.permute(0, 2, 3, 1)
        for stage in range(self.stages):
            if stage:
                x = getattr(self, f"down_norm_{stage}")(x)
            convolution = getattr(self, f"down_{stage}" if stage else "stem")
            x = convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            if not stage:
                x = self.stem_norm(x)
            for layer in getattr(self, f"layers_{stage}"):
                x = layer(x)
        return self.norm(x).flatten(1, 2), None


class Text(nn.Module):
    """Token ids [B,L], valid bool [B,L] -> token features [B,L,D]."""

    def __init__(self, settings):
        super().__init__()
        part = settings["text"]
        width, kind = part["width"], part["encoder"]
        self.scale = width**0.5 if kind == "transformer" else 1.0
        self.causal = kind == "clip"
        self.embed = nn.Embedding(part["vocab_size"], width)
        self.position = nn.Parameter(torch.zeros(part["length"], width))
        self.norm_pre = nn.LayerNorm(width, eps=part["epsilon"]) if kind == "bert" else None
        self.transformer = Transformer(part, **TEXT_LAYERS[kind])

    def forward(self, tokens, valid):
        """A causal encoder looks at no padding, which comes last."""
        x = self.embed(tokens) * self.scale + self.position[: tokens.shape[1]]
        if self.norm_pre is not None:
            x = self.norm_pre(x)
        return self.transformer(x, None if self.causal else valid)


class MMCLIPModel(PreTrainedModel):
    """A dual encoder of chest X-rays and reports."""

    config_class = MMCLIPConfig
    main_input_name = "pixel_values"
    base_model_prefix = "mmclip"

    def __init__(self, config):
        super().__init__(config)
        settings = config.settings
        image, text = settings["image"], settings["text"]
        self.pool, self.text_pool, self.length = settings["pool"], settings["text_pool"], text["length"]
        self.image_encoder = ConvNeXt(settings) if image["encoder"] == "convnext" else ViT(settings)
        self.text_encoder = Text(settings)
        if self.pool == "map":
            self.pool_query = nn.Parameter(torch.zeros(1, 1, image["width"]))
            self.pool_attention = Attention(image["width"], image["heads"])
        self.head_activations = {}
        for part in ("image", "text"):
            head, width = settings[f"{part}_head"], settings[part]["width"]
            if head["hidden"]:
                setattr(self, f"{part}_hidden", nn.Linear(width, head["hidden"], bias=head["hidden_bias"]))
                self.head_activations[part] = ACTIVATIONS[head["activation"]]
            projection = nn.Linear(head["hidden"] or width, settings["embed_dim"], bias=head["bias"])
            setattr(self, f"{part}_projection", projection)
        self.log_logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.logit_bias = nn.Parameter(torch.tensor(0.0))
        self.post_init()

    def _init_weights(self, module):
        """Weights come from a file; there is nothing to draw."""

    def _project(self, part, x):
        if part in self.head_activations:
            x = self.head_activations[part](getattr(self, f"{part}_hidden")(x))
        return getattr(self, f"{part}_projection")(x)

    def get_image_features(self, pixel_values):
        """Embeddings [B,E], not normalised, of standardised pixels [B,1,S,S]."""
        if pixel_values.shape[1] != 1:
            raise ValueError(f"pixel_values have {pixel_values.shape[1]} channels, not 1: use the image processor")
        patches, token = self.image_encoder(pixel_values)
        if self.pool == "mean":
            pooled = patches.mean(dim=1)
        elif self.pool == "max":
            pooled = patches.amax(dim=1)
        elif self.pool == "cls":
            pooled = token
        else:
            pooled = self.pool_attention(self.pool_query.expand(len(patches), -1, -1), patches)[:, 0]
        return self._project("image", pooled)

    def get_text_features(self, input_ids, attention_mask=None):
        """Embeddings [B,E], not normalised, of token ids [B,L]; padding is 0."""
        valid = input_ids != 0 if attention_mask is None else attention_mask.bool()
        if input_ids.shape[1] > self.length:
            raise ValueError(f"{input_ids.shape[1]} tokens, but the model takes {self.length}: truncate the texts")
        if not input_ids.shape[1]:  # no text has a token
            input_ids = input_ids.new_zeros(len(input_ids), 1)
            valid = torch.zeros_like(input_ids, dtype=torch.bool)
        features, counted = self.text_encoder(input_ids, valid), valid[:, :, None]
        if self.text_pool == "mean":
            pooled = features.masked_fill(~counted, 0.0).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
        elif self.text_pool == "max":
            pooled = features.masked_fill(~counted, torch.finfo(features.dtype).min).amax(dim=1)
            pooled = pooled.masked_fill(~counted.any(dim=1), 0.0)
        elif self.text_pool == "first":
            pooled = features[:, 0]
        else:
            places = torch.arange(valid.shape[1], device=valid.device)
            last = torch.where(valid, places, 0).amax(dim=1)
            pooled = features[torch.arange(len(features), device=features.device), last]
        return self._project("text", pooled)

    def forward(self, input_ids=None, pixel_values=None, attention_mask=None, return_dict=None):
        """Embeddings of what is given, and of both the logits: logit scale times cosine similarity."""
        image = None if pixel_values is None else normalize(self.get_image_features(pixel_values))
        text = None if input_ids is None else normalize(self.get_text_features(input_ids, attention_mask))
        logits = None if image is None or text is None else self.log_logit_scale.exp() * image @ text.T
        out = MMCLIPOutput(logits, None if logits is None else logits.T, image, text)
        return out.to_tuple() if return_dict is False else out


def normalize(x):
    """L2-normalises the last axis; a zero vector stays zero."""
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True).clamp(min=1e-12))
