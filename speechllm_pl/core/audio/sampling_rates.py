"""Which sampling rates recordings can have. What a header says decides how much memory is asked for."""

from typing import Any

import soundfile

LOWEST_HZ, HIGHEST_HZ = 4_000, 384_000
"""Between which recordings of speech are: telephones have 8,000 Hz, and studios up to 384,000."""


def implausible_rate(hz: float) -> str:
    """What is wrong with a sampling rate, and what to do; empty if nothing is."""
    if LOWEST_HZ <= hz <= HIGHEST_HZ:
        return ""
    return f"implausible sampling rate {hz:.10g} Hz: convert it to one between {LOWEST_HZ} and {HIGHEST_HZ} Hz"


def rate_of_files(recording: Any) -> int:
    """In Hz, what a Lhotse recording says that its files have: its own rate may be what it is resampled to."""
    rates = (getattr(transform, "source_sampling_rate", None) for transform in recording.transforms or ())
    return next(filter(None, rates), recording.sampling_rate)


def false_rate(path: str, said: float) -> str:
    """What is wrong with the rate in Hz that a manifest says of a file, and what to do; empty if nothing is.

    Lhotse takes a file's samples for those of the rate that the manifest says: speech would be fast or slow.
    """
    try:
        found = soundfile.info(path).samplerate
    except (soundfile.LibsndfileError, OSError):
        return ""  # whoever decodes it will say why it cannot be
    return "" if found == said else f"{path} has {found} Hz, but its manifest says {said} Hz: prepare it again"
