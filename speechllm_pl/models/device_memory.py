"""Memory of a device: all of a GPU's, or a process's share of the machine's on a CPU."""

import os

import torch


def total_memory(processes: int) -> float:
    """Bytes of the GPU if there is one, else the share of each of `processes` in the machine's memory."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / max(1, processes)


def free_memory(device: torch.device, processes: int) -> float:
    """Bytes that this process may still allocate on `device`; on a CPU its whole share."""
    if device.type != "cuda":
        return total_memory(processes)
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
