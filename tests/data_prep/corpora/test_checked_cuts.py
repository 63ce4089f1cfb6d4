"""One recording: the cut that is made of it, or the reason why there is none."""

import functools

import numpy as np
import pytest
import soundfile
from tones import FORMATS, dominant_frequency, reason, tone, utterance, write_float

from data_prep.audio.checks import Rejected
from data_prep.corpora.checked_cuts import check_transcript, cut_from_header, cut_from_utterance


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 1), (48000, 2), (44100, 2)])
@pytest.mark.parametrize("copy_all", [False, True])
def test_every_format_rate_and_channel_count_loads_as_16_khz_mono(tmp_path, suffix, rate, channels, copy_all):
    kind, subtype = FORMATS[suffix]
    if subtype == "OPUS" and rate == 44100:
        pytest.skip("Opus has no 44.1 kHz")
    if not soundfile.check_format(kind, subtype):
        pytest.skip(f"this libsndfile writes no {subtype}")
    path = tmp_path / f"tone.{suffix}"
    samples = np.repeat(tone(rate, seconds=1.5)[:, None], channels, axis=1)
    soundfile.write(path, samples, rate, format=kind, subtype=subtype)

    copies = tmp_path / "copies"
    cut = cut_from_utterance(utterance(path), max_seconds=30, copies=copies, copy_all=copy_all)
    loaded = cut.load_audio()

    slack = 0.08 if subtype == "MPEG_LAYER_III" else 0.001  # MP3 pads with frames of silence
    assert loaded.shape == (1, cut.num_samples)
    assert cut.sampling_rate == 16000
    assert abs(loaded.shape[1] / 16000 - 1.5) <= slack
    assert abs(dominant_frequency(loaded[0], 16000) - 440) < 2
    assert np.sqrt(np.mean(loaded**2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.05)
    assert copies.exists() == (copy_all or channels > 1)
    assert cut.supervisions[0].text == "two words"
    assert cut.supervisions[0].duration == cut.duration


def test_downmix_is_the_mean_of_all_channels(tmp_path):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([tone(16000, frequency=300), tone(16000, frequency=1000)], 1), 16000)
    loaded = cut_from_utterance(utterance(path), max_seconds=30, copies=tmp_path / "c").load_audio()[0]
    expected = (tone(16000, frequency=300) + tone(16000, frequency=1000)) / 2
    np.testing.assert_allclose(loaded, expected, atol=1e-4)


@pytest.mark.parametrize("copy_all", [False, True])
def test_a_stretch_holds_what_lies_between_start_and_end(tmp_path, copy_all):
    path = tmp_path / "long.wav"
    parts = [tone(8000, 1.0, frequency) for frequency in (300, 700, 1100)]
    soundfile.write(path, np.concatenate(parts), 8000)
    utt = utterance(path, start=1.0, end=2.0)
    cut = cut_from_utterance(utt, max_seconds=1.5, copies=tmp_path / "copies", copy_all=copy_all)
    loaded = cut.load_audio()
    assert loaded.shape == (1, 16000)
    assert abs(dominant_frequency(loaded[0], 16000) - 700) < 2


def test_a_copy_is_used_again_until_its_source_changes(tmp_path):
    path, copies = tmp_path / "a.wav", tmp_path / "copies"
    make = functools.partial(cut_from_utterance, max_seconds=30, copies=copies, copy_all=True)
    soundfile.write(path, tone(16000, frequency=300), 16000)
    first = make(utterance(path))
    written = (copies / "a.flac").stat().st_mtime_ns
    assert make(utterance(path)) == first
    assert (copies / "a.flac").stat().st_mtime_ns == written
    soundfile.write(path, tone(16000, 2.0, frequency=500), 16000)
    second = make(utterance(path))
    assert second.duration == 2.0
    assert abs(dominant_frequency(second.load_audio()[0], 16000) - 500) < 2


def test_a_copy_left_half_written_is_made_anew(tmp_path):
    path, copies = tmp_path / "a.wav", tmp_path / "copies"
    soundfile.write(path, tone(16000), 16000)
    copies.mkdir()
    (copies / "a.flac").write_bytes(b"fLaC and then nothing")
    cut = cut_from_utterance(utterance(path), max_seconds=30, copies=copies, copy_all=True)
    np.testing.assert_allclose(cut.load_audio()[0], tone(16000), atol=1e-4)


def test_missing_empty_and_fake_files_are_rejected(tmp_path, monkeypatch):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is a text file and no sound at all\n" * 20)
    (tmp_path / "a.m4a").write_bytes(b"\0" * 100)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert reason(utterance(tmp_path / "none.wav")).startswith("missing")
    assert reason(utterance(tmp_path / ("x" * 300 + ".wav"))).startswith("missing")
    assert reason(utterance(tmp_path)).startswith("missing")
    assert reason(utterance(tmp_path / "empty.wav")).startswith("empty")
    assert reason(utterance(tmp_path / "text.wav")).startswith("unreadable")
    assert "ffmpeg" in reason(utterance(tmp_path / "a.m4a"))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("make_cut", [cut_from_utterance, cut_from_header])
def test_a_file_cut_short_is_rejected(tmp_path, suffix, make_cut):
    whole, short = tmp_path / f"whole.{suffix}", tmp_path / f"short.{suffix}"
    kind, subtype = FORMATS[suffix]
    soundfile.write(whole, np.random.default_rng(0).normal(size=160_000) * 0.1, 16000, format=kind, subtype=subtype)
    short.write_bytes(whole.read_bytes()[: -whole.stat().st_size // 3])
    make_cut(utterance(whole), max_seconds=30)
    with pytest.raises(Rejected, match=r"^(truncated|unreadable)"):
        make_cut(utterance(short), max_seconds=30)


@pytest.mark.parametrize("make_cut", [cut_from_utterance, cut_from_header])
@pytest.mark.parametrize("rate", [3_999, 384_001, 2_000_000_000])
def test_a_rate_that_no_recording_has_is_rejected(tmp_path, rate, make_cut):
    soundfile.write(tmp_path / "a.wav", tone(rate=160_000), rate)
    with pytest.raises(Rejected, match=rf"^implausible sampling rate: {rate} Hz|^too short"):
        make_cut(utterance(tmp_path / "a.wav"), max_seconds=100)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_the_header_gives_the_same_cut_as_decoding(tmp_path, suffix, rate):
    kind, subtype = FORMATS[suffix]
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(rate, seconds=1.2345), rate, format=kind, subtype=subtype)
    for stretch in ({}, {"start": 0.25, "end": 1.0}):
        utt = utterance(path, gender="female", **stretch)
        assert cut_from_header(utt, max_seconds=30) == cut_from_utterance(utt, max_seconds=30)


def test_what_the_header_tells_is_enough_for_these_reasons(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(8000, 3.0), 8000)
    soundfile.write(tmp_path / "short.flac", tone(16000, 0.05), 16000)
    soundfile.write(tmp_path / "stereo.flac", np.stack([tone(16000)] * 2, 1), 16000)
    (tmp_path / "empty.flac").touch()
    cases = {
        "wrong sampling rate": utterance(tmp_path / "a.flac"),
        "too short": utterance(tmp_path / "short.flac"),
        "not mono": utterance(tmp_path / "stereo.flac"),
        "empty": utterance(tmp_path / "empty.flac"),
        "missing": utterance(tmp_path / "none.flac"),
        "transcript too long": utterance(tmp_path / "a.flac", "a " * 40),
        "no transcript": utterance(tmp_path / "a.flac", " "),
    }
    for expected, utt in cases.items():
        rates = (16000, 48000) if expected == "wrong sampling rate" else None
        for make_cut in (cut_from_header, cut_from_utterance):
            with pytest.raises(Rejected, match=expected):
                make_cut(utt, max_seconds=30, rates=rates)
    with pytest.raises(Rejected, match="too long"):
        cut_from_header(utterance(tmp_path / "a.flac"), max_seconds=2.9)


def test_length_and_stretch_are_checked(tmp_path):
    path = write_float(tmp_path / "a.wav", tone(16000, 3.0))
    assert reason(utterance(path), max_seconds=2.9).startswith("too long")
    cut_from_utterance(utterance(path), max_seconds=3.0)
    assert reason(utterance(path, start=2.0, end=1.0)).startswith("end before start")
    assert reason(utterance(path, start=1.0, end=1.0)).startswith("end before start")
    assert reason(utterance(path, start=-1.0)).startswith("end before start")
    assert reason(utterance(path, start=float("nan"))).startswith("end before start")
    assert reason(utterance(path, start=2.0, end=4.0)).startswith("beyond the end")
    assert reason(utterance(path, start=9.0)).startswith("beyond the end")


def test_stereo_needs_a_folder_for_copies(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(16000)] * 2, 1), 16000)
    assert reason(utterance(tmp_path / "a.wav")).startswith("not mono")


def test_transcripts_are_rejected_when_absent_or_longer_than_the_frames():
    for text in ("", "  \n"):
        with pytest.raises(Rejected, match="no transcript"):
            check_transcript(text, 1.0)
    check_transcript(" ".join(["a"] * 12), 0.96)  # 12 frames of 80 ms, 12 words
    with pytest.raises(Rejected, match="transcript too long"):
        check_transcript(" ".join(["a"] * 13), 0.96)
