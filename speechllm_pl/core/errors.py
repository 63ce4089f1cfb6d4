"""What may go wrong, in the words of whoever can mend it."""

import re
import signal
import unicodedata


class UserError(ValueError):
    """Bad input: one line that names the thing and the remedy.

    Programs print the message alone, without a traceback, and exit with status 2.
    """


class Stopped(Exception):
    """Raised on every rank, after the same step, when a signal has asked for an end and the state is saved."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.status = EXIT_BASE + signum


EXIT_BASE = 128
"""A stopped run exits with this plus the signal's number, as shells have it: 130 after SIGINT, 143 after SIGTERM."""

LOST = re.compile("gloo|nccl|connection (closed|reset)|timed out", re.IGNORECASE)
"""What a rank's error says when it was another one that failed."""


def user_error(error: BaseException | None, *others: type[Exception]) -> str | None:
    """What to tell the user, where it is theirs to mend, or else None: jsonargparse wraps errors of constructors.

    Args:
        others: further kinds of errors that users can mend.
    """
    while error is not None:
        if isinstance(error, (UserError, *others)):
            return " ".join(str(error).split())
        error = error.__cause__
    return None


def in_one_line(error: Exception) -> str:
    """What an exception of any library says."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def printable(text: str) -> str:
    """With control characters, line ends, halves of surrogates and changes of direction as escapes.

    A file's name can hold any of them: on a terminal they would move the cursor, or pass for another line.
    """
    return "".join(character if _is_shown(character) else _escaped(character) for character in text)


def _is_shown(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") and not (
        "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
