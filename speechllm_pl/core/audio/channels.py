"""Detect channels of opposite phase: their mean, which becomes the single channel, loses the speech."""

import numpy as np

LEAST_SHARE = 1e-3
"""Share of the channels' power that their mean must keep, -30 dB. For unrelated channels it is half and more."""


def channels_cancel(samples: np.ndarray) -> bool:
    """Whether almost nothing is left in the mean of `samples`, `(channel, T)`."""
    if len(samples) < 2 or not samples.size:
        return False
    mean_power = float(np.square(samples, dtype=np.float64).mean())
    return float(np.square(samples.mean(axis=0), dtype=np.float64).mean()) < LEAST_SHARE * mean_power
