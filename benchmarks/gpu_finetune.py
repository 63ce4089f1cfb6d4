"""Stage 2 at the paper's scale on one GPU: step time, MFU, peak memory, and decoding. Needs this package alone.

    python benchmarks/gpu_finetune.py                      # the LLaMA-7B shape, on a GPU
    python benchmarks/gpu_finetune.py --shape tiny         # the same path in a minute, anywhere

Weights are random and made on the device in bf16; audio is silence and text one token again and again: speed and
memory do not depend on either. Prints a Markdown table, then one JSON object.

MFU is the floating point operations that the model needs for a step, over the step's time and the GPU's bf16 rate.
They are counted by torch while the step runs on fake tensors: two for a multiply-add of matrix products,
convolutions and attention. Frozen weights have no gradient, so they cost 4 per weight and token where trained ones
cost 6. What activation checkpointing computes again is work, but not the model's, so it is not counted.
"""

import argparse
import gc
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
import transformers
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from speechllm_pl.core.errors import UserError
from speechllm_pl.models.adjustments import checkpoint_activations
from speechllm_pl.models.bridges import ProjectorConfig
from speechllm_pl.models.config import SpeechLlmConfig
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.models.losses import weighted_sum
from speechllm_pl.models.speech_llm import SpeechLLM
from speechllm_pl.planning.estimate import GIB, GPUS, Setup, memory
from speechllm_pl.planning.step_cost import (
    Blueprint,
    SilentBatch,
    StepShape,
    losses,
    meta_model,
    repeated_layers,
    silence,
    step_cost,
)
from speechllm_pl.training.sharding import shard

ROOT = Path(__file__).parents[1]
TINY_LLM = transformers.LlamaConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, vocab_size=100
)
UTTERANCE_SECONDS = 20.0
OPTIMIZER = torch.optim.Adam


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        seconds: of audio a step.
        stride: encoder frames an embedding.
        checkpointing: of activations.
        fsdp: `fully_shard` per layer and block, on one rank: what wrapping costs.
        nf4: the frozen LLM's linear layers in four bits.
        compiled: `torch.compile` of the encoder.
    """

    seconds: float
    stride: int
    checkpointing: bool = False
    fsdp: bool = False
    nf4: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        options = [name for name in ("checkpointing", "fsdp", "nf4", "compiled") if getattr(self, name)]
        return f"{self.seconds:g} s at {80 * self.stride} ms{''.join(f', {option}' for option in options)}"


VARIANTS = (
    Variant(80, 1),
    Variant(80, 3),
    Variant(240, 1),
    Variant(240, 3),
    Variant(80, 1, checkpointing=True),
    Variant(240, 1, checkpointing=True),
    Variant(80, 1, fsdp=True),
    Variant(80, 1, fsdp=True, checkpointing=True),
    Variant(80, 1, nf4=True),
    Variant(80, 1, compiled=True),
)


class Training(NamedTuple):
    """Measurements of one row of the table."""

    step_seconds: float
    audio_seconds_per_second: float
    model_flops: int
    mfu: float | None
    peak_gib: float | None
    planned_gib: float


class Bench:
    """Builds and measures on one device.

    Args:
        shape: `7b` or `tiny`.
        device: where.
        peak_flops: of the device in bf16; none leaves MFU out.
        steps: timed ones, after two that are not.
        scale: of every batch's seconds.
    """

    def __init__(self, shape: str, device: torch.device, peak_flops: float | None, steps: int, scale: float):
        self.device, self.peak_flops, self.steps, self.scale = device, peak_flops, steps, scale
        tiny = ConformerConfig(dim=32, num_blocks=2, num_heads=2, ffn_dim=64)
        encoder = ConformerConfig() if shape == "7b" else tiny
        self.blueprint = Blueprint(
            SpeechLlmConfig(encoder=encoder, llm=shape, llm_dtype="bfloat16", ctc_weight=0.0),
            ctc_classes=1548,
            llm=transformers.AutoConfig.from_pretrained(ROOT / "conf/llm/llama-7b") if shape == "7b" else TINY_LLM,
        )

    def build(self, variant: Variant) -> "Loss":
        blueprint = self.blueprint.changed(bridge=ProjectorConfig(variant.stride))
        with self.device:
            model = cast(SpeechLLM, blueprint.build())
        if variant.nf4:
            quantize(model, self.device)
        if variant.checkpointing:
            checkpoint_activations(chain.from_iterable(repeated_layers(model)))
        if variant.compiled:
            model.speech.encoder.compile()
        loss = Loss(model)
        if variant.fsdp:
            layers = chain.from_iterable(repeated_layers(model))
            shard(loss, layers, init_device_mesh(self.device.type, (1,)))
        return loss

    def train(self, variant: Variant) -> Training:
        shape = StepShape.largest(variant.seconds * self.scale, UTTERANCE_SECONDS)
        blueprint = self.blueprint.changed(
            bridge=ProjectorConfig(variant.stride), quantize="nf4" if variant.nf4 else "none"
        )
        setup = Setup(
            blueprint,
            shape.audio_seconds,
            UTTERANCE_SECONDS,
            OPTIMIZER,
            sharding="fsdp" if variant.fsdp else "none",
            checkpointing=variant.checkpointing,
        )
        cost = step_cost(blueprint, shape, checkpointing=variant.checkpointing)
        flops = step_cost(blueprint, shape).flops if variant.checkpointing else cost.flops
        planned = memory(setup, meta_model(blueprint), cost)
        self._reset()
        seconds = self._time_steps(self.build(variant), silence(shape, self.device))
        peak = torch.cuda.max_memory_allocated() / GIB if self._on_gpu else None
        return Training(
            step_seconds=seconds,
            audio_seconds_per_second=shape.audio_seconds / seconds,
            model_flops=flops,
            mfu=flops / seconds / self.peak_flops if self.peak_flops else None,
            peak_gib=peak,
            planned_gib=planned.total / GIB,
        )

    def decode(self, utterances: int, seconds: float = 10.0, tokens: int = 50) -> float:
        """Tokens a second over a batch, encoder included; every utterance gets as many."""
        self._reset()
        model = self.build(Variant(seconds, 3)).model.eval()
        batch = silence(StepShape(seconds * self.scale, utterances), self.device)
        best = float("inf")
        for _ in range(2):
            self._synchronize()
            started = time.perf_counter()
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16):
                audio = model.listen(batch.waveforms)
                columns = model.prompt(audio, batch.no_text)
                embeddings = columns.embeddings.to(model.text_embeddings.dtype)
                given = {"min_new_tokens": tokens, "max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
                cast(Any, model.llm).generate(inputs_embeds=embeddings, attention_mask=columns.mask, **given)
            self._synchronize()
            best = min(best, time.perf_counter() - started)
        return utterances * tokens / best

    def _time_steps(self, model: "Loss", batch: SilentBatch) -> float:
        """Seconds of a step, after two that load kernels and make the optimiser's state."""
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = OPTIMIZER(trained, lr=1e-4)
        for number in range(2 + self.steps):
            if number == 2:
                self._synchronize()
                started = time.perf_counter()
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = model(batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
        self._synchronize()
        return (time.perf_counter() - started) / self.steps  # pyright: ignore[reportPossiblyUnboundVariable]

    @property
    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def _synchronize(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()

    def _reset(self) -> None:
        gc.collect()
        if self._on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


class Loss(nn.Module):
    """The model and its loss in one call, which is what FSDP gathers weights for."""

    def __init__(self, model: SpeechLLM):
        super().__init__()
        self.model = model

    def forward(self, batch: SilentBatch) -> Tensor:
        return weighted_sum(losses(self.model, batch))


def quantize(model: SpeechLLM, device: torch.device) -> None:
    """Put the LLM's frozen linear layers into NF4 with double quantisation, as `--model.quantize nf4` loads them."""
    for layer in repeated_layers(model)[-1]:
        for module in list(layer.modules()):
            for name, child in list(module.named_children()):
                if type(child) is nn.Linear and not child.weight.requires_grad:
                    setattr(module, name, _nf4(child, device))


def _nf4(linear: nn.Linear, device: torch.device) -> Linear4bit:
    packing = {"compress_statistics": True, "quant_type": "nf4"}
    size = linear.in_features, linear.out_features
    made = Linear4bit(*size, bias=False, compute_dtype=torch.bfloat16, device="meta", **packing)
    made.weight = Params4bit(linear.weight.data, requires_grad=False, **packing)
    return made.to(device)


@contextmanager
def one_rank(device: torch.device) -> Iterator[None]:
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=("7b", "tiny"), default="7b")
    parser.add_argument("--steps", type=int, default=5, help="timed ones")
    parser.add_argument("--scale", type=float, default=1.0, help="of every batch's seconds")
    parser.add_argument("--output", type=Path, help="a file for the JSON object, which is printed too")
    parser.add_argument("--only", default="", help="rows whose name this regular expression finds, such as 'fsdp|nf4'")
    args = parser.parse_args()
    try:
        device = find_device(args.shape)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    bench = Bench(args.shape, device, peak_flops(device), args.steps, args.scale)
    with one_rank(device):
        run(bench, [variant for variant in VARIANTS if re.search(args.only, variant.name)], args.output)


def find_device(shape: str) -> torch.device:
    """Device to measure on: a GPU if there is one.

    Raises:
        UserError: the 7B shape needs a GPU.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    if shape == "7b":
        raise UserError("the 7B shape needs a CUDA device, and there is none: --shape tiny runs on the CPU")
    return torch.device("cpu")


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 operations a second by the datasheet, where the GPU is a known one."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((gpu.flops for known, gpu in GPUS.items() if known.split("-")[0] in name), None)


def run(bench: Bench, variants: list[Variant], output: Path | None) -> None:
    where = torch.cuda.get_device_name() if bench.device.type == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}; LoRA R=8, bf16 autocast, utterances of {UTTERANCE_SECONDS:g} s\n")
    print("| audio a step | step s | audio s / s | model TFLOP | MFU % | peak GiB | planned GiB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    record: dict[str, Any] = {"device": where, "torch": torch.__version__, "training": {}, "decoding": {}}
    for variant in variants:
        found = attempt(lambda variant=variant: bench.train(variant))
        record["training"][variant.name] = found._asdict() if isinstance(found, Training) else found
        print(row(variant, found), flush=True)
    print("\n| utterances decoded together | tokens a second |\n|---|---|")
    for utterances in (8, 32):
        rate = attempt(lambda utterances=utterances: bench.decode(utterances))
        record["decoding"][utterances] = rate
        print(f"| {utterances} | {rate:.0f} |" if isinstance(rate, float) else f"| {utterances} | {rate} |", flush=True)
    text = json.dumps(record)
    print(f"\n{text}")
    if output is not None:
        output.write_text(text + "\n")


def attempt(measure: Callable[[], Any]) -> Any:
    """Result of `measure`, or the words that stand for it where memory did not suffice."""
    try:
        return measure()
    except torch.cuda.OutOfMemoryError:
        return "out of memory"


def row(variant: Variant, found: Training | str) -> str:
    if isinstance(found, str):
        return f"| {variant.name} | {found} | | | | | |"
    mfu = "" if found.mfu is None else f"{100 * found.mfu:.0f}"
    peak = "" if found.peak_gib is None else f"{found.peak_gib:.1f}"
    return (
        f"| {variant.name} | {found.step_seconds:.3f} | {found.audio_seconds_per_second:.0f} |"
        f" {found.model_flops / 1e12:.3g} | {mfu} | {peak} | {found.planned_gib:.2f} |"
    )


if __name__ == "__main__":
    main()
