"""One encoder of a run of ours as the beginning of another run: what is taken, and what is not."""

import pathlib
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from mmclip_jax.checkpoints import find_checkpoint
from mmclip_jax.config import default_config
from mmclip_jax.errors import UserError
from mmclip_jax.models.mmclip import build_model, init_params
from mmclip_jax.train import start as start_lib

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tiny.save_run(tmp_path_factory.mktemp("former") / "run", (3,))


def flat(tree: dict) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def saved_params(former: pathlib.Path) -> dict[str, np.ndarray]:
    """The average of the parameters, which is what a run's checkpoint stands for."""
    saved = find_checkpoint(former)
    return flat(tiny.random_params(build_model(saved.config.model), saved.config, 103))


def settings(**init: object) -> ConfigDict:
    config = default_config()
    config.init.update({name: str(value) for name, value in init.items()})
    return config


@pytest.mark.parametrize("parts", [("image",), ("text",), ("image", "text")])
def test_the_named_encoders_are_taken_and_nothing_else(
    former: pathlib.Path, tmp_path: pathlib.Path, parts: tuple[str, ...]
) -> None:
    config = settings(**dict.fromkeys(parts, former))
    start = start_lib.prepare(config, str(tmp_path / "new"))
    assert start is not None
    assert start.params is not None
    wanted = {path: x for path, x in saved_params(former).items() if path.startswith(tuple(f"{p}_enc" for p in parts))}
    resized = {f"{part}_encoder/position" for part in parts}
    assert start.params.keys() == wanted.keys()
    for path in wanted.keys() - resized:
        np.testing.assert_array_equal(start.params[path], wanted[path])
    assert (start.tokenizer is not None) == ("text" in parts)
    if "image" in parts:  # the run's 8 x 8 patches of 8 pixels are 28 x 28 of 224 pixels here
        assert config.model.patch_size == 8
        assert start.params["image_encoder/position"].shape[0] == 28 * 28
    # Its parameters are those of the new run's model, all of them of these encoders.
    config.model.text.vocab_size = config.model.text.vocab_size or 211
    start.check(flat_shapes(config))
    files = start.record["files"]
    assert [each["part"] for each in files] == list(parts)
    assert all(each["sums"] for each in files)


def flat_shapes(config: ConfigDict) -> object:
    model = build_model(config.model)
    return jax.eval_shape(lambda: init_params(model, config.model, 0))


def test_settings_that_the_run_contradicts_are_named(former: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = settings(image=former)
    config.model.image.width = 44
    with pytest.raises(UserError, match=r"model.image.width=44 was given, but .* has 32"):
        start_lib.prepare(config, str(tmp_path / "new"), ["model.image.width"])
    assert not (tmp_path / "new").exists()


def test_what_a_run_had_learnt_from_is_learnt_from(former: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Also where it was one encoder alone: its data count as the new run's own."""
    start = start_lib.prepare(settings(image=former), str(tmp_path / "new"))
    assert start is not None
    start.record["runs"] = [
        {
            "data": {"old": {"digest": "a"}},
            "exposure": {"sources": {"there": {"paired": 7, "unpaired": 2}}, "label_kinds": {"there": ["edema"]}},
        }
    ] * 2
    mine = {"sources": {"there": {"paired": 1, "unpaired": 0}}, "label_kinds": {}, "report_kinds": {}}
    made = start.manifest({"data": {"new": {"digest": "b"}}, "exposure": mine})
    assert made["exposure"]["sources"] == {"there": {"paired": 15, "unpaired": 4}}
    assert made["exposure"]["label_kinds"] == {"there": ["edema"]}
    assert made["data"].keys() == {"old", "new"}
    assert "start" not in made, "no weights of others are in it"


def test_where_one_encoders_training_is_unknown_all_is() -> None:
    known: dict[str, Any] = {"exposure": {"sources": {"a": {}}, "label_kinds": {}}}
    records: list[dict[str, Any]] = [
        {"files": [], "trained_on": ["a"], "stated_by": "the user", "start": known, "runs": []},
        {"files": [], "trained_on": [], "stated_by": "nobody", "start": {"exposure": None}, "runs": []},
        {"files": [], "trained_on": ["b"], "stated_by": "the run's own record", "start": None, "runs": [{}]},
    ]
    assert start_lib._joined(records)["start"] == {"exposure": None}
    assert start_lib._joined(records[::2])["start"] == known
    assert start_lib._joined(records[2:])["start"] is None
