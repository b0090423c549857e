"""Exports that open_clip loads, and what is refused because open_clip has nothing like it."""

import pathlib
from typing import Any

import exports
import numpy as np
import others
import pytest
import tiny

pytest.importorskip("torch", reason="torch and transformers have an environment of their own: make test-interop")
pytest.importorskip("timm_beside_cpu", reason="timm is part of make test-interop")

import open_clip
import torch
from PIL import Image

from mmclip_jax.checkpoints import find_checkpoint
from mmclip_jax.checkpoints.arrays import read_params
from mmclip_jax.errors import UserError
from mmclip_jax.export import run as export
from mmclip_jax.models.pretrained import dual
from mmclip_jax.text import subwords

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> subwords.SubwordTokenizer:
    folder = tmp_path_factory.mktemp("words")
    others.write_huggingface_vocabulary(folder)
    return subwords.load(folder)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_tanh"])
def test_open_clip_embeds_as_the_run_does(
    activation: str, words: subwords.SubwordTokenizer, tmp_path: pathlib.Path
) -> None:
    config = exports.clip_like(tiny.load_config("demo", "runlocal"))
    config.model.image.update({"activation": activation, "mlp_dim": 97, "epsilon": 1e-3, "key_bias": False})
    config.model.text.activation = activation
    run, out = exports.save(tmp_path / "run", config, words), tmp_path / "out"
    export.run(run, "open_clip", out)
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{out}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    squares = [Image.fromarray(pixels[..., 0]) for pixels in exports.images(42)]
    with torch.no_grad():
        images = model.eval().encode_image(torch.stack([preprocess(each) for each in squares]), normalize=True)
        texts = model.encode_text(tokenizer(exports.TEXTS), normalize=True)
    asked = [*exports.TEXTS, "edema", "no edema"]
    mine = exports.embed(run, squares, asked)
    for theirs, own in ((images, mine[0]), (texts, mine[1][:-2])):
        np.testing.assert_allclose(theirs.numpy(), own, atol=1e-5)
        assert np.abs(own[0] - own[1]).max() > 0.01
    names: dict[str, Any] = {"image": squares[0]}
    with torch.no_grad():
        exec(exports.snippet("open_clip", out), names)
    np.testing.assert_allclose(names["v"].numpy(), mine[0][:1], atol=1e-5)
    np.testing.assert_allclose(names["u"].numpy(), mine[1][-2:], atol=1e-5)
    before, after = exports.stored(run), read_params(find_checkpoint(out))
    assert model.logit_scale.item() == before["log_logit_scale"]
    assert before.keys() == after.keys()
    assert all(array.tobytes() == after[path].tobytes() for path, array in before.items())
    # The importer of other programs' checkpoints reads the same architecture from it.
    read = dual.load(out, "open_clip")
    assert (read.image.activation, read.text.activation) == (activation, activation)
    assert read.image.epsilon == pytest.approx(1e-3)
    assert read.settings["image"]["mlp_dim"] == 97


def test_what_open_clip_lacks_is_refused_with_what_it_has(tmp_path: pathlib.Path) -> None:
    run = exports.save(tmp_path / "run", tiny.load_config("demo", "runlocal"))
    with pytest.raises(UserError) as refused:
        export.run(run, "open_clip", tmp_path / "out")
    said = str(refused.value)
    assert "\n" not in said
    for part in ("no counterpart of model.stem='conv'", "model.pool='max'", "model.pool='cls'", "text_pool='last'",
                 "model.text.encoder='clip'", "--to huggingface holds any"):  # fmt: skip
        assert part in said
    assert not (tmp_path / "out").exists()


def test_two_activations_are_one_too_many(words: subwords.SubwordTokenizer, tmp_path: pathlib.Path) -> None:
    config = exports.clip_like(tiny.load_config("demo", "runlocal"))
    config.model.text.activation = "gelu"
    run = exports.save(tmp_path / "run", config, words)
    with pytest.raises(UserError, match=r"model.text.activation='gelu': it can hold runs with .*='quick_gelu'"):
        export.run(run, "open_clip", tmp_path / "out")
