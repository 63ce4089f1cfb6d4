"""Checks of a recording's samples: what it must have to be trained on, whatever its file."""

import numpy as np

from speechllm_pl.core.audio.units import FRAME_SECONDS

SILENCE = 2e-4
"""Span between the largest and the smallest sample (full scale 2) below which a recording is silent: three
steps of 16 bits on either side, so that dither alone does not count as sound."""


class Rejected(Exception):
    """A recording that cannot be used; the message is the reason, as `kind` or `kind: details`."""


def check_one_frame(samples: int, sampling_rate: int) -> None:
    """Reject what is shorter than one encoder frame."""
    if samples < FRAME_SECONDS * sampling_rate:
        raise Rejected(f"too short: {samples / sampling_rate:.3f} s, one encoder frame is {FRAME_SECONDS} s")


def check_samples(samples: np.ndarray, sampling_rate: int) -> None:
    """Reject `samples` (T,) that are empty, shorter than one encoder frame, silent or not finite."""
    if samples.size == 0:
        raise Rejected("empty: no samples")
    if not np.isfinite(samples).all():
        raise Rejected(f"NaN samples: {np.count_nonzero(~np.isfinite(samples))} of {samples.size} are not finite")
    check_one_frame(samples.size, sampling_rate)
    if np.ptp(samples) < SILENCE:
        raise Rejected("silent")
