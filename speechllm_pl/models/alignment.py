"""Pull the audio embeddings directly onto the LLM's text embeddings.

The paper finds that audio and text embeddings align roughly monotonically, and asks whether the encoder
could be trained towards that (arXiv 2307.11795, alignment analysis and future work). Here: a CTC loss whose
classes are the LLM's own input embeddings, scored by cosine similarity, plus a learned blank.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechllm_pl.models.losses import LossTerm, Tokens, ctc_loss


def cosine_similarities(audio: Tensor, text: Tensor) -> Tensor:
    """`(…, A, D)` and `(N, D)` → `(…, A, N)` cosine similarities."""
    return F.normalize(audio.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T


class DirectAlignment(nn.Module):
    """CTC between audio embeddings and the LLM's input embeddings.

    Args:
        llm_dim: the LLM's width.
        temperature: cosines are divided by it: the smaller, the sharper.
        blank: `(llm_dim,)` where the blank starts (an embedding that the LLM already skips), else random.
    """

    def __init__(self, llm_dim: int, temperature: float = 0.05, blank: Tensor | None = None):
        super().__init__()
        self.temperature = temperature
        start = torch.randn(llm_dim) if blank is None else blank.detach().float().clone()
        self.blank = nn.Parameter(start)

    def forward(self, audio: Tensor, lengths: Tensor, text: Tokens, embeddings: Tensor) -> LossTerm:
        """The loss against the LLM tokens of the reference.

        Args:
            audio: `(B, A, D)` audio embeddings; `lengths`: `(B,)`.
            text: LLM tokens of the reference.
            embeddings: `(V, D)` the LLM's input embeddings.
        """
        classes = torch.cat([self.blank[None], embeddings.detach().float()])  # blank is class 0
        with torch.autocast(audio.device.type, enabled=False):
            logits = cosine_similarities(audio, classes) / self.temperature
        return ctc_loss(logits, lengths, Tokens(text.ids + 1, text.lengths))
