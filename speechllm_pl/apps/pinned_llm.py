"""Which commit of a hub's LLM a run has: the one that it began with, whatever its name stands for today."""

from pathlib import Path
from typing import Any

from speechllm_pl.models.llm import llm_commit
from speechllm_pl.training.checkpoints import RECORD, newest_complete, read_record


def pin_llm(config: Any) -> None:
    """Put the commit into the configuration of a run, which records it.

    Args:
        config: of `fit`, `validate`, `test` or `predict`, parsed; changed in place.

    Raises:
        UserError: the LLM is neither a folder nor a name that can be loaded.
    """
    arguments = config.model.init_args
    if "llm" not in arguments or arguments.llm_revision is not None:
        return
    given = config.ckpt_path if config.ckpt_path != "last" else None
    checkpoint = Path(given) if given else newest_complete(Path(config.run, "checkpoints"))
    recorded = read_record(checkpoint)[RECORD]["settings"] if checkpoint else {}
    same = recorded.get("llm") == arguments.llm
    arguments.llm_revision = (recorded.get("llm_revision") if same else None) or llm_commit(arguments.llm)
