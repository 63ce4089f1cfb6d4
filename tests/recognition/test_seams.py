"""Pieces that overlap are joined: no word doubled, none lost, and times that never decrease."""

from itertools import pairwise

import numpy as np
import pytest

from speechllm_pl.recognition.seams import joined, without_doubled_words
from speechllm_pl.recognition.transcript import Piece
from speechllm_pl.recognition.word_times import Word


def words(text: str, start: float, seconds: float = 0.5) -> list[Word]:
    return [
        Word(word, start + seconds * place, start + seconds * (place + 0.8), 1.0, aligned=True)
        for place, word in enumerate(text.split())
    ]


def texts(found: tuple[list[Word], list[Word]]) -> str:
    return " ".join(word.text for words in found for word in words)


def test_words_of_both_pieces_are_neither_doubled_nor_lost() -> None:
    before, after = words("one two three four five six", 5.0), words("three four five six seven eight", 6.0)
    assert texts(joined(before, after, 6.0, 8.0)) == "one two three four five six seven eight"


def test_words_that_were_cut_off_at_the_edges_do_not_count() -> None:
    before, after = words("one two three four fi", 5.0), words("ree four five six", 6.0)
    assert texts(joined(before, after, 6.0, 7.5)) == "one two three four five six"


def test_repeated_words_are_joined_by_their_times() -> None:
    before, after = words("no no no no no no", 5.0), words("no no no no no no", 6.0)
    found = joined(before, after, 6.0, 8.0)
    assert texts(found) == "no no no no no no no no"
    starts = [word.start_seconds for words in found for word in words]
    assert starts == sorted(starts)


def test_without_a_common_word_the_middle_decides() -> None:
    before, after = words("one two three four", 5.0), words("drei vier five six", 6.0)
    assert texts(joined(before, after, 6.0, 7.0)) == "one two three vier five six"


@pytest.mark.parametrize("seed", range(50))
def test_times_never_decrease_at_a_seam_though_both_alignments_differ(seed: int) -> None:
    random = np.random.default_rng(seed)

    def aligned(count: int, start: float) -> list[Word]:
        edges = start + np.cumsum(random.choice([0.02, 0.1, 0.4], 2 * count))
        names = random.choice(["one", "two"], count)
        spans = zip(names, edges[::2], edges[1::2], strict=True)
        return [Word(str(name), start, end, 1.0, aligned=True) for name, start, end in spans]

    before, after = aligned(12, 0.0), aligned(12, 2.0)
    found = joined(before, after, 2.0, before[-1].end_seconds)
    times = [edge for words in found for word in words for edge in (word.start_seconds, word.end_seconds)]
    assert times == sorted(times)
    same = [word for words in found for word in words if word in before or word in after]
    assert len(times) / 2 - len(same) <= 4  # only words at the seam are moved


# brute force: words with known times, heard by two pieces

OVERLAP = 10.0, 12.0
JITTER = 0.04  # half a frame


def spoken(random: np.random.Generator, pause: tuple[float, float], vocabulary: int) -> list[Word]:
    """Words from 8 to 14 s with a pause from `pause[0]` on, of which each is another one of the `vocabulary` before."""
    found, at, number = [], 8.0, 0
    while at < 14.0:
        length = random.uniform(0.12, 0.6)
        if at < pause[0] < at + length:
            at = sum(pause)
        found.append(Word(f"w{number % vocabulary}", at, at + length, 1.0, aligned=True))
        number += 1
        at += length + random.choice([0.0, 0.05, 0.15])
        if pause[0] <= at < sum(pause):
            at = sum(pause)
    return found


def heard(
    random: np.random.Generator, words: list[Word], start: float, end: float, misheard: float = 0.0, mark: str = "?"
) -> list[Word]:
    """What a piece makes of words: times of its own, some with a mark, and of a word at its edge a half or nothing."""
    found, last = [], start
    for word in words:
        first, behind = max(start, word.start_seconds), min(end, word.end_seconds)
        if behind <= first:
            continue
        text = word.text if random.random() > misheard else word.text + mark
        if (first, behind) != (word.start_seconds, word.end_seconds):
            if random.random() < 0.5 or behind - first < 0.1:
                continue
            text = f"half-{word.text}"
        times = np.clip(np.add((first, behind), random.uniform(-JITTER, JITTER, 2)), last, end)
        found.append(Word(text, float(times[0]), float(times[1]), 1.0, aligned=True))
        last = float(times[1])
    return found


@pytest.mark.parametrize("vocabulary", [1000, 3, 1])
@pytest.mark.parametrize("misheard", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("pause", [0.0, 0.3, 0.8, 1.6, 2.5])
def test_each_word_comes_once_wherever_pause_and_overlap_are(vocabulary: int, misheard: float, pause: float) -> None:
    start, end = OVERLAP
    for seed, begins in enumerate(np.arange(start - pause - 0.3, end + 0.3, 0.1)):
        random = np.random.default_rng(seed)
        words = spoken(random, (float(begins), pause), vocabulary)
        before, after = (
            heard(random, words, *span, misheard, mark) for span, mark in (((0.0, end), "<"), ((start, 20.0), ">"))
        )
        kept, follow = joined(before, after, start, end)
        found = [*kept, *follow]
        assert [word.text.rstrip("<>") for word in found] == [word.text for word in words], (seed, begins)
        times = [time for word in found for time in (word.start_seconds, word.end_seconds)]
        assert times == sorted(times)


@pytest.mark.parametrize("vocabulary", [1000, 1])
def test_pieces_that_begin_in_an_overlap_are_joined_together(vocabulary: int) -> None:
    """A long pause inside the overlap divides the second piece, although the first had none."""
    start, end = OVERLAP
    for seed, begins in enumerate(np.arange(start - 0.3, end, 0.1)):
        random = np.random.default_rng(seed)
        words = spoken(random, (float(begins), 0.5), vocabulary)
        edges = [start, *(edge for edge in (begins + 0.12, begins + 0.38) if edge > start), 20.0]
        spans = [(0.0, end), *pairwise(edges)]
        pieces = []
        for first, last in spans:
            own = heard(random, words, first, last)
            pieces.append(Piece(first, last, " ".join(word.text for word in own), tuple(own), "llm"))
        overlaps = [0.0, end - start, *[0.0] * (len(pieces) - 2)]
        found = without_doubled_words(pieces, overlaps)
        assert [word.text for piece in found for word in piece.words] == [word.text for word in words], (seed, begins)
        assert [piece.text.split() for piece in found] == [[word.text for word in piece.words] for piece in found]
        assert [(piece.start_seconds, piece.end_seconds) for piece in found] == spans
