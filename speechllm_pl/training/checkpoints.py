"""Reading and writing checkpoints: atomically, without pickled code, and with the frozen LLM named, not copied."""

import glob
import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from speechllm_pl.core.errors import UserError

RECORD = "speechllm"
"""The entry of a checkpoint that rebuilds its model: the stage and the module's settings."""

STAGES = {"ctc": "stage 1 (make pretrain-ctc)", "llm": "stage 2 (make finetune)"}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, then renames: a full disk or a kill leaves the previous checkpoint whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError when a write falls short
            raise UserError(
                f"checkpoint {target} could not be written ({error}): free disk space and run the same command"
                " again; it resumes from the previous checkpoint, which is untouched"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Whatever the arguments: on the CPU, and without running pickled code."""
        return read_checkpoint(path)


def read_checkpoint(path: str | Path, stage: str | None = None) -> dict[str, Any]:
    """A checkpoint's contents on the CPU, without running pickled code.

    Args:
        path: the file.
        stage: `ctc` or `llm` where only that stage will do.

    Raises:
        UserError: missing, unreadable, not ours, or of the wrong stage.
    """
    if not Path(path).is_file():
        raise UserError(f"checkpoint {path} does not exist: train first (make pretrain-ctc, make finetune)")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        found = checkpoint[RECORD]["stage"]
    except Exception as error:  # torch.load raises a dozen kinds
        raise UserError(f"{path} is not a checkpoint of this project, or is damaged") from error
    if stage is not None and found != stage:
        raise UserError(f"checkpoint {path} is of {STAGES[found]}, but one of {STAGES[stage]} is needed here")
    return checkpoint


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
