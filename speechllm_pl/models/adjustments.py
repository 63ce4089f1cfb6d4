"""Changes to a built model, from outside: other tensors in place of its own, activations computed twice."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpointed


def replace_tensors(model: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Replace every parameter and buffer by `make(tensor)`; tied ones stay tied."""
    made: dict[Tensor, Tensor] = {}

    def new(tensor: Tensor) -> Tensor:
        if tensor not in made:
            value = make(tensor)
            is_parameter = isinstance(tensor, nn.Parameter) and value is not tensor
            made[tensor] = nn.Parameter(value, requires_grad=tensor.requires_grad) if is_parameter else value
        return made[tensor]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: cast(Any, new(tensor)) for name, tensor in tensors.items() if tensor is not None})


def checkpoint_activations(layers: Iterable[nn.Module], **settings: Any) -> None:
    """Keep only the inputs of each layer for the backward pass, and compute the rest again there.

    Args:
        layers: changed in place; the names of their parameters stay.
        settings: options of `torch.utils.checkpoint.checkpoint`.
    """
    for layer in layers:
        layer.forward = partial(checkpointed, layer.forward, use_reentrant=False, **settings)
