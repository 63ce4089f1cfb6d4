"""Waveforms to log-mel filter banks, on the device, so that training, export and demo share one path."""

import torch
import torchaudio
from torch import Tensor, nn

from speechllm_pl.core.masks import length_mask

SAMPLING_RATE = 16_000  # Hz
HOP = 160  # samples: 10 ms
WINDOW = 400  # samples: 25 ms
FFT = 512  # samples: the window, padded to a power of two


class FilterBank(nn.Module):
    """Log-mel energies of 25 ms windows every 10 ms, normalised per utterance and bin.

    No window reaches beyond the last real sample, and the statistics are those of real frames, so an
    utterance has the same features alone as in a batch.
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
        )

    @staticmethod
    def num_frames(lengths: Tensor) -> Tensor:
        """`(B,)` samples → `(B,)` frames; a recording shorter than one window has one frame."""
        return ((lengths - FFT) // HOP + 1).clamp(min=1)

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, N)` samples in -1 … 1, zero-padded, and `(B,)` lengths → `(B, T, num_bins)`, `(B,)` frames."""
        shortage = max(FFT - waveforms.shape[1], 0)
        waveforms = nn.functional.pad(waveforms.float(), (0, shortage))
        features = (self.mel(waveforms) + 1e-6).log().transpose(1, 2)  # (B, T, bins)
        frames = self.num_frames(lengths)
        mask = length_mask(frames, features.shape[1])[:, :, None]
        features = features * mask
        mean = features.sum(1, keepdim=True) / frames[:, None, None]
        centred = (features - mean) * mask
        deviation = (centred.square().sum(1, keepdim=True) / frames[:, None, None]).sqrt()
        return centred / (deviation + 1e-3), frames


class SpecAugment(nn.Module):
    """Random stripes of frequencies and times set to the mean, in training only (arXiv 1904.08779)."""

    def __init__(self, freq_masks: int = 2, freq_width: int = 27, time_masks: int = 2, time_width: int = 40):
        super().__init__()
        self.augment = torchaudio.transforms.SpecAugment(
            n_time_masks=time_masks,
            time_mask_param=time_width,
            n_freq_masks=freq_masks,
            freq_mask_param=freq_width,
            iid_masks=True,
            p=0.2,  # a mask covers at most this share of the time axis
            zero_masking=True,  # features are normalised: zero is their mean
        )

    def forward(self, features: Tensor) -> Tensor:
        """`(B, T, bins)` → the same, masked when training."""
        if not self.training:
            return features
        return self.augment(features.transpose(1, 2)).transpose(1, 2)
