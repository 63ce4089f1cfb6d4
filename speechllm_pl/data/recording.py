"""Read plain recordings straight from their decoders: Lhotse would copy the samples five times.

FLAC, the format of MLS and LibriSpeech, is decoded by dr_flac, in two thirds of the time that libsndfile takes: with
that, reading would fall below 90 % of a bare loop over the files (`benchmarks/reading_speed.py`).
"""

from io import BytesIO
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import soundfile
from lhotse import AudioSource
from lhotse.cut import Cut, MonoCut
from lhotse.utils import compute_num_samples
from miniaudio import ffi, lib

from speechllm_pl.core.audio.units import SAMPLING_RATE


class Decoded(NamedTuple):
    """Samples of a cut."""

    samples: np.ndarray  # (N,) float32, mono, 16 kHz
    finite: bool  # for certain: they were integers


def decoded(cut: Cut, into: np.ndarray | None = None) -> Decoded | None:
    """The samples of a cut of a mono recording at 16 kHz: the very ones that Lhotse would give.

    None if the cut is of another kind, or its file not what the manifest says: Lhotse knows what to do then.

    Args:
        into: float32, whose memory is used if it is long enough.
    """
    if not isinstance(cut, MonoCut) or cut.recording is None or cut.recording.transforms:
        return None
    (source, *others) = cut.recording.sources
    if others or source.type not in ("file", "memory") or cut.recording.sampling_rate != SAMPLING_RATE:
        return None
    whole = cut.start == 0 and cut.duration == cut.recording.duration
    try:
        if whole and (content := _flac_of(source)) is not None:
            return _all_of_flac(content, cut.recording.num_samples, into)
        file = BytesIO(cast(bytes, source.source)) if source.type == "memory" else str(source.source)
        with soundfile.SoundFile(file) as audio:
            if (audio.channels, audio.samplerate, audio.frames) != (1, SAMPLING_RATE, cut.recording.num_samples):
                return None
            if whole:
                return _samples(audio, audio.frames, into)
            audio.seek(compute_num_samples(cut.start, SAMPLING_RATE))
            return _samples(audio, compute_num_samples(cut.duration, SAMPLING_RATE), into)
    except (soundfile.LibsndfileError, OSError):
        return None


def _flac_of(source: AudioSource) -> bytes | None:
    """Bytes of a FLAC file."""
    if source.type == "memory":
        content = cast(bytes, source.source)
        return content if content.startswith(b"fLaC") else None
    path = str(source.source)
    return Path(path).read_bytes() if path.endswith(".flac") else None


def _all_of_flac(content: bytes, count: int, into: np.ndarray | None) -> Decoded | None:
    """All samples of a file's bytes, if they are mono at 16 kHz and as many as stated."""
    memory = ffi.from_buffer(content)  # read from until it is closed
    flac = lib.ma_dr_flac_open_memory(memory, len(content), ffi.NULL)
    if not flac:
        return None
    try:
        if (flac.channels, flac.sampleRate, flac.totalPCMFrameCount) != (1, SAMPLING_RATE, count):
            return None
        samples = _room(count, into)
        done = lib.ma_dr_flac_read_pcm_frames_f32(flac, count, ffi.from_buffer("float[]", samples))
        return Decoded(samples, True) if done == count else None  # less if a frame's checksum is wrong
    finally:
        lib.ma_dr_flac_close(flac)


def _samples(audio: soundfile.SoundFile, count: int, into: np.ndarray | None) -> Decoded | None:
    """Next samples, if there are enough."""
    subtype = audio.subtype
    if subtype == "PCM_16" and audio.format == "WAV":  # libsndfile makes floats of these one by one
        whole = audio.read(count, dtype="int16")
        if len(whole) != count:
            return None
        return Decoded(np.multiply(whole, np.float32(2**-15), out=_room(count, into)), True)
    samples = audio.read(out=_room(count, into))
    return Decoded(samples, subtype.startswith("PCM_")) if len(samples) == count else None


def _room(count: int, into: np.ndarray | None) -> np.ndarray:
    return np.empty(count, np.float32) if into is None or count > len(into) else into[:count]
