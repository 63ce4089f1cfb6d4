"""Log-mel features as the feature extractors of pretrained encoders compute them, in batches and on the device.

Each utterance has the features that it has alone. Those beyond the last real frame are zero.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.audio_utils import mel_filter_bank, window_function

from speechllm_pl.core.audio.units import FFT, HOP, SAMPLING_RATE, WINDOW
from speechllm_pl.core.masks import length_mask
from speechllm_pl.core.padded import Padded

PREEMPHASIS = 0.97


class MelFeatures(nn.Module, ABC):
    """Log-mel energies of 25 ms windows every 10 ms.

    Attributes:
        least: samples of the shortest input; silence follows what is shorter.
    """

    least: int
    filters: Tensor  # (bins of the FFT, mel)
    window: Tensor  # (WINDOW,)

    def __init__(self, num_bins: int, lowest_hz: float, scale: str, norm: str | None, window: str, periodic: bool):
        super().__init__()
        filters = mel_filter_bank(
            FFT // 2 + 1,
            num_bins,
            lowest_hz,
            SAMPLING_RATE / 2,
            SAMPLING_RATE,
            norm,
            scale,
            triangularize_in_mel_space=scale == "kaldi",
        )
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        values = window_function(WINDOW, window, periodic=periodic)
        self.register_buffer("window", torch.from_numpy(values).float(), persistent=False)

    @classmethod
    @abstractmethod
    def num_frames(cls, lengths: Tensor) -> Tensor:
        """`(B,)` frames for `(B,)` samples."""

    @abstractmethod
    def _features(self, samples: Tensor, lengths: Tensor) -> Tensor:
        """Features `(B, T, bins)` of `(B, N)` samples; those beyond the last real frame have any value."""

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, waveforms: Padded) -> Padded:
        """Compute `(B, T, bins)` features of `(B, N)` samples in -1 … 1, zero beyond their lengths."""
        samples = F.pad(waveforms.values.float(), (0, max(0, self.least - waveforms.values.shape[1])))
        features = self._features(samples, waveforms.lengths.clamp(min=self.least))
        frames = self.num_frames(waveforms.lengths)
        return Padded(features * length_mask(frames, features.shape[1])[:, :, None], frames)

    def _energies(self, windows: Tensor) -> Tensor:
        """Mel energies `(B, T, bins)` of `(B, T, WINDOW)` samples."""
        spectrum = torch.fft.rfft(windows * self.window, FFT)
        return (spectrum.real.square() + spectrum.imag.square()) @ self.filters


class KaldiFeatures(MelFeatures):
    """Features of SeamlessM4T, as Kaldi's: mean 0 and variance 1 in each bin of an utterance."""

    least = WINDOW + HOP

    def __init__(self, num_bins: int):
        super().__init__(num_bins, 20.0, "kaldi", None, "povey", periodic=False)

    @classmethod
    def num_frames(cls, lengths: Tensor) -> Tensor:
        return (lengths.clamp(min=cls.least) - WINDOW) // HOP + 1

    def _features(self, samples: Tensor, lengths: Tensor) -> Tensor:
        windows = (samples * 2**15).unfold(1, WINDOW, HOP)  # (B, T, WINDOW)
        windows = windows - windows.mean(2, keepdim=True)
        windows = windows - PREEMPHASIS * torch.cat([windows[:, :, :1], windows[:, :, :-1]], dim=2)
        features = self._energies(windows).clamp(min=torch.finfo(torch.float32).eps).log()
        centred, variance = _centred(features, self.num_frames(lengths))
        return centred / (variance + 1e-7).sqrt()


class NemoFeatures(MelFeatures):
    """Features of Parakeet, as NeMo's: mean 0 and deviation 1 in each bin of an utterance."""

    least = 2 * HOP

    def __init__(self, num_bins: int):
        super().__init__(num_bins, 0.0, "slaney", "slaney", "hann", periodic=False)

    @classmethod
    def num_frames(cls, lengths: Tensor) -> Tensor:
        return lengths.clamp(min=cls.least) // HOP

    def _features(self, samples: Tensor, lengths: Tensor) -> Tensor:
        samples = samples - PREEMPHASIS * F.pad(samples[:, :-1], (1, 0))
        samples = samples * length_mask(lengths, samples.shape[1])
        windows = F.pad(samples, (WINDOW // 2, WINDOW // 2)).unfold(1, WINDOW, HOP)[:, : samples.shape[1] // HOP]
        centred, variance = _centred((self._energies(windows) + 2**-24).log(), self.num_frames(lengths))
        return centred / (variance.sqrt() + 1e-5)


class GraniteFeatures(MelFeatures):
    """Features of Granite speech: limited to 80 dB below the utterance's loudest bin, of audio mirrored at its ends."""

    least = 2 * HOP

    def __init__(self, num_bins: int):
        super().__init__(num_bins, 0.0, "htk", None, "hann", periodic=True)

    @classmethod
    def num_frames(cls, lengths: Tensor) -> Tensor:
        return lengths.clamp(min=cls.least) // HOP + 1

    def _features(self, samples: Tensor, lengths: Tensor) -> Tensor:
        reach, last = WINDOW // 2, lengths[:, None] - 1
        places = torch.arange(-reach, samples.shape[1] + reach, device=samples.device).abs()
        places = torch.where(places > last, 2 * last - places, places).clamp(min=0)  # (B, N + WINDOW)
        energies = self._energies(samples.gather(1, places).unfold(1, WINDOW, HOP))
        features = energies.clamp(min=1e-10).log10()
        real = length_mask(self.num_frames(lengths), features.shape[1])[:, :, None]
        loudest = features.masked_fill(~real, -10.0).amax((1, 2), keepdim=True)
        return torch.maximum(features, loudest - 8.0) / 4.0 + 1.0


def _centred(features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Features less the mean of each bin over real frames, and the unbiased variance, `(B, 1, bins)`, of each bin."""
    mask, count = length_mask(frames, features.shape[1])[:, :, None], frames[:, None, None]
    centred = (features - (features * mask).sum(1, keepdim=True) / count) * mask
    return centred, centred.square().sum(1, keepdim=True) / (count - 1)
