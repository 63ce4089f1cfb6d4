"""Progress of training in a log file, where Lightning's bar is not drawn."""

import math
import sys
from typing import Any

import lightning as L

from speechllm_pl.storage.progress import progress_bar
from speechllm_pl.training.step import is_logged


class LogLines(L.Callback):
    """Prints the step, the time left and the logged values about every half a minute, if no terminal shows them."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        steps = trainer.estimated_stepping_batches
        hidden = sys.stderr.isatty() or not trainer.is_global_zero or trainer.progress_bar_callback is None
        total = int(steps) if math.isfinite(steps) else None
        self._bar = progress_bar("training", total, initial=trainer.global_step, unit=" steps", disable=hidden)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if is_logged(trainer, trainer.global_step):
            shown = {"epoch": trainer.current_epoch, **trainer.progress_bar_metrics}
            shown.pop("speed/audio_seconds_per_second", None)  # the bar has the speed in steps, and the line is full
            values = [f"{name.rpartition('/')[2]} {value:.3g}" for name, value in shown.items()]
            self._bar.set_postfix_str(", ".join(values), refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._bar.close()
