"""The errors that end a command with one line instead of a traceback."""

import re
from collections.abc import Iterable

CELL = 40
"""Characters of a cell that a message shows: what stands in a table may be a report, and messages go to logs."""
_QUOTED = re.compile(r"""(?<!\w)(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")(?!\w)""", re.DOTALL)


def shorten(message: str) -> str:
    """The message with what it quotes, as `repr` does, cut to `CELL` characters, and on one line."""

    def cut(found: re.Match[str]) -> str:
        quoted = found[0]
        return quoted if len(quoted) <= CELL + 2 else f"{quoted[: CELL - 2]}...{quoted[0]}"

    return _QUOTED.sub(cut, " ".join(message.split("\n")))


def listed(names: Iterable[str], most: int = 40) -> str:
    """Names of columns or labels for a message, each cut to `CELL` characters, the first `most` of them."""
    names = list(names)
    cut = [name if len(name) <= CELL else name[: CELL - 3] + "..." for name in names[:most]]
    return ", ".join(cut) + (f" and {len(names) - most} more" if len(names) > most else "")


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


class DoesNotFitError(RuntimeError):
    """A planned step does not fit, or does what it must not; the message says which. The CLI exits with 1."""


EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: "try again later"; the launchers start the same command again


class PreemptedError(RuntimeError):
    """SIGTERM asked the run to stop; a checkpoint holds every step that was done. The CLI exits with 75."""


class LostWorkerError(PreemptedError):
    """A process that prepares batches was killed. The CLI exits with 75: the same command goes on."""


class LostProcessError(PreemptedError):
    """Another process of the run is gone, so this one cannot go on. The CLI exits with 75, without waiting for it."""
