"""Faults of recordings: each is found where it was made, and nowhere else."""

import base64
import io
import math

import numpy as np
import pytest
import soundfile

from speechllm_pl.analysis.data.audio_measures import faults, measure, player_source

RATE = 16_000


@pytest.fixture
def clean() -> np.ndarray:
    """3 s of noise that comes and goes, as syllables do; peak 0.3."""
    random = np.random.default_rng(0)
    swell = np.maximum(0.003, np.sin(2 * np.pi * 2 * np.arange(3 * RATE) / RATE))
    samples = random.normal(size=3 * RATE) * swell
    return (0.3 * samples / np.abs(samples).max()).astype(np.float32)


def kinds(samples: np.ndarray) -> set[str]:
    return set(faults(measure(samples.astype(np.float32))))


def test_a_clean_recording_has_no_fault_however_loud(clean):
    assert kinds(clean) == set()
    assert kinds(clean / 0.3) == set()
    assert kinds(clean / 20) == set()


@pytest.mark.parametrize("hertz", [50, 100, 250, 1000])
def test_a_tone_is_not_clipped(hertz):
    tone = 0.5 * np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE)
    assert measure(np.round(tone * 2**15).astype(np.float32) / 2**15).clipped == 0


def test_each_fault_is_found(clean):
    random = np.random.default_rng(1)
    still = clean.copy()
    still[RATE:] = still[RATE]
    assert kinds(np.clip(20 * clean, -1, 1)) == {"clipped"}
    assert kinds(np.clip(4 * clean, -0.3, 0.3)) == {"clipped"}  # and then made quieter
    assert kinds(np.zeros(RATE)) == {"silent"}
    assert kinds(np.full(RATE, 0.2)) == {"constant"}
    assert kinds(random.normal(size=RATE) * 1e-4) == {"silent"}
    assert kinds(clean * 10 ** (-62 / 20) / clean.std()) == {"quiet"}  # and there is something to hear
    assert kinds(still) == {"constant"}
    assert kinds(clean - 0.02) == {"offset"}
    assert kinds(clean + random.normal(size=len(clean)) * clean.std()) == {"noisy"}


def test_figures_are_those_of_the_definition(clean):
    wave = np.clip(clean, -0.1, 0.1) + np.float32(0.004)
    found = measure(wave)
    assert found.peak == pytest.approx(np.abs(wave).max())
    assert found.offset == pytest.approx(wave.astype(np.float64).mean())
    assert found.level == pytest.approx(20 * math.log10(wave.astype(np.float64).std()))
    flat = 0
    for place in range(len(wave)):  # a sample at the positive peak with two such neighbours in a row
        top = [
            abs(wave[i]) >= 0.9999 * found.peak if 0 <= i < len(wave) else False for i in range(place - 2, place + 3)
        ]
        flat += any(all(top[start : start + 3]) for start in range(3))
    assert found.clipped == flat / len(wave)


def test_the_range_of_levels_is_not_told_of_short_recordings(clean):
    assert math.isnan(measure(clean[: RATE // 2]).range)
    frames = clean[: len(clean) // 320 * 320].reshape(-1, 320).astype(np.float64)
    levels = sorted(10 * math.log10(((frame - clean.mean(dtype=np.float64)) ** 2).mean()) for frame in frames)
    assert levels[7] - 1 < levels[-8] - measure(clean).range < levels[8] + 1  # 5 % of 150 frames


def test_a_player_holds_the_beginning(clean):
    source = player_source(clean, seconds=1.5)
    kind, _, encoded = source.partition(",")
    assert kind == "data:audio/mpeg;base64"
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(encoded)))
    assert rate == RATE
    assert len(samples) / rate == pytest.approx(1.5, abs=0.15)  # MP3 is made of frames
    delay = np.correlate(samples[:RATE], clean[: RATE // 2], "valid").argmax()
    heard = samples[delay : delay + RATE]
    assert np.corrcoef(heard, clean[:RATE])[0, 1] > 0.7
