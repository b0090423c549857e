"""Other programs' dual encoders: in JAX they give what transformers gives, in whatever layout their weights lie."""

import dataclasses
import gzip
import hashlib
import json
import pathlib
import pickle
import shutil
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import others
import pytest

pytest.importorskip(
    "timm_beside_cpu", reason="torch and transformers have an environment of their own: make test-interop"
)

import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizerFast, CLIPTokenizer

from mmclip_jax.errors import UserError
from mmclip_jax.external import encoders as encoders_lib
from mmclip_jax.external import run as external
from mmclip_jax.external.preprocess import Preprocess, Step
from mmclip_jax.models.pretrained import dual as layouts
from mmclip_jax.text import subwords

pytestmark = pytest.mark.torch

END = len(others.VOCABULARY) - 1
TEXTS = [
    "No Pleural Effusion",
    "there's a 3.5cm mass;  isn't it?\tNew line\nhere",
    "naïve café — ½ 胸部 🫁",
    "",
    "No evidence of pneumothorax. " * 9,
]


def inputs(vocab_size: int, start: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pixels [3,S,S,3], ids [4,11], how many are true [4])."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(3, others.IMAGE_SIZE, others.IMAGE_SIZE, 3)).astype(np.float32)
    ids, count = rng.integers(3, vocab_size - 2, (4, 11)), np.array([11, 7, 5, 2])
    ids[:, 0] = start
    for row, true in zip(ids, count, strict=True):
        row[true - 1 :] = end
    return pixels, ids, count


def embed(encoder: layouts.DualEncoder, pixels: np.ndarray, ids: np.ndarray, count: np.ndarray) -> list[np.ndarray]:
    model = encoders_lib.build(encoder)
    images = encoders_lib.embed_images(encoder.params, jnp.asarray(pixels), model=model)
    tokens = jnp.asarray(ids, jnp.int32), jnp.asarray(count, jnp.int32)
    return [np.asarray(images), np.asarray(encoders_lib.embed_texts(encoder.params, *tokens, model=model))]


def assert_equal(encoder: layouts.DualEncoder, model: Any, arrays: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    for ours, theirs in zip(embed(encoder, *arrays), others.features(model, *arrays), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert np.abs(theirs[0] - theirs[1]).max() > 0.05, "rows that are alike would prove nothing"


# ---------------------------------------------------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_hugging_face_clip(tmp_path: pathlib.Path, activation: str) -> None:
    model = others.clip(activation=activation)
    model.save_pretrained(tmp_path)
    encoder = layouts.load(tmp_path, "huggingface")
    assert_equal(encoder, model, inputs(END + 1, END - 1, END))
    assert encoder.logit_scale == pytest.approx(np.exp(2.3), rel=1e-6)
    sizes = encoder.image_size, encoder.channels, encoder.context, encoder.vocab_size, encoder.embed_dim
    assert sizes == (21, 3, 29, END + 1, 17)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("layout", ["openai", "open_clip", "open_clip, text apart"])
def test_the_same_weights_in_other_layouts(tmp_path: pathlib.Path, layout: str, activation: str) -> None:
    model = others.clip(activation=activation)
    weights = others.openai_layout(model, "text." if "apart" in layout else "")
    layout = layout.partition(",")[0]
    options: dict[str, Any] = {"heads": others.HEADS, "activation": activation}
    if layout == "openai":
        file = tmp_path / "weights.pt"
        torch.save({f"module.{name}": value for name, value in weights.items()}, file)
        if activation == "quick_gelu":
            options.pop("activation")
    else:
        file = tmp_path / "open_clip_pytorch_model.bin"
        torch.save({"epoch": 3, "state_dict": weights}, file)
        config = {"embed_dim": 17, "vision_cfg": {"head_width": 6}, "text_cfg": {"heads": 2}}
        config["quick_gelu"] = activation == "quick_gelu"  # type: ignore[assignment]
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
        options = {}
    assert_equal(layouts.load(file, layout, **options), model, inputs(END + 1, END - 1, END))


def test_who_says_heads_and_activations(tmp_path: pathlib.Path) -> None:
    def told(layout: str, **options: Any) -> list[tuple[int, str, str, str]]:
        encoder = layouts.load(tmp_path, layout, **options)
        both = {"image": encoder.image, "text": encoder.text}
        return [
            (told.heads, encoder.origins[part]["heads"], told.activation, encoder.origins[part]["activation"])
            for part, told in both.items()
        ]

    model = others.clip()
    torch.save(others.openai_layout(model), tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match="image encoder's width 30 is no multiple of 64, and nothing says how many"):
        layouts.load(tmp_path, "open_clip")
    assert told("open_clip", heads=others.HEADS) == [
        (5, "the spec", "gelu", "assumed"),
        (2, "the spec", "gelu", "assumed"),
    ]
    config = {"vision_cfg": {"head_width": 6}, "quick_gelu": True}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    beside = "open_clip_config.json"
    assert told("open_clip", heads={"text": 11}) == [
        (5, beside, "quick_gelu", beside),
        (11, "the spec", "quick_gelu", beside),
    ]
    with pytest.raises(UserError, match=r"text .* 22 .* 8"):  # what open_clip takes where its configuration is silent
        layouts.load(tmp_path, "open_clip")
    others.biomedclip_like(tmp_path)
    assert told("open_clip")[0] == (5, beside, "gelu", "its architecture")
    with pytest.raises(UserError, match="leave activation out of the spec"):
        layouts.load(tmp_path, "open_clip", activation="quick_gelu")
    (tmp_path / "open_clip_pytorch_model.bin").unlink()
    model.save_pretrained(tmp_path)
    assert told("huggingface")[0] == (5, "config.json", "quick_gelu", "config.json")
    for options in ({"activation": "gelu"}, {"heads": {"image": 3}}):
        with pytest.raises(UserError, match=r"in layout huggingface config.json says heads and activation"):
            layouts.load(tmp_path, "huggingface", **options)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_single(tmp_path: pathlib.Path, kind: str) -> None:
    model = others.clip()
    half = {name: value.to(getattr(torch, kind)) for name, value in others.openai_layout(model).items()}
    torch.save(half, tmp_path / "a.pt")
    save_file(half, tmp_path / "b.safetensors")
    rounded = {name: value.to(getattr(torch, kind)).float() for name, value in model.state_dict().items()}
    model.load_state_dict(rounded)
    for name in ("a.pt", "b.safetensors"):
        assert_equal(layouts.load(tmp_path / name, "openai", heads=others.HEADS), model, inputs(END + 1, END - 1, END))


@pytest.mark.parametrize("clip_vision", [False, True])
def test_hugging_face_dual_encoder(tmp_path: pathlib.Path, clip_vision: bool) -> None:
    model = others.dual_encoder(clip_vision=clip_vision)
    model.save_pretrained(tmp_path)
    assert_equal(layouts.load(tmp_path, "huggingface"), model, inputs(59, 1, 2))
    if clip_vision:  # version 4 of transformers saved CLIP's model one level deeper
        file = tmp_path / "model.safetensors"
        deeper = {
            name.replace("vision_model.", "vision_model." * 2, 1): value for name, value in load_file(file).items()
        }
        save_file(deeper, file)
        assert_equal(layouts.load(tmp_path, "huggingface"), model, inputs(59, 1, 2))


def test_the_layout_of_biomedclip(tmp_path: pathlib.Path) -> None:
    vision, text, heads = others.biomedclip_like(tmp_path)
    encoder = layouts.load(tmp_path, "open_clip")
    pixels, ids, count = inputs(59, 1, 2)
    mask = torch.tensor((np.arange(11) < count[:, None]).astype(np.int64))
    # timm's norms have another epsilon than Hugging Face's ViT.
    for module in vision.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    with torch.no_grad():
        seen = vision(torch.tensor(pixels.transpose(0, 3, 1, 2).copy())).last_hidden_state[:, 0]
        read = text(torch.tensor(ids), attention_mask=mask).last_hidden_state[:, 0]
    wanted = [seen.numpy() @ heads[0].numpy().T]
    wanted.append(torch.nn.functional.gelu(read @ heads[1].T).numpy() @ heads[2].numpy().T)
    for ours, theirs in zip(embed(encoder, pixels, ids, count), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs / np.linalg.norm(theirs, axis=1, keepdims=True), atol=1e-5)
    assert encoder.context == 11


# ---------------------------------------------------------------------------------------------------------------------
# Words


def test_byte_pairs_are_those_of_transformers(tmp_path: pathlib.Path) -> None:
    for name in ("openai", "huggingface", "json"):
        (tmp_path / name).mkdir()
    others.write_openai_vocabulary(tmp_path / "openai")
    others.write_huggingface_vocabulary(tmp_path / "huggingface")
    pieces = {piece: number for number, piece in enumerate(others.VOCABULARY)}
    theirs = CLIPTokenizer(vocab=pieces, merges=others.MERGES)
    theirs.save_pretrained(tmp_path / "json")
    assert (tmp_path / "json" / "tokenizer.json").exists()
    wanted = theirs(TEXTS, truncation=True, max_length=others.CONTEXT)["input_ids"]
    assert len({len(ids) for ids in wanted}) > 3
    for name in ("openai", "huggingface", "json"):
        ids, count = subwords.load(tmp_path / name).encode_batch(TEXTS, others.CONTEXT)
        assert [row[:n].tolist() for row, n in zip(ids, count, strict=True)] == wanted, name
        assert not any(row[n:].any() for row, n in zip(ids, count, strict=True))


def test_entities_are_resolved_where_openais_program_does(tmp_path: pathlib.Path) -> None:
    others.write_openai_vocabulary(tmp_path)
    (tmp_path / "huggingface").mkdir()
    others.write_huggingface_vocabulary(tmp_path / "huggingface")
    pieces = {piece: number for number, piece in enumerate(others.VOCABULARY)}
    theirs = CLIPTokenizer(vocab=pieces, merges=others.MERGES)
    escaped, plain = ["a&amp;b &lt;5mm", "no&nbsp;edema &amp;gt; 3"], ["a&b <5mm", "no edema > 3"]
    for folder, texts in ((tmp_path, plain), (tmp_path / "huggingface", escaped)):
        ids, count = subwords.load(folder).encode_batch(escaped, others.CONTEXT)
        wanted = theirs(texts, truncation=True, max_length=others.CONTEXT)["input_ids"]
        assert [row[:n].tolist() for row, n in zip(ids, count, strict=True)] == wanted


@pytest.mark.parametrize("lowercase", [True, False])
def test_word_pieces_are_those_of_transformers(tmp_path: pathlib.Path, lowercase: bool) -> None:
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "no",
        "No",
        "pleural",
        "eff",
        "##usion",
        "Effusion",
        ".",
        "3",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
    theirs = BertTokenizerFast(vocab={word: n for n, word in enumerate(words)}, do_lower_case=lowercase)
    texts = ["No pleural effusion.", "Effusion 3", "unheard of", "no " * 30]
    ids, count = subwords.load(tmp_path).encode_batch(texts, 13)
    assert [row[:n].tolist() for row, n in zip(ids, count, strict=True)] == theirs(
        texts, truncation=True, max_length=13
    )["input_ids"]


# ---------------------------------------------------------------------------------------------------------------------
# The whole model

RULES = Preprocess((Step("squash", others.IMAGE_SIZE, "bilinear"),), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def test_an_ensemble_lays_its_members_side_by_side(tmp_path: pathlib.Path) -> None:
    others.write_openai_vocabulary(tmp_path)
    models = [others.clip(seed) for seed in range(3)]
    paths = []
    for number, model in enumerate(models):
        paths.append(tmp_path / f"{number}.pt")
        torch.save(others.openai_layout(model), paths[-1])
    encoders = encoders_lib.load_encoders(paths, "openai", heads=others.HEADS)
    together, _ = encoders_lib.load(paths, encoders, RULES, all_devices=True)
    pixels = [np.random.default_rng(n).integers(0, 256, (40 + n, 33)).astype(np.uint8) for n in range(67)]
    texts = [f"No mass {number}" for number in range(71)]
    images, words = together.encode_image(pixels), together.encode_text(texts)
    fitted = np.stack([RULES(each, 3) for each in pixels])
    pieces = {piece: number for number, piece in enumerate(others.VOCABULARY)}
    ids = CLIPTokenizer(vocab=pieces, merges=others.MERGES)(texts, padding=True, return_tensors="np")
    count = ids["attention_mask"].sum(axis=1)
    for n, (model, (columns, scale)) in enumerate(zip(models, together.members, strict=True)):
        seen, read = others.features(model, fitted, ids["input_ids"], count)
        np.testing.assert_allclose(images[:, columns] * 3**0.5, seen, atol=1e-5)
        np.testing.assert_allclose(words[:, columns] * 3**0.5, read, atol=1e-5)
        assert scale == pytest.approx(np.exp(2.3 + 0.1 * n), rel=1e-6)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-6)
    assert together.encode_image([]).shape == together.encode_text([]).shape == (0, 51)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def lacking(weights: dict[str, Any]) -> Any:
    weights.pop("visual.ln_post.bias")
    return weights


def reshaped(weights: dict[str, Any]) -> Any:
    return weights | {"text_projection": weights["text_projection"][:, :16]}


def turned(weights: dict[str, Any]) -> Any:
    return weights | {"ln_final.weight": weights["ln_final.weight"][None]}


def infinite(weights: dict[str, Any]) -> Any:
    return weights | {"visual.proj": weights["visual.proj"] * float("inf")}


def with_more(weights: dict[str, Any]) -> Any:
    return weights | {"visual.attn_pool.query": torch.zeros(3)}


def sigmoid(weights: dict[str, Any]) -> Any:
    return weights | {"logit_bias": torch.tensor(-10.0)}


def resnet(weights: dict[str, Any]) -> Any:
    return weights | {"visual.layer1.0.conv1.weight": torch.zeros(3)}


def no_square(weights: dict[str, Any]) -> Any:
    return weights | {"visual.positional_embedding": weights["visual.positional_embedding"][:8]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lacking, "lacks the weight visual.ln_post.bias"),
        (reshaped, "images are embedded in 17 dimensions and texts in 16"),
        (turned, r"ln_final.weight has the shape \[1, 22\], where \[22\] belongs"),
        (infinite, "visual.proj holds values that are not finite"),
        (with_more, r"1 of its weights have no place in this architecture \(visual.attn_pool.query\)"),
        (sigmoid, "trained with a sigmoid loss"),
        (resnet, "its image encoder is a ResNet"),
        (no_square, "its 7 patches of 147 values are no square"),
        (lambda weights: {"epoch": 3}, "'epoch' is a int and no tensor"),
        (lambda weights: [1, 2], "holds a list and no state dict"),
        (lambda weights: {"a": torch.zeros(2)}, "its image encoder is neither CLIP's"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: pathlib.Path, change: Callable[[Any], Any], message: str) -> None:
    torch.save(change(others.openai_layout(others.clip())), tmp_path / "a.pt")
    with pytest.raises(UserError, match=message) as caught:
        layouts.load(tmp_path / "a.pt", "openai", heads=others.HEADS)
    assert "a.pt" in str(caught.value)
    assert "\n" not in str(caught.value)


class Danger:
    """Its pickle would call a function."""

    def __reduce__(self) -> Any:
        return print, ("this must not run",)


def test_files_that_hold_something_else(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "code.pt").write_bytes(pickle.dumps(Danger()))
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights at all, but long enough")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), tmp_path / "archive.pt")
    torch.save(others.openai_layout(others.clip()), tmp_path / "cut.pt")
    whole = (tmp_path / "cut.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty").mkdir()
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "model.safetensors.index.json").write_text("{}")
    for name, message in {
        "code.pt": "holds more than tensors",
        "text.pt": "holds more than tensors",
        "text.safetensors": "cannot be read",
        "archive.pt": "is a TorchScript archive",
        "cut.pt": "cannot be read by PyTorch",
        "empty": "holds no weights",
        "parts": "the weights lie in several parts",
        "nowhere": "there is no such checkpoint",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            layouts.load(tmp_path / name, "openai")
        assert "\n" not in str(caught.value), name
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "siglip"}, "model_type 'siglip' is not supported"),
        ({"model_type": "vision-text-dual-encoder", "text_config": {"model_type": "roberta"},
          "vision_config": {"model_type": "vit"}}, "an encoder of model_type 'roberta' is not supported"),
        ({"vision_config": {"hidden_act": "relu"}}, "the activation 'relu'"),
        ({"vision_config": {"num_attention_heads": 4}}, "width 30 is no multiple of 4 heads"),
        ({"vision_config": {"num_attention_heads": "x"}}, "num_attention_heads is a whole .* at least 1, not 'x'"),
        ({"text_config": {"num_attention_heads": 0}}, "num_attention_heads is a whole number of at least 1, not 0"),
        ({"text_config": {"num_attention_heads": -2}}, "num_attention_heads is a whole number of at least 1, not -2"),
        ({"vision_config": {"layer_norm_eps": "z"}}, "layer_norm_eps is a number of at least 0, not 'z'"),
        ({"vision_config": {"layer_norm_eps": True}}, "layer_norm_eps is a number of at least 0, not True"),
        ({"vision_config": {"hidden_act": ["gelu"]}}, "hidden_act is a word, not"),
        ({"vision_config": "big"}, "vision_config is an object with fields, not 'big'"),
        ({"text_config": [1]}, r"text_config is an object with fields, not \[1\]"),
    ],
)  # fmt: skip
def test_configurations_that_are_not_supported(tmp_path: pathlib.Path, changes: dict[str, Any], message: str) -> None:
    others.clip().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"config.json: .*{message}"):
        layouts.load(tmp_path, "huggingface")
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="this layout needs the file beside the weights"):
        layouts.load(tmp_path, "huggingface")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_cfg": []}, r"model_cfg is an object with fields, not \[\]"),
        ({"model_cfg": {"vision_cfg": "big"}}, "vision_cfg is an object with fields, not 'big'"),
        ({"model_cfg": {"quick_gelu": "false"}}, "quick_gelu is true or false, not 'false'"),
        ({"model_cfg": {"vision_cfg": {"head_width": 0}}}, "head_width is a whole number of at least 1, not 0"),
        ({"model_cfg": {"vision_cfg": {"head_width": 6}, "text_cfg": {"heads": -5}}}, "heads is a whole .*, not -5"),
    ],
)
def test_configurations_of_open_clip_that_are_damaged(
    tmp_path: pathlib.Path, config: dict[str, Any], message: str
) -> None:
    torch.save(others.openai_layout(others.clip()), tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"open_clip_config.json: {message}"):
        layouts.load(tmp_path, "open_clip")
    fields = {"vision_cfg": {"head_width": 6}, "text_cfg": {"heads": 2}, "quick_gelu": None}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": fields}))
    assert layouts.load(tmp_path, "open_clip").text.activation == "gelu"


def test_a_bert_without_a_known_pooler_is_refused(tmp_path: pathlib.Path) -> None:
    others.biomedclip_like(tmp_path, pooler="mean_pooler")
    with pytest.raises(UserError, match="names the pooler cls_last_hidden_state_pooler, not mean_pooler"):
        layouts.load(tmp_path, "open_clip")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": {"embed_cls": True}}}))
    with pytest.raises(UserError, match="embed_cls of text_cfg is not supported"):
        layouts.load(tmp_path, "open_clip")


def test_vocabularies_that_do_not_fit(tmp_path: pathlib.Path) -> None:
    (tmp_path / "none").mkdir()
    file = others.write_openai_vocabulary(tmp_path)
    (tmp_path / "bad.txt.gz").write_text("not gzip")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0}))
    for path, size, message in [
        (tmp_path / "none", 5, r"holds no vocabulary .*--vocabulary"),
        (file, END, f"has {END + 1} entries and the model's token embedding {END} rows"),
        (tmp_path / "bad.txt.gz", 5, "bad.txt.gz is no vocabulary"),
        (tmp_path / "tokenizer.json", 5, "is no vocabulary"),
        (tmp_path / "vocab.txt", 2, r"lacks \[CLS\]"),
        (tmp_path / "vocab.json", 1, "merges.txt is missing"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            subwords.check_rows(subwords.load(path), size, str(path))
        assert "\n" not in str(caught.value)


def test_vocabularies_that_are_damaged(tmp_path: pathlib.Path) -> None:
    folders = {name: tmp_path / name for name in ("body", "merge", "marks", "text", "word", "below", "merges", "coded")}
    for folder in folders.values():
        folder.mkdir()
        others.write_huggingface_vocabulary(folder)
    pieces = {piece: number for number, piece in enumerate(others.VOCABULARY)}
    gz = others.write_openai_vocabulary(folders["body"])
    whole = gz.read_bytes()
    gz.write_bytes(whole[:40] + bytes(255 - byte for byte in whole[40:60]) + whole[60:])
    (folders["body"] / "cut.txt.gz").write_bytes(whole[:100])
    (folders["merge"] / "a.txt.gz").write_bytes(gzip.compress(b"heading\nqqq zzz\n"))
    (folders["marks"] / "vocab.json").write_text(json.dumps({"a": 0}))
    (folders["text"] / "vocab.txt").write_bytes(b"[CLS]\n\xff\xfe\n")
    (folders["word"] / "vocab.json").write_text(json.dumps(pieces | {"a": "x"}))
    (folders["below"] / "vocab.json").write_text(json.dumps(pieces | {"a": -1}))
    (folders["merges"] / "merges.txt").write_text("qqq zzz\n")
    (folders["coded"] / "merges.txt").write_bytes(b"\xff\xfe a\n")
    files = [gz, folders["body"] / "cut.txt.gz", folders["merge"] / "a.txt.gz", folders["text"] / "vocab.txt"]
    files += [folders[name] / "vocab.json" for name in ("marks", "word", "below", "merges", "coded")]
    for file in files:
        with pytest.raises(UserError, match="is no vocabulary") as caught:
            subwords.load(file)
        assert str(caught.value).startswith(str(file))
        assert "\n" not in str(caught.value)
    (tmp_path / "vocab.txt").write_text("[CLS]\n[SEP]\n[UNK]\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": "no"}))
    with pytest.raises(UserError, match=r"tokenizer_config.json: do_lower_case is true or false, not 'no'"):
        subwords.load(tmp_path)


def test_each_checkpoint_is_summed_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others.write_openai_vocabulary(tmp_path)
    files = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for seed, file in enumerate(files):
        torch.save(others.openai_layout(others.clip(seed)), file)
    summed: list[pathlib.Path] = []

    def sha256(file: pathlib.Path) -> str:
        summed.append(file)
        return hashlib.sha256(file.read_bytes()).hexdigest()

    for module in (encoders_lib, external):
        monkeypatch.setattr(module, "sha256", sha256)
    spec = dataclasses.replace(external.load_spec("openai-clip"), heads=others.HEADS)
    rules = Preprocess((Step("squash", others.IMAGE_SIZE, "box"),), (0.5,), (0.2,))
    facts = external.open_model(dataclasses.replace(spec, preprocess=rules), files).facts
    assert sorted(file.name for file in summed) == ["a.pt", "b.pt", "bpe_simple_vocab_16e6.txt.gz"]
    sums = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert [each["sha256"] for each in facts["checkpoints"]] == sums


def test_members_that_are_no_ensemble(tmp_path: pathlib.Path) -> None:
    others.write_openai_vocabulary(tmp_path)
    model = others.clip()
    weights = others.openai_layout(model)
    torch.save(weights, tmp_path / "a.pt")
    shutil.copy(tmp_path / "a.pt", tmp_path / "b.pt")
    with pytest.raises(UserError, match=r"a.pt and .*b.pt are the same weights"):
        encoders_lib.load_encoders([tmp_path / "a.pt", tmp_path / "b.pt"], "openai", heads=others.HEADS)
    torch.save(weights | {"positional_embedding": weights["positional_embedding"][:28]}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="are no ensemble: their context is 29 and 28"):
        encoders_lib.load_encoders([tmp_path / "a.pt", tmp_path / "c.pt"], "openai", heads=others.HEADS)
    encoders = encoders_lib.load_encoders([tmp_path / "a.pt"], "openai", heads=others.HEADS)
    other = Preprocess((Step("squash", 22, "bilinear"),), (0.5,), (0.2,))
    with pytest.raises(UserError, match=r"preprocessing ends with 22 pixels a side, and .*a.pt takes 21"):
        encoders_lib.load([tmp_path / "a.pt"], encoders, other)
