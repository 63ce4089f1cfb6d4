"""Libraries keep little for shapes that come once: measured in fresh processes, as both bounds are a process's."""

import os
import platform
import subprocess
import sys

import pytest

RESIDENT = """
import sys
from pathlib import Path
from speechllm_pl.recognition.kept_memory import keep_few_kernels, return_freed_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
"""
KERNELS = """
import ctypes, torch
class Counts(ctypes.Structure):  # of mallinfo2
    _fields_ = [(name, ctypes.c_size_t) for name in "a b c d mapped f g used i j".split()]
counts = ctypes.CDLL(None).mallinfo2
counts.restype = Counts
if sys.argv[1] == "few":
    keep_few_kernels()
torch.set_num_threads(1)  # which makes the cache of convolutions
convolution = torch.nn.Conv1d(64, 64, 3)
with torch.inference_mode():
    for length in range(400, 1200):
        convolution(torch.zeros(1, 64, length))
        if length == 599:
            before = counts().used
print((counts().used - before) / 2**20)
"""
HELD = """
freed, kept = [], []
for _ in range(2000):
    freed.append(bytearray(60_000))
    kept.append(bytearray(600))
before = resident()
freed.clear()
if sys.argv[1] == "return":
    return_freed_memory()
print(before - resident())
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc counts and returns memory")


def mebibytes(program: str, argument: str) -> float:
    plain = {
        name: value for name, value in os.environ.items() if name.split("_")[0] not in ("LD", "LRU", "ONEDNN", "MALLOC")
    }
    command = [sys.executable, "-c", RESIDENT + program, argument]
    return float(subprocess.run(command, env=plain, capture_output=True, text=True, check=True).stdout)


def test_kernels_of_many_shapes_are_not_kept() -> None:
    assert mebibytes(KERNELS, "few") < 0.2 * mebibytes(KERNELS, "all")


def test_what_was_freed_between_blocks_in_use_goes_back_to_the_system() -> None:
    assert mebibytes(HELD, "return") > 80 > 20 > mebibytes(HELD, "keep")
