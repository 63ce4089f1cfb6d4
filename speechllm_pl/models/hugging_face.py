"""Pretrained models of Hugging Face, by a folder or a hub name: loading, commits, and their repeated layers."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from speechllm_pl.core.errors import UserError
from speechllm_pl.storage.pretrained_files import snapshot

LINEAR = (nn.Linear, Conv1D)
"""Layers that LoRA can adapt. GPT-2's Conv1D is a linear layer with a transposed weight; NF4's is an `nn.Linear`."""

ASKED_FOR = {
    "LLM": "--model.llm (`make llm` builds the tiny one)",
    "encoder": "--model.encoder.name (ENCODER=)",
}
"""How each pretrained part is named by a user."""


def from_pretrained(part: str, auto_class: Any, name_or_path: str, **arguments: Any) -> Any:
    """Load a tokenizer, a configuration or a model with a class of transformers.

    Args:
        part: what it is in ours, `LLM` or `encoder`.

    Raises:
        UserError: neither a folder nor a name that can be loaded.
    """
    missing_folder = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1  # no hub name
    if missing_folder and not Path(name_or_path).is_dir():
        raise UserError(
            f"{part} folder {name_or_path} does not exist: give a Hugging Face folder or name with {ASKED_FOR[part]},"
            f" or, to a program that loads a checkpoint, with --{part.lower()}"
        )
    # torch lists its constructors when a default device is first asked for. While transformers loads, it replaces one
    # of them, which would be missing from that list ever after.
    with torch.device("cpu"):
        torch.empty(0)
    try:
        return auto_class.from_pretrained(name_or_path, **arguments)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{part} {name_or_path} is neither a folder nor a hub model that loads here: {reason}"
        ) from error


def commit_of(part: str, name_or_path: str, revision: str | None = None) -> str | None:
    """Commit of a hub name's revision (branch, tag, commit; the newest if none); None for a folder.

    Raises:
        UserError: neither a folder nor a name that can be loaded.
    """
    if Path(name_or_path).is_dir():
        return None
    from_pretrained(part, transformers.AutoConfig, name_or_path, revision=revision)
    found = snapshot(name_or_path, revision)
    return found.name if found else revision


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Context in which transformers reports errors alone: of a whole checkpoint only a part is used here."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The largest `ModuleList` (by parameters) whose members share a class; empty if there is none."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    repeated = [layers for layers in lists if len({type(layer) for layer in layers}) == 1]
    return list(max(repeated, key=lambda layers: sum(p.numel() for p in layers.parameters()), default=[]))


def attention_projections(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers inside the attention of the repeated layers, by their name in a layer (`attn.c_proj`).

    The name in the layer tells the attention's `c_proj` (GPT-2) or `dense` (BLOOM, GPT-NeoX) from others.
    """
    return {
        f"{place}.{name}": part
        for layer in repeated_layers(model)
        for place, child in layer.named_children()
        if re.search("attn|attention", f"{place} {type(child).__name__}", re.IGNORECASE)
        for name, part in child.named_modules()
        if isinstance(part, LINEAR)
    }


def names_of_linear_layers(model: nn.Module) -> str:
    """Distinct names of the linear layers, with `*` for the number of a layer."""
    names = (name for name, module in model.named_modules() if isinstance(module, LINEAR))
    return ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names))
