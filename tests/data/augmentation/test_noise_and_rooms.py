"""Noise and rooms against independent computations, and recordings of them that cannot be used."""

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import soundfile
import torch
from conftest import speak
from lhotse import CutSet, Recording, RecordingSet
from made_utterances import RATE, changed, utterance

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.augmentation import (
    AddNoise,
    Reverberate,
    noise_and_rooms,
)
from speechllm_pl.data.augmentation.noise_and_rooms import recordings_of
from speechllm_pl.data.datamodule import SpeechDataModule


def test_noise_is_added_at_the_ratio_that_was_drawn(noises: Path) -> None:
    names = set()
    for epoch in range(12):
        given = utterance("u", 2.0)
        result = changed(AddNoise(folder=str(noises), snr_db=(-5, 25)), given, epoch)
        _, name, _, ratio, _ = result.drawn[0].split()
        noise = result.samples.astype(float) - given.samples
        measured = 10 * np.log10(np.mean(given.samples.astype(float) ** 2) / np.mean(noise**2))
        assert measured == pytest.approx(float(ratio), abs=0.1)
        assert -5 <= measured <= 25
        names.add(name)
    assert names == {"short", "long", "stereo"}


def test_noise_that_is_too_short_begins_anew_and_long_noise_is_entered_anywhere(noises: Path) -> None:
    short, _ = soundfile.read(noises / "short.wav")
    long, _ = soundfile.read(noises / "long.flac")
    offsets = set()
    for epoch in range(20):
        result = changed(AddNoise(folder=str(noises)), utterance("u"), epoch)
        noise = result.samples.astype(float) - utterance("u").samples
        if "short" in result.drawn[0]:
            expected = np.resize(short, RATE)
            assert np.corrcoef(noise, expected)[0, 1] > 0.999
        elif "long" in result.drawn[0]:
            offsets.add(int(scipy.signal.correlate(long, noise, "valid", method="fft").argmax()))
    assert len(offsets) > 2


def test_loader_processes_are_sent_what_has_been_opened(noises: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than each looking through thousands of files again."""
    noise = AddNoise(folder=str(noises))
    noise.check()
    sent = pickle.dumps(noise)
    monkeypatch.delattr(noise_and_rooms, "recordings_of")
    ours, expected = changed(pickle.loads(sent), utterance("u")), changed(noise, utterance("u"))
    np.testing.assert_array_equal(ours.samples, expected.samples)


def test_a_manifest_of_noise_does_what_its_folder_does(noises: Path, tmp_path: Path) -> None:
    paths = sorted(path for path in noises.rglob("*") if path.suffix in (".wav", ".flac"))
    recordings = [Recording.from_file(path, recording_id=path.stem) for path in paths]
    RecordingSet.from_recordings(recordings).to_file(tmp_path / "recordings.jsonl.gz")
    CutSet.from_cuts(recording.to_cut() for recording in recordings).to_file(tmp_path / "cuts.jsonl.gz")
    expected = changed(AddNoise(folder=str(noises)), utterance("u"))
    for name in ("recordings", "cuts"):
        found = changed(AddNoise(manifest=str(tmp_path / f"{name}.jsonl.gz")), utterance("u"))
        np.testing.assert_array_equal(found.samples, expected.samples)


def test_silence_gets_no_noise(noises: Path) -> None:
    silence = utterance("u")._replace(samples=np.zeros(RATE, np.float32))
    assert not changed(AddNoise(folder=str(noises)), silence).samples.any()


@pytest.mark.parametrize("sign", [1, -1])
def test_reverberation_is_a_convolution_that_keeps_power_and_direct_sound(tmp_path: Path, sign: int) -> None:
    """Also where the direct sound is a trough, and later reflections are the highest peaks."""
    rng = np.random.default_rng(3)
    response = 0.2 * rng.uniform(-1, 1, 3_000) * np.exp(-np.arange(3_000) / 600)
    response[:40] = 0
    response[40] = 0.9 * sign
    soundfile.write(tmp_path / "hall.wav", response, RATE, subtype="FLOAT")
    given = utterance("u", 1.5)
    result = changed(Reverberate(folder=str(tmp_path)), given)
    wet = scipy.signal.fftconvolve(given.samples, sign * response)[40 : 40 + len(given.samples)]
    wet *= np.sqrt(np.mean(given.samples**2) / np.mean(wet**2))
    np.testing.assert_allclose(result.samples, wet, atol=1e-5)
    assert result.drawn == ("room hall",)


def test_simulated_rooms_differ_and_draw_from_no_shared_generator() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (changed(Reverberate(), utterance("u"), epoch) for epoch in (0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    np.testing.assert_array_equal(changed(Reverberate(), utterance("u")).samples, first.samples)
    assert np.corrcoef(first.samples, second.samples)[0, 1] < 0.999
    for result in (first, second):
        assert np.mean(result.samples**2) == pytest.approx(np.mean(utterance("u").samples ** 2), rel=1e-3)


@pytest.mark.parametrize("kind", [AddNoise, Reverberate])
def test_a_run_does_not_start_without_its_recordings(corpus: Path, tmp_path: Path, kind: Any) -> None:
    def begin(**where: str) -> None:
        SpeechDataModule(str(corpus), augmentations=[kind(**where)]).setup("fit")

    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.wav").write_bytes(b"RIFFnothing")
    (tmp_path / "no.jsonl").write_text("{}\n")
    for name, told in (("missing", "no recordings"), ("empty", "no recordings"), ("broken", "none of the 1")):
        with pytest.raises(UserError, match=rf"{kind.__name__} .*{told}.*") as raised:
            begin(folder=str(tmp_path / name))
        assert str(tmp_path / name) in str(raised.value)
    for name in ("missing.jsonl", "no.jsonl"):
        with pytest.raises(UserError, match=rf"{kind.__name__} .*{tmp_path / name}"):
            begin(manifest=str(tmp_path / name))
    SpeechDataModule(str(corpus), augmentations=[kind(folder=str(tmp_path))]).setup("test")  # needs none


def test_a_recording_of_noise_that_cannot_be_read_is_named_and_left_out(
    noises: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bad.wav").write_bytes(b"not audio")
    (tmp_path / "good.wav").write_bytes((noises / "short.wav").read_bytes())
    with caplog.at_level(logging.WARNING):
        AddNoise(folder=str(tmp_path)).check()
    assert "bad.wav" in caplog.text
    drawn = {changed(AddNoise(folder=str(tmp_path)), utterance("u"), epoch).drawn[0].split()[1] for epoch in range(8)}
    assert drawn == {"good"}


def test_noise_that_vanishes_later_is_passed_over_and_ends_the_run_when_all_has(
    noises: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.wav").write_bytes((noises / "short.wav").read_bytes())
    augmentation = AddNoise(folder=str(tmp_path))
    augmentation.check()
    (tmp_path / "a.wav").unlink()
    with caplog.at_level(logging.WARNING):
        drawn = {changed(augmentation, utterance("u"), epoch).drawn[0].split()[1] for epoch in range(8)}
    assert drawn == {"b"}
    assert "passed over a" in caplog.text
    (tmp_path / "b.wav").unlink()
    with pytest.raises(UserError, match=r"10 recordings .* in a row cannot be read"):
        changed(augmentation, utterance("u"))


def test_noise_is_not_sought_in_circles_or_fifos(tmp_path: Path, caplog) -> None:
    soundfile.write(tmp_path / "a.wav", speak("one"), RATE)
    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "back").symlink_to(tmp_path)
    assert [recording.id for recording in recordings_of(str(tmp_path), None, "AddNoise")] == ["a"]
    assert "fifo.wav: a FIFO" in caplog.text
    assert "back: a link back to a folder" in caplog.text
