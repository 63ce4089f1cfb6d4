"""Pieces of a recording: cut at pauses, none longer than the longest, nothing lost."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from speechllm_pl.recognition.audio_pieces import (
    LEAST_SHARE,
    MARGIN_SECONDS,
    OVERLAP_SECONDS,
    AudioPiece,
    Stretch,
    long_pause,
    pauses_in,
    pieces,
)

RATE, SECONDS_PER_FRAME, LONGEST = 16_000, 0.08, 10.0
FRAME = round(SECONDS_PER_FRAME * RATE)  # samples


def recording(seed: int, seconds: float, pauses: bool = True) -> np.ndarray:
    """Speech (values of at least a half), with pauses of a third of a second to two seconds (zeros)."""
    random = np.random.default_rng(seed)
    samples = random.uniform(0.5, 1.0, round(seconds * RATE)).astype(np.float32)
    at = 0
    while pauses and (at := at + int(random.uniform(1.0, 4.0) * RATE)) < len(samples):
        end = at + int(random.uniform(0.34, 2.0) * RATE)
        samples[at:end] = 0
        at = end
    return samples


def log_probs_of(samples: np.ndarray) -> torch.Tensor:
    """A CTC head that hears exactly what is louder than a tenth."""
    frames = [samples[at : at + FRAME] for at in range(0, len(samples), FRAME)]
    speech = torch.tensor([float(np.abs(frame).max() > 0.1) for frame in frames])
    return torch.stack([1 - speech, speech], -1).clamp(min=1e-3).log()


def pauses_by(head: Callable[[np.ndarray], torch.Tensor]) -> Callable[[np.ndarray], list[Stretch]]:
    return lambda window: pauses_in(head(window), window, FRAME)


def chunks(samples: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    random, at = np.random.default_rng(seed), 0
    while at < len(samples):
        size = int(random.integers(1, 3 * RATE))
        yield samples[at : at + size]
        at += size


def divided(samples: np.ndarray, seed: int = 0) -> list[AudioPiece]:
    return list(pieces(chunks(samples, seed), pauses_by(log_probs_of), LONGEST))


def is_long_pause(samples: np.ndarray, place: int) -> bool:
    """Whether there is silence around a place for as long as a long pause, to the precision of frames."""
    sound = np.flatnonzero(samples)
    after = np.searchsorted(sound, place)
    first = sound[after - 1] if after else 0
    end = sound[after] if after < len(sound) else len(samples)
    return end - first >= long_pause(LONGEST) * RATE - FRAME


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("pauses", [True, False])
def test_every_sample_is_in_a_piece_and_no_piece_is_too_long(seed: int, pauses: bool) -> None:
    samples = recording(seed, 61.7, pauses)
    found = divided(samples, seed)
    heard = [piece.samples[round(piece.overlap_seconds * RATE) :] for piece in found]
    assert np.array_equal(np.concatenate(heard), samples)
    for piece in found:
        start = round(piece.start_seconds * RATE)
        assert np.array_equal(piece.samples, samples[start : start + len(piece.samples)])
        assert len(piece.samples) <= LONGEST * RATE
    for piece, following in itertools.pairwise(found):
        start, end = (round(each.start_seconds * RATE) for each in (piece, following))
        if len(piece.samples) < LEAST_SHARE * LONGEST * RATE:
            assert is_long_pause(samples, start) or is_long_pause(samples, end)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("pauses", [True, False])
def test_the_background_of_a_piece_is_that_of_a_window_however_the_recording_arrives(seed: int, pauses: bool) -> None:
    samples = recording(seed, 61.7, pauses)
    found = divided(samples, seed)
    assert all((piece.background < -100) == pauses for piece in found[:-1])  # the last one may know no pause
    at_once = pieces([samples], pauses_by(log_probs_of), LONGEST)
    assert [piece.background for piece in found] == [piece.background for piece in at_once]


@pytest.mark.parametrize("seed", range(10))
def test_pieces_end_in_pauses(seed: int) -> None:
    samples = recording(seed, 61.7)
    found = divided(samples, seed)
    assert len(found) > 5
    for piece in found[1:]:
        start = round(piece.start_seconds * RATE)
        assert not samples[start - FRAME : start + FRAME].any()
        assert piece.overlap_seconds == 0


@pytest.mark.parametrize("seed", range(10))
def test_no_speech_has_a_long_pause_beside_it_and_long_pauses_are_silent(seed: int) -> None:
    samples = recording(seed, 61.7)
    found = divided(samples, seed)
    assert any(piece.silent for piece in found)
    for piece in found:
        sound = np.flatnonzero(piece.samples)
        assert piece.silent == (not len(sound))
        if len(sound):
            before, behind = sound[0], len(piece.samples) - sound[-1]
            assert max(before, behind) <= long_pause(LONGEST) * RATE + 2 * FRAME
        else:
            assert len(piece.samples) >= MARGIN_SECONDS * RATE - 2 * FRAME


def test_the_longest_pause_is_taken() -> None:
    samples = recording(0, 12.0, pauses=False)
    for start, end in ((6.0, 6.3), (7.0, 7.45), (9.0, 9.35)):
        samples[round(start * RATE) : round(end * RATE)] = 0
    first, second = divided(samples)
    assert second.start_seconds == pytest.approx(7.225, abs=SECONDS_PER_FRAME)
    assert len(first.samples) == round(second.start_seconds * RATE)


def test_what_is_blank_but_loud_is_no_pause_where_there_is_a_quiet_one() -> None:
    """Blanks between the pieces of a word are as loud as the word."""
    samples = recording(0, 12.0, pauses=False)
    samples[6 * RATE : round(6.3 * RATE)] = 0

    def deaf(window: np.ndarray) -> torch.Tensor:
        log_probs = log_probs_of(window)
        log_probs[100:105] = log_probs[100:105].flip(-1)  # from 8.0 to 8.4 s it hears nothing
        return log_probs

    _, second = pieces([samples], pauses_by(deaf), LONGEST)
    assert second.start_seconds == pytest.approx(6.15, abs=SECONDS_PER_FRAME)
    samples[6 * RATE : round(6.3 * RATE)] = 0.5
    _, second = pieces([samples], pauses_by(deaf), LONGEST)
    assert second.start_seconds == pytest.approx(8.2, abs=SECONDS_PER_FRAME)


def test_without_a_pause_pieces_overlap() -> None:
    found = divided(recording(0, 25.0, pauses=False))
    assert [piece.overlap_seconds for piece in found] == [0.0, OVERLAP_SECONDS, OVERLAP_SECONDS]
    assert [piece.start_seconds for piece in found] == [0.0, 8.0, 16.0]


def test_how_the_samples_arrive_does_not_matter() -> None:
    samples = recording(3, 61.7)
    starts = [[piece.start_seconds for piece in divided(samples, seed)] for seed in range(3)]
    assert starts[0] == starts[1] == starts[2]


@pytest.mark.parametrize("seconds", [0.3, 7.7, 8.5])
def test_a_word_that_begins_at_the_end_of_a_silent_window_stays_whole(seconds: float) -> None:
    """The CTC head hears no word that begins in the last 0.4 s of a window."""

    def deaf(window: np.ndarray) -> torch.Tensor:
        log_probs = log_probs_of(window)
        log_probs[-5:] = torch.tensor([0.0, -7.0])
        return log_probs

    start = round((2 * LONGEST - seconds) * RATE)
    samples = np.zeros(round(2.5 * LONGEST * RATE), np.float32)
    samples[start : start + RATE] = 0.5
    found = list(pieces([samples], pauses_by(deaf), LONGEST))
    assert [np.count_nonzero(piece.samples) for piece in found if not piece.silent] == [RATE]
    assert not any(piece.samples.any() for piece in found if piece.silent)


def test_a_short_recording_is_one_piece_and_an_empty_one_too() -> None:
    assert [len(piece.samples) for piece in divided(recording(0, 9.0, pauses=False))] == [9 * RATE]
    assert [len(piece.samples) for piece in divided(np.zeros(0, np.float32))] == [0]


def test_pauses_are_long_by_the_length_of_what_was_trained_on() -> None:
    assert [long_pause(seconds) for seconds in (2, 10, 16, 60)] == pytest.approx([0.4, 0.5, 0.8, 1.0])
