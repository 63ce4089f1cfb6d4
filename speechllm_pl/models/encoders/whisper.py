"""Whisper's encoder (arXiv 2212.04356) without padding to 30 s: positions are cut to the length at hand.

Its two convolutions are masked after each, and attention sees real frames alone, so padding never leaks. What is longer
than its positions reach is heard in consecutive windows of 30 s, which know nothing of each other.
"""

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.audio_utils import mel_filter_bank

from speechllm_pl.core.audio.units import HOP, SAMPLING_RATE, WINDOW
from speechllm_pl.core.masks import halved, length_mask, stacked
from speechllm_pl.core.padded import Padded
from speechllm_pl.models.encoders.family import Family, read_model


class WhisperFeatures(nn.Module):
    """Log-mel energies as Whisper's feature extractor computes them, of an utterance without padding.

    Energies are limited to 80 dB below the utterance's loudest bin. Silence follows the last sample.
    """

    filters: Tensor  # (bins of the FFT, mel)
    window: Tensor

    def __init__(self, num_bins: int):
        super().__init__()
        filters = mel_filter_bank(WINDOW // 2 + 1, num_bins, 0.0, SAMPLING_RATE / 2, SAMPLING_RATE, "slaney", "slaney")
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    @staticmethod
    def num_frames(lengths: Tensor) -> Tensor:
        """`(B,)` frames for `(B,)` samples: those whose centre is a real sample."""
        return stacked(lengths, HOP).clamp(min=1)

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, waveforms: Padded) -> Padded:
        """Compute `(B, T, bins)` features, zero beyond their lengths, of `(B, N)` samples."""
        reach = WINDOW // 2
        samples = F.pad(waveforms.values.float(), (0, WINDOW))
        samples = torch.cat([samples[:, 1 : reach + 1].flip(1), samples], dim=1)  # mirrored, as by torch.stft
        spectrum = torch.stft(samples, WINDOW, HOP, window=self.window, center=False, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()  # (B, F, T)
        features = (power.transpose(1, 2) @ self.filters).clamp(min=1e-10).log10()  # (B, T, bins)
        heard = length_mask(stacked(waveforms.lengths + reach, HOP), features.shape[1])[:, :, None]
        loudest = features.masked_fill(~heard, -10.0).amax((1, 2), keepdim=True)
        frames = self.num_frames(waveforms.lengths)
        features = (torch.maximum(features, loudest - 8.0) + 4.0) / 4.0
        most = max(waveforms.values.shape[1] + HOP - 1, HOP) // HOP
        return Padded(features[:, :most] * length_mask(frames, most)[:, :, None], frames)


class Whisper(Family):
    """The encoder half of a Whisper checkpoint."""

    seconds_per_frame = 2 * HOP / SAMPLING_RATE

    def __init__(self, name: str, revision: str | None, with_head: bool):
        super().__init__(name, revision, with_head)
        self.encoder = read_model(transformers.AutoModel, name, revision).encoder
        self.dim = self.encoder.config.d_model
        self.features = WhisperFeatures(self.encoder.config.num_mel_bins)

    @staticmethod
    def frame_lengths(shape: Any, samples: Tensor) -> Tensor:
        return halved(WhisperFeatures.num_frames(samples))

    def trainable(self) -> list[nn.Parameter]:
        fixed = self.encoder.embed_positions.weight  # sinusoids
        return [parameter for parameter in self.encoder.parameters() if parameter is not fixed]

    def forward(self, waveforms: Padded, hide: nn.Module) -> Padded:
        features, lengths = self.features(waveforms)
        x = hide(features).transpose(1, 2)  # (B, bins, T)
        for convolution in (self.encoder.conv1, self.encoder.conv2):
            lengths = stacked(lengths, convolution.stride[0])
            x = F.gelu(convolution(x))
            x = x * length_mask(lengths, x.shape[2])[:, None, :]
        x = x.transpose(1, 2)  # (B, T, dim)
        mask = length_mask(lengths, x.shape[1])
        return Padded(self._attend(x, mask) * mask[:, :, None], lengths)

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        """Run the layers on `(B, T, dim)` frames, in windows of as many frames as there are positions."""
        encoder, (rows, length, dim) = self.encoder, x.shape
        window = min(length, encoder.config.max_source_positions)
        missing = -length % window
        x = F.pad(x, (0, 0, 0, missing)).reshape(-1, window, dim)
        mask = F.pad(mask, (0, missing)).reshape(-1, window)
        mask = mask | ~mask.any(1, keepdim=True)  # a window of padding alone
        x = F.dropout(x + encoder.embed_positions.weight[:window], encoder.dropout, self.training)
        for layer in encoder.layers:
            x = layer(x, mask[:, None, None, :])
        return encoder.layer_norm(x).reshape(rows, -1, dim)[:, :length]
