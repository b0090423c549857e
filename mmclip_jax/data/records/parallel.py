"""`map` in a pool with its results in order, and the bar that shows how far it is."""

import collections
import concurrent.futures
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def map_in_order(function: Callable[[_In], _Out], items: Iterable[_In], threads: int | None = None) -> Iterator[_Out]:
    """`map(function, items)` on several threads, results in the order of `items`, few of them in memory at once.

    Decoding, resizing and encoding images releases the interpreter's lock, so threads are enough.
    """
    threads = threads or os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        yield from in_order(pool, function, items, ahead=4 * threads)


def in_order(
    pool: concurrent.futures.Executor, function: Callable[[_In], _Out], items: Iterable[_In], ahead: int
) -> Iterator[_Out]:
    """`map(function, items)` in a pool, results in the order of `items`, with at most `ahead` items under way."""
    waiting: collections.deque[concurrent.futures.Future[_Out]] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@contextlib.contextmanager
def progress_bar(what: str, total: Callable[[], int | None], shown: bool) -> Iterator[Callable[[], object]]:
    """Gives a function to call at each example; `total` is not asked unless the bar is shown."""
    if not shown:
        yield lambda: None
        return
    import tqdm

    with tqdm.tqdm(total=total(), desc=what, unit=" images", file=sys.stderr, mininterval=0.5) as bar:
        yield bar.update
