"""Join the words of pieces that overlap, where a recording has no pause to be divided in."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile

from speechllm_pl.recognition.transcript import Piece
from speechllm_pl.recognition.word_times import Word

AGREE_SECONDS = 0.3
"""Largest difference between the times of one word in two pieces."""


def without_doubled_words(pieces: Sequence[Piece], overlaps: Sequence[float]) -> list[Piece]:
    """Join the pieces of a recording.

    Args:
        pieces: pieces in order, each with all words that were found in it.
        overlaps: length in seconds at each one's beginning that the piece before it holds as well.

    Returns:
        The pieces, each with its share of the recording's words.
    """
    found = [*pieces]
    for number, overlap in enumerate(overlaps):
        if overlap and number:
            end = found[number].start_seconds + overlap
            inside = [*takewhile(lambda piece, end=end: piece.start_seconds < end, found[number:])]
            found[number - 1 : number + len(inside)] = _joined(found[number - 1], inside, end)
    return found


def _joined(before: Piece, after: Sequence[Piece], end_seconds: float) -> Iterator[Piece]:
    """A piece and those that begin in its overlap with them, without the words that both sides have.

    Args:
        after: pieces in order; several where a pause inside the overlap divides it.
        end_seconds: end of the overlap.
    """
    words = [word for piece in after for word in piece.words]
    kept, follow = joined(before.words, words, after[0].start_seconds, end_seconds)
    yield _with_words(before, kept)
    left_out = len(words) - len(follow)
    for piece in after:
        gone = min(left_out, len(piece.words))
        left_out -= gone
        own = len(piece.words) - gone
        yield _with_words(piece, follow[:own])
        follow = follow[own:]


def _with_words(piece: Piece, words: Sequence[Word]) -> Piece:
    return replace(piece, words=tuple(words), text=" ".join(word.text for word in words))


def joined(
    before: Sequence[Word], after: Sequence[Word], start_seconds: float, end_seconds: float
) -> tuple[list[Word], list[Word]]:
    """Join the words of two pieces that overlap, so that none is doubled and none lost, and times never decrease.

    Args:
        before, after: words of either piece, with their times in the recording.
        start_seconds, end_seconds: the overlap, which is the end of one and the beginning of the other.

    Returns:
        The words that stay of `before` and of `after`.
    """
    kept, left_out = _seam(before, after, start_seconds, end_seconds)
    first, second = [*before[:kept]], [*after[left_out:]]
    if first and second and first[-1].end_seconds > second[0].start_seconds:  # two alignments, which may differ
        edge = max(first[-1].start_seconds, second[0].start_seconds)
        first[-1] = replace(first[-1], end_seconds=edge)
        second = [word.not_before(edge) for word in second]
    return first, second


def _seam(before: Sequence[Word], after: Sequence[Word], start_seconds: float, end_seconds: float) -> tuple[int, int]:
    """Find where to join; arguments as of `joined`.

    That is behind the word that both have at the same time, of several at the one nearest the middle of the overlap.
    Without such a word the first piece is believed up to the middle, and the second about what follows its last word.

    Returns:
        Numbers of words to keep of `before`, and to leave out of `after`.
    """
    middle = (start_seconds + end_seconds) / 2
    inside = [i for i, word in enumerate(before) if after and start_seconds <= word.start_seconds <= end_seconds]
    common = []
    for i in inside:
        moved = [abs(word.start_seconds - before[i].start_seconds) for word in after]
        j = min(range(len(after)), key=moved.__getitem__)
        if before[i].text == after[j].text and moved[j] <= AGREE_SECONDS:
            common.append((abs(before[i].start_seconds - middle), i, j))
    if common:
        _, i, j = min(common)
        return i + 1, j + 1
    kept = sum(word.middle_seconds < middle for word in before)
    return kept, sum(word.middle_seconds <= before[kept - 1].end_seconds for word in after) if kept else 0
