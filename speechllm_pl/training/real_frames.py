"""Measure what simulated audio embeddings are drawn from, in runs of which some training texts have no audio."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import move_data_to_device, rank_zero_info
from torch import Tensor

from speechllm_pl.core.errors import UserError
from speechllm_pl.core.padded import Padded
from speechllm_pl.core.prompt import pad_tokens
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.epoch_plan import PlannedBatch
from speechllm_pl.models import simulated_audio, simulated_posteriors
from speechllm_pl.models.simulated_audio import RealFrames
from speechllm_pl.models.simulated_posteriors import RealPosteriors
from speechllm_pl.models.speech_llm import SpeechLLM
from speechllm_pl.training.data_checks import data_of
from speechllm_pl.training.llm_finetuning import LlmFinetuning
from speechllm_pl.training.stage import Stage

UTTERANCES = 128
"""Utterances that are measured: some thousand frames."""

AT_ONCE = 16


class MeasureRealFrames(L.Callback):
    """Measures the audio embeddings of some training utterances, where others are texts without audio.

    Encoder and bridge are frozen then, so the result is a function of weights, data and seed, and no part of a
    checkpoint: every rank and every resumed run has the same.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: Stage) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Measure.

        Raises:
            UserError: there are texts without audio, and the model is trained in a way that cannot use them, or too
                few utterances with audio.
        """
        data = data_of(trainer)
        if not isinstance(pl_module, LlmFinetuning) or data is None or not data.mixture.cuts.texts_alone().any():
            return
        model = pl_module.model
        refuse_other_training(model)
        found, was_training = [], model.training
        model.eval()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for batch in _some_with_audio(data):
                found += _heard(pl_module, move_data_to_device(batch, pl_module.device))
        model.train(was_training)
        model.real_audio = real = _measured(model, found)
        if real is None:
            raise UserError(
                "texts without audio are simulated from utterances that have audio, and none of the training data could"
                " be measured: give some with audio beside them (data.train)"
            )
        tokens, blanks = real.frames
        rank_zero_info(
            f"audio embeddings of {len(found)} utterances measured: {tokens} frames of tokens, of which one lasts"
            f" {tokens / len(real.held):.2f}, and {blanks} blanks"
        )


def refuse_other_training(model: SpeechLLM) -> None:
    """Raise a UserError unless the model may be trained on texts without audio."""
    config = model.config
    if config.train_llm or not config.lora_r:
        raise UserError("texts without audio train LoRA: set model.lora_r above 0, and train_llm false")
    if not (config.freeze_encoder and config.freeze_bridge):
        raise UserError(
            "texts without audio have their audio embeddings simulated as those of a trained encoder and bridge: freeze"
            " both (--model.freeze_encoder true --model.freeze_bridge true)"
        )
    if model.alignment is None and config.simulated_from == "embeddings":
        raise UserError(
            "audio embeddings can be simulated from text where direct alignment has drawn them to the text's: train"
            " stage 2 with --model.alignment_weight above 0, or simulate CTC posteriors (--model.simulated_from"
            " posteriors)"
        )


def _some_with_audio(data: SpeechDataModule) -> Iterator[Batch]:
    """Batches of training utterances with audio, a function of data and seed."""
    cuts = data.mixture.cuts
    spoken = np.random.default_rng(data.seed).permutation(np.flatnonzero(~cuts.texts_alone()))[:UTTERANCES]
    spoken = spoken[np.argsort(cuts.durations[spoken], kind="stable")]
    for start in range(0, len(spoken), AT_ONCE):
        if (batch := SpeechDataset(cuts)[PlannedBatch(spoken[start : start + AT_ONCE], seed=0)]).ids:
            yield batch


def _heard(stage: LlmFinetuning, batch: Batch) -> list[tuple[Tensor, ...]]:
    """What is measured of each utterance: audio embeddings and LLM tokens, or frames, CTC logits and CTC classes."""
    audio = stage.model.listen(batch.audio)
    if stage.config.simulated_from == "posteriors":
        logits = Padded(stage.speech.head(audio.encoded), audio.frames)
        return _rows(Padded(audio.encoded, audio.frames), logits, stage.ctc_targets(batch))
    return _rows(
        Padded(audio.embeddings, audio.lengths), pad_tokens(stage.llm_tokenizer.encode(batch.texts), stage.device)
    )


def _rows(*sequences: Padded) -> list[tuple[Tensor, ...]]:
    """Rows of each, without their padding."""
    parts = ([row[:length] for row, length in zip(*each, strict=True)] for each in sequences)
    return list(zip(*parts, strict=True))


def _measured(model: SpeechLLM, found: list[Any]) -> RealFrames | RealPosteriors | None:
    if model.config.simulated_from == "posteriors":
        return simulated_posteriors.measure(found)
    assert model.alignment is not None
    return simulated_audio.measure(found, model.text_embeddings, model.alignment.blank)
