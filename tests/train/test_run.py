"""Whole runs in processes of their own: resumed to the bit after kill -9, stopped by NaN, spread over two processes."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny
from conftest import ROOT

from mmclip_jax import flops, writers
from mmclip_jax.checkpoints import find_checkpoint
from mmclip_jax.data.records import open_records
from mmclip_jax.data.schema import PARTS
from mmclip_jax.errors import UserError
from mmclip_jax.train import loop
from mmclip_jax.train import run as training

pytestmark = pytest.mark.compiles

STEPS = 20

# argv: workdir, data set, {"steps": ..., "settings": {dotted: value}, "hang_at": batch, "white_at": batch, "stop_at":
# batch at which SIGTERM comes, "pause": seconds a batch, "damaged": places of paired records, "records": file to list
# the records of each batch in, "address": ..., "process": ...}. Prints the last metrics as JSON.
RUNNER = """
import importlib.util, json, os, signal, sys, time

if __name__ == "__main__":  # worker processes import this file too
    import jax
    import numpy as np

    workdir, data, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    if "address" in options:
        from mmclip_jax import sharding

        sharding.join_processes(options["address"], 2, options["process"])
    jax.config.update("jax_default_matmul_precision", "highest")
    from mmclip_jax import errors
    from mmclip_jax.data import pipeline, records
    from mmclip_jax.train import run as training
    from mmclip_jax.train import step

    spec = importlib.util.spec_from_file_location("demo", "configs/demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("runlocal")
    config.data.train = (data,)
    for name, value in options["settings"].items():
        part, *rest = name.split(".")
        target = config[part]
        for key in rest[:-1]:
            target = target[key]
        target[rest[-1]] = value

    take = pipeline.TrainIterator.__next__

    def take_and_tamper(iterator):
        number = iterator.get_state()["next_batch"] + 1
        if number == options.get("hang_at"):
            while True:
                time.sleep(1)
        time.sleep(options.get("pause", 0))
        batch = take(iterator)
        if number == options.get("stop_at"):
            os.kill(os.getpid(), signal.SIGTERM)
        if "records" in options:
            with open(options["records"], "a") as file:
                print(json.dumps([number, {part: rows["record"].tolist() for part, rows in batch.items()}]), file=file)
        if number == options.get("white_at"):
            batch["paired"]["image"] = np.full_like(batch["paired"]["image"], 255)
        return batch

    pipeline.TrainIterator.__next__ = take_and_tamper

    read = records.Records.__getitem__

    def read_unless_damaged(source, place):
        if source.split_name == "train_paired" and place in options.get("damaged", ()):
            raise RuntimeError("CRC mismatch")
        return read(source, place)

    records.Records.__getitem__ = read_unless_damaged
    if "white_at" in options:  # an image that is white all over is no number
        pixels = step.pixels
        step.pixels = lambda x: jax.numpy.where((x == 255).all(axis=(1, 2, 3), keepdims=True), jax.numpy.nan, pixels(x))
    try:
        print(json.dumps(training.train(config, workdir)))
    except (errors.UserError, errors.TrainingError) as error:
        print(type(error).__name__, error, file=sys.stderr)
        sys.exit(3)
    except errors.PreemptedError as error:
        print(error, file=sys.stderr)
        sys.exit(75)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One device; compiled code is quick to make and shared by the runs, as on a machine that restarts."""
    cache = tmp_path_factory.mktemp("cache")
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }


def start(
    workdir: pathlib.Path, data: pathlib.Path, env: dict[str, str], start_new_session: bool = False, **options: Any
) -> subprocess.Popen[str]:
    # Worker processes import the main module again: from a file, and behind its guard.
    workdir.parent.mkdir(parents=True, exist_ok=True)
    script = workdir.parent / "runner.py"
    script.write_text(RUNNER)
    command = [sys.executable, str(script), str(workdir), str(data), json.dumps({"settings": {}} | options)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=env, cwd=ROOT, text=True, stdout=pipe, stderr=pipe, start_new_session=start_new_session
    )


def run(workdir: pathlib.Path, data: pathlib.Path, env: dict[str, str], **options: Any) -> tuple[int, str, str]:
    process = start(workdir, data, env, **options)
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


def saved(workdir: pathlib.Path, number: int, item: str = "params") -> Any:
    path = workdir.absolute() / "checkpoints" / str(number) / item
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # it may have been saved from other devices
    with ocp.StandardCheckpointer() as checkpointer:
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
            dict(checkpointer.metadata(path).item_metadata),
        )
        tree = checkpointer.restore(path, shapes)
    return jax.tree.map(np.asarray, tree)


def metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


SETTINGS = {
    "train.checkpoint_every": 9, "train.evaluate_every": 0, "train.log_every": 1, "train.steps": STEPS,
    "train.gradient_norms_every": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("there", "given", "left", "said"),
    [
        ({"paired": 3, "unpaired": 2}, (16, 8), (16, 8), ""),
        ({"paired": 3}, (16, 8), (16, 0), "no unpaired images in data.train: data.batch_unpaired = 0, and a step has "
         "the 16 paired rows alone (data.batch_paired changes it)"),
        ({"unpaired": 2}, (16, 8), (0, 8), "no paired images in data.train: data.batch_paired = 0, and a step has the "
         "8 unpaired rows alone (data.batch_unpaired changes it)"),
        ({"unpaired": 2}, (16, 0), (16, 0), ""),  # refused later, as the next one
        ({}, (16, 8), (16, 8), ""),
    ],
)  # fmt: skip
def test_a_part_that_no_data_set_has_is_left_out_and_this_is_said(
    there: dict[str, int],
    given: tuple[int, int],
    left: tuple[int, int],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(
        training, "open_records", lambda directory, split, part: range(there.get(part, 0) if directory == "b" else 0)
    )
    caplog.set_level("INFO")
    config = tiny.config(data__train=("a", "b"), data__batch_paired=given[0], data__batch_unpaired=given[1])
    training.leave_out_missing_parts(config)
    assert (config.data.batch_paired, config.data.batch_unpaired) == left
    assert [record.getMessage() for record in caplog.records] == ([said] if said else [])


@pytest.fixture(scope="module")
def full_run(
    tmp_path_factory: pytest.TempPathFactory, phantom_dir: pathlib.Path, environment: dict[str, str]
) -> pathlib.Path:
    """Twenty steps without a break."""
    workdir = tmp_path_factory.mktemp("full") / "run"
    code, _, err = run(workdir, phantom_dir, environment, settings=SETTINGS | {"train.profile": 2})
    assert code == 0, err
    return workdir


@pytest.mark.slow
def test_an_evaluation_that_was_cut_off_is_made_up_once(
    tmp_path: pathlib.Path, phantom_dir: pathlib.Path, environment: dict[str, str], full_run: pathlib.Path
) -> None:
    """The last checkpoint is there, its evaluation is not: as after a kill between the two."""
    shutil.copytree(full_run, tmp_path / "run")
    settings = SETTINGS | {"train.evaluate_every": 10, "train.gradient_norms_every": 0}
    before = metrics(tmp_path / "run")
    code, _, err = run(tmp_path / "run", phantom_dir, environment, settings=settings)
    assert code == 0, err
    after = metrics(tmp_path / "run")
    assert [row["step"] for row in after] == [row["step"] for row in before]
    assert after[:-1] == before[:-1]
    added = {name for name in after[-1] if name not in before[-1]}
    assert added
    assert all(name.startswith("evaluation/") for name in added)
    assert not training._missed_evaluation(
        tiny.config(train__steps=STEPS, train__evaluate_every=10), str(tmp_path / "run"), STEPS
    )


@pytest.mark.slow
def test_a_run_leaves_what_it_promises(full_run: pathlib.Path, phantom_dir: pathlib.Path) -> None:
    steps = sorted(int(path.name) for path in (full_run / "checkpoints").iterdir() if path.name.isdigit())
    assert steps == [9, 18, 20]
    config, manifest = (json.loads((full_run / name).read_text()) for name in ("config.json", "manifest.json"))
    found = find_checkpoint(full_run)
    assert json.loads(found.config.to_json()) == config
    assert found.manifest == manifest
    assert config["model"]["text"]["vocab_size"] > 256
    sources = manifest["exposure"]["sources"]
    for part in PARTS:
        assert sum(counts[part] for counts in sources.values()) == len(open_records(phantom_dir, "train", part))
    assert sorted(sources) == ["phantom-a", "phantom-b"]
    assert list(full_run.glob("events*")) or list(full_run.rglob("*tfevents*"))


def test_utilisation_is_reported_where_the_peak_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny.config()
    progress = loop.Progress(settings, 0, step_flops=3e9)
    progress.add({"loss": 1.0})
    assert "mfu" not in progress.summary(1)
    monkeypatch.setattr(flops, "PEAK_FLOPS", (("cpu", 5e9),))
    for _ in range(2):
        progress.add({"loss": 1.0})
    seen = progress.summary(3)
    seconds = 24 / seen["images_per_second"]  # 24 rows a step
    assert seen["mfu"] == pytest.approx(3e9 / seconds / (8 * 5e9))
    without = loop.Progress(settings, 0)
    without.add({"loss": 1.0})
    assert "mfu" not in without.summary(1)


def test_times_of_steps_leave_out_pauses_but_not_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    progress = loop.Progress(tiny.config(), 0)
    for number, seconds in enumerate((1.0, 2.0, 3.0, 4.0, 15.0)):
        now[0] += seconds / 2
        if number % 2:
            progress.add({"loss": 1.0})
            now[0] += seconds / 2  # belongs to the next step
        else:
            with progress.paused():
                now[0] += seconds / 2
                progress.add({"loss": 1.0})  # waited for
                now[0] += 50.0
    seen = progress.summary(5)
    durations = [1.0, 1.0, 1.0 + 3.0, 2.0, 2.0 + 15.0]
    assert seen["step_seconds/max"] == pytest.approx(max(durations))
    assert seen["step_seconds/median"] == pytest.approx(np.median(durations))
    assert seen["step_seconds/p95"] == pytest.approx(np.percentile(durations, 95))
    assert seen["images_per_second"] == pytest.approx(5 * 24 / 25.0)
    assert "device_memory_share" not in seen  # CPUs do not tell


def test_the_fullest_device_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def device(peak: int) -> Any:
        return types.SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": peak, "bytes_limit": 16})

    monkeypatch.setattr(loop.jax, "local_devices", lambda: [device(4), device(12)])
    progress = loop.Progress(tiny.config(), 0)
    progress.add({"loss": 1.0})
    assert progress.summary(1)["device_memory_share"] == 0.75


@pytest.mark.slow
def test_a_profile_of_two_steps_is_kept(full_run: pathlib.Path) -> None:
    (trace,) = (full_run / "profile").glob("**/*.xplane.pb")
    from jax.profiler import ProfileData

    profile = ProfileData.from_file(str(trace))
    events = [event for plane in profile.planes for line in plane.lines for event in line.events]
    ends = [0.0]  # of the calls of the step; a call may be seen at two levels
    for event in sorted((e for e in events if e.name == "PjitFunction(update)"), key=lambda event: event.start_ns):
        if event.start_ns >= ends[-1]:
            ends.append(event.start_ns + event.duration_ns)
    assert len(ends) == 1 + 2


@pytest.mark.parametrize("averaged", [True, False])
def test_a_quick_evaluation_uses_the_average_where_there_is_one(
    averaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The full evaluation of a checkpoint takes the average; the curves while training must be of the same model."""
    from mmclip_jax.evaluate import run as evaluation
    from mmclip_jax.inference import model as model_lib

    class Seen:
        def __init__(self, config: Any, params: Any, *rest: Any):
            self.params = params

        def take(self, params: Any, step: int) -> None:
            self.params = params

    monkeypatch.setattr(model_lib, "Model", Seen)
    monkeypatch.setattr(loop, "validation_examples", lambda directories: (object(),))
    monkeypatch.setattr(loop.sharding, "on_host", lambda tree: tree)
    monkeypatch.setattr(evaluation, "quick_metrics", lambda model, examples: {"seen": float(model.params["w"][0])})
    config = tiny.config()
    config.data.evaluate, config.data.train = ("there",), ()
    config.train.pictures = 0
    state = types.SimpleNamespace(
        params={"w": np.full(3, 2.0)}, ema={"w": np.full(3, 5.0)} if averaged else None, step=np.int32(7)
    )
    tokenizer: Any = None
    found = loop.Evaluation(config, tokenizer, {}, writers.MetricWriter())(state)  # type: ignore[arg-type]
    assert found == {"evaluation/seen": 5.0 if averaged else 2.0}


@pytest.mark.slow
def test_every_term_is_logged_each_logging_step(full_run: pathlib.Path) -> None:
    rows = {row["step"]: row for row in metrics(full_run)}
    objective = find_checkpoint(full_run).config.objective
    assert set(rows) == set(range(1, STEPS + 1))
    for row in rows.values():
        for name in (
            "loss", "contrastive/loss", "contrastive/accuracy", "attmim/loss", "entmlm/loss", "entmlm/accuracy",
            "entmlm/masked_share", "entmlm/entity_share", "logit_scale", "gradient_norm", "learning_rate",
            "images_per_second",
        ):  # fmt: skip
            assert np.isfinite(row[name]), name
        others = sum(objective[name].weight * row[f"{name}/loss"] for name in ("attmim", "entmlm", "local"))
        assert row["loss"] == pytest.approx(row["contrastive/loss"] + others, rel=1e-5)
    norms = {name for row in rows.values() for name in row if name.startswith("gradient_norm/")}
    assert norms == {f"gradient_norm/{name}" for name in ("contrastive", "attmim", "entmlm", "local")}
    assert [number for number, row in rows.items() if "gradient_norm/attmim" in row] == [1, 8, 16]
    assert [rows[n]["attmim/random"] for n in (1, 2, 3, STEPS)] == [1, 1, 0, 0]  # the first tenth
    assert rows[STEPS]["loss"] < rows[1]["loss"]


@pytest.mark.slow
def test_killed_at_nine_and_resumed_is_the_same_run_to_the_bit(
    tmp_path: pathlib.Path, phantom_dir: pathlib.Path, environment: dict[str, str], full_run: pathlib.Path
) -> None:
    process = start(tmp_path, phantom_dir, environment, settings=SETTINGS, hang_at=13)
    deadline = time.monotonic() + 600
    while not (tmp_path / "checkpoints" / "9").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)  # it goes on meanwhile, up to step 12
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert find_checkpoint(tmp_path).step == 9
    code, _, err = run(tmp_path, phantom_dir, environment, settings=SETTINGS)
    assert code == 0, err
    assert_same_to_the_bit(full_run, tmp_path, STEPS)
    whole, resumed = ({row["step"]: row["loss"] for row in metrics(folder)} for folder in (full_run, tmp_path))
    assert resumed == whole  # steps 10 to 12 were logged twice: what is read is one series


def wait_for_step(workdir: pathlib.Path, number: int, *processes: subprocess.Popen[str]) -> None:
    """Until the metrics of step `number` are written."""
    deadline = time.monotonic() + 600
    while not (workdir / "metrics.jsonl").exists() or max([0, *(row["step"] for row in metrics(workdir))]) < number:
        for process in processes:
            assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def assert_same_to_the_bit(expected: pathlib.Path, got: pathlib.Path, number: int) -> None:
    for item in ("params", "ema", "optimizer"):
        trees = saved(expected, number, item), saved(got, number, item)
        assert str(jax.tree.structure(trees[0])) == str(jax.tree.structure(trees[1]))
        for (path, a), b in zip(jax.tree.leaves_with_path(trees[0]), jax.tree.leaves(trees[1]), strict=True):
            assert np.array_equal(a, b), (item, path)


@pytest.mark.slow
def test_sigterm_saves_the_last_step_and_the_resumed_run_is_the_same_to_the_bit(
    tmp_path: pathlib.Path, phantom_dir: pathlib.Path, environment: dict[str, str], full_run: pathlib.Path
) -> None:
    # Worker processes get the signal too, as under SLURM; a second signal comes while the first is being answered.
    options: dict[str, Any] = {"settings": SETTINGS | {"data.workers": 2}, "pause": 0.4}
    process = start(tmp_path, phantom_dir, environment, **options, start_new_session=True)
    wait_for_step(tmp_path, 3, process)
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 75, err
    step = find_checkpoint(tmp_path).step
    assert 3 <= step < 9
    assert max(row["step"] for row in metrics(tmp_path)) == step  # no step was done that is not saved
    assert f"step {step} is saved" in err
    code, _, err = run(tmp_path, phantom_dir, environment, settings=SETTINGS)
    assert code == 0, err
    assert_same_to_the_bit(full_run, tmp_path, STEPS)


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(
    phantom_dir: pathlib.Path, environment: dict[str, str], full_run: pathlib.Path
) -> None:
    before = saved(full_run, STEPS)
    code, _, err = run(full_run, phantom_dir, environment, settings=SETTINGS)
    assert code == 0, err
    assert jax.tree.all(jax.tree.map(np.array_equal, before, saved(full_run, STEPS)))


@pytest.mark.slow
def test_going_on_with_other_batches_is_refused(
    phantom_dir: pathlib.Path, environment: dict[str, str], full_run: pathlib.Path
) -> None:
    code, _, err = run(
        full_run, phantom_dir, environment, settings=SETTINGS | {"data.batch_paired": 8, "train.steps": 30}
    )
    assert code == 3
    assert "UserError" in err


@pytest.mark.slow
def test_a_batch_that_is_not_finite_stops_the_run_and_is_named(
    tmp_path: pathlib.Path, phantom_dir: pathlib.Path, environment: dict[str, str]
) -> None:
    settings = SETTINGS | {"train.checkpoint_every": 0, "train.max_skipped": 0}
    code, _, err = run(tmp_path, phantom_dir, environment, settings=settings, white_at=5)
    assert code == 3
    assert "TrainingError" in err
    assert "step 5" in err
    (listed,) = tmp_path.glob("not_finite*.json")
    assert str(listed) in err
    content = json.loads(listed.read_text())
    assert content["step"] == 5
    for part, batch in (("paired", 16), ("unpaired", 8)):
        every = open_records(phantom_dir, "train", part)
        known = {every[n].id for n in range(len(every))}
        assert len(content["records"][part]) == batch
        assert set(content["records"][part]) <= known
    found = find_checkpoint(tmp_path)
    assert found.step >= 5
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(saved(tmp_path, found.step)))
    assert max(row["step"] for row in metrics(tmp_path)) == 4
    # Resumed without the fault, the run goes on behind the bad batch.
    code, _, err = run(tmp_path, phantom_dir, environment, settings=settings)
    assert code == 0, err
    assert find_checkpoint(tmp_path).step == STEPS


@pytest.mark.slow
def test_a_single_batch_that_is_not_finite_is_left_out_and_counted(
    tmp_path: pathlib.Path, phantom_dir: pathlib.Path, environment: dict[str, str]
) -> None:
    code, _, err = run(tmp_path, phantom_dir, environment, settings=SETTINGS, white_at=5)
    assert code == 0, err
    assert "loss or gradient is not finite at step 5" in err
    assert list(tmp_path.glob("not_finite_step_5_*.json"))
    assert {row["step"]: row["skipped_updates"] for row in metrics(tmp_path)} == {
        number: float(number == 5) for number in range(1, STEPS + 1)
    }
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(saved(tmp_path, STEPS)))


@pytest.mark.slow
def test_damaged_records_are_replaced_listed_and_limited(
    tmp_path: pathlib.Path, phantom_dir: pathlib.Path, environment: dict[str, str]
) -> None:
    examples = open_records(phantom_dir, "train", "paired")
    damaged = [1, len(examples) - 1, 7]  # 20 batches of 16 see all of them
    assert len(examples) < 300

    def listed() -> list[int]:
        return sorted(entry["record"] for entry in json.loads((tmp_path / "damaged_records.json").read_text()))

    settings = SETTINGS | {"data.max_damaged": 1}
    code, _, err = run(tmp_path, phantom_dir, environment, settings=settings, damaged=damaged)
    assert code == 3
    assert "TrainingError" in err
    assert "more than data.max_damaged=1" in err
    assert 2 <= len(listed()) <= 3
    assert set(listed()) <= set(damaged)
    settings["data.max_damaged"] = 3
    code, _, err = run(tmp_path, phantom_dir, environment, settings=settings, damaged=damaged)
    assert code == 0, err
    assert listed() == sorted(damaged)
    assert find_checkpoint(tmp_path).step == STEPS


@pytest.mark.slow
def test_an_update_that_is_not_finite_never_reaches_a_checkpoint(
    tmp_path: pathlib.Path, phantom_dir: pathlib.Path, environment: dict[str, str]
) -> None:
    settings = SETTINGS | {"train.checkpoint_every": 0, "optimizer.peak_lr": 3e38}  # of 3.4e38 that float32 holds
    code, _, err = run(tmp_path, phantom_dir, environment, settings=settings)
    assert code == 3
    assert "TrainingError" in err
    found = find_checkpoint(tmp_path)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(saved(tmp_path, found.step)))


# Masks at random: a tie broken otherwise by rounding would say nothing about devices. A small rate: Adam turns the
# rounding of gradients that are nearly zero into updates of the size of the rate.
EQUAL = SETTINGS | {
    "optimizer.peak_lr": 1e-4, "objective.attmim.strategy": "random", "train.gradient_norms_every": 0,
    "train.checkpoint_every": 0,
}  # fmt: skip


def with_devices(environment: dict[str, str], count: int) -> dict[str, str]:
    """The environment with fake devices."""
    flags = f"{environment['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
    return environment | {"XLA_FLAGS": flags}


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def taken(*files: pathlib.Path) -> dict[int, dict[str, list[int]]]:
    """The records of each batch, by step; of several processes one after another. A step seen twice is refused."""
    steps: dict[int, dict[str, list[int]]] = {}
    for file in files:
        numbers = set()
        for line in file.read_text().splitlines():
            number, parts = json.loads(line)
            assert number not in numbers
            numbers.add(number)
            so_far = steps.setdefault(number, {})
            for part, records in parts.items():
                so_far[part] = so_far.get(part, []) + records
    return steps


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_devices_or_processes(
    tmp_path: pathlib.Path, phantom_dir: pathlib.Path, environment: dict[str, str]
) -> None:
    """Eight devices, then four, then one; two processes, then one: the batches and the parameters are those of one."""

    def go(name: str, until: int, devices: int, fsdp: int) -> None:
        settings = EQUAL | {"train.steps": 6, "mesh.fsdp": fsdp}
        env = with_devices(environment, devices)
        # It is stopped as a preempted machine is: the number of steps, and so the learning rates, stay what they are.
        code, _, err = run(tmp_path / name, phantom_dir, env, settings=settings, records=str(tmp_path / f"{name}.ids"),
                           stop_at=until)  # fmt: skip
        assert code == (0 if until == 6 else 75), err

    go("whole", 6, 1, 1)
    expected = taken(tmp_path / "whole.ids")
    assert sorted(expected) == [1, 2, 3, 4, 5, 6]

    go("devices", 2, 8, 2)
    assert json.loads((tmp_path / "devices" / "manifest.json").read_text())["devices"] == "8 x cpu"
    go("devices", 4, 4, 4)
    go("devices", 6, 1, 1)
    assert taken(tmp_path / "devices.ids") == expected

    address = free_address()
    both = [
        start(tmp_path / "processes", phantom_dir, with_devices(environment, 2),
              settings=EQUAL | {"train.steps": 6, "mesh.fsdp": 2},
              records=str(tmp_path / f"process{number}.ids"), stop_at=3, address=address, process=number)
        for number in (0, 1)
    ]  # fmt: skip
    for process in both:
        _, err = process.communicate(timeout=900)
        assert process.returncode == 75, err
    assert json.loads((tmp_path / "processes" / "manifest.json").read_text())["processes"] == 2
    go("processes", 6, 1, 1)
    before = taken(tmp_path / "process0.ids", tmp_path / "process1.ids")
    assert {1, 2, 3} <= set(before) < set(expected)  # the processes agree on a step soon after the signal
    assert before | taken(tmp_path / "processes.ids") == expected

    params = saved(tmp_path / "whole", 6)
    assert tiny.largest_difference(saved(tmp_path / "devices", 6), params) < 1e-5
    assert tiny.largest_difference(saved(tmp_path / "processes", 6), params) < 1e-5
    assert tiny.largest_difference(saved(tmp_path / "devices", 2), params) > 1e-4  # they do move


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"data.train": ()}, "data.train"),
        ({"data.train": ("nowhere",)}, "nowhere"),
        ({"model.text.vocab_size": 17}, "vocab_size=17"),
        ({"mesh.fsdp": 3}, "fsdp=3"),
        ({"optimizer.accumulate": 5}, "accumulate=5"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(
    tmp_path: pathlib.Path, phantom_dir: pathlib.Path, settings: dict[str, Any], word: str
) -> None:
    config = tiny.load_config("demo", "runlocal")
    config.data.train = (str(phantom_dir),)
    config.update_from_flattened_dict(settings)
    with pytest.raises(UserError, match=word):
        training.train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
