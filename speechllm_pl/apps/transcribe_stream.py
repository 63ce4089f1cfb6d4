"""`speechllm transcribe --stream`: a file or standard input, transcribed while it is heard."""

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from speechllm_pl.apps.given_audio import find_audio, samples_of
from speechllm_pl.apps.program_options import TranscribeOptions
from speechllm_pl.apps.transcript_lines import json_line, seconds_in_words, warning_of
from speechllm_pl.core.audio.units import samples_in, seconds_of
from speechllm_pl.core.errors import UserError, printable
from speechllm_pl.recognition.acceptance import in_words
from speechllm_pl.recognition.streaming import HOP_SECONDS, in_steps, stream
from speechllm_pl.recognition.transcriber import Transcriber
from speechllm_pl.recognition.transcript import Piece
from speechllm_pl.recognition.word_times import Word
from speechllm_pl.storage.audio_blocks import raw_pcm

MOST_LATENCIES = 10_000
"""Latencies that are kept, the newest: a stream may have no end."""


def transcribe_stream(transcriber: Transcriber, options: TranscribeOptions) -> None:
    """Print words and pieces when they are final, and at the end how late that was.

    Raises:
        KeyboardInterrupt: a file was interrupted; for standard input an interruption is the end.
    """
    (name,) = options.files
    heard = _standard_input(options.sample_rate) if name == "-" else _file(name)
    interruption, clock, lines = _Interruption(), _LiveClock(), _Lines(printable(name), options.format)
    words, pieces = _Latencies("words"), _Latencies("pieces")
    with transcriber.recognizer.decoding(options.precision), interruption:
        if name == "-":
            print("listening; Ctrl-C ends it", file=sys.stderr, flush=True)
        steps = clock.through(in_steps(interruption.until(heard), samples_in(HOP_SECONDS)))
        for found in stream(steps, transcriber, options.language):
            lines.put(found)
            if isinstance(found, Word):
                words.add(clock.now() - found.end_seconds)
            elif found.words:
                pieces.add(clock.now() - found.words[-1].end_seconds)
    print(f"{clock.heard_seconds:.1f} s heard; {words}; {pieces}", file=sys.stderr)
    if options.relaxed and transcriber.recognizer.stage == "llm":
        print(f"relaxed: {in_words(transcriber.search.acceptance.rates())}", file=sys.stderr)
    if interruption.asked and name != "-":
        raise KeyboardInterrupt(f"{clock.heard_seconds:.1f} s of {name} were heard")


def _standard_input(hz: int) -> Iterator[np.ndarray]:
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError("standard input is no recording: pipe raw PCM to it, such as arecord -t raw -f S16_LE -r 16000")
    descriptor = sys.stdin.fileno()
    return raw_pcm(lambda count: os.read(descriptor, count), hz)


def _file(name: str) -> Iterator[np.ndarray]:
    found, _ = find_audio([name])  # refused if it holds none
    if len(found) > 1:
        raise UserError(f"{name} holds {len(found)} recordings, and --stream takes one: give one of them")
    return samples_of(found[0][0])


class _Interruption:
    """Context in which Ctrl-C ends the input and lets what was heard be transcribed; a second one ends all at once.

    Attributes:
        asked: whether it came.
    """

    def __init__(self) -> None:
        self.asked = self._reading = False

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGINT, self._ask)

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_: Any) -> None:
        again, self.asked = self.asked, True
        if again or self._reading:
            raise KeyboardInterrupt

    def until(self, chunks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Chunks up to the interruption."""
        while not self.asked:
            self._reading = True
            try:
                chunk = next(chunks)
            except (StopIteration, KeyboardInterrupt):
                return
            finally:
                self._reading = False
            yield chunk


class _LiveClock:
    """Time since the beginning of a recording as if it were spoken now: work on a step begins when its sound is there
    and the step before is done. So a file has the latencies of a microphone, and a model too slow for it shows.

    Attributes:
        heard_seconds: length of the sound so far.
    """

    def __init__(self) -> None:
        self.heard_seconds = 0.0
        self._begun, self._at = 0.0, time.perf_counter()

    def now(self) -> float:
        return self._begun + time.perf_counter() - self._at

    def through(self, steps: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Hand the steps on; what happens until the next one is asked for is work."""
        done = 0.0
        for samples in steps:
            self.heard_seconds += seconds_of(len(samples))
            self._begun, self._at = max(done, self.heard_seconds), time.perf_counter()
            yield samples
            done = self.now()


class _Latencies:
    """Times from the end of words to their texts."""

    def __init__(self, what: str):
        self._what, self._newest = what, deque[float](maxlen=MOST_LATENCIES)

    def add(self, seconds: float) -> None:
        self._newest.append(seconds)

    def __str__(self) -> str:
        if not self._newest:
            return f"no {self._what}"
        median, most = np.percentile(self._newest, (50, 90))
        return f"latency of {len(self._newest)} {self._what}: median {median:.2f} s, 90 % within {most:.2f} s"


class _Lines:
    """Prints what is final: the words of a piece in a line that grows, its text in the line after it.

    Args:
        name: name of the recording in warnings.
    """

    def __init__(self, name: str, format: str):
        self._name, self._format = name, format
        self._open = False

    def put(self, found: Word | Piece) -> None:
        if isinstance(found, Piece) and (warning := warning_of(found, self._name, place=True)):
            self._close()
            print(warning, file=sys.stderr)
        if self._format == "json":
            print(json_line({type(found).__name__.lower(): asdict(found)}), flush=True)
        elif isinstance(found, Word):
            print(" " if self._open else "… ", printable(found.text), sep="", end="", flush=True)
            self._open = True
        elif found.text or self._open:
            self._close()
            print(f"{seconds_in_words(found)}: {printable(found.text)}", flush=True)

    def _close(self) -> None:
        if self._open:
            print(flush=True)
        self._open = False
