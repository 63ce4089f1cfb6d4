"""Settings of the C library's allocator, which provides the memory of CPU tensors."""

import ctypes


def keep_freed_memory() -> None:
    """Make this process reuse freed memory instead of returning it to the system.

    Otherwise memory is mapped, zeroed and unmapped again for every large tensor or batch. No effect without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(trim_threshold, 2**30)
        mallopt(mmap_threshold, 32 * 2**20)  # the most it takes
