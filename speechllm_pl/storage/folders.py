"""Find the audio files below a folder, without opening a FIFO or a device, which may never end."""

import os
import stat
from pathlib import Path
from typing import NamedTuple

AUDIO_SUFFIXES = (".wav", ".flac", ".opus", ".ogg", ".oga", ".mp3", ".m4a", ".aac", ".mp4", ".aiff", ".aif", ".sph")
"""Suffixes of audio files, the most usual first."""

KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class AudioFiles(NamedTuple):
    """What was found below a folder, sorted."""

    files: list[Path]
    skipped: list[str]
    """What has the name of an audio file but is not one, and folders that cannot be read, each with the reason."""


def no_file(path: str | Path) -> str:
    """Describe, without opening it, why a path is not a readable file; empty if it is one."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except OSError as error:
        if os.path.islink(path):
            return "a link that leads nowhere"
        return "does not exist" if isinstance(error, FileNotFoundError) else str(error.strerror)
    except ValueError:  # a name with a zero byte
        return "no name that a file can have"
    return KINDS.get(kind, "")


def audio_files(folder: Path) -> AudioFiles:
    """Find files below `folder` with one of `AUDIO_SUFFIXES` in any case. Links are followed, but not in circles."""
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
    return AudioFiles(sorted(files), sorted(skipped))


def _told(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}"
