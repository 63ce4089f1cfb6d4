"""No file that was cut off passes for a whole one, wherever it was cut."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechllm_pl.storage.containers import broken_promise

FORMATS = [
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "FLOAT"),
    ("WAV", "ULAW"),
    ("RF64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AIFF", "PCM_24"),
    ("AIFF", "PCM_S8"),
    ("AIFF", "FLOAT"),
    ("AIFF", "ALAW"),
    ("CAF", "PCM_16"),
    ("W64", "PCM_16"),
    ("AU", "PCM_16"),
    ("NIST", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
]


def written(path: Path, kind: str, subtype: str, channels: int = 1) -> bytes:
    samples = 0.1 * np.random.default_rng(0).standard_normal((24_001, channels))
    soundfile.write(path, samples, 16_000, format=kind, subtype=subtype)
    return path.read_bytes()


def decoded_samples(path: Path) -> int:
    """Samples that libsndfile gives, which says nothing of what is missing; 0 if it refuses the file."""
    try:
        return len(soundfile.read(path)[0])
    except (soundfile.LibsndfileError, OSError):
        return 0


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
def test_a_cut_is_noticed_wherever_it_is(tmp_path: Path, kind: str, subtype: str, channels: int) -> None:
    path = tmp_path / "a"
    content = written(path, kind, subtype, channels)
    assert broken_promise(path) == ""
    whole = decoded_samples(path)
    pages = [place for place in range(len(content)) if content.startswith(b"OggS", place)]
    lengths = {*np.linspace(0, len(content) - 1, 60, dtype=int).tolist(), *range(12, 120, 9), *pages}
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        assert broken_promise(path) or decoded_samples(path) in (0, whole), length


def test_a_tag_of_mp3_hides_nothing(tmp_path: Path) -> None:
    """libsndfile passes over one before a file of any format."""
    path, tag = tmp_path / "a", b"ID3\4\0\0\0\0\1\5" + bytes(133)
    for kind, subtype in (("WAV", "PCM_16"), ("AIFF", "PCM_16"), ("OGG", "VORBIS"), ("AU", "PCM_16")):
        content = tag + written(path, kind, subtype)
        path.write_bytes(content)
        assert broken_promise(path) == ""
        path.write_bytes(content[:-1000])
        assert broken_promise(path)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_damage_within_an_ogg_file_is_noticed(tmp_path: Path, subtype: str) -> None:
    """Its decoder passes over what it does not know, and says nothing."""
    path = tmp_path / "a.ogg"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(64_000), 16_000, format="OGG", subtype=subtype)
    content = path.read_bytes()
    _, second, third, fourth, *_ = (at for at in range(len(content)) if content.startswith(b"OggS", at))
    for begin, end in ((second, third), (third, fourth), (third + 100, third + 200)):
        path.write_bytes(content[:begin] + content[end:])
        assert broken_promise(path)
    for place in (*range(third, third + 40), third + 99):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert broken_promise(path), place
    path.write_bytes(content + content)
    assert decoded_samples(path) == 64_000
    assert "only the first would be read" in broken_promise(path)
    path.write_bytes(content + b"what another program has appended")
    assert broken_promise(path) == ""


def test_an_aiff_whose_frames_are_not_all_there_is_noticed(tmp_path: Path) -> None:
    """Its chunks were made smaller, as some tools do that save what they have."""
    path = tmp_path / "a.aiff"
    content = written(path, "AIFF", "PCM_16")
    place = content.index(b"SSND") + 4
    length = int.from_bytes(content[place : place + 4], "big") - 10_000
    path.write_bytes(content[:place] + length.to_bytes(4, "big") + content[place + 4 : -10_000])
    assert broken_promise(path) == "10000 bytes of its end are missing"


def test_what_follows_the_samples_may_be_cut(tmp_path: Path) -> None:
    for kind in ("WAV", "AIFF"):
        path = tmp_path / kind
        content = written(path, kind, "PCM_16")
        path.write_bytes(content + b"LIST" + bytes(2))
        assert broken_promise(path) == ""


def test_a_wav_that_was_written_to_a_pipe_makes_no_promise(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    content = written(path, "WAV", "PCM_16")
    place = content.index(b"data") + 4
    path.write_bytes(content[:place] + b"\xff" * 4 + content[place + 4 :])
    assert broken_promise(path) == ""


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_an_mp3_is_read_to_its_end_or_named(tmp_path: Path, rate: int, mode: str) -> None:
    """Silence at the end, so that a guess by the first frames of a variable bit rate falls short."""
    path = tmp_path / "a.mp3"
    samples = np.r_[0.3 * np.random.default_rng(0).standard_normal(3 * rate), np.zeros(3 * rate)]
    soundfile.write(path, samples, rate, format="MP3", compression_level=0.5, bitrate_mode=mode)
    content = path.read_bytes()
    assert (broken_promise(path), decoded_samples(path)) == ("", 6 * rate)
    lacking, damaged = content[content.index(content[:2], 4) :], bytearray(content)
    damaged[2] |= 12  # a sampling rate that no frame has
    for without_length in (lacking, damaged):
        path.write_bytes(without_length)
        whole = decoded_samples(path) > 5.9 * rate
        assert whole == (mode == "CONSTANT")
        assert (broken_promise(path) == "") == whole
