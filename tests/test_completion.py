"""`mmclip completion`: bash itself completes with the script."""

import subprocess
from pathlib import Path

import pytest

from mmclip_jax import cli

_TRY = """
source {script}
words=({words} "{last}")
COMP_WORDS=("${{words[@]}}") COMP_CWORD=$((${{#words[@]}} - 1)) COMPREPLY=()
function_of=$(complete -p mmclip)
function_of=${{function_of#*-F }}
${{function_of% mmclip}}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("completion") / "mmclip.bash"
    with pytest.MonkeyPatch.context() as patch, open(file, "w", encoding="utf-8") as stream:
        patch.setattr("sys.stdout", stream)
        assert cli.main(["completion", "bash"]) == 0
    return file


def _completions(script: Path, words: str, last: str, folder: Path) -> set[str]:
    code = _TRY.format(script=script, words=words, last=last)
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    assert done.stderr == ""
    return set(done.stdout.split("\n")) - {""}


@pytest.mark.parametrize(
    ("words", "last", "expected"),
    [
        ("mmclip", "ev", {"evaluate"}),
        ("mmclip", "comp", {"compare", "completion"}),
        ("mmclip data", "i", {"inspect", "info"}),
        ("mmclip data build", "chex", {"chexpert"}),
        ("mmclip evaluate", "--mo", {"--model"}),
        ("mmclip evaluate", "--ref", set()),  # a former name is not offered
        ("mmclip finetune", "--layer", {"--layer-decay"}),  # added only when the command is run
        ("mmclip data build table --data-dir x", "--report-c", {"--report-column"}),
        ("mmclip evaluate --split", "v", {"validation"}),
        ("mmclip train --config", "de", {"demo", "decoy.py"}),
        ("mmclip train --config", "mm", {"mmclip_vitb16"}),
        ("mmclip config", "re", {"real_small"}),
        ("mmclip evaluate --model", "r", {"runs"}),
        ("mmclip predict", "che", {"chest.png"}),
        ("mmclip completion", "", {"bash", "zsh", "tcsh"}),
    ],
)
def test_bash_completes(words: str, last: str, expected: set[str], script: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for name in ("chest.png", "decoy.py"):
        (tmp_path / name).touch()
    assert _completions(script, words, last, tmp_path) == expected


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_the_other_shells_have_a_script_too(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Read by eye, and not run: these shells are not everywhere."""
    assert cli.main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("mmclip", "evaluate", "layer-decay"))


def test_another_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "fish"]) == 2
    said = capsys.readouterr().err
    assert "invalid choice: 'fish'" in said
    assert said.count("\n") == 1
