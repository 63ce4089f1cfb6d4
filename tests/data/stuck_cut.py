"""A module of its own: a loader's process imports it, and would be long about all that a test imports."""

import time
from typing import Any

from lhotse import MonoCut


class StuckCut(MonoCut):
    """Reading it does not end, as of a file on a disk that does not answer."""

    def __getattribute__(self, name: str) -> Any:
        if name == "supervisions":
            time.sleep(3600)
        return super().__getattribute__(name)
