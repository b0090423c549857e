"""Errors of the file system and of buckets, said in one line: what is left, and what to do."""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator

from etils import epath

from mmclip_jax import files
from mmclip_jax.errors import StorageError

_STORAGE_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE),
    *(errno.EROFS, errno.EACCES, errno.EPERM),
}


@contextlib.contextmanager
def storage_errors_are_named(place: epath.PathLike, last: Callable[[], str]) -> Iterator[None]:
    """Turns an error of the file system, or of the bucket, into a StorageError: what is left, and what to do."""
    try:
        yield
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else _os_error_code(str(error))
        problem = os.strerror(code) if code in _STORAGE_ERRORS else ""
        if not problem and files.in_bucket(epath.Path(place)):
            problem = files.bucket_problem(error)
        if not problem:
            raise
        raise StorageError(
            f"{place} cannot be written ({problem}); {last()}. Make room or give permission, then run the same command "
            "again"
        ) from error


def _os_error_code(message: str) -> int | None:
    """The errno in a message of TensorStore, which raises ValueError whatever happens."""
    found = re.search(r"\[os_error_code='(\d+)'\]", message)
    return int(found[1]) if found else None


def first_words(error: Exception, length: int = 200) -> str:
    """What an error says, in one line of so many characters at most."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= length else words[:length] + "…"
