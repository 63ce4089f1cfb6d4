"""Audio files that a user names: found in folders, checked, and read whole or in blocks."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from lhotse import Recording

from speechllm_pl.core.audio.sampling_rates import implausible_rate
from speechllm_pl.core.audio.sources import runs_in_shell
from speechllm_pl.core.audio.units import SAMPLING_RATE
from speechllm_pl.core.errors import UserError, printable
from speechllm_pl.data.utterance import read
from speechllm_pl.storage.audio_blocks import blocks
from speechllm_pl.storage.containers import broken_promise
from speechllm_pl.storage.folders import AUDIO_SUFFIXES, audio_files, no_file
from speechllm_pl.storage.progress import print_above

WHOLE_SECONDS = 30.0
"""Duration up to which a file is read at once, as in evaluation."""


def find_audio(names: list[str]) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Expand folders to the audio files below them; return files and refused names, which are printed at once.

    Entries of a folder that are not files are left out and named.

    Returns:
        Each file with the folder that was given, or with its own; and what was refused.

    Raises:
        UserError: no file is left.
    """
    paths: list[tuple[Path, Path]] = []
    refused: list[str] = []
    for name in names:
        why = no_file(name)
        if why == "a folder":
            found = audio_files(Path(name))
            for skipped in found.skipped:
                print(f"left out {printable(skipped)}", file=sys.stderr)
            paths += [(path, Path(name)) for path in found.files]
            why = "" if found.files else f"holds no audio files ({', '.join(AUDIO_SUFFIXES)})"
            refused += [f"folder {name} {why}: correct the path"] if why else []
        elif why:
            why = why if why == "does not exist" else f"is no file ({why})"
            refused.append(f"audio file {name} {why}: correct the path")
        else:
            paths.append((Path(name), Path(name).parent))
    if not paths:
        raise UserError("; ".join(refused))
    return paths, [left_out(each) for each in refused]


def left_out(problem: str) -> str:
    """Print a problem and return it."""
    print_above(f"left out {printable(problem)}", sys.stderr)
    return problem


def samples_of(path: Path) -> Iterator[np.ndarray]:
    """Yield the samples of a file, `(n,)` float32, mono, at 16 kHz: a long one's in blocks.

    Raises:
        UserError: the file cannot be read; the message names it and the remedy.
    """
    recording = _recording(path)
    if recording.duration == 0:
        raise UserError(f"{path}: lasts 0 seconds: record it again")
    if wrong := implausible_rate(recording.sampling_rate):
        raise UserError(f"{path}: {wrong}")
    if recording.duration > WHOLE_SECONDS and _has_blocks(path):
        yield from _decoded(path)
    else:
        yield _whole(recording)


def _decoded(path: Path) -> Iterator[np.ndarray]:
    try:
        yield from blocks(path)
    except soundfile.LibsndfileError as error:
        raise _undecodable(path) from error


def _whole(recording: Recording) -> np.ndarray:
    if recording.sampling_rate != SAMPLING_RATE:
        recording = recording.resample(SAMPLING_RATE)
    try:
        return read(recording.to_cut().with_id(recording.id))
    except UserError as error:
        raise UserError(f"{error}: record or convert it again") from error
    except Exception as error:  # whatever a decoder throws
        raise _undecodable(Path(recording.id)) from error


def _undecodable(path: Path) -> UserError:
    return UserError(f"{path}: its header can be read but not its samples: copy or record it again")


def _has_blocks(path: Path) -> bool:
    """Whether libsndfile can read the file; Lhotse knows more formats, which it reads at once."""
    try:
        return soundfile.info(path).frames > 0
    except soundfile.LibsndfileError:
        return False


def _recording(path: Path) -> Recording:
    if why := no_file(path):
        remedy = "give the files in it" if why == "a folder" else "correct the path"
        raise UserError(f"{path} {why if why == 'does not exist' else f'is no file ({why})'}: {remedy}")
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
