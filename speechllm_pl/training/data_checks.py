"""Checks that need both a stage and its data, which know nothing of each other."""

from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.storage.checkpoints import RECORD
from speechllm_pl.training.resumption import CHANGED
from speechllm_pl.training.stage import Stage

ENOUGH = 100
"""Number of recordings from which on a share is judged; at the end of an epoch fewer suffice."""


def data_of(trainer: L.Trainer) -> SpeechDataModule | None:
    """The data module of a run, if it is this project's."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, SpeechDataModule) else None


class DataChecks(L.Callback):
    """Refuses data that a run cannot go on with, and records and reports what data a stage has."""

    def __init__(self) -> None:
        self.due = self.skipped = 0  # recordings since the start of the run, over all ranks, and those not read
        self.example = ""  # of this rank, not read

    def setup(self, trainer: L.Trainer, pl_module: Stage, stage: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Have checkpoints checked before the stage checks its tokenizer, which is another one because the data is."""
        data = data_of(trainer)
        if stage == "fit" and data is not None:
            pl_module.checks.append(lambda checkpoint: _refuse_other_data(data, checkpoint))

    def on_fit_start(self, trainer: L.Trainer, pl_module: Stage) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Report characters of the transcripts that the CTC head cannot learn, if it is trained."""
        data = data_of(trainer)
        if data is None or not any(p.requires_grad for p in pl_module.speech.head.parameters()):
            return
        if trainer.is_global_zero and (
            unknown := pl_module.tokenizer.unknown_characters(data.cuts("train").characters)
        ):
            rank_zero_info(
                f"the tokenizer cannot write {len(unknown)} characters of the training transcripts, which are learned"
                f" as <unk>: {' '.join(sorted(unknown)[:20])}; train the tokenizer on them (make tokenizer)"
            )

    def on_train_batch_end(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, trainer: L.Trainer, pl_module: Stage, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Refuse to go on if too large a share of the recordings could not be read.

        Raises:
            UserError: more than `data.max_skipped_share`. All ranks raise at the same step.
        """
        self.due += pl_module.agreed.due
        self.skipped += pl_module.agreed.skipped
        self.example = batch.unread or self.example
        data = data_of(trainer)
        if data is None or not (self.due >= ENOUGH or trainer.is_last_batch):
            return
        if self.skipped > data.max_skipped_share * self.due:
            example = f", such as {self.example}" if self.example else ": the warnings name them"
            raise UserError(
                f"{self.skipped} of {self.due} training utterances could not be read, more than data.max_skipped_share"
                f" {data.max_skipped_share:g}{example}; mend the paths in the manifest or mount their disk, prepare the"
                " data again, or raise --data.max_skipped_share"
            )

    def on_validation_start(self, trainer: L.Trainer, pl_module: Stage) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        data = data_of(trainer)
        pl_module.dev_share = "" if data is None else data.dev_share()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if (data := data_of(trainer)) is not None:
            cuts, record = data.mixture.cuts, checkpoint.setdefault(RECORD, {})
            record["languages"] = cuts.language_codes
            record["longest_seconds"] = float(cuts.durations.max(initial=0))


def _refuse_other_data(data: SpeechDataModule, checkpoint: dict[str, Any]) -> None:
    """Raise a UserError if a run was trained on other data, unless it may go on with this."""
    if change := data.refuse_other_data(checkpoint.get(type(data).__qualname__) or {}):
        rank_zero_info(f"{CHANGED}training data {change}")
