"""The errors that end a command with one line instead of a traceback."""

import difflib
import re
from collections.abc import Iterable

CELL = 40
"""Characters of a cell that a message shows: what stands in a table may be a report, and messages go to logs."""
_QUOTED = re.compile(r"""(?<!\w)(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")(?!\w)""", re.DOTALL)


def _cut(quoted: str) -> str:
    return quoted if len(quoted) <= CELL + 2 else f"{quoted[: CELL - 2]}...{quoted[0]}"


def shown(cell: object) -> str:
    """A cell for a message: quoted, and at most `CELL` characters of it."""
    return _cut(repr(str(cell)))


def shorten(message: str) -> str:
    """The message with all that it quotes as `shown` has it, and on one line."""
    return _QUOTED.sub(lambda found: _cut(found[0]), " ".join(message.split("\n")))


def brief(name: str) -> str:
    """The name of a column for a message: what is too long for one may be a report, and only its length is told."""
    return name if len(name) <= CELL else f"({len(name)} characters)"


def listed(names: Iterable[str], most: int = 40) -> str:
    """The first `most` names of columns for a message, each as `brief` has it."""
    names = list(names)
    return ", ".join(map(brief, names[:most])) + (f" and {len(names) - most} others" if len(names) > most else "")


def nearest(word: str, candidates: Iterable[str]) -> str:
    """The end of a message: which of the candidates a mistyped word may mean; "" if none is near."""
    bare = {candidate.lstrip("-"): candidate for candidate in candidates}
    found = difflib.get_close_matches(word.lstrip("-"), list(bare), n=1, cutoff=0.6)
    return f"; did you mean {bare[found[0]]}?" if found else ""


EXTRAS = {
    "beam": ("apache-beam",),
    "excel": ("python-calamine",),
    "export": ("flatbuffers", "safetensors"),
    "gcs": ("gcsfs", "google-cloud-storage"),
    "interop": ("safetensors", "tokenizers"),
    "mlflow": ("mlflow-skinny",),
    "onnx": ("onnx", "onnxscript", "torch", "transformers"),
    "serve": ("starlette", "uvicorn"),
    "spacy": ("spacy",),
    "torch": ("torch",),
}
"""The packages of the extras that messages name; pyproject.toml has the versions."""


def extra(name: str) -> str:
    """Part of a message: an extra, and the command that installs its packages."""
    return f"the extra [{name}] (pip install {' '.join(EXTRAS[name])})"


class UserError(ValueError):
    """Bad input or a bad request; the message names what is wrong, where, and the remedy. The CLI exits with 2."""


class DamagedCheckpointError(UserError):
    """Files of a checkpoint cannot be read, or hold other bits than were saved; the message names other steps."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what was saved. The CLI exits with 1."""


class StorageError(TrainingError):
    """A checkpoint cannot be written: the disk is full or read-only. The message says which checkpoint stands."""


class LeakageError(RuntimeError):
    """A test set shares something with a training set; the message says what. The CLI exits with 1."""


class IncompleteError(RuntimeError):
    """Some of what was asked for could not be done, the rest was; the message says how much. The CLI exits with 1."""


class DoesNotFitError(RuntimeError):
    """A planned step does not fit, or does what it must not; the message says which. The CLI exits with 1."""


EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: "try again later"; the launchers start the same command again


class PreemptedError(RuntimeError):
    """SIGTERM asked the run to stop; a checkpoint holds every step that was done. The CLI exits with 75."""


class LostWorkerError(PreemptedError):
    """A process that prepares batches was killed. The CLI exits with 75: the same command goes on."""


class LostProcessError(PreemptedError):
    """Another process of the run is gone, so this one cannot go on. The CLI exits with 75, without waiting for it."""
