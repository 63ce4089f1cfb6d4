"""Recordings of any length become transcripts: no word lost, doubted texts replaced, batches change nothing."""

import itertools
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from conftest import RATE, WORDS, speak
from tone_words import Llm, ToneRecognizer, sentences, with_pauses

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.padded import Padded
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.recognition.audio_pieces import Stretch
from speechllm_pl.recognition.ctc_greedy import greedy_ctc
from speechllm_pl.recognition.decoding_options import DecodingOptions
from speechllm_pl.recognition.guard import GuardLimits
from speechllm_pl.recognition.hypothesis import Hypothesis
from speechllm_pl.recognition.recognizer import Heard, Recognizer
from speechllm_pl.recognition.transcriber import MOST_BATCHES, Source, Transcriber
from speechllm_pl.recognition.transcript import Transcript
from speechllm_pl.training.llm_finetuning import LlmFinetuning

LONGEST = 6.0  # seconds
TONES_MAY_BE_WORDS = GuardLimits(tone_share=2.0)


@pytest.fixture
def tones() -> ToneRecognizer:
    return ToneRecognizer(longest_seconds=LONGEST)


def transcripts(recognizer: Recognizer, *recordings: np.ndarray, **options) -> list[Transcript]:
    sources = [Source(str(number), np.array_split(samples, 7)) for number, samples in enumerate(recordings)]
    with recognizer.decoding():
        found = list(Transcriber(recognizer, **{"limits": TONES_MAY_BE_WORDS, **options}).transcripts(sources))
    assert all(isinstance(each, Transcript) for each in found)
    return found  # type: ignore[return-value]


def check(transcript: Transcript, samples: np.ndarray) -> None:
    """The pieces cover the recording, and the words' times never decrease and stay inside their pieces."""
    assert transcript.seconds == pytest.approx(len(samples) / RATE)
    assert transcript.pieces[0].start_seconds == 0
    assert transcript.pieces[-1].end_seconds == transcript.seconds
    for piece, following in itertools.pairwise(transcript.pieces):
        assert piece.start_seconds < following.start_seconds <= piece.end_seconds
    times = [time for word in transcript.words for time in (word.start_seconds, word.end_seconds)]
    assert times == sorted(times)
    for piece in transcript.pieces:
        assert all(piece.start_seconds <= word.start_seconds <= piece.end_seconds for word in piece.words)


@pytest.mark.parametrize("seed", range(5))
def test_a_long_recording_has_the_text_of_its_utterances(tones: ToneRecognizer, seed: int) -> None:
    texts = sentences(30, seed)
    samples = with_pauses(texts, seed)
    (found,) = transcripts(tones, samples)
    assert found.text == " ".join(texts)
    check(found, samples)
    assert max(map(max, tones.encoded)) <= LONGEST * RATE
    assert {piece.decoded_by for piece in found.pieces} == {"llm", "silence"}


@pytest.mark.parametrize("seed", range(5))
def test_speech_without_a_pause_is_neither_doubled_nor_lost(tones: ToneRecognizer, seed: int) -> None:
    texts = sentences(40, seed)
    samples = speak(" ".join(texts))
    longest = float(np.random.default_rng(seed).uniform(3.0, 6.0))  # pieces do not begin with the frames of others
    (found,) = transcripts(tones, samples, longest_seconds=longest)
    assert len(samples) > 5 * longest * RATE
    assert found.text == " ".join(texts)
    check(found, samples)


@pytest.mark.parametrize("pause", [0.45, 1.2])
def test_a_pause_that_only_the_second_of_two_pieces_finds_doubles_and_loses_nothing(
    tones: ToneRecognizer, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    """The first window is from 0 to 6 s, the next one begins at 4.5 s, and the pause is between 3.5 and 7 s."""
    find = Transcriber.pauses
    searched: list[int] = []

    def deaf_at_first(self: Transcriber, samples: np.ndarray, log_probs: torch.Tensor) -> list[Stretch]:
        searched.append(len(samples))
        return find(self, samples, log_probs) if len(searched) > 1 else []

    monkeypatch.setattr(Transcriber, "pauses", deaf_at_first)
    divided = 0
    for words in range(10, 18):  # each of 0.35 s
        said = " ".join(sentences(20, words)).split()[:35]
        for offset in (0.0, 0.1, 0.2):
            searched.clear()
            parts = [np.zeros(round(offset * RATE)), speak(" ".join(said[:words])), np.zeros(round(pause * RATE))]
            samples = np.concatenate([*parts, speak(" ".join(said[words:]))]).astype(np.float32)
            (found,) = transcripts(tones, samples)
            assert found.text.split() == said, (words, offset)
            check(found, samples)
            divided += found.pieces[1].end_seconds < LONGEST
    assert divided > 5


def test_times_are_those_of_the_tones(tones: ToneRecognizer) -> None:
    texts = sentences(20, 1)
    samples = with_pauses(texts, 1)
    (found,) = transcripts(tones, samples)
    starts, at = [], 0
    sound = np.abs(samples) > 0
    for _ in found.words:
        at += int(np.argmax(sound[at:]))  # its first sample but one, which is zero
        starts.append(at / RATE)
        at += int(0.3 * RATE) + 10
    errors = [abs(word.start_seconds - start) for word, start in zip(found.words, starts, strict=True)]
    assert max(errors) <= 0.05
    assert all(word.confidence > 0.9 for word in found.words)


def test_a_recording_within_the_limit_and_without_long_pauses_is_one_piece(tones: ToneRecognizer) -> None:
    samples = np.concatenate([speak("one two"), np.zeros(round(0.2 * RATE), np.float32), speak("three")])
    (found,) = transcripts(tones, samples)
    assert [piece.text for piece in found.pieces] == ["one two three"]


@pytest.mark.parametrize("seconds", [1.0, 2.0])
def test_the_llm_is_given_no_long_silence_of_a_short_recording(tones: ToneRecognizer, seconds: float) -> None:
    given: list[torch.Tensor] = []

    class Listening(ToneRecognizer):
        def write(self, heard: Heard, *others) -> list[Hypothesis]:
            assert heard.audio is not None
            given.extend(row[:count].flatten() for row, count in zip(heard.audio[0], heard.frames, strict=True))
            return super().write(heard, *others)

    silence = np.zeros(round(seconds * RATE), np.float32)
    samples = np.concatenate([silence, speak("one two"), silence, speak("three")])
    (found,) = transcripts(Listening(longest_seconds=LONGEST), samples)
    assert [piece.text for piece in found.pieces] == ["", "one two", "", "three"]
    for sound in given:
        heard = sound.nonzero()
        assert max(int(heard[0]), len(sound) - int(heard[-1])) < 0.3 * RATE
    assert len(given) == 2
    check(found, samples)


@pytest.mark.parametrize("batch_seconds", [1.0, 7.0, 500.0])
def test_neither_batches_nor_order_change_a_transcript(tones: ToneRecognizer, batch_seconds: float) -> None:
    recordings = [with_pauses(sentences(1 + 5 * (seed % 3), seed), seed) for seed in range(12)]
    alone = [transcripts(tones, samples)[0] for samples in recordings]
    assert transcripts(tones, *recordings, batch_seconds=batch_seconds) == alone
    assert transcripts(tones, *recordings[::-1], batch_seconds=batch_seconds) == alone[::-1]


def test_batches_hold_pieces_of_like_length_and_no_more_than_was_said(tones: ToneRecognizer) -> None:
    transcripts(tones, *[speak(text) for text in sentences(200, 0)], batch_seconds=20.0)
    words = [[len(text.split()) for text in batch] for batch in tones.batches]
    assert all((0.05 + 0.35 * max(batch)) * len(batch) <= 20.0 for batch in words)
    assert len(words[0]) < 20  # the first are decoded at once
    assert sum(max(batch) * len(batch) for batch in words) <= 1.15 * sum(map(sum, words))


def test_texts_are_there_before_all_is_read(tones: ToneRecognizer) -> None:
    read = 0

    def sources() -> Iterator[Source]:
        nonlocal read
        for text in sentences(100, 0):
            read += 1
            yield Source(text, [speak(text)])

    first = next(iter(Transcriber(tones, batch_seconds=4.0, limits=TONES_MAY_BE_WORDS).transcripts(sources())))
    assert isinstance(first, Transcript)
    assert read <= 10


def test_what_is_known_is_given_before_the_next_recording_is_read(tones: ToneRecognizer) -> None:
    """Silence, an error and nothing at all wait for no batch, unless a recording before them does."""
    given: list[str] = []
    seen: list[list[str]] = []

    def torn() -> Iterator[np.ndarray]:
        yield speak("one")
        raise UserError("torn")

    def sources() -> Iterator[Source]:
        silence = np.zeros(2 * RATE, np.float32)
        for name, chunks in (
            ("silence", [silence]),
            ("torn", torn()),
            ("nothing", []),
            ("speech", [speak("two")]),
            ("later silence", [silence]),
        ):
            yield Source(name, chunks)
            seen.append([*given])

    for found in Transcriber(tones, limits=TONES_MAY_BE_WORDS).transcripts(sources()):
        given.append(str(found) if isinstance(found, UserError) else found.text)
    assert seen == [[""], ["", "torn"], ["", "torn", ""], ["", "torn", ""], ["", "torn", ""]]
    assert given == ["", "torn", "", "two", ""]


@pytest.mark.parametrize("batch_seconds", [1.0, 500.0])
def test_only_what_was_cut_is_encoded_twice(tones: ToneRecognizer, batch_seconds: float) -> None:
    """The search for pauses encodes every recording; its frames are decoded where it is one piece."""
    short = [speak(text) for text in sentences(12, 0)]
    alone = transcripts(tones, *short, batch_seconds=batch_seconds)
    assert tones.encoded == [[len(samples)] for samples in short]
    tones.encoded.clear()
    cut = np.concatenate([speak("one two"), np.zeros(RATE, np.float32), speak("three")])
    whole = speak(" ".join(sentences(1, 1, most_words=6) * 5))  # without a pause: its windows are pieces
    found = transcripts(tones, *short, cut, whole, batch_seconds=batch_seconds)
    assert found[: len(short)] == alone
    assert [piece.text for piece in found[-2].pieces] == ["one two", "", "three"]
    pieces = [round((p.end_seconds - p.start_seconds) * RATE) for p in found[-1].pieces]
    again = [round((p.end_seconds - p.start_seconds) * RATE) for p in found[-2].pieces if p.text]
    once = [*map(len, short), len(cut), *pieces]
    assert sorted(length for batch in tones.encoded for length in batch) == sorted([*once, *again])


def test_memory_does_not_grow_with_the_length(tones: ToneRecognizer) -> None:
    part = with_pauses(sentences(8, 0), 0, most=1.0)
    transcriber = Transcriber(tones, batch_seconds=2.0, limits=TONES_MAY_BE_WORDS)
    peaks, times = [], 4 * MOST_BATCHES * 2 * RATE // len(part)
    for count in (times, 5 * times):
        tracemalloc.start()
        (found,) = transcriber.transcripts([Source("long", itertools.repeat(part, count))])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert isinstance(found, Transcript)
        assert found.seconds == pytest.approx(count * len(part) / RATE)
    added = 1000 * len(found.words) * 4 // 5  # words and pieces are kept: a thousand bytes a word
    assert peaks[1] <= peaks[0] + added
    assert added < 4 * count * part.nbytes / 10


# silence


SILENT = {
    "silence": np.zeros(60 * RATE, np.float32),
    "noise": 0.1 * np.random.default_rng(0).standard_normal(60 * RATE).astype(np.float32),
    "a tone that is no word": np.sin(2 * np.pi * 1000 * np.arange(60 * RATE) / RATE).astype(np.float32),
}


@pytest.mark.parametrize("kind", SILENT)
@pytest.mark.parametrize("seconds", [3, 60])
def test_where_the_ctc_head_hears_nothing_nothing_is_said(kind: str, seconds: int) -> None:
    recognizer = ToneRecognizer(lambda *_: Hypothesis("thank you for watching"), LONGEST)
    samples = SILENT[kind][: seconds * RATE]
    (found,) = transcripts(recognizer, samples)
    assert (found.text, found.words, found.decoded_by) == ("", (), "silence")
    assert recognizer.batches == []  # the LLM is not even asked
    check(found, samples)


def test_tones_are_no_words_even_if_the_ctc_head_hears_some(tones: ToneRecognizer) -> None:
    samples = speak(" ".join(WORDS))
    (found,) = transcripts(tones, samples)
    assert found.text == " ".join(WORDS)
    (found,) = transcripts(tones, samples, limits=GuardLimits())
    assert (found.text, found.decoded_by) == ("", "silence")


class Imaginative(ToneRecognizer):
    """Hears a word in every tenth frame, whatever the sound."""

    def heard_in(self, encoded: Padded, *options: DecodingOptions) -> Heard:
        heard = super().heard_in(encoded, *options)
        heard.logits[:, ::10, self.classes[0]] = 20.0
        return heard._replace(hypotheses=greedy_ctc(heard.logits, heard.frames, self.tokenizer))


def test_steady_noise_is_silence_even_if_the_ctc_head_hears_words_at_short_intervals() -> None:
    recognizer = Imaginative(longest_seconds=LONGEST)
    (found,) = transcripts(recognizer, SILENT["noise"], limits=None)
    assert "one" in found.text
    assert max(piece.end_seconds - piece.start_seconds for piece in found.pieces) < 1
    (found,) = transcripts(recognizer, SILENT["noise"], limits=GuardLimits())
    assert (found.text, found.decoded_by) == ("", "silence")


def test_in_noise_with_a_bang_there_are_no_words_but_where_it_is() -> None:
    noise = SILENT["noise"][: 5 * RATE].copy()
    noise[2 * RATE : 2 * RATE + 3000] *= 10
    (found,) = transcripts(Imaginative(longest_seconds=LONGEST), noise, limits=GuardLimits())
    assert all(1.0 < word.start_seconds < 3.0 for word in found.words)
    check(found, noise)


def test_in_real_noise_next_to_nothing_is_taken_for_speech(speechllm_data: Path) -> None:
    """Whatever the CTC head hears: the LLM is asked about a small share of the pieces of vacuum cleaners and others."""
    asked = {}
    for limits in (None, GuardLimits()):
        recognizer = Imaginative(longest_seconds=LONGEST)
        noises = [soundfile.read(path, dtype="float32")[0] for path in sorted((speechllm_data / "noise").glob("*.wav"))]
        found = transcripts(recognizer, *noises, limits=limits)
        asked[limits] = sum(piece.decoded_by != "silence" for each in found for piece in each.pieces)
    assert asked[GuardLimits()] < 0.2 * asked[None]


@pytest.mark.parametrize("samples", [np.zeros(0, np.float32), np.zeros(1, np.float32)])
def test_next_to_nothing_is_a_transcript_without_words(tones: ToneRecognizer, samples: np.ndarray) -> None:
    (found,) = transcripts(tones, samples)
    assert found.text == ""
    assert found.seconds == len(samples) / RATE


# the guard

HEARD = "one two three four five six"


def decided(llm: Llm, **options) -> tuple[str, str, str]:
    """Text of one piece, by what it was decoded, and why."""
    (found,) = transcripts(ToneRecognizer(llm), speak(HEARD), **options)
    (piece,) = found.pieces
    assert [word.text for word in piece.words] == piece.text.split()
    return piece.text, piece.decoded_by, piece.remark


@pytest.mark.parametrize(
    ("written", "why"),
    [
        (Hypothesis("one " * 30, truncated=True, looped=True), "loop"),
        (Hypothesis("two three", truncated=True), "did not end"),
        (Hypothesis("yes"), "too short"),
        (Hypothesis(" ".join(["thank you for watching"] * 3)), "too long"),
        (Hypothesis("subtitles by a volunteer"), "little in common"),
    ],
)
def test_a_doubted_text_is_asked_for_again_and_then_the_ctc_head_is_believed(written: Hypothesis, why: str) -> None:
    def stubborn(heard: str, options: DecodingOptions) -> Hypothesis:
        return written

    def penitent(heard: str, options: DecodingOptions) -> Hypothesis:
        return written if options.decoder == "greedy" else Hypothesis(heard.replace("two", "too"))

    text, decoded_by, remark = decided(stubborn)
    assert (text, decoded_by) == (HEARD, "ctc")
    assert why in remark
    text, decoded_by, remark = decided(penitent)
    assert (text, decoded_by) == (HEARD.replace("two", "too"), "llm-retried")
    assert why in remark
    text, decoded_by, remark = decided(stubborn, limits=None)
    assert (text, decoded_by) == (written.text, "llm")
    assert bool(remark) == written.truncated


@pytest.mark.parametrize("cut", [0.04, 0.12, 0.2, 0.28])
@pytest.mark.parametrize(
    "invented", ["five six seven eight", "thank you for watching this", "four four four four four"]
)
def test_an_invented_continuation_of_a_word_cut_off_is_not_believed(cut: float, invented: str) -> None:
    """The recording ends so many seconds into its last word, and the LLM goes on."""

    def fluent(heard: str, options: DecodingOptions) -> Hypothesis:
        return Hypothesis(f"{heard} {invented}")

    samples = speak("one two three four")[: round((0.05 + 3 * 0.35 + cut) * RATE)]
    (found,) = transcripts(ToneRecognizer(fluent), samples)
    assert found.text in ("one two three", "one two three four")
    assert found.decoded_by == "ctc"
    assert found.pieces[0].remark.endswith(("too long for what the CTC head heard", "behind what the CTC head heard"))
    (found,) = transcripts(ToneRecognizer(), samples)  # nothing is wrong with a text that ends there
    assert found.text in ("one two three", "one two three four")
    assert (found.decoded_by, found.pieces[0].remark) == ("llm", "")


@pytest.mark.parametrize("word", WORDS)
def test_a_short_word_is_believed_if_the_ctc_head_heard_it(word: str) -> None:
    """However short it is, another is not."""
    (found,) = transcripts(ToneRecognizer(), speak(word))
    assert (found.text, found.decoded_by) == (word, "llm")
    for other in WORDS:
        (found,) = transcripts(ToneRecognizer(lambda *_, other=other: Hypothesis(other)), speak(word))
        assert (found.text, found.decoded_by) == (word, "llm" if other == word else "ctc")


class Unsure(ToneRecognizer):
    """Takes a six for a six with the given probability, and else for nothing."""

    probability = 0.4

    def heard_in(self, encoded: Padded, *options: DecodingOptions) -> Heard:
        heard = super().heard_in(encoded, *options)
        six = self.classes[WORDS.index("six")]
        frames = heard.logits.argmax(-1) == six
        shares = torch.full(heard.logits.shape[-1:], (1 - self.probability) / (heard.logits.shape[-1] - 1))
        shares[six] = self.probability
        heard.logits[frames] = shares.log()
        return heard._replace(hypotheses=greedy_ctc(heard.logits, heard.frames, self.tokenizer))


@pytest.mark.parametrize("stage", ["ctc", "llm"])
def test_of_what_the_ctc_head_is_unsure_nothing_is_written(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    class Stage(Unsure):
        def heard_in(self, encoded: Padded, *options: DecodingOptions) -> Heard:
            heard = super().heard_in(encoded, *options)
            return heard if stage == "llm" else heard._replace(audio=None)

    samples = [speak("six"), speak("five six five four"), speak("seven")]
    recognizer = Stage(longest_seconds=LONGEST)
    unsure, mostly_sure, sure = transcripts(recognizer, *samples)
    assert (unsure.text, unsure.words, unsure.decoded_by) == ("", (), "silence")
    assert "unsure" in unsure.pieces[0].remark
    assert [each.text for each in (mostly_sure, sure)] == ["five six five four", "seven"]
    assert "six" not in [text for batch in recognizer.batches for text in batch]  # the LLM is not asked
    assert transcripts(recognizer, *samples, limits=None)[0].text == "six"
    monkeypatch.setattr(Unsure, "probability", 0.6)
    assert transcripts(recognizer, *samples)[0].text == "six"


@pytest.mark.parametrize("limits", [TONES_MAY_BE_WORDS, None])
def test_a_text_is_aligned_once_for_guard_and_times(monkeypatch: pytest.MonkeyPatch, limits: GuardLimits) -> None:
    align, aligned = torchaudio.functional.forced_align, []

    def counted(log_probs: torch.Tensor, targets: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor]:
        aligned.append(targets.numel())
        return align(log_probs, targets, **options)

    monkeypatch.setattr(torchaudio.functional, "forced_align", counted)
    texts = sentences(10, 0)
    found = transcripts(ToneRecognizer(), *map(speak, texts), limits=limits)
    assert [each.text for each in found] == texts
    assert sorted(aligned) == sorted(len(text.split()) for text in texts)  # every word is a piece of the tokenizer
    aligned.clear()
    others = {"greedy": "eight seven eight seven eight seven", "beam": "seven eight seven eight seven eight"}
    written = decided(lambda _, options: Hypothesis(others[options.decoder]), limits=limits)
    assert written[0] == (HEARD if limits else others["greedy"])
    assert len(aligned) == (3 if limits else 1)  # those that are not believed are aligned for the guard


def test_only_doubted_texts_are_asked_for_again() -> None:
    def forgetful(heard: str, options: DecodingOptions) -> Hypothesis:
        forgotten = "six" in heard and options.decoder == "greedy"
        return Hypothesis("" if forgotten else heard)

    recognizer = ToneRecognizer(forgetful)
    texts = ["one two three four five", HEARD, "two one four three five"]
    found = transcripts(recognizer, *map(speak, texts))
    assert [each.text for each in found] == texts
    assert [each.decoded_by for each in found] == ["llm", "llm-retried", "llm"]
    assert recognizer.batches[1:] == [[HEARD]]


def test_a_text_that_the_ctc_head_found_is_said_to_be_its() -> None:
    """Given a CTC weight, its text is among those that are chosen from."""

    def joined(heard: str, options: DecodingOptions) -> Hypothesis:
        return Hypothesis(heard, by_ctc=options.ctc_weight > 0)

    assert decided(joined)[:2] == (HEARD, "llm")
    assert decided(joined, options=DecodingOptions(decoder="beam", ctc_weight=0.3))[:2] == (HEARD, "ctc")


def test_what_else_a_search_found_stands_beside_its_text() -> None:
    def several(heard: str, options: DecodingOptions) -> Hypothesis:
        texts = {heard: -1.0, heard.replace("two", "too"): -2.5}
        found = tuple(
            Hypothesis(text, log_probability=score, ctc_log_probability=-3.0) for text, score in texts.items()
        )
        return replace(found[0], alternatives=found)

    (found,) = transcripts(ToneRecognizer(several), speak(HEARD))
    best, other = found.pieces[0].alternatives
    assert (best.text, best.log_probability, best.ctc_log_probability) == (found.text, -1.0, -3.0)
    assert (other.text, other.log_probability) == (HEARD.replace("two", "too"), -2.5)
    (found,) = transcripts(ToneRecognizer(), speak(HEARD))  # a search that finds one text
    assert found.pieces[0].alternatives == ()


def test_a_cap_that_was_asked_for_is_no_reason_to_doubt() -> None:
    def capped(heard: str, options: DecodingOptions) -> Hypothesis:
        return Hypothesis("one two", truncated=True, num_tokens=2)

    text, decoded_by, remark = decided(capped, options=DecodingOptions(max_new_tokens=2))
    assert (text, decoded_by) == ("one two", "llm")
    assert "cap" in remark
    assert decided(capped, options=DecodingOptions(max_new_tokens=3))[1] == "ctc"


# errors


def test_a_recording_with_an_error_has_it_in_its_place(tones: ToneRecognizer) -> None:
    def broken() -> Iterator[np.ndarray]:
        for _ in range(20):
            yield speak("one two")
        raise UserError("the tape is torn")

    sources = [Source("a", [speak("one")]), Source("b", broken()), Source("c", [speak("two")])]
    first, error, last = Transcriber(tones, limits=TONES_MAY_BE_WORDS).transcripts(sources)
    assert isinstance(first, Transcript)
    assert isinstance(last, Transcript)
    assert (first.text, str(error), last.text) == ("one", "the tape is torn", "two")


def test_text_from_logits_that_are_not_finite_is_an_error() -> None:
    def broken(heard: str, options: DecodingOptions) -> Hypothesis:
        return Hypothesis(heard, log_probability=float("nan") if "six" in heard else -1.0)

    sources = [Source(f"file {number}", [speak(word)]) for number, word in enumerate(("five", "six", "seven"))]
    first, error, last = Transcriber(ToneRecognizer(broken), limits=TONES_MAY_BE_WORDS).transcripts(sources)
    assert isinstance(error, UserError)
    assert "the llm logits of 1 recordings are not finite" in str(error)
    assert "file 1" in str(error)
    assert isinstance(first, Transcript)
    assert isinstance(last, Transcript)


class Overflowing(ToneRecognizer):
    """Has logits that are not finite for all that has a four in it, as half precision may have."""

    def heard_in(self, encoded: Padded, *options: DecodingOptions) -> Heard:
        heard = super().heard_in(encoded, *options)
        four = self.classes[WORDS.index("four")]
        heard.logits[(heard.logits.argmax(-1) == four).any(-1)] = float("nan")
        return heard._replace(hypotheses=greedy_ctc(heard.logits, heard.frames, self.tokenizer))


@pytest.mark.parametrize("others", [0, 30])
def test_a_ctc_head_that_is_not_finite_is_an_error_and_no_silence(others: int) -> None:
    text = " ".join(["one two three"] * others)
    sources = [Source("fine", [speak(f"one {text}")]), Source("broken", [speak(f"{text} four")])]
    fine, error = Transcriber(Overflowing(longest_seconds=LONGEST), limits=TONES_MAY_BE_WORDS).transcripts(sources)
    assert isinstance(fine, Transcript)
    assert fine.text == f"one {text}".strip()
    assert isinstance(error, UserError)
    assert "the ctc logits of 1 recordings are not finite" in str(error)
    assert "broken" in str(error)


# a model


def test_without_the_guard_a_model_says_what_it_says_alone(
    ctc_tokenizer: CtcTokenizer, llm_folder: Path, small_encoder: ConformerConfig
) -> None:
    torch.manual_seed(3)
    module = LlmFinetuning(ctc_tokenizer, llm=str(llm_folder), encoder=small_encoder)
    module.configure_model()
    recognizer = module.recognizer
    recognizer.model.eval()
    recordings = [speak(text) for text in sentences(9, 4)]
    alone = []
    with recognizer.decoding():
        for samples in recordings:
            found = recognizer.transcribe(torch.from_numpy(samples)[None], torch.tensor([len(samples)]), ["und"])
            alone.append(found["llm"][0].text)
    assert len({*alone}) > 1
    found = transcripts(recognizer, *recordings, limits=None, longest_seconds=30.0)
    assert [each.text for each in found] == alone
    guarded = transcripts(recognizer, *recordings, longest_seconds=30.0)
    assert {each.decoded_by for each in guarded} <= {"ctc", "silence", "llm-retried"}  # it has learned nothing


@pytest.mark.parametrize(
    ("trained", "given", "told"),
    [
        (4.0, None, ""),
        (4.0, 4.0, ""),
        (4.0, 4.5, "max_seconds 4.5 is longer than any utterance of the training (4.0 s)"),
        (None, 4.5, ""),
        (None, None, "so pieces have up to 30 s: give max_seconds"),
    ],
)
def test_a_longest_piece_that_may_be_too_long_is_told(caplog, trained: float, given: float, told: str) -> None:
    Transcriber(ToneRecognizer(longest_seconds=trained), longest_seconds=given)
    assert told in caplog.text
    assert len(caplog.records) == bool(told)


def test_a_piece_is_as_long_as_the_trainings_longest_utterance_unless_another_length_is_given(
    tones: ToneRecognizer,
) -> None:
    samples = speak(" ".join(WORDS * 5))
    for options, longest in (({}, LONGEST), ({"longest_seconds": 4.0}, 4.0)):
        (found,) = transcripts(tones, samples, **options)
        assert max(piece.end_seconds - piece.start_seconds for piece in found.pieces) == pytest.approx(longest)
    tones.longest_seconds = None
    (found,) = transcripts(tones, samples)
    assert len(found.pieces) == 1
