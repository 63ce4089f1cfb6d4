"""Speech of espeak-ng as a function of its text."""

import itertools

import numpy as np
import pytest

from data_prep.audio.espeak import SAMPLING_RATE, Espeak


def test_speech_does_not_depend_on_what_was_said_before():
    fresh, used = Espeak(), Espeak()
    for voice in ("pl+victor", "en-us+edward", "it+Mario"):  # flutter, synthesized breath, echo
        used("ventuno", voice, words_per_minute=150, pitch=60)
    say = {"words_per_minute": 175, "pitch": 50}
    expected = fresh("vier", "de+m2", **say)
    assert used("vier", "de+m2", **say) == expected
    assert 0.2 < len(expected.samples) / 2 / SAMPLING_RATE < 2


def test_an_unknown_voice_yields_no_samples():
    assert Espeak()("two", "xx+nobody", words_per_minute=175, pitch=50) == (b"", [])


def test_words_begin_where_pauses_end():
    text = "drei, siebzehn, neun, acht"
    said = Espeak()(text, "de", words_per_minute=150, pitch=50)
    loud = np.abs(np.frombuffer(said.samples, np.int16)) > 200
    edges = np.flatnonzero(loud)
    after_pauses = [int(end) for start, end in itertools.pairwise(edges) if end - start > 0.15 * SAMPLING_RATE]
    assert [text[word.position : word.position + word.length] for word in said.words] == text.split(", ")
    first, *others = (word.sample for word in said.words)
    assert first == 0
    assert others == pytest.approx(after_pauses, abs=0.05 * SAMPLING_RATE)
