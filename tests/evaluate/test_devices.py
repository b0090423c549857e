"""An evaluation on one device, on eight, and by two real processes: the same scores, the same metrics."""

import csv
import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

TRAIN = """
import sys, jax
sys.path.insert(0, "tests")
import tiny
from mmclip_jax import train
config = tiny.load_config("demo", "runlocal")
config.data.train = (sys.argv[2],)
config.train.steps = 4
config.train.update({"evaluate_every": 0, "checkpoint_every": 0})
train.train(config, sys.argv[1])
"""


def _environment(devices: int) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "XLA_FLAGS": f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}",
    }


def _start(
    workdir: pathlib.Path, data: pathlib.Path, out: pathlib.Path, devices: int, *more: str
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mmclip_jax.cli", "evaluate", "--workdir", str(workdir), "--data", str(data)]
    return subprocess.Popen(
        [*command, "--out", str(out), *more], env=_environment(devices), cwd=ROOT, text=True, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


def _finish(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err


def _scores(out: pathlib.Path) -> tuple[list[str], np.ndarray]:
    with open(out / "scores.csv", newline="") as stream:
        header, *rows = csv.reader(stream)
    columns = [i for i, name in enumerate(header) if name.endswith(("/difference", "/positive"))]
    return [row[0] for row in rows], np.array([[float(row[i]) for i in columns] for row in rows])


@pytest.mark.slow  # one training and four evaluations in processes of their own
def test_devices_and_processes_give_the_same_scores(tmp_path: pathlib.Path, phantom_dir: pathlib.Path) -> None:
    workdir = tmp_path / "run"
    subprocess.run(
        [sys.executable, "-c", TRAIN, str(workdir), str(phantom_dir)], env=_environment(1), cwd=ROOT, check=True
    )
    _finish(_start(workdir, phantom_dir, tmp_path / "one", 1), _start(workdir, phantom_dir, tmp_path / "eight", 8))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    joined = ["--coordinator", address, "--processes", "2", "--process"]
    _finish(*(_start(workdir, phantom_dir, tmp_path / "two", 2, *joined, str(n)) for n in (0, 1)))
    ids, expected = _scores(tmp_path / "one")
    assert len(ids) % 8, "the last batch is uneven"
    assert np.ptp(expected) > 1e-3
    one = json.loads((tmp_path / "one" / "results.json").read_text())
    for name in ("eight", "two"):
        found, scores = _scores(tmp_path / name)
        assert found == ids
        np.testing.assert_allclose(scores, expected, atol=1e-5)
        other = json.loads((tmp_path / name / "results.json").read_text())
        for k, row in enumerate(other["zero_shot"]["sources"]["phantom-a"]["findings"]):
            want = one["zero_shot"]["sources"]["phantom-a"]["findings"][k]["difference"]
            assert row["difference"]["auroc"] == pytest.approx(want["auroc"], abs=0.02)
    written = {path.name for path in (tmp_path / "two").iterdir()}
    assert written == {"report.html", "results.json", "scores.csv", "model_card.md"}
