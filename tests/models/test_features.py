"""Filter banks against NumPy, one utterance at a time."""

import numpy as np
import pytest
import scipy.signal
import torch

from speechllm_pl.core.padded import Padded
from speechllm_pl.models.features import FilterBank, SpecAugment, SpecAugmentConfig

LENGTHS = [16_000, 5_120, 511, 512, 700, 12_345, 1, 671]


def mel_filters(num_bins: int) -> np.ndarray:
    """`(257, num_bins)` triangles, equally wide on the mel scale 2595 log10(1 + f / 700), from 20 Hz to 8 kHz."""

    def to_mel(hertz):
        return 2595 * np.log10(1 + np.asarray(hertz) / 700)

    corners = 700 * (10 ** (np.linspace(to_mel(20), to_mel(8000), num_bins + 2) / 2595) - 1)
    frequencies = np.arange(257) * 16_000 / 512
    return np.stack(
        [np.interp(frequencies, corners[b : b + 3], [0, 1, 0], left=0, right=0) for b in range(num_bins)],
        axis=1,
    )


def reference(samples: np.ndarray, num_bins: int) -> np.ndarray:
    """`(T, num_bins)`: 25 ms Hann windows in the middle of 512 samples, every 160 samples."""
    samples = np.pad(samples, (0, max(0, 512 - len(samples))))
    window = np.pad(scipy.signal.get_window("hann", 400), 56)
    starts = range(0, len(samples) - 511, 160)
    power = np.stack([np.abs(np.fft.rfft(samples[s : s + 512] * window)) ** 2 for s in starts])
    energies = np.log(power @ mel_filters(num_bins) + 1e-6)
    return (energies - energies.mean()) / (energies.std() + 1e-3)


def recordings(lengths: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [0.1 * rng.standard_normal(n) + 0.2 * np.sin(np.arange(n) * rng.uniform(0.1, 1)) for n in lengths]


def batch_of(rows: list[np.ndarray]) -> Padded:
    waveforms = torch.zeros(len(rows), max(map(len, rows)))
    for row, samples in zip(waveforms, rows, strict=True):
        row[: len(samples)] = torch.from_numpy(samples)
    return Padded(waveforms, torch.tensor([len(samples) for samples in rows]))


def test_features_are_those_of_numpy_for_every_utterance_of_a_batch() -> None:
    rows = recordings(LENGTHS)
    features, frames = FilterBank(40)(batch_of(rows))
    for row, samples in enumerate(rows):
        expected = reference(samples, 40)
        assert frames[row] == len(expected)
        np.testing.assert_allclose(features[row, : len(expected)], expected, atol=2e-3)


def test_padding_is_zero_and_changes_nothing() -> None:
    rows = recordings(LENGTHS)
    bank = FilterBank(80)
    features, frames = bank(batch_of(rows))
    for row, samples in enumerate(rows):
        alone, _ = bank(batch_of([samples]))
        count = int(frames[row])
        torch.testing.assert_close(features[row, :count], alone[0], atol=1e-5, rtol=0)
        assert not features[row, count:].any()


@pytest.mark.parametrize("length", [1, 100, 511, 512, 671])
def test_a_recording_of_at_most_one_window_has_one_frame(length: int) -> None:
    features, frames = FilterBank(80)(Padded(torch.randn(1, length), torch.tensor([length])))
    assert frames.tolist() == [1]
    assert features.shape == (1, 1, 80)
    assert features.isfinite().all()


def test_digital_silence_gives_next_to_nothing() -> None:
    features, _ = FilterBank(80)(Padded(torch.zeros(1, 8_000), torch.tensor([8_000])))
    assert features.abs().max() < 0.01  # not a division of rounding errors by their own spread


def test_half_precision_autocast_leaves_the_features_exact() -> None:
    waveforms = batch_of(recordings([8_000]))
    exact, _ = FilterBank(80)(waveforms)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast, _ = FilterBank(80)(waveforms)
    assert torch.equal(exact, under_autocast)


def test_spec_augment_masks_in_training_only() -> None:
    torch.manual_seed(0)
    augment, features = SpecAugment(SpecAugmentConfig()), torch.randn(4, 300, 80)
    masked = augment.train()(features)
    changed = masked != features
    assert changed.any()
    assert not masked[changed].any()
    assert torch.equal(augment.eval()(features), features)


def test_spec_augment_draws_other_masks_for_every_utterance() -> None:
    torch.manual_seed(0)
    masked = SpecAugment(SpecAugmentConfig()).train()(torch.ones(2, 300, 80))
    assert not torch.equal(masked[0], masked[1])


def test_spec_augment_leaves_at_least_most_of_the_time_axis() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        masked = SpecAugment(SpecAugmentConfig(freq_masks=0)).train()(torch.ones(3, 50, 80))
        assert (masked[:, :, 0] == 0).sum(1).max() <= 2 * 0.2 * 50
