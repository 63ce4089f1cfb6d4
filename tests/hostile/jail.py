"""A process for one piece of work, with a limit of time and of memory, forked from one that has imported everything."""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SECONDS = 20.0
GROWTH = 2 * 2**30
"""Bytes of memory beyond those of the process that is forked."""

OUT, ERR = "stdout", "stderr"
"""Files of the folder in which the work is done."""


class Ended(NamedTuple):
    """Outcome of the work."""

    status: int  # what it exited with, or minus the signal that ended it
    out: str
    err: str
    beyond: str  # the limit for which it was killed, in words; empty if it kept them
    seconds: float
    growth: int  # bytes, at most


def confined(work: Callable[[], None], folder: Path, seconds: float = SECONDS, growth: int = GROWTH) -> Ended:
    """Do the work in `folder`, in a copy of this process, which must have no other threads."""
    before, started = _resident("self"), time.monotonic()
    pid = os.fork()
    if pid == 0:
        _work(work, folder)
    beyond, done = "", 0
    while not done:
        done, status, used = os.wait4(pid, os.WNOHANG)
        if not done and not beyond:
            if time.monotonic() - started > seconds:
                beyond = f"it ran for more than {seconds:g} s"
            elif _resident(str(pid)) - before > growth:
                beyond = f"it took more than {growth / 2**30:g} GiB"
            if beyond:
                os.killpg(pid, signal.SIGKILL)
            time.sleep(0.005)
    grown = max(0, used.ru_maxrss * 1024 - before)
    if grown > growth:
        beyond = beyond or f"it took {grown / 2**30:.1f} GiB"
    out, err = ((folder / name).read_text(errors="replace") for name in (OUT, ERR))
    return Ended(os.waitstatus_to_exitcode(status), out, err, beyond, time.monotonic() - started, grown)


def _work(work: Callable[[], None], folder: Path) -> None:
    """Never returns."""
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        for number, name in ((1, OUT), (2, ERR)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        work()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _resident(process: str) -> int:
    """Bytes of memory that a process has; 0 when it has ended."""
    try:
        return int(Path("/proc", process, "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
