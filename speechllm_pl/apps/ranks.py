"""Sharing of a program's work by several processes, one per device, started here, by torchrun or by srun."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy

from speechllm_pl.apps.devices import device_of
from speechllm_pl.core.errors import UserError
from speechllm_pl.data.loader import cpus_of_rank

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""Time for which a finished rank waits for the others; a rank that fails ends them all at once."""

MOST_ON_CPUS = 8
"""Largest number of processes that `auto` starts without a GPU: each has a whole model."""


@dataclass(frozen=True)
class Rank:
    """One of the processes that share the work."""

    number: int
    of: int
    here: int  # of these on this machine
    device: str  # of this process
    local: int = 0  # number among those on this machine

    @property
    def is_first(self) -> bool:
        return self.number == 0

    def after_the_first(self, make: Callable[[], T]) -> T:
        """Call `make` on the first rank, then on the others of each machine one after the other; return its result.

        An error of all ranks is thus reported once, and no two ranks of a machine read a model at the same time.
        """
        if self.of == 1:
            return make()
        own = 0 if self.is_first else self.local + 1
        for _ in range(own):
            dist.barrier()
        made = make()
        for _ in range(own, self.here + 1):
            dist.barrier()
        return made

    def gathered(self, part: T) -> list[T]:
        """Gather the parts of all ranks, in order, on the first one; empty on the others."""
        if self.of == 1:
            return [part]
        parts: list = [None] * self.of
        dist.gather_object(part, parts if self.is_first else None)
        return parts if self.is_first else []


@contextmanager
def ranks(device: str, processes: int | Literal["auto"]) -> Iterator[Rank]:
    """Enter this process among the ranks; start the others unless torchrun or srun has.

    Args:
        device: `auto`, `cpu`, `cuda`, or a single one by number.
        processes: how many to start, a device each; `auto` is one for every GPU, or as many as the CPUs have room for
            with the threads that each takes. Under torchrun and srun it may be left at 1 or `auto`.

    Raises:
        UserError: several processes cannot each have a device of this name, or another number of them was started.
    """
    device = device_of(device)
    started = _started()
    if started and processes not in (1, "auto", started.here):
        raise UserError(
            f"devices {processes}, but {started.here} processes were started on this machine: leave --devices out, or"
            f" start {processes} (torchrun --nproc-per-node, srun --ntasks-per-node)"
        )
    here, nodes = (started.here, started.nodes) if started else (_count(device, processes), 1)
    if here * nodes == 1:
        yield Rank(0, 1, 1, device)
        return
    if device not in ("cpu", "cuda"):
        raise UserError(f"{here * nodes} processes cannot share device {device}: give --device cuda, or --devices 1")
    if device == "cuda" and here > (gpus := torch.cuda.device_count()):
        raise UserError(f"{here} processes need a GPU each, but there are {gpus}: lower --devices, or --device cpu")
    strategy = DDPStrategy(process_group_backend="gloo", timeout=PATIENCE)  # nothing but text is exchanged
    environment = started.environment if started else LightningEnvironment()
    fabric = Fabric(accelerator=device, devices=here, num_nodes=nodes, strategy=strategy, plugins=environment)
    try:
        fabric.launch()
        yield Rank(fabric.global_rank, fabric.world_size, here, str(fabric.device), fabric.local_rank)
    except BaseException:
        for process in getattr(strategy.launcher, "procs", ()):
            process.send_signal(signal.SIGKILL)  # they may wait for this one
        raise
    dist.destroy_process_group()


class _Started(NamedTuple):
    """Processes that another program has started."""

    here: int
    nodes: int
    environment: ClusterEnvironment


def _started() -> _Started | None:
    if TorchElasticEnvironment.detect():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return _Started(here, int(os.environ["WORLD_SIZE"]) // here, TorchElasticEnvironment())
    if "SLURM_STEP_NUM_TASKS" in os.environ and SLURMEnvironment.detect():
        nodes = int(os.environ["SLURM_STEP_NUM_NODES"])
        here = int(os.environ["SLURM_STEP_NUM_TASKS"]) // nodes
        return _Started(here, nodes, SLURMEnvironment(auto_requeue=False))
    return None


def _count(device: str, processes: int | Literal["auto"]) -> int:
    if processes != "auto":
        if processes < 1:
            raise UserError(f"devices {processes}: give 1 or more, or auto")
        return processes
    if device == "cpu":
        return max(1, min(MOST_ON_CPUS, cpus_of_rank(1) // torch.get_num_threads()))
    return torch.cuda.device_count() if device == "cuda" else 1
