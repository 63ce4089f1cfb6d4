"""Speed and gain against the signal's own pitch, length and level."""

from collections import Counter

import numpy as np
import pytest
import scipy.signal
import scipy.stats
from made_utterances import RATE, changed, utterance

from speechllm_pl.data.augmentation import (
    PerturbGain,
    PerturbSpeed,
)


@pytest.mark.parametrize("factor", [0.9, 1.1, 0.75])
def test_speed_divides_the_length_and_multiplies_the_pitch(factor: float) -> None:
    given = utterance("u", 2.0, kind="tone")
    result = changed(PerturbSpeed(factors=(factor,)), given)
    assert len(result.samples) == pytest.approx(len(given.samples) / factor, abs=1)
    frequencies, power = scipy.signal.periodogram(result.samples, RATE)
    assert frequencies[power.argmax()] == pytest.approx(1000 * factor, abs=1)
    assert result.drawn == (f"speed {factor:g}",)


def test_factors_are_drawn_with_their_weights() -> None:
    augmentation = PerturbSpeed(factors=(0.9, 1.0, 1.1), weights=(1, 2, 1))
    drawn = Counter(changed(augmentation, utterance("u", 0.02), epoch).drawn[0] for epoch in range(400))
    assert scipy.stats.chisquare([drawn[f"speed {f}"] for f in (0.9, 1, 1.1)], [100, 200, 100]).pvalue > 0.01


def test_gain_is_exact_in_decibels_and_does_not_clip() -> None:
    given = utterance("u", kind="tone")
    result = changed(PerturbGain(gain_db=(20, 20)), given)
    np.testing.assert_allclose(result.samples, 10 * given.samples, rtol=1e-6)
    assert result.samples.max() > 2
