"""Find the files of an LLM, and tell it from another one by a digest."""

import hashlib
from pathlib import Path

from huggingface_hub import try_to_load_from_cache


def llm_digest(name_or_path: str, revision: str | None = None) -> str:
    """Short digest of the weights and configuration of a local LLM folder, or of a hub name that was loaded before.

    Reads the configuration and the first and last MiB of every weight file: enough to detect other weights, and quick
    for a 7B model. Empty if nothing of a hub name is on this machine.
    """
    folder = Path(name_or_path)
    kinds = [("*.safetensors", "*.bin")]
    if not folder.is_dir():
        found = snapshot(name_or_path, revision)
        if found is None:
            return ""
        folder, kinds = found, [("model*.safetensors",), ("*.safetensors",), ("*.bin",)]  # as transformers chooses
    weights = ([path for pattern in patterns for path in folder.glob(pattern)] for patterns in kinds)
    return _digest([*folder.glob("config.json"), *next(filter(None, weights), [])])


def snapshot(name: str, revision: str | None) -> Path | None:
    """Folder with the files of a hub name on this machine, named by the commit; None if there is none."""
    config = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read())
    return digest.hexdigest()[:16] if paths else ""
