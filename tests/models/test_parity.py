"""Our encoders with other libraries' random weights: features and gradients are theirs (timm, transformers)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch and transformers have an environment of their own: make test-interop")

import torch
import transformers

from mmclip_jax.models.encoders.convnext import ConvNeXt
from mmclip_jax.models.encoders.text import TextTransformer
from mmclip_jax.models.encoders.vit import ViT
from mmclip_jax.models.transformer import Variant

pytestmark = pytest.mark.torch

Array = np.ndarray
Weights = dict[str, Array]
SIDE, PATCH, WIDTH, DEPTH, HEADS, MLP, REGISTERS = 21, 7, 20, 3, 4, 41, 5
VOCAB, LENGTH, CONTEXT = 59, 13, 11
FORWARD, BACKWARD = 1e-5, 1e-4  # of the largest value of an array

# Where each library keeps the parts of a layer: folder, two norms, query to value (one or three), out, MLP.
TIMM = ("blocks", "norm1", "norm2", ("attn.qkv",), "attn.proj", "mlp.fc1", "mlp.fc2")
VIT = (
    *("layers", "layernorm_before", "layernorm_after", tuple(f"attention.{part}_proj" for part in "qkv")),
    *("attention.o_proj", "mlp.fc1", "mlp.fc2"),
)
DINO = ("encoder.layer", "norm1", "norm2", *VIT[3:])
CLIP = (
    *("encoder.layers", "layer_norm1", "layer_norm2", tuple(f"self_attn.{part}_proj" for part in "qkv")),
    *("self_attn.out_proj", "mlp.fc1", "mlp.fc2"),
)
BERT = (
    *("encoder.layer", "attention.output.LayerNorm", "output.LayerNorm"),
    *(tuple(f"attention.self.{part}" for part in ("query", "key", "value")), "attention.output.dense"),
    *("intermediate.dense", "output.dense"),
)


def _timm() -> Any:
    pytest.importorskip("timm_beside_cpu")
    return pytest.importorskip("timm")


def shaken(model: Any) -> Any:
    """The model with weights of a size that matters, biases and norms too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            spread = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.3
            center = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            weight.copy_(center + spread * torch.randn(weight.shape, generator=generator))
    return model.eval()


def dense(w: Weights, name: str) -> Weights:
    return {"kernel": w[f"{name}.weight"].T, "bias": w[f"{name}.bias"]}


def norm(w: Weights, name: str) -> Weights:
    return {"scale": w[f"{name}.weight"], "bias": w[f"{name}.bias"]}


def conv(w: Weights, name: str) -> Weights:
    kernel = w[f"{name}.weight"].transpose(2, 3, 1, 0)
    return {"kernel": kernel, "bias": w.get(f"{name}.bias", np.zeros(kernel.shape[-1], np.float32))}


def patch(w: Weights, name: str) -> Weights:
    both = conv(w, name)
    return both | {"kernel": both["kernel"].reshape(-1, WIDTH)}


def layers(w: Weights, names: Any, scales: tuple[str, ...] = ()) -> Any:
    prefix, norm_self, norm_mlp, attention, out, mlp_in, mlp_out = names

    def layer(number: int) -> Any:
        at = f"{prefix}.{number}."
        three = [dense(w, at + name) for name in attention]
        if len(three) == 1:
            three = [{part: np.split(x, 3, axis=-1)[n] for part, x in three[0].items()} for n in range(3)]
        block: dict[str, Any] = {
            "norm_self": norm(w, at + norm_self),
            "self_attention": dict(zip(("query", "key", "value"), three, strict=True)) | {"out": dense(w, at + out)},
            "norm_mlp": norm(w, at + norm_mlp),
            "mlp_in": dense(w, at + mlp_in),
            "mlp_out": dense(w, at + mlp_out),
        }
        names_of_scales = zip(("scale_self", "scale_mlp"), scales, strict=False)
        return block | {ours: w[at + theirs] for ours, theirs in names_of_scales}

    return jax.tree.map(lambda *each: np.stack(each), *map(layer, range(DEPTH)))


def image_tree(w: Weights, token: Array, position: Array, stem: str, final: str, *names: Any) -> dict[str, Any]:
    """token [D], position [1+N,D]."""
    return {
        "patch": patch(w, stem),
        "class_token": (token.reshape(-1) + position[0])[None, None],
        "position": position[1:],
        "transformer": {"layers": layers(w, *names), "norm": norm(w, final)},
    }


def close(ours: Any, theirs: Array, tolerance: float, where: str = "") -> None:
    largest = np.abs(theirs).max()
    assert largest > 1e-3, f"{where}: zeros would prove nothing"
    assert np.abs(np.asarray(ours) - theirs).max() <= tolerance * largest, where


def check(
    ours: Callable[..., jax.Array],
    to_ours: Callable[[Weights], Any],
    model: Any,
    theirs: Any,
    pixels: tuple[Array, Any] | None = None,
    weight: Array | None = None,
) -> None:
    """Features, and the gradients of a random sum of them.

    ours: (params, images) -> [B,n,D]; theirs: the same of PyTorch; pixels: (images [B,S,S,C], the tensor [B,C,S,S]);
    weight: [B,n], 0 where a feature does not count.
    """
    named = dict(model.named_parameters())
    params = to_ours({name: value.detach().numpy() for name, value in named.items()})
    shape = tuple(theirs.shape)
    weight = np.ones(shape[:2], np.float32) if weight is None else weight
    drawn = np.random.default_rng(1).normal(size=shape).astype(np.float32) * weight[:, :, None]
    images = jnp.asarray(pixels[0]) if pixels else jnp.zeros(())
    value, backward = jax.vjp(jax.jit(ours), params, images)
    close(value * weight[:, :, None], theirs.detach().numpy() * weight[:, :, None], FORWARD, "features")
    gradients, towards_pixels = backward(jnp.asarray(drawn))
    theirs.backward(torch.tensor(drawn))
    if pixels:
        close(towards_pixels, pixels[1].grad.numpy().transpose(0, 2, 3, 1), BACKWARD, "pixels")
    given = {n: np.zeros(v.shape, np.float32) if v.grad is None else v.grad.numpy() for n, v in named.items()}
    wanted = to_ours(given)
    # The place of a class token or register, and of BERT's segment, is folded into another parameter.
    for part in {"patch", "norm_pre", "transformer", "embed", "stem", "layers_1", "down_2", "norm"} & wanted.keys():
        got = dict(jax.tree.leaves_with_path(gradients[part]))
        for path, leaf in jax.tree.leaves_with_path(wanted[part]):
            name = f"{part}/{jax.tree_util.keystr(path, simple=True, separator='/')}"
            if name.endswith("key/bias"):  # a bias of keys has no gradient: noise on both sides
                assert np.abs(got[path]).max() < BACKWARD
            elif not (name == "patch/bias" and not leaf.any()):  # CLIP's patches have no bias
                close(got[path], leaf, BACKWARD, name)


# ---------------------------------------------------------------------------------------------------------------------
# Images


def images(side: int = SIDE) -> tuple[Array, Any]:
    x = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    return x, torch.tensor(x.transpose(0, 3, 1, 2).copy()).requires_grad_()


def vit(registers: int = 0, **variant: Any) -> Callable[..., jax.Array]:
    """(params, images, visible) -> the class token, then the patches."""
    style = Variant(**{"activation": "gelu", "key_bias": True, **variant})
    module = ViT(PATCH, WIDTH, DEPTH, HEADS, MLP, class_token=True, registers=registers, variant=style)

    def run(params: Any, x: jax.Array, visible: jax.Array | None = None) -> jax.Array:
        found, token, _ = module.apply({"params": params}, x, visible)
        return jnp.concatenate([token[:, None], found], axis=1)

    return run


SIZES: dict[str, Any] = {
    "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": MLP,
}  # fmt: skip
IMAGES: dict[str, Any] = SIZES | {"image_size": SIDE, "patch_size": PATCH}


@pytest.mark.parametrize("registers", [0, REGISTERS])
@pytest.mark.parametrize("scaled", [False, True])
def test_timm(registers: int, scaled: bool) -> None:
    transformer = _timm().models.vision_transformer.VisionTransformer
    sizes = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "mlp_ratio": MLP / WIDTH, "num_classes": 0}
    options = {"reg_tokens": registers, "init_values": 0.1 if scaled else None}
    model = shaken(transformer(img_size=SIDE, patch_size=PATCH, **sizes, **options))

    def to_ours(w: Weights) -> Any:
        position, first = w["pos_embed"][0], 1 + registers
        names = (TIMM, ("ls1.gamma", "ls2.gamma") if scaled else ())
        tokens = np.concatenate([position[:1], position[first:]])
        tree = image_tree(w, w["cls_token"], tokens, "patch_embed.proj", "norm", *names)
        return tree | ({"registers": w["reg_token"] + position[None, 1:first]} if registers else {})

    x = images()
    theirs = model.forward_features(x[1])
    theirs = torch.cat([theirs[:, :1], theirs[:, 1 + registers :]], dim=1)
    check(vit(registers, layer_scale=scaled), to_ours, model, theirs, x)


def huggingface_vit(w: Weights) -> Any:
    position = w["embeddings.position_embeddings"][0]
    return image_tree(
        w, w["embeddings.cls_token"], position, "embeddings.patch_embeddings.projection", "layernorm", VIT
    )


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_huggingface_vit(activation: str) -> None:
    config = transformers.ViTConfig(**IMAGES, hidden_act=activation)
    model, x = shaken(transformers.ViTModel(config, add_pooling_layer=False)), images()
    ours = vit(epsilon=config.layer_norm_eps, activation=activation)
    check(ours, huggingface_vit, model, model(x[1]).last_hidden_state, x)


@pytest.mark.parametrize("ratio", [0.0, 0.6])
def test_masked_autoencoder(ratio: float) -> None:
    """Its encoder sees some patches, in the order of the noise; so does ours."""
    config = transformers.ViTMAEConfig(**IMAGES, mask_ratio=ratio)
    model, x = shaken(transformers.ViTMAEModel(config)), images()
    noise = np.random.default_rng(2).random((2, 9)).astype(np.float32)
    theirs = model(x[1], noise=torch.tensor(noise)).last_hidden_state
    visible = jnp.asarray(np.argsort(noise, axis=1)[:, : theirs.shape[1] - 1])
    assert visible.shape[1] == int(9 * (1 - ratio))
    encode = vit(epsilon=config.layer_norm_eps)
    check(lambda params, pixels: encode(params, pixels, visible), huggingface_vit, model, theirs, x)


@pytest.mark.parametrize("registers", [0, REGISTERS])
def test_dinov2(registers: int) -> None:
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    options = {"mlp_ratio": 2} | ({"num_register_tokens": registers} if registers else {})
    config = getattr(transformers, f"{kind}Config")(**IMAGES | options)
    model, x = shaken(getattr(transformers, f"{kind}Model")(config)), images()

    def to_ours(w: Weights) -> Any:
        names = ("embeddings.patch_embeddings.projection", "layernorm", DINO)
        scales = ("layer_scale1.lambda1", "layer_scale2.lambda1")
        position = w["embeddings.position_embeddings"][0]
        tree = image_tree(w, w["embeddings.cls_token"], position, *names, scales)
        return tree | ({"registers": w["embeddings.register_tokens"]} if registers else {})

    theirs = model(x[1]).last_hidden_state
    theirs = torch.cat([theirs[:, :1], theirs[:, 1 + registers :]], dim=1)
    style = Variant(activation="gelu", key_bias=True, layer_scale=True, epsilon=config.layer_norm_eps)
    module = ViT(PATCH, WIDTH, DEPTH, HEADS, 2 * WIDTH, class_token=True, registers=registers, variant=style)

    def ours(params: Any, pixels: jax.Array) -> jax.Array:
        found, token, _ = module.apply({"params": params}, pixels)
        return jnp.concatenate([token[:, None], found], axis=1)

    check(ours, to_ours, model, theirs, x)


def test_clip_images() -> None:
    config = transformers.CLIPVisionConfig(**IMAGES)
    model, x = shaken(transformers.CLIPVisionModel(config)), images()

    def to_ours(w: Weights) -> Any:
        position, token = w["embeddings.position_embedding.weight"], w["embeddings.class_embedding"]
        tree = image_tree(w, token, position, "embeddings.patch_embedding", "post_layernorm", CLIP)
        return tree | {"norm_pre": norm(w, "pre_layrnorm")}

    out = model(x[1])
    theirs = torch.cat([out.pooler_output[:, None], model.post_layernorm(out.last_hidden_state[:, 1:])], dim=1)
    check(vit(activation="quick_gelu", epsilon=1e-5, first_norm=True), to_ours, model, theirs, x)


def test_convnext() -> None:
    depths, widths = (1, 2, 2, 1), (4, 8, 16, 32)
    network = _timm().models.convnext.ConvNeXt
    model, x = shaken(network(in_chans=3, num_classes=0, depths=depths, dims=widths)), images(64)

    def to_ours(w: Weights) -> Any:
        tree = {"stem": conv(w, "stem.0"), "stem_norm": norm(w, "stem.1"), "norm": norm(w, "head.norm")}
        for stage, depth in enumerate(depths):
            if stage:
                tree[f"down_norm_{stage}"] = norm(w, f"stages.{stage}.downsample.0")
                tree[f"down_{stage}"] = conv(w, f"stages.{stage}.downsample.1")
            blocks = [
                {
                    "depthwise": conv(w, f"{at}conv_dw"),
                    "norm": norm(w, f"{at}norm"),
                    "mlp_in": dense(w, f"{at}mlp.fc1"),
                    "mlp_out": dense(w, f"{at}mlp.fc2"),
                    "scale_mlp": w[f"{at}gamma"],
                }
                for at in (f"stages.{stage}.blocks.{number}." for number in range(depth))
            ]
            tree[f"layers_{stage}"] = jax.tree.map(lambda *each: np.stack(each), *blocks)
        return tree

    theirs = model.head.norm(model.forward_features(x[1])).flatten(2).transpose(1, 2)
    assert theirs.shape == (2, 4, 32)
    module = ConvNeXt(depths, 32, Variant(activation="gelu"))
    check(lambda params, pixels: module.apply({"params": params}, pixels)[0], to_ours, model, theirs, x)


# ---------------------------------------------------------------------------------------------------------------------
# Texts


def text(params: Any, tokens: Array, valid: Array, **variant: Any) -> jax.Array:
    style = Variant(key_bias=True, **variant)
    module = TextTransformer(VOCAB, LENGTH, WIDTH, DEPTH, HEADS, MLP, embed_scale=False, variant=style)
    features = module.apply({"params": params}, jnp.asarray(tokens), jnp.asarray(valid))[0]
    return jnp.asarray(features)


def texts() -> tuple[Array, Array]:
    """(ids [3,11], valid [3,11])."""
    ids = np.random.default_rng(0).integers(1, VOCAB, (3, CONTEXT)).astype(np.int32)
    return ids, np.arange(CONTEXT) < np.array([[11], [7], [2]])


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_texts(activation: str) -> None:
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 2)
    config = transformers.CLIPTextConfig(
        **SIZES, **ends, vocab_size=VOCAB, max_position_embeddings=LENGTH, hidden_act=activation
    )
    model, (ids, valid) = shaken(transformers.CLIPTextModel(config)), texts()

    def to_ours(w: Weights) -> Any:
        return {
            "embed": {"embedding": w["embeddings.token_embedding.weight"]},
            "position": w["embeddings.position_embedding.weight"],
            "transformer": {"layers": layers(w, CLIP), "norm": norm(w, "final_layer_norm")},
        }

    mask = torch.tensor(valid.astype(np.int64))
    theirs = model(torch.tensor(ids.astype(np.int64)), attention_mask=mask).last_hidden_state
    style = {"causal": True, "activation": activation, "epsilon": 1e-5}
    weight = valid.astype(np.float32)
    check(lambda params, _: text(params, ids, valid, **style), to_ours, model, theirs, weight=weight)


def test_bert() -> None:
    config = transformers.BertConfig(**SIZES, vocab_size=VOCAB, max_position_embeddings=LENGTH)
    model, (ids, valid) = shaken(transformers.BertModel(config, add_pooling_layer=False)), texts()

    def to_ours(w: Weights) -> Any:
        segment = w["embeddings.token_type_embeddings.weight"][:1]
        return {
            "embed": {"embedding": w["embeddings.word_embeddings.weight"]},
            "position": w["embeddings.position_embeddings.weight"] + segment,
            "norm_pre": norm(w, "embeddings.LayerNorm"),
            "transformer": {"layers": layers(w, BERT)},
        }

    mask = torch.tensor(valid.astype(np.int64))
    theirs = model(torch.tensor(ids.astype(np.int64)), attention_mask=mask).last_hidden_state
    style = {"norm": "post", "first_norm": True, "final_norm": False, "activation": "gelu", "epsilon": 1e-12}
    weight = valid.astype(np.float32)
    check(lambda params, _: text(params, ids, valid, **style), to_ours, model, theirs, weight=weight)
