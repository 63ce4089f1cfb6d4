"""Memory that a node needs beside that of its GPUs."""

from dataclasses import replace

import pytest
from test_estimate import BLUEPRINT, SETUP, quantized

from speechllm_pl.core.tensor_sizes import GIB
from speechllm_pl.planning.estimate import estimate, needed
from speechllm_pl.planning.host_memory import HostMemory, host_memory


def test_a_node_needs_a_copy_of_the_model_and_room_for_its_processes() -> None:
    plan = estimate(replace(SETUP, sharding="ddp", gpus=16))
    setup = replace(SETUP, sharding="ddp", gpus=16, gpus_per_node=8)
    one = host_memory(setup, plan, workers=2, on_cpu=False)
    assert one.reading == sum(p.numel() * p.element_size() for p in BLUEPRINT.build().parameters())
    assert one.processes == 8 * 4 * GIB
    assert one.loaders == 16 * GIB
    assert host_memory(quantized(setup), plan, workers=2, on_cpu=False).reading == 8 * one.reading
    on_cpu = host_memory(setup, plan, workers=2, on_cpu=True)
    assert on_cpu.total - one.total == pytest.approx(8 * needed(plan.memory.total))


def test_an_evaluation_reads_one_model_after_the_other_and_saves_none() -> None:
    setup = replace(SETUP, sharding="ddp", gpus=8, gpus_per_node=8)
    plan = estimate(setup)
    training = host_memory(setup, plan, workers=2, on_cpu=False)
    evaluation = host_memory(quantized(setup), plan, workers=2, on_cpu=False, evaluation=True)
    assert training.saving > 0
    assert evaluation == replace(training, saving=0)
    on_cpu = host_memory(setup, plan, workers=0, on_cpu=True, evaluation=True)
    assert on_cpu.devices == pytest.approx(8 * needed(training.reading + plan.validation.decoding))


def test_reading_and_saving_are_not_at_one_time() -> None:
    reads = HostMemory(reading=5, saving=3, processes=2, loaders=1, devices=0)
    assert reads.total == 8
    assert replace(reads, saving=9).total == 12
