"""Decoding in a process of its own.

GDCM reads every compressed DICOM in use, but a damaged file can crash it, and with it whatever process it runs in; and
run lengths can expand to 64 times their size. Here they are decoded in a child process with a limit on memory and time.
A child that dies is replaced, and the file is refused.
"""

import atexit
import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection

import numpy as np

from mmclip_jax.errors import UserError

SECONDS = 60.0  # for one image; the slowest real ones take two
MEMORY = 4 * 2**30  # bytes of address space of a child
_CHILD = (
    "import sys; sys.path[:] = sys.argv[2:]; from mmclip_jax.data.images.codec import serve; serve(int(sys.argv[1]))"
)


class _Child:
    """A process that decodes one file after the other."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _CHILD, str(theirs.fileno()), *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # each of its threads reserves address space
            )
        self.connection = Connection(ours.detach())

    def decode(self, data: bytes) -> np.ndarray | str:
        self.connection.send_bytes(data)
        if not self.connection.poll(SECONDS):
            raise TimeoutError
        return self.connection.recv()

    def close(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


_idle: list[_Child] = []  # as many as threads have ever decoded at once


def decode_apart(data: bytes) -> np.ndarray:
    """The stored values of a compressed DICOM file, decoded in a child process; a thread may call it beside others.

    Raises:
      UserError: the decoder refused the file, crashed, or took too long.
    """
    while _idle:
        child = _idle.pop()
        if child.owner == os.getpid():  # not one that a fork has copied
            break
    else:
        child = _Child()
    try:
        result = child.decode(data)
    except TimeoutError as error:
        child.close()
        raise UserError(f"the image cannot be decoded (its decoder took more than {SECONDS:g} s)") from error
    except (EOFError, OSError) as error:
        child.close()
        raise UserError("the image cannot be decoded (it is damaged: its decoder crashed)") from error
    except BaseException:
        child.close()
        raise
    _idle.append(child)
    if isinstance(result, str):
        raise UserError(result)
    return result


@atexit.register
def _close() -> None:
    while _idle:
        child = _idle.pop()
        if child.owner == os.getpid():
            child.close()


def serve(descriptor: int) -> None:
    """The child: answers each file with its values, or with a message, until the parent is gone."""
    import resource

    from mmclip_jax.data.images.dicom import decode_here, read_header

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    connection = Connection(descriptor)
    while True:
        try:
            data = connection.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            connection.send(decode_here(read_header(data)))
        except UserError as error:
            connection.send(str(error))
        except MemoryError:
            connection.send(
                "the image cannot be decoded (its decoder took more than its share of memory: it is damaged)"
            )
