"""Where else a run's numbers go: a tracker of experiments beside the run's own files.

A tracker is an object with the methods of clu's MetricWriter that `writers.MetricWriter` lists.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from absl import logging

from mmclip_jax import files, python_files
from mmclip_jax.errors import UserError, extra
from mmclip_jax.writers import MetricWriter, flatten, scalar

_METHODS = ("write_scalars", "write_texts", "write_images", "write_hparams", "flush", "close")
_MLFLOW_FILE = "mlflow.json"
_PARAMS_AT_ONCE, _PARAM_LENGTH = 100, 500  # limits of MLflow's servers


def open_tracker(spec: str, workdir: str) -> MetricWriter:
    """A tracker for a run; what it fails in later is told and ends no run.

    Args:
      spec: "mlflow", or "FILE.py:FUNCTION" whose FUNCTION(workdir) gives an object with the methods of a MetricWriter.
      workdir: of the run, on disk or in a bucket.

    Raises:
      UserError: no such tracker, a package that is missing, or a server that does not answer.
    """
    if python_files.is_spec(spec):
        tracker = python_files.load_function(spec, "the tracker")(workdir)
        if missing := [name for name in _METHODS if not callable(getattr(tracker, name, None))]:
            raise UserError(f"--tracker {spec} gives a {type(tracker).__name__} without {missing[0]} (docs/ops.md)")
        return Guarded(tracker, spec)
    if spec != "mlflow":
        raise UserError(f"--tracker {spec}: there are mlflow, and FILE.py:FUNCTION of your own (docs/ops.md)")
    return Guarded(MlflowWriter(workdir), spec)


class Guarded(MetricWriter):
    """Keeps a tracker's errors from ending a run: the first one is told, the others are counted and told at the end.

    Args:
      tracker: has the methods of a MetricWriter.
      name: for messages.
    """

    def __init__(self, tracker: Any, name: str):
        self._tracker, self._name, self._failed = tracker, name, 0

    def _do(self, call: Callable[..., object], *values: object) -> None:
        try:
            call(*values)
        except Exception as error:
            self._failed += 1
            if self._failed == 1:
                said = " ".join(str(error).split())[:200]
                logging.warning(
                    "the tracker %s failed (%s: %s): the run goes on, and its own files have everything",
                    self._name, type(error).__name__, said,
                )  # fmt: skip

    def write_scalars(self, step: int, scalars: Mapping[str, npt.ArrayLike]) -> None:
        """See `MetricWriter`."""
        self._do(self._tracker.write_scalars, step, scalars)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """See `MetricWriter`."""
        self._do(self._tracker.write_texts, step, texts)

    def write_images(self, step: int, images: Mapping[str, npt.ArrayLike]) -> None:
        """See `MetricWriter`."""
        self._do(self._tracker.write_images, step, images)

    def write_hparams(self, hparams: Mapping[str, object]) -> None:
        """See `MetricWriter`."""
        self._do(self._tracker.write_hparams, hparams)

    def flush(self) -> None:
        """See `MetricWriter`."""
        self._do(self._tracker.flush)

    def close(self) -> None:
        """Closes the tracker; says how often it failed."""
        self._do(self._tracker.close)
        if self._failed > 1:
            logging.warning("the tracker %s failed %d times in all", self._name, self._failed)


class MlflowWriter(MetricWriter):
    """Writes to MLflow, where MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say.

    A run that goes on is the same run there: its id is kept in WORKDIR/mlflow.json. MLflow keeps what was written of
    steps behind the last checkpoint beside what is written of them anew, and the settings that the run began with.

    Args:
      workdir: of the run, on disk or in a bucket; its name is the run's.

    Raises:
      UserError: no package mlflow, or no answer.
    """

    def __init__(self, workdir: str):
        try:
            import mlflow
            from mlflow.entities import Metric, Param
        except ImportError as error:
            raise UserError(f"--tracker mlflow needs {extra('mlflow')}") from error
        self._metric, self._param = Metric, Param
        self._client = mlflow.MlflowClient()
        file = files.locate(workdir) / _MLFLOW_FILE
        self._is_new = not file.exists()
        try:
            if self._is_new:
                run = self._client.create_run(self._experiment(), run_name=files.locate(workdir).name)
                self._run = run.info.run_id
                files.write_json(file, {"run": self._run})
            else:
                self._run = files.read_json(file, "delete it, and a new run begins there", ["run"])["run"]
                self._client.update_run(self._run, status="RUNNING")
        except mlflow.exceptions.MlflowException as error:
            said = " ".join(str(error).split())[:300]
            raise UserError(f"--tracker mlflow: {mlflow.get_tracking_uri()} refuses the run ({said})") from error

    def _experiment(self) -> str:
        """The id of the experiment that MLFLOW_EXPERIMENT_NAME names, made if it is missing; else the default one."""
        import os

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "")
        if not name:
            return "0"
        there = self._client.get_experiment_by_name(name)
        return self._client.create_experiment(name) if there is None else there.experiment_id

    def write_scalars(self, step: int, scalars: Mapping[str, npt.ArrayLike]) -> None:
        """One metric a name, in one request."""
        now = int(1000 * time.time())
        metrics = [self._metric(name, scalar(value), now, int(step)) for name, value in scalars.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """One file a name and step."""
        for name, text in texts.items():
            self._client.log_text(self._run, text, f"texts/{name}_{step}.md")

    def write_images(self, step: int, images: Mapping[str, npt.ArrayLike]) -> None:
        """Images [H,W,C] or [N,H,W,C], C 1 or 3, uint8 or float in 0..1, each name a series over the steps."""
        for name, value in images.items():
            pixels = np.asarray(value)
            stack = pixels[None] if pixels.ndim == 3 else pixels
            for number, one in enumerate(stack):
                key = name if len(stack) == 1 else f"{name}/{number}"
                self._client.log_image(self._run, one, key=key, step=int(step))

    def write_hparams(self, hparams: Mapping[str, object]) -> None:
        """The settings as parameters, of a new run: MLflow refuses others later."""
        if not self._is_new:
            return
        params = [self._param(name, str(value)[:_PARAM_LENGTH]) for name, value in flatten(hparams).items()]
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(self._run, params=params[start : start + _PARAMS_AT_ONCE])

    def close(self) -> None:
        """Marks the run as finished."""
        self._client.set_terminated(self._run)
