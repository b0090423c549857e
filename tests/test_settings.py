"""Settings: names that none has, settings as YAML and back, and those that a run was started with."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from ml_collections import ConfigDict

from mmclip_jax import cli, setting_names, settings
from mmclip_jax.ablate import apply_setting
from mmclip_jax.config import default_config, flat
from mmclip_jax.errors import UserError

KNOWN = flat(default_config())


# ---------------------------------------------------------------------------------------------------------------------
# Names that no setting has


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("optimizer.lr", "optimizer.peak_lr"),
        ("lr", "optimizer.peak_lr"),
        ("train.learning_rate", "optimizer.peak_lr"),
        ("optimizer.learning_rat", "optimizer.peak_lr"),  # another program's word, mistyped
        ("optim.peak_lr", "optimizer.peak_lr"),  # another group
        ("optimizer.warmup_steps", "optimizer.warmup_share"),
        ("optimizer.Adam-Beta2", "optimizer.b2"),
        ("train.stpes", "train.steps"),
        ("train.epochs", "train.steps"),
        ("data.num_workers", "data.workers"),
        ("batch_size", "data.batch_paired or data.batch_unpaired"),
        ("model.num_layers", "model.image.depth or model.text.depth"),
        ("model.text.num_layers", "model.text.depth"),
        ("image_size", "model.image_size"),
        ("model.imagesize", "model.image_size"),
        ("objective.atmim.weight", "objective.attmim.weight"),  # three objectives have a weight
        ("seeed", "seed"),
    ],
)
def test_the_meant_setting_is_named(name: str, expected: str) -> None:
    assert setting_names.problem(name, KNOWN) == f"there is no setting {name}; did you mean {expected}?"


@pytest.mark.parametrize("name", ["zebra", "width", "model.qq", ""])
def test_a_name_that_is_near_to_nothing_or_to_too_much_has_no_suggestion(name: str) -> None:
    assert setting_names.meant(name, KNOWN) == ()
    assert "mmclip config demo lists them" in setting_names.problem(name, KNOWN)


def test_every_other_name_leads_to_settings_that_there_are_and_is_none_itself() -> None:
    for other, meant in setting_names._OTHER.items():
        assert set(meant) <= KNOWN.keys(), other
        assert setting_names.meant(other, KNOWN), other
        assert other not in {name.rpartition(".")[2] for name in KNOWN}, other


@pytest.mark.parametrize("suffix", ["py", "yaml", "json", "override", "study"])
def test_every_way_to_give_a_setting_answers_alike(suffix: str, tmp_path: Path) -> None:
    """Config files of code and of values, the command line, and the grids of `mmclip ablate`."""
    file = tmp_path / f"mine.{suffix}"
    overrides = ["--config.optimizer.lr=0.1"] if suffix == "override" else []
    if suffix == "py":
        file.write_text(
            "from mmclip_jax.config import default_config\n"
            "def get_config():\n    config = default_config()\n    config.optimizer.lr = 0.1\n    return config\n"
        )
    elif suffix in ("yaml", "json"):
        file.write_text('{"optimizer": {"lr": 0.1}}')

    def read() -> None:
        if suffix == "study":
            apply_setting(default_config(), "optimizer.lr", 0.1)
        settings.read_config("demo" if overrides else str(file), overrides)

    with pytest.raises(UserError, match=r"there is no setting optimizer\.lr; did you mean optimizer\.peak_lr\?"):
        read()


def test_the_block_of_an_objective_of_ones_own_is_kept(tmp_path: Path) -> None:
    code, values = tmp_path / "mine.py", tmp_path / "mine.yaml"
    code.write_text(
        "from mmclip_jax.config import default_config\n"
        "def get_config():\n    config = default_config()\n"
        "    config.objective.variance = {'weight': 0.5, 'floors': (0.1, 0.2)}\n    return config\n"
    )
    config = settings.read_config(str(code))
    values.write_text(settings.as_yaml(config))
    again = settings.read_config(str(values))
    assert again.objective.variance.to_dict() == {"weight": 0.5, "floors": (0.1, 0.2)}
    assert again == config


# ---------------------------------------------------------------------------------------------------------------------
# Settings as YAML


def _value(default: Any) -> st.SearchStrategy[Any]:
    numbers = st.floats(allow_nan=False, allow_infinity=False)
    return {
        bool: st.booleans(),
        int: st.integers(-(2**40), 2**40),
        float: numbers,
        str: st.text(),
        tuple: st.one_of(st.lists(st.text(), max_size=3), st.lists(numbers, max_size=3)).map(tuple),
    }[type(default)]


@profile(max_examples=50)
@example(changes={"data.tokenizer": "a\x85b"})  # a line break of YAML that its library leaves as it is
@given(changes=st.fixed_dictionaries({}, optional={name: _value(default) for name, default in KNOWN.items()}))
def test_yaml_is_read_back_as_the_same_settings(
    changes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = default_config()
    config.update_from_flattened_dict(changes)
    file = tmp_path_factory.getbasetemp() / "settings.yaml"
    file.write_text(settings.as_yaml(config), encoding="utf-8")
    again = settings.read_config(str(file))
    assert flat(again) == flat(config)
    assert {name: type(value) for name, value in flat(again).items()} == {n: type(v) for n, v in KNOWN.items()}
    assert again.is_locked


@pytest.mark.parametrize("name", [*settings.packaged_configs(), "demo:runlocal", "real_small:some/folder"])
def test_config_prints_what_config_takes(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = [
        "--config.optimizer.peak_lr=1e-6",
        "--config.data.train=a",
        "--config.data.train=b",
        "--noconfig.model.remat",
    ]
    assert cli.main(["config", name, *more]) == 0
    printed = capsys.readouterr().out
    tree = yaml.safe_load(printed)  # by the library's own reader, too
    assert (tree["optimizer"]["peak_lr"], tree["data"]["train"], tree["model"]["remat"]) == (1e-6, ["a", "b"], False)
    file = tmp_path / "mine.yaml"
    file.write_text(printed)
    assert settings.read_config(str(file)) == settings.read_config(name, more)
    assert cli.main(["config", str(file)]) == 0
    assert capsys.readouterr().out == printed


def test_config_alone_lists_every_configuration_with_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(settings.packaged_configs())
    assert all(len(line.split()) > 4 for line in lines)


def test_a_file_of_a_few_settings_has_the_defaults_for_the_others(tmp_path: Path) -> None:
    file = tmp_path / "few.yaml"
    file.write_text("optimizer:\n  peak_lr: 1e-3\n  clip: 2\ndata:\n  train: [a, b]\n")  # 1e-3 is text to YAML
    config = settings.read_config(str(file), ["--config.data.train=c"])
    expected = dict(KNOWN) | {"optimizer.peak_lr": 1e-3, "optimizer.clip": 2.0, "data.train": ("c",)}
    assert flat(config) == expected
    assert type(config.optimizer.clip) is float


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("optimizer: {peak_lr: fast}", r"optimizer\.peak_lr='fast': expected a number, such as 0\.0001"),
        ("optimizer: {peak_lr: true}", r"optimizer\.peak_lr=True: expected a number"),
        ("train: {steps: 1.5}", r"train\.steps=1\.5: expected a whole number, such as 10000"),
        ("train: {steps: true}", r"train\.steps=True: expected a whole number"),
        ("model: {remat: 1}", r"model\.remat=1: expected true or false, such as True"),
        ("data: {train: a}", r"data\.train='a': expected a list, such as \[\]"),
        ("data: {tokenizer: 5}", r"data\.tokenizer=5: expected text"),
        ("data: {tokenizer: }", r"data\.tokenizer=None: expected text"),
        ("optimizer: 3", "there is no setting optimizer"),
        ("seed: {a: 1}", r"seed=\{'a': 1\}: expected a whole number"),
        ("objective: 3", "objective is a group of settings, and not 3"),
        ("3: 4", "there is no setting 3"),
        ("- a", "expected a mapping"),
        ("a: [", "not valid YAML"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_of_values_is_one_line(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    assert cli.main(["config", str(file)]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert said.startswith(f"mmclip: {file}: ")
    assert said.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------------------
# Going on with what a run was started with


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ConfigDict, str, set[str]]]:
    """What `mmclip train` asks for, in place of doing it."""
    from mmclip_jax.train import run as training

    found: list[tuple[ConfigDict, str, set[str]]] = []

    def train(config: ConfigDict, workdir: str, stretch: bool, given: set[str], tracker: str) -> None:
        found.append((config, workdir, set(given)))

    monkeypatch.setattr(training, "train", train)
    return found


def test_a_workdir_alone_goes_on_with_the_settings_of_the_run(seen: Any, tmp_path: Path) -> None:
    begun = settings.read_config("demo:runlocal", ["--config.data.train=x", "--config.optimizer.peak_lr=3e-5"])
    (tmp_path / settings.STORED).write_text(begun.to_json())
    assert cli.main(["train", "--workdir", str(tmp_path)]) == 0
    assert cli.main(["train", "--workdir", str(tmp_path), "--config.train.log_every=2"]) == 0
    (same, where, nothing), (other, _, given) = seen
    assert (flat(same), where, nothing) == (flat(begun), str(tmp_path), set())
    assert flat(other) == flat(begun) | {"train.log_every": 2}
    assert given == {"train.log_every"}
    assert type(same.data.train) is tuple


def test_a_folder_without_a_run_or_with_a_damaged_one_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content, message in (
        (None, f"{tmp_path} holds no run to go on with: begin one with --config NAME, such as --config demo"),
        ("{", "config.json is damaged"),
        (json.dumps({"finetune": {}}), "holds a run of mmclip finetune"),
    ):
        if content is not None:
            (tmp_path / settings.STORED).write_text(content)
        assert cli.main(["train", "--workdir", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
