from dataclasses import replace
from functools import partial

import bitsandbytes
import pytest
import torch
from transformers import LlamaConfig

from speechllm_pl.core.errors import UserError
from speechllm_pl.models.bridges import ProjectorConfig
from speechllm_pl.models.config import SpeechLlmConfig
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.optim.muon_adamw import MuonAdamW
from speechllm_pl.planning.estimate import (
    GIB,
    Gpu,
    Setup,
    count_parameters,
    estimate,
    memory,
    needed,
    optimizer_bytes,
    quantized_weights,
)
from speechllm_pl.planning.step_cost import Blueprint, StepCost, meta_model

LLM = LlamaConfig(hidden_size=128, intermediate_size=352, num_hidden_layers=6, num_attention_heads=4, vocab_size=500)
CONFIG = SpeechLlmConfig(
    encoder=ConformerConfig(dim=96, num_blocks=6, num_heads=2, ffn_dim=256),
    llm="random",
    llm_dtype="bfloat16",
    bridge=ProjectorConfig(1),
    ctc_weight=0.0,
)
BLUEPRINT = Blueprint(CONFIG, ctc_classes=40, llm=LLM)
SETUP = Setup(BLUEPRINT, max_duration=8, max_seconds=4, optimizer=torch.optim.Adam)
COST = StepCost(activations=1000, logits=100, flops=10**12)


def quantized(setup: Setup) -> Setup:
    return replace(setup, blueprint=setup.blueprint.changed(quantize="nf4"))


def test_weights_gradients_and_adams_state_are_those_of_a_real_model() -> None:
    model = BLUEPRINT.build()
    trained = [p for p in model.parameters() if p.requires_grad]
    found = memory(SETUP, meta_model(BLUEPRINT), COST)
    assert found.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    assert found.gradients == sum(p.numel() * 4 for p in trained)
    optimizer = torch.optim.Adam(trained)
    for p in trained:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    state = sum(v.numel() * 4 for p in trained for v in optimizer.state[p].values() if v.ndim)
    assert found.optimizer == pytest.approx(state)


def test_fsdp_splits_what_lasts_and_gathers_layers() -> None:
    model = meta_model(BLUEPRINT)
    whole, halves, eighths = (
        memory(replace(SETUP, sharding="fsdp" if n > 1 else "none", gpus=n), model, COST) for n in (1, 2, 8)
    )
    for name in ("weights", "gradients", "optimizer"):
        assert getattr(halves, name) == getattr(whole, name) / 2
        assert getattr(eighths, name) == getattr(whole, name) / 8
    assert whole.gathered == 0 < halves.gathered == eighths.gathered
    assert halves.activations == whole.activations


def test_within_a_node_weights_are_split_over_its_gpus_alone() -> None:
    model = meta_model(BLUEPRINT)
    flat = replace(SETUP, sharding="fsdp", gpus=32)
    node = replace(flat, shard_within="node", gpus_per_node=4)
    four = memory(replace(flat, gpus=4), model, COST)
    assert memory(node, model, COST) == four != memory(flat, model, COST)
    assert memory(replace(node, gpus=4), model, COST) == four
    with pytest.raises(UserError, match="shard_within 5: 32 ranks"):
        memory(replace(flat, shard_within=5), model, COST)


def test_an_llm_that_is_trained_is_gathered_in_half_its_bytes_where_products_are_bf16() -> None:
    encoder = ConformerConfig(dim=32, num_blocks=1, num_heads=2, ffn_dim=64)  # smaller than a layer of the LLM
    blueprint = BLUEPRINT.changed(encoder=encoder, llm_dtype="float32", lora_r=0, train_llm=True)
    setup, model = replace(SETUP, blueprint=blueprint, sharding="fsdp", gpus=2), meta_model(blueprint)
    layer = 4 * (4 * 128**2 + 3 * 128 * 352 + 2 * 128)  # bytes of projections, feed-forward part and norms
    bf16, fp32 = (memory(replace(setup, autocast=autocast), model, COST) for autocast in (torch.bfloat16, None))
    assert fp32.gathered - bf16.gathered == 3 * layer / 2  # two layers, and the gradients of one
    assert fp32.weights == bf16.weights


def test_validation_gathers_the_whole_model_and_where_that_does_not_fit_decodes_in_lockstep() -> None:
    plan = estimate(replace(SETUP, sharding="fsdp", gpus=8))
    found = plan.validation
    whole = sum(p.numel() * p.element_size() for p in BLUEPRINT.build().parameters())
    assert found.whole == whole
    fitting = needed(found.lasting) + whole / 0.7
    large, small = Gpu(fitting + 1, None), Gpu(fitting - 1, None)
    assert found.total(large) == found.lasting + whole + found.decoding
    assert found.total(small) == found.lasting + plan.memory.gathered + found.decoding < found.total(large)
    by_hand = estimate(replace(SETUP, sharding="fsdp", gpus=8, gather_up_to=whole - 1)).validation
    assert by_hand.total(large) == found.total(small)


def test_a_run_that_trains_but_cannot_validate_does_not_fit() -> None:
    """A long cache of a batch that is longer than those of training."""
    plan = estimate(replace(SETUP, val_max_duration=4000))
    trains = Gpu(needed(plan.memory.total), None)
    assert not plan.fits(trains)
    assert plan.fits(Gpu(needed(plan.validation.total(trains)), None))
    assert estimate(SETUP).fits(trains)


def test_merging_lora_sets_the_adapted_weights_aside_where_they_are_whole() -> None:
    lora, none = (estimate(replace(SETUP, blueprint=BLUEPRINT.changed(lora_r=r))).validation for r in (8, 0))
    adapted = 2 * 6 * 4 * 128**2  # bytes in bf16
    assert lora.decoding - none.decoding == pytest.approx(adapted, rel=0.05)


def test_ddp_holds_its_gradients_twice_unless_buckets_are_views() -> None:
    model = meta_model(BLUEPRINT)
    whole = memory(SETUP, model, COST).gradients
    ddp = replace(SETUP, sharding="ddp", gpus=4)
    assert memory(ddp, model, COST).gradients == 2 * whole
    assert memory(replace(ddp, bucket_view=True), model, COST).gradients == whole


def test_nf4_takes_a_little_more_than_half_a_byte_of_each_layers_matrices() -> None:
    model = meta_model(BLUEPRINT)
    matrices = 6 * (4 * 128 * 128 + 3 * 128 * 352)
    assert sum(p.numel() for p in quantized_weights(model)) == matrices
    saved = memory(SETUP, model, COST).weights - memory(quantized(SETUP), model, COST).weights
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
    model = meta_model(replace(BLUEPRINT, llm=None))
    matrices = sum(p.numel() for p in model.encoder.blocks.parameters() if p.ndim == 2)
    others = sum(p.numel() for p in model.parameters()) - matrices
    assert optimizer_bytes(model, optimizer) == pytest.approx(hidden * matrices + rest * others, rel=0.04)


def test_a_steps_time_follows_from_the_rate_that_is_assumed() -> None:
    plan = estimate(SETUP)
    assert plan.step_seconds(Gpu(GIB, 1e12), 0.5) == pytest.approx(plan.flops / 0.5e12)
    assert plan.step_seconds(Gpu(GIB, None), 0.5) is None
