from collections.abc import Callable

import pytest
import torch
from torch import nn

from speechllm_pl.core.tensor_sizes import dtype_bytes
from speechllm_pl.planning.live_bytes import LiveBytes


def test_two_layers_are_counted_as_by_hand() -> None:
    """Sizes in floats: x 8 x 10; hidden 8 x 20, twice until tanh's input is dropped; output 8 x 5."""
    first, second = torch.zeros(10, 20, requires_grad=True), torch.zeros(20, 5, requires_grad=True)
    with LiveBytes([first, second]) as live:
        x = torch.zeros(8, 10)
        hidden = torch.tanh(x @ first)
        output = hidden @ second
    assert live.live["activations"] == 4 * (8 * 10 + 8 * 20 + 8 * 5)
    assert live.at_peak["activations"] == 4 * (8 * 10 + 2 * 8 * 20)
    assert live.flops == 2 * 8 * 10 * 20 + 2 * 8 * 20 * 5
    assert output.shape == (8, 5)


def test_views_are_not_counted_again_and_freed_storages_no_longer() -> None:
    with LiveBytes() as live:
        x = torch.zeros(6, 4)
        parts = (x.T, x[1:], x.view(-1))
        assert live.live["activations"] == 6 * 4 * 4
        del x
        assert live.live["activations"] == 6 * 4 * 4  # the views keep it
        del parts
        assert live.live["activations"] == 0


def test_a_tensor_may_be_counted_as_something_else() -> None:
    with LiveBytes() as live:
        x = torch.zeros(3)
        live.count_from_now("logits")
        y = torch.zeros(5)
        live.count_as(x, "gradients")
    assert dict(live.live) == {"activations": 0, "logits": 20, "gradients": 12}
    assert live.at_peak == {"activations": 12}
    del x, y


def test_backward_is_counted_like_torchs_profiler_does(profiled_peak: Callable[[Callable], int]) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(50, 400), nn.GELU(), nn.LayerNorm(400), nn.Linear(400, 50))
    x = torch.randn(200, 50)

    def step() -> None:
        model.zero_grad()
        model(x).square().sum().backward()

    step()
    with LiveBytes([x, *model.parameters()]) as live:
        step()
    model.zero_grad()
    assert live.at_peak["activations"] == pytest.approx(profiled_peak(step), rel=0.02)


def test_bytes_by_dtype() -> None:
    tensors = [torch.zeros(3), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(1)]
    assert dtype_bytes(tensors) == {torch.float32: 16, torch.bfloat16: 4}
