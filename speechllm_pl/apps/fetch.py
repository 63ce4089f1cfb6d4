"""Download of an LLM into this machine's cache, before many processes need it (`speechllm fetch`)."""

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from speechllm_pl.apps.pinned_llm import recorded_revision
from speechllm_pl.apps.program_options import FetchOptions
from speechllm_pl.core.errors import UserError

READ = ["*.json", "*.model", "*.txt", "*.safetensors"]
"""Files that transformers reads: settings, tokenizer, weights."""
UNREAD = ["*/*", "consolidated*", "*adapter*"]
"""Other files of a hub: the weights again in other formats."""


def fetch(_: FetchOptions, config: Any) -> None:
    """Download the LLM that a configuration of `fit` names, unless it is a folder, or in the cache already.

    Args:
        config: parsed configuration of `fit`.
    """
    model = config.model.init_args
    if "llm" in model and not Path(model.llm).is_dir():
        revision = model.get("llm_revision") or recorded_revision(config)  # as `fit` will ask for it
        print(f"{model.llm} is in {download(model.llm, revision)}")


def download(name: str, revision: str | None = None) -> Path:
    """Download an LLM and return its folder in the cache.

    Raises:
        UserError: the LLM is neither on a hub that can be reached nor in the cache.
    """
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=READ, ignore_patterns=UNREAD))
        if not any(folder.glob("*.safetensors")):  # as of some older models
            snapshot_download(name, revision=revision, allow_patterns=["*.bin"], ignore_patterns=UNREAD)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"LLM {name} is neither a folder nor in the cache, and cannot be downloaded here: {reason}; run the same"
            " `speechllm fetch` where there is a network, or give a folder with --model.llm (LLM=)"
        ) from error
    return folder
