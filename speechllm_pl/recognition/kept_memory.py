"""Bounds on the memory that libraries keep when every batch has another shape.

oneDNN and torch's wrapper of it each keep a compiled kernel for every shape that they have met, 1024 by default: that
is hundreds of MiB in bf16. glibc keeps what was freed below a block that is still in use, such as the words of a long
recording.
"""

import ctypes
import os
from contextlib import suppress

KERNELS = 128
"""Kernels that each cache keeps: those of a batch, which its layers share, and those of the window that is searched for
pauses. Other batches have other shapes, and would not find theirs among a thousand either."""


def keep_few_kernels() -> None:
    """Bound both caches, before the first computation, unless the environment bounds them."""
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, str(KERNELS))


def return_freed_memory() -> None:
    """Give the free pages of glibc's heap back to the system; other C libraries do so by themselves."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
