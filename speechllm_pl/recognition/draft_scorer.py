"""Scores of whole drafts by an LLM: logits after each offered token, in one forward pass for a batch.

Rows accept different lengths of their offers. Rejected columns of the cache are masked, never moved, and columns that
no row needs are cut off, so a row's logits do not depend on its batch.
"""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from speechllm_pl.core.prompt import Columns, pad_tokens
from speechllm_pl.models.speech_llm import SpeechLLM
from speechllm_pl.recognition.scorer import TokenFilter, suppression


class DraftScorer(Protocol):
    """Interface that gives a search with drafts its logits."""

    def score(self, last: Sequence[Sequence[int]], offers: Sequence[Sequence[int]]) -> Tensor:
        """Score the successors of each row's last token, and of each token offered after it.

        Args:
            last: last token of each row; empty before its first token.
            offers: at most K tokens per row.

        Returns:
            `(B, K + 1, V)` fp32 logits.
        """
        ...

    def accept(self, counts: Sequence[int]) -> None:
        """Accept the first `counts` offered tokens of each row as written."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all other rows."""
        ...


class LlmDraftScorer:
    """Scores drafts behind a batch of prompts.

    Attributes:
        cache: keys and values of the prompt, of what was written, and of what was offered last.

    Args:
        model: model of stage 2 in evaluation mode, whose LLM attends to all of its cache (`sees_everything`).
        prompt: columns of the prompt up to BOS.
        token_filter: excludes tokens; by default those that the LLM's own configuration forbids.
    """

    def __init__(self, model: SpeechLLM, prompt: Columns, token_filter: TokenFilter | None = None):
        self._llm = cast(Any, model.llm)
        self._embed = self._llm.get_input_embeddings()
        self._filter = token_filter or suppression(self._llm)
        self._limit = model.most_positions
        self.cache = DynamicCache()
        self._unread: Tensor | None = prompt.embeddings  # (B, P, D), whose last column is BOS
        self._mask = prompt.mask  # (B, C) of the cache's columns
        self._offered = 0  # columns at the cache's end that are not accepted yet

    def score(self, last: Sequence[Sequence[int]], offers: Sequence[Sequence[int]]) -> Tensor:
        rows = [[*token, *offer] for token, offer in zip(last, offers, strict=True)]
        fed, lengths = pad_tokens(rows, self._mask.device)
        real = (torch.arange(fed.shape[1], device=fed.device) < lengths[:, None]).long()
        embeddings, kept = self._embed(fed), fed.shape[1]
        self._mask = torch.cat([self._mask, real], 1)
        if self._unread is not None:
            embeddings = torch.cat([self._unread, embeddings.to(self._unread.dtype)], 1)
            kept += 1  # after BOS
            self._unread = None
        positions = (self._mask.cumsum(1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
        if self._limit is not None:
            positions = positions.clamp(max=self._limit - 1)  # of padding
        logits = self._llm(
            inputs_embeds=embeddings.to(self._llm.dtype),
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=kept,
        ).logits.float()
        self._offered = kept - 1
        return self._filter(logits)

    def accept(self, counts: Sequence[int]) -> None:
        most, device = max(counts), self._mask.device
        accepted = torch.arange(most, device=device) < torch.tensor(counts, device=device)[:, None]
        self._mask = torch.cat([self._mask[:, : self._mask.shape[1] - self._offered], accepted.long()], 1)
        if most < self._offered:
            self.cache.crop(most - self._offered)  # so many columns fewer

    def keep(self, rows: Sequence[int]) -> None:
        if len(rows) == len(self._mask) or not rows:
            return
        places = torch.tensor(rows, device=self._mask.device)
        self._mask = self._mask[places]
        if self._unread is None:
            self.cache.batch_select_indices(places)
        else:
            self._unread = self._unread[places]


def sees_everything(llm: Any, columns: int) -> bool:
    """Whether each token attends to all before it, in a cache of up to `columns`.

    In a sliding window, rejected columns would take the room of others.
    """
    config = llm.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    return window is None or not getattr(config, "use_sliding_window", True) or columns < window
