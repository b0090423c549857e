"""A trace of some steps of a run, by JAX's profiler."""

import contextlib
from collections.abc import Callable, Iterator

import jax
from absl import logging

from mmclip_jax import files


@contextlib.contextmanager
def profiler(workdir: str, first: int, count: int) -> Iterator[Callable[[int, Callable[[], None]], None]]:
    """Traces `count` steps from step `first` on, in process 0, into WORKDIR/profile (for xprof, TensorBoard, Perfetto).

    Yields:
      before(number, settle): to be called before every step; settle waits for the step before.
    """
    twin, running = files.LocalTwin(files.locate(workdir) / "profile"), False

    def before(number: int, settle: Callable[[], None]) -> None:
        nonlocal running
        if not count or number not in (first, first + count):
            return
        settle()
        if jax.process_index():
            return
        if number == first:
            jax.profiler.start_trace(str(twin.folder))
            running = True
        elif running:
            stop()

    def stop() -> None:
        nonlocal running
        jax.profiler.stop_trace()
        running = False
        twin.copy()
        logging.info("the profile lies in %s", twin.path)

    try:
        yield before
    finally:
        if running:
            stop()
