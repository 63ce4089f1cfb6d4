"""The best class of every frame, repeats merged, blanks dropped (Graves et al., 2006, best path decoding)."""

import torch
from torch import Tensor

from speechllm_pl.core.tokenizer import CtcTokenizer, ctc_collapse
from speechllm_pl.decoding import Hypothesis


@torch.no_grad()
def greedy_ctc(logits: Tensor, frames: Tensor, tokenizer: CtcTokenizer) -> list[Hypothesis]:
    """`(B, T, V)` logits and `(B,)` real frames → one hypothesis an utterance."""
    best = logits.argmax(-1).tolist()
    rows = zip(best, frames.tolist(), strict=True)
    return [Hypothesis(tokenizer.decode(ctc_collapse(row[:length]))) for row, length in rows]
