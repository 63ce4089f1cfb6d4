"""Where a run stands in its data: the epoch and its batches that are done, which checkpoints hold."""

from dataclasses import dataclass
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from speechllm_pl.data.epoch_plan import EpochBatches


@dataclass(frozen=True)
class RunPosition:
    """A position in the training data.

    Attributes:
        epoch: of the run.
        batches: done in this epoch, over all ranks.
        steps: batches of this epoch, as each rank's trainer counts them.
        data: all that gives the number of a batch its meaning.
    """

    epoch: int
    batches: int
    steps: int
    data: dict[str, int]

    @classmethod
    def of(cls, plan: EpochBatches, progress: Any, data: dict[str, int]) -> "RunPosition":
        """The position that a run has reached.

        Args:
            plan: of the epoch.
            progress: the trainer's count of its batches.
            data: as the attribute.
        """
        steps = progress.current.processed
        return cls(plan.epoch, plan.batches if progress.is_last_batch else plan.done_after(steps), steps, data)

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> "RunPosition | None":
        """The position in a checkpoint; None if the run had not begun."""
        return cls(state["epoch"], state["batches"], state["steps"], state["data"]) if state else None

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"epoch": self.epoch, "batches": self.batches, "steps": self.steps, "data": self.data}

    def resumed(self, plan: EpochBatches, data: dict[str, int]) -> EpochBatches:
        """Skip the batches that are done, if the plan is of this position's epoch.

        Args:
            plan: of the epoch that is to be trained.
            data: of the run that is resumed, as the attribute.
        """
        if plan.epoch != self.epoch:
            return plan
        if self.batches == self.data["batches"]:  # finished, but for the trainer's own last things
            return plan.resumed(plan.batches, self.steps)
        if self.data == data:
            return plan.resumed(self.batches, self.steps)
        rank_zero_warn(
            f"the training data, or how it makes batches (data.seed, data.max_duration …), is not what the checkpoint"
            f" was made with: epoch {plan.epoch} begins again with its first batch"
        )
        return plan.resumed(0, self.steps)


def leave_finished_epoch(epoch_loop: Any, batches: int) -> None:
    """Let a run that stopped right after an epoch's last batch begin the next epoch with its first.

    Lightning takes the former epoch for finished if it had at least as many batches as the next one, but it had fewer
    if there were more ranks: so the numbers are made equal.

    Args:
        epoch_loop: of the trainer.
        batches: of the next epoch.
    """
    progress = epoch_loop.batch_progress
    if epoch_loop.restarting and progress.is_last_batch:
        current = progress.current
        current.ready = current.started = current.processed = batches
        current.completed = batches - 1  # the loop counts the last one itself
