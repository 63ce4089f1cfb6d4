"""Batches go from loader processes to the training process in shared memory that is used again.

PyTorch takes new memory for every batch and has its pages mapped in both processes, which costs noticeably beside
decoding FLAC (`benchmarks/reading_speed.py`); and where /dev/shm is small, as in containers, it fails. Here a few
places are set aside before the loader's processes are started. Recordings are decoded into the rows of a place, and it
is free again as soon as the batch in it is no longer used. Beside the places stands what each process is reading.
"""

import itertools
import os
import weakref
from typing import Any

import numpy as np
import torch

from speechllm_pl.core.allocator import keep_freed_memory
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.shared_memory import SharedMemory

PLACES = 5
"""A worker: two batches that are made or wait in the loader's queue, two in use while the next takes the former one's
place, and one for a batch that is not what was expected."""

PLACE_BYTES = 64 * 2**20
"""Of a place, at the least: 1,000 s of audio. Only what is used takes memory."""

PAGE = 4096
"""Bytes: a place begins with one."""

NOTE_BYTES = 8192
"""For the name of a cut and the path of its file."""

FREE, MADE, SENT, ARRIVED = range(4)

_numbers = itertools.count()
_all: "weakref.WeakValueDictionary[int, Handover]" = weakref.WeakValueDictionary()
"""Those of this process, by number; parcels name it."""

_mine: "Handover | None" = None
"""In a loader's process: what it hands its batches over with."""


def expect(rows: int, samples: int) -> None:
    """Before a batch is read: how many recordings it has, and how long the longest is if all goes well."""
    if _mine is not None:
        _mine.expect(rows, samples)


def row(samples: int) -> np.ndarray:
    """`(samples,)` float32 to decode the batch's next recording into. What is in it already is anything."""
    return np.empty(samples, np.float32) if _mine is None else _mine.row(samples)


def reading(what: str) -> None:
    """Note, in a loader's process, what is read from now on; nothing, once the batch is made."""
    if _mine is not None:
        _mine.note(what)


def padded(recordings: list[np.ndarray]) -> torch.Tensor:
    """`(B, N)` float32 waveforms, zero-padded on the right, made where they can be handed over if there is a place."""
    shape = len(recordings), max(map(len, recordings), default=0)
    rows = np.empty(shape, np.float32) if _mine is None else _mine.rows(shape, recordings)
    for row, start, samples in zip(rows, _starts(rows), recordings, strict=True):
        if start != _address(samples):
            row[: len(samples)] = samples
        row[len(samples) :] = 0
    return torch.from_numpy(rows)


class Handover:
    """A loader's `worker_init_fn` is its `start`, and its `collate_fn` what turns a batch into a parcel.

    A batch that finds no place, because it is too large or all are in use, goes PyTorch's way.

    Args:
        workers: processes of the loader; 0 changes nothing.
        place_bytes: of the largest batch.
    """

    def __init__(self, workers: int, place_bytes: int = PLACE_BYTES):
        self._number = next(_numbers)
        self._workers = workers
        self._place_bytes = -(-place_bytes // PAGE) * PAGE
        self._memory = SharedMemory(workers * PLACES * self._place_bytes) if workers else None
        self._head = SharedMemory(max(1, workers * ((PLACES + 1) * 8 + NOTE_BYTES)))
        self._open()
        _all[self._number] = self

    def _open(self) -> None:
        self._worker = -1  # in a worker: which one it is, if it has places
        self._rows: np.ndarray | None = None  # (B, N) of the batch that is being read
        self._next = 0  # of its rows
        workers, after = self._workers, self._workers * PLACES * 8
        self._states = np.frombuffer(self._head, np.int64, workers * PLACES).reshape(workers, PLACES)
        self._owners = np.frombuffer(self._head, np.int64, workers, after)  # process numbers
        self._notes = np.frombuffer(self._head, f"S{NOTE_BYTES}", workers, after + workers * 8)

    def start(self, worker: int) -> None:
        """In a worker: take its places, unless a process that had them before is still there.

        What that one has sent and nobody has received never arrives.
        """
        global _mine
        keep_freed_memory()
        if self._memory is None or (self._owners[worker] and _is_there(int(self._owners[worker]))):
            return
        self._owners[worker] = os.getpid()
        self._notes[worker] = b""
        self._states[worker][self._states[worker] < ARRIVED] = FREE
        self._worker = worker
        _mine = self

    def note(self, what: str) -> None:
        self._notes[self._worker] = what.encode(errors="replace")

    def noted(self, worker: int) -> str:
        """What a worker is reading: known without reading anything oneself."""
        return self._notes[worker].decode(errors="replace")

    def expect(self, rows: int, samples: int) -> None:
        """In a worker, as are the next ones: a place whose rows recordings are decoded into."""
        self._rows, self._next = self._place(rows, samples), 0

    def row(self, samples: int) -> np.ndarray:
        if self._rows is None or self._next == len(self._rows) or samples > self._rows.shape[1]:
            return np.empty(samples, np.float32)
        self._next += 1
        return self._rows[self._next - 1, :samples]

    def rows(self, shape: tuple[int, int], recordings: list[np.ndarray]) -> np.ndarray:
        """Those that were decoded into, if each has just its own recording, or else another place."""
        rows = self._rows
        if rows is not None and rows.shape == shape and _can_hold(rows, recordings):
            return rows
        other = self._place(*shape)
        return np.empty(shape, np.float32) if other is None else other

    def _place(self, rows: int, samples: int) -> np.ndarray | None:
        states = self._states[self._worker]
        free = np.flatnonzero(states == FREE)
        if not len(free) or not 0 < rows * samples * 4 <= self._place_bytes:
            return None
        states[free[0]] = MADE
        return self.array(self._worker * PLACES + int(free[0]), (rows, samples))

    def __call__(self, batch: Batch) -> "Batch | _Parcel":
        """In a worker: what is sent instead of a batch that was made in a place."""
        if _mine is not self:
            return batch
        self._rows = None
        states, sent = self._states[self._worker], batch
        for number in np.flatnonzero(states == MADE).tolist():
            place = self._worker * PLACES + number
            made_here = self.array(place, (1,)).ctypes.data == batch.waveforms.data_ptr()
            states[number] = SENT if made_here else FREE
            if made_here:
                sent = _Parcel(self._number, place, batch)
        return sent

    def array(self, place: int, shape: tuple[int, ...]) -> np.ndarray:
        """float32, in a place."""
        return np.ndarray(shape, np.float32, buffer=self._memory, offset=place * self._place_bytes)  # type: ignore[arg-type]

    def received(self, place: int, shape: tuple[int, ...]) -> torch.Tensor:
        """In the training process: float32 waveforms; the place is free when no tensor refers to them any more."""
        array = self.array(place, shape)
        self._states.flat[place] = ARRIVED
        weakref.finalize(array, _release, self._states, place, os.getpid()).atexit = False
        return torch.from_numpy(array)

    def __getstate__(self) -> dict[str, Any]:
        """For a worker: the same memory."""
        return {name: self.__dict__[name] for name in ("_number", "_workers", "_place_bytes", "_memory", "_head")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


class _Parcel:
    """A batch whose waveforms are in a place; it is a `Batch` again once it has been unpickled."""

    def __init__(self, handover: int, place: int, batch: Batch):
        self.contents = (handover, place, tuple(batch.waveforms.shape), batch.lengths.tolist(), tuple(batch[2:]))

    def __reduce__(self) -> tuple:
        return _unpacked, self.contents


def _unpacked(handover: int, place: int, shape: tuple[int, int], lengths: list[int], others: tuple[Any, ...]) -> Batch:
    return Batch(_all[handover].received(place, shape), torch.tensor(lengths, dtype=torch.long), *others)


def _release(states: np.ndarray, place: int, process: int) -> None:
    """Not by a process that was forked while the batch was in use, and has forgotten it."""
    if os.getpid() == process:
        states.flat[place] = FREE


def _can_hold(rows: np.ndarray, recordings: list[np.ndarray]) -> bool:
    """Whether each recording is in its own row already, or in none."""
    return all(
        start == _address(samples) or not np.may_share_memory(rows, samples)
        for start, samples in zip(_starts(rows), recordings, strict=True)
    )


def _starts(rows: np.ndarray) -> range:
    """The addresses of the rows."""
    first, step = _address(rows), rows.strides[0] or 1
    return range(first, first + step * len(rows), step)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True
