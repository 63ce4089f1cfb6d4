"""Tell sounds that cannot be speech, of which a CTC head may still make words: steady noise, hum, and pure tones."""

from math import inf

import numpy as np

from speechllm_pl.core.audio.units import samples_in

FRAME, HOP = 1024, 512
"""Samples at 16 kHz: 64 ms every 32 ms."""

LEAST_SECONDS = 1.0
"""Shortest sound of which the background is known: a single word may be steady."""

PRE_EMPHASIS = 0.97
"""Share of the sample before that is taken away, so that low frequencies do not outweigh the rest."""

TONE_BINS = 2
"""Bins on either side of a spectrum's peak that belong to a tone."""

QUIET_PERCENTILE = 10
"""Percentile of the frames' levels that is the background's."""

MOMENT = 4
"""Frames of the shortest word, 0.16 s: so long a sound must be loud, or no tone, to be taken for speech."""

LOUD_DB = 50
"""Level below the loudest moment down to which frames are judged: the quieter ones are the background."""


def background_db(samples: np.ndarray) -> float:
    """Level of the quiet in `(N,)` samples at 16 kHz, in dB; minus infinity if they are too few to tell."""
    if len(samples) < samples_in(LEAST_SECONDS):
        return -inf
    return float(np.percentile(_levels(samples), QUIET_PERCENTILE))


def no_speech(samples: np.ndarray, background: float, steady_db: float, tone_share: float) -> str:
    """Say why `(N,)` samples at 16 kHz cannot be speech; empty if they can, or are too few to tell.

    Args:
        samples: sound that is judged.
        background: `background_db` of the recording around it.
        steady_db: level of the loudest 0.16 s over the background below which a sound is steady. Speech has 20 dB and
            more; in rumbling noise as loud as itself it mostly has 10 dB, in white noise less than 5.
        tone_share: share of a frame's power near the peak of its spectrum from which it is a tone. A word has 0.16 s of
            others, however loud a tone is beside it.
    """
    if len(samples) < MOMENT * HOP + FRAME:
        return ""
    levels = _levels(samples)
    loudest = np.sort(levels)[-MOMENT]
    if loudest - background < steady_db:
        return "the sound is steady"
    if len(samples) < samples_in(LEAST_SECONDS):
        return ""
    power = np.abs(np.fft.rfft(_frames(_emphasised(samples)) * np.hanning(FRAME))) ** 2  # (T, bins)
    places = power.argmax(1)[:, None] + np.arange(-TONE_BINS, TONE_BINS + 1)  # (T, 2 * TONE_BINS + 1)
    near = np.take_along_axis(power, places.clip(0, power.shape[1] - 1), axis=1).sum(1)
    other = (levels > loudest - LOUD_DB) & (near < tone_share * power.sum(1))
    moments = np.convolve(other, np.ones(MOMENT), mode="valid")
    return "" if moments.max() == MOMENT else "the sound is a tone"


def _levels(samples: np.ndarray) -> np.ndarray:
    """Level in dB of each frame of `(N,)` samples, `(T,)`, by Parseval's theorem that of its spectrum."""
    window = np.square(np.hanning(FRAME)).astype(samples.dtype)
    return 10 * np.log10(FRAME / 2 * (_frames(np.square(_emphasised(samples))) @ window) + 1e-12)


def _emphasised(samples: np.ndarray) -> np.ndarray:
    return samples[1:] - PRE_EMPHASIS * samples[:-1]


def _frames(samples: np.ndarray) -> np.ndarray:
    """Overlapping frames of `(N,)` samples, `(T, FRAME)`, without a copy."""
    return np.lib.stride_tricks.sliding_window_view(samples, FRAME)[::HOP]
