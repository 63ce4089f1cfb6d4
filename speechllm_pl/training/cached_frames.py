"""Compute the frames of a frozen encoder once, before training (`data.cache_frames`)."""

from collections.abc import Iterator
from typing import cast

import lightning as L
import torch
from lightning.pytorch.utilities import move_data_to_device, rank_zero_info

from speechllm_pl.core.audio.units import SAMPLING_RATE
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.padded import Padded
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.data.uncached_audio import NamedAudio
from speechllm_pl.storage.frame_cache import FrameCache
from speechllm_pl.storage.progress import progress_bar
from speechllm_pl.training.data_checks import data_of
from speechllm_pl.training.interruption import agreed_signal, noting_signals, stop
from speechllm_pl.training.stage import Stage


class CacheFrames(L.Callback):
    """Computes the frames of train and dev that are not cached, each rank its share, and has the run read them.

    After a signal the ranks write what they have and stop together; a run that was killed goes on where its last shard
    ended. Folders are named by a digest of the encoder and
    the precision, so that frames of others are never taken for its own.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: Stage) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Compute what is missing.

        Raises:
            UserError: the encoder's frames are not the same each time, training texts have no audio, or the folder
                cannot be used.
        """
        data = data_of(trainer)
        if data is None or data.frames_folder is None:
            return
        digest = pl_module.speech.frozen_digest if trainer.is_global_zero else ""  # others need not read the weights
        digest = trainer.strategy.broadcast(digest)
        refuse_changing_frames(digest, data)
        frames = FrameCache(data.frames_folder / f"{digest}-{trainer.precision}")
        pl_module.begin_decoding()  # with a whole copy of the encoder, where there is room for it
        with noting_signals(pl_module):
            computed = _add_missing(trainer, pl_module, data, frames)
        pl_module.end_decoding()
        total = trainer.strategy.reduce(torch.tensor(float(computed), device=pl_module.device), reduce_op="sum")
        rank_zero_info(f"cached frames: {int(total):,} utterances computed, the others were there ({frames.folder})")
        data.use_frames(FrameCache(frames.folder))  # with those of all ranks


def refuse_changing_frames(digest: str, data: SpeechDataModule) -> None:
    """Raise a UserError unless every utterance has frames, the same each time."""
    if not digest:
        raise UserError(
            "data.cache_frames keeps the frames of a frozen pretrained encoder, and this run has none: leave it out, or"
            " give one (ENCODER=) with --model.encoder.adapt frozen"
        )
    if data.mixture.cuts.texts_alone().any():
        raise UserError(
            "texts without audio have no frames: set data.cache_frames to false (--data.cache_frames false)"
        )


def _add_missing(trainer: L.Trainer, stage: Stage, data: SpeechDataModule, frames: FrameCache) -> int:
    """Compute and write this rank's share of what is missing; return for how many utterances."""
    computed = signal = 0
    for names, audio in _uncached(trainer, data, frames):
        if names or stage.in_lockstep:
            found = _frozen_frames(trainer, stage, audio)
            for name, row, length in zip(names, found.values, found.lengths.tolist(), strict=False):
                frames.add(name, row[:length])
            computed += len(names)
        if signal := agreed_signal(trainer, stage):
            break
    frames.flush()
    if signal:
        stop(trainer, signal)
    return computed


def _uncached(trainer: L.Trainer, data: SpeechDataModule, frames: FrameCache) -> Iterator[NamedAudio]:
    splits = ("train", "dev") if trainer.enable_validation else ("train",)
    loaders = [data.uncached(split, frames) for split in splits]
    with progress_bar("frames of the encoder", sum(map(len, loaders)), unit=" batches") as bar:
        for loader in loaders:
            for batch in loader:
                yield cast(NamedAudio, batch)
                bar.update()


def _frozen_frames(trainer: L.Trainer, stage: Stage, audio: Padded) -> Padded:
    """Frames as the training step would compute them; of silence where there is no audio, for the other ranks' sake."""
    if not len(audio.lengths):
        audio = Padded(torch.zeros(1, SAMPLING_RATE), torch.tensor([SAMPLING_RATE]))
    audio = trainer.precision_plugin.convert_input(move_data_to_device(audio, stage.device))
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        found = stage.speech.frozen_frames(audio)
    assert found is not None
    return found
