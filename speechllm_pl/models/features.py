"""Waveforms to log-mel filter banks, on the device, so that training, export and demo share one path."""

from dataclasses import dataclass

import torch
import torchaudio
from torch import Tensor, nn

from speechllm_pl.core.audio.units import FFT, HOP, SAMPLING_RATE, WINDOW
from speechllm_pl.core.masks import length_mask
from speechllm_pl.core.padded import Padded


class FilterBank(nn.Module):
    """Log-mel energies of 25 ms windows every 10 ms, normalised per utterance.

    Mean and deviation are taken over all bins together: that removes the level and keeps the spectrum's
    shape, which in a short utterance is mostly what is said. No window reaches beyond the last real sample,
    and the statistics are those of real frames, so an utterance has the same features alone as in a batch.
    """

    def __init__(self, num_bins: int = 80):
        super().__init__()
        self.mel = torchaudio.transforms.MelSpectrogram(
            SAMPLING_RATE,
            n_fft=FFT,
            win_length=WINDOW,
            hop_length=HOP,
            f_min=20.0,
            n_mels=num_bins,
            center=False,
            power=None,  # pyright: ignore[reportArgumentType]  (complex: its own magnitude is slow on CPUs)
        )

    @staticmethod
    def num_frames(lengths: Tensor) -> Tensor:
        """`(B,)` frames for `(B,)` samples; a recording shorter than one window has one frame."""
        return ((lengths - FFT) // HOP + 1).clamp(min=1)

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, waveforms: Padded) -> Padded:
        """Compute `(B, T, num_bins)` features from `(B, N)` samples in -1 … 1, zero-padded."""
        shortage = max(FFT - waveforms.values.shape[1], 0)
        samples = nn.functional.pad(waveforms.values.float(), (0, shortage))
        spectrum = self.mel.spectrogram(samples)
        power = torch.addcmul(spectrum.real.square(), spectrum.imag, spectrum.imag)
        features = (self.mel.mel_scale(power) + 1e-6).log().transpose(1, 2)  # (B, T, bins)
        frames = self.num_frames(waveforms.lengths)
        mask = length_mask(frames, features.shape[1])[:, :, None]
        count = frames[:, None, None] * features.shape[2]
        mean = (features * mask).sum((1, 2), keepdim=True) / count
        centred = (features - mean) * mask
        deviation = (centred.square().sum((1, 2), keepdim=True) / count).sqrt()
        return Padded(centred / (deviation + 1e-3), frames)


@dataclass(frozen=True)
class SpecAugmentConfig:
    """How much SpecAugment hides; widths are the largest, a mask's own is drawn uniformly below.

    Attributes:
        freq_masks: Number of stripes of mel bins that are hidden.
        freq_width: Largest width of a hidden stripe, in mel bins.
        time_masks: Number of stripes of frames that are hidden.
        time_width: Largest width of a hidden stripe, in frames of 10 ms.
        time_share: Largest width of a hidden stripe of frames, as a share of the batch's length.
        first_epoch: First epoch in which features are hidden: without it CTC finds its first alignments sooner.
    """

    freq_masks: int = 2
    freq_width: int = 27
    time_masks: int = 2
    time_width: int = 40
    time_share: float = 0.2
    first_epoch: int = 0


class SpecAugment(nn.Module):
    """Random stripes of frequencies and times set to the mean, in training only (arXiv 1904.08779)."""

    def __init__(self, config: SpecAugmentConfig):
        super().__init__()
        self.first_epoch = config.first_epoch
        self.epoch = 0
        self.augment = torchaudio.transforms.SpecAugment(
            n_time_masks=config.time_masks,
            time_mask_param=config.time_width,
            n_freq_masks=config.freq_masks,
            freq_mask_param=config.freq_width,
            iid_masks=True,
            p=config.time_share,
            zero_masking=True,  # features are normalised: zero is their mean
        )

    def forward(self, features: Tensor) -> Tensor:
        """Mask `(B, T, bins)` features in training, from `first_epoch` on (the trainer sets `epoch`)."""
        if not self.training or self.epoch < self.first_epoch:
            return features
        return self.augment(features.transpose(1, 2)).transpose(1, 2)
