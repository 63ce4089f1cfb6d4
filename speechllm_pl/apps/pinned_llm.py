"""Commit of a run's LLM from a hub: the one it began with, whatever the name refers to today."""

from pathlib import Path
from typing import Any

from speechllm_pl.models.llm import llm_commit
from speechllm_pl.storage.checkpoints import RECORD, newest_complete, read_record


def pin_llm(config: Any) -> None:
    """Put the commit into the configuration of a run, which records it.

    Args:
        config: parsed configuration of `fit`, `validate`, `test` or `predict`; changed in place.

    Raises:
        UserError: the LLM is neither a folder nor a name that can be loaded.
    """
    arguments = config.model.init_args
    if "llm" in arguments and arguments.llm_revision is None:
        arguments.llm_revision = recorded_revision(config) or llm_commit(arguments.llm)


def recorded_revision(config: Any) -> str | None:
    """Commit with which a resumed run began, if it had this LLM."""
    given = config.ckpt_path if config.ckpt_path != "last" else None
    checkpoint = Path(given) if given else newest_complete(Path(config.run, "checkpoints"))
    recorded = read_record(checkpoint)[RECORD]["settings"] if checkpoint else {}
    return recorded.get("llm_revision") if recorded.get("llm") == config.model.init_args.llm else None
