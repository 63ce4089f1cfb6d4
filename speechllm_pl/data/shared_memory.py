"""Memory that a process shares with those that it starts, whether they are forked or not.

It is an anonymous file, so it needs no room in /dev/shm, of which containers have little.
"""

import functools
import math
import mmap
import os
import tempfile
import weakref
from multiprocessing import reduction
from multiprocessing.context import get_spawning_popen
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import get_worker_info

from speechllm_pl.core.padded import Padded


class SharedMemory(mmap.mmap):
    """So many bytes, all zero, gone with the last process that has them.

    To a process that is being started it is sent as what it is, to any other as a copy of its bytes.
    """

    _descriptor: int

    def __new__(cls, size: int, sent: Any = None) -> "SharedMemory":
        descriptor = _anonymous_file(size) if sent is None else sent.detach()
        memory = super().__new__(cls, descriptor, size)
        memory._descriptor = descriptor
        weakref.finalize(memory, os.close, descriptor).atexit = False
        return memory

    def __reduce__(self) -> tuple:
        if get_spawning_popen() is None:
            return bytes, (self[:],)
        return SharedMemory, (len(self), reduction.DupFd(self._descriptor))


def shared(content: bytes) -> SharedMemory | bytes:
    """Copy bytes to shared memory, which cannot be empty."""
    if not content:
        return content
    memory = SharedMemory(len(content))
    memory[:] = content
    return memory


def padded(rows: list[np.ndarray]) -> torch.Tensor:
    """Pad waveforms on the right to `(B, N)` float32; in a loader's process, in memory that can be handed over.

    Rows are written to a file there: to map it for that would cost more than a millisecond a batch for its pages.
    """
    shape = len(rows), max(map(len, rows), default=0)
    if get_worker_info() is None or not math.prod(shape):
        tensor = torch.zeros(shape)
        for row, samples in zip(tensor.numpy(), rows, strict=True):
            row[: len(samples)] = samples
        return tensor
    size = 4 * math.prod(shape)
    with open(_anonymous_file(size), "r+b") as file:
        for number, samples in enumerate(rows):
            file.seek(4 * number * shape[1])
            file.write(samples.data)
        file.flush()
        storage = cast(Any, torch.UntypedStorage)._new_shared_fd_cpu(file.fileno(), size)
    return torch.empty(0).set_(storage, 0, shape)  # pyright: ignore[reportCallIssue, reportArgumentType]


def padded_frames(rows: list[torch.Tensor]) -> Padded:
    """Pad `(T, dim)` frames on the right, as `padded` does; dim is even.

    Rows may differ in precision, as devices compute under autocast: all become that which holds each of them.
    """
    if not rows:
        return Padded(torch.zeros(0, 0, 0), torch.zeros(0, dtype=torch.long))
    widest = functools.reduce(torch.promote_types, (row.dtype for row in rows))
    flat = padded([row.to(widest).flatten().view(torch.float32).numpy() for row in rows])  # bits, whatever they mean
    frames = flat.view(widest).unflatten(1, (-1, rows[0].shape[1]))
    return Padded(frames, torch.tensor([len(row) for row in rows]))


def _anonymous_file(size: int) -> int:
    """Descriptor of an anonymous file."""
    if hasattr(os, "memfd_create"):  # not on macOS
        descriptor = os.memfd_create("speechllm")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
