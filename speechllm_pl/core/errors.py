"""What may go wrong, in the words of whoever can mend it."""

import re


class UserError(ValueError):
    """Bad input: one line that names the thing and the remedy.

    Programs print the message alone, without a traceback, and exit with status 2.
    """


LOST = re.compile("gloo|nccl|connection (closed|reset)|timed out", re.IGNORECASE)
"""What a rank's error says when it was another one that failed."""


def in_one_line(error: Exception) -> str:
    """What an exception of any library says."""
    return " ".join(str(error).split())[:300] or type(error).__name__
