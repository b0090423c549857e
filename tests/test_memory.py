"""Memory that XLA frees stays with the process: counted by the pages that the system hands out anew."""

import os
import subprocess
import sys
import textwrap

import pytest

# Blocks as large as XLA's buffers are taken, filled and freed again and again.
PROGRAM = """
    import ctypes, resource, sys
    from mmclip_jax import memory
    if sys.argv[1] == "keep":
        assert memory.keep_freed_memory()
    c = ctypes.CDLL(None)
    c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    c.free.argtypes, c.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    def use(size):
        block = c.malloc(size)
        c.memset(block, 7, size)
        c.free(block)
    use(61 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(13):
        use(61 << 20)
        use(3 << 20)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() >> 20)
"""


def megabytes_paid_for(how: str) -> int:
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), how],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    return int(run.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_freed_buffers_are_not_given_back() -> None:
    given_back, kept = megabytes_paid_for("give back"), megabytes_paid_for("keep")
    assert given_back > 700, "malloc keeps such blocks by itself now: memory.py is not needed any more"
    assert kept < 7


@pytest.mark.parametrize(("platform", "backend"), [("darwin", "cpu"), ("linux", "gpu"), ("linux", "tpu")])
def test_another_library_and_accelerators_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, platform: str, backend: str
) -> None:
    from mmclip_jax import memory

    monkeypatch.setattr(memory.sys, "platform", platform)
    monkeypatch.setattr(memory.jax, "default_backend", lambda: backend)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: pytest.fail("asked for a library of Linux's"))
    assert not memory.keep_freed_memory()
