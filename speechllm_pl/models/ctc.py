"""The model of stage 1: features, encoder and a CTC head, which stage 2 keeps for drafts and timestamps.

An encoder is a description (`EncoderConfig`) and the model that is built from it (`CtcModel`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.padded import Padded
from speechllm_pl.models.features import SpecAugment, SpecAugmentConfig
from speechllm_pl.models.losses import WeightedTerm, ctc_loss


class CtcHead(nn.Linear):
    """Linear layer that computes its logits in fp32, also under autocast.

    In bf16 a logit of 20 is a multiple of 1/8: rounding would decide near ties, and its errors would add up over all
    frames of the loss. The product is small beside the encoder's.
    """

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, input: Tensor) -> Tensor:
        """Compute `(…, vocab_size)` fp32 logits from `(…, dim)` frames of any type."""
        return F.linear(input.float(), self.weight.float(), self.bias.float())


class CtcModel(nn.Module, ABC):
    """Encoder with a CTC head: the whole model of stage 1, and the interface of an encoder in stage 2.

    Attributes:
        dim: width of a frame.
        seconds_per_frame: from one frame to the next.
        augment: hides parts of the features in training; its `epoch` is set from outside.
        head: from frames to CTC logits.
        digest: tells the weights that a pretrained encoder was read with from others; empty where there are none.
    """

    dim: int
    seconds_per_frame: float
    augment: SpecAugment
    head: CtcHead
    digest: str = ""

    @property
    @abstractmethod
    def layers(self) -> nn.ModuleList:
        """The repeated blocks, each a unit of sharding, compilation and activation checkpointing."""

    @abstractmethod
    def encode(self, waveforms: Padded) -> Padded:
        """Encode `(B, N)` samples as `(B, T, dim)` frames, zero beyond their lengths.

        Args:
            waveforms: or the `(B, T, dim)` frames that `frozen_frames` made of them earlier.
        """

    def frozen_frames(self, waveforms: Padded) -> Padded | None:
        """Frames of a frozen pretrained encoder, which are the same each time; None where there is none.

        `encode` gives the same for them as for the waveforms.
        """
        return None

    @property
    def frozen_digest(self) -> str:
        """Tells frames of `frozen_frames` from those of other weights and features; empty where there are none."""
        return ""

    def parameter_lr_factors(self) -> Iterator[tuple[nn.Parameter, float]]:
        """Parameters that are trained more slowly than the others, with their share of the learning rate."""
        return iter(())

    def is_saved(self, name: str) -> bool:
        """Whether checkpoints hold this entry of the state dict."""
        return True

    def losses(self, waveforms: Padded, targets: Padded) -> dict[str, WeightedTerm]:
        """The named terms of stage 1's loss.

        Args:
            waveforms: `(B, N)` samples.
            targets: CTC classes of the reference.
        """
        return {"ctc_loss": WeightedTerm(ctc_loss(self(waveforms), targets), 1.0)}

    def forward(self, waveforms: Padded) -> Padded:
        """Compute `(B, T, vocab_size)` fp32 logits from `(B, N)` samples."""
        encoded, frames = self.encode(waveforms)
        return Padded(self.head(encoded), frames)


class EncoderConfig(ABC):
    """Description of an encoder: a frozen dataclass of its settings, which builds it."""

    @abstractmethod
    def build(self, spec_augment: SpecAugmentConfig, vocab_size: int) -> CtcModel:
        """Build the untrained model of stage 1.

        Args:
            spec_augment: how much of the features is hidden in training.
            vocab_size: CTC classes with the blank.
        """

    @abstractmethod
    def frame_lengths(self, samples: Tensor) -> Tensor:
        """Numbers of frames for numbers of samples."""

    def pinned(self) -> Self:
        """The same description with the commit of a pretrained encoder from a hub."""
        return self

    @property
    def is_pretrained(self) -> bool:
        """Whether it brings trained weights, so that stage 2 can begin without stage 1."""
        return False

    @property
    def has_own_head(self) -> bool:
        """Whether it brings a trained CTC head, whose tokenizer is `own_tokenizer`."""
        return False

    def own_tokenizer(self) -> CtcTokenizer | None:
        """Tokenizer of the CTC classes that the encoder brings; None if that of the data is used."""
        return None
