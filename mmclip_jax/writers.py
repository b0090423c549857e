"""Where the numbers of a run go: console lines, TensorBoard event files and metrics.jsonl.

These are clu's metric writers without TensorFlow. The package `clu.metric_writers` imports a summary writer that needs
TensorFlow; importing this module first puts `EventFileWriter`, which needs tensorboardX only, in that writer's place,
so that `clu.metric_writers.create_default_writer` and all of `clu.periodic_actions` work. Import it before them:

    from mmclip_jax import writers
    from clu import periodic_actions
"""

import json
import logging as std_logging
import math
import os
import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from mmclip_jax import files
from mmclip_jax.errors import UserError

METRICS_FILE = "metrics.jsonl"
_SUMMARY_MODULE = "clu.metric_writers.summary_writer"
_FLUSH_SECONDS = 10.0
_COPY_SECONDS = 60.0
_TAIL = 16  # how many of the last steps may still get further values without a rewrite of the whole file


def scalar(value: Any) -> float:
    """A number, or an array that holds exactly one, as a Python float."""
    array = np.asarray(value)
    if array.size != 1:
        raise ValueError(f"a scalar metric must hold one number, not an array of shape {array.shape}")
    return float(array.reshape(()))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings as one level with dotted names; whatever TensorBoard cannot show becomes its text."""
    flat: dict[str, bool | int | float | str] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


class EventFileWriter:
    """Writes TensorBoard event files; stands in for clu's TensorFlow summary writer.

    Writes happen in the calling thread and are on disk after `flush`, which also runs by itself every ten seconds.

    Args:
      logdir: directory of the event files; made if missing.
      step: the step that the run continues from. TensorBoard then drops what earlier files say of later steps.
    """

    def __init__(self, logdir: str | os.PathLike[str], step: int = 0):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        directory = Path(logdir)
        directory.mkdir(parents=True, exist_ok=True)
        # The library names files by the second and truncates what is there: the suffix keeps quick restarts apart, and
        # in order, as TensorBoard reads files by name.
        suffix = f".{time.time_ns() // 1000 % 1_000_000:06d}.{os.getpid()}"
        self._events = EventsWriter(str(directory / "events"), suffix)
        self._flushed = time.monotonic()
        self._event(step + 1, session_log=SessionLog(status=SessionLog.START))

    def _event(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write_event(Event(wall_time=time.time(), step=int(step), **content))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def write_summaries(self, step: int, values: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> None:
        """Refuses: raw tensors need TensorFlow's protocol buffers."""
        raise NotImplementedError("raw tensor summaries need TensorFlow; write scalars, images, texts or histograms")

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """One number a name."""
        from tensorboardX import summary

        for name, value in scalars.items():
            self._event(step, summary=summary.scalar(name, scalar(value)))

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Images [H,W,C] or [N,H,W,C], C 1 or 3, uint8 in 0..255 or float in 0..1."""
        from tensorboardX import summary

        for name, value in images.items():
            pixels = np.asarray(value)
            stack = pixels[None] if pixels.ndim == 3 else pixels
            for number, one in enumerate(stack):
                tag = name if len(stack) == 1 else f"{name}/{number}"
                self._event(step, summary=summary.image(tag, one, dataformats="HWC"))

    def write_videos(self, step: int, videos: Mapping[str, Any]) -> None:
        """Refuses: nothing here makes videos."""
        raise NotImplementedError("videos are not supported")

    def write_audios(self, step: int, audios: Mapping[str, Any], *, sample_rate: int) -> None:
        """Refuses: nothing here makes sounds."""
        raise NotImplementedError("audio is not supported")

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """One text a name, shown as Markdown."""
        from tensorboardX import summary

        for name, value in texts.items():
            self._event(step, summary=summary.text(name, value))

    def write_histograms(
        self, step: int, arrays: Mapping[str, Any], num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """Distributions of arrays of any shape; 30 buckets unless told otherwise."""
        from tensorboardX import summary

        for name, value in arrays.items():
            buckets = (num_buckets or {}).get(name) or 30
            self._event(step, summary=summary.histogram(name, np.asarray(value, np.float64).ravel(), buckets))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """The run's settings, nested ones with dotted names."""
        from tensorboardX import summary

        for content in summary.hparams(_flatten(hparams), {}):
            self._event(0, summary=content)

    def flush(self) -> None:
        """Writes everything to disk."""
        self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._events.close()


# Must happen before clu.metric_writers is first imported, hence at import and hence a class that does not inherit from
# clu's interface but is registered with it.
if _SUMMARY_MODULE not in sys.modules:
    _module = types.ModuleType(_SUMMARY_MODULE, "Event files through tensorboardX, see mmclip_jax.writers.")
    _module.SummaryWriter = EventFileWriter  # type: ignore[attr-defined]
    sys.modules[_SUMMARY_MODULE] = _module

from clu import metric_writers  # noqa: E402

metric_writers.MetricWriter.register(EventFileWriter)


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, float | None]]:
    """Reads a metrics.jsonl.

    Args:
      path: the file; a missing one has no rows.

    Returns:
      Its rows, ascending in step: {"step": n, name: number, or None where the number was not finite}.

    Raises:
      UserError: a line is no JSON object of numbers with a step. An incomplete last line, as a killed run leaves, is
        dropped.
    """
    file = epath.Path(path)
    if not file.exists():
        return []
    lines = file.read_bytes().split(b"\n")
    rows: dict[int, dict[str, float | None]] = {}
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is empty or incomplete
        try:
            row = json.loads(line)
            step = row["step"]
            if type(step) is not int or not 0 <= step < 2**53 or not all(map(_is_metric, row.values())):
                raise ValueError("a value is no number")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{file}, line {number}: not a JSON object of numbers with a step; delete that line to go on"
            ) from error
        rows.setdefault(step, {}).update(row)
    return [rows[step] for step in sorted(rows)]


def _is_metric(value: Any) -> bool:
    """A finite number, or None for one that was not."""
    return value is None or (type(value) in (int, float) and abs(value) <= sys.float_info.max)


def _line(row: Mapping[str, float | None]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


class JsonLinesWriter(metric_writers.MetricWriter):
    """Writes scalars as one JSON object a step, ascending, each step once: {"step": n, name: number, …}.

    A number that is not finite becomes null. Every write reaches the file at once, by one system call, so that a killed
    run loses nothing that it had written. Images, texts and the rest are left to the event files.

    Args:
      path: the file; its directory is made if missing.
      step: the step that the run continues from. Rows of later steps are what an interrupted run left behind after its
        last checkpoint: they are dropped, by an atomic rewrite.
    """

    def __init__(self, path: str | os.PathLike[str], step: int = 0):
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._open([row for row in read_rows(self._path) if (row["step"] or 0) <= step])

    def _open(self, rows: list[dict[str, float | None]]) -> None:
        """Replaces the file by these rows and goes on behind them."""
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(b"".join(map(_line, rows)))
        temporary.replace(self._path)
        self._file = open(self._path, "r+b", buffering=0)  # noqa: SIM115 — stays open until close()
        self._tail = {int(row["step"] or 0): row for row in rows[-_TAIL:]}
        self._tail_start = sum(len(_line(row)) for row in rows[:-_TAIL])
        self._before_tail = int(rows[-_TAIL - 1]["step"] or 0) if len(rows) > _TAIL else -1

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Adds numbers to the step's row; a step may be written several times, and late."""
        numbers = {name: scalar(value) for name, value in scalars.items()}
        values: dict[str, float | None] = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        step = int(step)
        if step <= self._before_tail:  # rare: a value that comes later than the last sixteen rows
            self._file.close()
            rows = {int(row["step"] or 0): row for row in read_rows(self._path)}
            rows.setdefault(step, {"step": step}).update(values)
            self._open([rows[n] for n in sorted(rows)])
            return
        self._tail.setdefault(step, {"step": step}).update(values)
        self._tail = {n: self._tail[n] for n in sorted(self._tail)}
        # Rows only grow, so writing them again from the tail's start covers all of the old text.
        self._file.seek(self._tail_start)
        self._file.write(b"".join(_line(row) for row in self._tail.values()))
        while len(self._tail) > _TAIL:
            self._before_tail = next(iter(self._tail))
            self._tail_start += len(_line(self._tail.pop(self._before_tail)))

    def write_summaries(self, step: int, values: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> None:
        """Left to other writers."""

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Left to other writers."""

    def write_videos(self, step: int, videos: Mapping[str, Any]) -> None:
        """Left to other writers."""

    def write_audios(self, step: int, audios: Mapping[str, Any], *, sample_rate: int) -> None:
        """Left to other writers."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Left to other writers."""

    def write_histograms(
        self, step: int, arrays: Mapping[str, Any], num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """Left to other writers."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Left to other writers: the run directory holds config.json."""

    def flush(self) -> None:
        """Waits until the rows are on the disk itself."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class _ConsoleWriter(metric_writers.LoggingWriter):
    """clu's console lines, with every number as a short decimal."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        super().write_scalars(step, {name: scalar(value) for name, value in scalars.items()})


class _CopyingWriter(metric_writers.MultiWriter):
    """Writers into a folder of which a bucket has a copy: a minute old at most, and up to date after `flush`."""

    def __init__(self, each: list[metric_writers.MetricWriter], twin: files.LocalTwin):
        super().__init__(each)
        self._twin, self._copied = twin, time.monotonic()

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        super().write_scalars(step, scalars)
        if self._twin.is_copied and time.monotonic() - self._copied > _COPY_SECONDS:
            self.flush()

    def flush(self) -> None:
        super().flush()
        self._twin.copy()
        self._copied = time.monotonic()

    def close(self) -> None:
        super().close()
        self._twin.copy()


def create_writer(
    workdir: str | os.PathLike[str], *, step: int = 0, primary: bool = True
) -> metric_writers.MetricWriter:
    """The writer of a training run: console lines, event files and metrics.jsonl.

    Args:
      workdir: the run's directory, on disk or in a bucket; the files go there.
      step: the step that the run continues from, 0 for a new run. Earlier numbers of later steps are dropped.
      primary: False in all but one of a run's processes: these write console lines only.

    Raises:
      UserError: an existing metrics.jsonl is damaged.
    """
    if not primary:
        return metric_writers.MultiWriter([_ConsoleWriter()])
    twin = files.LocalTwin(workdir)
    twin.fetch(METRICS_FILE)
    numbers = JsonLinesWriter(twin.folder / METRICS_FILE, step)
    return _CopyingWriter([_ConsoleWriter(), EventFileWriter(twin.folder, step), numbers], twin)


class _OurLines(std_logging.Filter):
    """Lets through warnings, and lesser lines of this package and of clu's writers only.

    Nothing of Orbax: what fails there is raised too, and said in one line instead of some thousand.
    """

    _folders = (Path(__file__).resolve().parent, Path(metric_writers.__file__).resolve().parent)

    def filter(self, record: std_logging.LogRecord) -> bool:
        """Whether to show the line."""
        file = Path(record.pathname).resolve()
        if "orbax" in file.parts:
            return False
        return record.levelno >= std_logging.WARNING or any(file.is_relative_to(folder) for folder in self._folders)


def configure_logging() -> None:
    """Shows this package's progress lines on stderr as "HH:MM:SS text", and only the warnings of libraries."""
    from absl import logging

    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(std_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if not any(isinstance(f, _OurLines) for f in handler.filters):
        handler.addFilter(_OurLines())
