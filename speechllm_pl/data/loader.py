"""The processes that read ahead: how they are started, signalled and ended."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, cast

from torch.utils.data import DataLoader

from speechllm_pl.data.batches import PlannedBatch
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.handover import Handover

SETTLING_SECONDS = 0.05


class Loader(DataLoader):
    """PyTorch's, with its arguments, as Lightning makes it again from them."""

    def __iter__(self) -> Iterator[Any]:
        """Before Python 3.12 a process that is forked just when another thread enters Python may never begin.

        (It waits for a lock that this thread held.) Threads of gloo and autograd do that when they finish what a
        sharded step has begun: so they are given time to.
        """
        if self.num_workers and sys.version_info < (3, 12):
            time.sleep(SETTLING_SECONDS)
        return super().__iter__()


def loader(dataset: SpeechDataset, batches: Iterable[PlannedBatch], num_workers: int) -> Loader:
    """Batches as they were planned, read ahead by `num_workers` processes; by this one if there are none."""
    handover = Handover(num_workers)
    return Loader(
        dataset,
        sampler=cast(Any, batches),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=cast(Any, handover),
        worker_init_fn=partial(start_worker, handover=handover),
    )


def start_worker(worker: int, handover: Handover) -> None:
    """In each of a loader's processes, before it reads."""
    leave_stopping_to_the_trainer(worker)
    handover.start(worker)


def leave_stopping_to_the_trainer(worker: int) -> None:
    """For a loader's worker: signals that reach every process of a job leave it alone; its parent can still end it.

    The training process may want to finish its step when it is signalled, and needs its batches for that.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # also in threads that start from now on
        threading.Thread(target=_end_when_the_parent_says_so, daemon=True).start()


def _end_when_the_parent_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)  # PyTorch takes any other status for a crash
