"""Which positions of a padded batch are real. Padding never leaks: every operation over time asks here."""

import torch
from torch import Tensor


def length_mask(lengths: Tensor, max_length: int) -> Tensor:
    """`(B,)` lengths → `(B, max_length)` booleans, true at real positions (padding is on the right)."""
    return torch.arange(max_length, device=lengths.device) < lengths[:, None]


def halved(lengths: Tensor) -> Tensor:
    """Lengths after one convolution of stride 2, kernel 3, padding 1: ceil(length / 2)."""
    return (lengths + 1) // 2


def stacked(lengths: Tensor, stride: int) -> Tensor:
    """Lengths after stacking every `stride` frames; a last incomplete stack counts: ceil(length / stride)."""
    return (lengths + stride - 1) // stride
