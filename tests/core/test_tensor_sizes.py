"""Bytes of tensors are those of their storages."""

import torch

from speechllm_pl.core.tensor_sizes import dtype_bytes, tensor_bytes


def tensors(device: str) -> list[torch.Tensor]:
    kinds = ((torch.float32, (3, 5)), (torch.bfloat16, (7,)), (torch.uint8, (2, 2, 2)), (torch.float32, ()))
    return [torch.zeros(shape, dtype=dtype, device=device) for dtype, shape in kinds]


def test_all_bytes_are_those_of_the_storages() -> None:
    assert tensor_bytes(tensors("cpu")) == sum(tensor.untyped_storage().nbytes() for tensor in tensors("cpu"))


def test_bytes_by_type_also_of_tensors_without_values() -> None:
    expected = {torch.float32: 4 * 16, torch.bfloat16: 2 * 7, torch.uint8: 8}
    assert dtype_bytes(tensors("meta")) == dtype_bytes(tensors("cpu")) == expected
