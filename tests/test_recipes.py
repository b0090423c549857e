"""The commands of docs/recipes.md: the command line takes each, and the settings that they change exist."""

import math
import pathlib
import re
import shlex

import pytest

import mmclip_jax
from mmclip_jax import settings
from mmclip_jax.cli import arguments, entry

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


def blocks_of(page: str) -> list[str]:
    """Blocks of commands; those of what is printed are named "text"."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [block for kind, block in found if not kind]


COMMANDS = [line for block in blocks_of(PAGE) for line in block.replace("\\\n", " ").splitlines()]

# The recipe that begins without anything first makes an environment, whose programs it then names.
OURS = [command.removeprefix("venv/bin/") for command in COMMANDS if "mmclip " in command]


def test_every_recipe_has_commands() -> None:
    assert PAGE.count("\n## ") == 4
    assert len(COMMANDS) == 24
    assert len(OURS) == 22


@pytest.mark.parametrize("command", OURS)
def test_the_command_line_takes_it(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "_that_exists", lambda path: path)  # the user's files
    program, *words = shlex.split(command)
    assert program == "mmclip"
    parsed = entry._parse(words)
    assert callable(parsed.run)
    if getattr(parsed, "config", None):
        settings.read_config(parsed.config, parsed.overrides)


@pytest.mark.parametrize("mistake", ["mmclip tarin --workdir w", "mmclip predict a.png --workdri w"])
def test_a_mistake_in_one_would_be_seen(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(arguments.UsageError):
        test_the_command_line_takes_it(mistake, monkeypatch)


def test_the_costs_are_what_their_sources_give() -> None:
    """Products of figures that other pages and the config hold."""
    steps = settings.read_config("mmclip_vitb16").train.steps
    assert f"{steps:,} steps of 1,024 rows" in PAGE
    told = {"h100_8x4_1024": (19.69, 32, "162 s and 1.4"), "v5e_16x16_1024": (12.44, 256, "102 s and 7.3")}
    for name, (milliseconds, chips, words) in told.items():
        plan = (ROOT / "docs" / "plans" / f"{name}.txt").read_text(encoding="utf-8")
        assert re.search(rf"in the compiler's order +[\d.]+ ms +{milliseconds:.2f} ms", plan)
        seconds = steps * milliseconds / 1000
        assert words == f"{seconds:.0f} s and {seconds * chips / 3600:.1f}"
        assert f"{words} chip-hours" in PAGE
    measured = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert all(figure in measured for figure in ("| 258, 377 |", "| 2.9, 3.1 |", "| 20.5, 26.3 |", "11.3 kB"))
    assert "1,728" in (ROOT / "docs" / "pipeline.md").read_text(encoding="utf-8")
    assert [round(5000 / 2.9 / 60), math.ceil(5000 * 11.3 / 1000), math.ceil(1.024e6 / 19.69 / 1728)] == [29, 57, 31]
    assert round(377110 / 258 / 3600, 1) == 0.4
    assert round(110633 / 20.5 / 3600, 1) == 1.5
    assert round((377110 + 110633) * 11.3e3 / 1e9, 1) == 5.5
    assert round(223414 * 11.3e3 / 1e9, 1) == 2.5


def test_from_an_empty_folder_to_a_served_page_are_five_commands_at_most() -> None:
    first = PAGE.split("\n## ")[1]
    (block,) = blocks_of(first)
    environment, wheel, *ours = block.splitlines()
    assert environment == "python3 -m venv venv"
    assert re.fullmatch(rf'venv/bin/pip install "mmclip_jax-{mmclip_jax.__version__}-\S+\.whl\[serve\]"', wheel)
    assert 2 + len(ours) <= 5
    assert ours[-1].split()[:2] == ["venv/bin/mmclip", "serve"]
