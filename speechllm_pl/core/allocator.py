"""How the C library manages the memory of CPU tensors."""

import ctypes


def keep_freed_memory() -> None:
    """Have this process use freed memory again instead of giving it back to the system.

    Every large tensor or batch would else have it mapped, zeroed and unmapped again. Nothing outside glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(trim_threshold, 2**30)
        mallopt(mmap_threshold, 32 * 2**20)  # the most it takes
