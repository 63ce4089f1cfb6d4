"""Progress bars for terminals and log files."""

import contextlib
import os
import sys
from typing import Any, TextIO

from tqdm import tqdm


class _Log:
    """A stream that cannot overwrite: each refresh of a bar is a line."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        if line := text.strip():
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        self.stream.flush()


def progress_bar(description: str, total: int | None, **looks: Any) -> tqdm:
    """Progress bar with rate and time left. In a log file, where every refresh is a line, refreshes are rare.

    Of processes that run side by side only the first one of a machine has a bar.

    Args:
        looks: `unit`, `unit_scale`, `initial` … of tqdm.
    """
    place = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    disable = looks.pop("disable", False) or place != "0"
    if sys.stderr.isatty():
        looks |= {"file": sys.stderr, "mininterval": 0.5}
    else:
        looks |= {"file": _Log(sys.stderr), "mininterval": 30.0, "ncols": 100}
    return tqdm(desc=description, total=total, disable=disable, **looks)


def print_above(line: str, file: TextIO | None = None) -> None:
    """Print a line at once, on a terminal above the bar rather than into it.

    Args:
        file: default is stdout.
    """
    with tqdm.external_write_mode() if sys.stderr.isatty() else contextlib.nullcontext():
        print(line, file=file, flush=True)
