"""Which sampling rates recordings can have. What a header says decides how much memory is asked for."""

LOWEST_HZ, HIGHEST_HZ = 4_000, 384_000
"""Between which recordings of speech are: telephones have 8,000 Hz, and studios up to 384,000."""


def implausible_rate(hz: float) -> str:
    """What is wrong with a sampling rate, and what to do; empty if nothing is."""
    if LOWEST_HZ <= hz <= HIGHEST_HZ:
        return ""
    return f"implausible sampling rate {hz:.10g} Hz: convert it to one between {LOWEST_HZ} and {HIGHEST_HZ} Hz"
