"""Word times agree with a search over all alignments, stay inside the audio, and are never invented."""

from itertools import groupby, product
from math import exp

import numpy as np
import pytest
import torch

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.recognition.word_times import AlignedText, loudness_of

SECONDS_PER_FRAME = 0.08


def frames(tokenizer: CtcTokenizer, seed: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, tokenizer.vocab_size, generator=generator).mul(3).log_softmax(-1)


def best_path(log_probs: torch.Tensor, pieces: list[int]) -> tuple[int, ...]:
    """Likeliest of all paths that collapse to the pieces."""
    classes = sorted({0, *pieces})
    paths = (p for p in product(classes, repeat=len(log_probs)) if [k for k, _ in groupby(p) if k] == pieces)
    return max(paths, key=lambda path: sum(float(log_probs[t, k]) for t, k in enumerate(path)))


@pytest.mark.parametrize("seed", range(5))
def test_times_are_those_of_the_likeliest_of_all_paths(letters: CtcTokenizer, seed: int) -> None:
    log_probs = frames(letters, seed, 7)
    text = "a b"
    pieces = [letters.encode(word) for word in text.split()]
    path = best_path(log_probs, [piece for word in pieces for piece in word])
    runs, at = [], 0  # (class, first frame, end) of each run of the path
    for label, members in groupby(path):
        count = len(list(members))
        runs.append((label, at, at + count))
        at += count
    spoken = [run for run in runs if run[0]]
    found = AlignedText(log_probs, text, letters).words(SECONDS_PER_FRAME, 7 * SECONDS_PER_FRAME)
    for word, own in zip(found, pieces, strict=True):
        mine, spoken = spoken[: len(own)], spoken[len(own) :]
        assert word.aligned
        assert word.start_seconds == pytest.approx(mine[0][1] * SECONDS_PER_FRAME)
        assert word.end_seconds == pytest.approx(mine[-1][2] * SECONDS_PER_FRAME)
        means = [sum(float(log_probs[t, k]) for t in range(first, end)) / (end - first) for k, first, end in mine]
        assert word.confidence == pytest.approx(exp(sum(means) / len(means)), rel=1e-4)


def test_a_word_that_cannot_be_spelled_has_the_times_of_its_gap(letters: CtcTokenizer) -> None:
    log_probs = frames(letters, 1, 20)
    first, strange, last = AlignedText(log_probs, "a žžž b", letters).words(SECONDS_PER_FRAME, 1.6)
    assert (first.aligned, strange.aligned, last.aligned) == (True, False, True)
    assert (strange.start_seconds, strange.end_seconds) == (first.end_seconds, last.start_seconds)
    assert strange.confidence == 0.0


def test_what_can_be_spelled_of_a_word_is_aligned(letters: CtcTokenizer) -> None:
    log_probs = frames(letters, 2, 20)
    whole = AlignedText(log_probs, "ab c", letters).words(SECONDS_PER_FRAME, 1.6)
    (strange, _) = AlignedText(log_probs, "ažb c", letters).words(SECONDS_PER_FRAME, 1.6)
    assert strange.text == "ažb"
    assert (strange.start_seconds, strange.end_seconds) == (whole[0].start_seconds, whole[0].end_seconds)


def test_words_that_need_more_frames_than_there_are_have_none_of_their_own(letters: CtcTokenizer) -> None:
    found = AlignedText(frames(letters, 3, 2), "abc abc", letters).words(SECONDS_PER_FRAME, 0.13)
    assert [(word.start_seconds, word.end_seconds, word.aligned) for word in found] == [(0.0, 0.13, False)] * 2


def test_without_words_or_frames_there_is_nothing(letters: CtcTokenizer) -> None:
    assert AlignedText(frames(letters, 4, 5), "", letters).words(SECONDS_PER_FRAME, 0.4) == []
    (word,) = AlignedText(frames(letters, 4, 0), "a", letters).words(SECONDS_PER_FRAME, 0.0)
    assert not word.aligned


def heard_at(tokenizer: CtcTokenizer, **frame_of: int) -> torch.Tensor:
    """Log probabilities of 20 frames, sure of a word's pieces up to its frame and of the blank elsewhere."""
    sure = torch.zeros(20, dtype=torch.long)
    for letter, frame in frame_of.items():
        pieces = torch.tensor(tokenizer.encode(letter))
        sure[frame + 1 - len(pieces) : frame + 1] = pieces
    return torch.nn.functional.one_hot(sure, tokenizer.vocab_size).float().mul(12).log_softmax(-1)


def sound(*stretches: tuple[float, float], level: float = 0.1) -> np.ndarray:
    """Noise of 1.6 s in these stretches of seconds, and a thousandth of it elsewhere."""
    samples = level * np.random.default_rng(0).standard_normal(25_600)
    loud = np.zeros(25_600, bool)
    for start, end in stretches:
        loud[round(16_000 * start) : round(16_000 * end)] = True
    return np.where(loud, samples, samples / 1000).astype(np.float32)


@pytest.mark.parametrize("level", [0.9, 0.01])
def test_words_reach_to_the_pauses_around_their_frames(letters: CtcTokenizer, level: float) -> None:
    samples = sound((0.13, 0.41), (0.83, 1.2), level=level)
    first, last = AlignedText(heard_at(letters, a=3, b=12), "a b", letters).words(0.08, 1.6, loudness_of(samples))
    found = first.start_seconds, first.end_seconds, last.start_seconds, last.end_seconds
    np.testing.assert_allclose(found, (0.13, 0.41, 0.83, 1.2), atol=0.021)


def test_a_short_stop_inside_a_word_is_not_the_pause_behind_it(letters: CtcTokenizer) -> None:
    samples = sound((0.13, 0.36), (0.4, 0.5), (0.83, 1.2))
    first, _ = AlignedText(heard_at(letters, a=3, b=12), "a b", letters).words(0.08, 1.6, loudness_of(samples))
    assert first.end_seconds == pytest.approx(0.5, abs=0.021)


def test_without_a_pause_words_meet_where_it_is_quietest(letters: CtcTokenizer) -> None:
    samples = sound((0.0, 1.6))
    samples[9_000:9_800] /= 3  # at 0.5625 to 0.6125 s
    first, last = AlignedText(heard_at(letters, a=3, b=12), "a b", letters).words(0.08, 1.6, loudness_of(samples))
    assert first.end_seconds == last.start_seconds
    assert 0.56 <= first.end_seconds <= 0.62


def test_beside_a_word_without_times_frames_decide(letters: CtcTokenizer) -> None:
    loudness = loudness_of(sound((0.13, 0.41), (0.83, 1.2)))
    first, strange, last = AlignedText(heard_at(letters, a=3, b=12), "a ž b", letters).words(0.08, 1.6, loudness)
    assert (first.start_seconds, last.end_seconds) == (pytest.approx(0.13, abs=0.021), pytest.approx(1.2, abs=0.021))
    assert (strange.start_seconds, strange.end_seconds) == (first.end_seconds, last.start_seconds)
    assert (first.end_seconds, last.start_seconds) == pytest.approx((0.32, 0.88))  # the first of two pieces


def test_a_texts_confidence_is_the_mean_of_the_words_that_are_aligned(letters: CtcTokenizer) -> None:
    aligned = AlignedText(frames(letters, 5, 20), "a žžž bc", letters)
    first, _, last = aligned.words(SECONDS_PER_FRAME, 1.6)
    assert aligned.confidence == pytest.approx((first.confidence + last.confidence) / 2)
    assert AlignedText(frames(letters, 5, 20), "žžž", letters).confidence == 1.0


@pytest.mark.parametrize("with_loudness", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_times_never_decrease_and_stay_inside_the_audio(letters: CtcTokenizer, seed: int, with_loudness: bool) -> None:
    seconds = 2.43  # the last frame reaches beyond it
    loudness = 20 * np.random.default_rng(seed).standard_normal(243) if with_loudness else None
    aligned = AlignedText(frames(letters, seed, 31), "ž ab aa ž c ab ž", letters)
    found = aligned.words(SECONDS_PER_FRAME, seconds, loudness)
    times = [time for word in found for time in (word.start_seconds, word.end_seconds)]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= seconds
