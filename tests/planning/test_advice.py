"""What is advised lowers the memory, and the largest batch fits."""

from dataclasses import replace

from test_estimate import BLUEPRINT, SETUP

from speechllm_pl.core.tensor_sizes import GIB
from speechllm_pl.models.bridges import ProjectorConfig
from speechllm_pl.planning.advice import largest_batch, remedies
from speechllm_pl.planning.estimate import Gpu, estimate, needed


def test_every_remedy_lowers_the_memory_of_a_run_that_fills_it() -> None:
    setup = replace(SETUP, max_duration=40, sharding="ddp", gpus=8)
    before = estimate(setup).memory.total
    after = {remedy.what: estimate(remedy.setup).memory.total for remedy in remedies(setup)}
    assert len(after) == 6
    assert all(total < before for total in after.values())
    together = next(what for what in after if what.startswith("all of these"))
    assert after[together] == min(after.values())
    assert not any("fsdp" in what and "nf4" in what for what in after)


def test_a_frozen_llm_in_fp32_is_the_first_thing_to_change_where_products_are_in_bf16() -> None:
    setup = replace(SETUP, blueprint=BLUEPRINT.changed(llm_dtype="float32"))
    first = next(remedies(setup))
    assert first.what.startswith("--model.llm_dtype bfloat16 ")
    assert estimate(first.setup).memory.weights == estimate(SETUP).memory.weights
    trained = replace(SETUP, blueprint=setup.blueprint.changed(train_llm=True, lora_r=0))
    for other in (SETUP, replace(setup, autocast=None), trained):
        assert not any("llm_dtype" in remedy.what for remedy in remedies(other))


def test_what_is_on_already_is_not_advised() -> None:
    best = replace(
        SETUP, blueprint=BLUEPRINT.changed(bridge=ProjectorConfig(3)), checkpointing=True, sharding="fsdp", gpus=8
    )
    assert [remedy.what.split()[0] for remedy in remedies(best)] == ["--data.max_duration"]


def test_the_largest_batch_fits_and_one_more_utterance_does_not() -> None:
    gpu = Gpu(needed(0) + 0.05 * GIB, None)
    found = largest_batch(SETUP, gpu)
    assert found > 4 * SETUP.max_seconds
    assert estimate(replace(SETUP, max_duration=found)).fits(gpu)
    assert not estimate(replace(SETUP, max_duration=found + SETUP.max_seconds)).fits(gpu)
    assert largest_batch(SETUP, Gpu(needed(0), None)) == 0
