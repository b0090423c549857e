"""How a command ends where nobody planned it: interrupts that nothing may swallow, and errors that nobody foresaw."""

import atexit
import contextlib
import os
import pathlib
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator

STATUS_INTERRUPTED = 130
GRACE_SECONDS = 10.0  # from an interrupt to the end of the process, whatever it is doing
_NOTICED_SECONDS = 0.2  # what the waiting thread may take to see the signal that interrupted the main one
_FILES_NEEDED, _FILES_WANTED = 128, 4096
_seen = threading.Event()  # an interrupt came by a signal
TRACEBACK_VARIABLE = "MMCLIP_TRACEBACK"


@contextlib.contextmanager
def interrupts_end_it() -> Iterator[None]:
    """Inside, Ctrl-C ends the process with 130 within `GRACE_SECONDS`.

    Python raises KeyboardInterrupt only between two of its own instructions: a compilation of a minute has none, and
    where a library calls back into Python what is raised there is swallowed. So the signal also wakes a thread, which
    ends the process if it is still there after a while.
    """
    if threading.current_thread() is not threading.main_thread() or os.name != "posix":
        yield
        return
    ours, signals = os.pipe()
    os.set_blocking(signals, False)
    before = signal.set_wakeup_fd(signals, warn_on_full_buffer=False)
    done, interrupted = threading.Event(), _seen
    interrupted.clear()

    def wait() -> None:
        while True:
            seen = os.read(ours, 64)
            if signal.SIGINT in seen and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                interrupted.set()
                time.sleep(GRACE_SECONDS)
                if not done.is_set():
                    print("mmclip: interrupted", file=sys.stderr, flush=True)
                os._exit(STATUS_INTERRUPTED)
            if done.is_set():
                return

    waiting = threading.Thread(target=wait, name="interrupts", daemon=True)
    waiting.start()
    try:
        yield
    finally:
        done.set()
        signal.set_wakeup_fd(before)
        os.write(signals, b"\0")
        while waiting.is_alive() and not interrupted.is_set():
            waiting.join(0.01)
        if interrupted.is_set():
            # What a library was computing may hold up the interpreter's end, or crash it. The thread stays awake, and
            # only what was printed is waited for.
            atexit.register(_end_now)
        else:
            os.close(ours)
            os.close(signals)


def end_if_interrupted() -> None:
    """Ends the process with 130 if a signal led here; to be called where the KeyboardInterrupt is still held.

    Its traceback holds what a compilation was working on: a library may crash when a deep tree of that is freed.
    """
    if _seen.wait(_NOTICED_SECONDS):
        _end_now()


def _end_now() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(STATUS_INTERRUPTED)


def told(error: BaseException, workdir: object = None) -> str:
    """Writes the traceback of an unexpected error into a file; returns the one line to tell about it.

    workdir: a folder that is there, for the file; otherwise it goes where temporary files go. Only its owner may read
    the file: a traceback may quote what the data hold.
    """
    said = " ".join(str(error).split())
    said = said if len(said) <= 160 else said[:160] + "…"
    text = "".join(traceback.format_exception(error))
    if os.environ.get(TRACEBACK_VARIABLE, "") not in ("", "0"):
        print(text, file=sys.stderr)
    line = f"unexpected {type(error).__name__}: {said}" if said else f"unexpected {type(error).__name__}"
    if _of_open_files(error):
        return f"too many files are open at once: raise the limit (ulimit -n {_FILES_WANTED}) and run the command again"
    if isinstance(error, MemoryError):
        line = "this machine has too little memory for it"
    try:
        where: str | None = str(_write(text, workdir))
    except OSError:
        where = None
    hint = f"{where} has the traceback" if where else f"{TRACEBACK_VARIABLE}=1 shows the traceback"
    return f"{line} ({hint}; it helps in a report of the fault)"


def _write(text: str, workdir: object) -> pathlib.Path:
    name = time.strftime("traceback_%Y%m%d_%H%M%S")
    folder = pathlib.Path(str(workdir)) if workdir is not None and "://" not in str(workdir) else None
    if folder is None or not folder.is_dir() or not os.access(folder, os.W_OK):
        folder = pathlib.Path(tempfile.gettempdir())
    number, path = tempfile.mkstemp(prefix=f"{name}_", suffix=".txt", dir=folder)  # which only its owner may read
    with open(number, "w", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(text)
    return pathlib.Path(path)


def _of_open_files(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is that no further file may be opened; libraries change its type."""
    seen = 0
    while error is not None and seen < 20:
        if "Too many open files" in str(error):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def problem_of_open_files() -> str:
    """Raises the limit of open files as far as the system lets us; what to do where that is not enough, else ""."""
    try:
        import resource
    except ImportError:
        return ""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, _FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    if soft == resource.RLIM_INFINITY or soft >= _FILES_NEEDED:
        return ""
    return (
        f"only {soft} files may be open at once here, and libraries, records and worker processes need at least "
        f"{_FILES_NEEDED}: raise the limit (ulimit -n {_FILES_WANTED})"
    )
