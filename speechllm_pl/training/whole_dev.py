"""Error rates on all of dev at the end of a fit whose validations had a sample of it."""

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import move_data_to_device, rank_zero_info

from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.training.callbacks import finished_before
from speechllm_pl.training.data_checks import data_of
from speechllm_pl.training.interruption import agreed_signal, stop
from speechllm_pl.training.stage import Stage

SPLIT = "val_whole"


class WholeDev(Checkpoint):
    """Scores all of dev with the last weights, and logs the rates as `val_whole/…`.

    Nothing is selected by these rates: checkpoints are compared by the sample that all validations share. After a
    signal the ranks stop together. The callback saves nothing, but Lightning calls checkpoint callbacks last and in
    their order: put it after those that save, so that the state is saved first.
    """

    done = False

    def on_train_end(self, trainer: L.Trainer, pl_module: Stage) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._score_once(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: Stage) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Score dev where no step was left to take, as after a signal in this last pass over dev."""
        self._score_once(trainer, pl_module)

    def _score_once(self, trainer: L.Trainer, pl_module: Stage) -> None:
        data = _sampled(trainer)
        if data is None or self.done:
            return
        if trainer.strategy.broadcast(finished_before(trainer)):
            rank_zero_info(
                "all steps were taken before, and all of dev was scored (`speechllm validate` does it again)"
            )
        else:
            pl_module.to(trainer.strategy.root_device)  # from which Lightning has moved it at the end of a fit
            self._score(trainer, pl_module, data)
        self.done = True

    def _score(self, trainer: L.Trainer, pl_module: Stage, data: SpeechDataModule) -> None:
        pl_module.eval()
        pl_module.begin_decoding()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for batch in data.dev_dataloader():
                pl_module.score_batch(move_data_to_device(batch, pl_module.device))
                if agreed := agreed_signal(trainer, pl_module):
                    stop(trainer, agreed)
        rates = pl_module.pooled_rates(SPLIT, data.dev_share(whole=True))
        pl_module.end_decoding()
        trainer.callback_metrics.update({name: torch.tensor(rate) for name, rate in rates.items()})
        for logger in trainer.loggers:
            logger.log_metrics(rates, step=trainer.global_step)


def _sampled(trainer: L.Trainer) -> SpeechDataModule | None:
    """The data module if validations use a sample of dev, else None."""
    data = data_of(trainer)
    sampled = data is not None and trainer.limit_val_batches == 1.0 and data.dev_sample is not None
    return data if sampled else None
