"""Sound that comes bit by bit: what is final stays, is what a file gives, and does not depend on how sound comes."""

import contextlib
import itertools
import tracemalloc
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from conftest import RATE, speak
from tone_words import ToneRecognizer, sentences, with_pauses

from speechllm_pl.core.errors import UserError
from speechllm_pl.recognition.audio_pieces import Stretch
from speechllm_pl.recognition.ctc_greedy import greedy_ctc
from speechllm_pl.recognition.guard import GuardLimits
from speechllm_pl.recognition.hypothesis import Hypothesis
from speechllm_pl.recognition.recognizer import Heard
from speechllm_pl.recognition.streaming import AHEAD_SECONDS, HOP_SECONDS, stream
from speechllm_pl.recognition.transcriber import Source, Transcriber
from speechllm_pl.recognition.transcript import Piece, Transcript
from speechllm_pl.recognition.word_times import Word

LONGEST = 6.0  # seconds
TONES_MAY_BE_WORDS = GuardLimits(tone_share=2.0)


def chunks(samples: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Samples in parts of 1 to 16,000."""
    random, at = np.random.default_rng(seed), 0
    while at < len(samples):
        size = int(2 ** random.uniform(0, 14))
        yield samples[at : at + size]
        at += size


def transcriber(
    recognizer: ToneRecognizer | None = None, limits: GuardLimits | None = TONES_MAY_BE_WORDS
) -> Transcriber:
    return Transcriber(recognizer or ToneRecognizer(longest_seconds=LONGEST), limits=limits)


def streamed(given: Transcriber, sound: Iterable[np.ndarray]) -> tuple[list[Word], list[Piece]]:
    found = list(stream(sound, given))
    return [each for each in found if isinstance(each, Word)], [each for each in found if isinstance(each, Piece)]


def text(words: Iterable[Word | Piece]) -> str:
    return " ".join(word.text for word in words if word.text)


@pytest.mark.parametrize("seed", range(5))
def test_words_and_pieces_have_the_text_of_the_sentences(seed: int) -> None:
    texts = sentences(15, seed)
    samples = with_pauses(texts, seed)
    words, pieces = streamed(transcriber(), chunks(samples, seed))
    assert text(words) == text(pieces) == " ".join(texts)
    assert all(piece.decoded_by == "llm" for piece in pieces)
    assert len(pieces) >= 8


@pytest.mark.parametrize("seed", range(5))
def test_speech_without_a_pause_is_neither_doubled_nor_lost(seed: int) -> None:
    texts = sentences(25, seed)
    words, pieces = streamed(transcriber(), chunks(speak(" ".join(texts)), seed))
    assert text(words) == text(pieces) == " ".join(texts)
    assert max(piece.end_seconds - piece.start_seconds for piece in pieces) <= LONGEST
    assert len(pieces) > 3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pauses", [True, False])
def test_how_the_sound_comes_changes_nothing(seed: int, pauses: bool) -> None:
    texts = sentences(10, seed)
    samples = with_pauses(texts, seed) if pauses else speak(" ".join(texts))
    whole = list(stream([samples], transcriber()))
    for number in range(2):
        assert list(stream(chunks(samples, number), transcriber())) == whole
    assert list(stream(itertools.chain([samples[:0]], np.array_split(samples, 1000)), transcriber())) == whole


def given_out(samples: np.ndarray) -> list[Word | Piece]:
    """What is final while the sound goes on."""

    def that_breaks_off() -> Iterator[np.ndarray]:
        yield samples
        raise EOFError

    found: list[Word | Piece] = []
    with contextlib.suppress(EOFError):
        for each in stream(that_breaks_off(), transcriber()):
            found.append(each)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_what_was_given_out_never_changes(seed: int) -> None:
    samples = with_pauses(sentences(8, seed), seed)
    whole = list(stream([samples], transcriber()))
    for length in np.random.default_rng(seed).integers(0, len(samples), 12):
        found = given_out(samples[:length])
        assert found == whole[: len(found)]
    assert len(given_out(samples)) >= len(whole) - 10


def decoded(given: Transcriber, samples: np.ndarray) -> Transcript:
    (found,) = given.transcripts([Source("piece", [samples])])
    assert isinstance(found, Transcript)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_the_text_of_a_piece_is_that_of_its_sound_as_a_file(seed: int) -> None:
    def fanciful(heard: str, options) -> Hypothesis:
        return Hypothesis(heard.replace("two", "too").replace("four eight", "forty"))

    samples = with_pauses(sentences(20, seed), seed)
    given = transcriber(ToneRecognizer(fanciful, LONGEST))
    _, pieces = streamed(given, chunks(samples, seed))
    assert "too" in text(pieces)
    for piece in pieces:
        part = samples[round(piece.start_seconds * RATE) : round(piece.end_seconds * RATE)]
        assert decoded(given, part).text == piece.text


def test_a_piece_comes_when_its_pause_is_long_and_its_words_before_it() -> None:
    samples = np.concatenate([speak("one two three"), np.zeros(2 * RATE, np.float32), speak("four five")])
    read = 0

    def coming() -> Iterator[np.ndarray]:
        nonlocal read
        for part in np.array_split(samples, 500):
            read += len(part)
            yield part

    came = [(each.text, type(each), read / RATE) for each in stream(coming(), transcriber())]
    assert [(found, kind) for found, kind, _ in came] == [
        *[(word, Word) for word in ("one", "two", "three")],
        ("one two three", Piece),
        *[(word, Word) for word in ("four", "five")],
        ("four five", Piece),
    ]
    ends = [0.35, 0.7, 1.05, 1.05]  # seconds, of the tones
    late = [seconds - end for (_, _, seconds), end in zip(came, ends, strict=False)]
    assert max(late[:3]) <= AHEAD_SECONDS + 2 * HOP_SECONDS + 0.1
    assert late[3] <= 0.4 + HOP_SECONDS + 0.1


class Wavering(ToneRecognizer):
    """Takes the newest sound for another word while it goes on, for a third of a second."""

    def heard_in(self, encoded, *options) -> Heard:
        heard = super().heard_in(encoded, *options)
        newest = heard.logits[:, -4:]
        if newest[:, -1].argmax() > 0:
            newest[newest.argmax(-1) > 0] = newest[newest.argmax(-1) > 0].roll(1, -1)
        return heard


@pytest.mark.parametrize("pause", [0.45, 1.2])
@pytest.mark.parametrize("count", range(10, 16))
def test_a_pause_that_is_found_only_behind_the_overlap_doubles_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, pause: float, count: int
) -> None:
    """The first piece is from 0 to 5.76 s, the next one begins at 4.26 s, and the pause is between 3.5 and 6.7 s."""
    find, longest, overlapped = Transcriber.pauses, [0], []

    def deaf_at_first(self: Transcriber, samples: np.ndarray, log_probs: torch.Tensor) -> list[Stretch]:
        """Finds none up to the first overlap, behind which the running piece is shorter."""
        if len(samples) < longest[-1]:
            overlapped.append(len(samples))
        longest.append(len(samples))
        return find(self, samples, log_probs) if overlapped else []

    monkeypatch.setattr(Transcriber, "pauses", deaf_at_first)
    said = " ".join(sentences(20, count)).split()[:35]
    for offset in (0.0, 0.1, 0.2):
        del longest[1:], overlapped[:]
        parts = [np.zeros(round(offset * RATE)), speak(" ".join(said[:count])), np.zeros(round(pause * RATE))]
        samples = np.concatenate([*parts, speak(" ".join(said[count:]))]).astype(np.float32)
        words, pieces = streamed(transcriber(), chunks(samples, count))
        assert text(words).split() == said, offset
        assert text(pieces).split() == said, offset
        for given in (words, [word for piece in pieces for word in piece.words]):
            times = [time for word in given for time in (word.start_seconds, word.end_seconds)]
            assert times == sorted(times), offset


@pytest.mark.parametrize("pause", [0.5, 0.7, 0.9])
def test_words_that_go_on_for_long_behind_a_pause_come_once(pause: float) -> None:
    """The pause goes on when it ends its piece, and what is left of it is cut off together with no word."""
    said = " ".join(sentences(30, 7)).split()[:40]
    samples = [speak(" ".join(said[:5])), np.zeros(round(pause * RATE), np.float32), speak(" ".join(said[5:]))]
    words, pieces = streamed(transcriber(), [np.concatenate(samples)])
    assert text(words).split() == text(pieces).split() == said


class Drifting(ToneRecognizer):
    """Hears words up to two frames late, each encoding another way."""

    def heard_in(self, encoded, *options) -> Heard:
        heard = super().heard_in(encoded, *options)
        late = len(self.encoded) * 7 % 3
        logits = torch.cat([heard.logits[:, :1].expand(-1, late, -1), heard.logits], 1)[:, : heard.logits.shape[1]]
        return heard._replace(logits=logits, hypotheses=greedy_ctc(logits, heard.frames, self.tokenizer))


@pytest.mark.parametrize("seed", range(4))
def test_times_of_words_never_decrease_though_encodings_differ(seed: int) -> None:
    samples = speak(" ".join(sentences(20, seed)))
    words, pieces = streamed(transcriber(Drifting(longest_seconds=LONGEST)), chunks(samples, seed))
    for given in (words, [word for piece in pieces for word in piece.words]):
        times = [time for word in given for time in (word.start_seconds, word.end_seconds)]
        assert len(times) > 40
        assert times == sorted(times)


def test_words_that_still_change_are_not_given_out() -> None:
    texts = sentences(20, 0)
    words, _ = streamed(transcriber(Wavering(longest_seconds=LONGEST)), [with_pauses(texts, 0, least=1.0)])
    assert text(words) == " ".join(texts)


@pytest.mark.parametrize("kind", ["silence", "noise"])
def test_nothing_is_heard_where_nothing_is_said(kind: str) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(60 * RATE).astype(np.float32)
    recognizer = ToneRecognizer(lambda *_: Hypothesis("thank you for watching"), LONGEST)
    assert list(stream([noise if kind == "noise" else 0 * noise], transcriber(recognizer, GuardLimits()))) == []
    assert recognizer.batches == []


@pytest.mark.parametrize("samples", [np.zeros(0, np.float32), np.zeros(1, np.float32)])
def test_next_to_nothing_has_no_words(samples: np.ndarray) -> None:
    assert list(stream([samples], transcriber())) == []


def test_no_words_at_all_in_no_chunks() -> None:
    assert list(stream([], transcriber())) == []


def test_neither_memory_nor_encodings_grow_with_the_length() -> None:
    part = with_pauses(sentences(4, 0), 0, most=1.0)
    part = part[: len(part) // round(HOP_SECONDS * RATE) * round(HOP_SECONDS * RATE)]  # the same steps each time
    peaks, recognizer = [], ToneRecognizer(longest_seconds=LONGEST)
    for count in (3, 12):
        recognizer.batches.clear()
        tracemalloc.start()
        for _ in stream(itertools.repeat(part, count), transcriber(recognizer)):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] <= 1.05 * peaks[0]
    assert max(map(max, recognizer.encoded)) <= LONGEST * RATE


def test_logits_that_are_not_finite_are_an_error_that_names_the_time() -> None:
    recognizer = ToneRecognizer(lambda heard, _: Hypothesis(heard, log_probability=float("nan")), LONGEST)
    with pytest.raises(UserError, match=r"not finite.*0\.0 to 1\.2 s"):
        list(stream([speak("one two three"), np.zeros(RATE, np.float32)], transcriber(recognizer)))


def test_a_ctc_head_that_is_not_finite_is_an_error_and_no_silence() -> None:
    class Broken(ToneRecognizer):
        def heard_in(self, encoded, *options) -> Heard:
            heard = super().heard_in(encoded, *options)
            logits = torch.full_like(heard.logits, float("nan"))
            return heard._replace(logits=logits, hypotheses=greedy_ctc(logits, heard.frames, self.tokenizer))

    with pytest.raises(UserError, match=r"ctc logits .* not finite.*0\.0 to 0\.3 s"):
        list(stream([speak("one two three")], transcriber(Broken(longest_seconds=LONGEST))))
