"""Turn recordings of any length into transcripts: pieces, CTC head, LLM, guard, word times.

transcriber = Transcriber(Recognizer.load("runs/demo/finetune/checkpoints/best.ckpt"))
with transcriber.recognizer.decoding():
    for transcript in transcriber.transcripts([Source("talk", [samples])]):
        print(transcript.text)
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechllm_pl.core.audio.units import samples_in
from speechllm_pl.core.ctc_tokenizer import BLANK
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.languages import UNKNOWN_LANGUAGE
from speechllm_pl.core.padded import Padded
from speechllm_pl.recognition.audio_pieces import AudioPiece, Stretch, pauses_in, pieces
from speechllm_pl.recognition.decoding_options import DecodingOptions, PausesBy, check_lengths
from speechllm_pl.recognition.guard import GuardLimits
from speechllm_pl.recognition.guarded_search import DecidedText, GuardedSearch
from speechllm_pl.recognition.hypothesis import not_finite
from speechllm_pl.recognition.kept_memory import keep_few_kernels, return_freed_memory
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.recognition.seams import without_doubled_words
from speechllm_pl.recognition.silero import SileroPauses
from speechllm_pl.recognition.speech_check import background_db, no_speech
from speechllm_pl.recognition.transcript import Piece, Transcript
from speechllm_pl.recognition.word_times import loudness_of

MOST_BATCHES = 8
"""Batches that are read ahead and sorted by length. The first is decoded alone, so that its texts are there soon."""

CTC = DecodingOptions(decoder="ctc")
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


@dataclass
class _Part:
    """A piece on its way. It has samples until it has frames, and these and its loudness until it has a result.

    Attributes:
        length: number of samples.
        frames: `(T, dim)` of the encoder.
        loudness: of the samples, for the times of words.
    """

    recording: "_Recording"
    samples: np.ndarray
    length: int
    start_seconds: float
    end_seconds: float
    overlap_seconds: float
    frames: Tensor | None = None
    loudness: np.ndarray = field(default_factory=lambda: NOTHING)
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

    Attributes:
        search: search for the text of a piece, which counts what it accepts from the CTC head.
        silero: detector of pauses, if it is not the CTC head.

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
        self.search = GuardedSearch(recognizer, options, limits)
        check_lengths(longest_seconds, batch_seconds)
        self.longest_seconds = recognizer.longest_piece(longest_seconds)
        self.batch_seconds = batch_seconds
        recognizer.warn_of_ctc_head(options, guarded=limits is not None)
        keep_few_kernels()
        self.silero = SileroPauses() if pauses_by == "silero" else None

    def transcripts(
        self, sources: Iterable[Source], language: str = UNKNOWN_LANGUAGE
    ) -> Iterator[Transcript | UserError]:
        """Transcribe recordings, inside `recognizer.decoding()`.

        Args:
            sources: recordings, each read when it is needed.
            language: code of the language, for an instruction that names it.

        Yields:
            For each source in order its transcript, or the error for which it has none, as soon as it is known.
        """
        waiting: deque[_Recording] = deque()
        for batch in self._batches(self._parts(sources, waiting)):
            self._decode(batch, language)
            while waiting and waiting[0].is_done():
                yield _result(waiting.popleft(), language)

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

    def _parts(self, sources: Iterable[Source], waiting: deque[_Recording]) -> Iterator[_Part | None]:
        """Parts of all recordings in order, and None behind those of each.

        The recordings are added to `waiting` when they are begun.
        """
        for source in sources:
            recording = _Recording(source.name)
            waiting.append(recording)
            before, window = None, _Window(self, source.name)
            try:
                for audio in pieces(source.chunks, window.pauses, self.longest_seconds):
                    if before is not None:
                        yield before
                    before = self._part(recording, audio, window.frames_of(audio))
            except UserError as error:
                recording.error, before = error, None
            recording.ended = True  # before its last part goes, so that nobody waits for more
            if before is not None:
                yield before
            yield None

    def _part(self, recording: _Recording, audio: AudioPiece, frames: Tensor | None = None) -> _Part:
        """Part of a recording, with its result if nothing can be said in it."""
        start, end, length = audio.start_seconds, audio.end_seconds, len(audio.samples)
        part = _Part(recording, audio.samples, length, start, end, audio.overlap_seconds, frames)
        if audio.silent or self.is_no_speech(audio.samples, audio.background) or not length:
            part.frames, part.result = None, Piece(start, end, "", (), "silence")
        else:
            part.loudness = loudness_of(audio.samples)
        if part.frames is not None or part.result is not None:
            part.samples = NOTHING
        recording.parts.append(part)
        return part

    def pauses(self, samples: np.ndarray, log_probs: Tensor) -> list[Stretch]:
        """Pauses in `(N,)` samples, whose frames have `(T, V)` log probabilities of the CTC head."""
        return self.silero(samples) if self.silero else pauses_in(log_probs, samples, self.samples_per_frame)

    @property
    def samples_per_frame(self) -> int:
        return samples_in(self.recognizer.speech.seconds_per_frame)

    def log_probs(self, samples: np.ndarray, name: str, encoded: Padded | None = None) -> Tensor:
        """`(T, V)` log probabilities of the CTC head for `(N,)` samples; the blank is sure if they cannot be speech.

        Args:
            name: name of the samples in messages.
            encoded: their frames, if they are known.

        Raises:
            UserError: they are not finite.
        """
        heard = self.recognizer.heard_in(encoded or self.encode([samples]), CTC)
        if problem := not_finite([name], heard.hypotheses, "ctc"):
            raise UserError(problem)
        log_probs = heard.logits[0].log_softmax(-1).cpu()
        if self.is_no_speech(samples):
            log_probs[:, BLANK] = 0.0
        return log_probs

    def is_no_speech(self, samples: np.ndarray, background: float | None = None) -> bool:
        """Whether `(N,)` samples cannot be speech, if that is asked.

        Args:
            background: level of the quiet around them, in dB; default is their own.
        """
        if self.limits is None:
            return False
        level = background_db(samples) if background is None else background
        return no_speech(samples, level, self.limits.steady_db, self.limits.tone_share) != ""

    @torch.no_grad()
    def encode(self, recordings: Sequence[np.ndarray]) -> Padded:
        """Compute `(B, T, dim)` frames of the encoder for `(N,)` samples each."""
        waveforms = _padded([torch.from_numpy(samples) for samples in recordings])
        device = self.recognizer.device
        return self.recognizer.speech.encode(Padded(waveforms.values.to(device), waveforms.lengths.to(device)))

    def _batches(self, parts: Iterable[_Part | None]) -> Iterator[list[_Part]]:
        """Group parts of similar lengths, reading a growing number of batches ahead.

        A recording's end gives an empty batch: it may have had no part that must be decoded.
        """
        pool: list[_Part] = []
        limit, held = self.batch_seconds, 0.0
        for part in parts:
            if part is None:
                yield []
                continue
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
        for part in sorted(pool, key=lambda part: part.length):
            if batches and part.length * (len(batches[-1]) + 1) <= limit:
                batches[-1].append(part)
            else:
                batches.append([part])
        return sorted(batches, key=lambda batch: min(places[id(part)] for part in batch))

    def _decode(self, batch: list[_Part], language: str) -> None:
        """Give each part of a batch its result, or its recording an error."""
        if not batch:
            return
        heard = self.recognizer.heard_in(self._encoded(batch), self.options)
        texts = self.search(heard, language)
        for part, text in zip(batch, texts, strict=True):
            part.frames = None
            system = "llm" if text.decoded_by.startswith("llm") else "ctc"
            if problem := not_finite([part.recording.name], [text.hypothesis], system):
                part.recording.error = UserError(problem)
            part.result = self._piece(part, text)
            part.loudness = NOTHING

    def _encoded(self, batch: list[_Part]) -> Padded:
        """Frames of a batch; the encoder is asked only about parts that have none."""
        unknown = [part for part in batch if part.frames is None]
        if unknown:
            encoded = self.encode([part.samples for part in unknown])
            for part, frames, count in zip(unknown, encoded.values, encoded.lengths.tolist(), strict=True):
                part.frames, part.samples = frames[:count], NOTHING
        frames = _padded([part.frames for part in batch if part.frames is not None])
        return Padded(frames.values, frames.lengths.to(frames.values.device))

    def _piece(self, part: _Part, text: DecidedText) -> Piece:
        start, seconds = part.start_seconds, part.end_seconds - part.start_seconds
        per_frame = self.recognizer.speech.seconds_per_frame
        words = [word.later(start) for word in text.aligned.words(per_frame, seconds, part.loudness)]
        found = text.hypothesis
        return Piece(start, part.end_seconds, found.text, tuple(words), text.decoded_by, text.remark, found.n_best)


class _Window:
    """Finds the pauses of a recording, window by window.

    Args:
        name: name of the recording in messages.
    """

    def __init__(self, transcriber: Transcriber, name: str):
        self._transcriber, self._name = transcriber, name
        self._length, self._frames = 0, None  # of the last window

    def pauses(self, samples: np.ndarray) -> Sequence[Stretch]:
        """Pauses in the `(N,)` samples of the next window."""
        transcriber = self._transcriber
        if transcriber.silero is not None:
            return transcriber.silero(samples)
        encoded = transcriber.encode([samples])
        self._length, self._frames = len(samples), encoded.values[0]
        return transcriber.pauses(samples, transcriber.log_probs(samples, self._name, encoded))

    def frames_of(self, audio: AudioPiece) -> Tensor | None:
        """`(T, dim)` frames of a piece, which are known if it is the last window as it was."""
        return self._frames if len(audio.samples) == self._length else None


def _padded(rows: list[Tensor]) -> Padded:
    """Rows of different lengths in a batch, with zeros behind them."""
    return Padded(pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows]))


def _result(recording: _Recording, language: str) -> Transcript | UserError:
    if recording.error is not None:
        return recording.error
    found = [part.result for part in recording.parts if part.result is not None]
    found = without_doubled_words(found, [part.overlap_seconds for part in recording.parts])
    return Transcript(found[-1].end_seconds, None if language == UNKNOWN_LANGUAGE else language, tuple(found))
