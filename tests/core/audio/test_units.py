"""Seconds and samples of audio."""

from speechllm_pl.core.audio.units import HOP, SAMPLING_RATE, samples_in, seconds_of


def test_seconds_and_samples_are_each_others_inverse() -> None:
    for samples in (0, 1, HOP, 12_345, 37 * SAMPLING_RATE + 1):
        assert samples_in(seconds_of(samples)) == samples
    assert seconds_of(HOP) == 0.01
