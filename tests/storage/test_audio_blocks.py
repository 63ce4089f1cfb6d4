"""Recordings in blocks are what they are as a whole."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from speechllm_pl.core.errors import UserError
from speechllm_pl.storage import audio_blocks
from speechllm_pl.storage.audio_blocks import blocks, raw_pcm

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


def test_an_mp3_that_was_cut_off_is_given_once_and_then_told(tmp_path: Path) -> None:
    """Its header promises all, and libsndfile believes it."""
    soundfile.write(tmp_path / "whole.mp3", np.tile(NOISE[:, 0], 10), 16_000)
    whole, path = np.concatenate(list(blocks(tmp_path / "whole.mp3"))), tmp_path / "a.mp3"
    path.write_bytes((tmp_path / "whole.mp3").read_bytes()[: (tmp_path / "whole.mp3").stat().st_size // 2])
    found = []
    with pytest.raises(UserError, match=r"a\.mp3: \d+ samples of its end are missing"):
        found.extend(blocks(path))  # extends by each block as it comes
    samples = np.concatenate(found)
    assert 0.4 * len(whole) < len(samples) < 0.6 * len(whole)
    np.testing.assert_allclose(samples[:-2000], whole[: len(samples) - 2000], atol=1e-4)


def coming(content: bytes, seed: int) -> Callable[[int], bytes]:
    """Reads as a pipe does: now few bytes, now many."""
    random, file = np.random.default_rng(seed), io.BytesIO(content)
    return lambda count: file.read(min(count, int(random.integers(1, 5000))))


@pytest.mark.parametrize("seed", range(3))
def test_raw_pcm_is_what_was_written_however_it_comes(tmp_path: Path, seed: int) -> None:
    soundfile.write(tmp_path / "a.wav", NOISE[:, 0], 16_000, subtype="PCM_16")
    expected, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    content = (tmp_path / "a.wav").read_bytes()[44:]
    assert np.array_equal(np.concatenate(list(raw_pcm(coming(content, seed), 16_000))), expected)


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_raw_pcm_of_other_rates_is_resampled(rate: int) -> None:
    values = (NOISE[:, 0] * 2**15).astype("<i2")
    found = [np.concatenate(list(raw_pcm(coming(values.tobytes(), seed), rate))) for seed in range(3)]
    whole = soxr.resample(values.astype(np.float32) / 2**15, rate, 16_000)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    assert abs(len(found[0]) - len(whole)) <= 1
    np.testing.assert_allclose(found[0][: len(whole)], whole[: len(found[0])], atol=1e-4)


def test_a_sample_that_is_cut_off_is_left_out_with_a_warning(capsys: pytest.CaptureFixture) -> None:
    assert np.concatenate(list(raw_pcm(coming(b"\0\x40\0\xc0\1", 0), 16_000))).tolist() == [0.5, -0.5]
    assert "standard input ends inside a sample" in capsys.readouterr().err
    assert list(raw_pcm(coming(b"", 0), 16_000)) == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "rate", "said"),
    [(b"RIFF....WAVE", 16_000, "not raw PCM"), (b"\0\0", 1_000, "--sample_rate: implausible sampling rate 1000 Hz")],
)
def test_what_is_no_raw_pcm_is_refused(content: bytes, rate: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        list(raw_pcm(io.BytesIO(content).read, rate))
