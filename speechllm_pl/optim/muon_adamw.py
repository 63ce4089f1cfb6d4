"""One optimiser of two: Muon for the weight matrices of a stack of blocks, AdamW for everything else."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Module, Parameter
from torch.optim.optimizer import Optimizer, ParamsT

from speechllm_pl.core.bf16 import bf16_is_faster

HIDDEN_MATRICES = "hidden_matrices"
"""Key of a parameter group: whether it holds weight matrices between hidden layers, and nothing else."""


def grouped(parameters: Iterable[Parameter], inside: Module, **settings: Any) -> list[dict[str, Any]]:
    """Parameter groups with the hidden matrices apart, for `MuonAdamW`; other optimisers take no notice of it.

    Args:
        parameters: to be trained.
        inside: the blocks whose two-dimensional weights are hidden matrices; depthwise kernels, biases and
            norms in them are not.
        settings: of all groups, such as their `lr`.
    """
    parameters = list(parameters)
    matrices = {id(p) for p in inside.parameters() if p.ndim == 2}
    groups = []
    for hidden in (False, True):
        members = [p for p in parameters if (id(p) in matrices) == hidden]
        if members:
            groups.append({"params": members, HIDDEN_MATRICES: hidden, **settings})
    return groups


class MuonAdamW(Optimizer):
    """Orthogonalised momentum for hidden matrices (Muon, kellerjordan.github.io/posts/muon), AdamW for the rest.

    Muon's updates are scaled to the size of AdamW's (arXiv 2502.16982), so that one learning rate and one
    weight decay serve both. Parameters in groups that do not say `hidden_matrices` go to AdamW: without such a
    group, for example when the encoder is frozen, this is AdamW.

    Args:
        params: Parameters or groups of them, as `grouped` gives.
        lr: Learning rate.
        betas: Decay rates of AdamW's running means.
        momentum: Momentum of Muon.
        weight_decay: Decoupled weight decay of both.

    Raises:
        ValueError: one of them is impossible.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ):
        torch.optim.AdamW([torch.zeros(1)], lr, betas, weight_decay=weight_decay)  # checks them, unlike a group's
        if not 0 <= momentum < 1:
            raise ValueError(f"Invalid momentum value: {momentum}")
        defaults = {"lr": lr, "betas": betas, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, HIDDEN_MATRICES: False})
        self._divide()

    def _divide(self) -> None:
        """Let torch's optimisers work on this one's groups and state, which schedulers and checkpoints see."""
        muon = [group for group in self.param_groups if group[HIDDEN_MATRICES]]
        rest = [group for group in self.param_groups if not group[HIDDEN_MATRICES]]
        self.parts: list[Optimizer] = []
        if muon:
            self.parts.append(SharedMuon(muon))
        if rest:
            self.parts.append(torch.optim.AdamW(rest, fused=True))
        for part in self.parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of both parts; `closure` computes loss and gradients, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        if "parts" in self.__dict__:  # not while torch's constructor adds the first ones
            self._divide()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore after loading a state dict, copying or unpickling."""
        super().__setstate__(state)
        self._divide()


class SharedMuon(torch.optim.Muon):
    """torch's Muon, quicker: matrices of one shape are orthogonalised together, and ranks share the work.

    Whole matrices have the same gradients on every rank (DDP), so each orthogonalises its share of them and hears
    of the others'. Sharded ones (FSDP) are left to torch.
    """

    def __init__(self, params: ParamsT):
        super().__init__(params, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        moved = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        if any(isinstance(matrix, DTensor) for matrices in moved for matrix in matrices):
            return super().step(closure)
        alike: dict[tuple[int, torch.Size], list[Tensor]] = {}  # by group and shape
        for number, matrices in enumerate(moved):
            for matrix in matrices:
                alike.setdefault((number, matrix.shape), []).append(matrix)
        stacks = [
            torch.stack([self._momentum(matrix, self.param_groups[number]["momentum"]) for matrix in matrices])
            for (number, _), matrices in alike.items()
        ]
        for ((number, shape), matrices), updates in zip(alike.items(), shared(stacks), strict=True):
            group = self.param_groups[number]
            rate = 0.2 * max(shape) ** 0.5 * group["lr"]  # updates then have the size of AdamW's
            for matrix, update in zip(matrices, updates, strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)

    def _momentum(self, matrix: Tensor, momentum: float) -> Tensor:
        """Nesterov momentum."""
        gradient, state = cast(Tensor, matrix.grad), self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return torch.lerp(gradient, mean, momentum)


def shared(stacks: list[Tensor]) -> list[Tensor]:
    """Orthogonalise `(N, R, C)` stacks of matrices, a part of every stack on each rank."""
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if ranks == 1 or not stacks:  # none has a gradient in a step that is left out
        return [orthogonalised(stack) for stack in stacks]
    own = [orthogonalised(_part(stack, dist.get_rank(), ranks)).flatten() for stack in stacks]
    told = own[0].new_empty(ranks * sum(map(len, own)))
    dist.all_gather_into_tensor(told, torch.cat(own))
    of_stacks = told.view(ranks, -1).split([len(part) for part in own], dim=1)
    return [parts.reshape(-1, *stack.shape[1:])[: len(stack)] for stack, parts in zip(stacks, of_stacks, strict=True)]


def _part(stack: Tensor, rank: int, ranks: int) -> Tensor:
    """A rank's share of `(N, R, C)`, equally many for each, padded with zeros after the last."""
    each = -(-len(stack) // ranks)
    part = stack[rank * each : (rank + 1) * each]
    return torch.nn.functional.pad(part, (0, 0, 0, 0, 0, each - len(part)))


def orthogonalised(matrices: Tensor) -> Tensor:
    """Bring the singular values of `(N, R, C)` matrices near one, in bf16 where that is faster than fp32.

    Five Newton-Schulz iterations of the fifth order, with Muon's coefficients: https://kellerjordan.github.io/posts/muon
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(torch.bfloat16 if bf16_is_faster(matrices.device) else torch.float32)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
