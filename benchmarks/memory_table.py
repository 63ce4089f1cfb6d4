"""The memory tables of docs/scale.md, in Markdown: what each GPU needs for the paper's systems.

    python benchmarks/memory_table.py

Every figure is that of `speechllm plan` for the same configuration: the command stands above each table.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

import torch
import transformers
from torch import nn

from speechllm_pl.apps.plan import SHAPES
from speechllm_pl.models.conformer import ConformerConfig
from speechllm_pl.planning.estimate import GIB, GPUS, Memory, Setup, memory, needed
from speechllm_pl.planning.step_cost import StepCost, StepShape, System, meta_model, step_cost

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
            system = encoders()["18"]
            setup = Setup(replace(system, llm=LLAMA, stride=stride), 80, LONGEST, ADAM, checkpointing=checkpointing)
            cells = [cell(replace(setup, **way)) for way in WAYS.values()]
            yield f"| {stride} ({80 * stride} ms) | {'on' if checkpointing else 'off'} | {' | '.join(cells)} |"


def stage_1() -> Iterator[str]:
    ways = {"1 GPU": WAYS["1 GPU"], "DDP, 8 or 64": WAYS["DDP, 8 or 64"]}
    yield f"| encoder blocks | activation checkpointing | {' | '.join(ways)} |"
    yield "|---" * (2 + len(ways)) + "|"
    for blocks, system in encoders().items():
        for checkpointing in (False, True):
            setup = Setup(system, 500, LONGEST, ADAM, checkpointing=checkpointing)
            cells = [cell(replace(setup, **way)) for way in ways.values()]
            yield f"| {blocks} | {'on' if checkpointing else 'off'} | {' | '.join(cells)} |"


def encoders() -> dict[str, System]:
    """By the number of blocks."""
    return {str(n): System(ConformerConfig(num_blocks=n), ctc_classes=1548, ctc=True) for n in (18, 24, 36)}


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
    system = setup.system
    which = Which(system.encoder.num_blocks, system.stride, system.llm is not None)
    cost = step(which, StepShape.largest(max_duration, LONGEST), setup.checkpointing)
    return memory(setup, weights(which), cost)


class Which(NamedTuple):
    """Names a system, to keep what was found out about it: it does not depend on how many GPUs there are."""

    blocks: int
    stride: int
    llm: bool

    def system(self) -> System:
        return replace(encoders()[str(self.blocks)], stride=self.stride, llm=LLAMA if self.llm else None)


@cache
def weights(which: Which) -> nn.Module:
    return meta_model(which.system())


@cache
def step(which: Which, shape: StepShape, checkpointing: bool) -> StepCost:
    return step_cost(which.system(), shape, checkpointing=checkpointing)


if __name__ == "__main__":
    main()
