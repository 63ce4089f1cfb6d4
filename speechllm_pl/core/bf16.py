"""When bf16 pays: on GPUs, and on CPUs that multiply bf16 matrices at least twice as fast as fp32 ones."""

import torch


def bf16_is_faster(device: torch.device) -> bool:
    """Whether products of bf16 matrices are faster than those of fp32 on this machine's `device`.

    On CPUs this takes AMX, or AMD's AVX512-BF16 (Zen 4 and later). Others were seen to take twice as long as for fp32
    (docs/results.md).
    """
    if device.type != "cpu":
        return True
    able = torch.cpu.get_capabilities()
    return bool(able.get("amx_bf16")) or (bool(able.get("avx512_bf16")) and "AMD" in able.get("cpu_name", ""))
