"""Worker processes that prepare batches, and the shared memory through which they pass them to the trainer.

A worker ends when its trainer ends, and removes shared memory that nobody will read. If all were killed at once, the
next start removes the blocks; their names hold the trainer's process number.
"""

import errno
import multiprocessing
import os
import pathlib
import re
import secrets
import shutil
import signal
import threading
from multiprocessing import connection, shared_memory

from mmclip_jax import processes
from mmclip_jax.errors import LostWorkerError, TrainingError

FOLDER = pathlib.Path("/dev/shm")
_PREFIX = "mmclip-"
_DIED = re.compile(r"Worker process was terminated unexpectedly with exit code (-?\d+)")
_NO_ROOM = (errno.ENOSPC, errno.ENOMEM)


def start(worker: int, workers: int) -> None:
    """The first call in every worker process; both arguments come from Grain and are not used."""
    # Schedulers signal every process of a job, and a terminal sends Ctrl-C to all: the trainer needs its workers until
    # it ends, and stops them then.
    for which in (signal.SIGTERM, signal.SIGINT):
        signal.signal(which, signal.SIG_IGN)
    trainer = multiprocessing.parent_process()
    if trainer is None or trainer.pid is None:
        return
    owner = processes.of(trainer.pid)
    if FOLDER.is_dir() and hasattr(shared_memory, "_make_filename"):

        def name() -> str:
            return f"/{_PREFIX}{owner.word}-{secrets.token_hex(4)}"

        shared_memory._make_filename = name  # type: ignore[attr-defined]
    threading.Thread(target=_end_with, args=(trainer.sentinel, owner), name="trainer's end", daemon=True).start()


def _end_with(sentinel: int, owner: processes.Owner) -> None:
    connection.wait([sentinel])
    remove_blocks(owner)
    os._exit(1)


def remove_blocks(of: processes.Owner | None = None) -> int:
    """Removes blocks of shared memory that nobody will read any more; returns how many.

    of: the trainer that they were for; None: all trainers of this machine that are gone.
    """
    removed = 0
    try:
        names = os.listdir(FOLDER)
    except OSError:
        return 0
    for name in names:
        word = name.removeprefix(_PREFIX).rpartition("-")[0] if name.startswith(_PREFIX) else ""
        owner = processes.parse_word(word)
        if owner is None or not (owner.is_gone if of is None else owner.word == of.word):
            continue
        try:
            (FOLDER / name).unlink()
        except OSError:  # another process was faster, or it is another user's
            continue
        removed += 1
    return removed


def named(error: Exception) -> Exception:
    """The error to raise in place of one of Grain's: it says that a worker died, or that shared memory is full."""
    died = _DIED.search(str(error)) if isinstance(error, RuntimeError) else None
    code = int(died[1]) if died else 0
    if code == -signal.SIGBUS or (isinstance(error, OSError) and error.errno in _NO_ROOM):
        return TrainingError(
            f"{FOLDER} is full ({_free()}); batches are passed through this shared memory. Make it larger (docker run "
            "--shm-size 8g), or set fewer data.workers"
        )
    if died:
        how = f"by {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"with status {code}"
        hint = "; the machine may have run out of memory: fewer data.workers need less" if code == -9 else ""
        return LostWorkerError(f"a worker process that prepares batches was ended {how}{hint}")
    return error


def _free() -> str:
    try:
        usage = shutil.disk_usage(FOLDER)
    except OSError:
        return "its free space is unknown"
    return f"{usage.free / 1e6:,.0f} of {usage.total / 1e6:,.0f} MB free"
