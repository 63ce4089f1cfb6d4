"""Sampling rates that a manifest states."""

import pytest
from lhotse import Recording

from speechllm_pl.core.audio.sampling_rates import implausible_rate, rate_of_files

RECORDING = Recording("r", [], sampling_rate=22_050, num_samples=22_050, duration=1.0)


@pytest.mark.parametrize("hz", [4_000, 8_000, 11_025, 16_000, 48_000, 384_000])
def test_rates_of_telephones_to_studios_are_plausible(hz: int) -> None:
    assert implausible_rate(hz) == ""


@pytest.mark.parametrize("hz", [0, -16_000, 3_999, 384_001, 1e12, float("nan"), float("inf")])
def test_other_rates_are_named_with_what_to_do(hz: float) -> None:
    assert implausible_rate(hz).startswith(f"implausible sampling rate {hz:.10g} Hz: convert it")


def test_the_rate_of_the_files_is_the_one_before_resampling() -> None:
    assert rate_of_files(RECORDING) == 22_050
    assert rate_of_files(RECORDING.resample(16_000)) == 22_050
    assert rate_of_files(RECORDING.perturb_volume(2.0).resample(16_000)) == 22_050
    assert rate_of_files(RECORDING.perturb_volume(2.0)) == 22_050
