"""Batches go from loader processes to the training process in shared memory that is used again.

PyTorch takes new memory for every batch and has its pages mapped in both processes, which can take a quarter of the
time that decoding FLAC takes; and where /dev/shm is small, as in containers, it fails. Here a few places are set aside
before the loader's processes are forked, and a place is free again as soon as the batch in it is no longer used.
"""

import ctypes
import itertools
import mmap
import os
import weakref
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from speechllm_pl.data.batch import Batch

PLACES = 4
"""A worker: two batches that wait in the loader's queue, one in use, one being made."""

PLACE_BYTES = 64 * 2**20
"""Of a place: 1,000 s of audio. Only what is used takes memory."""

FREE, SENT, ARRIVED = range(3)

_numbers = itertools.count()
_all: "weakref.WeakValueDictionary[int, Handover]" = weakref.WeakValueDictionary()
"""By number, which is the same in the processes that are forked."""


class Handover:
    """A loader's `collate_fn`: a batch in, and out comes what becomes this batch in the training process.

    A batch that finds no place, because it is too large or all are in use, goes PyTorch's way, and so do all where
    workers are not forked.

    Args:
        workers: processes of the loader; 0 changes nothing.
    """

    def __init__(self, workers: int):
        self._number = next(_numbers)
        self._owner = -1  # in a worker: its process, once its places are its own
        self._memory = mmap.mmap(-1, workers * PLACES * PLACE_BYTES) if workers else None
        head = mmap.mmap(-1, max(1, workers * (PLACES + 1) * 8))
        self._states = np.frombuffer(head, np.int64, workers * PLACES).reshape(workers, PLACES)
        self._owners = np.frombuffer(head, np.int64, workers, offset=self._states.nbytes)  # process numbers
        _all[self._number] = self

    def __call__(self, batch: Batch) -> "Batch | _Parcel":
        worker = get_worker_info()
        if worker is None or self._memory is None or not self._is_mine(worker.id):
            return batch
        free = np.flatnonzero(self._states[worker.id] == FREE)
        if not len(free) or not 0 < batch.waveforms.nbytes <= PLACE_BYTES:
            return batch
        self._states[worker.id, free[0]] = SENT
        place = worker.id * PLACES + int(free[0])
        self.array(place, batch.waveforms.shape)[:] = batch.waveforms.numpy()
        return _Parcel(self._number, place, batch)

    def _is_mine(self, worker: int) -> bool:
        """Whether this process may use the worker's places: not while one that had them before is still there.

        What that one has sent and nobody has received, never arrives.
        """
        if self._owner != os.getpid():
            former = int(self._owners[worker])
            if former and _is_there(former):
                return False
            keep_freed_memory()
            self._owner = self._owners[worker] = os.getpid()
            self._states[worker][self._states[worker] == SENT] = FREE
        return True

    def array(self, place: int, shape: tuple[int, ...]) -> np.ndarray:
        """float32, in a place."""
        return np.ndarray(shape, np.float32, buffer=self._memory, offset=place * PLACE_BYTES)  # type: ignore[arg-type]

    def received(self, place: int, shape: tuple[int, ...]) -> torch.Tensor:
        """In the training process: float32 waveforms; the place is free when no tensor refers to them any more."""
        array = self.array(place, shape)
        self._states.flat[place] = ARRIVED
        weakref.finalize(array, self._states.flat.__setitem__, place, FREE).atexit = False
        return torch.from_numpy(array)

    def __reduce__(self) -> tuple:
        """A process that is not forked gets one without memory."""
        return Handover, (0,)


class _Parcel:
    """A batch whose waveforms are in a place; it is a `Batch` again once it has been unpickled."""

    def __init__(self, handover: int, place: int, batch: Batch):
        self.contents = (handover, place, tuple(batch.waveforms.shape), batch.lengths.tolist(), tuple(batch[2:]))

    def __reduce__(self) -> tuple:
        return _unpacked, self.contents


def _unpacked(handover: int, place: int, shape: tuple[int, int], lengths: list[int], others: tuple[Any, ...]) -> Batch:
    return Batch(_all[handover].received(place, shape), torch.tensor(lengths, dtype=torch.long), *others)


def _is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def keep_freed_memory() -> None:
    """For a loader's process: have the C library use freed memory again instead of giving it back to the system.

    Every batch would else have it mapped, zeroed and unmapped again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(trim_threshold, 2**30)
        mallopt(mmap_threshold, 2**30)
