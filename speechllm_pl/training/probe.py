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

TOKENS = 64
"""Length up to which an LLM's texts are written: the memory is that of drafts and logits of the first pass."""

LOCKSTEP_TOKENS = 8
"""The same where all ranks gather the LLM's layers for each token, and no draft is checked."""


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
        rank_zero_info(f"the largest batch of every bucket fits: up to {fitted:.1f} s of audio with padding")
        if trainer.limit_val_batches:
            self._decode(trainer, pl_module, data)
        del reserve

    def _decode(self, trainer: L.Trainer, module: Stage, data: SpeechDataModule) -> None:
        """Recognise dev's largest batch and that of its longest utterances, which a run would meet after hours.

        Raises:
            UserError: one does not fit.
        """
        cuts, buckets = data.cuts("dev"), data.buckets("dev")
        *_, longest = batches = buckets.largest_batches()
        largest = max(batches, key=lambda batch: len(batch) * float(cuts.durations[batch].max()))
        modes = {part: part.training for part in module.modules()}
        module.eval()
        module.begin_decoding()
        for indices in (longest, largest) if largest is not longest else (longest,):
            batch = move_data_to_device(SpeechDataset(cuts)[PlannedBatch(indices, seed=0)], module.device)
            try:
                with torch.no_grad(), trainer.precision_plugin.forward_context():
                    module.recognized(batch, max_new_tokens=LOCKSTEP_TOKENS if module.in_lockstep else TOKENS)
            except torch.OutOfMemoryError as error:
                seconds = seconds_of(batch.waveforms.numel())
                remedy = f"lower data.val_max_duration (--data.val_max_duration {seconds / 2:.0f})"
                remedy = remedy if len(indices) > 1 else f"divide or remove cut {batch.ids[0]}"
                raise UserError(
                    f"a batch of {len(indices)} utterances of dev, {seconds:.0f} s with padding, does not fit the"
                    f" memory of {module.device}: {remedy}"
                ) from error
        module.end_decoding()
        for part, training in modes.items():
            part.training = training
        rank_zero_info(f"the largest batches of dev fit: up to {float(cuts.durations[longest].max()):.1f} s long")

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
