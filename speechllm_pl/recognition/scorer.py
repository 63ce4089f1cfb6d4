"""Scores of the next token: an LLM behind a prompt, with its cache."""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from speechllm_pl.core.prompt import Columns
from speechllm_pl.models.speech_llm import SpeechLLM


class Scorer(Protocol):
    """Interface that gives a search its logits."""

    def __call__(self, tokens: Tensor | None) -> Tensor:
        """Score the next token of each row.

        Args:
            tokens: `(B,)` last written tokens; None before the first.

        Returns:
            `(B, V)` fp32 logits.
        """
        ...


class LlmScorer:
    """Scores the tokens that follow a batch of prompts.

    Args:
        model: model of stage 2 in evaluation mode.
        prompt: columns of the prompt up to BOS.
    """

    def __init__(self, model: SpeechLLM, prompt: Columns):
        self._llm = cast(Any, model.llm)
        self._suppressed = suppressed_tokens(self._llm)
        self._limit = model.most_positions
        self._mask = prompt.mask  # (B, C + tokens written)
        self._positions = prompt.positions  # (B, C), then (B, 1): of what is read next
        self._next: dict[str, Tensor] = {"inputs_embeds": prompt.embeddings.to(model.text_embeddings.dtype)}
        self._cache: Any = None

    def __call__(self, tokens: Tensor | None) -> Tensor:
        if tokens is not None:
            self._next = {"input_ids": tokens[:, None]}
            self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
            self._positions = self._positions[:, -1:] + 1
        # Rows that have ended are read on to the end of the batch: they must stay inside the table of positions.
        positions = self._positions if self._limit is None else self._positions.clamp(max=self._limit - 1)
        found = self._llm(
            **self._next,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = found.past_key_values
        return suppress(found.logits[:, -1].float(), self._suppressed)

    def select(self, rows: Sequence[int]) -> None:
        """Continue with these rows of the batch."""
        if list(rows) == list(range(len(self._mask))):
            return
        places = torch.tensor(rows, dtype=torch.long, device=self._mask.device)
        self._mask, self._positions = self._mask[places], self._positions[places]
        if self._cache is None:
            self._next = {name: value[places] for name, value in self._next.items()}
        else:
            self._cache.batch_select_indices(places)


def suppressed_tokens(llm: Any) -> list[int]:
    """Tokens that the LLM's own configuration forbids."""
    return getattr(llm.generation_config, "suppress_tokens", None) or []


def suppress(logits: Tensor, tokens: list[int]) -> Tensor:
    """Exclude tokens from choice in `(…, V)` logits, which are changed in place."""
    if tokens:
        logits[..., tokens] = -torch.inf
    return logits
