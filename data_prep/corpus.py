"""What every corpus goes through on its way to Lhotse: checks, manifests, quarantine, summary.

A corpus is a list of `Utterance`s. `prepare` opens each recording in parallel, keeps those that a model can
be trained on and writes one manifest per split; every other one becomes a line of `quarantine.tsv` with the
reason. Manifests appear only when complete and depend on the input alone (not on the number of processes or
the clock), so that a run can be interrupted and repeated at will.
"""

import argparse
import contextlib
import functools
import gzip
import io
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import quote

import numpy as np
import soundfile
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment
from tqdm import tqdm

from speechllm_pl.core.errors import UserError
from speechllm_pl.core.wav import missing_wav_bytes

SAMPLING_RATE = 16_000
"""Hz, of every recording after loading."""

SPLITS = ("train", "dev", "test")

FRAME_SECONDS = 0.08
"""Step of the encoder: a 10 ms hop times a convolution stride of 8."""

SILENCE = 2e-4
"""Span between the largest and the smallest sample (full scale 2) below which a recording is silent: three
steps of 16 bits on either side, so that dither alone does not count as sound."""

NEEDS_FFMPEG = {".m4a", ".m4b", ".mp4", ".aac", ".wma", ".webm"}
"""Containers that libsndfile cannot open."""

MP3_SLACK = 2 * 1152
"""Samples by which an MP3 header may exceed what is decoded: two frames of encoder delay and padding."""


@dataclass(frozen=True)
class Utterance:
    """One transcribed stretch of a recording, from `start` to `end` seconds (None: to its end)."""

    id: str
    path: Path | str
    text: str
    language: str  # ISO 639-1
    speaker: str
    split: str
    start: float = 0.0
    end: float | None = None


@dataclass(frozen=True)
class Rejection:
    """One line of the quarantine file. What stands before the first colon of `reason` is its kind."""

    split: str
    id: str
    path: str
    reason: str


@dataclass(frozen=True)
class Summary:
    """What `prepare` kept and what it rejected, both in the order of the input."""

    cuts_by_split: dict[str, list[MonoCut]]
    rejected: list[Rejection]


class Rejected(Exception):
    """A recording that cannot be used; the message is the reason, as `kind` or `kind: details`."""


class Audio(NamedTuple):
    """A stretch of a recording, decoded."""

    samples: np.ndarray  # (channel, T) float32
    sampling_rate: int
    recording_samples: int  # of the whole recording
    lazy: bool  # whether training can decode the file itself


# ---------------------------------------------------------------- one recording


def check_samples(samples: np.ndarray, sampling_rate: int) -> None:
    """Reject `samples` (T,) that are empty, shorter than one encoder frame, silent or not finite."""
    if samples.size == 0:
        raise Rejected("empty: no samples")
    if not np.isfinite(samples).all():
        raise Rejected(f"NaN samples: {np.count_nonzero(~np.isfinite(samples))} of {samples.size} are not finite")
    if samples.size < FRAME_SECONDS * sampling_rate:
        raise Rejected(f"too short: {samples.size / sampling_rate:.3f} s, one encoder frame is {FRAME_SECONDS} s")
    if np.ptp(samples) < SILENCE:
        raise Rejected("silent")


def check_transcript(text: str, seconds: float) -> None:
    """Reject a transcript that is empty, or that the encoder's frames cannot carry.

    CTC emits at most one piece a frame, and no tokenizer joins words: more words than frames is impossible
    whatever the tokenizer. Nothing stricter is known here, because pieces may be as long as a word.
    """
    words = len(text.split())
    if words == 0:
        raise Rejected("no transcript")
    frames = math.floor(seconds / FRAME_SECONDS)
    if words > frames:
        raise Rejected(f"transcript too long: {words} words in {frames} encoder frames ({seconds:.2f} s)")


def cut_from_utterance(
    utterance: Utterance, *, max_seconds: float, copies: Path | None = None, copy_all: bool = False
) -> MonoCut:
    """Open and check one recording; return its cut, which loads as (1, T) at 16 kHz.

    Resampling is left to loading. A recording of several channels, or one that only ffmpeg decodes, cannot be
    loaded as mono by a Lhotse manifest: it is written as 16 kHz mono FLAC in the folder `copies` (with
    `copy_all` every recording is), and a copy already made from the same source is used again.

    Raises:
        Rejected: with the reason, for whatever cannot be used.
    """
    end = math.inf if utterance.end is None else utterance.end
    if not 0 <= utterance.start < end:
        raise Rejected(f"end before start: from {utterance.start} s to {utterance.end} s")
    if not utterance.text.strip():
        raise Rejected("no transcript")
    path = Path(utterance.path)
    if not os.path.isfile(path):  # unlike Path.is_file, says no to impossible names too
        raise Rejected("missing: no such audio file")
    copy = None if copies is None else copies / f"{quote(utterance.id, safe=' ')}.flac"
    if copy is not None and len(copy.name) > 240:  # file systems stop at 255
        raise Rejected("id too long for the name of a copy")
    fingerprint = _fingerprint(utterance, path)
    reused = copy is not None and _is_copy_of(copy, fingerprint)
    # A copy holds the stretch alone, so it is read from end to end.
    source = (copy, 0.0, None) if reused and copy else (path, utterance.start, utterance.end)
    audio = read_audio(*source, max_seconds=max_seconds)
    samples = audio.samples.mean(axis=0)  # (T,)
    check_samples(samples, audio.sampling_rate)
    check_transcript(utterance.text, samples.size / audio.sampling_rate)
    if not reused:
        if not copy_all and audio.lazy and len(audio.samples) == 1:
            return _cut(utterance, path, audio, utterance.start)
        if copy is None:
            raise Rejected(f"not mono: {len(audio.samples)} channels or a format that needs a mono copy")
        samples = resample(samples, audio.sampling_rate)
        write_audio(copy, samples, comment=fingerprint)
        audio = Audio(samples[None], SAMPLING_RATE, samples.size, lazy=True)
    assert copy is not None
    return _cut(utterance, copy, audio, start=0.0)


def _cut(utterance: Utterance, path: Path, audio: Audio, start: float) -> MonoCut:
    """The cut of `audio`, which begins `start` seconds into the file `path`."""
    recording = Recording(
        id=utterance.id,
        sources=[AudioSource(type="file", channels=[0], source=str(path))],
        sampling_rate=audio.sampling_rate,
        num_samples=audio.recording_samples,
        duration=audio.recording_samples / audio.sampling_rate,
    )
    if audio.sampling_rate != SAMPLING_RATE:
        recording = recording.resample(SAMPLING_RATE)
    whole = audio.samples.shape[1] == audio.recording_samples
    duration = recording.duration if whole else audio.samples.shape[1] / audio.sampling_rate
    supervision = SupervisionSegment(
        id=utterance.id,
        recording_id=utterance.id,
        start=0.0,
        duration=duration,
        channel=0,
        text=utterance.text,
        language=utterance.language,
        speaker=utterance.speaker,
    )
    return MonoCut(
        id=utterance.id,
        start=start,
        duration=duration,
        channel=0,
        recording=recording,
        supervisions=[supervision],
    )


# ---------------------------------------------------------------- reading and writing audio


def read_audio(path: Path, start: float = 0.0, end: float | None = None, *, max_seconds: float = math.inf) -> Audio:
    """Decode the stretch from `start` to `end` seconds of a file.

    Raises:
        Rejected: the file is empty, unreadable, shorter than its header or `end` says, or the stretch is
        longer
            than `max_seconds`; a long recording is not decoded to find that out.
    """
    if path.stat().st_size == 0:
        raise Rejected("empty: file of 0 bytes")
    if path.suffix.lower() in NEEDS_FFMPEG:
        return _read_with_ffmpeg(path, start, end, max_seconds)
    try:
        missing = missing_wav_bytes(path)
        if missing:
            raise Rejected(f"truncated: the WAV header promises {missing} bytes more than there are")
        with soundfile.SoundFile(path) as file:
            return _read_stretch(file, start, end, max_seconds)
    except (soundfile.LibsndfileError, OSError) as error:
        raise Rejected(f"unreadable: {getattr(error, 'error_string', error)}") from error


def _read_stretch(file: soundfile.SoundFile, start: float, end: float | None, max_seconds: float) -> Audio:
    rate, total = file.samplerate, file.frames
    if total > 2**60:  # libsndfile's "unknown", as in FLAC written to a pipe
        raise Rejected("unreadable: the header does not say how long it is; re-encode the file")
    first = round(start * rate)
    last = total if end is None else round(end * rate)
    if last > total + 0.01 * rate or first > total:
        raise Rejected(f"beyond the end: {end or start} s of a recording of {total / rate:.3f} s")
    last = min(last, total)
    _check_length((last - first) / rate, max_seconds)
    file.seek(first)
    samples = file.read(last - first, dtype="float32", always_2d=True).T  # (channel, T)
    missing = (last - first) - samples.shape[1]
    if missing > (MP3_SLACK if file.format == "MP3" else 0):
        raise Rejected(f"truncated: the header promises {missing} samples more than there are")
    return Audio(samples, rate, total - missing, lazy=True)


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
    """`samples` (T,) at `sampling_rate` Hz → (T',) float32 at 16 kHz, as Lhotse resamples on loading."""
    if sampling_rate == SAMPLING_RATE:
        return samples
    import torch  # only here: reading and checking need no torch of their own
    from torchaudio.functional import resample as sinc_resample

    return sinc_resample(torch.from_numpy(samples), sampling_rate, SAMPLING_RATE).numpy()


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
    with replace_atomically(path) as file:
        file.write(encoded.getbuffer())


def _fingerprint(utterance: Utterance, path: Path) -> str:
    """Names the stretch of audio that a copy was made from; kept as the copy's comment."""
    status = path.stat()
    source = [str(path), status.st_size, status.st_mtime_ns, utterance.start, utterance.end]
    return json.dumps(source, ensure_ascii=True)


def _is_copy_of(copy: Path, fingerprint: str) -> bool:
    try:
        with soundfile.SoundFile(copy) as file:
            return file.comment == fingerprint
    except (soundfile.LibsndfileError, OSError):
        return False


# ---------------------------------------------------------------- a whole corpus


def prepare(
    utterances: Iterable[Utterance | Rejection],
    output: Path,
    *,
    jobs: int,
    max_seconds: float,
    make_cut: Callable[[Utterance], MonoCut] | None = None,
) -> Summary:
    """Check all utterances, write `output`/{split}.jsonl.gz and quarantine.tsv, print the summary.

    Args:
        utterances: in the order that the manifests shall have. `Rejection`s found while listing the corpus go
        to the
            quarantine file unchanged.
        jobs: processes. With more than one, `make_cut` must be picklable: a module's function or a partial of
        one. make_cut: utterance → cut; raises `Rejected`. Default: `cut_from_utterance`.

    Raises:
        UserError: nothing was usable (the quarantine file is written, manifests are left alone).
    """
    make_cut = make_cut or functools.partial(cut_from_utterance, max_seconds=max_seconds)
    items = list(_reject_duplicates(utterances))
    cuts_by_split: dict[str, list[MonoCut]] = {}
    rejected: list[Rejection] = []
    for item, result in zip(items, _run_checks(items, make_cut, jobs), strict=True):
        if isinstance(result, Rejection):
            rejected.append(result)
        else:
            cuts_by_split.setdefault(item.split, []).append(result)
    _write_quarantine(rejected, output)
    print(summary_table(cuts_by_split, rejected))
    if rejected:
        print(f"rejected recordings: {output / 'quarantine.tsv'}")
    if not cuts_by_split:
        raise UserError(
            f"no usable recording for {output}: all {len(rejected)} were rejected, see {output / 'quarantine.tsv'}"
        )
    write_cuts(cuts_by_split, output)
    return Summary(cuts_by_split, rejected)


def _reject_duplicates(utterances: Iterable[Utterance | Rejection]) -> Iterator[Utterance | Rejection]:
    """The first utterance of an id stays; the others, and those of an unknown split, become rejections."""
    seen: set[str] = set()
    for item in utterances:
        if isinstance(item, Rejection):
            yield item
        elif item.split not in SPLITS:
            yield rejection(item, f"unknown split: {item.split!r} is none of {', '.join(SPLITS)}")
        elif item.id in seen:
            yield rejection(item, "duplicate id")
        else:
            seen.add(item.id)
            yield item


def rejection(utterance: Utterance, reason: str) -> Rejection:
    return Rejection(utterance.split, utterance.id, str(utterance.path), reason)


def _check(item: Utterance | Rejection, make_cut: Callable[[Utterance], MonoCut]) -> MonoCut | Rejection:
    if isinstance(item, Rejection):
        return item
    try:
        return make_cut(item)
    except Rejected as error:
        return rejection(item, str(error))


def _run_checks(
    items: Sequence[Utterance | Rejection], make_cut: Callable[[Utterance], MonoCut], jobs: int
) -> Iterator[MonoCut | Rejection]:
    """Results in the order of `items`."""
    check = functools.partial(_check, make_cut=make_cut)
    # In a log file every refresh is a line: one in ten seconds is enough there.
    interval = 0.2 if sys.stderr.isatty() else 10.0
    bar = functools.partial(tqdm, total=len(items), unit=" utterances", desc="checking", mininterval=interval)
    if jobs <= 1:
        yield from bar(map(check, items))
        return
    # Workers fork from a server that never ran anything: forking a process that has used OpenMP may hang.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__] if __name__ != "__main__" else [])
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker)
    try:
        yield from bar(pool.map(check, items, chunksize=16))
    except BrokenProcessPool as error:
        raise UserError("a worker process died, most likely for lack of memory: try fewer --jobs") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """One thread a process; Ctrl-C is the parent's business, which then cancels what is left."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def write_cuts(cuts_by_split: Mapping[str, Sequence[MonoCut]], output: Path) -> None:
    """Write `output`/{split}.jsonl.gz, each atomically; a split that has no cuts has no file afterwards."""
    # Train last: whoever looks for it (make does) finds the others there too, also after an interruption.
    for split, cuts in sorted(cuts_by_split.items(), key=lambda item: item[0] == "train"):
        with (
            replace_atomically(output / f"{split}.jsonl.gz") as file,
            # No name and no time in the header: the same cuts give the same bytes.
            gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as compressed,
        ):
            for cut in cuts:
                compressed.write((json.dumps(cut.to_dict(), ensure_ascii=False) + "\n").encode())
    for split in set(SPLITS) - {split for split, cuts in cuts_by_split.items() if cuts}:
        (output / f"{split}.jsonl.gz").unlink(missing_ok=True)


def _write_quarantine(rejected: Sequence[Rejection], output: Path) -> None:
    with replace_atomically(output / "quarantine.tsv") as file:
        file.write(b"split\tid\tpath\treason\n")
        for line in rejected:
            fields = (line.split, line.id, line.path, line.reason)
            # A field is one line without tabs, whatever the corpus put into it.
            file.write(("\t".join(" ".join(field.split()) for field in fields) + "\n").encode())


def summary_table(cuts_by_split: Mapping[str, Sequence[MonoCut]], rejected: Sequence[Rejection]) -> str:
    """Utterances, hours and seconds per split and language, then the rejected ones by kind of reason."""
    lines = [f"{'split':<6} {'language':<9}{'utterances':>11}{'hours':>8}{'seconds':>10}"]
    known = [split for split in SPLITS if split in cuts_by_split]
    for split in known + sorted(set(cuts_by_split) - set(known)):
        seconds: dict[str, list[float]] = {}
        for cut in cuts_by_split[split]:
            seconds.setdefault(cut.supervisions[0].language or "?", []).append(cut.duration)
        rows = sorted(seconds.items())
        if len(rows) > 1:
            rows.append(("all", [duration for durations in seconds.values() for duration in durations]))
        for language, durations in rows:
            total = sum(durations)
            lines.append(f"{split:<6} {language:<9}{len(durations):>11}{total / 3600:>8.2f}{total:>10.0f}")
    lines.append(f"rejected: {len(rejected)}")
    kinds = Counter(line.reason.split(":")[0] for line in rejected)
    lines += [f"  {count:>6}  {kind}" for kind, count in kinds.most_common()]
    return "\n".join(lines)


@contextlib.contextmanager
def replace_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ---------------------------------------------------------------- the command line


def add_standard_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --output, --jobs, --max-seconds."""
    parser.add_argument("--output", type=Path, required=True, help="folder for the manifests, for example data/mine")
    parser.add_argument(
        "--jobs", type=_at_least_one, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    parser.add_argument(
        "--max-seconds", type=float, default=30.0, help="reject longer utterances (default: %(default)s)"
    )


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def run(main: Callable[[], None]) -> None:
    """Run a program: bad input is one line and exit status 2, Ctrl-C one line and 130."""
    try:
        main()
    except (UserError, OSError) as error:  # OSError: full disk, no permission
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        raise SystemExit(130) from None
