import logging
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
from conftest import speak, write_cut
from lhotse import Recording, SupervisionSegment
from lhotse.cut import Cut

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.epoch_plan import PlannedBatch
from speechllm_pl.data.utterance import read


def noise(seconds: float, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))


def batch_of(cuts: list[Cut], seed: int = 0) -> Batch:
    return SpeechDataset(cuts)[PlannedBatch(np.arange(len(cuts)), seed)]


def test_a_batch_holds_the_samples_of_its_files_padded_on_the_right(tmp_path: Path) -> None:
    cuts = [
        write_cut(tmp_path, f"u{n}", noise(seconds, n), f"text {n}", "de") for n, seconds in enumerate((0.5, 0.3, 0.8))
    ]
    batch = batch_of(cuts)
    assert batch.lengths.tolist() == [8_000, 4_800, 12_800]
    for row, cut in enumerate(cuts):
        samples, _ = soundfile.read(tmp_path / f"{cut.id}.wav", dtype="float32")
        np.testing.assert_allclose(batch.waveforms[row, : len(samples)].numpy(), samples, atol=1e-6)
        assert not batch.waveforms[row, len(samples) :].any()
    assert batch.ids == ["u0", "u1", "u2"]
    assert batch.texts == ["text 0", "text 1", "text 2"]
    assert batch.languages == ["de"] * 3
    assert batch.seconds == pytest.approx(1.6)


def test_a_batch_has_the_cuts_and_the_seed_that_were_planned(tmp_path: Path) -> None:
    cuts = [write_cut(tmp_path, f"u{n}", noise(0.2, n), f"text {n}", "de") for n in range(4)]
    batch = SpeechDataset(cuts)[PlannedBatch(np.array([3, 1]), 2**63 - 1)]
    assert batch.ids == ["u3", "u1"]
    assert batch.seed == 2**63 - 1


@pytest.mark.parametrize(("suffix", "subtype"), [("wav", None), ("aiff", None), ("ogg", "VORBIS"), ("opus", "OPUS")])
def test_a_recording_that_was_cut_off_before_it_was_listed_is_skipped_and_named(
    tmp_path: Path, suffix: str, subtype: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"cut.{suffix}"
    soundfile.write(path, noise(3.0), 16_000, format="OGG" if subtype else None, subtype=subtype)
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    cut = Recording.from_file(path, recording_id="cut").to_cut().with_id("cut")
    cut.supervisions = [SupervisionSegment("cut", "cut", 0, cut.duration, text="text", language="en")]
    whole = write_cut(tmp_path, "whole", noise(0.5), "text", "en")
    for cuts in ([whole, cut], [whole, cut.pad(duration=4.0)]):
        with caplog.at_level(logging.WARNING):
            batch = batch_of(cuts)
        assert (batch.ids, len(batch.skipped)) == (["whole"], 1)
        assert f"cut: {path} is truncated" in caplog.text.replace(cuts[1].id, "cut")


@pytest.mark.parametrize("damage", ["missing", "truncated", "text", "empty"])
def test_an_unreadable_recording_is_skipped_and_named(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cuts = [write_cut(tmp_path, f"u{n}", noise(0.5, n), f"text {n}", "en") for n in range(3)]
    path = tmp_path / "u1.wav"
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"truncated": whole[:2000], "text": b"not audio at all\n", "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        batch = batch_of(cuts)
    assert batch.ids == ["u0", "u2"]
    assert batch.texts == ["text 0", "text 2"]
    assert batch.skipped == ["u1"]
    assert "u1" in caplog.text


def test_samples_that_are_not_finite_are_skipped(tmp_path: Path) -> None:
    cut = write_cut(tmp_path, "nan", noise(0.5), "text", "en")
    samples = noise(0.5).astype(np.float32)
    samples[7] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(UserError, match=r"nan.*not finite"):
        read(cut)
    assert batch_of([cut]).skipped == ["nan"]


def test_a_batch_of_which_nothing_can_be_read_is_empty(tmp_path: Path) -> None:
    cuts = [write_cut(tmp_path, f"u{n}", noise(0.5), "text", "en") for n in range(2)]
    for n in range(2):
        (tmp_path / f"u{n}.wav").unlink()
    batch = batch_of(cuts)
    assert batch.waveforms.shape == (0, 0)
    assert batch.lengths.shape == (0,)
    assert batch.ids == []
    assert batch.skipped == ["u0", "u1"]


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
