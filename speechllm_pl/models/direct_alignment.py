"""Pull the audio embeddings directly onto the LLM's text embeddings.

The paper finds that audio and text embeddings align roughly monotonically, and asks whether the encoder
could be trained towards that (arXiv 2307.11795, alignment analysis and future work). Here: a CTC loss whose
classes are the LLM's own input embeddings, scored by cosine similarity, plus a learned blank.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from speechllm_pl.core.padded import Padded
from speechllm_pl.models.losses import LossTerm, ctc_loss

NOTHING = -1e30
"""Logit of an impossible class: no probability beside any other, and no NaN where all are impossible."""


def cosine_similarities(audio: Tensor, text: Tensor) -> Tensor:
    """Compute `(…, A, N)` cosine similarities of `(…, A, D)` and `(N, D)` vectors."""
    return F.normalize(audio.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T


class DirectAlignment(nn.Module):
    """CTC between audio embeddings and the LLM's input embeddings.

    CTC only follows the tokens of the text; all others merely take probability away. An utterance therefore has the
    blank, its own tokens, and one class for the rest of the vocabulary, whose logit is the log-sum-exp over it: loss
    and gradients equal those of CTC over the whole vocabulary. The rest is summed in parts, again in the backward
    pass, and is never held as a whole.

    Most of a large vocabulary need not be summed: while training, the tokens of the batch stand for themselves and
    `sampled` others for all that are not in it. The sum over the vocabulary is then estimated without bias.

    Args:
        llm_dim: the LLM's width.
        temperature: cosines are divided by it: the smaller, the sharper.
        blank: `(llm_dim,)` where the blank starts (an embedding that the LLM already skips), else random.
        part: tokens of the vocabulary that are scored at once.
        sampled: tokens drawn from torch's generator in each training step; with 0, or as many as the vocabulary has,
            all are summed.
    """

    def __init__(
        self,
        llm_dim: int,
        temperature: float = 0.05,
        blank: Tensor | None = None,
        part: int = 8192,
        sampled: int = 0,
    ):
        super().__init__()
        self.temperature = temperature
        self.part = part
        self.sampled = sampled
        start = torch.randn(llm_dim) if blank is None else blank.detach().float().clone()
        self.blank = nn.Parameter(start)

    def forward(self, audio: Padded, text: Padded, embeddings: Tensor) -> LossTerm:
        """The loss against the LLM tokens of the reference.

        Args:
            audio: `(B, A, D)` audio embeddings.
            text: LLM tokens of the reference.
            embeddings: `(V, D)` the LLM's input embeddings, which get no gradient. The rest of the vocabulary is
                multiplied in their type; the classes that CTC follows are scored in fp32.
        """
        table = embeddings.detach()
        own, places = _own_tokens(text.values, len(table))
        with torch.autocast(table.device.type, enabled=False):
            frames = F.normalize(audio.values.float(), dim=-1) / self.temperature
            blank = F.normalize(self.blank, dim=0).expand(len(frames), 1, -1)
            tokens = F.normalize(table[own.clamp(max=len(table) - 1)].float(), dim=-1)  # (B, N, D)
            logits = frames @ torch.cat([blank, tokens], dim=1).mT  # (B, A, 1 + N)
            logits = logits.masked_fill(F.pad(own == len(table), (1, 0))[:, None], NOTHING)
            logits = torch.cat([logits, self._rest(frames, table, own)[:, :, None]], dim=2)
        return ctc_loss(Padded(logits, audio.lengths), Padded(places + 1, text.lengths))

    def _rest(self, frames: Tensor, table: Tensor, own: Tensor) -> Tensor:
        """Joint logit, `(B, A)`, of all tokens of the vocabulary that are not an utterance's own."""
        taken = torch.zeros(len(own), len(table) + 1, dtype=torch.bool, device=own.device).scatter(1, own, True)
        if self.training and 0 < self.sampled < len(table):
            sums = self._sampled_sums(frames, table, own, taken)
        else:
            starts = range(0, len(table), self.part)
            parts = [slice(start, min(start + self.part, len(table))) for start in starts]
            sums = [_log_sum(frames, table[part], taken[:, part]) for part in parts]
        return torch.stack(sums).logsumexp(0)

    def _sampled_sums(self, frames: Tensor, table: Tensor, own: Tensor, taken: Tensor) -> list[Tensor]:
        """Log-sum-exp, `(B, A)`, over the tokens of the batch, and its estimate for all others from some of them.

        No shape depends on how many tokens are distinct: repetitions, and tokens of the batch that are drawn, are
        masked.
        """
        (batch,), _ = _own_tokens(own.reshape(1, -1), len(table))  # (B * N,)
        others = ~taken[:, :-1].any(0)  # (V,)
        drawn = torch.randperm(len(table), device=own.device)[: self.sampled]
        share = others.sum() / others[drawn].sum().clamp(min=1)
        of_batch = _log_sum(frames, table[batch.clamp(max=len(table) - 1)], taken[:, batch] | (batch == len(table)))
        return [of_batch, _log_sum(frames, table[drawn], ~others[drawn].expand(len(own), -1)) + share.log()]


def _own_tokens(ids: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """The distinct tokens of each text. Padding counts as a token, which CTC never looks up.

    Args:
        ids: `(B, N)` of the texts.

    Returns:
        `(B, N)` distinct tokens in rising order, with `vocabulary` in place of repetitions.
        `(B, N)` the column in it of each token of the text.
    """
    rising, _ = ids.sort(dim=1)
    again = rising.diff(dim=1, prepend=ids.new_full((len(ids), 1), -1)) == 0
    return rising.masked_fill(again, vocabulary), torch.searchsorted(rising, ids)  # the first of equal ones


def _log_sum(frames: Tensor, embeddings: Tensor, taken: Tensor) -> Tensor:
    """Log-sum-exp, `(B, A)`, of the logits of some tokens, without those in `taken`. Logits are not kept for backward.

    Args:
        frames: `(B, A, D)` fp32 unit vectors, divided by the temperature.
        embeddings: `(C, D)` of the tokens.
        taken: `(B, C)` tokens that are left out.
    """

    def log_sum(frames: Tensor, embeddings: Tensor, norms: Tensor, taken: Tensor) -> Tensor:
        logits = (frames.to(embeddings.dtype) @ embeddings.T).float() / norms  # (B, A, C)
        return logits.masked_fill(taken[:, None], NOTHING).logsumexp(-1)

    norms = torch.linalg.vector_norm(embeddings, dim=1, dtype=torch.float32).clamp(min=1e-12)
    given = (frames, embeddings, norms, taken)
    return cast(Tensor, checkpoint(log_sum, *given, use_reentrant=False, preserve_rng_state=False))
