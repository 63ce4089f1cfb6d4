"""What a training job takes of each node's own memory, beside its GPUs': what sbatch is to be asked for (`--mem`)."""

from dataclasses import dataclass

from speechllm_pl.core.device_memory import GIB
from speechllm_pl.planning.estimate import Plan, Setup, needed

PROCESS = 4 * GIB
"""Allowed for a training process: Python, torch, the libraries of CUDA, pinned buffers."""
LOADER = GIB
"""Allowed for a process that reads ahead, with its batches that are ready."""


@dataclass(frozen=True)
class HostMemory:
    """Bytes of a node.

    Attributes:
        reading: whole copies of the model while it is read; the first rank reads for all, but for NF4, which each
            rank packs for itself.
        saving: the trained weights and the optimiser's state, while a checkpoint is written.
        processes: training processes.
        loaders: processes that read ahead.
        devices: what takes a GPU's memory otherwise.
    """

    reading: float
    saving: float
    processes: float
    loaders: float
    devices: float

    @property
    def total(self) -> float:
        return max(self.reading, self.saving) + self.processes + self.loaders + self.devices


def host_memory(setup: Setup, plan: Plan, *, workers: int, on_cpu: bool) -> HostMemory:
    """
    Args:
        plan: of `setup`.
        workers: processes that read ahead for each training process.
        on_cpu: whether the model is trained on the CPU.
    """
    processes = min(setup.gpus, setup.gpus_per_node)
    copies = processes if setup.quantize != "none" else 1
    parameters = plan.parameters
    whole = sum(parameters.frozen_bytes.values()) + sum(parameters.trained_bytes.values())
    saved = sum(parameters.trained_bytes.values()) + plan.memory.optimizer * setup.shards
    return HostMemory(
        reading=copies * whole,
        saving=saved,
        processes=processes * PROCESS,
        loaders=processes * workers * LOADER,
        devices=processes * needed(plan.memory.total) if on_cpu else 0,
    )
