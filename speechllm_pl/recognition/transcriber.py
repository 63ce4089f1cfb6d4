"""Turn recordings of any length into transcripts: pieces, CTC head, LLM, guard, word times.

transcriber = Transcriber(Recognizer.load("runs/demo/finetune/checkpoints/best.ckpt"))
with transcriber.recognizer.decoding():
    for transcript in transcriber.transcripts([Source("talk", [samples])]):
        print(transcript.text)
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechllm_pl.core.audio.units import samples_in
from speechllm_pl.core.ctc_tokenizer import BLANK
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.languages import UNKNOWN_LANGUAGE
from speechllm_pl.recognition.audio_pieces import AudioPiece, Stretch, joined, pauses_in, pieces
from speechllm_pl.recognition.decoding_options import DecodingOptions, PausesBy, check_lengths
from speechllm_pl.recognition.guard import GuardLimits, objection
from speechllm_pl.recognition.hypothesis import Hypothesis, not_finite
from speechllm_pl.recognition.kept_memory import keep_few_kernels, return_freed_memory
from speechllm_pl.recognition.recognizer import Heard, Recognizer
from speechllm_pl.recognition.silero import SileroPauses
from speechllm_pl.recognition.speech_check import no_speech
from speechllm_pl.recognition.transcript import DecodedBy, Piece, Transcript
from speechllm_pl.recognition.word_times import Word, word_times

LONGEST_SECONDS = 30.0
"""Longest piece for checkpoints that do not tell how long their training's utterances were."""

MOST_BATCHES = 8
"""Batches that are read ahead and sorted by length. The first is decoded alone, so that its texts are there soon."""

CTC = DecodingOptions(decoder="ctc")
RETRY = DecodingOptions(decoder="beam", ctc_weight=0.5)
"""Search for a text in the place of one that is not believed: of several the one that fits the audio, too."""

NOTHING = np.zeros(0, np.float32)


@dataclass(frozen=True)
class Source:
    """A recording to transcribe.

    Attributes:
        name: name in messages.
        chunks: `(n,)` float32 samples in order, mono, at 16 kHz, in -1 … 1. Reading them may raise `UserError`.
    """

    name: str
    chunks: Iterable[np.ndarray]


class _Text(NamedTuple):
    """Text that was decided on, and how."""

    hypothesis: Hypothesis
    decoded_by: DecodedBy
    remark: str = ""


@dataclass
class _Part:
    """A piece on its way; it has no samples when it has a result."""

    recording: "_Recording"
    samples: np.ndarray
    start_seconds: float
    end_seconds: float
    overlap_seconds: float
    result: Piece | None = None


@dataclass
class _Recording:
    """A recording of which something may still be missing."""

    name: str
    parts: list[_Part] = field(default_factory=list)
    ended: bool = False
    error: UserError | None = None

    def is_done(self) -> bool:
        return self.ended and (self.error is not None or all(part.result for part in self.parts))


class Transcriber:
    """Recordings in, transcripts out.

    Args:
        recognizer: model and tokenizers.
        options: search for the LLM's text.
        longest_seconds: longest piece; default is the longest utterance of the training.
        batch_seconds: audio in a batch, with its padding.
        limits: limits of the guard; None believes every text of the LLM.
        pauses_by: what finds the pauses at which a recording is divided.

    Raises:
        UserError: what finds the pauses is not installed.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        options: DecodingOptions = DecodingOptions(),  # noqa: B008 (frozen)
        *,
        longest_seconds: float | None = None,
        batch_seconds: float = 60.0,
        limits: GuardLimits | None = GuardLimits(),  # noqa: B008 (frozen)
        pauses_by: PausesBy = "ctc",
    ):
        self.recognizer, self.options, self.limits = recognizer, options, limits
        check_lengths(longest_seconds, batch_seconds)
        self.longest_seconds = longest_seconds or recognizer.longest_seconds or LONGEST_SECONDS
        self.batch_seconds = batch_seconds
        recognizer.warn_of_ctc_head(options, guarded=limits is not None)
        keep_few_kernels()
        self._silero = SileroPauses() if pauses_by == "silero" else None

    def transcripts(
        self, sources: Iterable[Source], language: str = UNKNOWN_LANGUAGE
    ) -> Iterator[Transcript | UserError]:
        """Transcribe recordings, inside `recognizer.decoding()`.

        Args:
            sources: recordings, each read when it is needed.
            language: code of the language, for an instruction that names it.

        Yields:
            For each source in order its transcript, or the error for which it has none.
        """
        waiting: deque[_Recording] = deque()
        for batch in self._batches(self._parts(sources, waiting)):
            self._decode(batch, language)
            while waiting and waiting[0].is_done():
                yield _result(waiting.popleft(), language)
        for recording in waiting:
            yield _result(recording, language)

    def piece(self, audio: AudioPiece, language: str = UNKNOWN_LANGUAGE) -> Piece:
        """Decode a piece by itself, inside `recognizer.decoding()`.

        Raises:
            UserError: its logits are not finite.
        """
        recording = _Recording(f"{audio.start_seconds:.1f} to {audio.end_seconds:.1f} s")
        part = self._part(recording, audio)
        if part.result is None:
            self._decode([part], language)
        if recording.error is not None:
            raise recording.error
        assert part.result is not None
        return part.result

    def _parts(self, sources: Iterable[Source], waiting: deque[_Recording]) -> Iterator[_Part]:
        """Parts of all recordings in order; the recordings are added to `waiting` when they are begun."""
        for source in sources:
            recording = _Recording(source.name)
            waiting.append(recording)
            before = None
            try:
                for audio in pieces(source.chunks, partial(self._pauses, name=source.name), self.longest_seconds):
                    if before is not None:
                        yield before
                    before = self._part(recording, audio)
            except UserError as error:
                recording.error, before = error, None
            recording.ended = True  # before its last part goes, so that nobody waits for more
            if before is not None:
                yield before

    def _part(self, recording: _Recording, audio: AudioPiece) -> _Part:
        """Part of a recording, with its result if nothing can be said in it."""
        part = _Part(recording, audio.samples, audio.start_seconds, audio.end_seconds, audio.overlap_seconds)
        if audio.silent or self.is_no_speech(audio.samples) or not len(audio.samples):
            part.samples, part.result = NOTHING, Piece(part.start_seconds, part.end_seconds, "", (), "silence")
        recording.parts.append(part)
        return part

    def _pauses(self, samples: np.ndarray, name: str) -> Sequence[Stretch]:
        if self._silero is not None:
            return self._silero(samples)
        return self.pauses(samples, self.log_probs(samples, name))

    def pauses(self, samples: np.ndarray, log_probs: Tensor) -> list[Stretch]:
        """Pauses in `(N,)` samples, whose frames have `(T, V)` log probabilities of the CTC head."""
        return self._silero(samples) if self._silero else pauses_in(log_probs, samples, self.samples_per_frame)

    @property
    def samples_per_frame(self) -> int:
        return samples_in(self.recognizer.speech.seconds_per_frame)

    def log_probs(self, samples: np.ndarray, name: str) -> Tensor:
        """`(T, V)` log probabilities of the CTC head for `(N,)` samples; the blank is sure if they cannot be speech.

        Raises:
            UserError: they are not finite, in which `name` says of what.
        """
        heard = self._hear([samples], CTC)
        if problem := not_finite([name], heard.hypotheses, "ctc"):
            raise UserError(problem)
        log_probs = heard.logits[0].log_softmax(-1).cpu()
        if self.is_no_speech(samples):  # asked here, as the short pieces that it would be divided into do not tell
            log_probs[:, BLANK] = 0.0
        return log_probs

    def is_no_speech(self, samples: np.ndarray) -> bool:
        """Whether `(N,)` samples cannot be speech, if that is asked."""
        return self.limits is not None and no_speech(samples, self.limits.steady_db, self.limits.tone_share) != ""

    def _hear(self, recordings: Sequence[np.ndarray], options: DecodingOptions) -> Heard:
        device = self.recognizer.device
        waveforms = pad_sequence([torch.from_numpy(samples) for samples in recordings], batch_first=True)
        lengths = torch.tensor([len(samples) for samples in recordings])
        return self.recognizer.hear(waveforms.to(device), lengths.to(device), options)

    def _batches(self, parts: Iterable[_Part]) -> Iterator[list[_Part]]:
        """Group parts of similar lengths, reading a growing number of batches ahead."""
        pool: list[_Part] = []
        limit, held = self.batch_seconds, 0.0
        for part in parts:
            if part.result is not None:
                continue
            pool.append(part)
            held += part.end_seconds - part.start_seconds
            if held >= limit:
                yield from self._sorted_batches(pool)
                return_freed_memory()
                pool, held, limit = [], 0.0, min(2 * limit, MOST_BATCHES * self.batch_seconds)
        yield from self._sorted_batches(pool)

    def _sorted_batches(self, pool: list[_Part]) -> list[list[_Part]]:
        """Batches of a pool, the one with its first part first."""
        limit = samples_in(self.batch_seconds)
        places = {id(part): place for place, part in enumerate(pool)}
        batches: list[list[_Part]] = []
        for part in sorted(pool, key=lambda part: len(part.samples)):
            if batches and len(part.samples) * (len(batches[-1]) + 1) <= limit:
                batches[-1].append(part)
            else:
                batches.append([part])
        return sorted(batches, key=lambda batch: min(places[id(part)] for part in batch))

    def _decode(self, batch: list[_Part], language: str) -> None:
        """Give each part of a batch its result, or its recording an error."""
        heard = self._hear([part.samples for part in batch], self.options)
        texts = self._texts(heard, language)
        log_probs = heard.logits.log_softmax(-1).cpu()
        for part, text, row, frames in zip(batch, texts, log_probs, heard.frames.tolist(), strict=True):
            part.samples = NOTHING
            system = "llm" if text.decoded_by.startswith("llm") else "ctc"
            if problem := not_finite([part.recording.name], [text.hypothesis], system):
                part.recording.error = UserError(problem)
            part.result = self._piece(part, text, row[:frames])

    def _texts(self, heard: Heard, language: str) -> list[_Text]:
        """Decide on a text for each utterance of a batch."""
        texts = [_Text(found, "ctc" if found.text else "silence") for found in heard.hypotheses]
        if heard.audio is None:
            return texts
        asked = [i for i, found in enumerate(heard.hypotheses) if found.finite and (found.text or not self.limits)]
        reasons: dict[int, str] = {}
        for decoded_by, options in self._attempts():
            if not asked:
                break
            written = self.recognizer.write(heard.rows(asked), [language] * len(asked), options)
            doubted = []
            for i, hypothesis in zip(asked, written, strict=True):
                why = self._objection(hypothesis, heard.hypotheses[i])
                if why:
                    reasons.setdefault(i, why)
                    doubted.append(i)
                else:
                    taken = options.accept_entropy is not None and not hypothesis.passes  # without asking the LLM
                    by = "ctc" if taken or hypothesis.by_ctc else decoded_by
                    texts[i] = _Text(hypothesis, by, reasons.get(i, "") or _cut_short(hypothesis))
            asked = doubted
        for i in asked:
            texts[i] = texts[i]._replace(remark=reasons[i])
        return texts

    def _attempts(self) -> Iterator[tuple[DecodedBy, DecodingOptions]]:
        """Searches in the order in which they are tried."""
        yield "llm", self.options
        yield "llm-retried", replace(RETRY, max_new_tokens=self.options.max_new_tokens)

    def _objection(self, hypothesis: Hypothesis, heard: Hypothesis) -> str:
        if self.limits is None or not hypothesis.finite:
            return ""
        most = self.options.max_new_tokens
        if most is not None and hypothesis.num_tokens >= most and not hypothesis.looped:  # cut short as it was told
            return ""
        return objection(hypothesis, heard, self.limits)

    def _piece(self, part: _Part, text: _Text, log_probs: Tensor) -> Piece:
        start, seconds = part.start_seconds, part.end_seconds - part.start_seconds
        per_frame = self.recognizer.speech.seconds_per_frame
        found = word_times(log_probs, text.hypothesis.text, self.recognizer.tokenizer, per_frame, seconds)
        words = [
            replace(word, start_seconds=start + word.start_seconds, end_seconds=start + word.end_seconds)
            for word in found
        ]
        return Piece(start, part.end_seconds, text.hypothesis.text, tuple(words), text.decoded_by, text.remark)


def _cut_short(hypothesis: Hypothesis) -> str:
    if not hypothesis.truncated:
        return ""
    return "the text was ended in a loop" if hypothesis.looped else "the text met its length cap and may be cut short"


def _result(recording: _Recording, language: str) -> Transcript | UserError:
    if recording.error is not None:
        return recording.error
    found: list[Piece] = []
    for part in recording.parts:
        piece = part.result
        assert piece is not None
        if part.overlap_seconds and found:
            found[-1], piece = _joined(found[-1], piece, part.overlap_seconds)
        found.append(piece)
    seconds = found[-1].end_seconds
    return Transcript(seconds, None if language == UNKNOWN_LANGUAGE else language, tuple(found))


def _joined(before: Piece, after: Piece, overlap_seconds: float) -> tuple[Piece, Piece]:
    """Two pieces that overlap, without the words that both have."""
    words = joined(before.words, after.words, after.start_seconds, after.start_seconds + overlap_seconds)
    return _with_words(before, words[0]), _with_words(after, words[1])


def _with_words(piece: Piece, words: list[Word]) -> Piece:
    return replace(piece, words=tuple(words), text=" ".join(word.text for word in words))
