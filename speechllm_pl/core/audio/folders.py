"""The audio files below a folder, and what only looks like one: reading a FIFO or a device may never end."""

import os
import stat
from pathlib import Path
from typing import NamedTuple

AUDIO_SUFFIXES = (".wav", ".flac", ".opus", ".ogg", ".oga", ".mp3", ".m4a", ".aac", ".mp4", ".aiff", ".aif", ".sph")
"""Of files that hold audio, the most usual first."""

KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class Found(NamedTuple):
    files: list[Path]  # sorted
    skipped: list[
        str
    ]  # what has the name of an audio file but is none, or a folder that cannot be looked into, and why


def no_file(path: str | Path) -> str:
    """Why a path cannot be opened as a file, in words; empty if it can. It is not opened."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except OSError as error:
        if os.path.islink(path):
            return "a link that leads nowhere"
        return "does not exist" if isinstance(error, FileNotFoundError) else str(error.strerror)
    except ValueError:  # a name with a zero byte
        return "no name that a file can have"
    return KINDS.get(kind, "")


def audio_files(folder: Path) -> Found:
    """Those below `folder` with one of `AUDIO_SUFFIXES`, in any case. Links are followed, but not in circles."""
    files: list[Path] = []
    skipped: list[str] = []
    seen: set[tuple[int, int]] = set()  # folders
    for where, folders, names in os.walk(folder, followlinks=True, onerror=lambda error: skipped.append(_told(error))):
        status = os.stat(where)
        if (status.st_dev, status.st_ino) in seen:
            skipped.append(f"{where}: a link back to a folder that was looked into")
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for path in (Path(where, name) for name in names):
            if path.suffix.lower() in AUDIO_SUFFIXES:
                if why := no_file(path):
                    skipped.append(f"{path}: {why}")
                else:
                    files.append(path)
    return Found(sorted(files), sorted(skipped))


def _told(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}"
