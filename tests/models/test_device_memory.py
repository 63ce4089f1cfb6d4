"""Memory of a device, of a CPU as the system tells it and of a GPU as CUDA would."""

from types import SimpleNamespace

import pytest
import torch

from speechllm_pl.models.device_memory import free_memory, total_memory

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("_no_gpu")
def test_processes_share_the_machines_memory() -> None:
    with open("/proc/meminfo") as file:
        total = 1024 * next(int(line.split()[1]) for line in file if line.startswith("MemTotal:"))
    assert total_memory(1) == pytest.approx(total, rel=0.01)
    assert total_memory(4) == total_memory(1) / 4 == free_memory(CPU, 4)
    assert total_memory(0) == total_memory(1)


def test_a_gpu_is_a_processs_own_and_torchs_empty_blocks_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (20, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 35)
    assert total_memory(8) == 80
    assert free_memory(GPU, 8) == 20 + (50 - 35)
