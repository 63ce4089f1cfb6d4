"""Worker processes."""

import contextlib
import functools
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import ForkServerContext
from typing import Any

from speechllm_pl.core.errors import UserError


def process_context() -> ForkServerContext:
    """Start processes from a server that never ran anything: forking a process that has used OpenMP may hang."""
    return multiprocessing.get_context("forkserver")


@contextlib.contextmanager
def process_pool(
    jobs: int, context: ForkServerContext, initializer: Callable[..., object] | None = None, *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """Start `jobs` processes of one thread each, which ignore Ctrl-C: their parent cancels what is left.

    Args:
        initializer: called with `arguments` when a process starts.

    Raises:
        UserError: a process died.
    """
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start, initargs=(initializer, *arguments))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UserError("a worker process died, most likely for lack of memory: try fewer --jobs") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def parallel_map(jobs: int, preload: Sequence[str] = (), chunksize: int = 1) -> Iterator[Callable[..., Iterator]]:
    """A `map` over `jobs` processes, in the order of what is given; over none with one job.

    Args:
        preload: modules that are imported once, before processes fork.
        chunksize: calls sent to a process at a time.
    """
    if jobs <= 1:
        yield map
        return
    context = process_context()
    if preload:
        context.set_forkserver_preload([*preload])
    with process_pool(jobs, context) as pool:
        yield functools.partial(pool.map, chunksize=chunksize)


def _start(initializer: Callable[..., object] | None, *arguments: Any) -> None:
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if initializer is not None:
        initializer(*arguments)
