"""Write files whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from speechllm_pl.core.errors import UserError


@contextmanager
def replace_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` when the block succeeds and is deleted when it fails.

    Several processes on several machines may write the same path: the last one counts.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step."""
    with replace_atomically(path) as file:
        file.write(content)


def check_writable(folder: Path, remedy: str) -> None:
    """Try to write into a folder, or where it is to be made, before the work whose results are to be there.

    Raises:
        UserError: it cannot be written; the message ends with `remedy`.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        why = f"{there} is a file" if there.is_file() else error.strerror
        raise UserError(f"results cannot be written into folder {folder} ({why}): {remedy}") from error
