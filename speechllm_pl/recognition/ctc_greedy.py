"""Best path decoding (Graves et al., 2006): the best class of every frame, repeats merged, blanks dropped."""

import torch
from torch import Tensor

from speechllm_pl.core.ctc_tokenizer import BLANK, CtcTokenizer, ctc_collapse
from speechllm_pl.core.masks import length_mask
from speechllm_pl.recognition.hypothesis import Hypothesis


@torch.no_grad()
def greedy_ctc(logits: Tensor, frames: Tensor, tokenizer: CtcTokenizer) -> list[Hypothesis]:
    """Return one hypothesis per utterance from `(B, T, V)` logits and `(B,)` real frames."""
    most, best = logits.max(-1)  # (B, T)
    padding = ~length_mask(frames, logits.shape[1])
    scores = (most - logits.logsumexp(-1)).masked_fill(padding, 0).sum(1)  # (B,) NaN where a logit is
    hypotheses = []
    for row, length, score in zip(best.tolist(), frames.tolist(), scores.tolist(), strict=True):
        labels = ctc_collapse(row[:length])
        text = tokenizer.decode(labels)
        hypotheses.append(Hypothesis(text, log_probability=score, num_tokens=len(labels)))
    return hypotheses


@torch.no_grad()
def largest_entropies(logits: Tensor, frames: Tensor) -> Tensor:
    """Entropy in nats of the least certain frame of each utterance, `(B,)`, from `(B, T, V)` logits."""
    entropies = torch.distributions.Categorical(logits=logits.float(), validate_args=False).entropy()  # (B, T)
    return entropies.masked_fill(~length_mask(frames, logits.shape[1]), 0).amax(1)


@torch.no_grad()
def confidences(logits: Tensor, frames: Tensor) -> Tensor:
    """Geometric mean of the best class's probability over the frames in which it is no blank, `(B,)`; 1 without any."""
    most, best = logits.float().max(-1)  # (B, T)
    heard = (best != BLANK) & length_mask(frames, logits.shape[1])
    scores = (most - logits.float().logsumexp(-1)).masked_fill(~heard, 0)
    return (scores.sum(1) / heard.sum(1).clamp(min=1)).exp()
