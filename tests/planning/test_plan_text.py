"""Lines of a plan."""

from dataclasses import replace

import pytest
import torch

from speechllm_pl.core.tensor_sizes import GIB
from speechllm_pl.models.config import CtcConfig
from speechllm_pl.planning.estimate import Gpu, Memory, Parameters, Plan, Setup, Validation
from speechllm_pl.planning.host_memory import HostMemory
from speechllm_pl.planning.plan_text import describe, gib, host_line
from speechllm_pl.planning.step_cost import Blueprint

SETUP = Setup(Blueprint(CtcConfig(), ctc_classes=40), max_duration=80, max_seconds=20, optimizer=torch.optim.Adam)
FOUND = Plan(
    parameters=Parameters(7 * 10**9, 87_300_000, {"bfloat16": 14 * GIB}, {"float32": 0.25 * GIB}),
    memory=Memory(
        weights=14.25 * GIB, gathered=0, gradients=0.25 * GIB, optimizer=0.5 * GIB,
        activations=20 * GIB, logits=5 * GIB, update=0,
    ),
    validation=Validation(lasting=15 * GIB, whole=0, layers=0, decoding=3 * GIB),
    flops=624 * 10**12,
    audio_seconds=80.0,
)  # fmt: skip
LARGE, SMALL = Gpu(80 * GIB, 312e12), Gpu(40 * GIB, None)


def lines(setup: Setup = SETUP, found: Plan = FOUND, gpu: Gpu = LARGE) -> str:
    return "\n".join(describe(setup, found, "a GPU", gpu, 0.5))


def test_every_part_of_the_memory_that_is_there_has_a_line_and_their_sum() -> None:
    text = lines()
    for name, size in (("weights", 14.25), ("gradients", 0.25), ("optimiser", 0.5), ("activations", 20), ("logits", 5)):
        assert any(line.split()[:3] == [name, f"{size:.2f}", "GiB"] for line in text.splitlines())
    assert "gathered" not in text
    assert "in all          40.00 GiB" in text
    assert "parameters, trained: 87.3 M, 0.25 GiB in float32" in text
    assert "parameters, frozen: 7,000.0 M, 14.00 GiB in bfloat16" in text
    assert "(4 x 20 s of audio, 100 tokens of text each)" in text


def test_the_verdict_counts_what_is_lost_and_reserved() -> None:
    assert "needed          43.50 GiB  of 80.0 GiB: it fits" in lines()
    assert "IT DOES NOT FIT" in lines(gpu=SMALL)


def test_a_steps_time_and_a_days_hours_follow_from_the_rate() -> None:
    text = lines(replace(SETUP, gpus=8, sharding="ddp"))  # 624 TFLOP at half of 312 TFLOP/s: 4 s for 8 * 80 s of audio
    assert "expected at 50% of 312 TFLOP/s (--utilisation): 4 s a step, 3,840 hours of audio a day on 8 GPUs" in text
    assert "memory on each of 8 x a GPU, DDP, a whole model on each, " in text
    assert "its time is not known" in lines(gpu=SMALL)


@pytest.mark.parametrize(("within", "said"), [("all", "FSDP over 16,"), ("node", "FSDP over 8 of each node,")])
def test_fsdp_says_over_how_many(within: str, said: str) -> None:
    assert said in lines(replace(SETUP, sharding="fsdp", gpus=16, shard_within=within))


def test_validation_says_whether_the_whole_model_is_gathered() -> None:
    whole = replace(FOUND, validation=replace(FOUND.validation, whole=14 * GIB))
    assert "14.00 GiB are the whole model, gathered" in lines(found=whole)
    large = replace(FOUND, validation=replace(FOUND.validation, whole=79 * GIB))
    assert "ranks in lockstep: a whole copy of 79.00 GiB does not fit" in lines(found=large)


def test_the_hosts_line_names_what_there_is_and_rounds_up() -> None:
    line = host_line(HostMemory(reading=3 * GIB, saving=1.2 * GIB, processes=4 * GIB, loaders=0, devices=0))
    assert "(sbatch --mem): 7 GiB, for the model while it is read 3.00 GiB" in line
    assert "read ahead" not in line
    more = HostMemory(reading=0, saving=1.2 * GIB, processes=0, loaders=0, devices=0)
    assert "(sbatch --mem): 2 GiB, for a checkpoint while it is written 1.20 GiB" in host_line(more)


def test_sizes_stand_below_each_other() -> None:
    assert {len(gib(size)) for size in (0, GIB, 999 * GIB)} == {len("   0.00 GiB")}
