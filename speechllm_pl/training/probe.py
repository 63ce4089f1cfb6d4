"""Test before the first step whether memory suffices for the largest batches of training and validation."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import move_data_to_device, rank_zero_info

from speechllm_pl.core.audio.units import seconds_of
from speechllm_pl.core.errors import UserError
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.epoch_plan import PlannedBatch
from speechllm_pl.models.losses import weighted_sum
from speechllm_pl.training.data_checks import data_of
from speechllm_pl.training.stage import Stage


class LargestBatches(L.Callback):
    """Tries each bucket's largest batch once, forward and backward, and recognises the largest of dev.

    So no run fails for memory in its tenth hour. What lasts between steps is reserved meanwhile. Results do not change:
    every step draws from its own seed.

    Args:
        on_cpu: Try the batches on a CPU too, where a lack of memory is not an error but kills the process.
    """

    def __init__(self, on_cpu: bool = False):
        self.on_cpu = on_cpu

    def on_fit_start(self, trainer: L.Trainer, pl_module: Stage) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Try the batches.

        Raises:
            UserError: a batch does not fit; the message names it and the largest duration that did.
        """
        data = data_of(trainer)
        if data is None or (pl_module.device.type == "cpu" and not self.on_cpu):
            return
        dataset = SpeechDataset(data.cuts("train"), texts_alone=True)
        trained = sum(_local(p).numel() for p in pl_module.parameters() if p.requires_grad)
        reserve = torch.empty(2 * trained, device=pl_module.device)  # Adam's two running means, in fp32
        fitted = 0.0
        for indices in data.buckets("train").largest_batches():
            batch = _stretched(dataset[PlannedBatch(indices, seed=0)], data.duration_factor)
            batch = move_data_to_device(batch, pl_module.device)
            seconds = seconds_of(batch.waveforms.numel())
            try:
                self._try(trainer, pl_module, batch)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"a batch of {len(indices)} utterances, {seconds:.0f} s with padding, does not fit the memory of"
                    f" {pl_module.device}; the largest that did has {fitted:.0f} s. Lower data.max_duration"
                    f" (--data.max_duration {max(fitted, seconds / 2):.0f}), or see `speechllm plan`"
                ) from error
            fitted = max(fitted, seconds)
        del reserve
        rank_zero_info(f"the largest batch of every bucket fits: up to {fitted:.1f} s of audio with padding")
        if trainer.limit_val_batches:
            reserve = torch.empty(3 * trained, device=pl_module.device)  # and the gradients of the last step
            self._decode(trainer, pl_module, data)
            del reserve

    def _decode(self, trainer: L.Trainer, module: Stage, data: SpeechDataModule) -> None:
        """Recognise dev's largest batch, which a run would meet after hours, or at its end.

        Raises:
            UserError: it does not fit.
        """
        cuts, buckets = data.cuts("dev"), data.buckets("dev")
        largest = max(buckets.largest_batches(), key=lambda batch: len(batch) * float(cuts.durations[batch].max()))
        batch = move_data_to_device(SpeechDataset(cuts)[PlannedBatch(largest, seed=0)], module.device)
        seconds = seconds_of(batch.waveforms.numel())
        modes = {part: part.training for part in module.modules()}
        module.eval()
        try:
            module.begin_decoding()
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                if batch.ids:
                    module.transcribe(batch)
            module.end_decoding()
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"a batch of {len(largest)} utterances of dev, {seconds:.0f} s with padding, does not fit the memory of"
                f" {module.device}: lower data.val_max_duration (--data.val_max_duration {seconds / 2:.0f})"
            ) from error
        for part, training in modes.items():
            part.training = training
        rank_zero_info(f"the largest batch of dev fits: {seconds:.1f} s of audio with padding")

    def _try(self, trainer: L.Trainer, module: Stage, batch: Any) -> None:
        if not batch.ids:
            return
        with trainer.precision_plugin.forward_context():
            loss = weighted_sum(module.loss_terms(batch))
        loss.backward()
        module.zero_grad(set_to_none=True)


def _stretched(batch: Batch, factor: float) -> Batch:
    """Stretch a batch to the length that augmentation may give it; memory depends on lengths, not on content.

    A text without audio becomes silence, which takes more than its simulated embeddings.
    """
    lengths = (batch.lengths * factor).ceil().long()
    more = int(lengths.max()) - batch.waveforms.shape[1] if batch.ids else 0
    return batch._replace(waveforms=torch.nn.functional.pad(batch.waveforms, (0, more)), lengths=lengths, simulated=0)


def _local(parameter: torch.Tensor) -> torch.Tensor:
    """This rank's part of a parameter."""
    to_local = getattr(parameter, "to_local", None)
    return to_local() if to_local else parameter
