"""Where a run's numbers go: console lines, TensorBoard event files through tensorboardX, and metrics.jsonl.

No TensorFlow, and so not clu's metric_writers, whose import needs it. Of clu, training uses `parameter_overview`.
"""

import json
import logging as std_logging
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from absl import logging
from etils import epath

from mmclip_jax import files
from mmclip_jax.errors import UserError

if TYPE_CHECKING:
    from tensorboardX.proto.summary_pb2 import Summary

METRICS_FILE = "metrics.jsonl"
_COMPARED = ("loss", "evaluation/macro_auroc")  # metrics that TensorBoard puts beside the settings of runs
_FLUSH_SECONDS = 10.0
_COPY_SECONDS = 60.0
_TAIL = 16  # how many of the last steps may still get further values without a rewrite of the whole file


def scalar(value: npt.ArrayLike) -> float:
    """A number, or an array that holds exactly one, as a Python float.

    Raises:
      ValueError: it holds another number of numbers.
    """
    array = np.asarray(value)
    if array.size != 1:
        raise ValueError(f"a scalar metric must hold one number, not an array of shape {array.shape}")
    return float(array.reshape(()))


def flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings as one level with dotted names; whatever TensorBoard cannot show becomes its text."""
    flat: dict[str, bool | int | float | str] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


class MetricWriter:
    """What every writer takes; one of them shows what it can and leaves the rest to the others."""

    def write_scalars(self, step: int, scalars: Mapping[str, npt.ArrayLike]) -> None:
        """One number a name; arrays of one number are numbers."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """One text a name, in Markdown."""

    def write_images(self, step: int, images: Mapping[str, npt.ArrayLike]) -> None:
        """Images [H,W,C] or [N,H,W,C], C 1 or 3, uint8 in 0..255 or float in 0..1."""

    def write_hparams(self, hparams: Mapping[str, object]) -> None:
        """The run's settings, nested ones with dotted names."""

    def flush(self) -> None:
        """Returns when what was written is where it belongs."""

    def close(self) -> None:
        """Flushes; nothing may be written afterwards."""


class EventFileWriter(MetricWriter):
    """Writes TensorBoard event files.

    Writes happen in the calling thread and are on disk after `flush`, which also runs by itself every ten seconds.

    Args:
      logdir: directory of the event files; made if missing.
      step: the step that the run continues from. TensorBoard then drops what earlier files say of later steps.
    """

    def __init__(self, logdir: str | os.PathLike[str], step: int = 0):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        directory = Path(logdir)
        directory.mkdir(parents=True, exist_ok=True)
        # The library names files by the second and truncates what is there: the suffix keeps quick restarts apart, and
        # in order, as TensorBoard reads files by name.
        suffix = f".{time.time_ns() // 1000 % 1_000_000:06d}.{os.getpid()}"
        self._events = EventsWriter(str(directory / "events"), suffix)
        self._flushed = time.monotonic()
        start = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def _write(self, step: int, summary: "Summary") -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write_event(Event(wall_time=time.time(), step=int(step), summary=summary))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def write_scalars(self, step: int, scalars: Mapping[str, npt.ArrayLike]) -> None:
        """One number a name."""
        from tensorboardX import summary

        for name, value in scalars.items():
            self._write(step, summary.scalar(name, scalar(value)))

    def write_images(self, step: int, images: Mapping[str, npt.ArrayLike]) -> None:
        """Images [H,W,C] or [N,H,W,C], C 1 or 3, uint8 in 0..255 or float in 0..1."""
        from tensorboardX import summary

        for name, value in images.items():
            pixels = np.asarray(value)
            stack = pixels[None] if pixels.ndim == 3 else pixels
            for number, one in enumerate(stack):
                tag = name if len(stack) == 1 else f"{name}/{number}"
                self._write(step, summary.image(tag, one, dataformats="HWC"))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """One text a name, shown as Markdown."""
        from tensorboardX import summary

        for name, value in texts.items():
            self._write(step, summary.text(name, value))

    def write_hparams(self, hparams: Mapping[str, object]) -> None:
        """The run's settings, nested ones with dotted names."""
        from tensorboardX import summary

        for content in summary.hparams(flatten(hparams), dict.fromkeys(_COMPARED)):
            self._write(0, content)

    def flush(self) -> None:
        """Writes everything to disk."""
        self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._events.close()


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


def _is_metric(value: object) -> bool:
    """A finite number, or None for one that was not."""
    return value is None or ((type(value) is int or type(value) is float) and abs(value) <= sys.float_info.max)


def _line(row: Mapping[str, float | None]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


class JsonLinesWriter(MetricWriter):
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

    def write_scalars(self, step: int, scalars: Mapping[str, npt.ArrayLike]) -> None:
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

    def flush(self) -> None:
        """Waits until the rows are on the disk itself."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class ConsoleWriter(MetricWriter):
    """Writes scalars as one log line a step, "[step] name=number, …" sorted by name, if `--log full` asks for it."""

    def write_scalars(self, step: int, scalars: Mapping[str, npt.ArrayLike]) -> None:
        """One line."""
        if not logging.level_debug():
            return
        said = ", ".join(f"{name}={scalar(value):.6g}" for name, value in sorted(scalars.items()))
        logging.debug("[%d] %s", step, said)


class SeveralWriters(MetricWriter):
    """Gives all of it to each of several writers.

    Args:
      each: the writers.
      twin: a folder that they write into and of which a bucket has a copy: a minute old at most, and up to date after
        `flush`.
    """

    def __init__(self, each: Sequence[MetricWriter], twin: files.LocalTwin | None = None):
        self._each, self._twin, self._copied = tuple(each), twin, time.monotonic()

    def write_scalars(self, step: int, scalars: Mapping[str, npt.ArrayLike]) -> None:
        """See `MetricWriter`."""
        for writer in self._each:
            writer.write_scalars(step, scalars)
        if self._twin is not None and self._twin.is_copied and time.monotonic() - self._copied > _COPY_SECONDS:
            self.flush()

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """See `MetricWriter`."""
        for writer in self._each:
            writer.write_texts(step, texts)

    def write_images(self, step: int, images: Mapping[str, npt.ArrayLike]) -> None:
        """See `MetricWriter`."""
        for writer in self._each:
            writer.write_images(step, images)

    def write_hparams(self, hparams: Mapping[str, object]) -> None:
        """See `MetricWriter`."""
        for writer in self._each:
            writer.write_hparams(hparams)

    def flush(self) -> None:
        """Has each writer flush, and brings the copy in the bucket up to date."""
        for writer in self._each:
            writer.flush()
        if self._twin is not None:
            self._twin.copy()
        self._copied = time.monotonic()

    def close(self) -> None:
        """Closes each writer, and brings the copy in the bucket up to date."""
        for writer in self._each:
            writer.close()
        if self._twin is not None:
            self._twin.copy()


def create_writer(
    workdir: str | os.PathLike[str], *, step: int = 0, primary: bool = True, more: Sequence[MetricWriter] = ()
) -> MetricWriter:
    """The writer of a training run: console lines, event files, metrics.jsonl, and what else it is given.

    Args:
      workdir: the run's directory, on disk or in a bucket; the files go there.
      step: the step that the run continues from, 0 for a new run. Earlier numbers of later steps are dropped.
      primary: False in all but one of a run's processes: these write console lines only.
      more: further writers, such as a tracker.

    Raises:
      UserError: an existing metrics.jsonl is damaged.
    """
    if not primary:
        return ConsoleWriter()
    twin = files.LocalTwin(workdir)
    twin.fetch(METRICS_FILE)
    numbers = JsonLinesWriter(twin.folder / METRICS_FILE, step)
    return SeveralWriters([ConsoleWriter(), EventFileWriter(twin.folder, step), numbers, *more], twin)


class _OurLines(std_logging.Filter):
    """Lets through warnings, and lesser lines of this package only.

    Nothing of Orbax: what fails there is raised too, and said in one line instead of some thousand.
    """

    _folder = Path(__file__).resolve().parent

    def filter(self, record: std_logging.LogRecord) -> bool:
        """Whether to show the line."""
        file = Path(record.pathname).resolve()
        if "orbax" in file.parts:
            return False
        return record.levelno >= std_logging.WARNING or file.is_relative_to(self._folder)


def configure_logging(full: bool = False) -> None:
    """Shows this package's progress lines on stderr as "HH:MM:SS text", and only the warnings of libraries.

    full: every metric of a logging step as well (`ConsoleWriter`); the files of a run hold them anyway.
    """
    logging.use_absl_handler()
    logging.set_verbosity(logging.DEBUG if full else logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(std_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if not any(isinstance(f, _OurLines) for f in handler.filters):
        handler.addFilter(_OurLines())
