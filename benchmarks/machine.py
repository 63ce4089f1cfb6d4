"""What a figure was measured on."""

import os
import platform
from pathlib import Path

import torch


def describe(threads: int) -> str:
    """One line: processor, cores, system, threads used, version of torch."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} cores, {platform.system()}, {threads} thread(s), torch {torch.__version__}"
