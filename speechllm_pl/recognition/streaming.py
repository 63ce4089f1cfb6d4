"""Transcribe sound while it is heard: words of the CTC head at once, the final text where a pause ends a piece.

The encoder sees a whole utterance, so the running piece is encoded anew every `HOP_SECONDS`, from its beginning to what
was heard last. A word of the CTC head is final when two encodings in succession have it and `AHEAD_SECONDS` were heard
behind it, or when its piece ends; a piece's text is final when it is decoded. What is final is never changed: what
follows begins behind it. How the sound arrives changes neither words nor texts.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile

import numpy as np
import torch
from torch.nn import functional as F

from speechllm_pl.core.audio.units import samples_in, seconds_of
from speechllm_pl.core.ctc_tokenizer import BLANK, ctc_collapse
from speechllm_pl.core.languages import UNKNOWN_LANGUAGE
from speechllm_pl.recognition.audio_pieces import MARGIN_SECONDS, QUIET, AudioPiece, Rest, Stretch
from speechllm_pl.recognition.seams import AGREE_SECONDS
from speechllm_pl.recognition.transcriber import Transcriber
from speechllm_pl.recognition.transcript import Piece
from speechllm_pl.recognition.word_times import AlignedText, Word

HOP_SECONDS = 0.32
"""From one encoding of the running piece to the next."""

AHEAD_SECONDS = 0.48
"""Sound behind a word before it may be final: the encoder looks ahead."""


def stream(
    chunks: Iterable[np.ndarray], transcriber: Transcriber, language: str = UNKNOWN_LANGUAGE
) -> Iterator[Word | Piece]:
    """Transcribe sound as it comes, inside `recognizer.decoding()`.

    Args:
        chunks: samples at 16 kHz in order, `(n,)` each, of any lengths.
        transcriber: model and options. Its longest piece is also the longest encoding, and bounds the memory.
        language: code of the language, for an instruction that names it.

    Yields:
        In the order of the recording, each when it is final: words that the CTC head heard, and behind the words of a
        piece the piece itself. Silent stretches are left out.

    Raises:
        UserError: the logits of a piece are not finite, or reading the sound raised it.
    """
    running = _Stream(transcriber, language)
    for samples in in_steps(chunks, samples_in(HOP_SECONDS)):
        yield from running.hear(samples)
    yield from running.end()


def in_steps(chunks: Iterable[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """Samples in steps of one length; the last may be shorter."""
    held = np.zeros(0, np.float32)
    for chunk in chunks:
        held = np.concatenate([held, chunk])
        while len(held) >= length:
            yield held[:length]
            held = held[length:]
    if len(held):
        yield held


class _Stream:
    """A recording that is being heard; arguments as of `stream`."""

    def __init__(self, transcriber: Transcriber, language: str):
        self._transcriber, self._language = transcriber, language
        self._rest = Rest(transcriber.longest_seconds)
        self._most = samples_in(transcriber.longest_seconds) - samples_in(HOP_SECONDS)
        self._heard, self._written = _FinalWords(), _FinalWords()

    def hear(self, samples: np.ndarray) -> Iterator[Word | Piece]:
        """Results after the next samples."""
        self._rest.add(samples)
        words, pauses = self._encode()
        until = seconds_of(self._rest.start + len(self._rest.samples)) - AHEAD_SECONDS
        yield from self._heard.agreed(words, until)
        yield from self._close(self._ended(pauses), words)

    def end(self) -> Iterator[Word | Piece]:
        """Results for what is left."""
        if len(self._rest.samples):
            words, pauses = self._encode()
            yield from self._close(self._rest.cut_all(pauses), words)

    def _encode(self) -> tuple[list[Word], list[Stretch]]:
        """Words of the CTC head in the running piece, with their times in the recording, and its pauses.

        Quiet ends are not encoded: what was trained on has none, and features are normalised per utterance.
        """
        recognizer, samples = self._transcriber.recognizer, self._rest.samples
        per_frame = self._transcriber.samples_per_frame
        first, end = _without_quiet_ends(samples, per_frame)
        if first == end or self._transcriber.is_no_speech(samples):
            return [], [(0, len(samples))]
        start = seconds_of(self._rest.start + first)
        name = f"{start:.1f} to {start + seconds_of(end - first):.1f} s"
        log_probs = self._transcriber.log_probs(samples[first:end], name)
        text = recognizer.tokenizer.decode(ctc_collapse(log_probs.argmax(-1).tolist()))
        aligned = AlignedText(log_probs, text, recognizer.tokenizer)
        words = [word.later(start) for word in aligned.words(seconds_of(per_frame), seconds_of(end - first))]
        before, behind = first // per_frame, -(-len(samples) // per_frame) - first // per_frame - len(log_probs)
        blank = F.one_hot(torch.tensor(BLANK), log_probs.shape[1]).float().log()
        around = [blank.expand(count, -1) for count in (before, max(0, behind))]
        return words, self._transcriber.pauses(samples, torch.cat([around[0], log_probs, around[1]]))

    def _ended(self, pauses: list[Stretch]) -> list[AudioPiece]:
        """Pieces that have ended, with the pause of the last one, which may go on; or at the greatest length."""
        length, margin = len(self._rest.samples), samples_in(MARGIN_SECONDS)
        if pauses == [(0, length)]:
            return self._rest.cut_within(pauses, length) if length > self._rest.kept else []
        if over := [pause for pause in pauses if self._ends_piece(*pause)]:
            first, end = over[-1]
            before = self._rest.ends_in_long_pauses([pause for pause in pauses if pause[1] <= first], first)
            return self._rest.cut([*before, first + margin, end - margin], pauses)
        return self._rest.cut_within(pauses, length) if length > self._most else []

    def _ends_piece(self, first: int, end: int) -> bool:
        """Whether a pause is long; longer where it is not quiet, as the CTC head may hear words in it yet."""
        samples = self._rest.samples
        quiet = np.square(samples[first:end]).mean() <= QUIET * np.square(samples).mean()
        return first > 0 and end - first >= self._rest.long + (0 if quiet else samples_in(AHEAD_SECONDS))

    def _close(self, ended: list[AudioPiece], words: Sequence[Word]) -> Iterator[Word | Piece]:
        """Results of pieces that have ended; where the last one overlaps what follows, the middle divides them."""
        for audio in ended:
            if audio.silent:
                continue
            end = audio.end_seconds
            if audio is ended[-1]:
                end = (end + seconds_of(self._rest.start)) / 2
            yield from self._heard.until(words, end)
            piece = self._transcriber.piece(audio, self._language)
            self._written.begin(audio.start_seconds)
            final = self._written.until(piece.words, end)
            yield replace(piece, words=tuple(final), text=" ".join(word.text for word in final))
        if ended:
            self._heard.begin(seconds_of(self._rest.start))


def _without_quiet_ends(samples: np.ndarray, per_frame: int) -> tuple[int, int]:
    """First sample and the one after the last, when quiet frames at both ends are left out but for a margin.

    Both are 0 if no more than a frame is left: a click.
    """
    frames = np.pad(samples, (0, -len(samples) % per_frame)).reshape(-1, per_frame)
    power = np.square(frames).mean(1)
    loud = np.flatnonzero(power > QUIET * power.mean())
    if len(loud) < 2:
        return 0, 0
    margin = samples_in(MARGIN_SECONDS)
    return max(0, int(loud[0]) * per_frame - margin), min(len(samples), (int(loud[-1]) + 1) * per_frame + margin)


class _FinalWords:
    """Tells words that follow those that are final, although their times may have moved since.

    Words that are final now begin behind the last one before: their times come of another encoding.
    """

    def __init__(self) -> None:
        self._last: Word | None = None
        self._before: list[str] = []

    def begin(self, seconds: float) -> None:
        """Forget the last final word if the next words come of a piece that begins behind it."""
        if self._last is not None and self._last.end_seconds <= seconds:
            self._last = None

    def agreed(self, words: Sequence[Word], seconds: float) -> list[Word]:
        """Words that are final now: which end before `seconds`, and which the call before had as well."""
        following = self._following(words)
        same = takewhile(lambda pair: pair[0].text == pair[1], zip(following, self._before, strict=False))
        final = [word for word, _ in takewhile(lambda pair: pair[0].end_seconds <= seconds, same)]
        self._before = [word.text for word in following[len(final) :]]
        return self._final(final)

    def until(self, words: Sequence[Word], seconds: float) -> list[Word]:
        """Words that are final now as their piece ends at `seconds`."""
        self._before = []
        return self._final([word for word in self._following(words) if word.middle_seconds < seconds])

    def _final(self, words: list[Word]) -> list[Word]:
        if self._last is not None:
            words = [word.not_before(self._last.end_seconds) for word in words]
        self._last = words[-1] if words else self._last
        return words

    def _following(self, words: Sequence[Word]) -> Sequence[Word]:
        """Words behind the last final one: behind the same word at nearly the same time, or else after its end."""
        last = self._last
        if last is None:
            return words
        moved = [abs(word.start_seconds - last.start_seconds) for word in words]
        same = [place for place, word in enumerate(words) if word.text == last.text and moved[place] <= AGREE_SECONDS]
        if same:
            return words[min(same, key=moved.__getitem__) + 1 :]
        return [word for word in words if word.middle_seconds > last.end_seconds]
