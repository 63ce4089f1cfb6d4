"""Speed of a run, and the share of its time spent waiting for data."""

import time
from collections import deque
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from speechllm_pl.data.batch import Batch
from speechllm_pl.training.data_checks import data_of
from speechllm_pl.training.step import is_logged

MOST_WAITING = 0.05
"""Share of the time spent waiting above which a warning is due."""

WARM_UP, JUDGED = 50, 200
"""Steps ignored after a start, and steps judged together."""


class Speed(L.Callback):
    """Logs audio-seconds per second over all devices, the share of time spent waiting for data, and skips.

    If that share stays above 5 %, it prints once what to do.
    """

    def __init__(self) -> None:
        self.skipped = self.steps = 0
        self.last_steps: deque[tuple[float, float]] = deque(maxlen=JUDGED)  # seconds that were waited, and in all
        self.advised = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # which Lightning leaves out when it resumes in mid-epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.audio_seconds = self.waited = self.elapsed = 0.0
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        self.audio_seconds += batch.seconds
        self.skipped += len(batch.skipped)
        elapsed = time.perf_counter() - self.started
        waited = getattr(trainer.train_dataloader, "waited_seconds", 0.0)  # in this epoch: each has its own loader
        if is_logged(trainer, trainer.global_step):
            rate = self.audio_seconds * trainer.world_size / elapsed
            pl_module.log("speed/audio_seconds_per_second", rate, prog_bar=True, batch_size=1)
            pl_module.log("speed/data_waiting_share", waited / elapsed, batch_size=1)
            pl_module.log("data/skipped", float(self.skipped), batch_size=1)
        self._judge(trainer, waited - self.waited, elapsed - self.elapsed)
        self.waited, self.elapsed = waited, elapsed

    def _judge(self, trainer: L.Trainer, waited: float, elapsed: float) -> None:
        """Count a step of `elapsed` seconds, `waited` of them spent waiting for data."""
        self.steps += 1
        if self.steps > WARM_UP:
            self.last_steps.append((waited, elapsed))
        if self.advised or len(self.last_steps) < JUDGED:
            return
        waited, elapsed = (sum(seconds) for seconds in zip(*self.last_steps, strict=True))
        if waited > MOST_WAITING * elapsed and (data := data_of(trainer)) is not None:
            self.advised = True
            share = f"{waited / elapsed:.0%} of the time of the first rank"
            rank_zero_warn(f"training waits for data {share}: {data.faster_reading()}")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.skipped:
            rank_zero_warn(f"{self.skipped} recordings could not be read and were skipped; the log names them")
