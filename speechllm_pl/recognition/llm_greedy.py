"""Greedy search: the most likely token at every step."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from speechllm_pl.recognition.scorer import Scorer
from speechllm_pl.recognition.text_end import TextEnds


class GreedyTexts(NamedTuple):
    """Result of a search for each row of a batch."""

    tokens: Tensor  # (B, n), padded
    log_probabilities: Tensor  # (B,) of all tokens of a row together; not finite where its logits were not


def greedy(scorer: Scorer, ends: TextEnds, pad_id: int, all_ended: Callable[[bool], bool] = bool) -> GreedyTexts:
    """Write until every row has ended.

    Args:
        ends: decides when a row ends; afterwards it holds where each row ends, and why.
        pad_id: token fed to rows that have ended.
        all_ended: receives whether this batch has ended, and returns whether to stop.
    """
    ended = ends.ended
    written = torch.zeros(len(ended), 0, dtype=torch.long, device=ended.device)
    total = torch.zeros(len(ended), device=ended.device)
    tokens = None
    while True:
        logits = scorer(tokens)  # (B, V)
        chosen = logits.argmax(-1, keepdim=True)
        log_probability = logits.gather(1, chosen)[:, 0] - logits.logsumexp(-1)
        total += log_probability.masked_fill(ended, 0)
        tokens = chosen[:, 0].masked_fill(ended, pad_id)
        written = torch.cat([written, tokens[:, None]], dim=1)
        ended = ends(written)
        if all_ended(bool(ended.all())):
            return GreedyTexts(written, total)
