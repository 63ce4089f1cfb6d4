"""Names of audio files that are made here: each ends in a digest of what went into it.

Why: a rerun then keeps exactly those files that are still right, and a run with other settings, even if it is
interrupted, never puts other sound under a name that an older manifest still refers to.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

OURS = re.compile(r".*-[0-9a-f]{8}\.flac(\.\d+)?")


def digest(ingredients: Mapping[str, object]) -> str:
    """Eight hexadecimal digits that change with any ingredient. JSON must be able to hold all of them."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:8]


def remove_others(folder: Path, kept: Iterable[Path | str]) -> None:
    """Remove what earlier settings and interrupted runs left in `folder`; call it after writing manifests.

    Only files named as ours are, with a digest at the end (and a number, if half written): a user's
    recordings in the same folder stay.
    """
    wanted = {Path(path) for path in kept}
    for path in folder.rglob("*"):
        if OURS.fullmatch(path.name) and path not in wanted:
            path.unlink()
