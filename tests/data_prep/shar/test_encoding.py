"""Encoding of cuts: the same samples give the same bytes, and what is encoded already is taken as it is."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import speechlike, write_cut
from lhotse import CutSet

from data_prep.shar import encoding
from data_prep.shar.encoding import encode
from data_prep.shar.export import Settings, export
from speechllm_pl.storage import shar_index as shar


@pytest.mark.parametrize("codec", ["flac", "opus"])
def test_the_same_samples_give_the_same_bytes(codec: str) -> None:
    samples = speechlike(1.3)
    assert encode(samples, codec) == encode(samples, codec)


def test_an_opus_stream_with_its_new_serial_number_is_the_same_sound() -> None:
    file = io.BytesIO()
    soundfile.write(file, speechlike(3.0), 16_000, format="OGG", subtype="OPUS")
    changed = encoding._with_serial(file.getvalue(), 77)
    assert changed != file.getvalue()
    sound, rate = soundfile.read(io.BytesIO(changed))
    np.testing.assert_array_equal(sound, soundfile.read(io.BytesIO(file.getvalue()))[0])
    assert rate == 16_000


def test_oggs_checksum_is_what_libogg_writes() -> None:
    """libogg drops pages whose checksum is wrong, but ours are compared directly too."""
    file = io.BytesIO()
    soundfile.write(file, speechlike(3.0), 16_000, format="OGG", subtype="OPUS")
    serial = int.from_bytes(file.getvalue()[14:18], "little")
    assert encoding._with_serial(file.getvalue(), serial) == file.getvalue()


def test_samples_beyond_full_scale_are_not_clipped() -> None:
    loud = 4 * speechlike(0.5) / np.abs(speechlike(0.5)).max()
    found, _ = soundfile.read(io.BytesIO(encode(loud, "flac")))
    np.testing.assert_allclose(found * 4, loud, atol=4e-4)


@pytest.mark.parametrize("codec", ["flac", "opus"])
def test_a_recording_in_the_codec_is_taken_as_it_is(tmp_path: Path, codec: str) -> None:
    file_format, subtype = encoding.CODECS[codec]
    cut = write_cut(tmp_path, "a", speechlike(1.0), "one", "en")
    path = tmp_path / f"a.{codec}"
    soundfile.write(path, speechlike(1.0), 16_000, format=file_format, subtype=subtype)
    cut.recording = cut.recording.from_file(path, recording_id="a")
    CutSet.from_cuts([cut]).to_file(tmp_path / "a.jsonl")
    export(tmp_path / "a.jsonl", tmp_path / "out", Settings(codec, 3))
    with tarfile.open(tmp_path / "out" / shar.audio_name(0)) as tar:
        assert tar.extractfile(f"a.{codec}").read() == path.read_bytes()
