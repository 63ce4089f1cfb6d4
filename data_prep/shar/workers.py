"""Worker processes that make shards, and count their cuts together."""

import functools
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized

from data_prep.machinery.processes import process_context, process_pool


@contextmanager
def counting_pool(jobs: int) -> Iterator[tuple[ProcessPoolExecutor, Synchronized]]:
    """Start processes, and a number that each of them can raise."""
    context = process_context()
    counter = context.Value("q", 0)
    with process_pool(jobs, context, _count_with, counter) as pool:
        yield pool, counter


_done: Synchronized
"""In a worker: how many cuts all workers have done."""


def _count_with(counter: Synchronized) -> None:
    global _done
    _done = counter


def run_counted(make: functools.partial) -> None:
    make(done=_count_one)


def _count_one() -> None:
    with _done.get_lock():
        _done.value += 1
