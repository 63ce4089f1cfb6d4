"""The model of stage 1: features, encoder and a CTC head, which stage 2 keeps for drafts and timestamps."""

from torch import Tensor, nn

from speechllm_pl.models.conformer import Conformer, ConformerConfig
from speechllm_pl.models.features import FilterBank, SpecAugment, SpecAugmentConfig


class CtcModel(nn.Module):
    """Waveforms in, encoder frames and CTC logits out: all of stage 1."""

    def __init__(self, config: ConformerConfig, vocab_size: int, augment: SpecAugmentConfig | None = None):
        super().__init__()
        self.features = FilterBank(config.num_bins)
        self.augment = SpecAugment(augment or SpecAugmentConfig())
        self.encoder = Conformer(config)
        self.head = nn.Linear(config.dim, vocab_size)

    def encode(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, N)` samples and `(B,)` lengths → `(B, T, dim)` encoder frames and `(B,)` lengths."""
        features, frames = self.features(waveforms, lengths)
        return self.encoder(self.augment(features), frames)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, N)` samples and `(B,)` lengths → `(B, T, vocab_size)` logits and `(B,)` frames."""
        encoded, frames = self.encode(waveforms, lengths)
        return self.head(encoded), frames
