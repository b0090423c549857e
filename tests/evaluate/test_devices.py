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
import tiny
from conftest import ROOT

ANSWERS = pathlib.Path(__file__).with_name("answers.py")


def _environment(devices: int) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "XLA_FLAGS": f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}",
    }


def _start(
    run: tuple[pathlib.Path, pathlib.Path],
    out: pathlib.Path,
    devices: int,
    *more: str,
    answers: pathlib.Path | None = None,
) -> subprocess.Popen[str]:
    program = ["-m", "mmclip_jax.cli"] if answers is None else [str(ANSWERS), str(answers)]
    arguments = ["evaluate", "--model", str(run[0]), "--data", str(run[1]), "--out", str(out), *more]
    return subprocess.Popen(
        [sys.executable, *program, *arguments], env=_environment(devices), cwd=ROOT, text=True, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


def _joined() -> tuple[list[str], list[str]]:
    """What tells two processes of each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    first, second = (["--coordinator", address, "--processes", "2", "--process", str(n)] for n in (0, 1))
    return first, second


def _finish(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err


def _scores(out: pathlib.Path) -> tuple[list[str], np.ndarray]:
    with open(out / "scores.csv", newline="") as stream:
        header, *rows = csv.reader(stream)
    columns = [i for i, name in enumerate(header) if name.endswith(("/difference", "/positive"))]
    return [row[0] for row in rows], np.array([[float(row[i]) for i in columns] for row in rows])


def _found(out: pathlib.Path) -> dict[str, str]:
    """What an evaluation wrote but for how long it took."""
    results = json.loads((out / "results.json").read_text())
    del results["seconds"]
    others = {name: (out / name).read_text() for name in ("scores.csv", "model_card.md", "report.html")}
    return others | {"results": json.dumps(results, indent=1)}


@pytest.mark.slow  # five evaluations in processes of their own
def test_devices_and_processes_give_the_same_scores_and_same_scores_the_same_results(
    tmp_path: pathlib.Path, phantom_dir: pathlib.Path
) -> None:
    run, answers = (tiny.save_run(tmp_path / "run", (7,)), phantom_dir), tmp_path / "answers.pickle"
    _finish(_start(run, tmp_path / "one", 1, answers=answers), _start(run, tmp_path / "eight", 8))
    _finish(*(_start(run, tmp_path / "two", 2, *joined) for joined in _joined()))
    ids, expected = _scores(tmp_path / "one")
    assert len(ids) % 8, "the last batch is uneven"
    assert np.ptp(expected) > 1e-3
    for name in ("eight", "two"):
        found, scores = _scores(tmp_path / name)
        assert found == ids
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    written = {path.name for path in (tmp_path / "two").iterdir()}
    assert written == {"report.html", "results.json", "scores.csv", "model_card.md"}

    # The answers of the model on one device, given to eight devices and to two processes: equal to the last bit.
    _finish(_start(run, tmp_path / "eight given", 8, answers=answers))
    _finish(*(_start(run, tmp_path / "two given", 2, *joined, answers=answers) for joined in _joined()))
    one = _found(tmp_path / "one")
    for kind in ("auroc_interval", "auprc_interval", "threshold", "sensitivity_interval", "temperature"):
        assert f'"{kind}": ' in one["results"]
    assert _found(tmp_path / "eight given") == one
    assert _found(tmp_path / "two given") == one
