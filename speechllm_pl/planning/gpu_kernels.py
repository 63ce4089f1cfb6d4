"""Stand-ins for a GPU's kernels on fake tensors, so that memory can be estimated on machines without a GPU.

Fake tensors on a CUDA device cannot go backward without a driver, so the step runs on fake CPU tensors, and this
mode replaces what differs: the attention kernel, dropout's mask, and the functions that autocast computes in fp32
on CUDA but not on a CPU.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

MASK_ALIGNMENT = 8
"""Number of columns to whose multiples the memory-efficient attention kernel pads its mask."""


def _names(*owners: Any, names: str) -> set[Callable]:
    return {getattr(owner, name) for owner in owners for name in names.split() if hasattr(owner, name)}


FP32_UNDER_AUTOCAST = _names(
    torch,
    Tensor,
    names="pow __pow__ __rpow__ rsqrt reciprocal exp log log10 log2 log1p cumsum cumprod sum prod norm softmax"
    " log_softmax",
) | _names(F, names="layer_norm group_norm softmax log_softmax normalize cosine_similarity cross_entropy nll_loss")
"""https://docs.pytorch.org/docs/stable/amp.html, CUDA ops that autocast to float32: those that models call."""


class GpuKernels(TorchFunctionMode):
    """Replaces CUDA's kernels and autocast on fake CPU tensors while it is entered."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return attention(*args, **kwargs)
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        if func in FP32_UNDER_AUTOCAST and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(_as_fp32, (args, kwargs))
        return func(*args, **kwargs)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot product attention as CUDA does it: flash without a mask, the memory-efficient kernel with one."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if attn_mask is None and query.dtype != torch.float32:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    bias = None if attn_mask is None else _bias(attn_mask, query, key)
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, bias, True, dropout_p, is_causal, scale=scale)[0]


def _bias(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Convert a mask for the kernel: in the dtype of the queries, its rows padded, broadcast without a copy."""
    columns = mask.shape[-1]
    bias = torch.zeros_like(mask, dtype=query.dtype)
    if columns % MASK_ALIGNMENT:
        bias = F.pad(bias, (0, -columns % MASK_ALIGNMENT))[..., :columns]
    return bias.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout that keeps a mask of booleans, where a CPU keeps one of numbers."""
    return torch.native_dropout(input, p, True)[0] if training and p else input


def _as_fp32(value: Any) -> Any:
    lower = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if lower else value
