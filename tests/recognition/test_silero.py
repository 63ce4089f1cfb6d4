"""Silero's detector finds the pauses of speech, and whoever lacks it is told the remedy."""

import sys
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import RATE
from tone_words import ToneRecognizer

from data_prep.audio.audio_files import resample
from data_prep.audio.espeak import SAMPLING_RATE, Espeak
from speechllm_pl.core.errors import UserError
from speechllm_pl.recognition.silero import SileroPauses
from speechllm_pl.recognition.transcriber import Source, Transcriber
from speechllm_pl.recognition.transcript import Transcript

pytest.importorskip("silero_vad")


@cache
def said(text: str) -> np.ndarray:
    """A voice of espeak-ng, without the silence around it."""
    speech = Espeak()(text, "en-us", words_per_minute=160, pitch=50)
    samples = resample(np.frombuffer(speech.samples, np.int16).astype(np.float32) / 2**15, SAMPLING_RATE)
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    return samples[loud[0] : loud[-1] + 1]


def hum(seconds: float) -> np.ndarray:
    """A quiet hum, in which there are pauses of speech."""
    return (0.003 * np.sin(2 * np.pi * 100 * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


FIRST, SECOND = "good morning to all of you", "this is the second sentence that we say"


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return np.concatenate([hum(0.7), said(FIRST), hum(0.8), said(SECOND), hum(1.0)])


def test_pauses_are_where_the_voice_is_silent(speech: np.ndarray) -> None:
    found = [(first / RATE, end / RATE) for first, end in SileroPauses()(speech)]
    first = 0.7 + len(said(FIRST)) / RATE
    second = first + 0.8 + len(said(SECOND)) / RATE
    expected = [(0.0, 0.7), (first, first + 0.8), (second, second + 1.0)]
    assert len(found) == len(expected)
    np.testing.assert_allclose(found, expected, atol=0.2)


def test_what_was_heard_before_and_in_which_mode_does_not_matter(speech: np.ndarray) -> None:
    pauses = SileroPauses()
    first = pauses(speech)
    pauses(said(SECOND))
    with torch.inference_mode():
        assert pauses(speech) == first
    assert pauses(hum(2.0)) == [(0, 2 * RATE)]


def test_recordings_are_divided_in_these_pauses(speech: np.ndarray) -> None:
    transcriber = Transcriber(ToneRecognizer(longest_seconds=4.0), pauses_by="silero")
    (found,) = transcriber.transcripts([Source("speech", [speech])])
    assert isinstance(found, Transcript)
    ends = SileroPauses()(speech[: 4 * RATE])[1]
    assert any(ends[0] <= piece.end_seconds * RATE <= ends[1] for piece in found.pieces)
    assert all(one.end_seconds == other.start_seconds for one, other in pairwise(found.pieces))


def test_the_number_of_threads_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("silero_vad")]:
        monkeypatch.delitem(sys.modules, name)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        SileroPauses()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_whoever_lacks_the_package_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[vad\]'"):
        Transcriber(ToneRecognizer(), pauses_by="silero")
