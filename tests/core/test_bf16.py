"""bf16 is chosen by what the machine multiplies fast."""

import pytest
import torch

from speechllm_pl.core.bf16 import bf16_is_faster

WITH_AVX512 = {"amx_bf16": False, "avx512_bf16": True}
CPUS = [
    ({"amx_bf16": True, "avx512_bf16": True, "cpu_name": "Intel(R) Xeon(R)"}, True),
    ({**WITH_AVX512, "cpu_name": "AMD EPYC"}, True),
    ({**WITH_AVX512, "cpu_name": "Intel(R) Xeon(R)"}, False),
    ({"amx_bf16": False, "avx512_bf16": False, "cpu_name": "AMD EPYC"}, False),
    (WITH_AVX512, False),
    ({}, False),
]


@pytest.mark.parametrize(("capabilities", "faster"), CPUS)
def test_a_cpu_needs_amx_or_amds_avx512_bf16(monkeypatch, capabilities, faster) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert bf16_is_faster(torch.device("cpu")) is faster


def test_a_gpu_needs_nothing(monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert bf16_is_faster(torch.device("cuda"))
