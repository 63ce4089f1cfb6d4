"""The model of stage 1: features, encoder and a CTC head, which stage 2 keeps for drafts and timestamps."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechllm_pl.models.features import SpecAugment, SpecAugmentConfig
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


class CtcModel(nn.Module, ABC):
    """An encoder with a CTC head: all of stage 1, and what stage 2 asks of an encoder.

    Args:
        encoder: description of its network.
        spec_augment: how much of the features is hidden in training.
        vocab_size: CTC classes with the blank.

    Attributes:
        dim: width of a frame.
        seconds_per_frame: from one frame to the next.
        augment: hides parts of the features in training; is told the epoch.
        head: from frames to CTC logits.
    """

    dim: int
    seconds_per_frame: ClassVar[float]
    augment: SpecAugment
    head: CtcHead

    @abstractmethod
    def __init__(self, encoder: Any, spec_augment: SpecAugmentConfig, vocab_size: int):
        super().__init__()

    @staticmethod
    @abstractmethod
    def frame_lengths(samples: Tensor) -> Tensor:
        """Numbers of samples → numbers of frames."""

    @property
    @abstractmethod
    def layers(self) -> nn.ModuleList:
        """The repeated blocks: sharded, compiled and computed again one by one."""

    @abstractmethod
    def encode(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, N)` samples and `(B,)` lengths → `(B, T, dim)` frames, zero beyond `(B,)` lengths."""

    def is_saved(self, name: str) -> bool:
        """Whether checkpoints hold this entry of the state dict."""
        return True

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
