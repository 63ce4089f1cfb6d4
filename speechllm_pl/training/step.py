"""One optimiser step over all ranks and accumulated batches: its loss, and whose batches broke it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import NamedTuple

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

from speechllm_pl.models.losses import WeightedTerm


class Agreed(NamedTuple):
    """What all ranks know after each has had a batch."""

    means: dict[str, float]  # of each loss term over all tokens
    due: int = 0  # recordings of these batches
    skipped: int = 0  # of these, as they could not be read
    signal: int = 0  # the largest that any rank has received
    save: bool = False  # whether any wants a checkpoint


@dataclass
class OptimizerStep:
    """The part of a step seen so far: several batches when gradients are accumulated."""

    total: float = 0.0  # of the weighted losses, over all ranks
    tokens: float = 0.0  # of the first term, over all ranks
    ids: list[str] = field(default_factory=list)  # of this rank
    broken_ids: list[str] = field(default_factory=list)  # of its batches whose loss is not finite

    @property
    def loss(self) -> float:
        """The weighted loss per token."""
        return self.total / max(self.tokens, 1.0)

    def pool(
        self, terms: Mapping[str, WeightedTerm], counts: bool, due: int, skipped: int, signal: int, save: bool
    ) -> Agreed:
        """Add a batch of every rank, in one message with everything else that ranks must agree on.

        Args:
            terms: loss terms of this rank's batch; the same names on every rank.
            counts: whether this rank's batch counts; false when none of its recordings could be read.
            due, skipped: numbers of recordings of this rank's batch, and of those that could not be read.
            signal: signal that this rank has received, 0 for none.
            save: whether this rank wants a checkpoint.
        """
        own = [value for term, _ in terms.values() for value in (term.total.detach(), term.count)]
        own = torch.stack([value.double() * counts for value in own])
        pooled = _over_ranks(torch.cat([own, own.new_tensor([due, skipped, signal, save])]))
        totals, numbers = pooled[:-4:2], pooled[1:-4:2]
        self.tokens += numbers[0]
        self.total += sum(weight * total for (_, weight), total in zip(terms.values(), totals, strict=True))
        means = (total / max(number, 1.0) for total, number in zip(totals, numbers, strict=True))
        *agreed, any_save = map(int, pooled[-4:])
        return Agreed(dict(zip(terms, means, strict=True)), *agreed, save=bool(any_save))

    def note(self, ids: list[str], *, finite: bool) -> None:
        """Remember whose loss this rank has computed, and whether it was finite."""
        self.ids += ids
        if not finite:
            self.broken_ids += ids

    def suspects(self) -> tuple[str, list[str]]:
        """The values of a failed step that are not finite, and this rank's cuts that may be the cause (or none)."""
        if self.broken_ids or not isfinite(self.total):
            return "loss", self.broken_ids
        return "gradient", self.ids  # the loss was finite on all ranks, so any batch may be the cause


def is_logged(trainer: L.Trainer, step: int) -> bool:
    """Whether a step logs its values: when they are written, and at the end of an epoch or of the run.

    Lightning takes a millisecond for each value, written or not.

    Args:
        step: its number, from 1.
    """
    interval = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]  (its connector sets it)
    return step % interval == 0 or trainer.is_last_batch or step == trainer.max_steps


def _over_ranks(values: Tensor) -> list[float]:
    """The sum over ranks of each value but the last two, and the largest of each of those."""
    if not (dist.is_available() and dist.is_initialized()):
        return values.tolist()
    gathered = torch.empty(dist.get_world_size(), len(values), dtype=values.dtype, device=values.device)
    dist.all_gather_into_tensor(gathered, values[None])
    return [*gathered[:, :-2].sum(0).tolist(), *gathered[:, -2:].amax(0).tolist()]
