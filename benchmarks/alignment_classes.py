"""CPU time of a training step of stage 2 with every token as a class of the direct alignment, and with sampled ones.

    python benchmarks/alignment_classes.py runs/demo_english/lora_r8 --data data/spoken_english

Each batch is computed with both in turn, so that whatever else the machine does bears on both alike. One thread, fp32.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from machine import describe
from training_speed import as_trained

from speechllm_pl.core.padded import Padded
from speechllm_pl.core.prompt import pad_tokens
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.buckets import Buckets
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.epoch_plan import EpochBatches
from speechllm_pl.data.manifest import read_manifest
from speechllm_pl.models.losses import weighted_sum
from speechllm_pl.training.llm_finetuning import LlmFinetuning


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data/spoken_english"))
    parser.add_argument("--sampled", type=int, nargs="+", default=[1024])
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--max-duration", type=float, default=30.0, help="seconds of audio a batch")
    args = parser.parse_args()
    torch.set_num_threads(1)
    module = as_trained(args.run)
    assert isinstance(module, LlmFinetuning)
    cuts = read_manifest(args.data / "train.jsonl.gz")
    plan = list(EpochBatches(Buckets(cuts.durations, args.max_duration, num_buckets=10)))
    choices = [0, *args.sampled]
    measured: dict[int, list[tuple[float, float]]] = {sampled: [] for sampled in choices}
    for number, planned in enumerate(plan[: 1 + args.batches]):
        batch = SpeechDataset(cuts)[planned]
        for sampled in choices:
            times = step_seconds(module, batch, sampled)
            if number:  # the first warms up
                measured[sampled].append(times)
    print(describe(1))
    for sampled, times in measured.items():
        step, alignment = np.mean(times, axis=0)
        print(f"{sampled or 'all'} classes: {step:.2f} s of CPU time a step, {alignment:.3f} s of them the alignment's")


def step_seconds(module: LlmFinetuning, batch: Batch, sampled: int) -> tuple[float, float]:
    """CPU seconds of all losses of a batch, forward and backward, and of the direct alignment by itself."""
    alignment = module.model.alignment
    assert alignment is not None
    alignment.sampled = sampled
    torch.manual_seed(0)
    began = time.process_time()
    weighted_sum(module.loss_terms(batch)).backward()
    step = time.process_time() - began
    module.zero_grad()
    audio = module.model.listen(batch.audio)
    embeddings = Padded(audio.embeddings.detach().requires_grad_(), audio.lengths)
    text = pad_tokens(module.llm_tokenizer.encode(batch.texts))
    began = time.process_time()
    alignment(embeddings, text, module.model.text_embeddings).total.backward()
    return step, time.process_time() - began


if __name__ == "__main__":
    main()
