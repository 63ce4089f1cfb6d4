"""Download of an LLM and an encoder into this machine's cache, before many processes need them (`speechllm fetch`)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from speechllm_pl.apps.pinned_llm import recorded_encoder_revision, recorded_revision
from speechllm_pl.apps.program_options import FetchOptions
from speechllm_pl.core.errors import UserError

READ = ["*.json", "*.model", "*.txt", "*.safetensors"]
"""Files that transformers reads: settings, tokenizer, weights."""
UNREAD = ["*/*", "consolidated*", "*adapter*"]
"""Other files of a hub: the weights again in other formats."""


GIVEN_AS = {"LLM": "--model.llm (LLM=)", "encoder": "--model.encoder.name (ENCODER=)"}
"""How a folder of each part is given."""


def fetch(_: FetchOptions, config: Any) -> None:
    """Download the LLM and the pretrained encoder that a configuration of `fit` names, unless they are here.

    Args:
        config: parsed configuration of `fit`.
    """
    for part, name, revision in _named(config):
        if not Path(name).is_dir():
            print(f"{name} is in {download(part, name, revision)}")


def _named(config: Any) -> Iterator[tuple[str, str, str | None]]:
    """Part, name and revision, as `fit` will ask for it, of what a configuration names."""
    model = config.model.init_args
    if "llm" in model:
        yield "LLM", model.llm, model.get("llm_revision") or recorded_revision(config)
    encoder = (model.get("encoder") or {}).get("init_args") or {}
    if encoder.get("name"):
        yield "encoder", encoder["name"], encoder.get("revision") or recorded_encoder_revision(config)


def download(part: str, name: str, revision: str | None = None) -> Path:
    """Download an LLM or an encoder and return its folder in the cache.

    Raises:
        UserError: it is neither on a hub that can be reached nor in the cache.
    """
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=READ, ignore_patterns=UNREAD))
        if not any(folder.glob("*.safetensors")):  # as of some older models
            snapshot_download(name, revision=revision, allow_patterns=["*.bin"], ignore_patterns=UNREAD)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{part} {name} is neither a folder nor in the cache, and cannot be downloaded here: {reason}; run the same"
            f" `speechllm fetch` where there is a network, or give a folder with {GIVEN_AS[part]}"
        ) from error
    return folder
