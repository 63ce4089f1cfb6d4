"""CPU time of an epoch on a frozen encoder, with its frames cached (`data.cache_frames`) and without.

    python benchmarks/frame_cache_speed.py --encoder ../shared/models/whisper-tiny-en --llm data/llms/smollm2

Each batch is read and trained on with and without the cache in turn, so that whatever else the machine does bears on
both alike; the learning rate is 0, so that both compute the same losses. Without --llm it is stage 1 that is trained.
One process reads and trains, in fp32.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from machine import describe
from torch import nn

from speechllm_pl.data.buckets import Buckets
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.epoch_plan import EpochBatches, PlannedBatch
from speechllm_pl.data.manifest import read_manifest
from speechllm_pl.data.uncached_audio import UncachedAudio
from speechllm_pl.models.bridges import ProjectorConfig
from speechllm_pl.models.encoders import PretrainedEncoderConfig
from speechllm_pl.models.losses import weighted_sum
from speechllm_pl.storage.frame_cache import FrameCache
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.llm_finetuning import LlmFinetuning
from speechllm_pl.training.stage import Stage


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/table"))
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--llm")
    parser.add_argument("--utterances", type=int, default=48)
    parser.add_argument("--max-duration", type=float, default=30.0, help="seconds of audio a batch")
    parser.add_argument("--stride", type=int, default=3, help="frames of 40 ms that are stacked for the LLM")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.backends.cuda.enable_flash_sdp(False)  # as in training on a CPU
    module = stage(args.encoder, args.llm, args.data / "tokenizer.model", args.stride)
    cuts = read_manifest(args.data / "train.jsonl.gz")[: args.utterances]
    plan = list(EpochBatches(Buckets(cuts.durations, args.max_duration, num_buckets=10)))
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        frames = filled(FrameCache(Path(folder)), module, UncachedAudio(cuts, FrameCache(Path(folder))), plan)
        filling = time.process_time() - began
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        datasets = {"without": SpeechDataset(cuts), "with": SpeechDataset(cuts, frames=frames)}
        seconds, losses = alternate(module, datasets, plan)
    audio = float(cuts.durations.sum())
    print(f"{describe(args.threads)}, fp32; {len(cuts)} utterances, {audio:.0f} s, {len(plan)} batches")
    print(f"frames: {filling:.1f} s of CPU time to compute and write, {size / audio / 1e3:.0f} kB a second of audio")
    for name, (reading, training) in seconds.items():
        print(f"{name} the cache: {reading + training:.1f} s of CPU time an epoch, {reading:.2f} s of it reading")
    ratio = sum(seconds["without"]) / sum(seconds["with"])
    differing = max(abs(one / other - 1) for one, other in zip(losses["without"], losses["with"], strict=True))
    print(f"ratio {ratio:.2f}; losses of batches differ by {differing:.1e} at most")


def stage(encoder: str, llm: str | None, tokenizer: Path, stride: int) -> Stage:
    """A new CTC head on a frozen encoder; with an LLM also the bridge, direct alignment and LoRA of rank 16."""
    config = PretrainedEncoderConfig(encoder)
    module: Stage = CtcPretraining(str(tokenizer), encoder=config)
    if llm is not None:
        module = LlmFinetuning(
            str(tokenizer),
            llm=llm,
            encoder=config,
            bridge=ProjectorConfig(stride=stride),
            lora_r=16,
            text_masking=0.2,
            alignment_weight=0.5,
        )
    module.configure_model()
    return module.train()


def filled(cache: FrameCache, module: Stage, uncached: UncachedAudio, plan: list[PlannedBatch]) -> FrameCache:
    """The cache with the frames of all batches, on disk."""
    for planned in plan:
        names, audio = uncached[planned]
        found = module.speech.frozen_frames(audio)
        assert found is not None
        for name, row, length in zip(names, *found, strict=True):
            cache.add(name, row[:length])
    cache.flush()
    return cache


def alternate(
    module: Stage, datasets: dict[str, SpeechDataset], plan: list[PlannedBatch]
) -> tuple[dict[str, tuple[float, float]], dict[str, list[float]]]:
    """CPU seconds of reading and of training over all batches, and the loss a token of each, by dataset."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.0)
    seconds = dict.fromkeys(datasets, (0.0, 0.0))
    losses: dict[str, list[float]] = {name: [] for name in datasets}
    for number, planned in enumerate([plan[0], *plan]):  # the first warms up
        order = list(datasets) if number % 2 else list(datasets)[::-1]
        for name in order:
            began = time.process_time()
            batch = datasets[name][planned]
            read = time.process_time()
            torch.manual_seed(batch.seed)
            terms = module.loss_terms(batch)
            loss = weighted_sum(terms) / next(iter(terms.values())).term.count
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if number:
                reading, training = seconds[name]
                seconds[name] = reading + read - began, training + time.process_time() - read
                losses[name].append(loss.item())
    return seconds, losses


if __name__ == "__main__":
    main()
