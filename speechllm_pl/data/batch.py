"""Batch of a training step."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from speechllm_pl.core.audio.units import seconds_of
from speechllm_pl.core.padded import Padded


class Batch(NamedTuple):
    """B utterances. Waveforms travel; features are computed on the device."""

    waveforms: Tensor  # (B, N) samples at 16 kHz in -1 … 1, zero-padded
    lengths: Tensor  # (B,) real samples
    texts: list[str]  # normalised transcripts
    languages: list[str]  # ISO 639-1 codes
    ids: list[str]
    skipped: list[str]  # ids of recordings that were due in this batch and could not be read
    seed: int = 0  # of everything random about it, 63 bits: depends on neither rank nor resume
    due: int = 0  # recordings, read or not; augmentation may have made fewer utterances of them
    unread: str = ""  # the last that could not be read: its id, its file, and why
    frozen: Padded | None = None  # (B, T, dim) frames of a frozen encoder, in place of waveforms
    simulated: int = 0  # utterances, the last ones, that are text alone: their lengths are those audio would have

    def to(self, device: torch.device) -> Self:
        """The batch with its waveforms and lengths on a device; Lightning calls this, too.

        A GPU goes on computing while they are copied from pinned memory.
        """
        at_once = torch.device(device).type == "cuda"
        waveforms, lengths = (tensor.to(device, non_blocking=at_once) for tensor in (self.waveforms, self.lengths))
        frozen = self.frozen and Padded(*(tensor.to(device, non_blocking=at_once) for tensor in self.frozen))
        return self._replace(waveforms=waveforms, lengths=lengths, frozen=frozen)

    @property
    def audio(self) -> Padded:
        """Waveforms with their lengths, or the frames of a frozen encoder with theirs."""
        return Padded(self.waveforms, self.lengths) if self.frozen is None else self.frozen

    @property
    def seconds(self) -> float:
        """Seconds of audio in the batch, without padding."""
        return seconds_of(self.lengths.sum().item())
