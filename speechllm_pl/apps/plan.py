"""GPU memory and time that a configuration needs, before anything is read or started (`speechllm plan`)."""

import sys
from functools import partial
from math import ceil
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
import transformers
from lightning.pytorch.utilities import rank_zero_only

from speechllm_pl.apps.program_options import PlanOptions
from speechllm_pl.configuration.bounded_yaml import read_configuration
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.sharding_policy import refuse_quantized_shards
from speechllm_pl.core.tensor_sizes import GIB
from speechllm_pl.data.loader import workers_of_cpus
from speechllm_pl.models.config import SpeechLlmConfig
from speechllm_pl.models.device_memory import total_memory
from speechllm_pl.planning.advice import largest_batch, remedies
from speechllm_pl.planning.estimate import GPUS, Gpu, Setup, Sharding, estimate, needed
from speechllm_pl.planning.host_memory import host_memory
from speechllm_pl.planning.plan_text import describe, gib, host_line
from speechllm_pl.planning.step_cost import Blueprint
from speechllm_pl.storage.checkpoints import newest_complete
from speechllm_pl.storage.tokenizers import read_tokenizer

SHAPES = Path("conf/llm")
"""Folder with a config.json for each LLM whose shape is known without a download."""
PAPER_CLASSES = 1548
"""The paper's CTC vocabulary and the blank, assumed if the tokenizer has not been trained yet."""
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "32-true": None, None: None}
"""Types of the computation by `trainer.precision`."""


class NotKnown(UserError):
    """Error for an unknown fact that a plan needs, but not a run."""


def plan(options: PlanOptions, config: Any) -> None:
    """Print the memory and time that a configuration of `fit` needs, and what to change if it does not fit.

    Args:
        config: parsed configuration of `fit`.
    """
    gpu = find_gpu(options.gpu)
    try:
        setup = setup_of(config, options.gpus, options.tokens_per_second, options.gpus_per_node)
    except NotKnown as error:
        if not options.host_memory:
            raise
        print(f"the job gets no --mem, unless MEM= says how much: {error}", file=sys.stderr)
        return
    found = estimate(setup)
    workers = data_workers(config, options.cpus_per_task)
    on_cpu = config.trainer.accelerator == "cpu"
    host = host_memory(setup, found, workers=workers, on_cpu=on_cpu, evaluation=options.evaluation)
    if options.host_memory:
        print(f"{ceil(host.total / GIB)}G")
        return
    print("\n".join(describe(setup, found, options.gpu, gpu, options.utilisation)))
    print(host_line(host))
    if not found.fits(gpu):
        print("\nwhat to change, and what each GPU would then need:")
        for remedy in remedies(setup):
            changed = estimate(remedy.setup)
            verdict = "fits" if changed.fits(gpu) else "does not fit"
            most = max(changed.memory.total, changed.validation.total(gpu))
            print(f"  {gib(needed(most))}  {verdict:<13} {remedy.what}", flush=True)
    elif seconds := largest_batch(setup, gpu):
        print(f"the largest batch that fits, of utterances of {setup.max_seconds:g} s: --data.max_duration {seconds:g}")


def find_gpu(name: str) -> Gpu:
    """Find a GPU by its name or its memory.

    Raises:
        UserError: neither a known GPU nor a number of GiB.
    """
    if name in GPUS:
        return GPUS[name]
    try:
        return Gpu(float(name) * GIB, None)
    except ValueError:
        raise UserError(f"--gpu {name} is not known: give one of {', '.join(GPUS)}, or its memory in GiB") from None


def fitting_duration(config: Any) -> float:
    """Value of `--data.max_duration auto`: the largest batch that fits this machine's devices.

    A resumed run keeps its first value, since its position in the data depends on it.

    Raises:
        UserError: not one utterance of `data.max_seconds` fits.
    """
    recorded = Path(config.run, "config.yaml")
    if recorded.is_file() and newest_complete(Path(config.run, "checkpoints")):
        return read_configuration(recorded)["data"]["max_duration"]
    setup = setup_here(config)
    memory = total_memory(setup.gpus // config.trainer.num_nodes)
    seconds = largest_batch(setup, Gpu(memory, None))
    if not seconds:
        raise UserError(
            f"data.max_duration auto: not one utterance of data.max_seconds = {config.data.max_seconds:g} s fits"
            f" {memory / GIB:.1f} GiB; see what `speechllm plan` advises, or lower data.max_seconds"
        )
    tell_once(f"data.max_duration auto: {seconds:g} s of audio a batch fill {memory / GIB:.1f} GiB")
    return seconds


def tell_once(line: str) -> None:
    """Print a line on the first rank only."""
    if rank_zero_only.rank == 0:  # pyright: ignore[reportFunctionMemberAccess]
        print(line, flush=True)


# from the configuration of `fit` to what it needs


def setup_here(config: Any) -> Setup:
    """`setup_of` with this machine's GPUs, if the trainer takes all available ones."""
    gpus = 0 if config.trainer.accelerator == "cpu" or _devices(config.trainer.devices) else torch.cuda.device_count()
    return setup_of(config, gpus * int(config.trainer.num_nodes) or None, gpus_per_node=gpus or None)


def setup_of(
    config: Any, gpus: int | None = None, tokens_per_second: float = 5.0, gpus_per_node: int | None = None
) -> Setup:
    """Settings of a run that determine its memory and speed.

    Args:
        config: parsed configuration of `fit`.
        gpus: GPUs of all nodes; default is the trainer's number, if it has one.
        gpus_per_node: GPUs of each node; default is the trainer's number, or else 8.

    Raises:
        NotKnown: the LLM's shape is not known here, or the precision is not supported.
        UserError: `fit` would refuse the strategy.
    """
    model, trainer, data = config.model.init_args, config.trainer, config.data
    if trainer.precision not in AUTOCAST:
        known = ", ".join(filter(None, AUTOCAST))
        raise NotKnown(f"plan knows the precisions {known}, not {trainer.precision}: give --trainer.precision")
    devices = _devices(trainer.devices)
    if gpus is None:
        gpus = (devices or 1) * int(trainer.num_nodes)
    strategy, settings, kind = _strategy(trainer.strategy)
    blueprint = blueprint_of(config.model)
    if isinstance(blueprint.config, SpeechLlmConfig) and strategy == "fsdp":
        refuse_quantized_shards(blueprint.config.quantize, kind.__name__)
    return Setup(
        blueprint=blueprint,
        max_duration=data.max_seconds if data.max_duration == "auto" else data.max_duration,
        max_seconds=data.max_seconds,
        val_max_duration=None if data.val_max_duration == "auto" else data.val_max_duration,
        optimizer=partial(resolve_name(model.optimizer.class_path), **(model.optimizer.get("init_args") or {})),
        sharding=strategy if gpus > 1 else "none",
        gpus=gpus,
        gpus_per_node=gpus_per_node or devices or 8,
        shard_within=settings.get("shard_within", "all"),
        bucket_view=bool(settings.get("gradient_as_bucket_view")),
        checkpointing=bool(model.get("activation_checkpointing")),
        autocast=AUTOCAST[trainer.precision],
        tokens_per_second=tokens_per_second,
        gather_up_to=None if (limit := settings.get("gather_up_to_gib")) is None else limit * GIB,
    )


def _devices(devices: Any) -> int | None:
    """Number of devices of a node, if the trainer gets a number or a list of them, else None."""
    if isinstance(devices, list):
        return len(devices)
    return int(devices) if str(devices).isdecimal() and int(devices) else None  # from a shell it is a text


def data_workers(config: Any, cpus_per_task: int) -> int:
    """Processes that read ahead for each training process."""
    workers = config.data.num_workers
    return workers if isinstance(workers, int) else workers_of_cpus(cpus_per_task)


def blueprint_of(model: Any) -> Blueprint:
    """Blueprint from the class and the arguments of a configuration's `model`.

    Raises:
        NotKnown: the LLM's shape is not known here.
    """
    config = resolve_name(model.class_path).config_class.from_record(model.init_args.as_dict())
    llm = llm_shape(config.llm) if isinstance(config, SpeechLlmConfig) else None
    own = config.encoder.own_tokenizer()
    return Blueprint(config, own.vocab_size if own else ctc_classes(model.init_args.tokenizer), llm)


def ctc_classes(tokenizer: str) -> int:
    """Number of CTC classes of the tokenizer's file; the paper's if it does not exist yet."""
    return read_tokenizer(tokenizer).vocab_size if Path(tokenizer).is_file() else PAPER_CLASSES


def llm_shape(name: str) -> transformers.PretrainedConfig:
    """The configuration of a folder, of `conf/llm`, or of the local hub cache. Nothing is downloaded.

    Raises:
        NotKnown: none of these has it.
    """
    ours = SHAPES / Path(name).name
    for place in (Path(name), ours):
        if (place / "config.json").is_file():
            return transformers.AutoConfig.from_pretrained(place)
    try:
        return transformers.AutoConfig.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):
        raise NotKnown(
            f"the shape of LLM {name} is not known here: make it first if it is to be made (make llm), put its"
            f" config.json into {ours}, or give a folder that has one with --model.llm"
        ) from None


def _strategy(strategy: Any) -> tuple[Sharding, dict[str, Any], type]:
    """Sharding by the trainer's strategy, its settings and its class."""
    from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy

    if isinstance(strategy, str):
        return ("fsdp", {}, FSDPStrategy) if "fsdp" in strategy else ("ddp", {}, DDPStrategy)
    kind = resolve_name(strategy.class_path)
    sharded = issubclass(kind, ModelParallelStrategy | FSDPStrategy)
    return ("fsdp" if sharded else "ddp"), dict(strategy.get("init_args") or {}), kind
