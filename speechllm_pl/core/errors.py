"""Errors in the words of whoever can fix them."""

import re
import signal
import unicodedata


class UserError(ValueError):
    """Error in the input: one line that names the thing and the remedy.

    Programs print the message alone, without a traceback, and exit with status 2.
    """


class Stopped(Exception):
    """Raised on every rank, after the same step, when a signal has asked for an end and the state is saved."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.status = EXIT_BASE + signum


EXIT_BASE = 128
"""Exit status of a stopped run, less the signal's number: as in shells 130 after SIGINT, 143 after SIGTERM."""

LOST = re.compile("gloo|nccl|connection (closed|reset)|timed out", re.IGNORECASE)
"""Matches the error of a rank when another rank is the one that failed."""


def user_error(error: BaseException | None, *others: type[Exception]) -> str | None:
    """Message of the error, or of one it wraps, that a user can fix; None if there is none.

    jsonargparse wraps errors of constructors.

    Args:
        others: further types of errors that users can fix.
    """
    while error is not None:
        if isinstance(error, (UserError, *others)):
            return " ".join(str(error).split())
        error = error.__cause__
    return None


def in_one_line(error: Exception) -> str:
    """Message of an exception of any library, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def printable(text: str) -> str:
    """Escape control characters, line ends, halves of surrogate pairs and changes of direction.

    A file's name can hold any of them: on a terminal they would move the cursor, or pass for another line.
    """
    return "".join(character if _is_shown(character) else _escaped(character) for character in text)


def _is_shown(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") and not (
        "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
