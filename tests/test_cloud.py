"""Workdirs and data sets in Cloud Storage, against a stand-in for its server; with `make test-gcs`."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import buckets
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import ROOT

import mmclip_jax
from mmclip_jax import cli, files, writers
from mmclip_jax.checkpoints import find_checkpoint
from mmclip_jax.data import records
from mmclip_jax.data.leakage import audit
from mmclip_jax.data.schema import PARTS, SPLITS
from mmclip_jax.errors import UserError

STEPS = 4
# argv: the arguments of mmclip as JSON, the batch at which SIGTERM comes or 0. Ends with the command's status.
COMMAND = """
import json, os, signal, sys
import buckets
from mmclip_jax import cli
from mmclip_jax.data import pipeline

buckets.make_ordinary()
take, stop_at = pipeline.TrainIterator.__next__, int(sys.argv[2])

def take_and_stop(iterator):
    if iterator.get_state()["next_batch"] + 1 == stop_at:
        os.kill(os.getpid(), signal.SIGTERM)
    return take(iterator)

pipeline.TrainIterator.__next__ = take_and_stop
sys.exit(cli.main(json.loads(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def bucket() -> Iterator[buckets.Buckets]:
    """A server whose buckets this process, and those that it starts, take for Cloud Storage's."""
    pytest.importorskip("gcsfs", reason="the extra [gcs] is not installed (make test-gcs)")
    with buckets.serve() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in buckets.environment(server.url).items():
            patch.setenv(name, value)
        buckets.make_ordinary()
        yield server


@pytest.fixture(scope="module")
def data(bucket: buckets.Buckets, phantom_dir: pathlib.Path) -> str:
    """The phantom in a bucket, as `gcloud storage cp --recursive` would leave it."""
    for file in phantom_dir.rglob("*"):
        if file.is_file():
            bucket.write("data", f"built/phantom/1.0.0/{file.relative_to(phantom_dir)}", file.read_bytes())
    bucket.write("data", "built/phantom/1.0.0/", b"")  # the console makes such an object for a folder
    return "gs://data/built/phantom"


# ---------------------------------------------------------------------------------------------------------------------
# Files


def test_a_file_and_a_folder_reach_the_bucket_whole(bucket: buckets.Buckets) -> None:
    files.write_whole("gs://files/a/note.txt", "grün")
    assert bucket.read("files", "a/note.txt").decode() == "grün"
    bucket.write("files", "out/last.json", b"old")
    bucket.write("files", "out/mine.txt", b"kept")
    bucket.requests.clear()
    with files.whole_folder("gs://files/out", "last.json") as folder:
        for name in ("last.json", "b.html", "z.csv"):
            (folder / name).write_text(f"new {name}")
        assert bucket.read("files", "out/last.json") == b"old"
    content = {name: bucket.read("files", name) for name in bucket.names("files") if name.startswith("out/")}
    assert content == {f"out/{name}": f"new {name}".encode() for name in ("last.json", "b.html", "z.csv")} | {
        "out/mine.txt": b"kept"
    }
    # The old one goes before anything else comes, the new one comes after all others.
    changes = [each for each in bucket.requests if each.startswith("DELETE") or "&upload_id" in each or "name=" in each]
    assert changes[0].startswith("DELETE")
    assert "out%2Flast.json" in changes[0] or "out/last.json" in changes[0]
    named = [each for each in changes if "name=" in each]
    assert "last.json" in named[-1]
    assert len(named) == 3
    with pytest.raises(ZeroDivisionError), files.whole_folder("gs://files/out", "last.json") as folder:
        (folder / "last.json").write_text(f"half {1 / 0}")
    assert bucket.read("files", "out/last.json") == b"new last.json"


def test_numbers_in_a_bucket_go_on_where_the_checkpoint_was(bucket: buckets.Buckets) -> None:
    def rows() -> list[dict[str, float]]:
        return [json.loads(line) for line in bucket.read("runs", "numbers/metrics.jsonl").splitlines()]

    def events() -> list[str]:
        return [name for name in bucket.names("runs") if name.startswith("numbers/events.out.tfevents.")]

    writer = writers.create_writer("gs://runs/numbers")
    for step in (1, 2, 3):
        writer.write_scalars(step, {"loss": 1.0 / step})
    writer.flush()
    assert rows() == [{"step": step, "loss": 1.0 / step} for step in (1, 2, 3)]
    (first,) = events()
    before = bucket.read("runs", first)
    writer.write_scalars(4, {"loss": 0.25})
    writer.close()
    assert rows()[-1] == {"step": 4, "loss": 0.25}
    assert bucket.read("runs", first).startswith(before)
    assert len(bucket.read("runs", first)) > len(before)
    writer = writers.create_writer("gs://runs/numbers", step=2)
    writer.write_scalars(3, {"loss": 7.0})
    writer.close()
    assert rows() == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 7.0}]
    assert len(events()) == 2


def test_numbers_are_copied_every_minute(bucket: buckets.Buckets, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(writers.time, "monotonic", lambda: now)
    writer = writers.create_writer("gs://runs/minute")
    writer.write_scalars(1, {"loss": 1.0})
    now += 59
    writer.write_scalars(2, {"loss": 1.0})
    assert "minute/metrics.jsonl" not in bucket.names("runs")
    now += 2
    writer.write_scalars(3, {"loss": 1.0})
    assert len(bucket.read("runs", "minute/metrics.jsonl").splitlines()) == 3


def test_without_the_extra_one_line_names_it(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Any) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = str(ROOT / "configs" / "demo.py:runlocal")
    for line in (
        ["train", "--config", config, "--workdir", "gs://runs/a"],
        ["train", "--config", config, "--workdir", str(tmp_path), '--config.data.train=("gs://data/built",)'],
        ["evaluate", "--model", "gs://runs/a"],
        ["data", "info", "gs://data/built"],
    ):
        assert cli.main(line) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert "gs://" in said
        assert "[gcs] (pip install gcsfs google-cloud-storage)" in said
    with pytest.raises(UserError, match=r"\[gcs\]"):
        mmclip_jax.load("gs://runs/a")


def test_without_permission_one_line_says_so(
    bucket: buckets.Buckets, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Any
) -> None:
    monkeypatch.setattr(bucket, "allowed", set())
    for line in (["evaluate", "--model", "gs://locked/a"], ["data", "info", "gs://locked/built"]):
        assert cli.main(line) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert f"{line[-1]} cannot be listed" in said
        assert "no such permission" in said


def test_addresses_elsewhere_are_refused() -> None:
    for address in ("s3://bucket/run", "https://example.org/run"):
        with pytest.raises(UserError, match="only gs://BUCKET"):
            files.locate(address)


# ---------------------------------------------------------------------------------------------------------------------
# Data sets


def test_a_data_set_reads_the_same_from_the_bucket(data: str, phantom_dir: pathlib.Path) -> None:
    assert str(records.dataset_dir("gs://data/built")) == f"{data}/1.0.0"
    assert records.dataset_facts(data) == records.dataset_facts(phantom_dir)
    for split in SPLITS:
        for part in PARTS:
            there, here = records.open_records(data, split, part), records.open_records(phantom_dir, split, part)
            assert len(there) == len(here) > 0
            for number in {0, len(here) // 2, len(here) - 1}:
                assert there[number] == here[number]


def test_a_missing_shard_and_a_missing_data_set_are_named(bucket: buckets.Buckets, data: str) -> None:
    for name in bucket.names("data"):
        if "train_paired" not in name:
            bucket.write("data", name.replace("built/", "torn/"), bucket.read("data", name))
    with pytest.raises(UserError, match=r"gs://data/torn/phantom/1\.0\.0/phantom-train_paired\S* is missing"):
        records.open_records("gs://data/torn", "train", "paired")
    with pytest.raises(UserError, match="gs://data/nothing is not a directory"):
        records.dataset_dir("gs://data/nothing")


def test_the_audit_reads_the_bucket(data: str, phantom_dir: pathlib.Path) -> None:
    found = audit.check([data], [phantom_dir], "test")
    assert (found["status"], found["missing"]) == ("clean", [])
    same = audit.read_set(f"{data}:train", ("test",), looks=False)
    assert same.rows == audit.read_set(str(phantom_dir), ("train",), looks=False).rows
    assert audit.check(["gs://data/gone/chexpert/1.0.0"], [phantom_dir], "test")["missing"] == ["chexpert"]


# ---------------------------------------------------------------------------------------------------------------------
# Runs


@pytest.fixture(scope="module")
def mmclip(tmp_path_factory: pytest.TempPathFactory, bucket: buckets.Buckets) -> Any:
    """Runs a command in a process: (arguments, stop_at) -> the finished process."""
    cache = tmp_path_factory.mktemp("cache")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }

    def run(*arguments: str, stop_at: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", COMMAND, json.dumps(arguments), str(stop_at)]
        return subprocess.run(command, env=environment, cwd=ROOT, text=True, capture_output=True, check=False)

    return run


def _train(workdir: str, data: str) -> tuple[str, ...]:
    return (
        *("train", "--config", "configs/demo.py:runlocal", "--workdir", workdir, f'--config.data.train=("{data}",)'),
        *(f"--config.train.steps={STEPS}", "--config.train.checkpoint_every=2", "--config.train.evaluate_every=0"),
        *("--config.train.log_every=1", "--config.train.keep=1", "--config.optimizer.ema=0.9"),
    )


def _state(workdir: str) -> dict[str, Any]:
    """All arrays of the last checkpoint."""
    directory = find_checkpoint(workdir).directory
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = {}
    with ocp.StandardCheckpointer() as checkpointer:
        for item in ("params", "ema", "optimizer"):
            stored = dict(checkpointer.metadata(directory / item).item_metadata)
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), stored)
            state[item] = jax.tree.map(np.asarray, checkpointer.restore(directory / item, shapes))
    return state


@pytest.fixture(scope="module")
def run(mmclip: Any, bucket: buckets.Buckets, data: str) -> str:
    """Stopped by SIGTERM at step 3, and run to the end by the same command."""
    stopped = mmclip(*_train("gs://runs/one", data), "--profile=1", stop_at=3)
    assert stopped.returncode == 75, stopped.stderr
    assert find_checkpoint("gs://runs/one").step == 3
    # What a process leaves that is killed while it saves: without Orbax's last file it is no checkpoint.
    for name in bucket.names("runs"):
        if name.startswith("one/checkpoints/3/params/"):
            bucket.write("runs", name.replace("/3/", "/4/"), b"half")
    assert find_checkpoint("gs://runs/one").step == 3
    resumed = mmclip(*_train("gs://runs/one", data))
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming at step 3" in resumed.stderr
    return "gs://runs/one"


@pytest.mark.slow
def test_a_run_in_a_bucket_is_that_on_disk_to_the_bit(
    run: str, mmclip: Any, bucket: buckets.Buckets, phantom_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    here = mmclip(*_train(str(tmp_path), str(phantom_dir)))
    assert here.returncode == 0, here.stderr
    there, expected = _state(run), _state(str(tmp_path))
    assert expected["optimizer"]["step"] == STEPS
    for (path, a), b in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(there), strict=True):
        assert np.array_equal(a, b), path
    model = mmclip_jax.load(run)
    assert model.step == STEPS
    for a, b in zip(jax.tree.leaves(expected["ema"]), jax.tree.leaves(model._params), strict=True):
        assert np.array_equal(a, b)
    names = bucket.names("runs")
    assert json.loads(bucket.read("runs", "one/config.json"))["data"]["train"] == ["gs://data/built/phantom"]
    (trained_on,) = json.loads(bucket.read("runs", "one/manifest.json"))["data"]
    assert trained_on == "gs://data/built/phantom/1.0.0"
    assert sum(name.startswith("one/profile/") and name.endswith(".xplane.pb") for name in names) == 1
    assert sum(name.startswith("one/events.out.tfevents.") for name in names) == 2
    # Only the newest is kept, of the run that was cut off as well.
    assert {name.split("/")[2] for name in names if name.startswith("one/checkpoints/")} == {str(STEPS)}

    def losses(text: str) -> dict[int, float]:
        return {row["step"]: row["loss"] for row in map(json.loads, text.splitlines())}

    got = losses(bucket.read("runs", "one/metrics.jsonl").decode())
    assert got == losses((tmp_path / "metrics.jsonl").read_text())
    assert list(got) == [1, 2, 3, 4]


@pytest.mark.slow
def test_evaluation_of_a_run_in_a_bucket_is_written_there(run: str, mmclip: Any, bucket: buckets.Buckets) -> None:
    done = mmclip("evaluate", "--model", run, "--split", "validation")
    assert done.returncode == 0, done.stderr
    assert f"Report: {run}/evaluation/{STEPS}-validation/report.html" in done.stdout
    results = json.loads(bucket.read("runs", f"one/evaluation/{STEPS}-validation/results.json"))
    assert results["checkpoint"]["run"] == "one"
    assert results["audit"]["status"] == "clean"
    assert b"</html>" in bucket.read("runs", f"one/evaluation/{STEPS}-validation/report.html")


@pytest.mark.slow
def test_a_bucket_that_may_only_be_read_stops_a_run_with_one_line(
    mmclip: Any, bucket: buckets.Buckets, phantom_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "allowed", {"GET"})
    done = mmclip(*_train("gs://runs/two", str(phantom_dir)))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "gs://runs/two" in done.stderr.splitlines()[-1]
    assert "no such permission" in done.stderr.splitlines()[-1]
