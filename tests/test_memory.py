"""Memory that XLA frees stays with the process: counted by the pages that the system hands out anew."""

import os
import subprocess
import sys
import textwrap
import unittest.mock

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


# What a command computes in JAX's threads, after `main` has set the process up.
COMMAND = """
    import contextlib, io, os, resource, sys
    from mmclip_jax import memory
    from mmclip_jax.cli import entry
    def keep():
        assert len(os.listdir("/proc/self/task")) == 1, "a thread with an arena of its own was there before"
        if sys.argv[1] == "keep":
            assert memory.keep_freed_memory()
    entry.keep_freed_memory = keep
    with contextlib.redirect_stdout(io.StringIO()):
        assert entry.main(["config", "demo"]) == 0
    import jax
    import jax.numpy as jnp
    step = jax.jit(lambda x: jnp.sin(jnp.cumsum(jnp.tanh(x), axis=1)))
    x = jnp.ones((4001, 4003))
    for _ in range(13):
        step(x).block_until_ready()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(13):
        step(x).block_until_ready()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() >> 20)
"""


def megabytes_paid_for(program: str, how: str) -> int:
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), how],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    return int(run.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
@pytest.mark.parametrize(("program", "most"), [(PROGRAM, 7), (COMMAND, 500)])
def test_freed_buffers_are_not_given_back(program: str, most: int) -> None:
    """JAX's threads take a second block now and then, at another moment in each process; all of them are 2,400 MB."""
    given_back, kept = megabytes_paid_for(program, "give back"), megabytes_paid_for(program, "keep")
    assert given_back > 700, "malloc keeps such blocks by itself now: memory.py is not needed any more"
    assert kept < most


@pytest.mark.parametrize(
    ("system", "named", "installed", "told"),
    [
        ("linux", "", "", True),
        ("linux", "cpu", "jax_plugins", True),
        ("linux", "", "jax_plugins", False),
        ("linux", "", "libtpu", False),
        ("linux", "cuda,cpu", "", False),
        ("darwin", "", "", False),
    ],
)
def test_another_library_and_accelerators_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, system: str, named: str, installed: str, told: bool
) -> None:
    from mmclip_jax import memory

    monkeypatch.setattr(memory.sys, "platform", system)
    monkeypatch.setenv("JAX_PLATFORMS", named)
    monkeypatch.setattr(memory.importlib.util, "find_spec", lambda name: name if name == installed else None)
    library = unittest.mock.Mock(**{"mallopt.return_value": 1})
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: library)
    assert memory.keep_freed_memory() is told
    assert library.mallopt.called is told
