"""Scores of the next token: an LLM behind a prompt, with its cache."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from speechllm_pl.core.prompt import Columns
from speechllm_pl.models.speech_llm import SpeechLLM

TokenFilter = Callable[[Tensor], Tensor]
"""Function from `(…, V)` logits, which it may change, to logits of which minus infinity excludes a token."""


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
        token_filter: excludes tokens; by default those that the LLM's own configuration forbids.
    """

    def __init__(self, model: SpeechLLM, prompt: Columns, token_filter: TokenFilter | None = None):
        self._llm = cast(Any, model.llm)
        self._filter = token_filter or suppression(self._llm)
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
        return self._filter(found.logits[:, -1].float())

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


def suppression(llm: Any) -> TokenFilter:
    """Filter that excludes the tokens that the LLM's own configuration forbids."""
    tokens = getattr(llm.generation_config, "suppress_tokens", None) or []

    def suppress(logits: Tensor) -> Tensor:
        if tokens:
            logits[..., tokens] = -torch.inf
        return logits

    return suppress
