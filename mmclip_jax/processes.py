"""Which process made something, and whether it is still there: for locks, unfinished files and shared memory."""

import dataclasses
import functools
import hashlib
import os
import pathlib
import platform


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process, so that another one cannot be taken for it.

    host: name of the machine or container. place: digest of what process numbers are counted in (this start of the
    kernel, this container); numbers of another place say nothing here. started: in the kernel's ticks since the machine
    started, since numbers are used again; 0 where the system does not say.
    """

    host: str
    place: str
    pid: int
    started: int

    @property
    def is_here(self) -> bool:
        """Whether this process can see if that one is there."""
        return self.place == _place()

    @property
    def is_gone(self) -> bool:
        """Whether that process has surely ended; False where it cannot be seen from here."""
        if not self.is_here:
            return False
        started = _started(self.pid)
        if started is None:
            return True
        return bool(self.started and started) and started != self.started

    @property
    def word(self) -> str:
        """The owner as a part of a file's name: PLACE-PID-STARTED."""
        return f"{self.place}-{self.pid}-{self.started}"


def this_process() -> Owner:
    """The process that asks."""
    return of(os.getpid())


def of(pid: int) -> Owner:
    """The process of this place with this number."""
    return Owner(platform.node() or "unknown", _place(), pid, _started(pid) or 0)


def parse_word(word: str) -> Owner | None:
    """The owner that `Owner.word` named (without its host), None where it is no such word."""
    place, _, rest = word.partition("-")
    pid, _, started = rest.partition("-")
    if len(place) != 8 or not pid.isdecimal() or not started.isdecimal():
        return None
    return Owner("", place, int(pid), int(started))


@functools.cache
def _place() -> str:
    """Eight hex digits: this start of this kernel, and the process numbers of this container."""
    words = [platform.node()]
    try:
        words.append(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip())
        words.append(str(os.stat("/proc/self/ns/pid").st_ino))
    except OSError:  # not Linux: the name of the machine must do
        pass
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:8]


def _started(pid: int) -> int | None:
    """When a process of this place started, in ticks; None if there is none (a zombie is none), 0 if not known."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        if not pathlib.Path("/proc/self/stat").exists():
            return 0 if _answers(pid) else None
        return None
    state, *fields = text.rpartition(")")[2].split()
    return None if state in ("Z", "X") else int(fields[18])


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
