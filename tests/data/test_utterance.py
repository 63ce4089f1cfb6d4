"""Reading the samples of a cut, against soundfile, Lhotse's own resampling and tones."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
from conftest import speak, write_cut
from lhotse import Recording

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.utterance import audio_digest, read


def noise(seconds: float, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))


def test_stereo_becomes_the_mean_of_its_channels(tmp_path: Path) -> None:
    left, right = noise(0.5, 1), noise(0.5, 2)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT")
    cut = write_cut(tmp_path, "other", noise(0.5), "text", "en")
    recording = cut.recording.from_file(tmp_path / "stereo.wav")
    np.testing.assert_allclose(read(recording.to_cut()), (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_other_sampling_rates_arrive_at_16_khz(tmp_path: Path, rate: int) -> None:
    """A tone of 440 Hz stays one, also in a manifest whose author did not ask for 16 kHz."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    samples = read(write_cut(tmp_path, "tone", tone, "text", "en", rate=rate))
    assert len(samples) == 16_000
    frequencies, power = scipy.signal.periodogram(samples, 16_000)
    assert frequencies[power.argmax()] == pytest.approx(440, abs=2)


def test_a_cut_from_the_middle_of_a_recording_is_read_there(tmp_path: Path) -> None:
    whole = speak("one two three")
    cut = write_cut(tmp_path, "long", whole, "one two three", "en").truncate(offset=0.25, duration=0.5)
    np.testing.assert_allclose(read(cut), whole[4_000:12_000], atol=1e-4)


@pytest.mark.parametrize("rate", [8_012, 15_999])
@pytest.mark.parametrize("how", ["on reading", "in the manifest"])
def test_an_odd_rate_takes_no_memory_to_speak_of(tmp_path: Path, profiled_peak, rate: int, how: str) -> None:
    time = np.arange(rate) / rate
    cut = write_cut(tmp_path, "odd", 0.5 * np.sin(2 * np.pi * 440 * time), "text", "en", rate=rate)
    cut = cut if how == "on reading" else cut.resample(16_000)
    found = []
    assert profiled_peak(lambda: found.append(read(cut)) or torch.ones(1)) < 2**24  # one, for there to be a figure
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(found[0][500:-500], expected[500:-500], atol=1e-3)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 24_000, 32_000, 44_100, 48_000])
def test_usual_rates_are_resampled_as_lhotse_resamples(tmp_path: Path, rate: int) -> None:
    from lhotse.augmentation.resample import Resample

    cut = write_cut(tmp_path, "usual", noise(1.0, rate=rate), "text", "en", rate=rate)
    samples, _ = soundfile.read(tmp_path / "usual.wav", dtype="float32")
    expected = Resample(rate, 16_000)(torch.from_numpy(samples)).numpy()
    np.testing.assert_array_equal(read(cut), expected)


@pytest.mark.parametrize("rate", [3_999, 400_000, 4_000_000])
def test_a_rate_that_no_recording_has_is_named(tmp_path: Path, rate: int) -> None:
    cut = write_cut(tmp_path, "fast", noise(0.5, rate=16_000), "text", "en", rate=rate)
    with pytest.raises(UserError, match=f"fast: implausible sampling rate {rate} Hz: convert"):
        read(cut)


@pytest.mark.parametrize("resampled", [False, True])
def test_a_rate_that_is_not_the_files_is_named(tmp_path: Path, resampled: bool) -> None:
    cut = write_cut(tmp_path, "slow", noise(0.5, rate=8_000), "text", "en", rate=8_000)
    cut.recording.sampling_rate = 24_000  # of as many samples: so it would last a third
    cut.recording.duration = cut.duration = cut.duration / 3
    cut = cut.resample(16_000) if resampled else cut
    with pytest.raises(UserError, match=r"slow: .*slow\.wav has 8000 Hz, but its manifest says 24000 Hz"):
        read(cut)


@pytest.mark.parametrize("suffix", ["flac", "wav"])
def test_a_rate_that_is_not_that_of_a_16_khz_file_is_named(tmp_path: Path, suffix: str) -> None:
    """Nor is it passed over where the samples are as many as the manifest says."""
    path = tmp_path / f"fast.{suffix}"
    soundfile.write(path, noise(0.5, rate=16_000), 16_000)
    recording = Recording.from_file(path, recording_id="fast")
    recording.sampling_rate, recording.duration = 8_000, 2 * recording.duration
    with pytest.raises(UserError, match=rf"fast: .*fast\.{suffix} has 16000 Hz, but its manifest says 8000 Hz"):
        read(recording.to_cut())


def test_channels_that_cancel_are_named(tmp_path: Path) -> None:
    path, half = tmp_path / "anti.wav", noise(0.5)
    soundfile.write(path, np.stack([half, -half], axis=1), 16_000)
    with pytest.raises(UserError, match="anti: the channels cancel each other"):
        read(Recording.from_file(path, recording_id="anti").to_cut().with_id("anti"))


def test_a_digest_of_audio_changes_with_the_audio_and_not_with_its_text(tmp_path: Path) -> None:
    cut = write_cut(tmp_path, "a", noise(0.5), "text", "en")
    before = audio_digest(cut)
    assert audio_digest(write_cut(tmp_path, "b", noise(0.5), "text", "en")) != before
    assert audio_digest(cut.truncate(offset=0.1, preserve_id=True)) != before
    assert audio_digest(cut.truncate(duration=0.4, preserve_id=True)) != before
    assert audio_digest(cut.perturb_speed(1.1, affix_id=False)) != before
    cut.supervisions[0].text = "other"
    assert audio_digest(cut) == before
    changed = os.stat(tmp_path / "a.wav").st_mtime_ns
    soundfile.write(tmp_path / "a.wav", noise(0.5, seed=1), 16_000)
    os.utime(tmp_path / "a.wav", ns=(changed + 1, changed + 1))
    assert audio_digest(cut) != before
    (tmp_path / "a.wav").unlink()
    with pytest.raises(OSError, match=r"a\.wav"):
        audio_digest(cut)


def test_a_digest_of_audio_in_memory_or_in_an_archive_is_of_what_is_there(tmp_path: Path) -> None:
    cut = write_cut(tmp_path, "a", noise(0.5), "text", "en")
    (source,) = cut.recording.sources
    source.type, source.source = "memory", b"one"
    before = audio_digest(cut)
    source.source = b"two"
    assert audio_digest(cut) != before
    archive = tmp_path / "all.tar"
    with tarfile.open(archive, "w") as file:
        file.add(tmp_path / "a.wav", "a.wav")
    source.type, source.source = "file", f"{archive}/a.wav"
    before = audio_digest(cut)
    os.utime(archive, ns=(1, 1))
    assert audio_digest(cut) != before
