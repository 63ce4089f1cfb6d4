"""Messages of libraries, reduced to one line that a user can act on."""

import difflib
import logging
import re
import warnings
from collections.abc import Iterable

HARMLESS = (
    ".*(srun|treespec|sync_dist|eval mode at the start|model summary"
    "|metric states have not yet been updated"  # of a rank that had no utterance
    "|dataloader is not resumable"  # ours is, by the data module's state
    "|smaller than the logging interval).*"  # which does not begin anew in each epoch
)
"""Warnings of libraries that a user cannot act on."""
ADVICE = re.compile(
    "Tip: For seamless|TPU available: False|was configured so validation will run|to estimate number of stepping"
    r"|Restoring states from|\[rank: [1-9]\d*\] Seed set|MEMBER: 1/1$|Starting with 1 processes"
)
"""Lightning's advice about products, other devices, defaults and next steps, and what it repeats on each rank."""
TALKATIVE = ("pytorch.utilities.rank_zero", "fabric.utilities.seed", "fabric.utilities.distributed")
"""Lightning's loggers of such advice."""
UNKNOWN = re.compile(r"(?:unrecognized arguments: --|[Oo]ption ')([\w.-]+)")
"""Errors of jsonargparse about unknown names."""
OPTIONAL = re.compile(
    r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: - (.*?) - Expected a <class 'NoneType'>"
    " Given value type: .*"
)
"""Error of jsonargparse about a bad optional value; the group holds the relevant part."""


def quieten() -> None:
    """Suppress warnings and Lightning's log messages that no user can act on."""
    warnings.filterwarnings("ignore", message=HARMLESS)
    for name in TALKATIVE:
        logging.getLogger(f"lightning.{name}").addFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return not ADVICE.search(record.getMessage())


def parsing_error(message: str) -> tuple[str, str | None]:
    """One-line form of jsonargparse's message, and the unknown option without a suggestion, if any."""
    message = OPTIONAL.sub(r"\1", " ".join(message.split()))
    found = None if "Did you mean" in message else UNKNOWN.search(message)  # a parser inside this one may have asked
    return message, found[1] if found else None


def nearest(name: str, known: Iterable[str]) -> str:
    """Question suggesting the valid name nearest to `name`, or else to its first part; empty if none is near."""
    known = sorted(set(known))
    found = difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(name.split(".")[0], known, n=1)
    return f" Did you mean {found[0]}?" if found and found[0] != name else ""
