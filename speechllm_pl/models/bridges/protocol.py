"""Interface of what stands between encoder and LLM: a description (`BridgeConfig`), and the module built from it."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from speechllm_pl.core.padded import Padded


class Bridge(nn.Module, ABC):
    """Frames in, audio embeddings out.

    Attributes:
        stride: frames from one embedding to the next.
        reads_ctc_logits: whether `forward` is given the encoder's CTC logits, which take a product to compute.
    """

    stride: int
    reads_ctc_logits = False

    @abstractmethod
    def forward(self, frames: Padded, logits: Tensor | None = None) -> Padded:
        """Make embeddings of the LLM's width.

        Args:
            frames: `(B, T, dim)`, zero beyond their lengths.
            logits: `(B, T, V)` of the CTC head.

        Returns:
            `(B, A, llm_dim)` embeddings.
        """


class BridgeConfig(ABC):
    """Description of a bridge: a frozen dataclass of its settings, which builds it."""

    @abstractmethod
    def build(self, dim: int, llm_dim: int) -> Bridge:
        """Build the untrained bridge from frames of width `dim` to embeddings of width `llm_dim`."""

    @abstractmethod
    def embedding_lengths(self, frames: Tensor) -> Tensor:
        """Numbers of embeddings for numbers of frames; the largest possible where they depend on the frames."""
