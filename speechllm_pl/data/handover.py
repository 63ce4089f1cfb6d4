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

from speechllm_pl.data.batch import Batch

PLACES = 4
"""A worker: two batches that wait in the loader's queue, one in use, one being made."""

PLACE_BYTES = 64 * 2**20
"""Of a place: 1,000 s of audio. Only what is used takes memory."""

FREE, MADE, SENT, ARRIVED = range(4)

_numbers = itertools.count()
_all: "weakref.WeakValueDictionary[int, Handover]" = weakref.WeakValueDictionary()
"""By number, which is the same in the processes that are forked."""


_mine: "Handover | None" = None
"""In a loader's process: what it hands its batches over with."""


def empty(rows: int, samples: int) -> torch.Tensor:
    """`(rows, samples)` float32 for a batch's waveforms: in a loader's process where they can be handed over, if
    possible. What is in it already is anything."""
    return torch.empty(rows, samples) if _mine is None else _mine.empty(rows, samples)


class Handover:
    """A loader's `worker_init_fn` is its `start`, and its `collate_fn` what turns a batch into a parcel.

    A batch that finds no place, because it is too large or all are in use, goes PyTorch's way, and so do all where
    workers are not forked.

    Args:
        workers: processes of the loader; 0 changes nothing.
    """

    def __init__(self, workers: int):
        self._number = next(_numbers)
        self._worker = -1  # in a worker: which one it is, if it has places
        self._memory = mmap.mmap(-1, workers * PLACES * PLACE_BYTES) if workers else None
        head = mmap.mmap(-1, max(1, workers * (PLACES + 1) * 8))
        self._states = np.frombuffer(head, np.int64, workers * PLACES).reshape(workers, PLACES)
        self._owners = np.frombuffer(head, np.int64, workers, offset=self._states.nbytes)  # process numbers
        _all[self._number] = self

    def start(self, worker: int) -> None:
        """In a worker: take its places, unless a process that had them before is still there.

        What that one has sent and nobody has received never arrives.
        """
        global _mine
        keep_freed_memory()
        if self._memory is None or (self._owners[worker] and _is_there(int(self._owners[worker]))):
            return
        self._owners[worker] = os.getpid()
        self._states[worker][self._states[worker] < ARRIVED] = FREE
        self._worker = worker
        _mine = self

    def empty(self, rows: int, samples: int) -> torch.Tensor:
        """In a worker."""
        states = self._states[self._worker]
        states[states == MADE] = FREE  # a batch that failed before it was sent
        free = np.flatnonzero(states == FREE)
        if not len(free) or not 0 < rows * samples * 4 <= PLACE_BYTES:
            return torch.empty(rows, samples)
        states[free[0]] = MADE
        return torch.from_numpy(self.array(self._worker * PLACES + int(free[0]), (rows, samples)))

    def __call__(self, batch: Batch) -> "Batch | _Parcel":
        """In a worker: what is sent instead of a batch that was made in a place."""
        if _mine is not self:
            return batch
        made = np.flatnonzero(self._states[self._worker] == MADE) + self._worker * PLACES
        for place in made.tolist():
            if self.array(place, (1,)).ctypes.data == batch.waveforms.data_ptr():
                self._states.flat[place] = SENT
                return _Parcel(self._number, place, batch)
        return batch

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
        mallopt(mmap_threshold, 32 * 2**20)  # the most it takes; an utterance is a few
