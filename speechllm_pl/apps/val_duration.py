"""Length of the batches of validation, `test` and `predict` if `--data.val_max_duration` is `auto`."""

from dataclasses import replace
from typing import Any

from speechllm_pl.apps.plan import setup_here, tell_once
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.tensor_sizes import GIB
from speechllm_pl.models.device_memory import total_memory
from speechllm_pl.planning.estimate import Gpu, decoding_memory, estimate, needed
from speechllm_pl.planning.step_cost import meta_model

TIMES = (8, 4, 2)
"""Multiples of `data.max_duration` to try: a batch that keeps no activations may be longer, and a fuller one
needs fewer steps in all; beyond that, ranks would have too few batches to share."""


def fitting_val_duration(config: Any) -> float:
    """The largest of some multiples of `data.max_duration` that fits beside what training leaves in memory.

    `data.max_duration` itself if none fits, or if the plan does not know the LLM's shape or the precision.

    Args:
        config: parsed configuration of a command of the trainer, with a number in `data.max_duration`.
    """
    duration = config.data.max_duration
    try:
        setup = setup_here(config)
    except UserError as error:
        tell_once(f"data.val_max_duration auto: {duration:g} s of audio a batch, as in training: {error}")
        return duration
    gpu = Gpu(total_memory(setup.gpus // config.trainer.num_nodes), None)
    memory = f"{gpu.memory / GIB:.1f} GiB"
    validation, model = estimate(setup).validation, meta_model(setup.blueprint)
    for times in TIMES:
        longer = replace(setup, val_max_duration=times * duration)
        if needed(replace(validation, decoding=decoding_memory(longer, model)).total(gpu)) <= gpu.memory:
            tell_once(f"data.val_max_duration auto: {times * duration:g} s of audio a batch fit {memory}")
            return times * duration
    tell_once(f"data.val_max_duration auto: {duration:g} s of audio a batch, as in training: no more fit {memory}")
    return duration
