"""Callbacks that do to a run what tests want to see it survive. Given to the command by name, on its PYTHONPATH."""

import os
import time
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch

from speechllm_pl.training import interruption


class Fails(L.Callback):
    """Raises on one rank, after so many steps."""

    def __init__(self, rank: int, step: int):
        self.rank, self.step = rank, step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if (trainer.global_rank, trainer.global_step) == (self.rank, self.step):
            raise RuntimeError("the disk of this rank is on fire")


class Spoils(L.Callback):
    """Makes the audio of some steps' batches NaN on one rank, and tells what the weights were before and after."""

    def __init__(self, steps: list[int], rank: int = 0):
        self.steps, self.rank = steps, rank

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, *_: Any) -> None:
        self.before = _sum(module)
        self.spoilt = trainer.global_step + 1 in self.steps
        if self.spoilt and trainer.global_rank == self.rank:
            batch.waveforms.fill_(torch.nan)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_rank == self.rank:
            print(f"step {trainer.global_step} spoilt {self.spoilt} moved {_sum(module) != self.before}", flush=True)


class Clocks(L.Callback):
    """Each rank's clock, by which checkpoints are due, goes so many minutes forward at every step."""

    def __init__(self, minutes: list[int]):
        self.minutes = minutes

    def setup(self, *_: Any, **__: Any) -> None:
        self.now = 0.0
        own = SimpleNamespace(monotonic=lambda: self.now, sleep=time.sleep)
        interruption.time = own  # type: ignore[assignment]

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.now += 60 * self.minutes[trainer.global_rank]


class SlowDisk(L.Callback):
    """Whatever is to be on the disk for sure takes a while longer to get there."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def setup(self, *_: Any, **__: Any) -> None:
        fsync = os.fsync

        def slow(descriptor: int) -> None:
            time.sleep(self.seconds)
            fsync(descriptor)

        os.fsync = slow


def _sum(module: Any) -> float:
    return sum(p.detach().double().abs().sum().item() for p in module.parameters() if p.requires_grad)
