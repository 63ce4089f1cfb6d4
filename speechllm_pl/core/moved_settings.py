"""Settings of models that earlier versions had elsewhere: in checkpoints, configurations and on the command line."""

from collections.abc import Mapping
from typing import Any

MOVED = {"stride": ("bridge", "stride")}
"""Group and name of a setting, by its name in earlier versions."""


def where_they_are_now(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Put each setting of a model where the present version has it."""
    present = dict(settings)
    for former, (group, name) in MOVED.items():
        if former in present:
            present[group] = {name: present.pop(former)}
    return present
