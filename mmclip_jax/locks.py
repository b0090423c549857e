"""One process at a time in a folder: a file that says who, and that outlives no killed process.

The file is made whole by a hard link (or, where the file system has none, by an exclusive open), and its holder
touches it every few seconds. Whether the holder of a file that is there still lives is read from the process table
where it can be seen, and otherwise from whether the file is touched any more. Nothing rests on flock, which some
network file systems lack and others forget. In a bucket nothing is locked.
"""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from absl import logging

from mmclip_jax import files, processes
from mmclip_jax.errors import TrainingError, UserError

LOCK_FILE = ".lock"
_TOUCH_SECONDS = 5.0
# Longer than a file server may hide a touch from another machine (NFS: up to 60 s).
_STALE_SECONDS = 75.0
_POLL_SECONDS = 0.2
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES)


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a folder, for what, and the mark of this one holding."""

    owner: processes.Owner
    what: str
    mark: str

    def __str__(self) -> str:
        return f"{self.what}, process {self.owner.pid} on {self.owner.host}"


class Lock:
    """A folder that is held until `release`.

    Args:
      folder: made if missing.
      what: the holder is doing, for another one's message, such as "mmclip train".

    Raises:
      UserError: another process holds it; the message names its host and number.
    """

    def __init__(self, folder: str | os.PathLike[str], what: str, wait: float = 0.0):
        self.folder = pathlib.Path(files.locate(folder)).absolute()
        self._path = self.folder / LOCK_FILE
        self._holder = Holder(processes.this_process(), what, uuid.uuid4().hex)
        self._released = threading.Event()
        self._acquire(wait)
        self._thread = threading.Thread(target=self._touch, name="lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises TrainingError if the folder is not the one that was taken: moved, removed, or somebody else's."""
        there = _read(self._path)
        if there is not None and there.mark == self._holder.mark:
            return
        if there is not None:
            raise TrainingError(f"{self.folder} was taken over by {there}; this process writes nothing more there")
        raise TrainingError(
            f"{self.folder} was moved or removed while {self._holder.what} was at work in it: nothing more is saved. "
            "Put it back and run the same command again; it goes on from the newest checkpoint"
        )

    def release(self) -> None:
        """Gives the folder back."""
        self._released.set()
        self._thread.join()
        there = _read(self._path)
        if there is not None and there.mark == self._holder.mark:
            self._path.unlink(missing_ok=True)

    def _acquire(self, wait: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        end, tries = time.monotonic() + wait, 10
        while tries:
            tries -= 1
            if self._make():
                return
            there = _read(self._path)
            if there is None:  # released just now, or not readable
                if not self._path.exists() or not _is_touched(self._path, _STALE_SECONDS):
                    self._path.unlink(missing_ok=True)
                continue
            if not _is_gone(self._path, there):
                if time.monotonic() < end:
                    time.sleep(_POLL_SECONDS)
                    tries += 1
                    continue
                raise UserError(
                    f"{self.folder} is in use: {there} is at work there. Wait for it, end it, or give another folder"
                )
            self._remove(there)
        raise UserError(f"{self._path} can neither be made nor read: remove it if nothing is at work in {self.folder}")

    def _make(self) -> bool:
        """Whether the file is now this holder's."""
        content = json.dumps(dataclasses.asdict(self._holder)) + "\n"
        own = self._path.with_name(f"{LOCK_FILE}.{self._holder.mark}")
        own.write_text(content, encoding="utf-8")
        try:
            os.link(own, self._path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            try:
                with open(self._path, "x", encoding="utf-8") as stream:
                    stream.write(content)
            except FileExistsError:
                return False
        finally:
            own.unlink(missing_ok=True)
        there = _read(self._path)
        return there is not None and there.mark == self._holder.mark

    def _remove(self, gone: Holder) -> None:
        """Removes the file of a holder that is gone, and not one that took its place meanwhile."""
        aside = self._path.with_name(f"{LOCK_FILE}.{self._holder.mark}")
        try:
            os.rename(self._path, aside)
        except FileNotFoundError:
            return
        moved = _read(aside)
        if moved is not None and moved.mark != gone.mark:
            with contextlib.suppress(OSError):
                os.link(aside, self._path)
        aside.unlink(missing_ok=True)

    def _touch(self) -> None:
        while not self._released.wait(_TOUCH_SECONDS):
            there = _read(self._path)
            if there is None or there.mark != self._holder.mark:
                return
            with contextlib.suppress(OSError):
                os.utime(self._path)


def _read(path: pathlib.Path) -> Holder | None:
    """None where there is none, or where it cannot be understood."""
    try:
        said = json.loads(path.read_bytes())
        return Holder(processes.Owner(**said["owner"]), str(said["what"]), str(said["mark"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_gone(path: pathlib.Path, holder: Holder) -> bool:
    """Whether a holder has ended. Of one that cannot be seen from here it takes a while to find out."""
    if holder.owner.is_here:
        return holder.owner.is_gone
    logging.info("%s: is %s still at work? This takes %.0f s to find out", path.parent, holder, _STALE_SECONDS)
    return not _is_touched(path, _STALE_SECONDS)


def _is_touched(path: pathlib.Path, seconds: float, pause: float = 1.0) -> bool:
    """Whether a file changes, or goes, within so many seconds; asks no clock but this machine's own."""
    first, end = _seen(path), time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(min(pause, seconds))
        if _seen(path) != first:
            return True
    return False


def _seen(path: pathlib.Path) -> tuple[int, int] | None:
    """(inode, time of the last touch), read through an open file: network file systems look anew at opening."""
    try:
        with open(path, "rb") as stream:
            found = os.fstat(stream.fileno())
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


@contextlib.contextmanager
def held_by_run(folder: str | os.PathLike[str], what: str) -> Iterator[Callable[[], None]]:
    """Holds a folder for all processes of a run, of which the first one takes it. All must call it.

    Yields:
      check(): raises TrainingError where the folder is no longer the run's own (see `Lock.check`); in the first process
        alone.

    Raises:
      UserError: another process holds it.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    problem: Exception | None = None
    with contextlib.ExitStack() as stack:
        lock = None
        if jax.process_index() == 0:
            try:
                lock = stack.enter_context(held(folder, what))
            except (UserError, OSError) as error:
                problem = error
        if jax.process_count() > 1 and not bool(multihost_utils.broadcast_one_to_all(np.int32(problem is None))):
            problem = problem or UserError(f"{folder} is in use or cannot be written: the first process says by whom")
        if problem is not None:
            raise problem
        yield (lambda: None) if lock is None else lock.check


@contextlib.contextmanager
def held(folder: str | os.PathLike[str], what: str, wait: float = 0.0) -> Iterator[Lock | None]:
    """Holds a folder inside the block; None for one in a bucket, where nothing is locked. See `Lock`.

    Raises:
      UserError: another process holds it.
    """
    if files.in_bucket(files.locate(folder)):
        yield None
        return
    lock = Lock(folder, what, wait)
    try:
        yield lock
    finally:
        lock.release()
