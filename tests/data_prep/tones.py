"""Recordings of tones, and what is said in them."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep.audio.checks import Rejected
from data_prep.corpora.checked_cuts import cut_from_utterance
from data_prep.corpora.entries import Utterance

FORMATS = {  # suffix: format and subtype of libsndfile
    "wav": ("WAV", "PCM_16"),
    "float.wav": ("WAV", "FLOAT"),
    "aiff": ("AIFF", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "vorbis.ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def tone(rate: int, seconds: float = 1.0, frequency: float = 440.0) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)


def dominant_frequency(samples: np.ndarray, rate: int) -> float:
    return float(np.fft.rfftfreq(samples.size, 1 / rate)[np.abs(np.fft.rfft(samples)).argmax()])


def utterance(path: Path, text: str = "two words", **changes) -> Utterance:
    fields = {"id": path.stem, "path": path, "language": "en", "speaker": "ann", "split": "train"}
    return Utterance(**(fields | {"text": text} | changes))


def reason(utt: Utterance, *, max_seconds: float = 30.0, copies: Path | None = None) -> str:
    with pytest.raises(Rejected) as error:
        cut_from_utterance(utt, max_seconds=max_seconds, copies=copies)
    return str(error.value)


def write_float(path: Path, samples: np.ndarray) -> Path:
    soundfile.write(path, samples, 16000, format="WAV", subtype="FLOAT")
    return path
