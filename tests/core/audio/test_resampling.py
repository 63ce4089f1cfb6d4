"""Between usual rates Lhotse's resampler, between odd ones another that needs no memory to speak of."""

import numpy as np
import pytest
import scipy.signal
import torch
from lhotse.augmentation import get_or_create_resampler

from speechllm_pl.core.audio.resampling import MOST_VALUES, SteadyResampler, filter_values, steady
from speechllm_pl.core.errors import UserError

USUAL = [8_000, 11_025, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000]
ODD = [8_012, 15_999, 16_001, 22_254, 47_999, 192_001]


def tone(hz: int, rate: int, seconds: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate).astype(np.float32))


@pytest.mark.parametrize("rate", USUAL)
def test_usual_rates_keep_the_resampler_of_lhotse(rate: int) -> None:
    assert steady(get_or_create_resampler)(rate, 16_000) is get_or_create_resampler(rate, 16_000)


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100])
def test_the_size_of_the_filter_is_that_of_torchaudio(rate: int) -> None:
    (kernel,) = get_or_create_resampler(rate, 16_000).buffers()
    assert filter_values(rate, 16_000) == pytest.approx(kernel.numel(), rel=0.15)


@pytest.mark.parametrize("rate", ODD)
def test_odd_rates_get_another_that_keeps_tones(rate: int) -> None:
    resample = steady(get_or_create_resampler)(rate, 16_000)
    assert isinstance(resample, SteadyResampler)
    found = resample(tone(440, rate))
    assert found.shape == (16_000,)
    inner = slice(500, -500)  # but for where the filter reaches beyond the ends
    np.testing.assert_allclose(found[inner], tone(440, 16_000)[inner], atol=1e-3)


def test_what_is_too_high_for_the_new_rate_is_left_out() -> None:
    found = SteadyResampler(47_999, 16_000)(tone(440, 47_999) + tone(12_000, 47_999))
    spectrum = np.abs(np.fft.rfft(found.numpy()))
    assert spectrum.argmax() == 440
    assert spectrum[3_000:].max() < 1e-3 * spectrum.max()


def test_between_usual_rates_it_agrees_with_scipy() -> None:
    noise = np.random.default_rng(0).standard_normal(48_000)
    low = scipy.signal.sosfilt(scipy.signal.butter(8, 4_000, fs=48_000, output="sos"), noise).astype(np.float32)
    expected = scipy.signal.resample_poly(low, 1, 3)
    found = SteadyResampler(48_000, 16_000)(torch.from_numpy(low))
    np.testing.assert_allclose(found[300:-300], expected[300:-300], atol=2e-2 * np.abs(expected).max())


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (2, 1_000), (1, 3)])
def test_shapes_are_those_of_torchaudio(shape: tuple[int, ...]) -> None:
    resample = SteadyResampler(8_012, 16_000)
    found = resample(torch.zeros(shape))
    assert found.shape == (*shape[:-1], -(-shape[-1] * 16_000 // 8_012))
    assert found.dtype == torch.float32


@pytest.mark.parametrize("pair", [(3_999, 16_000), (4_000_000_000, 16_000), (16_000, 384_001)])
def test_rates_that_no_recording_has_are_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="implausible sampling rate"):
        steady(get_or_create_resampler)(*pair)


def test_what_simulates_rooms_has_rates_of_its_own() -> None:
    assert steady(get_or_create_resampler)(1_024_000, 128_000) is get_or_create_resampler(1_024_000, 128_000)


def test_no_filter_is_larger_than_the_bound() -> None:
    made = []
    for rate in (*USUAL, *ODD, 4_000, 384_000, 37_800, 12_345):
        steady(lambda old, new: made.append((old, new)))(rate, 16_000)
    assert max(filter_values(*pair) for pair in made) <= MOST_VALUES
