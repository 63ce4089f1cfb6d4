"""Stand-ins for CUDA's kernels: the shapes, types and memory that CUDA has, without one."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from speechllm_pl.planning.gpu_kernels import FP32_UNDER_AUTOCAST, GpuKernels
from speechllm_pl.planning.live_bytes import LiveBytes


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2)])
def test_attention_has_the_output_of_torchs_own(masked: bool, heads: int, groups: int) -> None:
    with FakeTensorMode():
        query = torch.zeros(2, heads, 30, 16, dtype=torch.bfloat16, requires_grad=True)
        key, value = (torch.zeros(2, groups, 30, 16, dtype=torch.bfloat16) for _ in range(2))
        mask = torch.ones(2, 1, 1, 30, dtype=torch.bool) if masked else None
        with GpuKernels():
            found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=heads != groups)
            found.sum().backward()
        assert (found.shape, found.dtype) == (query.shape, query.dtype)
        assert query.grad is not None


def test_attention_computes_in_the_type_of_autocast() -> None:
    with FakeTensorMode(), GpuKernels(), torch.autocast("cpu", torch.bfloat16):
        parts = [torch.zeros(1, 2, 10, 16) for _ in range(3)]
        assert F.scaled_dot_product_attention(*parts).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "layer_norm"])
def test_what_autocast_computes_in_fp32_on_cuda_is_fp32(name: str) -> None:
    half, rest = torch.randn(3, 8, dtype=torch.bfloat16), ((8,) if name == "layer_norm" else -1)
    function = getattr(F, name)
    assert function in FP32_UNDER_AUTOCAST
    assert function(half, rest).dtype == torch.bfloat16
    with GpuKernels():
        assert function(half, rest).dtype == torch.bfloat16  # without autocast nothing changes
        with torch.autocast("cpu", torch.bfloat16):
            found = function(half, rest)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, function(half.float(), rest))


def test_dropout_keeps_a_mask_of_booleans() -> None:
    def kept(bytes_of: GpuKernels | None) -> int:
        with FakeTensorMode():
            x = torch.zeros(1000, requires_grad=True)
            with LiveBytes([x], peak_of=("activations",)) as live:
                if bytes_of is None:
                    y = F.dropout(x, 0.5)
                else:
                    with bytes_of:
                        y = F.dropout(x, 0.5)
                y.sum().backward()
        return live.at_peak["activations"]

    assert kept(None) - kept(GpuKernels()) >= 3 * 1000  # a byte instead of a number for each value


def test_no_dropout_outside_training() -> None:
    x = torch.randn(100)
    with GpuKernels():
        assert torch.equal(F.dropout(x, 0.5, training=False), x)
        assert torch.equal(F.dropout(x, 0.0), x)
