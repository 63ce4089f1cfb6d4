import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import write_cut
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.cut import Cut

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.augmentation import Concatenate
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


def text_alone(name: str, seconds: float) -> MonoCut:
    said = SupervisionSegment(name, name, 0, seconds, text=f"text of {name}", language="en")
    return MonoCut(name, 0, seconds, 0, supervisions=[said], custom={"text_alone": True})


def test_texts_without_audio_come_last_and_have_lengths_alone(train_cuts: list) -> None:
    cuts = [text_alone("a", 0.7), train_cuts[3], text_alone("b", 9.0), train_cuts[1]]
    batch = SpeechDataset(cuts, texts_alone=True)[PlannedBatch(np.arange(4), 0)]
    assert batch.ids == ["train-3", "train-1", "a", "b"]
    assert batch.texts[2:] == ["text of a", "text of b"]
    assert batch.simulated == 2
    assert batch.lengths.tolist()[2:] == [11_200, 144_000]
    assert batch.waveforms.shape[1] == max(batch.lengths.tolist()[:2])
    assert not batch.waveforms[2:].any()


def test_texts_without_audio_are_bad_recordings_where_none_is_expected(train_cuts: list) -> None:
    batch = SpeechDataset([train_cuts[0], text_alone("a", 0.7)])[PlannedBatch(np.arange(2), 0)]
    assert batch.ids == ["train-0"]
    assert batch.skipped == ["a"]
    assert "a text without audio" in batch.unread
    assert batch.simulated == 0


def test_augmentation_leaves_texts_without_audio_alone(train_cuts: list) -> None:
    joined = Concatenate(max_seconds=30.0, room=3.0)
    cuts = [text_alone("a", 0.7), *train_cuts[:4]]
    batch = SpeechDataset(cuts, [joined], texts_alone=True)[PlannedBatch(np.arange(5), 0)]
    assert batch.ids[-1] == "a"
    assert batch.simulated == 1
    assert len(batch.ids) < 5
