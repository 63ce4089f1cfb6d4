"""A run that can read next to nothing of its data must not seem to train."""

from speechllm_pl.core.errors import UserError

ENOUGH = 100
"""Recordings after which a share says something; the end of an epoch does so with fewer."""


class Unread:
    """Counts the recordings that were due since a run was started, over all ranks, and those that could not be read."""

    def __init__(self) -> None:
        self.due = self.skipped = 0
        self.example = ""  # of this rank

    def add(self, due: int, skipped: int, example: str) -> None:
        self.due += due
        self.skipped += skipped
        self.example = example or self.example

    def refuse_above(self, share: float, *, epoch_ends: bool) -> None:
        """
        Raises:
            UserError: more than this share could not be read. On all ranks at the same step.
        """
        if (self.due >= ENOUGH or epoch_ends) and self.skipped > share * self.due:
            example = f", such as {self.example}" if self.example else ": the warnings name them"
            raise UserError(
                f"{self.skipped} of {self.due} training utterances could not be read, more than data.max_skipped_share"
                f" {share:g}{example}; mend the paths in the manifest or mount their disk, prepare the data again, or"
                " raise --data.max_skipped_share"
            )
