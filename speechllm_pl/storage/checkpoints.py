"""Read and write checkpoints: atomically, without pickled code, and with the frozen LLM named, not copied."""

import contextlib
import glob
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from speechllm_pl.core.errors import UserError
from speechllm_pl.storage.checkpoint_files import named_errors, partial_name, remove, rename, write
from speechllm_pl.storage.consolidated import OF_WEIGHTS_ALONE, RECORD, is_consolidated, read_consolidated
from speechllm_pl.storage.digests import DIGESTS, damaged, digests_of, refuse_damage, refuse_not_finite
from speechllm_pl.storage.folders import no_file
from speechllm_pl.storage.recorded import wrong_record, wrong_tensors
from speechllm_pl.storage.shards import RECORD_FILE, join_shards

BEST = "best.ckpt"
STAGES = {"ctc": "stage 1 (make pretrain-ctc)", "llm": "stage 2 (make finetune)"}


Write = Callable[[dict[str, Any], Path], None]
"""Function that writes a checkpoint's contents to a path, whole or not at all."""

Save = Callable[[dict[str, Any], Path, Write], None]
"""Type of `storage_options` of `Trainer.save_checkpoint`: a function that decides when contents are written."""


def save_at_once(checkpoint: dict[str, Any], path: Path, write_to: Write) -> None:
    write_to(checkpoint, path)


def write_file(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint as one file, with digests.

    Raises:
        UserError: it could not be written; a former one of this name is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_name(path)
    with named_errors(path):
        try:
            write({**checkpoint, DIGESTS: digests_of(checkpoint)}, temporary)
            rename(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def weights_alone(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Entries of a checkpoint that evaluation needs. The optimiser's state, needed to resume, is twice as large."""
    kept = (RECORD, "state_dict", "epoch", "global_step")
    return OF_WEIGHTS_ALONE | {key: checkpoint[key] for key in kept}


def read_checkpoint(path: str | Path, stage: str | None = None, *, optimizer: bool = False) -> dict[str, Any]:
    """Read a checkpoint, sharded or not, to the CPU, without running pickled code.

    Args:
        path: a file, a folder of shards, whose tensors are joined here, a consolidated folder, or a run's folder.
        stage: `ctc` or `llm`, if only that stage is accepted.
        optimizer: whether to read the optimiser's state, which is twice as large as the weights. A file's tensors are
            then left in it, mapped: all ranks of a node that resume a run share one copy in the page cache.

    Raises:
        UserError: missing, unreadable, damaged or edited, not ours, of the wrong stage, or with weights that are not
            finite.
    """
    path = of_run(path)
    checkpoint = read_record(path, mapped=optimizer)
    if stage is not None and checkpoint[RECORD]["stage"] != stage:
        found = STAGES[checkpoint[RECORD]["stage"]]
        raise UserError(f"checkpoint {path} is of {found}, but one of {STAGES[stage]} is needed here")
    if Path(path).is_dir() and not is_consolidated(Path(path)):
        with _read_as_checkpoint(Path(path)):
            join_shards(Path(path), checkpoint, optimizer=optimizer)
    if problem := wrong_tensors(checkpoint.get("state_dict")):
        raise UserError(damaged(Path(path), problem))
    if Path(path).is_file():
        refuse_damage(Path(path), checkpoint, checkpoint.get(DIGESTS))
    refuse_not_finite(Path(path), checkpoint["state_dict"])
    return checkpoint


def of_run(path: str | Path) -> Path:
    """Path of the best checkpoint for a run's folder; the path itself if it is something else."""
    best = Path(path, "checkpoints", BEST)
    return best if best.exists() else Path(path)


def read_record(path: str | Path, *, mapped: bool = True) -> dict[str, Any]:
    """Read a checkpoint as `read_checkpoint` does, but a folder without the tensors of model and optimiser.

    Args:
        mapped: leave a file's tensors in it until they are used, which must be before another node may delete it.

    Raises:
        UserError: missing, unreadable, damaged or edited, or not ours.
    """
    path = of_run(path)
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist: train first (make pretrain-ctc, make finetune)")
    if (why := no_file(path)) not in ("", "a folder"):
        raise UserError(f"checkpoint {path} is no file ({why}): correct the path")
    with _read_as_checkpoint(path):
        if is_consolidated(path):
            checkpoint = read_consolidated(path)
        else:
            record_file = path / RECORD_FILE if path.is_dir() else path
            checkpoint = torch.load(record_file, map_location="cpu", weights_only=True, mmap=mapped)
        if problem := wrong_record(checkpoint):
            raise UserError(damaged(path, problem))
        if path.is_dir() and not is_consolidated(path):
            refuse_damage(path, checkpoint, checkpoint.get(DIGESTS))
    return checkpoint


@contextlib.contextmanager
def _read_as_checkpoint(path: Path) -> Iterator[None]:
    """Turn the many errors that torch, safetensors and JSON raise for other files into one.

    Raises:
        UserError: in place of any of them.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is not a checkpoint of this project, or is damaged") from error


def newest_complete(folder: Path) -> Path | None:
    """Whole state with the most steps in a run's `checkpoints` folder, or None.

    Unfinished ones have other names; one damaged by a full disk or a crash is skipped.
    """
    return next((path for path in reversed(by_steps(folder)) if is_whole(path)), None)


def mend(folder: Path) -> None:
    """Clean up after a killed run: delete unfinished checkpoints, and restore one that was being replaced."""
    for former in folder.glob(".*.former"):
        target = folder / former.name.removeprefix(".").removesuffix(".former")
        remove(former) if target.exists() else os.replace(former, target)
    for partial in folder.glob(".*.partial"):
        remove(partial)


def state_path(folder: Path, step: int) -> Path:
    """Path of the whole state after a step, from which a run is resumed."""
    return folder / f"step={step:08d}.ckpt"


def weights_path(folder: Path, step: int, wer: float) -> Path:
    """Path of the weights alone after a validation with this word error rate."""
    return folder / f"wer={wer:.4f}-step={step:08d}.ckpt"


def by_steps(folder: Path) -> list[Path]:
    """Paths of a run's states, the earliest first."""
    return sorted(folder.glob("step=*.ckpt"), key=lambda path: path.stem)


def by_error_rate(folder: Path) -> list[Path]:
    """Paths of a run's validated weights, the lowest word error rate first, the earlier of equal ones first."""

    def rate(path: Path) -> tuple[float, str]:
        wer, _, step = path.stem.removeprefix("wer=").partition("-step=")
        return float(wer), step

    return sorted(folder.glob("wer=*-step=*.ckpt"), key=rate)


def is_whole(path: Path) -> bool:
    """Whether a checkpoint was written to its end; the record comes last."""
    return zipfile.is_zipfile(path / RECORD_FILE if path.is_dir() else path)


def newest(pattern: str) -> Path:
    """Newest file that matches a path or glob pattern.

    Raises:
        UserError: there is none.
    """
    matches = [Path(match) for match in glob.glob(pattern)]
    if not matches:
        raise UserError(
            f"no checkpoint matches {pattern}: run `make pretrain-ctc` with the same DATA and SIZE first,"
            " or give one with CKPT="
        )
    return max(matches, key=lambda path: path.stat().st_mtime)
