import copy
from functools import partial

import pytest
import torch
from torch import nn

from speechllm_pl.training.optimizers import MuonAdamW, grouped


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 3))


def backward(network: nn.Module, seed: int) -> None:
    network.zero_grad()
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
    network(x).square().mean().backward()


def weights(network: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def test_only_matrices_inside_are_set_apart(network) -> None:
    groups = grouped(network.parameters(), inside=network[1], lr=0.5)
    found = {group["hidden_matrices"]: group["params"] for group in groups}
    assert [id(p) for p in found[True]] == [id(network[1].weight)]
    assert len(found[False]) == 7
    assert {group["lr"] for group in groups} == {0.5}


def test_steps_are_those_of_muon_and_adamw_apart(network) -> None:
    """Compared with the two optimisers of torch, each on its own parameters."""
    other = copy.deepcopy(network)
    ours = MuonAdamW(
        grouped(network.parameters(), network[1]), lr=0.02, betas=(0.8, 0.9), momentum=0.7, weight_decay=0.1
    )
    rest = [p for p in other.parameters() if p is not other[1].weight]
    adamw = torch.optim.AdamW(rest, lr=0.02, betas=(0.8, 0.9), weight_decay=0.1)
    muon = torch.optim.Muon([other[1].weight], lr=0.02, momentum=0.7, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        backward(network, step)
        backward(other, step)
        ours.step()
        adamw.step()
        muon.step()
    for found, expected in zip(weights(network), weights(other), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_resumed_from_its_state_it_goes_on_as_before(network) -> None:
    optimizer = MuonAdamW(grouped(network.parameters(), network[1]), lr=0.02)
    for step in range(3):
        backward(network, step)
        optimizer.step()
    resumed_network = copy.deepcopy(network)
    resumed = MuonAdamW(grouped(resumed_network.parameters(), resumed_network[1]), lr=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(3, 6):
        for each, its in ((network, optimizer), (resumed_network, resumed)):
            backward(each, step)
            its.step()
    for found, expected in zip(weights(resumed_network), weights(network), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_scheduler_reaches_both_parts(network) -> None:
    optimizer = MuonAdamW(grouped(network.parameters(), network[1]), lr=0.02, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = weights(network)
    backward(network, 0)
    optimizer.step()
    scheduler.step()
    for found, expected in zip(weights(network), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("inside", [nn.Identity(), None], ids=["no hidden matrix", "nothing else"])
def test_one_kind_of_parameter_is_enough(inside) -> None:
    layer = nn.Linear(3, 3, bias=False)
    optimizer = MuonAdamW(grouped(layer.parameters(), inside or layer), lr=0.1)
    before = layer.weight.detach().clone()
    loss = layer(torch.ones(2, 3)).square().sum()
    assert optimizer.step(partial(_closure, loss)) == pytest.approx(loss.item())
    assert not torch.equal(layer.weight, before)


def _closure(loss: torch.Tensor) -> float:
    loss.backward()
    return loss.item()
