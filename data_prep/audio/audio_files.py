"""Audio files of any container: decoding, measuring by the header, resampling and writing."""

import contextlib
import io
import math
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from data_prep.audio.checks import Rejected, check_one_frame
from speechllm_pl.core.audio.units import SAMPLING_RATE
from speechllm_pl.storage.containers import broken_promise
from speechllm_pl.storage.whole_file import write_whole

NEEDS_FFMPEG = {".m4a", ".m4b", ".mp4", ".aac", ".wma", ".webm"}
"""Containers that libsndfile cannot open."""

MP3_SLACK = 2
"""Frames by which an MP3 header may exceed what is decoded: encoder delay and padding."""


class Stretch(NamedTuple):
    """Length of a stretch of a recording."""

    samples: int
    sampling_rate: int
    recording_samples: int  # of the whole recording

    @property
    def seconds(self) -> float:
        return self.samples / self.sampling_rate


class Audio(NamedTuple):
    """Decoded stretch of a recording."""

    samples: np.ndarray  # (channel, T) float32
    sampling_rate: int
    recording_samples: int  # of the whole recording
    lazy: bool  # whether training can decode the file itself

    def stretch(self) -> Stretch:
        return Stretch(self.samples.shape[1], self.sampling_rate, self.recording_samples)


def read_audio(path: Path, start: float = 0.0, end: float | None = None, *, max_seconds: float = math.inf) -> Audio:
    """Decode the stretch from `start` to `end` seconds of a file.

    Raises:
        Rejected: the file is empty, unreadable, shorter than its header or `end` says, or the stretch is longer
            than `max_seconds`; a long recording is not decoded to find that out.
    """
    if path.suffix.lower() in NEEDS_FFMPEG and path.stat().st_size:
        return _read_with_ffmpeg(path, start, end, max_seconds)
    with _opened(path) as file:
        first, last = _bounds(file, start, end, max_seconds)
        samples = _decoded(file, first, last)
        missing = (last - first) - samples.shape[1]
        return Audio(samples, file.samplerate, file.frames - missing, lazy=True)


def read_end(path: Path, start: float = 0.0, end: float | None = None, *, max_seconds: float = math.inf) -> Stretch:
    """Measure the stretch from `start` to `end` seconds of a mono file by its header; decode its last 10 ms only.

    An MP3 is decoded as a whole: the length in its header is optional, and seeking in it does not find its end.

    Raises:
        Rejected: as `read_audio`; and for a recording of several channels.
    """
    with _opened(path) as file:
        first, last = _bounds(file, start, end, max_seconds)
        if file.channels > 1:
            raise Rejected(f"not mono: {file.channels} channels")
        check_one_frame(last - first, file.samplerate)
        decoded_from = first if file.format == "MP3" else last - file.samplerate // 100
        missing = (last - decoded_from) - _decoded(file, decoded_from, last).shape[1]
        return Stretch(last - first - missing, file.samplerate, file.frames - missing)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """Open a file. Reject it if it is shorter than its container tells, or libsndfile fails, also in the block."""
    if path.stat().st_size == 0:
        raise Rejected("empty: file of 0 bytes")
    try:
        if broken := broken_promise(path):
            raise Rejected(f"truncated: {broken}")
        with soundfile.SoundFile(path) as file:
            yield file
    except (soundfile.LibsndfileError, OSError) as error:
        raise Rejected(f"unreadable: {getattr(error, 'error_string', error)}") from error


def _bounds(file: soundfile.SoundFile, start: float, end: float | None, max_seconds: float) -> tuple[int, int]:
    """First sample of the stretch, and the one after its last."""
    rate, total = file.samplerate, file.frames
    if total > 2**60:  # libsndfile's "unknown", as in FLAC written to a pipe
        raise Rejected("unreadable: the header does not say how long it is; re-encode the file")
    first = round(start * rate)
    last = total if end is None else round(end * rate)
    if last > total + 0.01 * rate or first > total:
        raise Rejected(f"beyond the end: {end or start} s of a recording of {total / rate:.3f} s")
    last = min(last, total)
    _check_length((last - first) / rate, max_seconds)
    return first, last


def _decoded(file: soundfile.SoundFile, first: int, last: int) -> np.ndarray:
    """Decode (channel, T) float32, all samples from `first` to `last` but for what an MP3 may lack."""
    file.seek(first)
    samples = file.read(last - first, dtype="float32", always_2d=True).T
    missing = (last - first) - samples.shape[1]
    if missing > (MP3_SLACK * _mp3_frame(file.samplerate) if file.format == "MP3" else 0):
        raise Rejected(f"truncated: the header promises {missing} samples more than there are")
    return samples


def _mp3_frame(sampling_rate: int) -> int:
    """Samples of an MP3 frame, half as many below 32 kHz (MPEG 2 and 2.5)."""
    return 1152 if sampling_rate >= 32_000 else 576


def _read_with_ffmpeg(path: Path, start: float, end: float | None, max_seconds: float) -> Audio:
    if shutil.which("ffmpeg") is None:
        raise Rejected(f"unreadable: {path.suffix} needs the program ffmpeg, which is not installed")
    stretch = ["-ss", str(start)] + ([] if end is None else ["-t", str(end - start)])
    to_floats = ["-ac", "1", "-ar", str(SAMPLING_RATE), "-f", "f32le", "-"]
    command = ["ffmpeg", "-nostdin", "-v", "error", *stretch, "-i", f"file:{path}", *to_floats]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        message = done.stderr.decode(errors="replace").strip().splitlines() or ["ffmpeg failed"]
        raise Rejected(f"unreadable: {message[-1]}")
    samples = np.frombuffer(done.stdout, dtype="<f4").reshape(1, -1)
    _check_length(samples.size / SAMPLING_RATE, max_seconds)
    return Audio(samples, SAMPLING_RATE, samples.shape[1], lazy=False)


def _check_length(seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise Rejected(f"too long: {seconds:.2f} s, --max-seconds is {max_seconds:g}")


def resample(samples: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Resample `samples` (T,) at `sampling_rate` Hz to (T',) float32 at 16 kHz, as Lhotse does on loading."""
    if sampling_rate == SAMPLING_RATE:
        return samples
    import torch  # only here: reading and checking need no torch of their own
    from lhotse.augmentation import get_or_create_resampler  # which makes the filter of a rate once

    from speechllm_pl.core.audio.resampling import steady

    return steady(get_or_create_resampler)(sampling_rate, SAMPLING_RATE)(torch.from_numpy(samples)).numpy()


def write_audio(path: Path, samples: np.ndarray, *, comment: str = "") -> None:
    """Write `samples` (T,) at 16 kHz as 16-bit FLAC, atomically.

    Samples beyond full scale (floating-point sources, overshoot of the resampling) are scaled down, not
    clipped.
    """
    peak = float(np.abs(samples).max(initial=0.0))
    encoded = io.BytesIO()  # in memory first: libsndfile would hide a full disk
    with soundfile.SoundFile(encoded, "w", SAMPLING_RATE, 1, format="FLAC", subtype="PCM_16") as audio:
        if comment:  # libsndfile refuses an empty one
            audio.comment = comment
        audio.write(samples / max(1.0, peak))
    write_whole(path, encoded.getvalue())
