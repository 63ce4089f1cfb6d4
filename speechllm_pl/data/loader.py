"""Processes that read ahead: their number, start, signals and end, and what happens when one is stuck."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any, cast

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.epoch_plan import PlannedBatch
from speechllm_pl.data.notes import Notes
from speechllm_pl.data.uncached_audio import UncachedAudio

MOST_WORKERS = 8
"""Largest number of processes chosen for a rank by default."""

TIMEOUT_SECONDS = 600.0
"""Time limit of a batch: far more than it takes, and less than ranks wait for each other."""

PRELOADED = ["speechllm_pl.data.loader", "speechllm_pl.data.mixture"]
"""Modules that loader processes need, imported once in the process that they are forked from."""

JOB_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
"""Signals that may be sent to every process of a job, and which the training process handles."""


def cpus_of_rank(local_ranks: int) -> int:
    """CPUs of each rank on this machine: an equal part of those that SLURM gave its tasks, or else of all available."""
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    if given:
        return int(given) * _slurm_tasks_here() // local_ranks  # a task is a rank, or holds several (salloc, torchrun)
    every = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # on macOS
    return every // local_ranks


def _slurm_tasks_here() -> int:
    """Tasks on each node of this process's step, or else of its job."""
    for prefix in ("SLURM_STEP_NUM_", "SLURM_N"):
        if tasks := os.environ.get(f"{prefix}TASKS"):
            return -(-int(tasks) // int(os.environ.get(f"{prefix}NODES") or 1))
    return 1


def workers_of_rank(local_ranks: int) -> int:
    return workers_of_cpus(cpus_of_rank(local_ranks))


def workers_of_cpus(cpus: int) -> int:
    """Number of processes: one a CPU except the one that trains, at most eight."""
    return min(MOST_WORKERS, max(0, cpus - 1))


class Loader(DataLoader):
    """PyTorch's loader, with its arguments, from which Lightning may build it again.

    Attributes:
        waited_seconds: that this process has waited for its batches.
    """

    waited_seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Timed(self)

    def _get_iterator(self) -> _BaseDataLoaderIter:
        return _ReadAhead(self) if self.num_workers else super()._get_iterator()


class _Timed(Iterator[Batch]):
    """Iterator over a loader's batches that keeps no reference to them."""

    def __init__(self, loader: Loader):
        self._loader = loader
        started = time.perf_counter()
        self._batches = super(Loader, loader).__iter__()
        loader.waited_seconds += time.perf_counter() - started

    def __next__(self) -> Batch:
        started = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self._loader.waited_seconds += time.perf_counter() - started


class _Worker(ForkServerProcess):
    """Process of a loader. It ignores a job's signals, so the training process kills it."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        started = cast(Any, ForkServerProcess)._Popen(process_obj)
        started.terminate = started.kill
        return started


class _Workers(ForkServerContext):
    Process = _Worker  # pyright: ignore[reportAssignmentType]


class _ReadAhead(_MultiProcessingDataLoaderIter):
    """PyTorch's iterator over workers' batches, which reports what is being read when none comes."""

    def _get_data(self) -> Any:
        """Receive a batch.

        Raises:
            UserError: none has come in time; the message names the worker, the cut and its file.
            RuntimeError: a worker is gone. PyTorch looks for that at least every few seconds.
        """
        deadline = time.monotonic() + self._timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                found, data = self._try_get_data(min(left, 5.0))
            except (ConnectionError, FileNotFoundError, EOFError) as error:  # it was to send the memory of its batch
                raise RuntimeError("a loader process exited unexpectedly") from error
            if found:
                return data
        worker = self._task_info[self._rcvd_idx][0]
        what = cast(Any, self._dataset).notes.read(worker) or "nothing"
        raise UserError(
            f"loader process {worker} has given no batch for {self._timeout:g} s; it is reading {what}: see whether"
            " that file can be read and its disk answers; if all is only slow, give a higher --data.timeout_seconds"
        )


def loader(
    dataset: SpeechDataset | UncachedAudio,
    batches: Iterable[PlannedBatch],
    num_workers: int,
    timeout_seconds: float = TIMEOUT_SECONDS,
    pin_memory: bool = False,
) -> Loader:
    """Loader of planned batches, read ahead by `num_workers` processes, or by this one if there are none.

    Args:
        timeout_seconds: without a batch of these processes, after which that is an error.
        pin_memory: of batches, which then go to a GPU while it computes.
    """
    if num_workers:
        start_server()
    dataset.notes = Notes(num_workers)
    return Loader(
        dataset,
        sampler=cast(Any, batches),
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=leave_stopping_to_the_trainer,
        multiprocessing_context=_Workers() if num_workers else None,
        timeout=timeout_seconds if num_workers else 0,
        pin_memory=pin_memory,
    )


def start_server() -> None:
    """Start the process that loader processes are forked from, unless it runs: it takes seconds.

    It is started anew rather than forked, and has no threads, CUDA or process group: whatever this process does, one
    forked from it begins. Signals to the whole job pass it by; it ends when this process and its workers have.
    """
    forkserver.set_forkserver_preload(PRELOADED)
    sys.warnoptions.append("ignore:resource_tracker")  # Python's, which tells of what a killed process has left to it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)  # which it inherits, and workers from it
    try:
        resource_tracker.ensure_running()  # which lets some of them through again
        signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        sys.warnoptions.pop()


def leave_stopping_to_the_trainer(worker: int) -> None:
    """Ignore in a worker the signals that reach every process of a job: the process that it reads for ends it.

    The training process may want to finish its step when it is signalled, and needs its batches for that. It is not
    the worker's parent, which is the server: so its end, even when it is killed, is watched for as well.
    """
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    for signum in JOB_SIGNALS:  # rather than blocked: a mask is a thread's, and libraries have started some
        signal.signal(signum, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(trainer,), daemon=True).start()


def _end_with(trainer: Any) -> None:
    trainer.join()
    os._exit(1)
