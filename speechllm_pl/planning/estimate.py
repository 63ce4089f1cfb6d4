"""Estimate whether a configuration fits a GPU and how fast it will be, from the counts of `step_cost`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from speechllm_pl.core.sharding_policy import ShardWithin, gatherable, group_size
from speechllm_pl.core.tensor_sizes import GIB, dtype_bytes, tensor_bytes
from speechllm_pl.models.config import Quantization, SpeechLlmConfig
from speechllm_pl.models.speech_llm import SpeechLLM
from speechllm_pl.optim.muon_adamw import grouped
from speechllm_pl.planning.step_cost import (
    Blueprint,
    StepCost,
    StepShape,
    decoding_bytes,
    meta_model,
    repeated_layers,
    step_cost,
)

Sharding = Literal["none", "ddp", "fsdp"]


class Gpu(NamedTuple):
    memory: float  # bytes that CUDA reports
    flops: float | None  # dense bf16 operations a second, by the vendor's datasheet


GPUS = {
    "A100-40": Gpu(39.4 * GIB, 312e12),
    "A100-80": Gpu(79.2 * GIB, 312e12),
    "H100": Gpu(79.2 * GIB, 989e12),
    "H200": Gpu(139.8 * GIB, 989e12),
}
RESERVED = 1.5 * GIB
"""Reserve of each GPU's memory: CUDA's context, the libraries' workspaces, NCCL's buffers."""
FRAGMENTATION = 0.05
"""Share of allocated memory that is lost between torch's blocks."""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of an NF4 weight: four bits, a byte of scale for 64 weights, a float for 256 scales (double quantisation)."""


@dataclass(frozen=True)
class Setup:
    """Settings of a run that determine memory and speed.

    Attributes:
        blueprint: what is trained.
        max_duration: seconds of audio a batch on each GPU.
        max_seconds: of the longest utterance.
        optimizer: builds the optimiser from parameter groups.
        sharding: a whole model on each GPU, with gradients reduced by DDP if there are several, or FSDP2.
        gpus: of all nodes.
        gpus_per_node: of each node.
        shard_within: as of `ShardedStrategy`.
        bucket_view: DDP's `gradient_as_bucket_view`: no second copy of the gradients.
        checkpointing: of activations, in LLM layers and encoder blocks.
        autocast: dtype of mixed precision; none computes in fp32.
        tokens_per_second: of text.
        gather_up_to: bytes of the largest model that FSDP gathers whole to validate; by default free memory decides.
        val_max_duration: seconds of audio a batch of validation; by default as in training.
    """

    blueprint: Blueprint
    max_duration: float
    max_seconds: float
    optimizer: Callable[[Any], torch.optim.Optimizer]
    sharding: Sharding = "none"
    gpus: int = 1
    gpus_per_node: int = 8
    shard_within: ShardWithin = "all"
    bucket_view: bool = False
    checkpointing: bool = False
    autocast: torch.dtype | None = torch.bfloat16
    tokens_per_second: float = 5.0
    gather_up_to: float | None = None
    val_max_duration: float | None = None

    @property
    def shards(self) -> int:
        """Number of GPUs over which each weight is split.

        Raises:
            UserError: `shard_within` does not divide them.
        """
        if self.sharding != "fsdp":
            return 1
        return group_size(self.shard_within, self.gpus, min(self.gpus, self.gpus_per_node))

    @property
    def llm(self) -> SpeechLlmConfig | None:
        """Description of the model in stage 2, else None."""
        config = self.blueprint.config
        return config if self.blueprint.llm is not None and isinstance(config, SpeechLlmConfig) else None

    @property
    def quantize(self) -> Quantization:
        """Quantisation of the frozen LLM's linear layers."""
        return self.llm.quantize if self.llm else "none"

    @property
    def shape(self) -> StepShape:
        return StepShape.largest(self.max_duration, self.max_seconds, self.tokens_per_second)


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters, and their bytes in a whole copy by dtype."""

    frozen: int
    trained: int
    frozen_bytes: dict[str, float]
    trained_bytes: dict[str, float]


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU at the largest batch.

    Attributes:
        weights: or this GPU's shard of them.
        gathered: by FSDP, whole layers that are in use.
        gradients: with DDP's buckets.
        optimizer: its state.
        activations: kept for the backward pass, and their gradients.
        logits: with the losses' own tensors.
        update: temporary tensors of the optimiser's step, when activations are freed.
    """

    weights: float
    gathered: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    update: float

    @property
    def total(self) -> float:
        return self.lasting + max(self.gathered + self.activations + self.logits, self.update)

    @property
    def lasting(self) -> float:
        """Bytes in use between steps."""
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True)
class Validation:
    """Bytes on each GPU while dev is decoded.

    Attributes:
        lasting: left there by training.
        whole: the whole model, if FSDP gathers it.
        layers: otherwise gathered at a time, when ranks decode in lockstep.
        decoding: activations without gradients, the LLM's cache, and the weights that LoRA is not merged into.
        gather_up_to: bytes of the largest copy that is gathered; by default free memory decides.
    """

    lasting: float
    whole: float
    layers: float
    decoding: float
    gather_up_to: float | None = None

    def in_lockstep(self, gpu: Gpu) -> bool:
        """Whether ranks decode in lockstep, as `ShardedStrategy` decides."""
        limit = gatherable(gpu.memory - needed(self.lasting)) if self.gather_up_to is None else self.gather_up_to
        return self.whole > limit

    def total(self, gpu: Gpu) -> float:
        return self.lasting + self.decoding + (self.layers if self.in_lockstep(gpu) else self.whole)


@dataclass(frozen=True)
class Plan:
    parameters: Parameters
    memory: Memory
    validation: Validation
    flops: int  # a step on one GPU
    audio_seconds: float  # a step on one GPU

    def fits(self, gpu: Gpu) -> bool:
        """Whether both training and validation fit."""
        return needed(max(self.memory.total, self.validation.total(gpu))) <= gpu.memory

    def step_seconds(self, gpu: Gpu, utilisation: float) -> float | None:
        return self.flops / (gpu.flops * utilisation) if gpu.flops else None


def needed(total: float) -> float:
    """Bytes of a GPU that allocations of `total` bytes need."""
    return total * (1 + FRAGMENTATION) + RESERVED


def estimate(setup: Setup) -> Plan:
    """Estimate parameters, memory on each GPU and work of one step at the largest batch, in seconds for a 7B LLM."""
    model = meta_model(setup.blueprint)
    cost = step_cost(setup.blueprint, setup.shape, autocast=setup.autocast, checkpointing=setup.checkpointing)
    training = memory(setup, model, cost)
    validation = Validation(
        lasting=training.lasting,
        whole=tensor_bytes(model.parameters()) if setup.sharding == "fsdp" else 0,
        layers=training.gathered,
        decoding=decoding_memory(setup, model),
        gather_up_to=setup.gather_up_to,
    )
    return Plan(count_parameters(model, setup.quantize), training, validation, cost.flops, setup.max_duration)


def decoding_memory(setup: Setup, model: nn.Module) -> float:
    """Bytes that decoding a validation batch takes beside the weights of `model`, which `setup` describes."""
    duration = setup.val_max_duration or setup.max_duration
    shape = StepShape.largest(duration, setup.max_seconds, setup.tokens_per_second)
    set_aside = 0
    if setup.sharding != "fsdp" and setup.quantize == "none":  # else nothing is merged
        adapted = (module for module in model.modules() if isinstance(module, LoraLayer))
        set_aside = tensor_bytes(cast(Tensor, layer.get_base_layer().weight) for layer in adapted)
    return decoding_bytes(setup.blueprint, shape, autocast=setup.autocast) + set_aside


def memory(setup: Setup, model: nn.Module, cost: StepCost) -> Memory:
    """Bytes on each GPU: what follows from the parameters of `model`, beside the `cost` of activations."""
    quantized = quantized_weights(model) if setup.quantize == "nf4" else set()
    trained = [p for p in model.parameters() if p.requires_grad]
    shards = setup.shards
    gradients = tensor_bytes(trained) / shards
    if setup.sharding == "ddp" and not setup.bucket_view:
        gradients *= 2
    dequantized = max((p.numel() * setup.llm.dtype.itemsize for p in quantized if setup.llm), default=0)
    return Memory(
        weights=_weight_bytes(model.parameters(), quantized) / shards,
        gathered=_gathered_bytes(model, setup) if setup.sharding == "fsdp" else 0,
        gradients=gradients,
        optimizer=optimizer_bytes(model, setup.optimizer) / shards,
        activations=cost.activations + dequantized,
        logits=cost.logits,
        update=tensor_bytes(trained) / shards,  # on GPUs torch's optimisers work on all weights at once
    )


def count_parameters(model: nn.Module, quantize: Quantization = "none") -> Parameters:
    frozen = [p for p in model.parameters() if not p.requires_grad]
    trained = [p for p in model.parameters() if p.requires_grad]
    quantized = quantized_weights(model) if quantize == "nf4" else set()
    sizes: dict[str, float] = {_name(d): n for d, n in dtype_bytes(p for p in frozen if p not in quantized).items()}
    if quantized:
        sizes["nf4"] = _weight_bytes(quantized, quantized)
    return Parameters(
        sum(p.numel() for p in frozen),
        sum(p.numel() for p in trained),
        sizes,
        {_name(dtype): size for dtype, size in dtype_bytes(trained).items()},
    )


def quantized_weights(model: nn.Module) -> set[Tensor]:
    """Weights that bitsandbytes quantises: those of all linear layers of the LLM except its head and LoRA."""
    if not isinstance(model, SpeechLLM):
        return set()
    return {
        module.weight
        for layer in repeated_layers(model)[-1]
        for module in layer.modules()
        if isinstance(module, nn.Linear) and not module.weight.requires_grad
    }


def _weight_bytes(parameters: Iterable[Tensor], quantized: Iterable[Tensor]) -> float:
    quantized = set(quantized)
    return sum(p.numel() * (NF4_BYTES if p in quantized else p.element_size()) for p in parameters)


def _gathered_bytes(model: nn.Module, setup: Setup) -> float:
    """Bytes gathered at a time: two layers, the one at work and the next one, and all weights outside layers."""
    stacks = repeated_layers(model)
    inside = {p for stack in stacks for layer in stack for p in layer.parameters()}
    outside = tensor_bytes(p for p in model.parameters() if p not in inside)
    trains_llm = setup.llm is not None and setup.llm.train_llm
    halved = trains_llm and setup.autocast == torch.bfloat16  # an LLM that is trained is gathered in bf16
    at_work = 0.0
    for place, stack in enumerate(stacks):
        scale = 0.5 if halved and place else 1.0
        for layer in stack:
            gradients = tensor_bytes(p for p in layer.parameters() if p.requires_grad)
            at_work = max(at_work, scale * (2 * tensor_bytes(layer.parameters()) + gradients))
    return outside + at_work


def optimizer_bytes(model: nn.Module, optimizer: Callable[[Any], torch.optim.Optimizer]) -> float:
    """Bytes of the optimiser's state for all that `model` trains."""
    blocks = nn.ModuleList(repeated_layers(model)[0])
    trained = [p for p in model.parameters() if p.requires_grad]
    hidden, rest = _state_bytes_a_weight(optimizer)
    return sum(
        (hidden if group["hidden_matrices"] else rest) * sum(p.numel() for p in group["params"])
        for group in grouped(trained, blocks)
    )


def _state_bytes_a_weight(optimizer: Callable[[Any], torch.optim.Optimizer]) -> tuple[float, float]:
    """Bytes of state for a weight of a hidden matrix and for another, seen in a step of two small layers.

    A table of optimisers would grow old. The layers are large enough for 8-bit optimisers to quantise their state.
    """
    hidden, other = nn.Linear(512, 512, bias=False), nn.Linear(512, 512, bias=False)
    built = optimizer(grouped([*hidden.parameters(), *other.parameters()], inside=hidden))
    for weight in (hidden.weight, other.weight):
        weight.grad = torch.ones_like(weight)
    built.step()
    sizes = [
        tensor_bytes(value for value in built.state[weight].values() if isinstance(value, Tensor) and value.ndim)
        for weight in (hidden.weight, other.weight)
    ]
    return sizes[0] / hidden.weight.numel(), sizes[1] / other.weight.numel()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
