"""`speechllm transcribe`: audio files of any length in, text out."""

import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from speechllm_pl.apps.devices import device_of
from speechllm_pl.apps.effects import language_without_effect, llm_without_effect, tell
from speechllm_pl.apps.given_audio import find_audio, left_out, samples_of
from speechllm_pl.apps.program_options import TranscribeOptions
from speechllm_pl.apps.transcribe_stream import transcribe_stream
from speechllm_pl.apps.transcript_files import TranscriptFiles, below_given, recording_names
from speechllm_pl.apps.transcript_lines import json_line, warning_of
from speechllm_pl.core.audio.units import seconds_of
from speechllm_pl.core.errors import EXIT_BASE, UserError, printable
from speechllm_pl.recognition.acceptance import in_words
from speechllm_pl.recognition.formats import FORMATS, json_row
from speechllm_pl.recognition.guard import GuardLimits
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.recognition.transcriber import Source, Transcriber
from speechllm_pl.recognition.transcript import Transcript
from speechllm_pl.storage.checkpoints import of_run
from speechllm_pl.storage.progress import print_above, progress_bar
from speechllm_pl.storage.whole_file import check_writable

WITHOUT_EFFECT_ON_TEXT = (
    *("files", "format", "output_dir", "output_template", "device", "max_duration", "stream", "sample_rate"),
    *("checkpoint", "llm", "encoder"),  # the first is noted as it is; the others must be the same wherever they are
)
"""Options on which no file's text depends."""

SHORTEST_SECONDS = 0.1
"""Shortest duration of a word; a frame of the conformer has 0.08."""


def transcribe(options: TranscribeOptions) -> None:
    """Print what is said in audio files; one line a file, when it is there."""
    if options.stream:
        tell(language_without_effect(options.checkpoint, options.language))
        with _reader_may_leave():
            transcribe_stream(_transcriber(options), options)
        return
    found, refused = find_audio(options.files)
    paths, below, files = [path for path, _ in found], below_given(found), None
    given = len(paths) + len(refused)
    if options.output_dir is not None:
        formats = [*FORMATS] if options.format == "all" else [options.format.replace("text", "txt")]
        files = TranscriptFiles(Path(options.output_dir), options.output_template, formats, below, _made(options))
        check_writable(Path(options.output_dir), "give another --output_dir")
        paths = _left_to_do(paths, files)
    elif options.format in ("srt", "vtt", "tsv") and given > 1:
        raise UserError(f"{given} files in one output of format {options.format}: give --output_dir, or one file")
    tell(language_without_effect(options.checkpoint, options.language))
    if paths:
        _transcribe(options, paths, files, recording_names(below), refused, given)
    if refused:
        raise UserError(f"{len(refused)} of {given} files refused: " + "; ".join(refused))


def _transcribe(
    options: TranscribeOptions,
    paths: list[Path],
    files: TranscriptFiles | None,
    names: Mapping[Path, str],
    refused: list[str],
    given: int,
) -> None:
    """Transcribe `paths`; problems are added to those of `refused`, which belong to the same `given` files."""
    transcriber = _transcriber(options)
    recognizer, done = transcriber.recognizer, 0
    try:
        bar_of = progress_bar("transcribing", len(paths), unit=" files")
        with _reader_may_leave(), recognizer.decoding(options.precision), bar_of as bar:
            meter = _Meter(bar)
            sources = _sources(paths, meter, refused)
            for path, transcript in zip(paths, transcriber.transcripts(sources, options.language), strict=True):
                try:
                    if isinstance(transcript, UserError):
                        raise transcript
                    _put_out(path, transcript, options.format, files, names[path])
                    done += 1
                    meter.done += transcript.seconds
                except UserError as error:
                    if str(error) not in refused:  # as it is if it was met in reading
                        refused.append(left_out(str(error)))
                meter.show()
                bar.update()
        if options.relaxed and recognizer.stage == "llm":
            print(f"relaxed: {in_words(transcriber.search.acceptance.rates())}", file=sys.stderr)
    except KeyboardInterrupt:
        remedy = "give the other files again" if files is None else "run the same command again"
        raise KeyboardInterrupt(f"{done} of {given} files are transcribed: {remedy}") from None


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Exit without an error message when the reader of a pipe, such as `head`, closes it."""
    try:
        yield
    except BrokenPipeError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # else Python complains of what it cannot write at its end
        sys.exit(EXIT_BASE + signal.SIGPIPE)


def _transcriber(options: TranscribeOptions) -> Transcriber:
    recognizer = Recognizer.load(options.checkpoint, options.llm, device_of(options.device), options.encoder)
    tell(llm_without_effect(recognizer, options, options.llm))
    return Transcriber(
        recognizer,
        options,
        longest_seconds=options.max_seconds,
        batch_seconds=options.max_duration,
        limits=GuardLimits() if options.guard else None,
        pauses_by=options.pauses,
    )


def _made(options: TranscribeOptions) -> dict[str, Any]:
    """The checkpoint, when it was written, and the options on which texts depend, unless they are defaults."""
    path = of_run(options.checkpoint)
    written = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat() if path.exists() else ""
    chosen = [field for field in fields(options) if field.name not in WITHOUT_EFFECT_ON_TEXT]
    others = {each.name: value for each in chosen if (value := getattr(options, each.name)) != each.default}
    return {"checkpoint": os.path.realpath(path), "written": written, **others}


def _left_to_do(paths: list[Path], files: TranscriptFiles) -> list[Path]:
    there = {path: files.are_there(path) for path in paths}
    if count := sum(there.values()):
        print(f"{count} of {len(paths)} files are transcribed already, and left as they are", file=sys.stderr)
    others = [how for path in paths if there[path] and (how := files.made_otherwise(path))]
    if others:
        remedy = "delete their transcripts, or give another --output_dir, to have them anew"
        tell(f"{len(others)} of them were transcribed otherwise ({others[0]}): {remedy}")
    return [path for path in paths if not there[path]]


class _Meter:
    """Shows on a bar how much audio was read and transcribed, and how much faster than it lasts.

    Attributes:
        read: seconds of audio that were read, several batches ahead.
        done: seconds of audio whose transcripts were put out.
    """

    def __init__(self, bar: tqdm):
        self.bar, self.read, self.done, self._started = bar, 0.0, 0.0, time.perf_counter()

    def show(self) -> None:
        factor = self.done / (time.perf_counter() - self._started)
        minutes = f"{self.done / 60:.1f} of {self.read / 60:.1f} min of audio read"
        self.bar.set_postfix_str(f"{minutes}, RTFx {factor:.1f}", refresh=False)


def _sources(paths: Iterable[Path], meter: _Meter, refused: list[str]) -> Iterator[Source]:
    """Recordings, of which a file that cannot be read is told at once."""

    def read(path: Path) -> Iterator[np.ndarray]:
        try:
            for samples in samples_of(path):
                yield samples
                meter.read += seconds_of(len(samples))
                meter.show()
                meter.bar.update(0)
        except UserError as error:
            refused.append(left_out(str(error)))
            raise

    for path in paths:
        yield Source(str(path), read(path))


def _put_out(path: Path, transcript: Transcript, format: str, files: TranscriptFiles | None, recording: str) -> None:
    """Print or write the transcript of a recording of this name, and warn of what may be wrong with it."""
    name = printable(str(path))
    if transcript.seconds < SHORTEST_SECONDS:
        print_above(f"warning: {name}: lasts {transcript.seconds:.3f} s, too short for a word", sys.stderr)
    for piece in transcript.pieces:
        if warning := warning_of(piece, name, place=len(transcript.pieces) > 1):
            print_above(warning, sys.stderr)
    if files is not None:
        files.write(path, transcript, recording)
        for file in files.of(path):
            print_above(printable(str(file)))
    elif format == "text":
        print_above(f"{name}: {printable(transcript.text)}")
    elif format == "json":
        print_above(json_line(json_row(transcript, str(path), recording)))
    else:
        for line in "".join(FORMATS[format](transcript, str(path), recording)).splitlines():
            print_above("\t".join(map(printable, line.split("\t"))))
