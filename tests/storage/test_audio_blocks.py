"""Recordings in blocks are what they are as a whole."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from speechllm_pl.core.errors import UserError
from speechllm_pl.storage import audio_blocks
from speechllm_pl.storage.audio_blocks import blocks

NOISE = 0.1 * np.random.default_rng(0).standard_normal((36_000, 2)).astype(np.float32)


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_blocks, "BLOCK_SECONDS", 1)


def written(path: Path, samples: np.ndarray, rate: int = 16_000) -> Path:
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return path


@pytest.mark.parametrize("channels", [1, 2])
def test_at_16_khz_blocks_are_the_means_of_the_channels(tmp_path: Path, channels: int) -> None:
    samples = NOISE[:, :channels]
    found = list(blocks(written(tmp_path / "a.wav", samples)))
    assert [len(block) for block in found] == [16_000, 16_000, 4_000]
    np.testing.assert_allclose(np.concatenate(found), samples.mean(1), atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_other_rates_are_resampled_as_if_there_were_no_blocks(tmp_path: Path, rate: int) -> None:
    found = np.concatenate(list(blocks(written(tmp_path / "a.wav", NOISE[:, 0], rate))))
    whole = soxr.resample(NOISE[:, 0], rate, 16_000)
    assert found.dtype == np.float32
    assert abs(len(found) - len(whole)) <= 1
    np.testing.assert_allclose(found[: len(whole)], whole[: len(found)], atol=1e-4)


@pytest.mark.parametrize(
    ("samples", "rate", "said"),
    [
        (NOISE * np.where(np.arange(36_000) == 35_000, np.nan, 1)[:, None].astype(np.float32), 16_000, "not finite"),
        (np.stack([NOISE[:, 0], -NOISE[:, 0]], 1), 16_000, "channels cancel each other"),
        (NOISE, 1_000, "implausible sampling rate 1000 Hz"),
    ],
    ids=["NaN", "phases", "rate"],
)
def test_what_cannot_be_recognised_is_named(tmp_path: Path, samples: np.ndarray, rate: int, said: str) -> None:
    path = written(tmp_path / "a.wav", samples, rate)
    with pytest.raises(UserError, match=rf"a\.wav: .*{said}"):
        list(blocks(path))


def test_samples_that_a_header_promises_and_the_file_lacks_are_told_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soundfile.SoundFile, "blocks", lambda *_, **__: iter([NOISE[:16_000], NOISE[16_000:20_000]]))
    read = blocks(written(tmp_path / "a.wav", NOISE))
    assert [len(next(read)), len(next(read))] == [16_000, 4_000]
    with pytest.raises(UserError, match=r"a\.wav: 16000 samples of its end are missing"):
        next(read)
