from dataclasses import replace
from functools import partial

import bitsandbytes
import pytest
import torch
from transformers import LlamaConfig

from speechllm_pl.analysis.plan import (
    GIB,
    Gpu,
    Setup,
    count_parameters,
    estimate,
    largest_batch,
    memory,
    needed,
    optimizer_bytes,
    quantized_weights,
    remedies,
)
from speechllm_pl.models.conformer import ConformerConfig
from speechllm_pl.training.memory import StepCost, System, meta_model
from speechllm_pl.training.optimizers import MuonAdamW

LLM = LlamaConfig(hidden_size=128, intermediate_size=352, num_hidden_layers=6, num_attention_heads=4, vocab_size=500)
SYSTEM = System(ConformerConfig(dim=96, num_blocks=6, num_heads=2, ffn_dim=256), ctc_classes=40, llm=LLM)
SETUP = Setup(SYSTEM, max_duration=8, max_seconds=4, optimizer=torch.optim.Adam)
COST = StepCost(activations=1000, logits=100, flops=10**12)


def test_weights_gradients_and_adams_state_are_those_of_a_real_model() -> None:
    model = SYSTEM.build()
    trained = [p for p in model.parameters() if p.requires_grad]
    found = memory(SETUP, meta_model(SYSTEM), COST)
    assert found.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    assert found.gradients == sum(p.numel() * 4 for p in trained)
    optimizer = torch.optim.Adam(trained)
    for p in trained:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    state = sum(v.numel() * 4 for p in trained for v in optimizer.state[p].values() if v.ndim)
    assert found.optimizer == pytest.approx(state)


def test_fsdp_splits_what_lasts_and_gathers_layers() -> None:
    model = meta_model(SYSTEM)
    whole, halves, eighths = (
        memory(replace(SETUP, sharding="fsdp" if n > 1 else "none", gpus=n), model, COST) for n in (1, 2, 8)
    )
    for name in ("weights", "gradients", "optimizer"):
        assert getattr(halves, name) == getattr(whole, name) / 2
        assert getattr(eighths, name) == getattr(whole, name) / 8
    assert whole.gathered == 0 < halves.gathered == eighths.gathered
    assert halves.activations == whole.activations


def test_ddp_holds_its_gradients_twice_unless_buckets_are_views() -> None:
    model = meta_model(SYSTEM)
    whole = memory(SETUP, model, COST).gradients
    ddp = replace(SETUP, sharding="ddp", gpus=4)
    assert memory(ddp, model, COST).gradients == 2 * whole
    assert memory(replace(ddp, bucket_view=True), model, COST).gradients == whole


def test_nf4_takes_a_little_more_than_half_a_byte_of_each_layers_matrices() -> None:
    model = meta_model(SYSTEM)
    matrices = 6 * (4 * 128 * 128 + 3 * 128 * 352)
    assert sum(p.numel() for p in quantized_weights(model)) == matrices
    saved = memory(SETUP, model, COST).weights - memory(replace(SETUP, quantize="nf4"), model, COST).weights
    assert saved == pytest.approx((2 - 0.516) * matrices, rel=1e-3)
    assert count_parameters(model, "nf4").frozen_bytes["nf4"] == pytest.approx(0.516 * matrices, rel=1e-3)


@pytest.mark.parametrize(
    ("optimizer", "hidden", "rest"),
    [
        (torch.optim.Adam, 8, 8),
        (partial(torch.optim.SGD, momentum=0.9), 4, 4),
        (torch.optim.SGD, 0, 0),
        (MuonAdamW, 4, 8),
        (bitsandbytes.optim.AdamW8bit, 2, 2),
    ],
    ids=["Adam", "SGD with momentum", "SGD", "MuonAdamW", "AdamW8bit"],
)
def test_an_optimisers_state(optimizer: type[torch.optim.Optimizer], hidden: int, rest: int) -> None:
    model = meta_model(replace(SYSTEM, llm=None))
    matrices = sum(p.numel() for p in model.encoder.blocks.parameters() if p.ndim == 2)
    others = sum(p.numel() for p in model.parameters()) - matrices
    assert optimizer_bytes(model, optimizer) == pytest.approx(hidden * matrices + rest * others, rel=0.04)


def test_every_remedy_lowers_the_memory_of_a_run_that_fills_it() -> None:
    setup = replace(SETUP, max_duration=40, sharding="ddp", gpus=8)
    before = estimate(setup).memory.total
    after = {remedy.what: estimate(remedy.setup).memory.total for remedy in remedies(setup)}
    assert len(after) == 6
    assert all(total < before for total in after.values())
    together = next(what for what in after if what.startswith("all of these"))
    assert after[together] == min(after.values())
    assert not any("fsdp" in what and "nf4" in what for what in after)


def test_what_is_on_already_is_not_advised() -> None:
    best = replace(SETUP, system=replace(SYSTEM, stride=3), checkpointing=True, sharding="fsdp", gpus=8)
    assert [remedy.what.split()[0] for remedy in remedies(best)] == ["--data.max_duration"]


def test_the_largest_batch_fits_and_one_more_utterance_does_not() -> None:
    gpu = Gpu(needed(0) + 0.05 * GIB, None)
    found = largest_batch(SETUP, gpu)
    assert found > 4 * SETUP.max_seconds
    assert estimate(replace(SETUP, max_duration=found)).fits(gpu)
    assert not estimate(replace(SETUP, max_duration=found + SETUP.max_seconds)).fits(gpu)
    assert largest_batch(SETUP, Gpu(needed(0), None)) == 0


def test_a_steps_time_follows_from_the_rate_that_is_assumed() -> None:
    plan = estimate(SETUP)
    assert plan.step_seconds(Gpu(GIB, 1e12), 0.5) == pytest.approx(plan.flops / 0.5e12)
    assert plan.step_seconds(Gpu(GIB, None), 0.5) is None
