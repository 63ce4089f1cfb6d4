"""Training throughput of a run's model on this machine, and where the time goes.

    python benchmarks/training_speed.py runs/demo/pretrain_ctc runs/demo/finetune --data data/spoken_numbers

Takes trained runs, so that what is measured is what was run. All parts of a step are timed in the same steps:
their shares can be compared where absolute figures of a busy machine cannot, and so can CPU time. One process; the
cpu trainer runs two. LD_PRELOAD with another allocator shows what that one saves.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path

import torch
import yaml
from jsonargparse import ArgumentParser
from machine import describe
from torch import nn

from speechllm_pl.data.buckets import Buckets
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.epoch_plan import EpochBatches, PlannedBatch
from speechllm_pl.data.manifest import read_manifest
from speechllm_pl.storage.checkpoints import read_checkpoint
from speechllm_pl.training.stage import Stage

WARM_UP = 3  # batches that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, default=Path("data/spoken_numbers"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--max-duration", type=float, default=30.0, help="seconds of audio a batch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.backends.cuda.enable_flash_sdp(False)  # as in training on a CPU
    cuts = read_manifest(args.data / "train.jsonl.gz")
    plan = list(EpochBatches(Buckets(cuts.durations, args.max_duration, num_buckets=10)))
    print(f"{describe(args.threads)}, bf16 autocast")
    for run in args.runs:
        module = as_trained(run)
        print(f"{run}: {measure(module, SpeechDataset(cuts), plan[: args.batches + WARM_UP])}")


def as_trained(run: Path) -> Stage:
    """The run's model with its weights, and with the losses and the optimiser of its recipe."""
    recipe = yaml.safe_load((run / "config.yaml").read_text())["model"]
    parser = ArgumentParser()
    parser.add_subclass_arguments(Stage, "model")
    module = parser.instantiate_classes(parser.parse_object({"model": recipe})).model
    module.configure_model()
    checkpoint = read_checkpoint(run / "checkpoints/best.ckpt", stage=module.stage)
    module.load_state_dict(checkpoint["state_dict"])
    return module.train()


def measure(module: Stage, dataset: SpeechDataset, plan: list[PlannedBatch]) -> str:
    """Run real training steps on the plan's batches; say the rate and each part's share."""
    seconds: dict[str, float] = defaultdict(float)
    parts = {"features": module.speech.features, "encoder": module.speech.encoder}
    if (llm := getattr(module.model, "llm", None)) is not None:
        parts["LLM"] = llm
    for name, part in parts.items():
        _time_forward(name, part, seconds)
    optimizer = module.make_optimizer(module.parameter_groups())
    audio = cpu_started = 0.0
    for number, planned in enumerate(plan):
        if number == WARM_UP:
            audio = 0.0
            seconds.clear()
            cpu_started = time.process_time()
        times = [time.perf_counter()]
        batch = dataset[planned]
        times.append(time.perf_counter())
        with torch.autocast("cpu", torch.bfloat16):
            terms = module.loss_terms(batch).values()
            loss = torch.stack([weight * term.total / term.count for term, weight in terms]).sum()
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter())
        for name, begin, end in zip(
            ("data loading", "forward", "backward", "optimiser"), times, times[1:], strict=False
        ):
            seconds[name] += end - begin
        audio += batch.seconds
    cpu = (time.process_time() - cpu_started) / (len(plan) - WARM_UP)
    seconds["losses and the rest of forward"] = seconds.pop("forward") - sum(seconds[name] for name in parts)
    total = sum(seconds.values())
    shares = ", ".join(f"{name} {part / total:.0%}" for name, part in sorted(seconds.items()))
    return f"{audio / total:.0f} audio-seconds per second, {1000 * cpu:.0f} ms of CPU time a step; {shares}"


def _time_forward(name: str, part: nn.Module, seconds: dict[str, float]) -> None:
    started: list[float] = []
    part.register_forward_pre_hook(lambda *_: started.append(time.perf_counter()))

    def stop(*_: object) -> None:
        seconds[name] += time.perf_counter() - started.pop()

    part.register_forward_hook(stop)


if __name__ == "__main__":
    main()
