"""The memory tables of docs/scale.md, in Markdown: what each GPU needs for the paper's systems.

    python benchmarks/memory_table.py

Every figure is that of `speechllm plan` for the same configuration: the command stands above each table.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
import transformers
from torch import nn

from speechllm_pl.apps.plan import SHAPES
from speechllm_pl.models.bridges import ProjectorConfig
from speechllm_pl.models.config import CtcConfig, SpeechLlmConfig
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.planning.estimate import GIB, GPUS, Memory, Setup, memory, needed
from speechllm_pl.planning.step_cost import Blueprint, StepCost, StepShape, meta_model, step_cost

LONGEST = 20.0  # seconds: MLS has no longer utterances
LLAMA = transformers.AutoConfig.from_pretrained(SHAPES / "llama-7b")
ADAM = partial(torch.optim.Adam, lr=5e-4, betas=(0.9, 0.98))
WAYS = {
    "1 GPU": {},
    "1 GPU, NF4": {"quantize": "nf4"},
    "DDP, 8 or 64": {"sharding": "ddp", "gpus": 8},
    "DDP, NF4, 8 or 64": {"sharding": "ddp", "gpus": 8, "quantize": "nf4"},
    "FSDP, 8 or 64": {"sharding": "fsdp", "gpus": 64, "shard_within": "node"},
    "FSDP, 64, `shard_within all`": {"sharding": "fsdp", "gpus": 64},
}
"""How the GPUs share the work, and what differs from one GPU."""


def main() -> None:
    print("\n".join(("Stage 2:", "", *stage_2(), "", "Stage 1:", "", *stage_1())))


def stage_2() -> Iterator[str]:
    yield f"| stride | activation checkpointing | {' | '.join(WAYS)} |"
    yield "|---" * (2 + len(WAYS)) + "|"
    for stride in (1, 3):
        for checkpointing in (False, True):
            setup = Setup(blueprint(described(18, stride)), 80, LONGEST, ADAM, checkpointing=checkpointing)
            cells = [cell(in_way(setup, **way)) for way in WAYS.values()]
            yield f"| {stride} ({80 * stride} ms) | {'on' if checkpointing else 'off'} | {' | '.join(cells)} |"


def stage_1() -> Iterator[str]:
    ways = {"1 GPU": WAYS["1 GPU"], "DDP, 8 or 64": WAYS["DDP, 8 or 64"]}
    yield f"| encoder blocks | activation checkpointing | {' | '.join(ways)} |"
    yield "|---" * (2 + len(ways)) + "|"
    for blocks in (18, 24, 36):
        for checkpointing in (False, True):
            setup = Setup(
                blueprint(CtcConfig(encoder=ConformerConfig(num_blocks=blocks))),
                500,
                LONGEST,
                ADAM,
                checkpointing=checkpointing,
            )
            cells = [cell(replace(setup, **way)) for way in ways.values()]
            yield f"| {blocks} | {'on' if checkpointing else 'off'} | {' | '.join(cells)} |"


def described(blocks: int, stride: int) -> SpeechLlmConfig:
    encoder = ConformerConfig(num_blocks=blocks)
    return SpeechLlmConfig(encoder=encoder, llm="llama-7b", llm_dtype="bfloat16", bridge=ProjectorConfig(stride))


def blueprint(config: CtcConfig) -> Blueprint:
    return Blueprint(config, ctc_classes=1548, llm=LLAMA if isinstance(config, SpeechLlmConfig) else None)


def in_way(setup: Setup, quantize: str = "none", **changes: Any) -> Setup:
    return replace(setup, blueprint=setup.blueprint.changed(quantize=quantize), **changes)


def cell(setup: Setup) -> str:
    """GiB that each GPU needs; then the seconds of the largest batches that fit 40 and 80 GB."""
    batches = [largest(setup, GPUS[name].memory) for name in ("A100-40", "A100-80")]
    return f"{needed(at(setup, setup.max_duration).total) / GIB:.1f} ({batches[0]:.0f}, {batches[1]:.0f} s)"


def largest(setup: Setup, limit: float) -> float:
    """Seconds of the largest batch of the longest utterances, on the straight line through 10 and 20 of them.

    `speechllm plan` runs the step at every size that it tries; the line is good to an utterance, and quick.
    """
    some, more = (needed(at(setup, utterances * LONGEST).total) for utterances in (10, 20))
    return max(0, int(10 + 10 * (limit - some) / (more - some))) * LONGEST


def at(setup: Setup, max_duration: float) -> Memory:
    config = setup.blueprint.config
    if isinstance(config, SpeechLlmConfig):
        config = replace(config, quantize="none")  # neither the step nor the number of weights depends on it
    cost = step(config, StepShape.largest(max_duration, LONGEST), setup.checkpointing)
    return memory(setup, weights(config), cost)


@cache
def weights(config: CtcConfig) -> nn.Module:
    return meta_model(blueprint(config))


@cache
def step(config: CtcConfig, shape: StepShape, checkpointing: bool) -> StepCost:
    return step_cost(blueprint(config), shape, checkpointing=checkpointing)


if __name__ == "__main__":
    main()
