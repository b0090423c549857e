"""Trackers beside a run's files: MLflow, an object of the user's, and what happens when they fail."""

import importlib.metadata
import importlib.util
import inspect
import pathlib
import sys
import types
from typing import Any

import numpy as np
import pytest

from mmclip_jax import trackers, writers
from mmclip_jax.errors import UserError
from mmclip_jax.writers import MetricWriter

PICTURE = np.random.default_rng(0).integers(0, 256, (8, 32, 3), dtype=np.uint8)
SETTINGS = {"optimizer": {"peak_lr": 1e-3}, "data": {"train": ["a", "b"]}, "seed": 0}


class Client:
    """Stands for mlflow.MlflowClient: the same signatures (compared below where MLflow is installed), in memory."""

    runs: "dict[str, dict[str, Any]]"

    def __init__(self) -> None:
        self.runs = {}

    def create_run(self, experiment_id: Any, start_time: Any = None, tags: Any = None, run_name: Any = None) -> Any:
        name = f"run{len(self.runs)}"
        self.runs[name] = {"experiment": experiment_id, "name": run_name, "status": "RUNNING", "metrics": [],
                           "params": {}, "images": [], "texts": {}}  # fmt: skip
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=name))

    def update_run(self, run_id: Any, status: Any = None, name: Any = None) -> None:
        self.runs[run_id]["status"] = status

    def get_experiment_by_name(self, name: Any) -> Any:
        return None

    def create_experiment(self, name: Any, artifact_location: Any = None, tags: Any = None) -> str:
        return f"experiment {name}"

    def log_batch(
        self, run_id: Any, metrics: Any = (), params: Any = (), tags: Any = (), synchronous: Any = None
    ) -> None:
        assert len(params) <= 100  # as the servers have it
        self.runs[run_id]["metrics"] += metrics
        for param in params:
            assert len(param.value) <= 500
            assert self.runs[run_id]["params"].setdefault(param.key, param.value) == param.value

    def log_text(self, run_id: Any, text: Any, artifact_file: Any) -> None:
        self.runs[run_id]["texts"][artifact_file] = text

    def log_image(
        self, run_id: Any, image: Any, artifact_file: Any = None, key: Any = None, step: Any = None,
        timestamp: Any = None, synchronous: Any = None,
    ) -> None:  # fmt: skip
        self.runs[run_id]["images"].append((key, step, image))

    def set_terminated(self, run_id: Any, status: Any = None, end_time: Any = None) -> None:
        self.runs[run_id]["status"] = status or "FINISHED"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    """MLflow's modules with the client above."""
    made, entities = Client(), types.ModuleType("mlflow.entities")
    for name, fields in (("Metric", "key value timestamp step"), ("Param", "key value")):
        setattr(entities, name, lambda *values, fields=fields: types.SimpleNamespace(
            **dict(zip(fields.split(), values, strict=True))))  # fmt: skip
    module = types.ModuleType("mlflow")
    module.MlflowClient = lambda: made  # type: ignore[attr-defined]
    module.exceptions = types.SimpleNamespace(MlflowException=ConnectionError)  # type: ignore[attr-defined]
    module.get_tracking_uri = lambda: "there"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return made


def _train(workdir: pathlib.Path, step: int) -> None:
    """What a run writes from a step on."""
    writer = writers.create_writer(workdir, step=step, more=[trackers.open_tracker("mlflow", str(workdir))])
    writer.write_hparams(SETTINGS | {"seed": step})
    writer.write_texts(step, {"parameters": "a table"})
    writer.write_scalars(step + 1, {"loss": np.float32(0.5), "evaluation/macro_auroc": 0.75})
    writer.write_images(step + 1, {"cases/1_nodule": PICTURE})
    writer.flush()
    writer.close()


def test_mlflow_gets_metrics_settings_and_pictures_and_a_resumed_run_is_the_same_one(
    client: Client, tmp_path: pathlib.Path
) -> None:
    _train(tmp_path / "mine", 0)
    _train(tmp_path / "mine", 4)
    (run,) = client.runs.values()
    assert (run["experiment"], run["name"], run["status"]) == ("0", "mine", "FINISHED")
    assert [(m.key, m.value, m.step) for m in run["metrics"]] == [
        ("loss", 0.5, 1), ("evaluation/macro_auroc", 0.75, 1), ("loss", 0.5, 5), ("evaluation/macro_auroc", 0.75, 5),
    ]  # fmt: skip
    assert run["params"] == {"optimizer.peak_lr": "0.001", "data.train": "['a', 'b']", "seed": "0"}
    assert [(key, step) for key, step, _ in run["images"]] == [("cases/1_nodule", 1), ("cases/1_nodule", 5)]
    assert run["texts"] == {"texts/parameters_0.md": "a table", "texts/parameters_4.md": "a table"}
    rows = writers.read_rows(tmp_path / "mine" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 5]  # the run's own files as ever


def test_the_experiment_is_the_one_that_the_environment_names(
    client: Client, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "chest")
    trackers.open_tracker("mlflow", str(tmp_path))
    assert [run["experiment"] for run in client.runs.values()] == ["experiment chest"]


def test_the_settings_of_a_whole_run_fit_mlflows_limits(client: Client, tmp_path: pathlib.Path) -> None:
    from mmclip_jax.config import default_config, flat

    trackers.open_tracker("mlflow", str(tmp_path)).write_hparams(default_config().to_dict())
    (run,) = client.runs.values()
    assert run["params"].keys() == flat(default_config()).keys()
    assert len(run["params"]) > 100


def _has_mlflow() -> bool:
    try:
        return bool(importlib.metadata.version("mlflow-skinny"))
    except importlib.metadata.PackageNotFoundError:
        return False


needs_mlflow = pytest.mark.skipif(not _has_mlflow(), reason="mlflow is not installed (the extra [mlflow])")


@needs_mlflow
def test_the_stand_in_has_the_signatures_of_mlflow() -> None:
    import mlflow

    for name, ours in inspect.getmembers(Client, inspect.isfunction):
        if name != "__init__":
            theirs = inspect.signature(getattr(mlflow.MlflowClient, name)).parameters
            mine = inspect.signature(ours).parameters
            assert list(mine) == list(theirs)[: len(mine)], name
            assert all((mine[p].default is mine[p].empty) == (theirs[p].default is theirs[p].empty) for p in mine), name


@needs_mlflow
def test_a_store_of_mlflow_in_a_folder_holds_what_was_written(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "chest")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    import mlflow

    _train(tmp_path / "mine", 0)
    _train(tmp_path / "mine", 4)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("chest").experiment_id])
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert run.data.params == {"optimizer.peak_lr": "0.001", "data.train": "['a', 'b']", "seed": "0"}
    history = client.get_metric_history(run.info.run_id, "evaluation/macro_auroc")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.75), (5, 0.75)]
    assert client.list_artifacts(run.info.run_id, "texts")
    assert len([each for each in client.list_artifacts(run.info.run_id, "images") if each.path.endswith(".png")]) == 2


# ---------------------------------------------------------------------------------------------------------------------
# Trackers of the user's


OWN = """
class Tracker:
    def __init__(self, workdir):
        self.file = open(workdir + "/seen.txt", "w")
    def __getattr__(self, name):
        if name.startswith("write_") or name == "flush":
            said = lambda value: value if isinstance(value, int) else sorted(value)
            return lambda *values: print(name, *map(said, values), file=self.file)
        raise AttributeError(name)
    def close(self):
        self.file.close()
def half(workdir):
    return object()
"""


def test_an_object_of_the_users_gets_everything(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    tracker = trackers.open_tracker(f"{tmp_path}/mine.py:Tracker", str(tmp_path))
    writer = writers.create_writer(tmp_path, more=[tracker])
    writer.write_hparams(SETTINGS)
    writer.write_scalars(3, {"loss": 1.0})
    writer.write_images(3, {"cases/1_nodule": PICTURE})
    writer.write_texts(3, {"note": "hello"})
    writer.flush()
    writer.close()
    assert (tmp_path / "seen.txt").read_text().splitlines() == [
        "write_hparams ['data', 'optimizer', 'seed']", "write_scalars 3 ['loss']", "write_images 3 ['cases/1_nodule']",
        "write_texts 3 ['note']", "flush",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("wandb", "there are mlflow, and FILE.py:FUNCTION of your own"),
        ("{}/none.py:make", "there is no such file"),
        ("{}/mine.py", "needs the function that gives the tracker"),
        ("{}/mine.py:nothing", "has no function nothing"),
        ("{}/mine.py:half", "gives a object without write_scalars"),
    ],
)
def test_what_is_no_tracker_is_refused(spec: str, message: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    with pytest.raises(UserError, match=message):
        trackers.open_tracker(spec.format(tmp_path), str(tmp_path))


def test_without_the_package_and_with_a_server_that_refuses(
    client: Client, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(client, "create_run", refuse)
    with pytest.raises(UserError, match=r"there refuses the run \(no route to host\)"):
        trackers.open_tracker("mlflow", str(tmp_path))
    assert not (tmp_path / "mlflow.json").exists()
    monkeypatch.setitem(sys.modules, "mlflow", None)  # an import of it raises
    with pytest.raises(UserError, match=r"the extra \[mlflow\] \(pip install mlflow-skinny\)"):
        trackers.open_tracker("mlflow", str(tmp_path))


def test_a_tracker_that_fails_ends_no_run_and_is_told_once_and_at_the_end(
    client: Client, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(trackers.logging, "warning", lambda text, *values: told.append(text % values))
    tracker = trackers.open_tracker("mlflow", str(tmp_path))

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("gone\naway")

    monkeypatch.setattr(client, "log_batch", refuse)
    for step in (1, 2, 3):
        tracker.write_scalars(step, {"loss": 1.0})
    tracker.write_images(3, {"cases/1_nodule": PICTURE})
    tracker.close()
    assert told == [
        "the tracker mlflow failed (ConnectionError: gone away): the run goes on, and its own files have everything",
        "the tracker mlflow failed 3 times in all",
    ]
    (run,) = client.runs.values()
    assert len(run["images"]) == 1


def test_the_methods_are_those_of_clus_interface() -> None:
    """Read from its file: the package around it wants TensorFlow."""
    place = importlib.metadata.distribution("clu").locate_file("clu/metric_writers/interface.py")
    spec = importlib.util.spec_from_file_location("clu_interface", str(place))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in trackers._METHODS:
        ours, theirs = (inspect.signature(getattr(each, name)) for each in (MetricWriter, module.MetricWriter))
        assert list(ours.parameters) == list(theirs.parameters), name
