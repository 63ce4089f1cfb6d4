"""Checks of sampling rates, which decide how much memory is allocated."""

from typing import Any

LOWEST_HZ, HIGHEST_HZ = 4_000, 384_000
"""Range of plausible rates: telephones have 8,000 Hz, studios up to 384,000 Hz."""


def implausible_rate(hz: float) -> str:
    """Describe an implausible sampling rate and the remedy; empty for a plausible one."""
    if LOWEST_HZ <= hz <= HIGHEST_HZ:
        return ""
    return f"implausible sampling rate {hz:.10g} Hz: convert it to one between {LOWEST_HZ} and {HIGHEST_HZ} Hz"


def rate_of_files(recording: Any) -> int:
    """Rate in Hz that a Lhotse recording states for its files; its own rate may be the one it is resampled to."""
    rates = (getattr(transform, "source_sampling_rate", None) for transform in recording.transforms or ())
    return next(filter(None, rates), recording.sampling_rate)
