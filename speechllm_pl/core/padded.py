"""Sequences of different lengths as one value."""

from typing import NamedTuple

from torch import Tensor


class Padded(NamedTuple):
    """B sequences in one tensor, padded on the right."""

    values: Tensor  # (B, N, …)
    lengths: Tensor  # (B,) real ones among the N
