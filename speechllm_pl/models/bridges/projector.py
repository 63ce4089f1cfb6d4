"""Projection of encoder frames to the LLM's width: n frames become one vector (arXiv 2307.11795, section 3.1)."""

from dataclasses import dataclass

from torch import Tensor, nn

from speechllm_pl.core.errors import UserError
from speechllm_pl.core.masks import stacked
from speechllm_pl.core.padded import Padded
from speechllm_pl.models.bridges.protocol import Bridge, BridgeConfig


@dataclass(frozen=True)
class ProjectorConfig(BridgeConfig):
    """Size of the projector.

    Attributes:
        stride: Number of encoder frames stacked into one audio embedding (1, 2, 3, 6, 12: the paper's 80 to 960 ms).
    """

    stride: int = 3

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise UserError(f"stride {self.stride}: stack at least one encoder frame (of 80 ms with the conformer)")

    def build(self, dim: int, llm_dim: int) -> "Projector":
        return Projector(dim, llm_dim, self.stride)

    def embedding_lengths(self, frames: Tensor) -> Tensor:
        return stacked(frames, self.stride)


class Projector(Bridge):
    """Stack `stride` consecutive frames of `dim` into one of `stride * dim`, then project it linearly.

    A last incomplete stack is filled with zeros, so no frame is lost.
    """

    def __init__(self, dim: int, llm_dim: int, stride: int):
        super().__init__()
        self.stride = stride
        self.linear = nn.Linear(stride * dim, llm_dim)

    def forward(self, frames: Padded, logits: Tensor | None = None) -> Padded:
        """Project `(B, T, dim)`, zero beyond their lengths, to `(B, ceil(T / stride), llm_dim)`."""
        missing = -frames.values.shape[1] % self.stride
        filled = nn.functional.pad(frames.values, (0, 0, 0, missing))
        stacks = filled.unflatten(1, (-1, self.stride)).flatten(2)
        return Padded(self.linear(stacks), stacked(frames.lengths, self.stride))
