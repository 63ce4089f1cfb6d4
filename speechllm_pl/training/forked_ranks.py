"""Ranks on the CPUs of one machine, forked from the first, which has already imported and built everything."""

import os
import signal
import sys
from pathlib import Path

from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher


class ForkedDDPStrategy(DDPStrategy):
    """DDP whose other ranks are forked from the first: that saves each of them the seconds of a start.

    Not for GPUs: a device that the first rank uses already cannot be used by its copies.
    """

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = ForkingLauncher(self.cluster_environment, self.num_processes, self.num_nodes)


class ForkingLauncher(_SubprocessScriptLauncher):
    """Lightning's launcher of ranks, which forks where that is safe.

    A fork has none of the threads of its parent, and waits forever for locks that one of them held. If there are any
    (OpenMP's, when OMP_NUM_THREADS is not 1), the ranks start as Lightning's do, by running the command again.
    """

    def _call_children_scripts(self) -> None:
        if _threads() > 1:
            super()._call_children_scripts()
            return
        self._check_can_spawn_children()
        os.environ["MASTER_ADDR"] = self.cluster_environment.main_address
        os.environ["MASTER_PORT"] = str(self.cluster_environment.main_port)
        os.environ["NODE_RANK"] = str(self.cluster_environment.node_rank())
        os.environ["WORLD_SIZE"] = str(self.num_processes * self.num_nodes)
        os.environ["LOCAL_RANK"] = "0"
        sys.stdout.flush()
        sys.stderr.flush()
        forked: list[ForkedRank] = []
        for rank in range(1, self.num_processes):
            pid = os.fork()
            if pid == 0:
                os.environ["LOCAL_RANK"] = str(rank)
                return
            forked.append(ForkedRank(pid))
        self.procs = forked  # pyright: ignore[reportAttributeAccessIssue]  (as much of Popen as Lightning uses)


class ForkedRank:
    """Forked process with the interface that Lightning's observer expects."""

    def __init__(self, pid: int):
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, minus the signal that killed it, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, signum: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)


def _threads() -> int:
    """Number of threads of this process, including those of libraries."""
    return len(list(Path("/proc/self/task").iterdir())) if sys.platform == "linux" else 2
