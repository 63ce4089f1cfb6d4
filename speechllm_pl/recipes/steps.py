"""Steps that make files from each other's, carried out in order without those that are finished."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn


@dataclass(frozen=True)
class Step:
    """Command line with its inputs and its output."""

    line: str
    """Command line for a shell."""
    makes: Path | None = None
    """Output; the step is finished if it exists and is not older than its inputs, and never if it is None."""
    needs: tuple["Step", ...] = ()
    """Steps whose files are the inputs."""
    after: tuple["Step", ...] = ()
    """Steps that must come before, but whose files may be newer."""
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Environment variables in addition to those of this process."""

    @property
    def is_finished(self) -> bool:
        if self.makes is None or not self.makes.exists():
            return False
        made = self.makes.stat().st_mtime_ns
        sources = [step.makes for step in self.needs if step.makes]
        return all(source.exists() and source.stat().st_mtime_ns <= made for source in sources)


def in_order(*last: Step) -> list[Step]:
    """All needed steps, each after those that it needs."""
    found: dict[Step, None] = {}
    for step in last:
        for former in (*in_order(*step.needs, *step.after), step):
            found.setdefault(former)
    return list(found)


def unfinished(*last: Step) -> list[Step]:
    """Unfinished steps in order, including all whose inputs are to be remade."""
    todo: list[Step] = []
    for step in in_order(*last):
        if not step.is_finished or any(need in todo for need in step.needs):
            todo.append(step)
    return todo


def carry_out(*last: Step, at_once: int = 1) -> None:
    """Carry out the unfinished steps, `at_once` in parallel; print each line when it starts.

    Raises:
        SystemExit: a step has failed. The status is that of the step; steps already started are waited for.
    """
    todo, running = unfinished(*last), {}
    former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        while todo or running:
            waiting = (*todo, *running.values())
            for step in [each for each in todo if not any(one in waiting for one in (*each.needs, *each.after))]:
                if len(running) < at_once:
                    running[_started(step)] = step
                    todo.remove(step)
            ended = [process for process in running if process.poll() is not None]
            for process in ended:
                del running[process]
                if process.returncode:
                    todo.clear()
                    sys.exit(process.returncode if process.returncode > 0 else 128 - process.returncode)
            if not ended:
                time.sleep(0.05)
    except SystemExit as stop:
        if stop.code == 128 + signal.SIGTERM:
            for process in running:
                process.terminate()
        raise
    finally:
        for process in running:  # Ctrl-C has reached them too
            process.wait()
        signal.signal(signal.SIGTERM, former)


def _started(step: Step) -> subprocess.Popen:
    print(step.line, flush=True)
    return subprocess.Popen(_shell(step.line), env={**os.environ, **step.environment})


def become(step: Step) -> NoReturn:
    """Print a step's line and replace this process by it, so that signals and exit status are its own."""
    print(step.line, flush=True)
    os.execvpe("bash", _shell(step.line), {**os.environ, **step.environment})


def _shell(line: str) -> list[str]:
    return ["bash", "-eu", "-o", "pipefail", "-c", line]
