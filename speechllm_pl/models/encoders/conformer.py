"""The speech encoder: a convolutional front end of stride 8, then non-macaron conformer blocks.

Follows arXiv 2307.11795 (one frame per 80 ms, 512-dim, 18 to 36 blocks with one feed-forward each) on the
conformer of arXiv 2005.08100. Two choices keep padding from leaking and kernels fast: positions are rotary
(arXiv 2104.09864) inside scaled-dot-product attention, and the convolution module normalises per frame.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechllm_pl.core.audio.units import FRAME_SECONDS
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.masks import halved, length_mask
from speechllm_pl.core.padded import Padded
from speechllm_pl.models.ctc import CtcHead, CtcModel, EncoderConfig
from speechllm_pl.models.features import FilterBank, SpecAugment, SpecAugmentConfig


@dataclass(frozen=True)
class ConformerConfig(EncoderConfig):
    """Size of the conformer. The defaults are the paper's 18 blocks.

    Attributes:
        num_bins: Number of filter bank bins.
        dim: Width of the model.
        num_blocks: Number of conformer blocks (the paper: 18, 24 or 36).
        num_heads: Number of attention heads; dim / num_heads must be even for rotary positions.
        ffn_dim: Inner width of the feed-forward.
        kernel_size: Number of frames that the depthwise convolution sees (odd).
        dropout: Probability of dropout after every sub-layer.
    """

    num_bins: int = 80
    dim: int = 512
    num_blocks: int = 18
    num_heads: int = 8
    ffn_dim: int = 2048
    kernel_size: int = 11
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "dropout" and value < 1:
                raise UserError(f"encoder: {name} {value} must be at least 1")
        if self.dim % (2 * self.num_heads):
            raise UserError(f"encoder: dim {self.dim} must be a multiple of 2 * num_heads = {2 * self.num_heads}")
        if self.kernel_size % 2 == 0:
            raise UserError(f"encoder: kernel_size {self.kernel_size} must be odd, so that a frame has a centre")

    def build(self, spec_augment: SpecAugmentConfig, vocab_size: int) -> "ConformerCtc":
        return ConformerCtc(self, spec_augment, vocab_size)

    def frame_lengths(self, samples: Tensor) -> Tensor:
        return Conformer.output_lengths(FilterBank.num_frames(samples))


class ConformerCtc(CtcModel):
    """Filter banks, SpecAugment, conformer and CTC head."""

    seconds_per_frame = FRAME_SECONDS

    def __init__(self, encoder: ConformerConfig, spec_augment: SpecAugmentConfig, vocab_size: int):
        super().__init__()
        self.dim = encoder.dim
        self.features = FilterBank(encoder.num_bins)
        self.augment = SpecAugment(spec_augment)
        self.encoder = Conformer(encoder)
        self.head = CtcHead(encoder.dim, vocab_size)

    @property
    def layers(self) -> nn.ModuleList:
        return self.encoder.blocks

    def encode(self, waveforms: Padded) -> Padded:
        features, frames = self.features(waveforms)
        return self.encoder(Padded(self.augment(features), frames))


class Conformer(nn.Module):
    """Filter banks in, one vector per 80 ms out."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.config = config
        self.front_end = FrontEnd(config.num_bins, config.dim, config.dropout)
        self.rotary = Rotary(config.dim // config.num_heads)
        self.blocks = nn.ModuleList(ConformerBlock(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.dim)

    @staticmethod
    def output_lengths(frames: Tensor) -> Tensor:
        """`(B,)` encoder frames for `(B,)` filter bank frames: ceil(frames / 8)."""
        return halved(halved(halved(frames)))

    def forward(self, features: Padded) -> Padded:
        """Encode `(B, T, num_bins)` features as `(B, T/8, dim)` frames, zero beyond their lengths."""
        x, lengths = self.front_end(features)
        mask = length_mask(lengths, x.shape[1])
        rotation = self.rotary(x.shape[1], x.device)
        for block in self.blocks:
            x = block(x, mask, rotation)
        return Padded(self.norm(x) * mask[:, :, None], lengths)


class FrontEnd(nn.Module):
    """Three 1-D convolutions over time, stride 2 each, and a projection."""

    def __init__(self, num_bins: int, dim: int, dropout: float):
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv1d(channels, dim, kernel_size=3, stride=2, padding=1) for channels in (num_bins, dim, dim)
        )
        for convolution in self.convolutions:  # torch's default shrinks the signal below the biases
            nn.init.kaiming_normal_(cast(nn.Conv1d, convolution).weight, nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, convolution.bias))
        self.project = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Padded) -> Padded:
        x, frames = features.values.transpose(1, 2), features.lengths  # (B, bins, T)
        for convolution in self.convolutions:
            x = F.gelu(convolution(x))
            frames = halved(frames)
            x = x * length_mask(frames, x.shape[2])[:, None, :]
        return Padded(self.dropout(self.project(x.transpose(1, 2))), frames)


class Rotary(nn.Module):
    """Angles of rotary position embedding (arXiv 2104.09864), computed for the length at hand."""

    def __init__(self, head_dim: int, base: float = 10_000.0):
        super().__init__()
        self.head_dim, self.base = head_dim, base

    def forward(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the angles, `(length, head_dim)` each."""
        exponents = torch.arange(0, self.head_dim, 2, device=device) / self.head_dim
        angles = torch.arange(length, device=device)[:, None] * self.base**-exponents
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (i, i + head_dim/2) of `(…, T, head_dim)` by its position's angle."""
    cosine, sine = (part.to(x.dtype) for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


class ConformerBlock(nn.Module):
    """Attention, convolution, feed-forward, each with a residual connection and a norm before it."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.attention = SelfAttention(config)
        self.convolution = ConvolutionModule(config)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(config.dim),
            nn.Linear(config.dim, config.ffn_dim),
            nn.SiLU(),
            nn.Linear(config.ffn_dim, config.dim),
            nn.Dropout(config.dropout),
        )

    def forward(self, x: Tensor, mask: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Transform `(B, T, dim)` frames; `mask` is `(B, T)`, true at real frames."""
        x = x + self.attention(x, mask, rotation)
        x = x + self.convolution(x, mask)
        return x + self.feed_forward(x)


class SelfAttention(nn.Module):
    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.norm = nn.LayerNorm(config.dim)
        self.query_key_value = nn.Linear(config.dim, 3 * config.dim)
        self.output = nn.Linear(config.dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        projected = self.query_key_value(self.norm(x)).unflatten(-1, (3, self.num_heads, -1))
        parts = projected.permute(2, 0, 3, 1, 4)  # (3, B, heads, T, head_dim)
        query, key = rotate(parts[:2], rotation)
        attended = F.scaled_dot_product_attention(query, key, parts[2], attn_mask=mask[:, None, None, :])
        return self.dropout(self.output(attended.transpose(1, 2).flatten(2)))


class ConvolutionModule(nn.Module):
    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.gate = nn.Linear(config.dim, 2 * config.dim)
        self.depthwise = nn.Conv1d(
            config.dim, config.dim, config.kernel_size, padding=config.kernel_size // 2, groups=config.dim
        )
        self.depthwise_norm = nn.LayerNorm(config.dim)  # per frame: BatchNorm would see padding
        self.output = nn.Linear(config.dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = F.glu(self.gate(self.norm(x)), dim=-1) * mask[:, :, None]
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return self.dropout(self.output(F.silu(self.depthwise_norm(x))))
