"""Muon for the matrices inside the encoder, AdamW for everything else, as one optimiser at one learning rate."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim.optimizer import Optimizer, ParamsT

HIDDEN_MATRICES = "hidden_matrices"
"""Key of a parameter group: whether it holds weight matrices between hidden layers, and nothing else."""


def grouped(parameters: Iterable[Parameter], inside: torch.nn.Module, **settings: Any) -> list[dict[str, Any]]:
    """Parameter groups with the weight matrices of `inside` apart, which most optimisers treat like the rest.

    Args:
        settings: of either group, such as its `lr`.
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
    """Orthogonalised momentum for hidden matrices (Muon, Jordan et al. 2024), AdamW for the other parameters.

    Muon's updates are scaled to the size of AdamW's (arXiv 2502.16982), so that one learning rate and one
    weight decay serve both. Parameters in groups that do not say `hidden_matrices` go to AdamW.

    Args:
        params: parameters or groups of them, as `grouped` gives.
        lr: learning rate.
        betas: AdamW's running means.
        momentum: Muon's.
        weight_decay: decoupled, of both.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, HIDDEN_MATRICES: False})
        muon = [group for group in self.param_groups if group[HIDDEN_MATRICES]]
        rest = [group for group in self.param_groups if not group[HIDDEN_MATRICES]]
        self.parts: list[Optimizer] = []
        if muon:
            self.parts.append(torch.optim.Muon(muon, momentum=momentum, adjust_lr_fn="match_rms_adamw"))
        if rest:
            self.parts.append(torch.optim.AdamW(rest, betas=betas))
        self._share()

    def _share(self) -> None:
        """Let the parts work on this optimiser's groups and state, which schedulers and checkpoints see."""
        for part in self.parts:
            hidden = isinstance(part, torch.optim.Muon)
            part.param_groups = [group for group in self.param_groups if group[HIDDEN_MATRICES] == hidden]
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of either part; `closure` computes loss and gradients, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()
