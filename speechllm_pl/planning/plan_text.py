"""The lines of a plan, as `speechllm plan` prints them."""

from math import ceil

from speechllm_pl.core.tensor_sizes import GIB
from speechllm_pl.planning.estimate import (
    FRAGMENTATION,
    RESERVED,
    Gpu,
    Memory,
    Parameters,
    Plan,
    Setup,
    Validation,
    needed,
)
from speechllm_pl.planning.host_memory import HostMemory


def gib(size: float) -> str:
    return f"{size / GIB:7.2f} GiB"


def describe(setup: Setup, found: Plan, name: str, gpu: Gpu, utilisation: float) -> list[str]:
    """Format the lines of a plan."""
    shape, total = setup.shape, max(found.memory.total, found.validation.total(gpu))
    return [
        *_parameter_lines(found.parameters),
        "",
        f"memory on each of {setup.gpus} x {name}, {_parallel(setup)}, the largest batch"
        f" ({shape.utterances} x {shape.seconds:.3g} s of audio, {shape.tokens} tokens of text each):",
        *_memory_lines(found.memory),
        f"  {'validation':<13} {gib(found.validation.total(gpu))}  {_validation_note(found.validation, gpu)}",
        f"  {'and':<13} {gib(needed(total) - total)}  {FRAGMENTATION:.0%} lost between blocks, and"
        f" {RESERVED / GIB:g} GiB for CUDA and its libraries",
        f"  {'needed':<13} {gib(needed(total))}  of {gpu.memory / GIB:.1f} GiB:"
        f" {'it fits' if found.fits(gpu) else 'IT DOES NOT FIT'}",
        "",
        *_time_lines(setup, found, gpu, utilisation),
    ]


def _parallel(setup: Setup) -> str:
    fsdp = f"FSDP over {setup.shards}" if setup.shards == setup.gpus else f"FSDP over {setup.shards} of each node"
    return {"none": "a whole model", "ddp": "DDP, a whole model on each", "fsdp": fsdp}[setup.sharding]


def _parameter_lines(parameters: Parameters) -> list[str]:
    rows = (
        ("trained", parameters.trained, parameters.trained_bytes),
        ("frozen", parameters.frozen, parameters.frozen_bytes),
    )
    return [
        f"parameters, {what}: {count / 1e6:,.1f} M"
        + "".join(f", {gib(size).strip()} in {dtype}" for dtype, size in sizes.items())
        for what, count, sizes in rows
    ]


def _memory_lines(memory: Memory) -> list[str]:
    notes = {
        "weights": "",
        "gathered": "whole layers in use, and what is in no layer",
        "gradients": "of the trained weights, with DDP's buckets if there are any",
        "optimiser": "its state",
        "activations": "at the peak of forward and backward",
        "logits": "at the same moment, with the losses' tensors",
    }
    sizes = {name: getattr(memory, name.replace("optimiser", "optimizer")) for name in notes}
    rows = [f"  {name:<13} {gib(size)}  {notes[name]}".rstrip() for name, size in sizes.items() if size]
    return [*rows, f"  {'in all':<13} {gib(memory.total)}"]


def host_line(host: HostMemory) -> str:
    parts = (
        (host.reading, "the model while it is read"),
        (host.saving, "a checkpoint while it is written"),
        (host.processes, "training processes"),
        (host.loaders, "processes that read ahead"),
        (host.devices, "the model on the CPU"),
    )
    known = ", ".join(f"{what} {gib(size).strip()}" for size, what in parts if size)
    return f"each node's own memory (sbatch --mem): {ceil(host.total / GIB)} GiB, for {known}"


def _validation_note(validation: Validation, gpu: Gpu) -> str:
    if not validation.whole:
        return "in all, while dev is decoded"
    if validation.in_lockstep(gpu):
        return (
            f"in all, while dev is decoded in shards, ranks in lockstep: a whole copy of"
            f" {gib(validation.whole).strip()} does not fit"
        )
    return f"in all, while dev is decoded: {gib(validation.whole).strip()} are the whole model, gathered"


def _time_lines(setup: Setup, found: Plan, gpu: Gpu, utilisation: float) -> list[str]:
    work = f"a step: {found.flops / 1e12:.1f} TFLOP on each GPU for {found.audio_seconds:g} s of audio"
    seconds = found.step_seconds(gpu, utilisation)
    if seconds is None or gpu.flops is None:
        return [f"{work}; its time is not known for a GPU that has no name here"]
    hours = setup.gpus * found.audio_seconds / seconds * 86_400 / 3_600
    return [
        work,
        f"expected at {utilisation:.0%} of {gpu.flops / 1e12:.0f} TFLOP/s (--utilisation): {seconds:.3g} s a step,"
        f" {hours:,.0f} hours of audio a day on {setup.gpus} GPU{'s' if setup.gpus > 1 else ''}",
    ]
