"""`mmclip evaluate` killed with SIGKILL: results are there whole or not at all, and the next run is undisturbed."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
import tiny
from conftest import ROOT

from mmclip_jax.errors import UserError
from mmclip_jax.evaluate.report import comparison

# Runs mmclip, but one function prints a line and waits when it is called for the n-th time (with a path of a folder).
STOPPED = """
import importlib, sys, time
from mmclip_jax import cli
module, name, calls, folder = sys.argv[1:5]
place = importlib.import_module(module)
function, left = getattr(place, name), int(calls)

def stopped(*arguments, **named):
    global left
    left -= not folder or str(arguments[-1]).startswith(folder)
    if not left:
        print("there", flush=True)
        time.sleep(600)
    return function(*arguments, **named)

setattr(place, name, stopped)
cli.main(sys.argv[5:])
"""


def _environment() -> dict[str, str]:
    flags = "--xla_backend_optimization_level=0"
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def _kill_at(module: str, name: str, calls: int, folder: pathlib.Path | str, arguments: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, module, name, str(calls), str(folder), *arguments],
        env=_environment(), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def _whole(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mmclip_jax.cli", *arguments],
        env=_environment(),
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr


def _content(folder: pathlib.Path) -> dict[str, bytes]:
    # A process that is killed while it moves its files leaves its lock; the next one takes it over.
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.mark.slow  # five evaluations in processes of their own
def test_killed_while_embedding_writing_and_moving(tmp_path: pathlib.Path, phantom_dir: pathlib.Path) -> None:
    run = tiny.save_run(tmp_path / "run", (7,))
    out = run / "evaluation" / "7"
    arguments = ["evaluate", "--model", str(run), "--data", str(phantom_dir)]

    _kill_at("mmclip_jax.evaluate.rows", "decode_image", 5, "", arguments)
    assert not out.parent.exists()
    _whole(arguments)
    old = _content(out)
    assert set(old) == {"report.html", "results.json", "scores.csv", "model_card.md"}

    _kill_at("mmclip_jax.evaluate.report.card", "render", 1, "", arguments)
    (unfinished,) = (path for path in out.parent.iterdir() if path != out)
    assert {path.name for path in unfinished.iterdir()} == set(old) - {"model_card.md"}, "it was writing"
    assert _content(out) == old
    assert comparison.SavedEvaluation.read(run).path == out

    _kill_at("os", "replace", 3, out, arguments)
    assert set(_content(out)) == set(old) - {"results.json"}
    (unfinished,) = (path for path in out.parent.iterdir() if path != out)
    assert (unfinished / "results.json").exists(), "it was about to be moved, after all others"
    for folder in (run, out):
        with pytest.raises(UserError, match=f"{folder} has no results.json"):
            comparison.SavedEvaluation.read(folder)

    _whole(arguments)
    assert list(out.parent.iterdir()) == [out]
    new = _content(out)
    first, last = (json.loads(content.pop("results.json")) for content in (old, new))
    assert first.pop("seconds").keys() == last.pop("seconds").keys()
    assert last == first
    assert new == old
