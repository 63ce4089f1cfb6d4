"""Changes to a built model."""

import torch
from torch import Tensor, nn

from speechllm_pl.models.adjustments import checkpoint_activations, replace_tensors


class Tied(nn.Module):
    """Two layers with one weight, a frozen bias and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(False)
        self.register_buffer("scale", torch.full((4,), 2.0))
        self.register_buffer("none", None)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh()) * self.scale


def test_every_tensor_is_replaced_once_and_stays_what_it_was() -> None:
    model, made = Tied(), []

    def double(tensor: Tensor) -> Tensor:
        made.append(tensor)
        return 2 * tensor.detach()

    former = {name: value.clone() for name, value in model.state_dict().items()}
    replace_tensors(model, double)
    assert len(made) == 3  # the tied weight is one
    assert model.second.weight is model.first.weight
    assert all(torch.equal(value, 2 * former[name]) for name, value in model.state_dict().items())
    trained = {name: isinstance(p, nn.Parameter) and p.requires_grad for name, p in model.named_parameters()}
    assert trained == {"first.weight": True, "second.bias": False}
    assert not isinstance(model.scale, nn.Parameter)
    model(torch.randn(2, 4)).sum().backward()
    assert model.first.weight.grad is not None


def test_a_checkpointed_layer_runs_twice_with_the_same_gradients_and_names() -> None:
    torch.manual_seed(0)
    model, x, runs = Tied(), torch.randn(3, 4), []
    model.first.register_forward_hook(lambda *_: runs.append("first"))
    inner = nn.Sequential(model.first, nn.Tanh())
    inner[1].register_forward_hook(lambda *_: runs.append("tanh"))
    names = list(inner.state_dict())
    expected = torch.autograd.grad(inner(x).square().sum(), list(inner.parameters()))
    assert runs == ["first", "tanh"]
    checkpoint_activations([inner])
    found = torch.autograd.grad(inner(x).square().sum(), list(inner.parameters()))
    torch.testing.assert_close(found, expected)
    assert runs[2:5] == ["first", "tanh", "first"]  # again, as far as is needed
    assert list(inner.state_dict()) == names
