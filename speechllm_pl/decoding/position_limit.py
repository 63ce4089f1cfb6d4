"""What an LLM has positions for: prompts and texts end there, aloud."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from torch import Tensor

from speechllm_pl.core.prompt import Columns

log = logging.getLogger(__name__)


def within_limit(columns: Columns, caps: Tensor, limit: int) -> tuple[Columns, Tensor]:
    """Lower the caps to what the LLM has positions left for, after each row's prompt.

    The last token that is said takes none. A row whose prompt is too long by itself is left with BOS alone and a cap of
    0: its text is empty, and counts as cut short.
    """
    taken = columns.mask.sum(1)
    too_long = taken > limit
    if too_long.any():
        log.warning(
            "audio takes up to %d of the LLM's %d positions, so nothing is said of %d utterance(s): split them, or"
            " train with a longer stride",
            int(taken.max()),
            limit,
            int(too_long.sum()),
        )
    mask = columns.mask.masked_fill(too_long[:, None], 0)
    mask[:, -1] = 1  # BOS
    return columns._replace(mask=mask), caps.minimum(limit + 1 - taken).clamp(min=0)


@contextmanager
def positions_below(limit: int | None, llm: Any) -> Iterator[None]:
    """A row that has ended is fed padding until the last one ends: its positions must not leave the LLM's table."""

    def bound(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if (positions := kwargs.get("position_ids")) is not None:
            kwargs["position_ids"] = positions.clamp(max=limit - 1)
        return args, kwargs

    causal_lm = llm.get_base_model() if isinstance(llm, PeftModel) else llm
    hook = causal_lm.register_forward_pre_hook(bound, with_kwargs=True) if limit is not None else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
