"""Units of audio: waveforms of 16,000 samples a second, and 100 frames of features a second."""

SAMPLING_RATE = 16_000  # Hz
HOP = 160  # samples: 10 ms
WINDOW = 400  # samples: 25 ms
FFT = 512  # samples: the window, padded to a power of two
FRAME_SECONDS = 8 * HOP / SAMPLING_RATE  # from one frame of the conformer to the next: 80 ms


def samples_in(seconds: float) -> int:
    """The nearest whole number of samples."""
    return round(seconds * SAMPLING_RATE)


def seconds_of(samples: float) -> float:
    return samples / SAMPLING_RATE
