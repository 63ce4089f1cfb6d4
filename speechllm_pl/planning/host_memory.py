"""Host memory of a job on each node, the amount to request from sbatch with `--mem`."""

from dataclasses import dataclass

from speechllm_pl.core.tensor_sizes import GIB
from speechllm_pl.planning.estimate import Plan, Setup, needed

PROCESS = 4 * GIB
"""Allowance for a process: Python, torch, the libraries of CUDA, pinned buffers."""
LOADER = GIB
"""Allowance for a process that reads ahead, with its finished batches."""


@dataclass(frozen=True)
class HostMemory:
    """Bytes of host memory on a node.

    Attributes:
        reading: whole copies of the model while it is read: one, by the first rank for all, but one for each rank that
            packs NF4. A state that is resumed is mapped, and takes memory that the kernel can take back.
        saving: the trained weights and the optimiser's state, while a checkpoint is written.
        processes: processes that train or evaluate.
        loaders: processes that read ahead.
        devices: on a CPU, what would take a GPU's memory.
    """

    reading: float
    saving: float
    processes: float
    loaders: float
    devices: float

    @property
    def total(self) -> float:
        return max(self.reading, self.saving) + self.processes + self.loaders + self.devices


def host_memory(setup: Setup, plan: Plan, *, workers: int, on_cpu: bool, evaluation: bool = False) -> HostMemory:
    """Estimate the host memory of a plan.

    Args:
        plan: plan of `setup`.
        workers: processes that read ahead for each process.
        on_cpu: whether the model is on the CPU.
        evaluation: whether it is evaluated, each process reading it for itself, one after the other, and not trained.
    """
    processes = min(setup.gpus, setup.gpus_per_node)
    trained = sum(plan.parameters.trained_bytes.values())
    whole = sum(plan.parameters.frozen_bytes.values()) + trained
    copies = processes if setup.quantize != "none" and not evaluation else 1
    on_device = whole + plan.validation.decoding if evaluation else plan.memory.total
    return HostMemory(
        reading=copies * whole,
        saving=0 if evaluation else trained + plan.memory.optimizer * setup.shards,
        processes=processes * PROCESS,
        loaders=processes * workers * LOADER,
        devices=processes * needed(on_device) if on_cpu else 0,
    )
