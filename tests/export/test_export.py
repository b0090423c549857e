"""Exports that need NumPy or JAX alone, and the way back from an exported directory."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import chosen
import exports
import numpy as np
import pytest
import tiny

import mmclip_jax
from mmclip_jax import cli, settings
from mmclip_jax.checkpoints import find_checkpoint
from mmclip_jax.checkpoints.arrays import read_params
from mmclip_jax.config import default_config
from mmclip_jax.errors import DamagedCheckpointError, UserError
from mmclip_jax.export import run as export
from mmclip_jax.inference import prediction
from mmclip_jax.train import start as start_lib
from mmclip_jax.train.run import train

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return exports.save_run(tmp_path_factory.mktemp("export") / "run", tiny.load_config("demo", "runlocal"))


@pytest.fixture(scope="module")
def as_numpy(workdir: pathlib.Path) -> pathlib.Path:
    out = workdir.parent / "numpy"
    export.run(workdir, "numpy", out)
    return out


@pytest.fixture(scope="module")
def as_stablehlo(workdir: pathlib.Path) -> pathlib.Path:
    out = workdir.parent / "stablehlo"
    export.run(workdir, "stablehlo", out)
    return out


def assert_identical(a: pathlib.Path, b: pathlib.Path) -> None:
    """The parameters of two checkpoints are the same bits."""
    first, second = read_params(find_checkpoint(a)), read_params(find_checkpoint(b))
    assert first.keys() == second.keys()
    for path, array in first.items():
        assert array.dtype == second[path].dtype
        assert array.tobytes() == second[path].tobytes(), path


def test_numpy_and_json_alone_read_the_arrays_and_the_settings(workdir: pathlib.Path, as_numpy: pathlib.Path) -> None:
    wanted = read_params(find_checkpoint(workdir))
    with np.load(as_numpy / "params.npz") as stored:
        assert set(stored.files) == set(wanted)
        for path, array in wanted.items():
            assert stored[path].tobytes() == array.tobytes()
    settings = json.loads((as_numpy / "config.json").read_text())
    assert settings["model"]["image_size"] == 64
    assert json.loads((as_numpy / "tokenizer.json").read_text())["model"]["vocab"]["<pad>"] == 0


def test_an_exported_directory_loads_as_the_run_does(workdir: pathlib.Path, as_numpy: pathlib.Path) -> None:
    assert_identical(workdir, as_numpy)
    ours, back = mmclip_jax.load(workdir), mmclip_jax.load(as_numpy)
    assert (back.step, back.manifest) == (3, exports.MANIFEST)
    images = list(exports.images(64)[..., 0])
    np.testing.assert_array_equal(back.encode_image(images), ours.encode_image(images))
    np.testing.assert_array_equal(back.encode_text(exports.TEXTS), ours.encode_text(exports.TEXTS))


def test_a_run_starts_from_an_exported_directory(workdir: pathlib.Path, as_numpy: pathlib.Path) -> None:
    config = default_config()
    config.init.model = str(as_numpy)
    start = start_lib.prepare(config)
    assert start is not None
    assert start.params is not None
    wanted = read_params(find_checkpoint(workdir))
    assert start.params.keys() == wanted.keys()
    assert all(np.array_equal(array, wanted[path]) for path, array in start.params.items())
    assert config.model.image.width == 32
    assert start.record["runs"][0]["exposure"] == exports.MANIFEST["exposure"]


@pytest.mark.parametrize("part", ["model", "image"])
def test_a_run_starts_from_no_classifier(part: str, tmp_path: pathlib.Path) -> None:
    config = default_config()
    tuned = exports.save_classifier(tmp_path / "tuned", tiny.load_config("demo", "runlocal"), "multi-label")
    config.init[part] = str(tuned)
    with pytest.raises(UserError, match="is a fine-tuned classifier: start from the run that it began with"):
        start_lib.prepare(config)


def test_an_export_of_an_export_is_the_same(as_numpy: pathlib.Path, tmp_path: pathlib.Path) -> None:
    export.run(as_numpy, "numpy", tmp_path / "again")
    assert_identical(as_numpy, tmp_path / "again")
    assert (tmp_path / "again" / "model_card.md").read_text() == (as_numpy / "model_card.md").read_text()


def test_thresholds_go_along(workdir: pathlib.Path, as_numpy: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert prediction.read_thresholds(as_numpy, 3, 10.0) == {}  # the run was not evaluated
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    chosen.write(run, "3", chosen.results())
    model = mmclip_jax.load(run)
    there = prediction.read_thresholds(run, model.step, model.logit_scale)
    assert list(there) == ["edema"]
    export.run(run, "numpy", tmp_path / "out")
    export.run(tmp_path / "out", "numpy", tmp_path / "again")
    for place in (tmp_path / "out", tmp_path / "again"):
        (found,) = prediction.read_thresholds(place, model.step, model.logit_scale).values()
        assert found.probability == pytest.approx(there["edema"].probability, rel=1e-6)
        assert found.source == there["edema"].source


def test_nothing_is_trained_in_an_exported_directory(as_numpy: pathlib.Path) -> None:
    before = sorted(path.name for path in as_numpy.iterdir())
    with pytest.raises(UserError, match=r"what mmclip export wrote: train in another folder.*--config\.init\.model="):
        train(settings.read_stored(str(as_numpy)), str(as_numpy))
    assert sorted(path.name for path in as_numpy.iterdir()) == before


def test_the_card_says_what_it_learnt_from_and_that_nobody_scored_it(as_numpy: pathlib.Path) -> None:
    card = (as_numpy / "model_card.md").read_text()
    assert card.startswith("# Model card: run, step 3\n")
    assert "Not for diagnosis" in card
    assert "phantom-a: 8 images with reports, 4 without; labels that became texts: edema" in card
    assert "Not evaluated" in card
    assert "artificial X-rays alone, phantom-a (12 images): its numbers say nothing about real radiographs" in card


def test_the_card_of_an_evaluation_goes_along(workdir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "scored").mkdir()
    (tmp_path / "scored" / "model_card.md").write_text("# Scored\n")
    export.run(workdir, "numpy", tmp_path / "out", evaluation=tmp_path / "scored")
    assert (tmp_path / "out" / "model_card.md").read_text() == "# Scored\n"
    with pytest.raises(UserError, match="name the folder that mmclip evaluate wrote"):
        export.run(workdir, "numpy", tmp_path / "other", evaluation=tmp_path / "out" / "nothing")


def test_damage_is_named(as_numpy: pathlib.Path, tmp_path: pathlib.Path) -> None:
    export.run(as_numpy, "numpy", tmp_path / "damaged")
    file = tmp_path / "damaged" / "params.npz"
    with np.load(file) as stored:
        arrays = dict(stored)
    arrays["text_encoder/position"].view(np.uint32)[3, 5] ^= 1  # one bit
    np.savez(file, **arrays)
    with pytest.raises(DamagedCheckpointError, match="bits are not those that were exported"):
        mmclip_jax.load(tmp_path / "damaged")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DamagedCheckpointError, match="is damaged"):
        mmclip_jax.load(tmp_path / "damaged")
    record = tmp_path / "damaged" / "mmclip.json"
    record.write_text(record.read_text().replace('"image_size": 64', '"image_size": 65'))
    with pytest.raises(DamagedCheckpointError, match=r"mmclip.json is damaged .*export the run again"):
        mmclip_jax.load(tmp_path / "damaged")


def test_a_folder_that_holds_something_is_refused(workdir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something already: name a new folder"):
        export.run(workdir, "numpy", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_the_command(workdir: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(workdir), "--to", "numpy", str(tmp_path / "out")]) == 0
    assert "step 3, as numpy" in capsys.readouterr().out
    assert_identical(workdir, tmp_path / "out")
    assert cli.main(["export", str(workdir), "--to", "nothing", str(tmp_path / "out")]) == 2


def test_the_snippets_of_the_document(
    workdir: pathlib.Path, as_numpy: pathlib.Path, as_stablehlo: pathlib.Path
) -> None:
    names: dict[str, Any] = {}
    exec(exports.snippet("NumPy alone", as_numpy), names)
    assert names["params"]["image_encoder/transformer/layers/mlp_in/kernel"].shape == (2, 32, 128)
    assert names["settings"]["model"]["embed_dim"] == 32
    images = exports.images(64)
    names = {"images": images}
    exec(exports.snippet("JAX alone", as_stablehlo), names)
    wanted = mmclip_jax.load(workdir).encode_image(list(images[..., 0]))
    np.testing.assert_allclose(names["v"], wanted, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# StableHLO

_ALONE = """
import sys
import jax, numpy
from jax import export
folder, out = sys.argv[1:]
given = numpy.load(out + "/given.npz")
with numpy.load(folder + "/params.npz") as stored:
    params = dict(stored)
for name, rows in (("encode_image", given["images"]), ("encode_text", given["tokens"])):
    for ending in ("any", "1"):
        program = export.deserialize(bytearray(open(f"{folder}/{name}.{ending}.jax_export", "rb").read()))
        taken = rows if ending == "any" else rows[:1]
        numpy.save(f"{out}/{name}.{ending}.npy", numpy.asarray(program.call(params, taken)))
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"mmclip_jax", "flax", "optax", "orbax"}, loaded
"""


def test_programs_run_with_jax_alone(workdir: pathlib.Path, as_stablehlo: pathlib.Path, tmp_path: pathlib.Path) -> None:
    model = mmclip_jax.load(workdir)
    images = exports.images(64, 5)
    tokens = np.stack([model.tokenizer.tokenize(text, [], 48).tokens for text in exports.TEXTS])
    np.savez(tmp_path / "given.npz", images=images, tokens=tokens)
    command = [sys.executable, "-c", _ALONE, str(as_stablehlo), str(tmp_path)]
    subprocess.run(command, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}, cwd=tmp_path)
    wanted = {
        "encode_image": model.encode_image(list(images[..., 0])),
        "encode_text": model.encode_text(exports.TEXTS),
    }
    for name, rows in wanted.items():
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.any.npy"), rows, atol=1e-5)
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.1.npy"), rows[:1], atol=1e-5)
        assert np.abs(rows[0] - rows[1]).max() > 0.02
    assert "stablehlo" in (as_stablehlo / "encode_image.1.mlir").read_text()


def test_programs_cannot_be_read_back(as_stablehlo: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"'stablehlo', which cannot be read back: give the run itself"):
        mmclip_jax.load(as_stablehlo)
