"""Encoders of published weights give what their own libraries give; what is damaged or unknown is refused in a line."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import others
import pytest
from ml_collections import ConfigDict

pytest.importorskip("torch", reason="torch and transformers have an environment of their own: make test-interop")
pytest.importorskip("timm_beside_cpu", reason="timm is part of make test-interop")
pytest.importorskip("timm", reason="timm is part of make test-interop")

import timm
import torch
import transformers
from safetensors.torch import save_file
from timm.models._hub import save_for_hf

from mmclip_jax.config import default_config
from mmclip_jax.errors import UserError
from mmclip_jax.models import encoders
from mmclip_jax.models.inputs import pixels, standardize
from mmclip_jax.models.pretrained import fit, single

pytestmark = pytest.mark.torch

SIZE, PATCH = 35, 7
SIZES: dict[str, Any] = {"hidden_size": 28, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 41}
VIEW: dict[str, Any] = {"image_size": SIZE, "patch_size": PATCH}


def settings(encoder: single.Encoder, image_size: int = SIZE, length: int = 13) -> ConfigDict:
    """The `model` part of a config that runs an encoder."""
    config = default_config().model
    config.update({"dtype": "float32", "remat": False, "image_size": image_size})
    config[encoder.part].update(dict(encoder.settings))
    if encoder.part == "image":
        config.patch_size = encoder.patch_size
    else:
        config.text.length = length
    return config


def images(count: int = 3, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, size, size, 1)).astype(np.uint8)


def ours(encoder: single.Encoder, grey: np.ndarray) -> np.ndarray:
    """Class token and patches [B,1+N,D], or patches alone where there is no class token."""
    size = grey.shape[1]
    module: Any = encoders.image_encoder(settings(encoder, size))
    params, _ = fit.fit_image(encoder, size)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, size, size, 1))))["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes), "every parameter comes from the weights"
    patches, token, _ = module.apply({"params": params}, standardize(pixels(jnp.asarray(grey))))
    rows = [] if token is None else [token[:, None]]
    return np.asarray(jnp.concatenate([*rows, patches], axis=1))


def theirs(grey: np.ndarray, mean: Any, std: Any) -> torch.Tensor:
    """Grey images as RGB ones [B,3,S,S], normalised as the library does."""
    unit = np.repeat(grey.astype(np.float32) / 255, 3, axis=3)
    return torch.tensor(((unit - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2).copy())


def assert_close(mine: np.ndarray, wanted: np.ndarray) -> None:
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(mine / scale, wanted / scale, atol=1e-5)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.05 * scale, "rows that are alike would prove nothing"


def save(model: Any, folder: pathlib.Path, mean: Any = None, std: Any = None) -> pathlib.Path:
    model.save_pretrained(folder)
    if mean is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
    return folder


def hugging(kind: str) -> tuple[Any, Any, int]:
    """(a model to save, what computes its features, registers)."""
    plain = {name: value for name, value in SIZES.items() if name != "intermediate_size"}
    if kind == "vit":
        whole = others.shake(transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, **VIEW)), 1)
        return whole, whole.vit, 0
    if kind == "mae":
        config = transformers.ViTMAEConfig(
            **SIZES, **VIEW, mask_ratio=0.0, decoder_hidden_size=12, decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2, decoder_intermediate_size=11,
        )  # fmt: skip
        whole = others.shake(transformers.ViTMAEForPreTraining(config), 2)
        return whole, whole.vit, 0
    if kind == "dinov2":
        model = others.shake(transformers.Dinov2Model(transformers.Dinov2Config(**plain, **VIEW, mlp_ratio=2)), 3)
        return model, model, 0
    if kind == "registers":
        config = transformers.Dinov2WithRegistersConfig(**plain, **VIEW, mlp_ratio=2, num_register_tokens=3)
        model = others.shake(transformers.Dinov2WithRegistersModel(config), 4)
        return model, model, 3
    model = others.shake(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES, **VIEW)), 5)
    return model, model, 0


@pytest.mark.parametrize(
    ("kind", "title"),
    [
        ("vit", "Hugging Face's ViT"),
        ("mae", "Hugging Face's ViT"),
        ("dinov2", "Hugging Face's DINOv2"),
        ("registers", "Hugging Face's DINOv2"),
        ("clip", "CLIP's image encoder"),
    ],
)
def test_image_encoders_of_hugging_face(tmp_path: pathlib.Path, kind: str, title: str) -> None:
    mean, std = [0.31, 0.42, 0.53], [0.21, 0.32, 0.43]
    whole, part, registers = hugging(kind)
    encoder = single.load(save(whole, tmp_path, mean, std), "image")
    assert (encoder.title, encoder.image_size, encoder.patch_size, encoder.assumed) == (title, SIZE, PATCH, [])
    assert (encoder.settings["heads"], encoder.settings["registers"]) == (2, registers)
    with torch.no_grad():
        given = {"noise": torch.arange(25.0)[None].repeat(3, 1)} if kind == "mae" else {}
        wanted = part(pixel_values=theirs(images(), mean, std), **given).last_hidden_state
        wanted = part.post_layernorm(wanted) if kind == "clip" else wanted
    wanted = np.delete(wanted.numpy(), range(1, 1 + registers), axis=1)
    assert_close(ours(encoder, images()), wanted)


TIMM = {
    "plain": {},
    "no bias": {"qkv_bias": False},
    "registers": {"reg_tokens": 3, "init_values": 0.1, "no_embed_class": True},
    "registers with places": {"reg_tokens": 3},
    "fc_norm": {"global_pool": "avg", "fc_norm": True},
    "clip": {"pre_norm": True},
    "no class token": {"class_token": False, "global_pool": "avg", "fc_norm": False},
}


def timm_vit(image_size: int = SIZE, **options: Any) -> Any:
    sizes: dict[str, Any] = {"patch_size": PATCH, "embed_dim": 28, "depth": 3, "num_heads": 2, "mlp_ratio": 1.5}
    model = timm.create_model("vit_tiny_patch16_224", img_size=image_size, num_classes=4, **sizes, **options)
    return others.shake(model, 7)


@pytest.mark.parametrize("options", TIMM.values(), ids=TIMM.keys())
def test_image_encoders_of_timm(tmp_path: pathlib.Path, options: dict[str, Any]) -> None:
    model = timm_vit(**options)
    if options.get("pre_norm"):  # as timm's CLIPs have it
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = 1e-5
    mean, std = [0.31, 0.42, 0.53], [0.21, 0.32, 0.43]
    save_for_hf(model, tmp_path, model_args={"num_heads": 2}, data_config={"mean": mean, "std": std})
    encoder = single.load(tmp_path, "image")
    assert encoder.assumed == []
    assert {name.partition(".")[0] for name in encoder.left_out} == {"head", *["fc_norm"] * options.get("fc_norm", 0)}
    with torch.no_grad():
        wanted = model.forward_features(theirs(images(), mean, std)).numpy()
    registers = options.get("reg_tokens", 0)
    assert_close(ours(encoder, images()), np.delete(wanted, range(1, 1 + registers), axis=1))


@pytest.mark.parametrize("size", [49, 21])
def test_other_image_sizes_are_those_of_timm(tmp_path: pathlib.Path, size: int) -> None:
    model = timm_vit()
    save_for_hf(model, tmp_path, model_args={"num_heads": 2})
    encoder = single.load(tmp_path, "image")
    other = timm_vit(size)
    resized = timm.layers.resample_abs_pos_embed(model.pos_embed, [size // PATCH] * 2)
    other.load_state_dict(model.state_dict() | {"pos_embed": resized})
    with torch.no_grad():
        wanted = other.forward_features(theirs(images(size=size), (0.5,) * 3, (0.5,) * 3)).numpy()
    assert_close(ours(encoder, images(size=size)), wanted)
    with pytest.raises(UserError, match=r"model.image_size=40 is no multiple of the 7 pixels .*image_size=42"):
        fit.fit_image(encoder, 40)


@pytest.mark.parametrize(("old", "new"), [(14, 16), (37, 14), (5, 13), (7, 2)])
def test_positions_are_resized_as_pytorch_does(old: int, new: int) -> None:
    position = np.random.default_rng(0).normal(size=(old * old, 11)).astype(np.float32)
    square = torch.tensor(position).reshape(1, old, old, 11).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(square, size=(new, new), mode="bicubic", antialias=True)
    made = fit.resize_positions(position, new)
    np.testing.assert_allclose(made, wanted.permute(0, 2, 3, 1).reshape(new * new, 11).numpy(), atol=1e-5)


def test_grey_weights_stay_grey() -> None:
    layer = {"kernel": np.ones((4, 3), np.float32), "bias": np.zeros(3, np.float32)}
    folded = fit.fold(layer, 1, (0.5,), (0.25,))
    np.testing.assert_allclose(folded["kernel"], layer["kernel"])
    np.testing.assert_allclose(folded["bias"], 0, atol=1e-7)
    folded = fit.fold(layer, 1, (0.2, 0.4, 0.6), (0.1, 0.2, 0.3))
    np.testing.assert_allclose(folded["kernel"], 1.25, rtol=1e-6)
    np.testing.assert_allclose(folded["bias"], 4 * 0.1 / 0.2, rtol=1e-6)


def mae_checkpoint(model: Any) -> dict[str, Any]:
    """The layout of Facebook's MAE: timm's names, a decoder, and the program's arguments beside them."""
    import argparse

    state = {name: value for name, value in model.state_dict().items() if not name.startswith("head")}
    state |= {"mask_token": torch.ones(1, 1, 12), "decoder_pos_embed": torch.ones(1, 26, 12)}
    state |= {"decoder_embed.weight": torch.ones(12, 28), "decoder_blocks.0.norm1.weight": torch.ones(12)}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    arguments = argparse.Namespace(lr=1e-3, output_dir=".", epochs=3)
    return {"model": state, "optimizer": optimizer, "epoch": 3, "scaler": {"scale": 1.0}, "args": arguments}


def test_a_checkpoint_of_facebooks_mae(tmp_path: pathlib.Path) -> None:
    model = timm_vit()
    torch.save(mae_checkpoint(model), tmp_path / "mae.pth")
    encoder = single.load(tmp_path / "mae.pth", "image", heads=2)
    assert encoder.assumed == ["activation", "epsilon", "normalisation"]
    assert sorted(encoder.left_out)[0] == "decoder_blocks.0.norm1.weight"
    assert len(encoder.left_out) == 4
    with torch.no_grad():
        wanted = model.forward_features(theirs(images(), *single.IMAGENET)).numpy()
    assert_close(ours(encoder, images()), wanted)
    with pytest.raises(UserError, match=r"width 28 is no multiple of 64, .* give --config.model.image.heads"):
        single.load(tmp_path / "mae.pth", "image")


@pytest.mark.parametrize("kind", ["bare", "masked", "clip"])
def test_text_encoders(tmp_path: pathlib.Path, kind: str) -> None:
    words, places, length = 59, 17, 13
    if kind == "clip":
        config = transformers.CLIPTextConfig(
            **SIZES, vocab_size=words, max_position_embeddings=places, bos_token_id=57, eos_token_id=58
        )
        part = whole = others.shake(transformers.CLIPTextModel(config), 3)
    else:
        config = transformers.BertConfig(**SIZES, vocab_size=words, max_position_embeddings=places)
        whole = others.shake((transformers.BertModel if kind == "bare" else transformers.BertForMaskedLM)(config), 3)
        part = whole if kind == "bare" else whole.bert
    encoder = single.load(save(whole, tmp_path), "text")
    assert encoder.assumed == []
    assert encoder.settings["encoder"] == ("clip" if kind == "clip" else "bert")
    ids = np.random.default_rng(0).integers(1, words, (3, length)).astype(np.int32)
    valid = np.arange(length)[None] < np.array([13, 7, 2])[:, None]
    ids = np.where(valid, ids, 0)
    with torch.no_grad():
        mask = torch.tensor(valid.astype(np.int64))
        wanted = part(input_ids=torch.tensor(ids.astype(np.int64)), attention_mask=mask).last_hidden_state.numpy()
    params, notes = fit.fit_text(encoder, length, np.arange(words))
    module: Any = encoders.text_encoder(settings(encoder))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.asarray(ids), jnp.asarray(valid)))["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    made = np.asarray(module.apply({"params": params}, jnp.asarray(ids), jnp.asarray(valid))[0])
    assert_close(np.where(valid[:, :, None], made, 0), np.where(valid[:, :, None], wanted, 0))
    assert notes == {"position": "the first 13 of 17"}
    with pytest.raises(UserError, match=r"model.text.length=19, but .* has 17 positions"):
        fit.fit_text(encoder, 19, np.arange(words))


def test_words_come_in_the_order_of_the_tokenizer() -> None:
    embedding = np.arange(12, dtype=np.float32).reshape(4, 3)
    made = fit.fit_words(embedding, np.array([-1, 2, 0, 3, 1, -1]))
    assert made[:, 0].tolist() == [4.5, 6, 0, 9, 3, 4.5]


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


class Trap:
    """Its pickle makes a file."""

    def __init__(self, canary: pathlib.Path):
        self.canary = canary

    def __reduce__(self) -> Any:
        return (pathlib.Path.touch, (self.canary,))


def test_no_code_of_a_checkpoint_is_run(tmp_path: pathlib.Path) -> None:
    canary = tmp_path / "canary"
    for number, content in enumerate(
        [{"model": Trap(canary)}, Trap(canary), {"a": torch.ones(2), "args": Trap(canary)}]
    ):
        torch.save(content, tmp_path / f"{number}.pth")
        with pytest.raises(UserError, match=r"holds more than tensors.*is not unpickled; where you trust it") as caught:
            single.load(tmp_path / f"{number}.pth", "image")
        assert "\n" not in str(caught.value)
    assert not canary.exists()
    torch.load(tmp_path / "1.pth", weights_only=False)
    assert canary.exists(), "the trap works"


def state() -> dict[str, Any]:
    return {name: value.contiguous() for name, value in timm_vit().state_dict().items()}


def bad(name: str, change: Any) -> dict[str, Any]:
    weights = state()
    weights[name] = change(weights[name]) if callable(change) else change
    return weights


@pytest.mark.parametrize(
    ("make", "part", "message"),
    [
        (lambda: bad("norm.bias", lambda x: x * float("nan")), "image", "norm.bias holds values that are not finite"),
        (lambda: bad("blocks.1.norm1.bias", torch.ones(3)), "image", r"blocks.1.norm1.bias has the shape \[3\], where"),
        (
            lambda: bad("blocks.0.attn.q_norm.weight", torch.ones(3)),
            "image",
            "1 of its weights have no place in timm",
        ),
        (lambda: bad("blocks.0.mlp.w12.weight", torch.ones(3)), "image", r"gated \(SwiGLU\), which is not supported"),
        (lambda: {"layer1.0.conv1.weight": torch.ones(2, 2)}, "image", "is a convolutional network; image encoders"),
        (lambda: {"x": torch.ones(2)}, "image", "holds no image encoder known here .*begin with x"),
        (state, "text", "holds no text encoder known here"),
        (
            lambda: {f"{side}.{name}": value for side in ("teacher", "student") for name, value in state().items()},
            *("image", r"holds 2 encoders \('student\.', 'teacher\.'\); save the weights of one alone"),
        ),
        (
            lambda: {name: value for name, value in state().items() if name != "blocks.2.mlp.fc1.bias"},
            *("image", ""),  # a layer without a bias is one whose bias is zero
        ),
        (
            lambda: {name: v for name, v in state().items() if name != "norm.bias"},
            "image",
            "lacks the weight norm",
        ),
    ],
)
def test_weights_that_do_not_fit(tmp_path: pathlib.Path, make: Any, part: str, message: str) -> None:
    save_file({name: value.clone() for name, value in make().items()}, tmp_path / "a.safetensors")
    if not message:
        single.load(tmp_path / "a.safetensors", part, heads=2)
        return
    with pytest.raises(UserError, match=message) as caught:
        single.load(tmp_path / "a.safetensors", part, heads=2)
    assert str(tmp_path / "a.safetensors") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_was_cut_off(tmp_path: pathlib.Path) -> None:
    save_file(state(), tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    for cut in (0, 5, 300, len(content) - 1):
        (tmp_path / "a.safetensors").write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"a.safetensors cannot be read") as caught:
            single.load(tmp_path / "a.safetensors", "image", heads=2)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", {"model_type": "swin"}, "model_type 'swin' is not supported; known here: vit"),
        ("config.json", {"model_type": "vit", "hidden_act": "relu"}, "the activation 'relu' is not one of gelu"),
        ("config.json", {"num_attention_heads": "two"}, "num_attention_heads is a whole number of at least 1"),
        ("config.json", {"num_attention_heads": 5}, "width 28 is no multiple of 5 heads"),
        ("config.json", {"position_embedding_type": "relative"}, "positions of type 'relative' are not supported"),
        (
            "preprocessor_config.json",
            {"image_mean": "x", "image_std": [1]},
            "mean of its pixels is one number",
        ),
        (
            "preprocessor_config.json",
            {"image_mean": [0.5], "image_std": [0]},
            "std of its pixels is one number",
        ),
    ],
)
def test_files_beside_the_weights(tmp_path: pathlib.Path, file: str, content: Any, message: str) -> None:
    save_file(state(), tmp_path / "model.safetensors")
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        single.load(tmp_path, "image", heads=2)
    assert "\n" not in str(caught.value)


def test_a_roberta_is_no_bert(tmp_path: pathlib.Path) -> None:
    config = transformers.RobertaConfig(**SIZES, vocab_size=31, max_position_embeddings=9, type_vocab_size=1)
    transformers.RobertaModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="model_type 'roberta' is not supported"):
        single.load(tmp_path, "text")
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="a RoBERTa"):
        single.load(tmp_path, "text", heads=2)
