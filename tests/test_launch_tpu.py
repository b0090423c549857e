"""launch/tpu_pod.sh against a stand-in for gcloud: two directories are the hosts, the hosts' part runs for real."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from conftest import ROOT

SCRIPT = ROOT / "launch" / "tpu_pod.sh"
SLICE = ("--name", "pod", "--zone", "z1", "--type", "v5litepod-8", "--runtime", "rt")

# Its folder holds: states (one a line, the last stays), errors/VERB (a line a call: what to say and fail with; "-" to
# succeed; "* TEXT" for ever), hosts/N (login directories, made by create, emptied by delete), calls.jsonl.
GCLOUD = """
import json, os, pathlib, shutil, signal, subprocess, sys

folder = pathlib.Path(__file__).parent
words = sys.argv[1:]
with open(folder / "calls.jsonl", "a") as calls:
    calls.write(json.dumps(words) + "\\n")
assert words[:2] == ["compute", "tpus"], words
verb, rest = words[3], words[4:]
options = dict(word[2:].split("=", 1) for word in rest if word.startswith("--") and "=" in word)
assert options["zone"] == "z1"
states = folder / "states"
planned = folder / "errors" / verb
if planned.exists() and (lines := planned.read_text().splitlines()):
    line = lines[0]
    if not line.startswith("* "):
        planned.write_text("\\n".join(lines[1:]))
    if line != "-":
        if verb == "ssh" and "--worker=all" in rest:  # one host answers, the other does not
            subprocess.run(["bash", "-c", options["command"]], cwd=folder / "hosts" / "0", stdin=subprocess.DEVNULL)
        sys.exit("ERROR: " + line.removeprefix("* "))
if verb == "describe":
    first, *later = states.read_text().split()
    if later:
        states.write_text("\\n".join(later))
    if first == "NONE":
        sys.exit("ERROR: (gcloud) NOT_FOUND: the resource was not found")
    print(first)
elif verb == "create":
    for host in ("0", "1"):
        (folder / "hosts" / host).mkdir(parents=True)
    states.write_text((folder / "after_create").read_text())
elif verb == "delete":
    for pid in folder.glob("hosts/*/mmclip-jax/run/pid"):
        try:
            os.kill(int(pid.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass
    shutil.rmtree(folder / "hosts", ignore_errors=True)
    states.write_text("NONE")
else:
    if states.read_text().split()[0] not in ("ACTIVE", "SUSPENDING"):
        sys.exit("ERROR: no such host")
    chosen = ["0", "1"] if options["worker"] == "all" else [options["worker"]]
    codes = []
    for host in chosen:
        home = folder / "hosts" / host
        if verb == "scp":
            shutil.copy(rest[0], home / rest[1].split(":", 1)[1])
        else:
            env = os.environ | {"HOST": host, "PATH": f"{folder}/host_bin:" + os.environ["PATH"]}
            codes.append(subprocess.run(["bash", "-c", options["command"]], cwd=home, env=env).returncode)
    sys.exit(max(codes, default=0))
"""

# Stands for the hosts' python3 with pip and uv.
PYTHON = """#!/usr/bin/env bash
echo "$@" >>"$(dirname "$0")/python.log"
"""


class Pod:
    """The folder of the stand-in, and the script under test in it."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        for name in ("bin", "host_bin", "errors"):
            (folder / name).mkdir()
        (folder / "gcloud.py").write_text(GCLOUD)
        self._executable("bin/gcloud", f'#!/usr/bin/env bash\nexec {sys.executable} -S {folder}/gcloud.py "$@"\n')
        self._executable("host_bin/python3", PYTHON)
        (folder / "states").write_text("NONE")
        (folder / "after_create").write_text("PROVISIONING\nACTIVE")
        self.trainer("exit 0")

    def _executable(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def trainer(self, body: str) -> None:
        """What stands for mmclip; $HOST is the host, $round counts its starts there."""
        rounds = f"{self.folder}/round_$HOST"
        count = f"round=$(($(cat {rounds} 2>/dev/null || echo 0) + 1)); echo $round >{rounds}"
        said = f'printf "%s\\n" "$*" >>{self.folder}/arguments_$HOST'
        self._executable("mmclip", f"#!/usr/bin/env bash\n{count}\n{said}\n{textwrap.dedent(body)}\n")

    def error(self, verb: str, *lines: str) -> None:
        (self.folder / "errors" / verb).write_text("\n".join(lines))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        env = os.environ | {"PATH": f"{self.folder}/bin:" + os.environ["PATH"], "MMCLIP": f"{self.folder}/mmclip"}
        command = [str(SCRIPT), arguments[0], *SLICE, "--poll", "0", "--backoff", "0", *arguments[1:]]
        return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def calls(self) -> list[str]:
        """The verbs in order, those that only look left out."""
        lines = [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]
        doing = [words for words in lines if words[3] != "describe" and not any("worker.sh state" in w for w in words)]
        return [words[3] for words in doing]

    def wait_for(self, name: str) -> None:
        deadline = time.monotonic() + 30
        while not (self.folder / name).exists():
            assert time.monotonic() < deadline, name
            time.sleep(0.05)


@pytest.fixture
def pod(tmp_path: pathlib.Path) -> Pod:
    return Pod(tmp_path)


def test_a_slice_is_made_installed_and_trained_on(pod: Pod) -> None:
    code, _, err = pod.run(
        "run", "--setup", f"touch {pod.folder}/setup_$HOST", "--", "--workdir", "/mnt/my runs", "a'b"
    )
    assert code == 0, err
    assert pod.calls() == ["create", "scp", "ssh", "ssh", "ssh"]  # install, --setup, start
    for host in "01":
        assert (pod.folder / f"arguments_{host}").read_text() == "train --pod --workdir /mnt/my runs a'b\n"
        assert (pod.folder / f"setup_{host}").exists()
        assert (pod.folder / "hosts" / host / "mmclip-jax" / "requirements.txt").exists()
    installed = (pod.folder / "host_bin" / "python.log").read_text()
    assert "-m uv venv -q --python 3.11 .venv" in installed
    assert "-e .[tpu,gcs]" in installed


def test_a_preempted_slice_is_made_anew_and_training_goes_on(pod: Pod) -> None:
    pod.trainer(f"""
        if ((round == 1)); then
          if ((HOST == 1)); then sleep 1; echo SUSPENDED >{pod.folder}/states; fi
          exec sleep 60
        fi""")
    code, _, err = pod.run("run", "--", "--workdir", "w")
    assert code == 0, err
    assert pod.calls() == ["create", "scp", "ssh", "ssh", "delete", "create", "scp", "ssh", "ssh"]
    assert "pod was preempted" in err
    assert (pod.folder / "round_1").read_text() == "2\n"


def test_a_run_that_saved_and_stopped_is_started_again_on_the_same_slice(pod: Pod) -> None:
    pod.trainer("if ((round == 1)); then exit 75; elif ((round == 2)); then kill -ABRT $$; fi")
    code, _, err = pod.run("run", "--", "--workdir", "w")
    assert code == 0, err
    assert pod.calls() == ["create", "scp", "ssh", "ssh", "ssh", "ssh"]  # once installed, three times started


@pytest.mark.parametrize(("words", "attempts"), [("3", 3), ("08", 8), ("010", 10)])
def test_starting_again_has_a_limit(pod: Pod, words: str, attempts: int) -> None:
    """Numbers are decimal: bash by itself reads 010 as eight and stumbles over 08."""
    pod.trainer("exit 75")
    code, _, err = pod.run("run", "--attempts", words, "--", "--workdir", "w")
    assert code == 75
    assert f"given up after {int(words)} attempts; the slice is left as it is" in err
    assert pod.calls().count("ssh") == attempts + 1
    assert "delete" not in pod.calls()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPodPerProjectPerZone' has been exceeded", "the quota of z1"),
        ("PERMISSION_DENIED: you may not", "gcloud refused to make pod"),
    ],
)
def test_a_refused_slice_ends_the_run_and_deletes_nothing(pod: Pod, said: str, message: str) -> None:
    pod.error("create", f"* {said}")
    code, _, err = pod.run("run", "--", "--workdir", "w")
    assert code == 69
    assert said in err
    assert message in err
    assert pod.calls() == ["create"]


def test_a_service_that_is_down_for_a_while_is_asked_again(pod: Pod) -> None:
    pod.error("create", "UNAVAILABLE: try later", "UNAVAILABLE: try later", "-")
    code, _, err = pod.run("up")
    assert code == 0, err
    assert pod.calls() == ["create", "create", "create", "scp", "ssh"]
    pod.error("create", "* UNAVAILABLE: try later")
    (pod.folder / "states").write_text("NONE")
    code, _, err = pod.run("up", "--attempts", "2")
    assert code == 69
    assert "making pod: given up after 2 attempts" in err


def test_a_failed_request_is_replaced_and_an_active_slice_reused(pod: Pod) -> None:
    (pod.folder / "states").write_text("FAILED")
    assert pod.run("up")[0] == 0
    assert pod.calls() == ["delete", "create", "scp", "ssh"]
    assert pod.run("up")[0] == 0
    assert pod.calls()[4:] == ["scp", "ssh"]


@pytest.mark.slow
def test_one_host_that_cannot_be_reached(pod: Pod) -> None:
    pod.error("ssh", "connection refused", "-")
    code, _, err = pod.run("up")
    assert code == 0, err
    assert "installing failed on at least one host (try 1 of 3)" in err
    pod.error("ssh", "* connection refused")
    code, _, err = pod.run("up")
    assert code == 69
    assert "the slice is kept" in err
    assert "delete" not in pod.calls()


def test_a_host_that_is_out_of_reach_for_a_while_does_not_end_the_run(pod: Pod) -> None:
    pod.trainer(f"touch {pod.folder}/started; until [[ -e {pod.folder}/go ]]; do sleep 0.1; done")
    process = pod.start("run", "--", "--workdir", "w")
    pod.wait_for("started")
    pod.error("ssh", "connection timed out", "connection timed out")
    time.sleep(1)
    (pod.folder / "go").touch()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert pod.calls().count("scp") == 1
    assert (pod.folder / "round_0").read_text() == "1\n"


def test_the_status_of_a_trainer_that_fails_is_returned_and_the_others_end(pod: Pod) -> None:
    pod.trainer("if ((HOST == 1)); then sleep 0.5; exit 2; fi; echo I wait for host 1; exec sleep 60")
    code, _, err = pod.run("run", "--", "--workdir", "w")
    assert code == 2
    assert "the trainer failed with status 2; the end of the log:\nI wait for host 1" in err
    pid = int((pod.folder / "hosts" / "0" / "mmclip-jax" / "run" / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert "delete" not in pod.calls()


def test_a_failure_that_a_lost_host_causes_is_a_preemption(pod: Pod) -> None:
    pod.trainer(f"""
        if ((round == 1)); then
          if ((HOST == 0)); then sleep 1; echo SUSPENDING SUSPENDED >{pod.folder}/states; exit 1; fi
          exec sleep 60
        fi""")
    code, _, err = pod.run("run", "--", "--workdir", "w")
    assert code == 0, err
    assert "pod was preempted" in err
    assert "failed with status" not in err
    assert pod.calls().count("create") == 2


def test_training_outlives_the_launcher_which_can_be_run_again_and_stopped(pod: Pod) -> None:
    pod.trainer(f"""
        trap 'exit 75' TERM
        touch {pod.folder}/started_$HOST
        while true; do sleep 0.1; done""")
    process = pod.start("run", "--", "--workdir", "w")
    pod.wait_for("started_0")
    pod.wait_for("started_1")
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again = pod.start("run", "--", "--workdir", "w")
    time.sleep(2)
    code, out, err = pod.run("status")
    assert (code, out) == (0, "slice: ACTIVE\nrunning\nrunning\n"), err
    assert pod.run("stop")[0] == 0
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert "following it" in err
    assert "stopped; the step is saved" in err
    assert pod.calls().count("scp") == 1
    assert [(pod.folder / f"round_{host}").read_text() for host in "01"] == ["1\n", "1\n"]
    assert pod.run("status")[1] == "slice: ACTIVE\nstopped\nstopped\n"


def test_a_slice_that_cannot_be_deleted_is_named(pod: Pod) -> None:
    pod.error("delete", "INTERNAL: later")
    code, _, err = pod.run("down")
    assert code == 69
    assert "pod could not be deleted and may still cost money" in err
    assert pod.run("down")[0] == 0


def test_dry_run_prints_the_commands_and_calls_nothing(pod: Pod) -> None:
    code, out, err = pod.run("run", "--spot", "--project", "p", "--setup", "mount it", "--dry-run", "--", "--config",
                             "configs/mmclip_vitb16.py", "--workdir", "/mnt/my runs")  # fmt: skip
    assert (code, err) == (0, "")
    assert not (pod.folder / "calls.jsonl").exists()
    where = "--zone=z1 --project=p"
    all_hosts = f"gcloud compute tpus tpu-vm ssh pod {where} --worker=all"
    kind = "--accelerator-type=v5litepod-8 --runtime-version=rt"
    unpack = "mkdir -p mmclip-jax && tar -xzf mmclip-jax.tar.gz -C mmclip-jax"
    remote = "bash mmclip-jax/launch/worker.sh"
    assert [shlex.join(shlex.split(line)) for line in out.splitlines()] == [
        shlex.join(shlex.split(line))
        for line in f"""\
gcloud compute tpus queued-resources describe pod {where} "--format=value(state.state)"
gcloud compute tpus queued-resources create pod --node-id=pod {where} {kind} --spot
gcloud compute tpus queued-resources describe pod {where} "--format=value(state.state)"
git -C {ROOT} archive --format=tar.gz --output=mmclip-jax.tar.gz HEAD
gcloud compute tpus tpu-vm scp mmclip-jax.tar.gz pod:mmclip-jax.tar.gz {where} --worker=all
{all_hosts} --command="{unpack} && {remote} install"
{all_hosts} --command="mount it"
{all_hosts} --command="{remote} start -- --config configs/mmclip_vitb16.py --workdir /mnt/my\\ runs"
{all_hosts} --command="{remote} state 2>/dev/null || echo none"
""".splitlines()
    ]
    for action, last in (
        ("logs", f'gcloud compute tpus tpu-vm ssh pod --zone=z1 --worker=0 --command="{remote} logs"'),
        ("stop", f'gcloud compute tpus tpu-vm ssh pod --zone=z1 --worker=all --command="{remote} stop"'),
        ("down", "gcloud compute tpus queued-resources delete pod --zone=z1 --force --quiet"),
    ):
        code, out, _ = pod.run(action, "--dry-run")
        assert code == 0
        assert shlex.split(out) == shlex.split(last)
