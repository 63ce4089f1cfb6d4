"""Reading and writing checkpoints: atomically, without pickled code, and with the frozen LLM named, not copied."""

import contextlib
import glob
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from speechllm_pl.core.audio.folders import no_file
from speechllm_pl.core.errors import UserError
from speechllm_pl.storage.checkpoint_files import named_errors, partial_name, remove, rename, write
from speechllm_pl.storage.consolidated import OF_WEIGHTS_ALONE, RECORD, is_consolidated, read_consolidated
from speechllm_pl.storage.digests import DIGESTS, damaged, digests_of, refuse_damage, refuse_not_finite
from speechllm_pl.storage.recorded import wrong_record, wrong_tensors
from speechllm_pl.storage.shards import RECORD_FILE, join_shards

BEST = "best.ckpt"
STAGES = {"ctc": "stage 1 (make pretrain-ctc)", "llm": "stage 2 (make finetune)"}


Write = Callable[[dict[str, Any], Path], None]
"""Writes a checkpoint's contents to a path, wholly or not at all."""

Save = Callable[[dict[str, Any], Path, Write], None]
"""What `storage_options` of `Trainer.save_checkpoint` may be: it has contents written when it sees fit."""


def save_at_once(checkpoint: dict[str, Any], path: Path, write_to: Write) -> None:
    write_to(checkpoint, path)


def write_file(checkpoint: dict[str, Any], path: Path) -> None:
    """
    Raises:
        UserError: it could not be written; the former one of this name is untouched.
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
    """What evaluating takes of a checkpoint; resuming would need the rest, which Adam makes twice as large."""
    kept = (RECORD, "state_dict", "epoch", "global_step")
    return OF_WEIGHTS_ALONE | {key: checkpoint[key] for key in kept}


def read_checkpoint(path: str | Path, stage: str | None = None, *, optimizer: bool = False) -> dict[str, Any]:
    """A checkpoint's contents, sharded or not, on the CPU, without running pickled code.

    Args:
        path: a file, a folder of shards, whose tensors are put together here, or a consolidated folder.
        stage: `ctc` or `llm` where only that stage will do.
        optimizer: whether its state is needed, which is twice as large as the weights.

    Raises:
        UserError: missing, unreadable, damaged or edited, not ours, of the wrong stage, or with weights that are not
            finite.
    """
    checkpoint = read_record(path)
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


def read_record(path: str | Path) -> dict[str, Any]:
    """What `read_checkpoint` gives, for a folder without the tensors of model and optimiser."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist: train first (make pretrain-ctc, make finetune)")
    if (why := no_file(path)) not in ("", "a folder"):
        raise UserError(f"checkpoint {path} is no file ({why}): correct the path")
    with _read_as_checkpoint(path):
        if is_consolidated(path):
            checkpoint = read_consolidated(path)
        else:
            record_file = path / RECORD_FILE if path.is_dir() else path
            checkpoint = torch.load(record_file, map_location="cpu", weights_only=True)
        if problem := wrong_record(checkpoint):
            raise UserError(damaged(path, problem))
        if path.is_dir() and not is_consolidated(path):
            refuse_damage(path, checkpoint, checkpoint.get(DIGESTS))
    return checkpoint


@contextlib.contextmanager
def _read_as_checkpoint(path: Path) -> Iterator[None]:
    """What is none makes torch, safetensors and JSON raise errors of a dozen kinds.

    Raises:
        UserError: instead of any of them.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is not a checkpoint of this project, or is damaged") from error


def newest_complete(folder: Path) -> Path | None:
    """The state of the most steps in a run's `checkpoints` folder that is whole, or None.

    Unfinished ones have other names; one that a full disk or a crash of the machine has damaged is passed over.
    """
    return next((path for path in reversed(by_steps(folder)) if is_whole(path)), None)


def mend(folder: Path) -> None:
    """Clear away what a killed run left half done: unfinished checkpoints go, one that was being replaced returns."""
    for former in folder.glob(".*.former"):
        target = folder / former.name.removeprefix(".").removesuffix(".former")
        remove(former) if target.exists() else os.replace(former, target)
    for partial in folder.glob(".*.partial"):
        remove(partial)


def state_path(folder: Path, step: int) -> Path:
    """Where the whole state after a step is saved, from which the run is resumed."""
    return folder / f"step={step:08d}.ckpt"


def weights_path(folder: Path, step: int, wer: float) -> Path:
    """Where the weights alone are saved that a validation has given a word error rate."""
    return folder / f"wer={wer:.4f}-step={step:08d}.ckpt"


def by_steps(folder: Path) -> list[Path]:
    """A run's states, the earliest first."""
    return sorted(folder.glob("step=*.ckpt"), key=lambda path: path.stem)


def by_error_rate(folder: Path) -> list[Path]:
    """A run's validated weights, the lowest word error rate first, and of equal ones the earliest."""

    def rate(path: Path) -> tuple[float, str]:
        wer, _, step = path.stem.removeprefix("wer=").partition("-step=")
        return float(wer), step

    return sorted(folder.glob("wer=*-step=*.ckpt"), key=rate)


def is_whole(path: Path) -> bool:
    """Whether a checkpoint's end is there; its record is written last."""
    return zipfile.is_zipfile(path / RECORD_FILE if path.is_dir() else path)


def newest(pattern: str) -> Path:
    """The newest file that a path or glob pattern names.

    Raises:
        UserError: none matches.
    """
    matches = [Path(match) for match in glob.glob(pattern)]
    if not matches:
        raise UserError(
            f"no checkpoint matches {pattern}: run `make pretrain-ctc` with the same DATA and SIZE first,"
            " or give one with CKPT="
        )
    return max(matches, key=lambda path: path.stat().st_mtime)
