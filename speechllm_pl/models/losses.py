"""Training losses as sums with the number of tokens they cover, so that pooled batches are divided once."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from speechllm_pl.core.ctc_tokenizer import BLANK
from speechllm_pl.core.padded import Padded
from speechllm_pl.core.prompt import IGNORED


class LossTerm(NamedTuple):
    """A negative log-likelihood summed over the batch, and the number of tokens to divide it by."""

    total: Tensor  # ()
    count: Tensor  # ()


class WeightedTerm(NamedTuple):
    """A term of a model's training loss, and its weight there."""

    term: LossTerm
    weight: float


def weighted_sum(terms: Mapping[str, WeightedTerm]) -> Tensor:
    """The training loss, summed over tokens."""
    return torch.stack([weight * term.total for term, weight in terms.values()]).sum()


def ctc_loss(logits: Padded, targets: Padded) -> LossTerm:
    """Connectionist temporal classification (Graves et al., ICML 2006), in fp32.

    Args:
        logits: `(B, T, V)`, class 0 is the blank.
        targets: `(B, N)` classes 1 … V - 1.

    A transcript that needs more frames than its audio has (one per symbol, and a blank between equal ones) has no
    likelihood: it adds neither to the loss nor to the count.
    """
    (scores, frames), (ids, lengths) = logits, targets
    columns = torch.arange(max(ids.shape[1] - 1, 0), device=ids.device)
    repeats = (ids[:, 1:] == ids[:, :-1]) & (columns < lengths[:, None] - 1)
    possible = frames >= lengths + repeats.sum(1)
    with torch.autocast(scores.device.type, enabled=False):
        log_probs = scores.float().log_softmax(-1).transpose(0, 1)  # (T, B, V)
        total = F.ctc_loss(log_probs, ids, frames, lengths, blank=BLANK, reduction="sum", zero_infinity=True)
    return LossTerm(total, (lengths * possible).sum())


def next_token_loss(logits: Tensor, labels: Tensor) -> LossTerm:
    """Cross entropy of `(B, K, V)` logits with `(B, K)` labels, in fp32, over the labels that count."""
    total = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return LossTerm(total, (labels != IGNORED).sum())
