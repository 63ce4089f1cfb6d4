"""Several channels become one by their mean, in which speech is lost that they have in opposite phase."""

import numpy as np

LEAST_SHARE = 1e-3
"""Of the channels' power (-30 dB) that their mean must keep; the mean of unrelated channels keeps half and more."""


def channels_cancel(samples: np.ndarray) -> bool:
    """Whether almost nothing is left in the mean of `samples` (channel, T)."""
    if len(samples) < 2 or not samples.size:
        return False
    mean_power = float(np.square(samples, dtype=np.float64).mean())
    return float(np.square(samples.mean(axis=0), dtype=np.float64).mean()) < LEAST_SHARE * mean_power
