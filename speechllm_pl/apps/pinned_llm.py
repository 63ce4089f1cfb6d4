"""Commits of a run's LLM and encoder from a hub: those it began with, whatever the names refer to today."""

from pathlib import Path
from typing import Any

from speechllm_pl.models.hugging_face import commit_of
from speechllm_pl.models.llm import llm_commit
from speechllm_pl.storage.checkpoints import RECORD, newest_complete, read_record


def pin_llm(config: Any) -> None:
    """Put the commits of LLM and encoder into the configuration of a run, which records them.

    Args:
        config: parsed configuration of `fit`, `validate`, `test` or `predict`; changed in place.

    Raises:
        UserError: one of them is neither a folder nor a name that can be loaded.
    """
    arguments = config.model.init_args
    if "llm" in arguments and arguments.llm_revision is None:
        arguments.llm_revision = recorded_revision(config) or llm_commit(arguments.llm)
    encoder: Any = (arguments.get("encoder") or {}).get("init_args") or {}
    if encoder.get("name") and encoder.revision is None:
        encoder.revision = recorded_encoder_revision(config) or commit_of("encoder", encoder.name)


def recorded_revision(config: Any) -> str | None:
    """Commit with which a resumed run began, if it had this LLM."""
    recorded = _recorded(config)
    return recorded.get("llm_revision") if recorded.get("llm") == config.model.init_args.llm else None


def recorded_encoder_revision(config: Any) -> str | None:
    """Commit of the encoder with which a resumed run began, if it had this one."""
    recorded = _recorded(config).get("encoder", {}).get("init_args", {})
    return recorded.get("revision") if recorded.get("name") == config.model.init_args.encoder.init_args.name else None


def _recorded(config: Any) -> dict[str, Any]:
    """Settings in the checkpoint from which a run is resumed; empty if there is none."""
    given = config.ckpt_path if config.ckpt_path != "last" else None
    checkpoint = Path(given) if given else newest_complete(Path(config.run, "checkpoints"))
    return read_record(checkpoint)[RECORD]["settings"] if checkpoint else {}
