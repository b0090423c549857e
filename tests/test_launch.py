"""The launch scripts: help, dry runs, what they do with stand-ins for mmclip and the schedulers, and real training."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import hypothesis
import pytest
import tiny
import yaml
from hypothesis import strategies
from test_run import saved

from mmclip_jax.checkpoints import find_checkpoint

ROOT = Path(__file__).resolve().parents[1]
LOCAL, POD, GKE, SLURM, WORKER = (
    ROOT / "launch" / name for name in ("local_multiprocess.sh", "tpu_pod.sh", "gke.sh", "slurm.sbatch", "worker.sh")
)
SCRIPTS = [LOCAL, POD, GKE, SLURM, WORKER]


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
    assert re.search(rf"^usage: .*launch/{re.escape(script.name)}", shown.stdout, re.MULTILINE)
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
        (LOCAL, ["2", "--port", "0x1", "--", "x"], "--port 0x1 is not a number from 1 to 65535"),
        (LOCAL, ["2", "--port", "65536", "--", "x"], "--port 65536 is not a number"),
        (LOCAL, ["two", "--", "x"], "N is two, which is not a whole number"),
        (LOCAL, ["2"], "nothing to train"),
        (POD, ["run", "--zone", "z", "--", "x"], "--name is missing"),
        (POD, ["--name", "n", "--zone", "z"], "say up, run, logs, status, stop or down"),
        (POD, ["up", "--name", "n", "--zone", "z"], "--type is missing"),
        (POD, ["run", "--name", "n", "--zone", "z", "--type", "t", "--runtime", "r"], "nothing to train"),
        (POD, ["down", "--name", "n", "--zone", "z", "--", "x"], "down takes nothing"),
        (POD, ["down", "--name", "n", "--zone", "z", "--poll", "1m"], "--poll 1m is not a whole number"),
        (POD, ["down", "--name", "n", "--zone", "z", "--attempts", "9" * 20], "is not a whole number of at most nine"),
        (LOCAL, ["9" * 20, "--", "x"], "which is not a whole number"),
        (SLURM, ["--nodes=4", "--", "x"], "options of sbatch come before the script"),
        (SLURM, [], "nothing to train"),
        (SLURM, ["--", "x"], "submit it with sbatch"),
        (GKE, ["up", "--", "x"], "--name '' is not"),
        (GKE, ["up", "--name", "Big_Run", "--", "x"], "--name 'Big_Run' is not"),
        (GKE, ["up", "--name", "n", "--", "x"], "--image is missing"),
        (GKE, ["status", "--name", "n", "--", "x"], "status takes nothing"),
        (
            GKE,
            [
                "up",
                "--name",
                "n",
                "--claim",
                'c", x: "',
                "--image",
                "i",
                "--accelerator",
                "a",
                "--topology",
                "2x2",
                "--hosts",
                "1",
                "--",
                "x",
            ],
            "has a character that does not belong there",
        ),
        (WORKER, ["begin"], "there is no action begin"),
        (WORKER, ["start", "--config"], "start takes --"),
    ],
)
def test_mistakes_are_one_line(script, arguments, message):
    done = _run(script, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_dry_run_prints_one_command_a_process():
    done = _run(LOCAL, "3", "--devices", "5", "--port", "4321", "--mmclip", "mm", "--dry-run", "--",
                "--config", "a b.py", "--workdir", "w", XLA_FLAGS="--xla_other")  # fmt: skip
    assert done.returncode == 0
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert commands == [
        ["env", "JAX_PLATFORMS=cpu", "XLA_FLAGS=--xla_other --xla_force_host_platform_device_count=5", "mm", "train",
         "--config", "a b.py", "--workdir", "w", "--coordinator", "127.0.0.1:4321", "--processes", "3",
         "--process", str(process)]
        for process in range(3)
    ]  # fmt: skip


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_all_processes_save(tmp_path, number):
    # The processes end one after the other, as the first has saved before the last has.
    body = f"trap 'sleep $process; touch {tmp_path}/saved_$process; exit 75' TERM; touch {tmp_path}/up_$process; "
    body += "while true; do sleep 0.1; done"
    command = [str(LOCAL), "3", "--mmclip", _stand_in(tmp_path, body), "--", "--config", "x"]
    # Tests that run in the background of a shell ignore SIGINT, and so would a script that they start.
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    ) as process:
        while len(list(tmp_path.glob("up_*"))) < 3:
            time.sleep(0.05)
        process.send_signal(number)
        try:
            assert process.wait(30) == 75
        finally:
            process.kill()
    assert sorted(path.name for path in tmp_path.glob("saved_*")) == ["saved_0", "saved_1", "saved_2"]


def test_a_second_signal_kills(tmp_path):
    body = f"trap '' TERM; echo $$ >{tmp_path}/up_$process; exec sleep 60"
    command = [str(LOCAL), "2", "--mmclip", _stand_in(tmp_path, body), "--", "--config", "x"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while len(list(tmp_path.glob("up_*"))) < 2:
            time.sleep(0.05)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 130
    time.sleep(0.2)
    for path in tmp_path.glob("up_*"):
        stat = Path(f"/proc/{path.read_text().strip()}/stat")
        assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"  # gone, or not yet collected


def test_images_copy_what_is_let_in_and_run_as_a_user():
    copied = set()
    for name in ("tpu", "cuda"):
        lines = [line.split() for line in (ROOT / "launch" / f"{name}.Dockerfile").read_text().splitlines()]
        steps = [words for words in lines if words and words[0] in ("FROM", "COPY", "USER", "ENTRYPOINT")]
        assert steps[0] == ["FROM", "python:3.11-slim"]
        assert [words[0] for words in steps[-2:]] == ["USER", "ENTRYPOINT"]
        assert steps[-2] == ["USER", "mmclip"]
        copied |= {source for words in steps if words[0] == "COPY" for source in words[1:-1]}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == let_in
    assert all((ROOT / source).exists() for source in copied)


# ---------------------------------------------------------------------------------------------------------------------
# Real training

# Masks at random: a tie broken otherwise by rounding would say nothing about processes. A small rate: Adam turns the
# rounding of gradients that are nearly zero into updates of the size of the rate.
EQUAL = ["--config", "configs/demo.py:runlocal", "--config.train.log_every=1", "--config.train.evaluate_every=0",
         "--config.objective.attmim.strategy=random", "--config.optimizer.peak_lr=1e-4"]  # fmt: skip


@pytest.fixture
def training(tmp_path_factory):
    """The environment of runs that share compiled code, and a script that stands for the installed command."""
    folder = tmp_path_factory.mktemp("training")
    script = folder / "mmclip"
    script.write_text(f'#!/usr/bin/env bash\nexec {sys.executable} -m mmclip_jax.cli "$@"\n')
    script.chmod(0o755)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }
    return script, environment


def _losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows}


@pytest.mark.slow
def test_two_local_processes_train_the_demo_as_one_does(tmp_path, phantom_dir, training):
    script, environment = training
    arguments = [*EQUAL, f"--config.data.train=('{phantom_dir}',)", "--config.train.steps=20"]
    one, two = tmp_path / "one", tmp_path / "two"
    for command in (
        [str(script), "train", *arguments, "--workdir", str(one)],
        [str(LOCAL), "2", "--mmclip", str(script), "--logs", str(tmp_path), "--", *arguments, "--workdir", str(two)],
    ):
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert json.loads((two / "manifest.json").read_text())["processes"] == 2
    expected, got = _losses(one), _losses(two)
    assert sorted(expected) == sorted(got) == list(range(1, 21))
    # Another record in any batch would show in its loss.
    assert max(abs(expected[step] - got[step]) for step in expected) < 1e-5
    assert expected[20] < expected[1] - 0.01
    params = [saved(workdir, 20) for workdir in (one, two)]
    assert tiny.largest_difference(*params) < 1e-5


@pytest.mark.slow
def test_the_other_process_says_that_one_was_lost_and_ends(tmp_path, phantom_dir, training):
    script, environment = training
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    workdir = tmp_path / "run"
    arguments = [*EQUAL, f"--config.data.train=('{phantom_dir}',)", "--config.train.steps=100000", "--workdir",
                 str(workdir), "--coordinator", address, "--processes", "2"]  # fmt: skip
    first, second = (
        subprocess.Popen([str(script), "train", *arguments, "--process", process], env=environment, cwd=ROOT,
                         text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for process in "01"
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not (workdir / "checkpoints" / "10").exists():
        assert first.poll() is None, first.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    second.kill()
    _, err = first.communicate(timeout=60)  # JAX alone would abort after its heartbeat's 100 seconds
    assert first.returncode == 75, err
    assert err.splitlines()[-1].startswith("mmclip: another process of this run was lost")
    second.communicate()
    assert find_checkpoint(workdir).step >= 10


# ---------------------------------------------------------------------------------------------------------------------
# SLURM: stand-ins for sbatch, srun and scontrol. sbatch runs a copy of the script, as slurmd does, reads its #SBATCH
# lines, and runs it again while scontrol has asked for that.

SBATCH = """
import os, pathlib, re, shutil, subprocess, sys
folder = pathlib.Path(__file__).parent
at = next(i for i, word in enumerate(sys.argv[1:], 1) if not word.startswith("--"))
text = pathlib.Path(sys.argv[at]).read_text()
options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.MULTILINE))
options |= dict(word[2:].split("=", 1) for word in sys.argv[1:at])
shutil.copy(sys.argv[at], folder / "slurm_script")
env = os.environ | {"SLURM_JOB_ID": "17", "SLURM_NTASKS_PER_NODE": options["ntasks-per-node"],
                    "SLURM_GPUS_ON_NODE": options["gpus-per-node"], "SIGNAL": options["signal"]}
starts = 0
while True:
    if starts:
        env["SLURM_RESTART_COUNT"] = str(starts)
    status = subprocess.run([folder / "slurm_script", *sys.argv[at + 1:]], env=env).returncode
    starts += 1
    if "requeue" not in options or not (folder / "requeue").exists():
        sys.exit(status)
    (folder / "requeue").unlink()
"""


@pytest.fixture
def cluster(tmp_path):
    """submit(srun's body, *words of the sbatch command) -> the finished process; its log is in tmp_path/log."""

    def submit(srun, *words, **environment):
        for name, text in {
            "sbatch": f"#!{sys.executable}\n{SBATCH}",
            "srun": f'#!/usr/bin/env bash\necho "$@" >>{tmp_path}/log\n{srun}\n',
            "scontrol": f'#!/usr/bin/env bash\necho scontrol "$@" >>{tmp_path}/log\ntouch {tmp_path}/requeue\n',
        }.items():
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        return _run(tmp_path / "sbatch", *words, PATH=path, **environment)

    return submit


TRAIN = ["--", "--config", "configs/x.py", "--workdir", "w"]


def test_slurm_dry_run():
    done = _run(SLURM, "--mmclip", "/opt/mm clip", "--dry-run", "--", "--workdir", "my runs")
    assert done.stdout == "srun --kill-on-bad-exit=1 --wait=300 /opt/mm\\ clip train --pod --workdir my\\ runs\n"


def test_slurm_job_is_queued_again_after_75_until_it_is_done(cluster, tmp_path):
    restarts = "echo ${SLURM_RESTART_COUNT:-0} $SIGNAL; ((${SLURM_RESTART_COUNT:-0} == 2)) || exit 75"
    done = cluster(restarts, "--nodes=2", str(SLURM), *TRAIN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{n} TERM@300" for n in range(3)]
    srun = "--kill-on-bad-exit=1 --wait=300 .venv/bin/mmclip train --pod --config configs/x.py --workdir w"
    assert (tmp_path / "log").read_text().splitlines() == [
        srun, "scontrol requeue 17", srun, "scontrol requeue 17", srun,
    ]  # fmt: skip


def test_slurm_lets_the_exchange_of_gradients_overlap(cluster):
    done = cluster("echo $XLA_FLAGS", str(SLURM), *TRAIN, XLA_FLAGS="--xla_mine=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "--xla_gpu_enable_latency_hiding_scheduler=true --xla_mine=1\n"


@pytest.mark.parametrize("status", [1, 2, 134, 137])
def test_slurm_job_that_fails_ends_with_the_status(cluster, tmp_path, status):
    assert cluster(f"exit {status}", str(SLURM), *TRAIN).returncode == status
    assert "scontrol" not in (tmp_path / "log").read_text()


def test_slurm_requeues_have_a_limit(cluster, tmp_path):
    done = cluster("exit 75", str(SLURM), "--requeues", "1", *TRAIN)
    assert done.returncode == 75
    assert "interrupted 2 times, and --requeues is 1" in done.stderr
    assert (tmp_path / "log").read_text().count("scontrol") == 1


def test_slurm_batch_shell_outlives_the_signal(cluster):
    done = cluster("kill -TERM $PPID; sleep 0.5; ((${SLURM_RESTART_COUNT:-0})) || exit 75", str(SLURM), *TRAIN)
    assert done.returncode == 0, done.stderr
    assert "queued again" in done.stderr


def test_slurm_needs_one_task_a_gpu(cluster):
    done = cluster("exit 0", "--gpus-per-node=4", str(SLURM), *TRAIN)
    assert done.returncode == 2
    assert "8 tasks and 4 GPUs a node" in done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# GKE

JOBSET = ["up", "--name", "run-1", "--image", "registry/mmclip:1", "--accelerator", "tpu-v5-lite-podslice",
          "--topology", "4x8", "--hosts", "8", "--claim", "shared-data"]  # fmt: skip


def test_gke_dry_run():
    done = _run(GKE, *JOBSET, "--spot", "--dry-run", "--", "--workdir", "/mnt/mmclip/a")
    assert (
        done.stdout
        == """\
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: run-1
  namespace: default
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: 100
    rules:
      - action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: 1
      template:
        spec:
          parallelism: 8
          completions: 8
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [1, 2]
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 300
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: "tpu-v5-lite-podslice"
                cloud.google.com/gke-tpu-topology: "4x8"
                cloud.google.com/gke-spot: "true"
              containers:
                - name: train
                  image: "registry/mmclip:1"
                  resources:
                    requests: {google.com/tpu: 4}
                    limits: {google.com/tpu: 4}
                  volumeMounts:
                    - {name: shared, mountPath: "/mnt/mmclip"}
                  args:
                    - "train"
                    - "--pod"
                    - "--workdir"
                    - "/mnt/mmclip/a"
              volumes:
                - name: shared
                  persistentVolumeClaim: {claimName: "shared-data"}
kubectl create --filename=-
"""
    )
    for action, expected in {
        "status": "kubectl get --namespace=default jobsets.jobset.x-k8s.io run-1\n"
        "kubectl get --namespace=default pods --selector=jobset.sigs.k8s.io/jobset-name=run-1 --output=wide\n",
        "logs": "kubectl logs --namespace=default --selector=jobset.sigs.k8s.io/jobset-name=run-1\\,"
        "batch.kubernetes.io/job-completion-index=0 --tail=100 --follow\n",
        "down": "kubectl delete --namespace=default jobsets.jobset.x-k8s.io run-1\n",
    }.items():
        assert _run(GKE, action, "--name", "run-1", "--dry-run").stdout == expected


@hypothesis.settings(max_examples=20)
@hypothesis.given(
    strategies.lists(
        strategies.text(strategies.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=12), min_size=1
    )
)
def test_gke_arguments_reach_the_trainer_as_they_are(words):
    done = _run(GKE, *JOBSET, "--dry-run", "--", *words)
    manifest = yaml.safe_load(done.stdout.removesuffix("kubectl create --filename=-\n"))
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"] == ["train", "--pod", *words]


def test_gke_hands_the_manifest_to_kubectl_and_returns_its_failure(tmp_path):
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        f'#!/usr/bin/env bash\necho "$@" >{tmp_path}/words\ncat >{tmp_path}/manifest\nexit ${{FAIL:-0}}\n'
    )
    kubectl.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert _run(GKE, *JOBSET, "--", "--workdir", "w", PATH=path).returncode == 0
    assert (tmp_path / "words").read_text() == "create --filename=-\n"
    assert yaml.safe_load((tmp_path / "manifest").read_text())["metadata"]["name"] == "run-1"
    assert _run(GKE, *JOBSET, "--", "--workdir", "w", PATH=path, FAIL="3").returncode == 3
    (tmp_path / "words").unlink()
    done = _run(GKE, *JOBSET, "--", "a\nb", PATH=path)
    assert done.returncode == 2
    assert "control character" in done.stderr
    assert not (tmp_path / "words").exists()
