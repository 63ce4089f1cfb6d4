"""Remedies for a run that does not fit its GPUs, and the largest batch that fits."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from speechllm_pl.models.bridges import ProjectorConfig
from speechllm_pl.planning.estimate import Gpu, Setup, estimate, needed


class Remedy(NamedTuple):
    what: str
    setup: Setup


def remedies(setup: Setup) -> Iterator[Remedy]:
    """Settings that would lower the memory of a run, the least costly first; each alone, then together."""
    together, names = setup, []
    for what, change, alone in _changes(setup):
        yield Remedy(what, change(setup))
        if not alone:
            together, names = change(together), [*names, what]
    if len(names) > 1:
        yield Remedy(f"all of these: {'; '.join(names)}", together)


def _changes(setup: Setup) -> Iterator[tuple[str, Callable[[Setup], Setup], bool]]:
    """Changes with their command-line options, and whether each excludes others (NF4 excludes FSDP)."""

    def to(**settings: Any) -> Callable[[Setup], Setup]:
        return lambda former: replace(former, **settings)

    def to_model(**settings: Any) -> Callable[[Setup], Setup]:
        return lambda former: replace(former, blueprint=former.blueprint.changed(**settings))

    frozen_llm = setup.llm if setup.llm is not None and not setup.llm.train_llm else None
    if frozen_llm and frozen_llm.dtype == torch.float32 and setup.autocast == torch.bfloat16:
        yield "--model.llm_dtype bfloat16 (products are in bf16 anyway)", to_model(llm_dtype="bfloat16"), False
    if not setup.checkpointing:
        yield "--model.activation_checkpointing true (a third more time)", to(checkpointing=True), False
    half = setup.max_duration / 2
    yield f"--data.max_duration {half:g} (accumulate gradients over twice as many)", to(max_duration=half), False
    if setup.llm is not None:
        if isinstance(setup.llm.bridge, ProjectorConfig) and setup.llm.bridge.stride < 3:
            yield "--model.bridge.stride 3 (240 ms an embedding)", to_model(bridge=ProjectorConfig(3)), False
        if frozen_llm and setup.quantize == "none" and setup.sharding != "fsdp":
            yield "--model.quantize nf4", to_model(quantize="nf4"), False
    if setup.sharding != "fsdp":
        gpus = max(setup.gpus, 8)
        yield f"TRAINER=fsdp over {gpus} GPUs", to(sharding="fsdp", gpus=gpus, shard_within="node"), True
    elif setup.shards < setup.gpus:
        what = "--trainer.strategy.init_args.shard_within all (layers are then gathered between nodes)"
        yield what, to(shard_within="all"), False


def largest_batch(setup: Setup, gpu: Gpu) -> float:
    """Seconds of audio of the largest batch that fits, in utterances of `max_seconds`; 0 if none fits."""

    def used(utterances: int) -> float:
        return needed(estimate(replace(setup, max_duration=utterances * setup.max_seconds)).memory.total)

    one = used(1)
    if one > gpu.memory:
        return 0.0
    # Memory is the largest of some straight lines in the number of utterances. The first one may lead too far; the
    # chord from one utterance to there lies above all of them.
    utterances, chord = 1, used(2) - one
    while True:
        utterances = 1 + int((gpu.memory - one) / chord)
        if (size := used(utterances)) <= gpu.memory:
            return utterances * setup.max_seconds
        chord = (size - one) / (utterances - 1)
