"""Steady sounds and tones are no speech, at any level and pitch; what has the rhythm of speech may be."""

import numpy as np
import pytest
from conftest import RATE
from scipy import signal

from speechllm_pl.recognition.guard import GuardLimits
from speechllm_pl.recognition.speech_check import background_db, no_speech

LIMITS = (GuardLimits.steady_db, GuardLimits.tone_share)

SECONDS = 6
TIME = np.arange(SECONDS * RATE) / RATE
RANDOM = np.random.default_rng(0)


def coloured(slope: float) -> np.ndarray:
    """Noise whose power falls by frequency to the power of `slope`."""
    spectrum = np.fft.rfft(RANDOM.standard_normal(len(TIME)))
    return np.fft.irfft(spectrum / np.maximum(np.arange(len(spectrum)), 1) ** (slope / 2))


def vowels(pitch_hz: float) -> np.ndarray:
    """Harmonics in three formants, four syllables a second."""
    pulses = (np.diff(np.floor(TIME * pitch_hz), prepend=0) > 0).astype(float)
    for formant in (500, 1500, 2500):
        pulses = signal.lfilter(*signal.iirpeak(formant, 5, RATE), pulses) + 0.1 * pulses
    return pulses * np.maximum(np.sin(2 * np.pi * 4 * TIME), 0) ** 2


NO_SPEECH = {
    "silence": 0 * TIME,
    "white noise": RANDOM.standard_normal(len(TIME)),
    "pink noise": coloured(1),
    "hum": sum(np.sin(2 * np.pi * 50 * k * TIME) / k for k in range(1, 20)),
    "a tone": np.sin(2 * np.pi * 440 * TIME),
    "tones": np.sin(2 * np.pi * RANDOM.uniform(100, 4000, SECONDS).repeat(RATE) * TIME),
    "beeps": np.sin(2 * np.pi * 800 * TIME) * (TIME % 1 < 0.5),
    "a chord": np.sin(2 * np.pi * np.array([[440], [554], [659]]) * TIME).sum(0),
    "a sweep": np.sin(2 * np.pi * (100 + 300 * TIME) * TIME),
}


def judged(samples: np.ndarray, around: np.ndarray | None = None) -> str:
    return no_speech(samples, background_db(samples if around is None else around), *LIMITS)


def loud(samples: np.ndarray, level: float) -> np.ndarray:
    return (level * samples / max(np.abs(samples).max(), 1e-9)).astype(np.float32)


@pytest.mark.parametrize("level", [0.001, 0.5])
@pytest.mark.parametrize("kind", NO_SPEECH)
def test_steady_sounds_and_tones_are_no_speech(kind: str, level: float) -> None:
    why = judged(loud(NO_SPEECH[kind], level))
    assert why == ("the sound is a tone" if kind in ("beeps", "tones", "a sweep") else "the sound is steady")


@pytest.mark.parametrize("pitch_hz", [90, 160, 300])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_syllables_may_be_speech_in_noise_as_well(pitch_hz: float, noise: float) -> None:
    spoken = vowels(pitch_hz)
    samples = spoken + noise * spoken.std() * RANDOM.standard_normal(len(TIME))
    assert judged(loud(samples, 0.3)) == ""


@pytest.mark.parametrize("background", [0.0, 1e-3])
@pytest.mark.parametrize("seconds", [0.25, 0.5])
def test_a_short_word_in_a_long_silence_may_be_speech(seconds: float, background: float) -> None:
    samples = background * RANDOM.standard_normal(25 * RATE)
    word = loud(vowels(160)[: round(seconds * RATE)], 0.1)
    samples[10 * RATE : 10 * RATE + len(word)] += word
    assert judged(samples.astype(np.float32)) == ""


@pytest.mark.parametrize("level", [0.05, 0.5])
def test_a_tone_beside_a_word_does_not_hide_it(level: float) -> None:
    beep = 0.5 * np.sin(2 * np.pi * 1000 * TIME[:RATE])
    word = loud(vowels(160)[: RATE // 2], level)
    samples = np.concatenate([beep, np.zeros(RATE // 4), word]).astype(np.float32)
    assert judged(samples[: RATE + RATE // 4]) == "the sound is a tone"
    assert judged(samples) == ""


def test_a_moment_of_a_steady_sound_is_no_speech_though_other_moments_are_loud() -> None:
    noise = coloured(1).astype(np.float32)
    noise[4 * RATE : 4 * RATE + 3000] *= 10
    assert judged(noise) == judged(noise[4 * RATE : 4 * RATE + 8000], noise) == ""
    for start in (0, 30_000, 80_000):
        assert judged(noise[start : start + 8000], noise) == "the sound is steady"


@pytest.mark.parametrize("level", [1.0, 3.0])
def test_a_word_as_loud_as_the_noise_around_it_may_be_speech(level: float) -> None:
    noise, word = coloured(1), vowels(160)[: RATE // 2]
    noise[2 * RATE : 2 * RATE + len(word)] += level * noise.std() * word / word.std()
    assert judged(noise[2 * RATE : 2 * RATE + len(word)], noise) == ""


def test_of_too_few_samples_nothing_is_said() -> None:
    assert judged(np.zeros(15_999, np.float32)) == judged(np.zeros(0, np.float32)) == ""
    assert judged(np.zeros(2000, np.float32), np.zeros(RATE, np.float32)) == ""
