"""Tell sounds that cannot be speech, of which a CTC head may still make words: steady noise, hum, and pure tones."""

import numpy as np

from speechllm_pl.core.audio.units import samples_in

FRAME, HOP = 1024, 512
"""Samples at 16 kHz: 64 ms every 32 ms."""

LEAST_SECONDS = 1.0
"""Shortest sound that is judged: a single word may be steady."""

PRE_EMPHASIS = 0.97
"""Share of the sample before that is taken away, so that low frequencies do not outweigh the rest."""

TONE_BINS = 2
"""Bins on either side of a spectrum's peak that belong to a tone."""

QUIET_PERCENTILE = 10
"""Percentile of the frames' levels from which a sound's range is measured, up to its loudest moment."""

MOMENT = 4
"""Frames of the shortest word, 0.16 s: so long a sound must be loud, or no tone, to be taken for speech."""

LOUD_DB = 50
"""Level below the loudest moment down to which frames are judged: the quieter ones are the background."""


def no_speech(samples: np.ndarray, steady_db: float, tone_share: float) -> str:
    """Say why `(N,)` samples at 16 kHz cannot be speech; empty if they can, or are too few to tell.

    Args:
        steady_db: range of the level, from the background to the loudest 0.16 s, below which a sound is steady. Speech
            has 20 dB and more, and in noise as loud as itself still 9 dB.
        tone_share: share of a frame's power near the peak of its spectrum from which it is a tone. A word has 0.16 s of
            others, however loud a tone is beside it.
    """
    if len(samples) < samples_in(LEAST_SECONDS):
        return ""
    emphasised = samples[1:] - PRE_EMPHASIS * samples[:-1]
    frames = np.lib.stride_tricks.sliding_window_view(emphasised, FRAME)[::HOP]  # (T, FRAME)
    power = np.abs(np.fft.rfft(frames * np.hanning(FRAME))) ** 2  # (T, bins)
    total = power.sum(1)
    levels = 10 * np.log10(total + 1e-12)
    loudest = np.sort(levels)[-MOMENT]
    if loudest - np.percentile(levels, QUIET_PERCENTILE) < steady_db:
        return "the sound is steady"
    places = power.argmax(1)[:, None] + np.arange(-TONE_BINS, TONE_BINS + 1)  # (T, 2 * TONE_BINS + 1)
    near = np.take_along_axis(power, places.clip(0, power.shape[1] - 1), axis=1).sum(1)
    other = (levels > loudest - LOUD_DB) & (near < tone_share * total)
    moments = np.convolve(other, np.ones(MOMENT), mode="valid")
    return "" if moments.max() == MOMENT else "the sound is a tone"
