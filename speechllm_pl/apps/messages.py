"""What libraries tell a user, reduced to what the user can act on, in one line."""

import difflib
import logging
import re
import warnings
from collections.abc import Iterable

HARMLESS = (
    ".*(srun|treespec|sync_dist|eval mode at the start|model summary|is_gradient_checkpointing"
    "|metric states have not yet been updated"  # of a rank that had no utterance
    "|dataloader is not resumable"  # ours is, by the data module's state
    "|smaller than the logging interval).*"  # which does not begin anew in each epoch
)
"""Warnings of the libraries that a user can do nothing about."""
ADVICE = re.compile(
    "Tip: For seamless|TPU available: False|was configured so validation will run|to estimate number of stepping"
    r"|Restoring states from|\[rank: [1-9]\d*\] Seed set|MEMBER: 1/1$|Starting with 1 processes"
)
"""What Lightning tells whoever runs it: of its maker's products, of other devices, of what holds by default, of what it
is about to do, and of each rank or a single one what holds for all."""
TALKATIVE = ("pytorch.utilities.rank_zero", "fabric.utilities.seed", "fabric.utilities.distributed")
"""Lightning's loggers of that."""
UNKNOWN = re.compile(r"(?:unrecognized arguments: --|[Oo]ption ')([\w.-]+)")
"""How jsonargparse names what it does not know."""
OPTIONAL = re.compile(
    r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: - (.*?) - Expected a <class 'NoneType'>"
    " Given value type: .*"
)
"""Its account of a bad value where None would do as well; the group is what matters."""


def quieten() -> None:
    """Leave out what no user can act on, of warnings and of what Lightning logs."""
    warnings.filterwarnings("ignore", message=HARMLESS)
    for name in TALKATIVE:
        logging.getLogger(f"lightning.{name}").addFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return not ADVICE.search(record.getMessage())


def parsing_error(message: str) -> tuple[str, str | None]:
    """jsonargparse's message in one line, and the option that it does not know and has found no name for, if any."""
    message = OPTIONAL.sub(r"\1", " ".join(message.split()))
    found = None if "Did you mean" in message else UNKNOWN.search(message)  # a parser inside this one may have asked
    return message, found[1] if found else None


def nearest(name: str, known: Iterable[str]) -> str:
    """A question after the valid name that is nearest to `name`, or else to its first part; empty when none is."""
    known = sorted(set(known))
    found = difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(name.split(".")[0], known, n=1)
    return f" Did you mean {found[0]}?" if found and found[0] != name else ""
