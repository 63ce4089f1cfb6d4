"""How long work shows where it stands."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(description: str, total: int | None, **looks: Any) -> tqdm:
    """A bar with rate and time left. In a log file every refresh is a line, so there they are seldom.

    Args:
        looks: `unit`, `unit_scale`, `initial` … of tqdm.
    """
    return tqdm(desc=description, total=total, mininterval=0.5 if sys.stderr.isatty() else 30.0, **looks)
