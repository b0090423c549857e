"""The launch scripts: their help, their dry run, and what they do with processes, with a stand-in for mmclip."""

import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
LOCAL = ROOT / "launch" / "local_multiprocess.sh"
POD = ROOT / "launch" / "tpu_pod.sh"


def _run(script: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.name)
def test_help_names_every_option_and_no_path_of_a_person(script):
    text = script.read_text()
    shown = _run(script, "--help")
    assert shown.returncode == 0
    assert f"usage: launch/{script.name}" in shown.stdout
    for line in re.findall(r"^\s+((?:--[a-z-]+ \| )*--[a-z-]+)\)", text, re.MULTILINE):
        for option in line.split(" | "):
            assert option in shown.stdout
    assert not re.search(r"/home/|/root|\$HOME|~/", text)
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda s: s.name)
def test_shellcheck_is_content(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (LOCAL, ["--procesess", "2", "--", "--config", "x"], "there is no option --procesess"),
        (LOCAL, ["--port"], "--port needs a value"),
        (LOCAL, ["--processes", "two", "--", "x"], "--processes two is not a whole number"),
        (LOCAL, ["--processes", "2"], "nothing to train"),
        (POD, ["train", "--zone", "z", "--", "x"], "--name is missing"),
        (POD, ["--name", "n", "--zone", "z"], "say install or train"),
        (POD, ["train", "--name", "n", "--zone", "z"], "nothing to train"),
        (POD, ["install", "--name", "n", "--zone", "z", "--", "x"], "install takes nothing"),
    ],
)
def test_mistakes_are_one_line(script, arguments, message):
    done = _run(script, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_dry_run_prints_one_command_a_process():
    done = _run(LOCAL, "--processes", "3", "--devices", "5", "--port", "4321", "--mmclip", "mm", "--dry-run", "--",
                "--config", "a b.py", "--workdir", "w", XLA_FLAGS="--xla_other")  # fmt: skip
    assert done.returncode == 0
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert commands == [
        ["env", "JAX_PLATFORMS=cpu", "XLA_FLAGS=--xla_other --xla_force_host_platform_device_count=5", "mm", "train",
         "--config", "a b.py", "--workdir", "w", "--coordinator", "127.0.0.1:4321", "--processes", "3",
         "--process", str(process)]
        for process in range(3)
    ]  # fmt: skip


def test_pod_commands_keep_arguments_apart():
    done = _run(POD, "train", "--name", "tpu", "--zone", "z1", "--project", "p", "--dry-run", "--",
                "--config", "configs/x.py", "--workdir", "/mnt/my runs")  # fmt: skip
    (command,) = (shlex.split(line) for line in done.stdout.splitlines())
    assert command[:8] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "tpu", "--zone=z1", "--worker=all"]
    remote = command[-1].removeprefix("--command=")
    assert shlex.split(remote) == [
        "cd", "mmclip-jax", "&&", ".venv/bin/mmclip", "train", "--pod", "--config", "configs/x.py", "--workdir",
        "/mnt/my runs",
    ]  # fmt: skip
    done = _run(POD, "install", "--name", "tpu", "--zone", "z1", "--dry-run")
    assert [shlex.split(line)[0] for line in done.stdout.splitlines()] == ["git", "gcloud", "gcloud"]


def _stand_in(directory: Path, body: str) -> str:
    script = directory / "mmclip"
    script.write_text(f"#!/usr/bin/env bash\nwhile [[ $1 != --process ]]; do shift; done; process=$2\n{body}\n")
    script.chmod(0o755)
    return str(script)


def test_processes_run_side_by_side_and_their_output_is_kept(tmp_path):
    # Each waits for the other's mark: this ends only if they run at the same time.
    mark = f"{tmp_path}/mark_"
    body = f"touch {mark}$process; until [[ -e {mark}$((1 - process)) ]]; do sleep 0.1; done; echo I am $process"
    logs = tmp_path / "logs"
    done = _run(LOCAL, "--mmclip", _stand_in(tmp_path, body), "--logs", str(logs), "--", "--config", "x")
    assert (done.returncode, done.stdout, done.stderr) == (0, "I am 0\n", "")
    assert (logs / "process_1.log").read_text() == "I am 1\n"


def test_one_failure_ends_the_others(tmp_path):
    body = "if ((process)); then exit 7; fi; exec sleep 50"
    start = time.monotonic()
    done = _run(LOCAL, "--mmclip", _stand_in(tmp_path, body), "--", "--config", "x")
    assert done.returncode == 7
    assert done.stderr.startswith("process 1 failed with status 7; ")
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - start < 20
