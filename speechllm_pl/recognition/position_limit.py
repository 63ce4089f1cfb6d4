"""What an LLM has positions for: prompts and texts end there, aloud."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from torch import Tensor

log = logging.getLogger(__name__)


def lowered(caps: Tensor, prompts: Tensor, limit: int) -> Tensor:
    """Caps that the LLM has positions for.

    Args:
        caps: `(B,)` most tokens of each row.
        prompts: `(B,)` positions that instruction, audio and BOS take. The last token that is said takes none.
        limit: positions that the LLM has.

    Returns:
        `(B,)`, 0 where the prompt by itself is too long: that text is empty, and counts as cut short.
    """
    too_long = int((prompts > limit).sum())
    if too_long:
        log.warning(
            "audio takes up to %d of the LLM's %d positions, so nothing is said of %d utterance(s): split them, or"
            " train with a longer stride",
            int(prompts.max()),
            limit,
            too_long,
        )
    return caps.minimum(limit + 1 - prompts).clamp(min=0)


@contextmanager
def positions_below(limit: int | None, llm: Any) -> Iterator[None]:
    """Keep the positions of rows that nothing more is read of inside the LLM's table.

    Those are rows that have ended, which are fed padding until the last one ends, and those with too long a prompt.
    """
    if limit is None:
        yield
        return

    def bound(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if (positions := kwargs.get("position_ids")) is not None:
            kwargs["position_ids"] = positions.clamp(max=limit - 1)
        return args, kwargs

    causal_lm = llm.get_base_model() if isinstance(llm, PeftModel) else llm
    hook = causal_lm.register_forward_pre_hook(bound, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
