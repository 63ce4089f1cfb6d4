"""Memory that a process shares with those that it starts, whether they are forked or not."""

import mmap
import os
import tempfile
import weakref
from multiprocessing import reduction
from multiprocessing.context import get_spawning_popen
from typing import Any


class SharedMemory(mmap.mmap):
    """So many bytes, all zero. It needs no room in /dev/shm, and is gone with the last process that has it.

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
    """The same bytes in shared memory, of which there is none that is empty."""
    if not content:
        return content
    memory = SharedMemory(len(content))
    memory[:] = content
    return memory


def _anonymous_file(size: int) -> int:
    """→ its descriptor."""
    if hasattr(os, "memfd_create"):  # not on macOS
        descriptor = os.memfd_create("speechllm")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
