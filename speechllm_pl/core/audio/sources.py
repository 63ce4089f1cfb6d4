"""Checks of the audio sources in a Lhotse manifest: files are read, and nothing that came in as data is run.

Lhotse gives the source of a recording of type `command` to a shell, and of type `url` to a library that also knows
`pipe:`. It puts the name of a `.sph` file into a shell's command as it stands.
"""

import shlex
from typing import Any

REMEDY = "write the audio to a file and name that, or give --allow-command-sources (data.allow_command_sources true)"
"""Remedy for a source that is not a file."""


def unsafe_source(item: Any, *, shar: bool = False) -> str:
    """Describe the first source in the JSON of a cut or recording that is no plain file; empty if there is none.

    The whole structure is searched: recordings also occur in the tracks of mixed cuts, in custom fields, and in
    room responses of transforms.

    Args:
        shar: allow the placeholders of a Shar folder, whose audio is in a tar file.
    """
    left = [item]
    while left:
        node = left.pop()
        if isinstance(node, list):
            left += node
        elif isinstance(node, dict):
            left += (value for value in node.values() if isinstance(value, dict | list))
            sources = node.get("sources")
            for source in sources if isinstance(sources, list) else ():
                if isinstance(source, dict) and not _is_file(source, shar):
                    return _in_words(source)
    return ""


def runs_in_shell(path: str) -> bool:
    """Whether Lhotse would pass the name of this file to a shell."""
    return path.lower().endswith(".sph") and shlex.quote(path) != path


def _is_file(source: dict, shar: bool) -> bool:
    if shar and source.get("type") == "shar":
        return True
    path = source.get("source")
    return source.get("type") == "file" and isinstance(path, str) and not runs_in_shell(path)


def _in_words(source: dict) -> str:
    kind, what = source.get("type"), repr(source.get("source"))
    shown = what if len(what) <= 80 else f"{what[:77]}..."
    if kind == "file":
        return f"audio file {shown}, whose name a shell would interpret"
    return f"audio from a source of type {str(kind)[:20]!r} ({shown}), which is no file"
