"""Which positions of a padded batch are real. Padding never leaks: every operation over time asks here."""

from collections.abc import Iterable

import torch
from torch import Tensor


def length_mask(lengths: Tensor, max_length: int) -> Tensor:
    """Mask `(B, max_length)`, true at the real positions of `(B,)` lengths; padding is on the right."""
    return torch.arange(max_length, device=lengths.device) < lengths[:, None]


def halved(lengths: Tensor) -> Tensor:
    """Lengths after one convolution of stride 2, kernel 3, padding 1: ceil(length / 2)."""
    return (lengths + 1) // 2


def stacked(lengths: Tensor, stride: int) -> Tensor:
    """Lengths after stacking every `stride` frames; a last incomplete stack counts: ceil(length / stride)."""
    return (lengths + stride - 1) // stride


def convolved(lengths: Tensor, kernels: Iterable[int], strides: Iterable[int], padding: int = 0) -> Tensor:
    """Lengths after convolutions with `padding` on either side; the shortest is one."""
    for kernel, stride in zip(kernels, strides, strict=True):
        lengths = ((lengths + 2 * padding - kernel) // stride + 1).clamp(min=1)
    return lengths
