"""`speechllm transcribe`: audio files in, text out."""

import json
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import Recording
from lhotse.cut import Cut

from speechllm_pl.apps.program_options import TranscribeOptions
from speechllm_pl.apps.ranks import device_of
from speechllm_pl.apps.recognition import recognize_batch
from speechllm_pl.core.audio.sampling_rates import implausible_rate
from speechllm_pl.core.audio.sources import runs_in_shell
from speechllm_pl.core.audio.units import SAMPLING_RATE, seconds_of
from speechllm_pl.core.errors import EXIT_BASE, UserError, printable
from speechllm_pl.core.languages import LANGUAGES, UNKNOWN_LANGUAGE
from speechllm_pl.core.prompt import Prompt
from speechllm_pl.data.dataset import collate
from speechllm_pl.data.utterance import Utterance, read
from speechllm_pl.recognition.decoding_options import Decoder
from speechllm_pl.recognition.hypothesis import Hypothesis, not_finite
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.storage.checkpoints import RECORD, read_record
from speechllm_pl.storage.containers import broken_promise
from speechllm_pl.storage.folders import AUDIO_SUFFIXES, audio_files, no_file
from speechllm_pl.storage.progress import print_above, progress_bar

RAW_IN_JSON = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that `json.dumps` keeps and that terminals or files cannot take: control characters, and lone surrogates,
by which Python represents bytes in a file's name that are not UTF-8."""

SHORTEST_SECONDS = 0.1
"""Shortest duration of a word; a frame of the encoder has 0.08."""


def transcribe(options: TranscribeOptions) -> None:
    """Print what is said in audio files; one line a file, when it is there."""
    paths, refused = find_audio(options.files)
    if options.language != UNKNOWN_LANGUAGE:
        _check_language(options.language, read_record(options.checkpoint)[RECORD])
    recognizer = Recognizer.load(options.checkpoint, options.llm, device_of(options.device))
    _tell_no_effect(options.decoder, recognizer)
    system = recognizer.systems(options)[-1]
    utterances = _utterances(paths, options.language, options.max_seconds)
    done, given = 0, len(paths) + len(refused)
    try:
        with recognizer.decoding(options.precision), progress_bar("transcribing", len(paths), unit=" files") as bar:
            for found in _batches(utterances, options.max_duration):
                if isinstance(found, UserError):
                    refused.append(_left_out(str(found)))
                    bar.update()
                    continue
                batch = collate(found, skipped=[])
                hypotheses = recognize_batch(recognizer, batch, options).hypotheses[system]
                for utterance, hypothesis in zip(found, hypotheses, strict=True):
                    if problem := not_finite([utterance.id], [hypothesis], system):
                        refused.append(_left_out(problem))
                    else:
                        _print(utterance, hypothesis, options.format)
                        done += 1
                    bar.update()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{done} of {given} files are transcribed: give the other files again") from None
    except BrokenPipeError:  # whoever reads has enough, such as `head`
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # else Python complains of what it cannot write at its end
        sys.exit(EXIT_BASE + signal.SIGPIPE)
    _refuse(refused, given)


def _refuse(refused: list[str], given: int) -> None:
    """Raise a UserError that names all files that were refused, if there are any."""
    if refused:
        raise UserError(f"{len(refused)} of {given} files refused: " + "; ".join(refused))


def _tell_no_effect(decoder: Decoder, recognizer: Recognizer) -> None:
    if recognizer.stage == "ctc" and decoder in ("speculative", "beam"):
        told = f"warning: --decoder {decoder} has no effect: the checkpoint is of stage 1, without an LLM"
        print(told, file=sys.stderr)


def _check_language(language: str, record: dict[str, Any]) -> None:
    """Refuse a language that the checkpoint was not trained on, and warn if it has no effect.

    Args:
        record: record of a checkpoint; earlier versions do not list the languages of training.

    Raises:
        UserError: the checkpoint was not trained on this language.
    """
    known = record.get("languages") or sorted(LANGUAGES)
    if language not in known:
        raise UserError(f"--language {language!r} is unknown: give one of {', '.join(known)}, or leave it out")
    if not Prompt(record["settings"].get("instruction", "")).names_language:
        told = "the checkpoint's instruction names no language"
        print(f"warning: --language {language} has no effect: {told}", file=sys.stderr)


def find_audio(names: list[str]) -> tuple[list[Path], list[str]]:
    """Expand folders to the audio files below them; return files and refused names, which are printed at once.

    Entries of a folder that are not files are left out and named.

    Raises:
        UserError: no file is left.
    """
    paths: list[Path] = []
    refused: list[str] = []
    for name in names:
        why = no_file(name)
        if why == "a folder":
            found = audio_files(Path(name))
            for skipped in found.skipped:
                print(f"left out {printable(skipped)}", file=sys.stderr)
            paths += found.files
            why = "" if found.files else f"holds no audio files ({', '.join(AUDIO_SUFFIXES)})"
            refused += [f"folder {name} {why}"] if why else []
        elif why:
            refused.append(f"audio file {name} {why if why == 'does not exist' else f'is no file ({why})'}")
        else:
            paths.append(Path(name))
    if not paths:
        raise UserError("; ".join(refused) + ": correct the paths")
    return paths, [_left_out(each) for each in refused]


def _left_out(problem: str) -> str:
    """Print a problem and return it."""
    print_above(f"left out {printable(problem)}", sys.stderr)
    return problem


def _batches(files: Iterable[Utterance | UserError], max_duration: float) -> Iterator[list[Utterance] | UserError]:
    """Group successive utterances up to `max_duration` seconds with padding; yield errors separately."""
    batch: list[Utterance] = []
    for each in files:
        if isinstance(each, UserError):
            yield each
            continue
        longest = max(len(utterance.samples) for utterance in (*batch, each))
        if batch and longest * (len(batch) + 1) > max_duration * SAMPLING_RATE:
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch


def _utterances(paths: Iterable[Path], language: str, max_seconds: float) -> Iterator[Utterance | UserError]:
    """Read utterances lazily, each file when it is needed."""
    for path in paths:
        try:
            yield Utterance(str(path), _samples(_cut(path, max_seconds)), text="", language=language)
        except UserError as error:
            yield error


def _cut(path: Path, max_seconds: float) -> Cut:
    recording = _recording(path)
    if recording.duration == 0:
        raise UserError(f"{path}: lasts 0 seconds: record it again")
    if recording.duration > max_seconds:
        raise UserError(
            f"{path}: lasts {recording.duration:.0f} s, and the limit is {max_seconds:.0f} s: split it first"
            " (the model was trained on short utterances; --max_seconds raises the limit)"
        )
    if wrong := implausible_rate(recording.sampling_rate):
        raise UserError(f"{path}: {wrong}")
    if recording.sampling_rate != SAMPLING_RATE:
        recording = recording.resample(SAMPLING_RATE)
    return recording.to_cut().with_id(str(path))


def _samples(cut: Cut) -> np.ndarray:
    try:
        return read(cut)
    except UserError as error:
        raise UserError(f"{error}: record or convert it again") from error
    except Exception as error:  # whatever a decoder throws
        raise UserError(f"{cut.id}: its header can be read but not its samples: copy or record it again") from error


def _recording(path: Path) -> Recording:
    if runs_in_shell(str(path)):
        raise UserError(f"{path}: a shell would interpret this name: rename the file")
    try:
        broken = broken_promise(path)
        recording = Recording.from_file(path, recording_id=str(path))
    except Exception as error:  # whatever a decoder throws
        raise UserError(f"{path}: not audio that can be decoded here: convert it to WAV or FLAC") from error
    if broken:
        raise UserError(f"{path}: truncated or damaged, {broken}: copy or record it again")
    return recording


def _print(utterance: Utterance, hypothesis: Hypothesis, format: str) -> None:
    seconds, name = seconds_of(len(utterance.samples)), printable(utterance.id)
    if seconds < SHORTEST_SECONDS:
        print_above(f"warning: {name}: lasts {seconds:.3f} s, too short for a word", sys.stderr)
    if hypothesis.truncated:
        why = "was ended in a loop" if hypothesis.looped else "met its length cap and may be cut short"
        print_above(f"warning: {name}: the text {why}", sys.stderr)
    if format == "json":
        row = {"file": utterance.id, "seconds": round(seconds, 3), "text": hypothesis.text}
        line = RAW_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(row, ensure_ascii=False))
    else:
        line = f"{name}: {printable(hypothesis.text)}"
    print_above(line)
