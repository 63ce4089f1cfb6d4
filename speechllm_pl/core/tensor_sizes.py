"""Bytes of tensors."""

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

GIB = 2**30


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def dtype_bytes(tensors: Iterable[Tensor]) -> dict[torch.dtype, int]:
    """Total bytes of the tensors, by dtype."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.nbytes
    return dict(sizes)
