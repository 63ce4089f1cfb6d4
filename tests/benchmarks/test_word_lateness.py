"""Lateness of words against hand-made times: joined items, words without times, edges of gaps only."""

from math import isnan, nan
from pathlib import Path

import pytest
from lhotse.supervision import AlignmentItem

from speechllm_pl.recognition.word_times import Word

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WORDS = [
    Word("four", 0.25, 0.5, 1.0, aligned=True),
    Word("twenty", 1.0, 1.25, 1.0, aligned=True),
    Word("two", 1.5, 2.0, 1.0, aligned=True),
    Word("one", 2.0, 2.25, 0.0, aligned=False),
    Word("six", 3.0, 4.0, 1.0, aligned=True),
]
KNOWN = [
    AlignmentItem("four", 0.0, 0.25),
    AlignmentItem("twenty two", 0.75, 1.0),  # which was said as one
    AlignmentItem("one", 2.0, 0.5),
    AlignmentItem("six", 3.25, 0.5),
]


def rounded(pairs: list[tuple[float, float]]) -> list[tuple[float | None, float | None]]:
    return [(None if isnan(start) else start, None if isnan(end) else end) for start, end in pairs]


def test_words_are_late_against_the_items_that_they_are_part_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from word_times import lateness

    assert lateness(WORDS, KNOWN, gaps=False) == [(0.25, 0.25), (0.25, 0.25), (-0.25, 0.25)]
    assert rounded(lateness(WORDS, KNOWN, gaps=True)) == [(None, 0.25), (0.25, 0.25), (-0.25, None)]
    assert rounded(lateness(WORDS[4:], KNOWN[3:], gaps=True)) == rounded([(nan, nan)])
