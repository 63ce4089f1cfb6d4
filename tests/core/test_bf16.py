"""bf16 is chosen by what the machine multiplies fast."""

import pytest
import torch

from speechllm_pl.core.bf16 import bf16_is_faster


@pytest.mark.parametrize("capabilities", [{"amx_bf16": True}, {"amx_bf16": False, "avx512_bf16": True}, {}])
def test_a_cpu_needs_amx_a_gpu_nothing(monkeypatch, capabilities) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert bf16_is_faster(torch.device("cpu")) is capabilities.get("amx_bf16", False)
    assert bf16_is_faster(torch.device("cuda"))
