"""Write, rename, link and remove checkpoints atomically: a full disk or a kill leaves the former ones intact."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from speechllm_pl.core.errors import LOST, UserError

REMEDY = "free disk space and run the same command again; whatever was there before is untouched"


def partial_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def write(contents: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(contents, file)
        file.flush()
        os.fsync(file.fileno())


def rename(temporary: Path, target: Path) -> None:
    """Put a complete checkpoint in its place. Only files replace files in one step: a folder is moved away first."""
    if target.is_dir() or (temporary.is_dir() and target.exists()):
        former = target.with_name(f".{target.name}.former")
        remove(former)
        os.replace(target, former)
        os.replace(temporary, target)
        remove(former)
    else:
        os.replace(temporary, target)


def link(source: Path, target: Path) -> None:
    """Give a complete checkpoint of either kind a second name, which stays when the first one goes.

    Hard links take no space; a file system without them gets copies.
    """
    if _is_linked(source, target):  # renaming would do nothing to a file, and take a folder from those who read it
        return
    temporary = partial_name(target)
    remove(temporary)
    if source.is_dir():
        shutil.copytree(source, temporary, copy_function=_link_or_copy)
    else:
        _link_or_copy(source, temporary)
    rename(temporary, target)


def _is_linked(source: Path, target: Path) -> bool:
    if not source.is_dir():
        return target.is_file() and target.samefile(source)
    names = sorted(os.listdir(source))
    linked = target.is_dir() and sorted(os.listdir(target)) == names
    return linked and all(_is_linked(source / name, target / name) for name in names)


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def remove(path: Path) -> None:
    """Delete a checkpoint of either kind if it exists; a folder is renamed first, so that no half of it is found."""
    if path.is_dir():
        doomed = partial_name(path)
        if path.suffix == doomed.suffix:  # under such a name already
            doomed = path
        else:
            shutil.rmtree(doomed, ignore_errors=True)
            path.replace(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def named_errors(target: Path) -> Iterator[None]:
    """Turn errors of writing into a `UserError` that names the checkpoint and the remedy."""
    try:
        yield
    except CheckpointException as error:  # of several ranks, and no Exception
        first = next(iter(error.failures.values()))[0]
        raise UserError(f"checkpoint {target} could not be written ({first!r}): {REMEDY}") from error
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError when a write falls short
        if LOST.search(str(error)):
            raise
        raise UserError(f"checkpoint {target} could not be written ({error}): {REMEDY}") from error
