"""How a run ends: in good order however the end comes, at SIGTERM, and when another process is lost."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from mmclip_jax.checkpoints import Checkpoints
from mmclip_jax.data import pipeline
from mmclip_jax.errors import LostProcessError

_OWN_FAULTS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")  # a lost process causes none of these


@contextlib.contextmanager
def ended_in_order(checkpoints: Checkpoints, iterator: pipeline.TrainIterator) -> Iterator[None]:
    """However the block ends: a checkpoint that is being written is finished, and threads and workers end."""
    try:
        yield
    except BaseException as error:
        # The others of a run of several processes may be gone, and would be waited for.
        if jax.process_count() == 1 and not isinstance(error, LostProcessError):
            checkpoints.close_after_an_error(error)
            iterator.close()
        raise


@contextlib.contextmanager
def preemption_notice() -> Iterator[Callable[[int], bool]]:
    """Inside, SIGTERM ends no process: it is the notice that the machine will be taken away.

    Yields:
      preempted(step): to be asked after every step, in every process; True at the step to save and to stop at, which is
        the same for all processes however many of them got the signal.
    """
    if jax.distributed.is_initialized():  # JAX has taken over SIGTERM and tells the other processes
        yield multihost_utils.reached_preemption_sync_point
    elif threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield lambda step: False
    else:
        noticed = threading.Event()
        before = signal.signal(signal.SIGTERM, lambda *_: noticed.set())
        try:
            yield lambda step: noticed.is_set()
        finally:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def lost_process_is_named() -> Iterator[None]:
    """Turns the failed exchange with a process that is gone into a LostProcessError."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # Where CPUs compute in order (`cli._set_up`), JAX raises the failed exchange as a plain ValueError.
        foreign = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
        if not foreign or jax.process_count() == 1 or any(word in str(error) for word in _OWN_FAULTS):
            raise
        raise LostProcessError(
            f"another process of this run was lost, or a device failed ({error}); the same command goes on from the "
            "newest checkpoint"
        ) from error
