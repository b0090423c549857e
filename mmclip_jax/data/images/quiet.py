"""Silence of the decoders: their warnings and log lines may quote a file's header, and with it a patient's name."""

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator

_lock = threading.Lock()
_inside = 0
_filters: warnings.catch_warnings | None = None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings, and no log lines of pydicom. Unlike `warnings.catch_warnings`, threads may overlap in it."""
    global _inside, _filters
    with _lock:
        _inside += 1
        if _inside == 1:
            _filters = warnings.catch_warnings()
            _filters.__enter__()
            warnings.simplefilter("ignore")
            logging.getLogger("pydicom").addFilter(_nothing)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _filters is not None:
                logging.getLogger("pydicom").removeFilter(_nothing)
                _filters.__exit__(None, None, None)
                _filters = None


def _nothing(record: logging.LogRecord) -> bool:
    return False
