"""Length of the batches of validation, `test` and `predict` if `--data.val_max_duration` is `auto`."""

from dataclasses import replace
from typing import Any

from speechllm_pl.apps.plan import setup_here, tell_once
from speechllm_pl.core.errors import in_one_line
from speechllm_pl.core.tensor_sizes import GIB
from speechllm_pl.models.device_memory import total_memory
from speechllm_pl.planning.estimate import Gpu, Setup, decoding_memory, estimate, needed
from speechllm_pl.planning.step_cost import meta_model

TIMES = (8, 4, 2)
"""Multiples of `data.max_duration` to try: a batch that keeps no activations may be longer, and a fuller one
needs fewer steps in all; beyond that, ranks would have too few batches to share."""


def fitting_val_duration(config: Any) -> float:
    """The largest of some multiples of `data.max_duration` that fits beside what training leaves in memory.

    `data.max_duration` itself if none fits, or if there is no plan: the LLM's shape or the precision is not known, or
    its code needs values that a plan's tensors do not have.

    Args:
        config: parsed configuration of a command of the trainer, with a number in `data.max_duration`.
    """
    duration = config.data.max_duration
    try:
        setup = setup_here(config)
        gpu = Gpu(total_memory(setup.gpus // config.trainer.num_nodes), None)
        times = _fitting_times(setup, gpu)
    except Exception as error:  # a run needs no plan, whatever an LLM's own code makes of one
        tell_once(f"data.val_max_duration auto: {duration:g} s of audio a batch, as in training: {in_one_line(error)}")
        return duration
    fit = f"fit {gpu.memory / GIB:.1f} GiB"
    what = f"a batch {fit}" if times > 1 else f"a batch, as in training: no more {fit}"
    tell_once(f"data.val_max_duration auto: {times * duration:g} s of audio {what}")
    return times * duration


def _fitting_times(setup: Setup, gpu: Gpu) -> int:
    """The largest multiple that fits; 1 if none does."""
    validation, model = estimate(setup).validation, meta_model(setup.blueprint)
    for times in TIMES:
        longer = replace(setup, val_max_duration=times * setup.max_duration)
        if needed(replace(validation, decoding=decoding_memory(longer, model)).total(gpu)) <= gpu.memory:
            return times
    return 1
