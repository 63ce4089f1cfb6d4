"""The best class of every frame, repeats merged, blanks dropped (Graves et al., 2006, best path decoding)."""

import torch
from torch import Tensor

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer, ctc_collapse
from speechllm_pl.recognition.hypothesis import Hypothesis, Meaningless


@torch.no_grad()
def greedy_ctc(logits: Tensor, frames: Tensor, tokenizer: CtcTokenizer) -> list[Hypothesis]:
    """`(B, T, V)` logits and `(B,)` real frames → one hypothesis an utterance."""
    most, best = logits.max(-1)  # (B, T); of a frame with NaN it is NaN
    rows = zip(best.tolist(), most.isfinite().tolist(), frames.tolist(), strict=True)
    return [
        (Hypothesis if all(finite[:length]) else Meaningless)(tokenizer.decode(ctc_collapse(row[:length])))
        for row, finite, length in rows
    ]
