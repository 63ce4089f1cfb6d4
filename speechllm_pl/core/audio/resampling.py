"""Resampling whose memory does not grow with the ratio of the rates.

torchaudio's filter has a row for each phase that the two rates can have to each other: 640 for 11,025 Hz, but 16,000
for 15,999 Hz, of 16,000 values each, and gigabytes while they are computed. Between such rates soxr resamples, which
interpolates its filter. Usual rates stay with torchaudio, bit for bit.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import soxr
import torch

from speechllm_pl.core.audio.sampling_rates import implausible_rate
from speechllm_pl.core.errors import UserError

MOST_VALUES = 2**20
"""Of a filter: that between 11,025 and 16,000 Hz has 0.3 million, that from 192,001 Hz 4,000 million."""

ZERO_CROSSINGS = 6
"""Of torchaudio's filter, on either side."""


def filter_values(source_hz: int, target_hz: int) -> int:
    """How many values torchaudio's filter has."""
    common = math.gcd(source_hz, target_hz)
    old, new = source_hz // common, target_hz // common
    return new * (2 * math.ceil(ZERO_CROSSINGS * old / min(old, new)) + old)


class SteadyResampler:
    """Resamples by soxr.

    Args:
        source_hz, target_hz: sampling rates before and after.
    """

    def __init__(self, source_hz: int, target_hz: int):
        self.source_hz = source_hz
        self.target_hz = target_hz

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        """`(..., N)` float32 → `(..., ceil(N * target_hz / source_hz))`, as many as torchaudio would give."""
        count = -(-samples.shape[-1] * self.target_hz // self.source_hz)
        channels = samples.reshape(math.prod(samples.shape[:-1]), samples.shape[-1]).numpy()
        resampled = np.zeros((len(channels), count), np.float32)
        for old, new in zip(channels, resampled, strict=True):
            found = soxr.resample(old, self.source_hz, self.target_hz)[:count]
            new[: len(found)] = found
        return torch.from_numpy(resampled.reshape(*samples.shape[:-1], count))


@lru_cache
def steady(create: Callable[[int, int], Callable]) -> Callable[[int, int], Callable]:
    """`create`, which makes resamplers of torchaudio, but for rates between which their filters would be large.

    For others, what is returned raises a `UserError` if no recording has them.
    """

    def create_steadily(source_hz: int, target_hz: int) -> Callable:
        if filter_values(source_hz, target_hz) <= MOST_VALUES:
            return create(source_hz, target_hz)  # whatever they are: rooms are simulated at 1,024,000 Hz
        for hz in (source_hz, target_hz):
            if wrong := implausible_rate(hz):
                raise UserError(wrong)
        return SteadyResampler(source_hz, target_hz)

    return create_steadily
