"""Exports that transformers loads offline: its embeddings are ours, and what comes back is what went out."""

import json
import os
import pathlib
from typing import Any

import exports
import numpy as np
import others
import pytest
import tiny
from ml_collections import ConfigDict

pytest.importorskip("torch", reason="torch and transformers have an environment of their own: make test-interop")
pytest.importorskip("timm_beside_cpu", reason="timm is part of make test-interop")

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when transformers is imported

import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    CLIPModel,
    VisionTextDualEncoderModel,
    ViTForImageClassification,
)

import mmclip_jax
from mmclip_jax.checkpoints import find_checkpoint
from mmclip_jax.checkpoints.arrays import flat_tree, read_params
from mmclip_jax.export import run as export
from mmclip_jax.text import subwords
from mmclip_jax.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.torch

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *sorted({word.lower() for word in others.CORPUS.split() if word.isalpha()}),
    *f"{_LETTERS}.,;-",
    *(f"##{letter}" for letter in _LETTERS),
]


def clip_tokenizer(folder: pathlib.Path) -> subwords.SubwordTokenizer:
    others.write_huggingface_vocabulary(folder)
    return subwords.load(folder)


def bert_tokenizer(folder: pathlib.Path) -> subwords.SubwordTokenizer:
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(WORDS)) + "\n")
    return subwords.load(folder)


def convnext() -> ConfigDict:
    config = tiny.load_config("demo", "runlocal")
    config.model.update({"stem": "patch", "patch_size": 16, "pool": "map"})
    config.model.image.update({"encoder": "convnext", "depths": (1, 2, 1), "width": 24, "heads": 3})
    return config


def everything() -> ConfigDict:
    config = tiny.load_config("mmclip_vitb16", "runlocal")
    config.model.update({"dtype": "float32", "pool": "map", "text_pool": "last", "image_size": 48})
    config.model.image.update(
        {"norm": "post", "first_norm": True, "final_norm": False, "layer_scale": True, "registers": 3, "key_bias": True}
    )
    config.model.image.class_token = True
    config.model.image_head.update({"hidden": 17, "activation": "quick_gelu", "bias": True, "hidden_bias": False})
    config.model.text_head.update({"hidden": 19, "activation": "gelu"})
    return config


def float32(name: str) -> ConfigDict:
    config = tiny.load_config(name, "runlocal")
    config.model.dtype = "float32"
    return config


def runlocal_demo() -> ConfigDict:
    return tiny.load_config("demo", "runlocal")


CASES: dict[str, tuple[Any, Any, str]] = {
    "demo": (lambda: float32("demo"), None, "MMCLIPModel"),
    "real_small": (lambda: float32("real_small"), None, "MMCLIPModel"),
    "mmclip_vitb16": (lambda: float32("mmclip_vitb16"), None, "MMCLIPModel"),
    "convnext": (convnext, None, "MMCLIPModel"),
    "everything": (everything, None, "MMCLIPModel"),
    "clip texts": (lambda: exports.clip_like(runlocal_demo()), None, "MMCLIPModel"),
    "clip": (lambda: exports.clip_like(runlocal_demo()), clip_tokenizer, "CLIPModel"),
    "vit and bert": (lambda: exports.dual_like(runlocal_demo()), bert_tokenizer, "VisionTextDualEncoderModel"),
    "vit with pooler": (
        *(lambda: exports.dual_like(runlocal_demo(), hidden=32), bert_tokenizer, "VisionTextDualEncoderModel"),
    ),
    "clip and bert": (
        *(lambda: exports.dual_like(runlocal_demo(), first_norm=True), bert_tokenizer, "VisionTextDualEncoderModel"),
    ),
}
CLASSES = {"CLIPModel": CLIPModel, "VisionTextDualEncoderModel": VisionTextDualEncoderModel}


def features(made: Any) -> np.ndarray:
    """L2-normalised embeddings of what get_image_features or get_text_features returns."""
    rows = getattr(made, "pooler_output", made).numpy()
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


@pytest.mark.parametrize("case", CASES)
def test_the_library_embeds_as_the_run_does_and_nothing_is_lost(case: str, tmp_path: pathlib.Path) -> None:
    make, words, kind = CASES[case]
    tokenizer = None
    if words is not None:
        (tmp_path / "words").mkdir()
        tokenizer = words(tmp_path / "words")
    run, out = exports.save(tmp_path / "run", make(), tokenizer), tmp_path / "out"
    said = export.run(run, "huggingface", out)
    assert f"as huggingface: {kind}" in said
    pictures = exports.pictures()
    mine = exports.embed(run, pictures, exports.TEXTS)
    if kind in CLASSES:
        model, notes = CLASSES[kind].from_pretrained(out, output_loading_info=True)
    else:
        model, notes = AutoModel.from_pretrained(out, trust_remote_code=True, output_loading_info=True)
    assert type(model).__name__ == kind
    assert not any(notes[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), notes
    processor = AutoProcessor.from_pretrained(out, trust_remote_code=True)
    settings = find_checkpoint(run).config.model
    length = settings.text.length
    words_of = processor.tokenizer(exports.TEXTS, padding=True, truncation=True, max_length=length, return_tensors="pt")
    with torch.no_grad():
        images = model.eval().get_image_features(**processor.image_processor(pictures, return_tensors="pt"))
        texts = model.get_text_features(words_of["input_ids"], attention_mask=words_of["attention_mask"])
        if kind == "CLIPModel":
            assert model.logit_scale.item() == exports.stored(run)["log_logit_scale"]
    for theirs, own in zip((features(images), features(texts)), mine, strict=True):
        np.testing.assert_allclose(theirs, own, atol=1e-5)
        assert np.abs(own[0] - own[1]).max() > 0.01, "rows that are alike would prove nothing"
    before, after = exports.stored(run), read_params(find_checkpoint(out))
    assert before.keys() == after.keys()
    assert all(array.tobytes() == after[path].tobytes() for path, array in before.items())
    with np.load(out / "mmclip_rest.npz") as rest:  # what the library's class can hold is not stored twice
        kept = {path.partition("/")[0] for path in rest.files}
    assert "text_encoder" not in kept
    assert "image_encoder" not in kept or kind == "CLIPModel" or case == "clip and bert"


@pytest.mark.parametrize("task", ["multi-label", "multi-class"])
def test_a_classifier_becomes_the_librarys_own(task: str, tmp_path: pathlib.Path) -> None:
    run, out = exports.save_classifier(tmp_path / "run", exports.dual_like(runlocal_demo()), task), tmp_path / "out"
    assert "as huggingface: ViTForImageClassification" in export.run(run, "huggingface", out)
    model, notes = ViTForImageClassification.from_pretrained(out, output_loading_info=True)
    assert not any(notes[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), notes
    assert model.config.id2label == {0: "edema", 1: "pneumothorax"}
    pictures = exports.pictures()
    processor = AutoImageProcessor.from_pretrained(out, trust_remote_code=True)
    with torch.no_grad():
        z = model.eval()(**processor(pictures, return_tensors="pt")).logits
    theirs = (z.softmax(dim=1) if task == "multi-class" else z.sigmoid()).numpy()
    wanted = np.stack(list(mmclip_jax.load(run).predict(pictures).values()), axis=1)
    np.testing.assert_allclose(theirs, wanted, atol=1e-5)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.01
    back = mmclip_jax.load(out)
    np.testing.assert_array_equal(back.encode_image(pictures), mmclip_jax.load(run).encode_image(pictures))
    with np.load(out / "mmclip_rest.npz") as rest:
        assert not rest.files


def test_the_processor_of_transformers_does_for_squares(tmp_path: pathlib.Path) -> None:
    """Without code of ours: images that are squares of the model's size become the same pixels."""
    (tmp_path / "words").mkdir()
    run = exports.save(tmp_path / "run", exports.dual_like(runlocal_demo()), bert_tokenizer(tmp_path / "words"))
    export.run(run, "huggingface", tmp_path / "out")
    from PIL import Image

    squares = [Image.fromarray(pixels[..., 0]) for pixels in exports.images(42)]
    plain = AutoImageProcessor.from_pretrained(tmp_path / "out", trust_remote_code=False)
    own = AutoImageProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert type(plain).__name__.startswith("ViTImageProcessor")
    assert type(own).__name__ == "MMCLIPImageProcessor"
    made = [np.asarray(each(squares, return_tensors="pt")["pixel_values"]) for each in (plain, own)]
    assert made[0].shape == (3, 3, 42, 42)
    np.testing.assert_allclose(made[0], made[1], atol=1e-6)


def test_the_snippet_of_the_document_gives_logits_of_the_runs_scale(tmp_path: pathlib.Path) -> None:
    run = exports.save(tmp_path / "run", float32("demo"))
    export.run(run, "huggingface", tmp_path / "out")
    names: dict[str, Any] = {"images": exports.pictures()}
    with torch.no_grad():
        exec(exports.snippet("transformers", tmp_path / "out"), names)
    model, logits = names["model"], names["out"].logits_per_image.numpy()
    images, texts = exports.embed(run, exports.pictures(), ["edema", "no edema"])
    scale = np.exp(exports.stored(run)["log_logit_scale"])
    np.testing.assert_allclose(logits, scale * images @ texts.T, atol=1e-4)
    with pytest.raises(ValueError, match="3 channels, not 1"):
        model(pixel_values=torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("kind", ["ours", "bert", "clip"])
def test_tokenizers_give_the_same_ids(kind: str, tmp_path: pathlib.Path) -> None:
    make = {"ours": None, "bert": bert_tokenizer, "clip": clip_tokenizer}[kind]
    tokenizer = make(tmp_path) if make else None
    run = exports.save(tmp_path / "run", float32("demo"), tokenizer)
    export.run(run, "numpy", tmp_path / "out")
    ours = tokenizer or load_tokenizer()
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    rng = np.random.default_rng(2)
    letters = [chr(code) for code in [*range(32, 127), 9, 10, 0xA0, 0xDF, 0xE9, 0x3B1, 0x2581, 0x4E00, 0x1F600]]
    drawn = ["".join(rng.choice(letters, 30)) for _ in range(300)]
    reports = [f"{a} {b}".replace("  ", " ") for a in others.CORPUS.split(" . ") for b in exports.TEXTS]
    for text in [*exports.TEXTS, "ΜΑΖΑ ΣΤΟΝ ΠΝΕΥΜΟΝΑΣ", *reports, *drawn]:
        wanted = ours.encode_batch([text], 999)
        assert theirs(text)["input_ids"] == wanted[0][0, : wanted[1][0]].tolist(), text
    assert theirs.pad_token_id == 0
    assert len(theirs) == ours.vocab_size


def test_a_run_of_published_weights_goes_out_again(tmp_path: pathlib.Path) -> None:
    """Weights of transformers → a start of ours, normalisation folded into the patches → weights of transformers."""
    from mmclip_jax.config import default_config
    from mmclip_jax.models.mmclip import build_model
    from mmclip_jax.train import start as start_lib

    (tmp_path / "theirs").mkdir()
    others.clip(seed=4).save_pretrained(tmp_path / "theirs")
    others.write_huggingface_vocabulary(tmp_path / "theirs")
    config = default_config()
    config.init.model = str(tmp_path / "theirs")
    config.model.update({"dtype": "float32", "remat": False, "image_size": others.IMAGE_SIZE})
    for part in ("image_decoder", "text_decoder"):
        config.model[part].update({"width": 8, "depth": 1, "heads": 2, "mlp_dim": 8})
    start = start_lib.prepare(config, given=["model.image_size"])
    assert start is not None
    config.model.text.vocab_size = start.tokenizer.vocab_size  # type: ignore[union-attr]
    drawn = flat_tree(tiny.random_params(build_model(config.model), config))
    run = exports.save(tmp_path / "run", config, start.tokenizer, drawn | (start.params or {}))
    said = export.run(run, "huggingface", tmp_path / "out")
    assert "as huggingface: CLIPModel" in said
    model = CLIPModel.from_pretrained(tmp_path / "out").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)
    with torch.no_grad():
        images = model.get_image_features(**processor.image_processor(exports.pictures(), return_tensors="pt"))
    ours, _ = exports.embed(run, exports.pictures(), ["edema"])
    np.testing.assert_allclose(features(images), ours, atol=1e-5)
    after = read_params(find_checkpoint(tmp_path / "out"))
    assert all(array.tobytes() == after[path].tobytes() for path, array in exports.stored(run).items())


def test_files_say_where_they_come_from(tmp_path: pathlib.Path) -> None:
    run = exports.save(tmp_path / "run", float32("demo"))
    export.run(run, "huggingface", tmp_path / "out")
    for file in (tmp_path / "out").glob("*_mmclip.py"):
        assert "Apache License, Version 2.0" in file.read_text().split('"""')[0]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_mmclip.MMCLIPModel"
