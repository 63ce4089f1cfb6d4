"""When bf16 pays: GPUs and CPUs with AMX multiply bf16 matrices several times as fast as fp32, other CPUs do not."""

import torch


def bf16_is_faster(device: torch.device) -> bool:
    """Whether products of bf16 matrices are faster than those of fp32 on this machine's `device`."""
    return device.type != "cpu" or bool(torch.cpu.get_capabilities().get("amx_bf16"))
