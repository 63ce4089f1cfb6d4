"""Pieces of long work: what an interrupted run has finished, the next one need not do again.

A piece is a folder of files, named by its number and by a digest of all that it depends on, and appears when it is
complete. In the end the files of all pieces, one after another, are the result. Files are gzipped piece by piece:
gzip files one after another are a gzip file.
"""

import contextlib
import gzip
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO


def compressed(lines: Sequence[bytes]) -> bytes:
    """Gzip lines without name and time, so that the same lines give the same bytes."""
    return gzip.compress(b"".join(lines), compresslevel=6, mtime=0)


def write_piece(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make `folder` with all of these files, or not at all."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, content in files.items():
        (temporary / name).write_bytes(content)
    with contextlib.suppress(OSError):  # another process was faster, with the same content
        temporary.rename(folder)
    shutil.rmtree(temporary, ignore_errors=True)


def join_files(paths: Sequence[Path], target: BinaryIO) -> None:
    """Append files to `target`, in order."""
    for path in paths:
        with path.open("rb") as source:
            shutil.copyfileobj(source, target, 2**20)
