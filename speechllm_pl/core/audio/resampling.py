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
"""Values of a filter beyond which soxr resamples.

To 16,000 Hz torchaudio's filter has 0.3 million values from 11,025 Hz, and 4,000 million from 192,001 Hz.
"""

ZERO_CROSSINGS = 6
"""Zero crossings of torchaudio's filter on either side."""


def filter_values(source_hz: int, target_hz: int) -> int:
    """Number of values of torchaudio's filter."""
    common = math.gcd(source_hz, target_hz)
    old, new = source_hz // common, target_hz // common
    return new * (2 * math.ceil(ZERO_CROSSINGS * old / min(old, new)) + old)


class SteadyResampler:
    """Resampler that uses soxr.

    Args:
        source_hz, target_hz: sampling rates before and after.
    """

    def __init__(self, source_hz: int, target_hz: int):
        self.source_hz = source_hz
        self.target_hz = target_hz

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        """Resample `(..., N)` float32 to `(..., ceil(N * target_hz / source_hz))`, as many as torchaudio gives."""
        count = -(-samples.shape[-1] * self.target_hz // self.source_hz)
        channels = samples.reshape(math.prod(samples.shape[:-1]), samples.shape[-1]).numpy()
        resampled = np.zeros((len(channels), count), np.float32)
        for old, new in zip(channels, resampled, strict=True):
            found = soxr.resample(old, self.source_hz, self.target_hz)[:count]
            new[: len(found)] = found
        return torch.from_numpy(resampled.reshape(*samples.shape[:-1], count))


@lru_cache
def steady(create: Callable[[int, int], Callable]) -> Callable[[int, int], Callable]:
    """Wrap `create`, which makes torchaudio's resamplers, so that soxr takes the rates for which filters are large.

    The wrapped function raises `UserError` for implausible rates of that kind.
    """

    def create_steadily(source_hz: int, target_hz: int) -> Callable:
        if filter_values(source_hz, target_hz) <= MOST_VALUES:
            return create(source_hz, target_hz)  # whatever they are: rooms are simulated at 1,024,000 Hz
        for hz in (source_hz, target_hz):
            if wrong := implausible_rate(hz):
                raise UserError(wrong)
        return SteadyResampler(source_hz, target_hz)

    return create_steadily
