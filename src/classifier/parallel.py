"""Many items on all cores, with a progress bar."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from classifier.errors import require_whole

T = TypeVar("T")
R = TypeVar("R")


def parallel_map(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """`function(item)` for each item, in their order; after the first error no further item is begun.

    In threads: decoding, resizing and encoding an image all release Python's lock.
    """
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 4 * workers:  # a million are not to be held at once
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def tracked(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """The items, counted on a bar on stderr, so that stdout stays for results.

    Where stderr is no terminal, one line at the end says how many there were.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(items, total=total, description=what)


def worker_count(num_workers: int | str, processes: int = 1, key: str = "data.num_workers") -> int:
    """Reading processes for each of `processes` on this machine: as given, or for `auto` its part of the cores.

    Args:
        key: The setting, for messages.
    """
    if num_workers != "auto":
        require_whole(key, num_workers, 0, otherwise=", or auto")
        return int(num_workers)
    # affinity counts what a container or SLURM grants, but exists on Linux alone
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores // processes, 16)
