"""The model of stage 1: features, encoder and a CTC head, which stage 2 keeps for drafts and timestamps."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechllm_pl.models.config import CtcConfig
from speechllm_pl.models.conformer import Conformer
from speechllm_pl.models.features import FilterBank, SpecAugment
from speechllm_pl.models.losses import Tokens, WeightedTerm, ctc_loss


class CtcHead(nn.Linear):
    """Logits in fp32 wherever they are asked for, under autocast too.

    In bf16 a logit of 20 is a multiple of 1/8: near ties are decided by rounding, and the loss sums over all frames
    what was lost in each. The product is small beside the encoder's.
    """

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, input: Tensor) -> Tensor:
        """`(…, dim)` frames of any type → `(…, vocab_size)` fp32 logits."""
        return F.linear(input.float(), self.weight.float(), self.bias.float())


class CtcModel(nn.Module):
    """Waveforms in, encoder frames and CTC logits out: all of stage 1."""

    def __init__(self, config: CtcConfig, vocab_size: int):
        super().__init__()
        self.features = FilterBank(config.encoder.num_bins)
        self.augment = SpecAugment(config.spec_augment)
        self.encoder = Conformer(config.encoder)
        self.head = CtcHead(config.encoder.dim, vocab_size)

    def is_saved(self, name: str) -> bool:
        """Whether checkpoints hold this entry of the state dict."""
        return True

    @staticmethod
    def frame_lengths(samples: Tensor) -> Tensor:
        """Numbers of samples → numbers of encoder frames."""
        return Conformer.output_lengths(FilterBank.num_frames(samples))

    def encode(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, N)` samples and `(B,)` lengths → `(B, T, dim)` encoder frames and `(B,)` lengths."""
        features, frames = self.features(waveforms, lengths)
        return self.encoder(self.augment(features), frames)

    def losses(self, waveforms: Tensor, lengths: Tensor, targets: Tokens) -> dict[str, WeightedTerm]:
        """The named terms of stage 1's loss.

        Args:
            waveforms: `(B, N)` samples; `lengths`: `(B,)`.
            targets: CTC classes of the reference.
        """
        logits, frames = self(waveforms, lengths)
        return {"ctc_loss": WeightedTerm(ctc_loss(logits, frames, targets), 1.0)}

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, N)` samples and `(B,)` lengths → `(B, T, vocab_size)` fp32 logits and `(B,)` frames."""
        encoded, frames = self.encode(waveforms, lengths)
        return self.head(encoded), frames
