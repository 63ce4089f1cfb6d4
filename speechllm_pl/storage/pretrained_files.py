"""Find the files of a pretrained model (LLM or encoder), and tell it from another one by a digest."""

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from speechllm_pl.core.errors import UserError


def weights_digest(name_or_path: str, revision: str | None = None, *, whole: bool = False) -> str:
    """Short digest of the weights and configuration of a local folder, or of a hub name that was loaded before.

    Reads the configuration and the first and last MiB of every weight file: enough to detect most other weights, and
    quick for a 7B model. Empty if nothing of a hub name is on this machine.

    Args:
        whole: read the files to their ends, as fine-tuning may have changed nothing but layers in the middle.
    """
    folder = Path(name_or_path) if Path(name_or_path).is_dir() else snapshot(name_or_path, revision)
    if folder is None:
        return ""
    kinds = (list(folder.glob(kind)) for kind in ("model*.safetensors", "*.safetensors", "*.bin"))
    return _digest([*folder.glob("config.json"), *next(filter(None, kinds), [])], whole)  # as transformers chooses


def _former_digest(name_or_path: str) -> str:
    """The digest that earlier versions recorded of a folder: of all weights in it, those that are not loaded too."""
    folder = Path(name_or_path)
    return _digest([path for kind in ("config.json", "*.safetensors", "*.bin") for path in folder.glob(kind)])


def refuse_other_weights(
    part: str, name: str, found: str, recorded: str, remedy: str = "", warn: Callable[[str], Any] = warnings.warn
) -> None:
    """Compare a pretrained model with the one that a checkpoint was trained with.

    Args:
        part: what it is in ours: `LLM` or `encoder`, also the name of the option that gives another folder.
        name: folder or hub name.
        found: its digest.
        recorded: the checkpoint's digest; empty in earlier ones, of hub names.
        remedy: to be offered between the others.
        warn: tells what cannot be compared.

    Raises:
        UserError: they are not the same.
    """
    if not recorded:
        warn(f"the checkpoint does not say which weights its {part} had: {name} is taken on trust")
    elif found != recorded and _former_digest(name) != recorded:
        raise UserError(
            f"{part} {name} is not the one that this checkpoint was trained with (its digest differs):"
            f" put the former one back{remedy}, or give its folder with --{part.lower()}"
        )


def snapshot(name: str, revision: str | None) -> Path | None:
    """Folder with the files of a hub name on this machine, named by the commit; None if there is none."""
    config = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _digest(paths: list[Path], whole: bool = False) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            if whole:
                digest.update(hashlib.file_digest(file, "sha256").digest())
                continue
            digest.update(file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read())
    return digest.hexdigest()[:16] if paths else ""
