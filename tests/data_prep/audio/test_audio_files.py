"""Files of any container, whole and damaged."""

import struct
import sys

import numpy as np
import pytest
import soundfile
from tones import FORMATS, reason, tone, utterance

from data_prep.audio.audio_files import write_audio
from data_prep.corpora.checked_cuts import cut_from_utterance


def test_an_mp3_that_lacks_three_frames_is_rejected(tmp_path):
    """Frames have 576 samples: at low rates they are half as long as at high ones."""
    path = tmp_path / "a.mp3"
    noise = 0.1 * np.random.default_rng(0).standard_normal(24_000)
    soundfile.write(path, noise, 8000, format="MP3", subtype="MPEG_LAYER_III")
    assert cut_from_utterance(utterance(path), max_seconds=30).duration == pytest.approx(3, abs=0.08)
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + content[middle + 3 * len(content) // (24_000 // 576) :])
    assert reason(utterance(path)).startswith("truncated")


def test_samples_beyond_full_scale_are_scaled_and_not_clipped(tmp_path):
    write_audio(tmp_path / "loud.flac", 3 * tone(16000) / 0.3)
    loaded, _ = soundfile.read(tmp_path / "loud.flac")
    np.testing.assert_allclose(loaded, tone(16000) / 0.3, atol=2e-3)


def test_ffmpeg_is_asked_for_16_khz_mono_and_its_answer_kept_as_a_copy(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    raw = tmp_path / "answer.f32"
    tone(16000).astype("<f4").tofile(raw)
    script = tmp_path / "fake.py"
    script.write_text(
        "import sys\n"
        "assert '-ac 1 -ar 16000 -f f32le' in ' '.join(sys.argv)\n"
        f"sys.stdout.buffer.write(open({str(raw)!r}, 'rb').read())\n"
    )
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    path = tmp_path / "a.m4a"
    path.write_bytes(b"not decoded in this test")
    cut = cut_from_utterance(utterance(path), max_seconds=30, copies=tmp_path / "copies")
    np.testing.assert_allclose(cut.load_audio()[0], tone(16000), atol=1e-4)


@pytest.mark.parametrize("suffix", ["opus", "vorbis.ogg"])
def test_ogg_cut_anywhere_is_rejected(tmp_path, suffix):
    whole, short = tmp_path / f"whole.{suffix}", tmp_path / f"short.{suffix}"
    kind, subtype = FORMATS[suffix]
    soundfile.write(whole, tone(16000, seconds=3.3), 16000, format=kind, subtype=subtype)
    content = whole.read_bytes()
    for length in range(0, len(content), max(1, len(content) // 50)):
        short.write_bytes(content[:length])
        assert reason(utterance(short)).startswith(("empty", "unreadable", "truncated"))
    short.write_bytes(content[:-1])
    assert reason(utterance(short)).startswith("truncated")


def test_a_wav_written_to_a_pipe_has_no_length_and_is_accepted(tmp_path):
    path = tmp_path / "piped.wav"
    soundfile.write(path, tone(16000), 16000)
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)
    assert cut_from_utterance(utterance(path), max_seconds=30).load_audio().shape == (1, 16000)
