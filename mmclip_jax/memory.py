"""Keeps the memory that XLA's buffers use within the process.

On a CPU every buffer of a compiled step is a block of malloc's. glibc gives large blocks back to the system when they
are freed, and the next step pays for them again, page by page: a third of the time of the demo's step.
"""

import ctypes
import importlib.util
import os
import sys

# Numbers of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1


def _only_cpu() -> bool:
    """Whether only a CPU can compute here: no other platform is named, and no accelerator's plugin is installed."""
    if named := os.environ.get("JAX_PLATFORMS"):
        return named == "cpu"
    return all(importlib.util.find_spec(name) is None for name in ("jax_plugins", "libtpu"))


def keep_freed_memory() -> bool:
    """Tells malloc to keep what is freed: one arena, no block by mmap, the top never given back.

    Call it before the first thread starts, so before NumPy or JAX is imported: an arena that a thread already has
    still gives memory back. So it looks at what is installed, and does not ask JAX what computes here. The process
    then stays as large as it has once been.

    Returns:
      Whether malloc was told: False where JAX_PLATFORMS names more than the CPU, where it names nothing and a plugin
      for an accelerator is installed, and where malloc is not glibc's.
    """
    if not _only_cpu():
        return False
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version") or not hasattr(library, "mallopt"):
        return False
    options = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER}
    told = [library.mallopt(option, value) == 1 for option, value in options.items()]
    return all(told)
