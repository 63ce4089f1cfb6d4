"""A trained model as one folder to keep and share: safetensors, a readable configuration, the tokenizer."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from speechllm_pl.core.errors import UserError
from speechllm_pl.storage.checkpoint_files import named_errors, partial_name, remove, rename
from speechllm_pl.storage.digests import DIGESTS, STATE, digests_of, refuse_damage
from speechllm_pl.storage.pretrained_files import weights_digest

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "speechllm.json", "tokenizer.model"
RECORD = "speechllm"
"""Entry of a checkpoint that rebuilds its model: the stage and the module's settings."""

OF_WEIGHTS_ALONE = {"pytorch-lightning_version": version("lightning"), "optimizer_states": []}
"""Further entries that Lightning's `validate`, `test` and `predict` expect of a checkpoint."""

LLM = "llm"
"""Subfolder of a merged LLM."""


def save_consolidated(folder: Path, record: dict[str, Any], state: dict[str, Any], llm: Any = None) -> None:
    """Write the folder as a whole.

    Args:
        folder: where to write; one of this name is replaced.
        record: stage, precision, languages and settings, as checkpoints hold them.
        state: the tensors.
        llm: a merged LLM and its tokenizer, saved inside, where the settings look for it.

    Raises:
        UserError: it could not be written, or something else of this name exists.
    """
    if folder.exists() and not is_consolidated(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not such a folder: give another --output")
    partial = partial_name(folder)
    with named_errors(folder):
        remove(partial)
        partial.mkdir(parents=True)
        settings = {key: value for key, value in record["settings"].items() if key != "tokenizer"}
        for part in llm or ():
            part.save_pretrained(partial / LLM)
        if llm:
            settings["llm_digest"] = weights_digest(str(partial / LLM))
        tokenizer = record["settings"]["tokenizer"]
        (partial / TOKENIZER).write_bytes(tokenizer)
        kept = {key: record[key] for key in ("stage", "precision", "languages", "longest_seconds") if key in record}
        tensors = {name: tensor.contiguous().clone() for name, tensor in state.items()}
        save_file(tensors, partial / WEIGHTS)
        digests = digests_of(_digested({**kept, "settings": {**settings, "tokenizer": tokenizer}}, tensors))
        text = json.dumps({**kept, "settings": settings, DIGESTS: digests}, indent=2, ensure_ascii=False)
        (partial / CONFIG).write_text(text + "\n", encoding="utf-8")
        rename(partial, folder)


def is_consolidated(path: Path) -> bool:
    return (path / CONFIG).is_file()


def read_consolidated(folder: Path) -> dict[str, Any]:
    """Read the entries that a checkpoint has for restoring a model.

    Raises:
        UserError: they are not what was saved.
    """
    record = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    record["settings"]["tokenizer"] = (folder / TOKENIZER).read_bytes()
    state, digests = load_file(folder / WEIGHTS), record.pop(DIGESTS, None)
    refuse_damage(folder, _digested(record, state), digests)
    if (folder / LLM).is_dir():
        record["settings"]["llm"] = str(folder / LLM)
    return {**OF_WEIGHTS_ALONE, RECORD: record, "state_dict": state}


def _digested(record: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    """Content that the digests cover, in alphabetical order: all but the path of the LLM, which a user may move."""
    settings = {key: value for key, value in sorted(record["settings"].items()) if key not in ("llm", "llm_revision")}
    return {RECORD: {**dict(sorted(record.items())), "settings": settings}, STATE: state}
