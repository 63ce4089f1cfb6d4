"""Refuse to train when too many recordings cannot be read."""

from speechllm_pl.core.errors import UserError

ENOUGH = 100
"""Number of recordings from which on a share is judged; at the end of an epoch fewer suffice."""


class Unread:
    """Counts the recordings due since the start of a run, over all ranks, and those that could not be read."""

    def __init__(self) -> None:
        self.due = self.skipped = 0
        self.example = ""  # of this rank

    def add(self, due: int, skipped: int, example: str) -> None:
        self.due += due
        self.skipped += skipped
        self.example = example or self.example

    def refuse_above(self, share: float, *, epoch_ends: bool) -> None:
        """Refuse to go on if too large a share could not be read.

        Raises:
            UserError: more than `share` could not be read. All ranks raise at the same step.
        """
        if (self.due >= ENOUGH or epoch_ends) and self.skipped > share * self.due:
            example = f", such as {self.example}" if self.example else ": the warnings name them"
            raise UserError(
                f"{self.skipped} of {self.due} training utterances could not be read, more than data.max_skipped_share"
                f" {share:g}{example}; mend the paths in the manifest or mount their disk, prepare the data again, or"
                " raise --data.max_skipped_share"
            )
