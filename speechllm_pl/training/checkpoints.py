"""Reading and writing checkpoints: atomically, without pickled code, and with the frozen LLM named, not copied."""

import glob
import hashlib
import os
import shutil
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from speechllm_pl.core.errors import UserError

RECORD = "speechllm"
"""The entry of a checkpoint that rebuilds its model: the stage and the module's settings."""

MODEL, OPTIMIZER = "model/", "optimizer/"
"""What the names of a sharded checkpoint's tensors begin with."""

STAGES = {"ctc": "stage 1 (make pretrain-ctc)", "llm": "stage 2 (make finetune)"}


RECORD_FILE = "record.pt"
"""In a sharded checkpoint: everything but tensors of model and optimiser. Read with `weights_only`."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, then renames: a full disk or a kill leaves the previous checkpoint whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _partial(target)
        with _named_errors(target):
            try:
                _write(checkpoint, temporary)
                _rename(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Whatever the arguments: on the CPU, and without running pickled code."""
        return read_checkpoint(path)


def save_shards(target: Path, record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """A checkpoint folder, written by all ranks: safetensors shards, and the record.

    Raises:
        UserError: it could not be written; the former one of this name is untouched.
    """
    temporary = _partial(target)
    first = not dist.is_initialized() or dist.get_rank() == 0
    with _named_errors(target):
        if first:
            remove(temporary)
            temporary.mkdir(parents=True)
        _wait()
        save_distributed(tensors, storage_writer=HuggingFaceStorageWriter(str(temporary), save_distributed=True))
        if first:
            _write(record, temporary / RECORD_FILE)
            _rename(temporary, target)
    _wait()


def load_shards(path: Path, tensors: dict[str, Tensor], only: str | None = None) -> None:
    """Fill `tensors` in place from a checkpoint folder, however many ranks wrote it.

    Args:
        only: compare and load just the names that begin with it.

    Raises:
        UserError: it lacks one of them, or has others.
    """
    reader = HuggingFaceStorageReader(str(path))
    found = {name for name in reader.read_metadata().state_dict_metadata if name.startswith(only or "")}
    refuse_other_keys(set(tensors), found)
    load_distributed(tensors, storage_reader=reader, no_dist=not dist.is_initialized())


def read_checkpoint(path: str | Path, stage: str | None = None) -> dict[str, Any]:
    """A checkpoint's contents, sharded or not, on the CPU, without running pickled code.

    Args:
        path: a file, or a folder of shards, whose tensors are put together here.
        stage: `ctc` or `llm` where only that stage will do.

    Raises:
        UserError: missing, unreadable, not ours, or of the wrong stage.
    """
    checkpoint = read_record(path)
    if stage is not None and checkpoint[RECORD]["stage"] != stage:
        found = STAGES[checkpoint[RECORD]["stage"]]
        raise UserError(f"checkpoint {path} is of {found}, but one of {STAGES[stage]} is needed here")
    if Path(path).is_dir():
        _join_shards(Path(path), checkpoint)
    return checkpoint


def read_record(path: str | Path) -> dict[str, Any]:
    """What `read_checkpoint` gives, for a folder without the tensors of model and optimiser."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist: train first (make pretrain-ctc, make finetune)")
    try:
        checkpoint = torch.load(path / RECORD_FILE if path.is_dir() else path, map_location="cpu", weights_only=True)
        checkpoint[RECORD]["stage"]
    except Exception as error:  # torch.load raises a dozen kinds
        raise UserError(f"{path} is not a checkpoint of this project, or is damaged") from error
    return checkpoint


def _join_shards(path: Path, checkpoint: dict[str, Any]) -> None:
    """Add to the record of a folder what a single file would hold besides."""
    found = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(cast(Any, m).size, dtype=cast(Any, m).properties.dtype) for name, m in found.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no process group is needed is what we want
        load_distributed(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    checkpoint["state_dict"] = {n.removeprefix(MODEL): t for n, t in tensors.items() if n.startswith(MODEL)}
    for optimizer in checkpoint.get("optimizer_states", []):
        optimizer["state"], place = {}, 0
        for group in optimizer["param_groups"]:
            for name in group["params"]:
                prefix = f"{OPTIMIZER}{name}/"
                optimizer["state"][place] = {
                    n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)
                }
                place += 1
            group["params"] = list(range(place - len(group["params"]), place))


def optimizer_tensors(names: dict[nn.Parameter, str], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as it lies in memory, by names that a sharded checkpoint knows it by."""
    return {
        f"{OPTIMIZER}{names[cast(nn.Parameter, parameter)]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def optimizer_groups(names: dict[nn.Parameter, str], optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Parameter groups with the names of their parameters."""
    return [{**group, "params": [names[p] for p in group["params"]]} for group in optimizer.param_groups]


def state_by_name(
    names: dict[nn.Parameter, str], optimizer: torch.optim.Optimizer, saved: dict[str, Any]
) -> dict[str, Tensor]:
    """A single file's optimiser state, by the names of `optimizer_tensors`."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        f"{OPTIMIZER}{names[parameters[place]]}/{key}": value
        for place, state in saved["state"].items()
        for key, value in state.items()
    }


def newest_complete(folder: Path) -> Path | None:
    """The checkpoint of the most steps in a run's `checkpoints` folder that is whole, or None.

    Unfinished ones have other names; one that a full disk or a crash of the machine has damaged is passed over.
    """
    return next((path for path in reversed(by_steps(folder)) if _is_whole(path)), None)


def mend(folder: Path) -> None:
    """Clear away what a killed run left half done: unfinished checkpoints go, one that was being replaced returns."""
    for former in folder.glob(".*.former"):
        target = folder / former.name.removeprefix(".").removesuffix(".former")
        remove(former) if target.exists() else os.replace(former, target)
    for partial in folder.glob(".*.partial"):
        remove(partial)


def by_steps(folder: Path) -> list[Path]:
    """A run's checkpoints but the best one, the earliest first."""
    return sorted(folder.glob("step=*.ckpt"))


def _is_whole(path: Path) -> bool:
    return zipfile.is_zipfile(path / RECORD_FILE if path.is_dir() else path)


def refuse_other_keys(expected: set[str], found: Iterable[str]) -> None:
    """
    Raises:
        UserError: names the first missing or unexpected keys.
    """
    found = set(found)
    for keys, what in ((expected - found, "lacks"), (found - expected, "has unexpected")):
        if keys:
            some = ", ".join(sorted(keys)[:3])
            raise UserError(
                f"the checkpoint {what} {some} ({len(keys)} in all): it was made with other model settings;"
                " use those of its run (config.yaml beside it)"
            )


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def _write(contents: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(contents, file)
        file.flush()
        os.fsync(file.fileno())


def _rename(temporary: Path, target: Path) -> None:
    """Put a complete checkpoint in its place. Only files replace files in one step: a folder is moved away first."""
    if target.is_dir() or (temporary.is_dir() and target.exists()):
        former = target.with_name(f".{target.name}.former")
        remove(former)
        os.replace(target, former)
        os.replace(temporary, target)
        remove(former)
    else:
        os.replace(temporary, target)


def remove(path: Path) -> None:
    """Delete a checkpoint of either kind, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def _named_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError when a write falls short
        raise UserError(
            f"checkpoint {target} could not be written ({error}): free disk space and run the same command"
            " again; it resumes from the previous checkpoint, which is untouched"
        ) from error


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


def llm_digest(name_or_path: str) -> str:
    """A short digest of a local LLM folder's weights and configuration; empty for a hub name.

    Reads the configuration and the first and last MiB of every weight file: enough to tell other weights,
    and quick for a 7B model.
    """
    folder = Path(name_or_path)
    digest = hashlib.sha256()
    files = sorted(path for pattern in ("config.json", "*.safetensors", "*.bin") for path in folder.glob(pattern))
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read())
    return digest.hexdigest()[:16] if files else ""
