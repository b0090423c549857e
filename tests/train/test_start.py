"""Runs that start from weights of others, or from a run of our own: what they begin with, and what they say of it."""

import hashlib
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import others
import pytest

pytest.importorskip("torch", reason="torch and transformers have an environment of their own: make test-interop")
pytest.importorskip("timm_beside_cpu", reason="timm is part of make test-interop")
pytest.importorskip("timm", reason="timm is part of make test-interop")

import jax
import jax.numpy as jnp
import timm
import torch
import transformers
from conftest import ROOT
from timm.models._hub import save_for_hf

import mmclip_jax
from mmclip_jax import cli, settings
from mmclip_jax.checkpoints import find_checkpoint
from mmclip_jax.errors import UserError
from mmclip_jax.inference import exposure
from mmclip_jax.train import run as training
from mmclip_jax.train import start as start_lib

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.compiles]

CONFIG = f"{ROOT}/configs/mmclip_vitb16.py:runlocal"
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = ["No pleural effusion or pneumothorax.", "There is a large mass in the right upper lobe."]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, phantom_dir: pathlib.Path) -> dict[str, Any]:
    """A vision transformer of timm and a BERT with its vocabulary, of sizes that no default has."""
    from tokenizers import BertWordPieceTokenizer

    from mmclip_jax.data.records import open_records

    folder = tmp_path_factory.mktemp("weights")
    image = others.shake(
        timm.create_model(
            "vit_tiny_patch16_224", img_size=56, patch_size=14, embed_dim=36, depth=3, num_heads=3, mlp_ratio=2
        ),
        1,
    )
    save_for_hf(image, folder / "vit", model_args={"num_heads": 3})
    learner = BertWordPieceTokenizer()
    reports = open_records(phantom_dir, "train", "paired")
    learner.train_from_iterator([reports[n].text for n in range(len(reports))], vocab_size=401, special_tokens=MARKS)
    vocabulary = learner.get_vocab()
    text = others.shake(
        transformers.BertForMaskedLM(
            transformers.BertConfig(
                vocab_size=len(vocabulary), hidden_size=44, num_hidden_layers=2, num_attention_heads=2,
                intermediate_size=61, max_position_embeddings=97,
            )
        ),
        2,
    )  # fmt: skip
    text.save_pretrained(folder / "bert")
    words = sorted(vocabulary, key=lambda word: vocabulary[word])
    (folder / "bert" / "vocab.txt").write_text("\n".join(words) + "\n")
    return {"folder": folder, "image": image, "text": text, "tokenizer": learner}


def command(workdir: pathlib.Path, data: pathlib.Path, *more: str) -> list[str]:
    return [
        *("train", "--config", CONFIG, "--workdir", str(workdir), f'--config.data.train=("{data}",)'),
        *("--config.train.steps=3", "--config.train.checkpoint_every=2", "--config.train.evaluate_every=0"),
        *("--config.train.gradient_norms_every=0", "--config.model.dtype=float32", "--config.model.image_size=70"),
        *("--config.data.batch_paired=8", "--config.data.batch_unpaired=8", *more),
    ]


def both(weights: dict[str, Any]) -> list[str]:
    folder = weights["folder"]
    return [f"--config.init.image={folder / 'vit'}", f"--config.init.text={folder / 'bert'}"]


@pytest.fixture(scope="module")
def run(weights: dict[str, Any], phantom_dir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run from both encoders, stopped after two of its three steps' checkpoint and finished later."""
    workdir = tmp_path_factory.mktemp("run") / "first"
    assert cli.main(command(workdir, phantom_dir, *both(weights))) == 0
    return workdir


def first_state(
    overrides: list[str], data: pathlib.Path, monkeypatch: pytest.MonkeyPatch, workdir: pathlib.Path
) -> Any:
    """(settings, parameters before step 0, tokenizer) of a run, which is stopped there."""
    seen: dict[str, Any] = {}

    class Stop(Exception):
        pass

    def fit(train_step: Any, state: Any, iterator: Any, mesh: Any, config: Any, *rest: Any, **more: Any) -> Any:
        seen.update(params=jax.device_get(state.params), config=config, ema=jax.device_get(state.ema))
        raise Stop

    monkeypatch.setattr(training, "fit", fit)
    arguments = command(workdir, data, *overrides)[5:]
    config = settings.read_config(CONFIG, [each for each in arguments if each.startswith("--config.")])
    given = settings.names_given([each for each in arguments if each.startswith("--config.")])
    with pytest.raises(Stop):
        training.train(config, str(workdir), given=given)
    return seen


def model_of(seen: dict[str, Any], tokenizer: Any) -> Any:
    from mmclip_jax.inference.model import Model

    return Model(seen["config"], seen["params"], tokenizer, 0, {})


def test_the_first_features_are_those_of_the_libraries(
    weights: dict[str, Any], phantom_dir: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmclip_jax.models.inputs import pixels, standardize
    from mmclip_jax.models.mmclip import build_model
    from mmclip_jax.text.tokenizer import load_tokenizer

    seen = first_state(both(weights), phantom_dir, monkeypatch, tmp_path / "run")
    model = build_model(seen["config"].model)
    grey = np.random.default_rng(0).integers(0, 256, (3, 70, 70, 1)).astype(np.uint8)
    for params in (seen["params"], seen["ema"]):
        patches = model.apply({"params": params}, standardize(pixels(jnp.asarray(grey))), method="encode_image")[0]
        vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=70, patch_size=14, embed_dim=36, depth=3, num_heads=3, mlp_ratio=2
        ).eval()
        old = weights["image"].state_dict()
        vit.load_state_dict(old | {"pos_embed": timm.layers.resample_abs_pos_embed(old["pos_embed"], [5, 5])})
        rgb = np.repeat((grey.astype(np.float32) / 255 - 0.5) / 0.5, 3, axis=3).transpose(0, 3, 1, 2)
        with torch.no_grad():
            wanted = vit.forward_features(torch.tensor(rgb.copy())).numpy()[:, 1:]
        np.testing.assert_allclose(patches / np.abs(wanted).max(), wanted / np.abs(wanted).max(), atol=1e-5)
        tokenizer = load_tokenizer(weights["folder"] / "bert")
        ids, count = tokenizer.encode_batch(TEXTS, 23)
        mine = np.asarray(model.apply({"params": params}, ids, method="encode_text"))
        theirs = [[2, *weights["tokenizer"].encode(text).ids, 3] for text in TEXTS]
        for row, n, words in zip(mine, count, theirs, strict=True):
            with torch.no_grad():
                wanted = weights["text"].bert(torch.tensor([words])).last_hidden_state[0].numpy()
            assert len(words) == n
            np.testing.assert_allclose(row[:n] / np.abs(wanted).max(), wanted / np.abs(wanted).max(), atol=1e-5)


def test_settings_come_from_the_weights_and_are_kept(weights: dict[str, Any], run: pathlib.Path) -> None:
    saved = find_checkpoint(run)
    model = saved.config.model
    image = {"width": 36, "depth": 3, "heads": 3, "mlp_dim": 72, "class_token": True, "activation": "gelu"}
    assert {name: model.image[name] for name in image} == image
    text = {"encoder": "bert", "width": 44, "depth": 2, "heads": 2, "mlp_dim": 61, "length": 97, "epsilon": 1e-12}
    assert {name: model.text[name] for name in text} == text
    assert (model.patch_size, model.image_size) == (14, 70)
    record = saved.manifest["init"]
    file = weights["folder"] / "bert" / "model.safetensors"
    assert [entry["part"] for entry in record["files"]] == ["image", "text"]
    assert record["files"][1]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert record["stated_by"] == "nobody"
    assert exposure.exposure("hernia", "elsewhere", saved.manifest) == exposure.STARTED_ELSEWHERE
    report = json.loads((run / start_lib.REPORT_FILE).read_text())
    assert any(name.startswith("cls.predictions") for name in report["left_out"])
    assert "image_encoder/position" in report["changed"]
    assert {path.partition("/")[0] for path in report["taken"]} == {"image_encoder", "text_encoder"}
    new = {path.partition("/")[0] for path in report["new"]}
    assert {"decode_patches", "image_projection"} <= new
    assert not new & {"image_encoder", "text_encoder"}


def test_a_run_goes_on_and_is_evaluated_with_its_workdir_alone(
    weights: dict[str, Any], run: pathlib.Path, phantom_dir: pathlib.Path, tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    last = _params(copy, 3)
    shutil.rmtree(copy / "checkpoints" / "3")
    moved = weights["folder"].with_name("moved")
    weights["folder"].rename(moved)
    try:
        assert cli.main(command(copy, phantom_dir, *both(weights))) == 0
        again = _params(copy, 3)
        for path, value in last.items():
            np.testing.assert_array_equal(again[path], value)
        arguments = ["evaluate", "--workdir", str(copy), "--data", str(phantom_dir), "--out", str(tmp_path / "out")]
        assert cli.main(arguments) == 0
        told = json.loads((tmp_path / "out" / "results.json").read_text())
        stamps = {f["exposure"] for source in told["zero_shot"]["sources"].values() for f in source["findings"]}
        assert exposure.REPORT_ONLY not in stamps
        for name in ("report.html", "model_card.md"):
            page = (tmp_path / "out" / name).read_text()
            assert "Started from" in page
            assert "They were trained on" in page
        model = mmclip_jax.load(copy)
        assert model.encode_text(TEXTS).shape == (2, 512)
        capsys.readouterr()
        assert cli.main(command(copy, phantom_dir)) == 2  # a run does not forget what it started from
        assert f"holds a run with init.image='{weights['folder'] / 'vit'}', not ''" in capsys.readouterr().err
    finally:
        moved.rename(weights["folder"])


def _params(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    model = mmclip_jax.load(workdir, step)
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(model._params)
    }


def test_a_run_that_starts_from_a_run(
    run: pathlib.Path, phantom_dir: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = mmclip_jax.load(run)
    overrides = [f"--config.init.model={run}", "--config.model.image_size=42", "--config.model.text.length=61"]
    seen = first_state(overrides, phantom_dir, monkeypatch, tmp_path / "new")
    assert seen["config"].model.image.width == 36
    before = {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(old._params)}
    after = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(seen["params"])}
    assert before.keys() == after.keys()
    changed = {path for path in before if before[path].shape != after[path].shape}
    assert {path.split("'")[1] for path in changed} == {
        "image_encoder",
        "text_encoder",
        "decode_patches",
        "decode_tokens",
    }
    assert all("position" in path for path in changed)
    for path in before.keys() - changed:
        np.testing.assert_array_equal(before[path], after[path])
    manifest = json.loads((tmp_path / "new" / "manifest.json").read_text())
    assert manifest["init"]["files"][0]["family"] == "a run of mmclip train"
    assert manifest["start"] == {"exposure": None}, "what the first run started from is still unknown"
    first = find_checkpoint(run).manifest["exposure"]["sources"]
    for source, counts in manifest["exposure"]["sources"].items():
        assert counts["paired"] == 2 * first[source]["paired"]


@pytest.mark.parametrize("kind", ["clip", "biomedclip"])
def test_a_run_that_starts_from_a_dual_encoder(
    phantom_dir: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from mmclip_jax.text.tokenizer import load_tokenizer

    folder = tmp_path / "weights"
    folder.mkdir()
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 41}
    if kind == "clip":
        vision = {"hidden_size": 28, "image_size": 70, "patch_size": 14} | sizes
        end = len(others.VOCABULARY) - 1
        text = {"hidden_size": 22, "vocab_size": end + 1, "max_position_embeddings": 29, "eos_token_id": end} | sizes
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=17)
        model = others.shake(transformers.CLIPModel(config), 1)
        model.save_pretrained(folder)
        others.write_huggingface_vocabulary(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    else:
        vision = {"hidden_size": 28, "image_size": 70, "patch_size": 14} | sizes
        words = [*MARKS, "no", "pleural", "effusion", "mass", ".", "right", "or"]
        text = {"hidden_size": 22, "vocab_size": len(words), "max_position_embeddings": 29} | sizes
        both_of = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
            transformers.ViTConfig(**vision), transformers.BertConfig(**text), projection_dim=17
        )
        model = others.shake(transformers.VisionTextDualEncoderModel(both_of), 1)
        model.save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
        (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    overrides = [f"--config.init.model={folder}", '--config.init.trained_on=("web", "nih:mass",)']
    seen = first_state([*overrides, "--config.objective.entmlm.slots=9"], phantom_dir, monkeypatch, tmp_path / "run")
    tokenizer = load_tokenizer(folder)
    ours = model_of(seen, tokenizer)
    grey = np.random.default_rng(0).integers(0, 256, (3, 70, 70)).astype(np.uint8)
    ids, count = tokenizer.encode_batch(TEXTS, 29)
    rgb = np.repeat((grey[..., None].astype(np.float32) / 255 - 0.5) / 0.5, 3, axis=3)
    seen_images, read = others.features(model, rgb, tokenizer.rows[ids].clip(0), count)
    np.testing.assert_allclose(ours.encode_image(list(grey)), seen_images, atol=2e-5)
    np.testing.assert_allclose(ours.encode_text(TEXTS), read, atol=2e-5)
    assert ours.logit_scale == pytest.approx(np.exp(2.4), rel=1e-5)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["init"]["stated_by"] == "the user (init.trained_on)"
    assert exposure.exposure("mass", "elsewhere", manifest).startswith(exposure.OTHER_SOURCE)


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["image=VIT", "!model.image.width=40"], r"model.image.width=40 was given, but .* has 36: leave it out"),
        (["image=VIT", "!model.image_size=60"], r"model.image_size=60 is no multiple of the 14 pixels .*image_size=56"),
        (["text=BERT", "!model.text.length=99"], r"model.text.length=99, but .* has 97 positions"),
        (["text=BERT", "!data.tokenizer=VIT"], "holds no vocabulary"),
        (["text=BERT", "!data.tokenizer=OWN"], r"entries and the model's token embedding \d+ rows"),
        (["image=BERT"], "holds no image encoder known here"),
        (["image=NONE"], "there is no such checkpoint"),
        (["model=VIT"], "model_type None is not supported; clip and vision-text-dual-encoder are"),
        (["model=VIT", "image=VIT"], "init.model is a whole model: leave init.image and init.text out"),
        (["image=VIT", "trained_on=('nih:plague',)"], "'plague' of 'nih:plague' is no finding of the vocabulary"),
        (["image=VIT", "mean=(0.5,)"], "init.mean and init.std are one number each, or three"),
        (["image=CUT"], "cannot be read"),
        (["image=NAN"], "holds values that are not finite"),
    ],
)
def test_mistakes_leave_no_workdir(
    weights: dict[str, Any], phantom_dir: pathlib.Path, tmp_path: pathlib.Path, overrides: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from safetensors.numpy import load_file, save_file

    from mmclip_jax.text import vocabulary

    folder = weights["folder"]
    whole = folder / "bert" / "model.safetensors"
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-99])
    bad = {name: value.detach().numpy().copy() for name, value in weights["image"].state_dict().items()}
    bad["blocks.0.norm1.bias"][3] = np.nan
    save_file(bad, tmp_path / "nan.safetensors")
    assert load_file(tmp_path / "nan.safetensors")
    own = vocabulary.PACKAGED / vocabulary.TOKENIZER
    names = {"VIT": folder / "vit", "BERT": folder / "bert", "NONE": folder / "none", "OWN": own}
    names |= {"CUT": tmp_path / "cut.safetensors", "NAN": tmp_path / "nan.safetensors"}
    settled = []
    for override in overrides:
        name, _, value = override.partition("=")
        key = name.removeprefix("!") if name.startswith("!") else f"init.{name}"
        settled.append(f"--config.{key}={names.get(value, value)}")
    assert cli.main(command(tmp_path / "run", phantom_dir, *settled)) == 2
    told = capsys.readouterr().err
    lines = [line for line in told.splitlines() if line.startswith("mmclip")]
    assert len(lines) == 1, told
    import re

    assert re.search(message, lines[0])
    assert not (tmp_path / "run").exists()


def test_a_setting_that_the_weights_contradict_is_named() -> None:
    config = settings.read_config(CONFIG, ["--config.init.image=a", "--config.init.text=b"])
    assert settings.names_given(["--config.init.image=a", "--noconfig.model.remat"]) == {"init.image", "model.remat"}
    assert config.init.image == "a"
    with pytest.raises(UserError, match="there is no such checkpoint"):
        start_lib.prepare(config, "nowhere")
