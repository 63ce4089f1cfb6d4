"""Interface of what stands between encoder and LLM."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Bridge(nn.Module, ABC):
    """Frames in, audio embeddings out.

    Attributes:
        reads_ctc_logits: whether `forward` is given the encoder's CTC logits, which take a product to compute.
    """

    reads_ctc_logits = False

    @abstractmethod
    def forward(self, frames: Tensor, lengths: Tensor, logits: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Make embeddings of the LLM's width.

        Args:
            frames: `(B, T, dim)`, zero beyond their lengths; `lengths`: `(B,)`.
            logits: `(B, T, V)` of the CTC head.

        Returns:
            `(B, A, llm_dim)` embeddings, and `(B,)` their lengths.
        """
