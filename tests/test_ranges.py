"""Every setting and every number of a command has a range, and what lies outside is refused by name."""

import argparse
import dataclasses
import math
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from mmclip_jax import ablate, check, cli, ranges
from mmclip_jax import config as config_lib
from mmclip_jax.cli import arguments, entry
from mmclip_jax.errors import UserError
from mmclip_jax.finetune import task as task_lib
from mmclip_jax.models import encoders, masking, mmclip, transformer
from mmclip_jax.objectives import attmim, contrastive
from mmclip_jax.plan import plan
from mmclip_jax.text.tokens import ENTITY_LABELS
from mmclip_jax.train import run as training

RANGES = check.setting_ranges()
NUMBERS = {name: each for name, each in RANGES.items() if isinstance(each, ranges.Number)}


def changed(name: str, value: Any) -> Any:
    """The tiny settings with one of them changed, whatever its type."""
    config = tiny.config()
    *path, last = name.split(".")
    part = config
    for key in path:
        part = part[key]
    with part.ignore_type():
        part[last] = value
    return config


def test_every_setting_has_its_range_and_its_default_lies_in_it() -> None:
    assert config_lib.flat(config_lib.default_config()).keys() == RANGES.keys()
    check.check_ranges(config_lib.default_config())
    assert {field.name for field in dataclasses.fields(task_lib.Settings)} == task_lib.RANGES.keys()
    task_lib.Settings()


def outside(allowed: ranges.Number) -> list[Any]:
    found: list[Any] = [math.nan, math.inf, -math.inf, "1"]
    if allowed.low > -math.inf:
        found.append(allowed.low if allowed.above else allowed.low - 1)
    if allowed.high < math.inf:
        found.append(allowed.high if allowed.below else allowed.high + 1)
    return found + ([0.5, True] if allowed.whole else [])  # ml_collections makes 1.0 of True where a float stood


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_numbers_outside_are_refused_by_name(name: str) -> None:
    for value in outside(NUMBERS[name]):
        with pytest.raises(UserError, match=rf"^{name.replace('.', '[.]')}="):
            check.check_config(changed(name, value), 1)


@pytest.mark.parametrize("name", sorted(RANGES.keys() - NUMBERS.keys()))
def test_words_switches_and_lists_outside_are_refused_by_name(name: str) -> None:
    for value in (7, "no such word", (1.5, "x")):
        if RANGES[name].problem(value):
            with pytest.raises(UserError, match=rf"^{name.replace('.', '[.]')}="):
                check.check_config(changed(name, value), 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.keep", 0), ("train.checkpoint_every", -1), ("train.evaluate_every", -1), ("optimizer.peak_lr", -1.0),
        ("optimizer.peak_lr", 0.0), ("optimizer.b1", 2.0), ("optimizer.b2", 1.0), ("train.spike", math.nan),
        ("train.spike", 0.5), ("data.augment.scale", 5.0), ("data.sentence_subset", 7.0), ("data.workers", -1),
        ("data.max_negated", -1), ("data.deny_alone", 2.0),
        ("data.threads", 0), ("objective.attmim.weight", -1.0), ("optimizer.ema", 1.0),
        ("data.paired_weights", (math.nan,)), ("train.steps", 2**31), ("data.entity_labels", ("findings",)),
    ],
)  # fmt: skip
def test_settings_that_would_lose_or_spoil_a_run_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=name):
        check.check_config(changed(name, value), 1)


def test_training_planning_and_studies_check_alike(tmp_path: Any) -> None:
    config = tiny.load_config("demo", "runlocal")
    config.train.keep = 0
    with pytest.raises(UserError, match=r"train\.keep=0 is not at least 1"):
        training.train(config, str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"train\.keep=0"):
        plan.make_plan(config, "h100:8x1")
    with pytest.raises(UserError, match=r"train\.keep=0"):
        ablate.run(config, "hint", [0], tmp_path / "study")
    assert not list(tmp_path.glob("run*"))


def test_choices_are_those_of_the_code() -> None:
    for name, values in (
        ("model.pool", mmclip.POOLS),
        ("model.text_pool", mmclip.TEXT_POOLS),
        ("model.stem", encoders.STEMS),
        ("model.image.encoder", encoders.IMAGE_ENCODERS),
        ("model.text.encoder", encoders.TEXT_ENCODERS),
        ("model.image.norm", transformer.NORMS),
        ("model.image.activation", transformer.MLP_ACTIVATIONS),
        ("model.text.activation", transformer.MLP_ACTIVATIONS),
        ("model.image_head.activation", transformer.ACTIVATIONS),
        ("objective.attmim.strategy", masking.STRATEGIES),
        ("objective.attmim.response", mmclip.RESPONSES),
        ("objective.attmim.mask_at", attmim.MASK_AT),
        ("objective.entmlm.strategy", masking.TOKEN_STRATEGIES),
        ("objective.contrastive.loss", contrastive.LOSSES),
        ("objective.contrastive.targets", contrastive.TARGETS),
    ):
        allowed = RANGES[name]
        assert isinstance(allowed, ranges.Choice)
        assert allowed.values == tuple(values), name
    labels = RANGES["data.entity_labels"]
    assert isinstance(labels, ranges.Several)
    assert labels.problem(tuple(ENTITY_LABELS)) == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"fractions": (math.nan,)}, {"fractions": (0.0,)}, {"fractions": (1.5,)}, {"fractions": (0.1, 0.1)},
        {"seeds": (-1,)}, {"seeds": ()}, {"peak_lr": -1.0}, {"head_rate": 0.0}, {"workers": -1}, {"batch": 0},
        {"epochs": math.inf}, {"steps": -5}, {"layer_decay": 1.01}, {"patience": 0}, {"mode": "all"},
    ],
)  # fmt: skip
def test_transfer_settings_outside_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(changes))):
        task_lib.Settings(**changes)


def parsers(parser: Any) -> Iterator[Any]:
    if parser.more is not None:
        parser.more(parser)
    yield parser
    for each in parser.commands().values():
        yield from parsers(each)


def test_no_command_takes_a_number_without_a_range() -> None:
    found = 0
    for parser in parsers(entry.make_parser()):
        for action in parser._actions:
            assert action.type not in (int, float), f"{parser.prog} {action.option_strings}"
            found += isinstance(action.type, arguments.Number | arguments.Numbers)
    assert found > 40


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("data build phantom --data-dir d --seed -1", "--seed: -1 is not in 0"),
        ("data build phantom --data-dir d --scale nan", "--scale: nan is not a finite number"),
        ("data build phantom --data-dir d --scale 0", "--scale: 0 is not in 0 to 1,000 without 0"),
        ("data build phantom --data-dir d --seed 1_0", "invalid int value"),
        (f"data build phantom --data-dir d --seed {'9' * 5000}", "invalid int value"),
        ("compare a b --resamples 0", "--resamples: 0 is not in 20"),
        ("finetune --model . --data . --workdir w --fraction nan,1", "not a finite number"),
        ("finetune --model . --data . --workdir w --fraction 0.1,0.1", "twice"),
        ("finetune --model . --data . --workdir w --seeds -1", "-1 is not in 0"),
        ("ablate --config c --study s --workdir w --seeds 1,1", "twice"),
        ("predict x --model . --step -2", "-2 is not at least 0"),
    ],
)
def test_numbers_of_commands_are_refused_in_one_line(
    line: str, words: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "x"):
        (tmp_path / name).mkdir()
    assert cli.main(shlex.split(line)) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_shares_of_a_table_are_numbers_of_zero_to_one() -> None:
    from mmclip_jax.data.builders.table_options import TableOptions

    for shares in ((math.nan, 0.5, 0.5), (1.2, -0.1, -0.1), (0.5, 0.5)):
        with pytest.raises(UserError, match="shares"):
            TableOptions(table="t.csv", images=".", name="mine", shares=shares)


@given(st.floats() | st.integers(), st.floats(-5, 5), st.floats(0, 5), st.booleans(), st.booleans())
def test_a_range_is_what_it_says(value: float, low: float, width: float, above: bool, below: bool) -> None:
    allowed = ranges.Number(low, low + width, above=above, below=below)
    inside = math.isfinite(value) and low <= value <= low + width
    inside &= not (above and value == low) and not (below and value == low + width)
    assert (allowed.problem(value) == "") == inside


def test_argparse_calls_a_number_by_its_kind() -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--n", type=arguments.Number(ranges.count()))
    with pytest.raises(argparse.ArgumentError, match=r"invalid int value: .1\.5."):
        parser.parse_args(["--n", "1.5"])
