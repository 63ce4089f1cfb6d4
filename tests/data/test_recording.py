"""What is decoded without Lhotse is what Lhotse decodes; the rest is left to it."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import Recording
from lhotse.cut import MonoCut

from speechllm_pl.data.recording import decoded

FORMATS = [
    ("wav", "WAV", "PCM_16"),
    ("wav", "WAV", "PCM_24"),
    ("wav", "WAV", "FLOAT"),
    ("wav", "WAV", "ULAW"),
    ("flac", "FLAC", "PCM_16"),
    ("flac", "FLAC", "PCM_24"),
    ("opus", "OGG", "OPUS"),
    ("ogg", "OGG", "VORBIS"),
]


def recorded(folder: Path, suffix: str, file_format: str, subtype: str, rate: int = 16_000, channels: int = 1):
    samples = 0.3 * np.random.default_rng(0).standard_normal((rate, channels)).clip(-3, 3)
    path = folder / f"a.{suffix}"
    soundfile.write(path, samples, rate, format=file_format, subtype=subtype)
    return Recording.from_file(path, recording_id="a")


@pytest.mark.parametrize(("suffix", "file_format", "subtype"), FORMATS)
@pytest.mark.parametrize(("start", "seconds"), [(0.0, None), (0.0, 0.3), (0.2503, 0.4001), (0.5, 0.5)])
@pytest.mark.parametrize("memory", [False, True])
def test_samples_are_the_very_ones_of_lhotse(tmp_path: Path, suffix, file_format, subtype, start, seconds, memory):
    recording = recorded(tmp_path, suffix, file_format, subtype)
    if memory:
        (source,) = recording.sources
        source.type, source.source = "memory", Path(source.source).read_bytes()
    cut = MonoCut("a", start, seconds or recording.duration, 0, recording=recording)
    result = decoded(cut)
    assert result is not None
    samples, finite = result
    assert samples.dtype == np.float32
    assert finite == subtype.startswith("PCM")  # of others it has to be looked at
    np.testing.assert_array_equal(samples, cut.load_audio()[0])


def test_flac_with_a_damaged_byte_is_never_taken_for_sound(tmp_path: Path) -> None:
    recording = recorded(tmp_path, "flac", "FLAC", "PCM_16")
    path, draw = tmp_path / "a.flac", np.random.default_rng(0)
    content = path.read_bytes()
    first = len(content) - len(content[content.index(b"\xff\xf8") :])  # of the frames
    for place in draw.integers(first, len(content), 50).tolist():
        damaged = bytearray(content)
        damaged[place] ^= int(draw.integers(1, 256))
        path.write_bytes(damaged)
        assert decoded(recording.to_cut()) is None
    path.write_bytes(content[: len(content) // 2])
    assert decoded(recording.to_cut()) is None


@pytest.mark.parametrize(
    "kind", ["stereo", "8 kHz", "resampled", "louder", "missing", "cut off", "another length", "mixed", "not audio"]
)
def test_the_rest_is_left_to_lhotse(tmp_path: Path, kind: str) -> None:
    rate = 8_000 if kind in ("8 kHz", "resampled") else 16_000
    recording = recorded(tmp_path, "wav", "WAV", "PCM_16", rate, channels=2 if kind == "stereo" else 1)
    cut = recording.to_cut()
    path = tmp_path / "a.wav"
    if kind == "resampled":
        cut = cut.resample(16_000)
    elif kind == "louder":
        cut = cut.perturb_volume(2.0)
    elif kind == "missing":
        path.unlink()
    elif kind == "cut off":
        path.write_bytes(path.read_bytes()[:9_000])
    elif kind == "another length":
        soundfile.write(path, np.zeros(15_000), 16_000)
    elif kind == "mixed":
        cut = cut.pad(duration=2.0)
    elif kind == "not audio":
        path.write_text("no sound " * 1000)
    assert decoded(cut) is None
