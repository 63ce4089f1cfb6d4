"""Processes that prepare data side by side."""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import ForkServerContext
from typing import Any

from speechllm_pl.core.errors import UserError


def process_context() -> ForkServerContext:
    """Processes fork from a server that never ran anything: forking a process that has used OpenMP may hang."""
    return multiprocessing.get_context("forkserver")


@contextlib.contextmanager
def process_pool(
    jobs: int, context: ForkServerContext, initializer: Callable[..., object] | None = None, *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """`jobs` processes of one thread each, on which Ctrl-C has no effect: their parent cancels what is left.

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


def _start(initializer: Callable[..., object] | None, *arguments: Any) -> None:
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if initializer is not None:
        initializer(*arguments)
