"""`speechllm plan`'s memory against a real training step on the CPU.

    python benchmarks/memory_plan.py tiny
    python benchmarks/memory_plan.py 1b

Runs forward, backward and the optimiser of a model with random weights in a fresh process, and compares the most
memory that the process held, above what it held before the model was built, with the estimate for CPU kernels. The
process has taken such a step before: what torch's kernels then keep for good, some 30 MiB, belongs to no model.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import LlamaConfig

from speechllm_pl.models.bridges import ProjectorConfig
from speechllm_pl.models.config import SpeechLlmConfig
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.models.losses import weighted_sum
from speechllm_pl.models.speech_llm import SpeechLLM
from speechllm_pl.optim.muon_adamw import MuonAdamW, grouped
from speechllm_pl.planning.estimate import Setup, memory
from speechllm_pl.planning.step_cost import Blueprint, losses, meta_model, silence, step_cost

TINY_LLM = LlamaConfig(
    hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, vocab_size=384
)
BILLION = LlamaConfig(
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=15,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=32_000,
)
SETUPS = {
    # conf/finetune.yaml with conf/size/tiny.yaml and conf/finetune/tiny.yaml
    "tiny": Setup(
        Blueprint(
            SpeechLlmConfig(
                encoder=ConformerConfig(dim=128, num_blocks=8, num_heads=4, ffn_dim=512, dropout=0.05),
                llm="tiny",
                bridge=ProjectorConfig(1),
                lora_r=32,
                alignment_weight=1.2,
            ),
            ctc_classes=257,
            llm=TINY_LLM,
        ),
        max_duration=30,
        max_seconds=10,
        optimizer=MuonAdamW,
    ),
    # 0.98 B parameters in the LLM, frozen in bf16, and the paper's encoder
    "1b": Setup(
        Blueprint(
            SpeechLlmConfig(llm="1b", llm_dtype="bfloat16", bridge=ProjectorConfig(1), ctc_weight=0.0),
            ctc_classes=1548,
            llm=BILLION,
        ),
        max_duration=40,
        max_seconds=20,
        optimizer=torch.optim.Adam,
    ),
}
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""glibc: whatever is freed goes back to the system at once, so that resident memory is what is in use."""


class Comparison(NamedTuple):
    estimate: float  # bytes
    measured: float

    @property
    def ratio(self) -> float:
        return self.estimate / self.measured


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("setup", choices=SETUPS)
    parser.add_argument("--measure", action="store_true", help="this process runs the step and prints its peak")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(SETUPS[args.setup])))
        return
    found = compare(args.setup)
    print(
        f"{args.setup}: estimate {found.estimate / 2**20:.0f} MiB, measured {found.measured / 2**20:.0f} MiB,"
        f" ratio {found.ratio:.3f}"
    )


def compare(name: str) -> Comparison:
    """The estimate, and the peak of a fresh process that runs the step."""
    command = [sys.executable, __file__, name, "--measure"]
    environment = {**os.environ, **GIVE_BACK, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return Comparison(estimate(SETUPS[name]), json.loads(output))


def estimate(setup: Setup) -> float:
    cost = step_cost(setup.blueprint, setup.shape, autocast=setup.autocast, kernels="cpu")
    return memory(setup, meta_model(setup.blueprint), cost).total


def measure(setup: Setup) -> int:
    """Bytes of resident memory at the peak of two training steps, above those before the model was built."""
    torch.set_num_threads(1)
    torch.backends.cuda.enable_flash_sdp(False)  # as in training on a CPU
    train(setup, steps=1)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    train(setup, steps=2)
    return resident("VmHWM") - before


def train(setup: Setup, steps: int) -> None:
    model = setup.blueprint.build()
    assert isinstance(model, SpeechLLM)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = setup.optimizer(grouped(trained, model.speech.layers))
    batch = silence(setup.shape)
    for _ in range(steps):
        with torch.autocast("cpu", setup.autocast, enabled=setup.autocast is not None):
            loss = weighted_sum(losses(model, batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()


def resident(field: str) -> int:
    """Bytes, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024


if __name__ == "__main__":
    main()
