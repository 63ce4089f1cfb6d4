"""Joint scores of texts: an LLM's and the CTC head's, for the same audio.

An LLM that loses the audio writes fluent text that nobody said; the CTC head gives such text no likelihood. Texts are
ranked by (1 - w) log p_LLM + w log p_CTC (Watanabe et al., IEEE JSTSP 2017, eq. 13; for LLMs: arXiv 2603.15045).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from speechllm_pl.core.ctc_tokenizer import BLANK, CtcTokenizer
from speechllm_pl.core.prompt import pad_tokens
from speechllm_pl.recognition.hypothesis import Hypothesis


@torch.no_grad()
def ctc_log_likelihoods(logits: Tensor, frames: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
    """Log-likelihoods of texts, summed over all alignments.

    Args:
        logits: `(B, T, V)`, class 0 is the blank.
        frames: `(B,)` real frames.
        texts: the classes of one text for each utterance, without blanks.

    Returns:
        `(B,)` in nats, -inf where a text needs more frames than there are.
    """
    ids, lengths = pad_tokens(texts, logits.device)
    with torch.autocast(logits.device.type, enabled=False):
        log_probs = logits.float().log_softmax(-1).transpose(0, 1)  # (T, B, V)
        return -F.ctc_loss(log_probs, ids, frames, lengths, blank=BLANK, reduction="none")


def jointly_ranked(
    found: Sequence[Hypothesis], logits: Tensor, frames: Tensor, tokenizer: CtcTokenizer, weight: float
) -> list[Hypothesis]:
    """Choose each utterance's text anew among its alternatives, by both scores.

    Args:
        found: texts of the LLM; one without alternatives stands, and alternatives keep a score that they have.
        logits, frames: of the CTC head, as for `ctc_log_likelihoods`.
        weight: share of the CTC head, 0 to 1.

    Characters that the CTC head does not know are left out of its score.
    """
    chosen = []
    for row, hypothesis in enumerate(found):
        if not (hypothesis.finite and hypothesis.alternatives):
            chosen.append(hypothesis)
            continue
        new = [_spelled(tokenizer, each.text) for each in hypothesis.alternatives if not each.ctc_log_probability]
        own = logits[row : row + 1].expand(len(new), -1, -1), frames[row : row + 1].expand(len(new))
        heard = iter(ctc_log_likelihoods(*own, new).tolist() if new else [])
        scored = [
            each if each.ctc_log_probability else replace(each, ctc_log_probability=next(heard))
            for each in hypothesis.alternatives
        ]
        ranked = sorted(scored, key=lambda each: -each.joint_log_probability(weight))
        cost = {"passes": hypothesis.passes, "drafted": hypothesis.drafted}
        chosen.append(replace(ranked[0], alternatives=tuple(ranked), **cost))
    return chosen


def _spelled(tokenizer: CtcTokenizer, text: str) -> list[int]:
    return [piece for piece in tokenizer.encode(text) if piece != tokenizer.unk]
