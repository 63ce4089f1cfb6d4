"""Layers of pretrained encoders that hear real frames alone, in the place of those that hear padding or other rows."""

from torch import Tensor, nn
from torch.nn import functional as F

from speechllm_pl.core.masks import length_mask


class RealFramesNorm(nn.GroupNorm):
    """Group norm with a group for each channel, over the real frames of `(B, C, T)`; set `frames` before.

    Attributes:
        frames: `(B,)` real frames.
    """

    frames: Tensor

    def forward(self, input: Tensor) -> Tensor:
        mask = length_mask(self.frames, input.shape[2])[:, None, :]
        count = self.frames[:, None, None]
        mean = (input * mask).sum(2, keepdim=True) / count
        centred = (input - mean) * mask
        variance = centred.square().sum(2, keepdim=True) / count
        return centred * (variance + self.eps).rsqrt() * self.weight[:, None] + self.bias[:, None]


class RealFramesConv(nn.Conv1d):
    """Convolution of `(B, C, T)` that hears zeros beyond the real frames; set `frames` before.

    Attributes:
        frames: `(B,)` real frames.
    """

    frames: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input * length_mask(self.frames, input.shape[2])[:, None, :])


class StoredBatchNorm(nn.BatchNorm1d):
    """Batch norm by the stored statistics, in training too: those of a batch are other rows' and padding's as well."""

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def store_statistics(model: nn.Module) -> None:
    """Turn the batch norms of a model into those by stored statistics, in place."""
    for module in model.modules():
        if type(module) is nn.BatchNorm1d:
            module.__class__ = StoredBatchNorm
