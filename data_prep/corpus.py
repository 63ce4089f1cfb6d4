"""What every corpus goes through on its way to Lhotse: checks, manifests, quarantine, summary.

A corpus is a sequence of `Utterance`s. `prepare` opens each recording in parallel, keeps those that a model can
be trained on and writes one manifest per split; every other one becomes a line of `quarantine.tsv` with the
reason. Manifests appear only when complete and depend on the input alone (not on the number of processes or
the clock), so that a run can be interrupted and repeated at will. The sequence is read once and never held: twelve
million utterances take as much memory as some ten thousand, and 8-byte digests of their ids.
"""

import argparse
import contextlib
import functools
import hashlib
import io
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import soundfile
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment
from tqdm import tqdm

from data_prep.pieces import compressed, join_files, replace_atomically, write_piece
from data_prep.processes import process_context, process_pool
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

OGG_PAGE = 65_307
"""Bytes of the longest page of an Ogg file."""

PIECE = 20_000
"""Utterances that are checked again at most when an interrupted run is repeated."""


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
    gender: str = ""  # male or female; empty where the corpus does not say
    subset: str = ""  # the corpus's own name for a part of a split
    source: str = ""  # table and line that it comes from


LABELS = ("gender", "subset", "source")
"""Fields of an `Utterance` that say nothing of its sound or text."""


@dataclass(frozen=True)
class Rejection:
    """One line of the quarantine file. What stands before the first colon of `reason` is its kind."""

    split: str
    id: str
    path: str
    reason: str
    source: str = ""


@dataclass
class Summary:
    """What `prepare` kept and what it rejected."""

    utterances: Counter[tuple[str, str]] = field(default_factory=Counter)  # (split or subset, language) → how many
    seconds: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))  # likewise
    rejected: Counter[str] = field(default_factory=Counter)  # kind of reason → how many

    def table(self) -> str:
        """Utterances, hours and seconds per split and language, then the rejected ones by kind of reason."""
        width = max([6, *(len(split) for split, _ in self.utterances)])
        lines = [f"{'split':<{width}} {'language':<9}{'utterances':>11}{'hours':>10}{'seconds':>13}"]
        for split in sorted({split for split, _ in self.utterances}, key=_place_of_split):
            languages = sorted(language for of, language in self.utterances if of == split)
            rows = [(language, [(split, language)]) for language in languages]
            if len(rows) > 1:
                rows.append(("all", [(split, language) for language in languages]))
            for name, keys in rows:
                count, total = sum(self.utterances[key] for key in keys), sum(self.seconds[key] for key in keys)
                lines.append(f"{split:<{width}} {name:<9}{count:>11}{total / 3600:>10.2f}{total:>13.0f}")
        lines.append(f"rejected: {self.rejected.total()}")
        lines += [f"  {count:>6}  {kind}" for kind, count in self.rejected.most_common()]
        return "\n".join(lines)

    def to_json(self) -> bytes:
        rows = [[*key, count, self.seconds[key]] for key, count in self.utterances.items()]
        return json.dumps({"kept": rows, "rejected": self.rejected}).encode()

    def add_json(self, content: bytes) -> None:
        """Add what another one's `to_json` gave."""
        record = json.loads(content)
        for split, language, count, seconds in record["kept"]:
            self.utterances[split, language] += count
            self.seconds[split, language] += seconds
        self.rejected.update(record["rejected"])


def _place_of_split(split: str) -> tuple[int, str]:
    """train, dev, test, each followed by its subsets."""
    places = [place for place, known in enumerate(SPLITS) if split.startswith(known)]
    return (places or [len(SPLITS)])[0], split


class Rejected(Exception):
    """A recording that cannot be used; the message is the reason, as `kind` or `kind: details`."""


class Refused(Exception):
    """The first rejection of a strict run. Programs print the message alone and exit with status 1."""


class Stretch(NamedTuple):
    """A stretch of a recording, measured."""

    samples: int
    sampling_rate: int
    recording_samples: int  # of the whole recording

    @property
    def seconds(self) -> float:
        return self.samples / self.sampling_rate


class Audio(NamedTuple):
    """A stretch of a recording, decoded."""

    samples: np.ndarray  # (channel, T) float32
    sampling_rate: int
    recording_samples: int  # of the whole recording
    lazy: bool  # whether training can decode the file itself

    def stretch(self) -> Stretch:
        return Stretch(self.samples.shape[1], self.sampling_rate, self.recording_samples)


# ---------------------------------------------------------------- one recording


def check_samples(samples: np.ndarray, sampling_rate: int) -> None:
    """Reject `samples` (T,) that are empty, shorter than one encoder frame, silent or not finite."""
    if samples.size == 0:
        raise Rejected("empty: no samples")
    if not np.isfinite(samples).all():
        raise Rejected(f"NaN samples: {np.count_nonzero(~np.isfinite(samples))} of {samples.size} are not finite")
    if samples.size < FRAME_SECONDS * sampling_rate:
        raise Rejected(_too_short(samples.size, sampling_rate))
    if np.ptp(samples) < SILENCE:
        raise Rejected("silent")


def _too_short(samples: int, sampling_rate: int) -> str:
    return f"too short: {samples / sampling_rate:.3f} s, one encoder frame is {FRAME_SECONDS} s"


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
    utterance: Utterance,
    *,
    max_seconds: float,
    copies: Path | None = None,
    copy_all: bool = False,
    rates: tuple[int, int] | None = None,
) -> MonoCut:
    """Open and check one recording; return its cut, which loads as (1, T) at 16 kHz.

    Resampling is left to loading. A recording of several channels, or one that only ffmpeg decodes, cannot be
    loaded as mono by a Lhotse manifest: it is written as 16 kHz mono FLAC in the folder `copies` (with
    `copy_all` every recording is), and a copy already made from the same source is used again.

    Args:
        rates: the lowest and the highest sampling rate in Hz that the corpus has; default is any.

    Raises:
        Rejected: with the reason, for whatever cannot be used.
    """
    path = _existing_path(utterance)
    copy = None if copies is None else copies / f"{quote(utterance.id, safe=' ')}.flac"
    if copy is not None and len(copy.name) > 240:  # file systems stop at 255
        raise Rejected("id too long for the name of a copy")
    fingerprint = _fingerprint(utterance, path)
    reused = copy is not None and _is_copy_of(copy, fingerprint)
    # A copy holds the stretch alone, so it is read from end to end.
    source = (copy, 0.0, None) if reused and copy else (path, utterance.start, utterance.end)
    audio = read_audio(*source, max_seconds=max_seconds)
    _check_rate(audio.sampling_rate, rates)
    samples = audio.samples.mean(axis=0)  # (T,)
    check_samples(samples, audio.sampling_rate)
    check_transcript(utterance.text, samples.size / audio.sampling_rate)
    if not reused:
        if not copy_all and audio.lazy and len(audio.samples) == 1:
            return _cut(utterance, path, audio.stretch(), utterance.start)
        if copy is None:
            raise Rejected(f"not mono: {len(audio.samples)} channels or a format that needs a mono copy")
        samples = resample(samples, audio.sampling_rate)
        write_audio(copy, samples, comment=fingerprint)
        audio = Audio(samples[None], SAMPLING_RATE, samples.size, lazy=True)
    assert copy is not None
    return _cut(utterance, copy, audio.stretch(), start=0.0)


def cut_from_header(utterance: Utterance, *, max_seconds: float, rates: tuple[int, int] | None = None) -> MonoCut:
    """As `cut_from_utterance`, many times faster, by a header that is believed: only the end is decoded.

    Finds what is missing, empty, cut short, too long or of a wrong rate, but neither silence nor damage within.

    Raises:
        Rejected: with the reason, for whatever cannot be used.
    """
    path = _existing_path(utterance)
    stretch = read_end(path, utterance.start, utterance.end, max_seconds=max_seconds)
    _check_rate(stretch.sampling_rate, rates)
    check_transcript(utterance.text, stretch.seconds)
    return _cut(utterance, path, stretch, utterance.start)


def _existing_path(utterance: Utterance) -> Path:
    """The recording's path, after all that can be told without opening it."""
    end = math.inf if utterance.end is None else utterance.end
    if not 0 <= utterance.start < end:
        raise Rejected(f"end before start: from {utterance.start} s to {utterance.end} s")
    if not utterance.text.strip():
        raise Rejected("no transcript")
    if not os.path.isfile(utterance.path):  # unlike Path.is_file, says no to impossible names too
        raise Rejected("missing: no such audio file")
    return Path(utterance.path)


def _check_rate(sampling_rate: int, rates: tuple[int, int] | None) -> None:
    if rates is not None and not rates[0] <= sampling_rate <= rates[1]:
        expected = " to ".join(f"{rate}" for rate in sorted(set(rates)))
        raise Rejected(f"wrong sampling rate: {sampling_rate} Hz, the corpus has {expected} Hz")


def _cut(utterance: Utterance, path: Path, audio: Stretch, start: float) -> MonoCut:
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
    whole = audio.samples == audio.recording_samples
    duration = recording.duration if whole else audio.seconds
    supervision = SupervisionSegment(
        id=utterance.id,
        recording_id=utterance.id,
        start=0.0,
        duration=duration,
        channel=0,
        text=utterance.text,
        language=utterance.language,
        speaker=utterance.speaker,
        gender=utterance.gender or None,
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
        if last - first < FRAME_SECONDS * file.samplerate:
            raise Rejected(_too_short(last - first, file.samplerate))
        decoded_from = first if file.format == "MP3" else last - file.samplerate // 100
        missing = (last - decoded_from) - _decoded(file, decoded_from, last).shape[1]
        return Stretch(last - first - missing, file.samplerate, file.frames - missing)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """The open file, as whole as its container tells; what libsndfile cannot read, also in the block, is rejected."""
    if path.stat().st_size == 0:
        raise Rejected("empty: file of 0 bytes")
    try:
        missing = missing_wav_bytes(path)
        if missing:
            raise Rejected(f"truncated: the WAV header promises {missing} bytes more than there are")
        with soundfile.SoundFile(path) as file:
            if file.format == "OGG" and not ends_as_ogg(path):
                raise Rejected("truncated: it does not end with a whole Ogg page that is marked as the last")
            yield file
    except (soundfile.LibsndfileError, OSError) as error:
        raise Rejected(f"unreadable: {getattr(error, 'error_string', error)}") from error


def ends_as_ogg(path: Path) -> bool:
    """Whether an Ogg file has the whole of its last page. libsndfile takes a file cut short for a short recording."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - OGG_PAGE))
        tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS\0")) :]
    if len(page) < 27 or not page[5] & 4:  # the flag "end of stream"
        return False
    lengths = page[27 : 27 + page[26]]
    return len(page) >= 27 + page[26] + sum(lengths)


def _bounds(file: soundfile.SoundFile, start: float, end: float | None, max_seconds: float) -> tuple[int, int]:
    """The first sample of the stretch, and the one after its last."""
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
    """(channel, T) float32, all samples from `first` to `last` but for what an MP3 may lack."""
    file.seek(first)
    samples = file.read(last - first, dtype="float32", always_2d=True).T
    missing = (last - first) - samples.shape[1]
    if missing > (MP3_SLACK if file.format == "MP3" else 0):
        raise Rejected(f"truncated: the header promises {missing} samples more than there are")
    return samples


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


class Kept(NamedTuple):
    """A line of one or more manifests."""

    manifests: tuple[str, ...]
    key: tuple[str, str]  # (split or subset, language)
    seconds: float
    line: bytes


def prepare(
    utterances: Iterable[Utterance | Rejection],
    output: Path,
    *,
    jobs: int,
    max_seconds: float,
    make_cut: Callable[[Utterance], MonoCut] | None = None,
    total: int | None = None,
    manifests: Collection[str] = SPLITS,
    strict: bool = False,
) -> Summary:
    """Check all utterances, write `output`/{split}.jsonl.gz and quarantine.tsv, print the summary.

    What has been checked is kept in `output`/.pieces until the manifests are there, for a run that goes on.

    Args:
        utterances: in the order that the manifests shall have; read once. `Rejection`s found while listing the
            corpus go to the quarantine file unchanged.
        jobs: processes. With more than one, `make_cut` must be picklable: a module's function or a partial of one.
        make_cut: utterance → cut; raises `Rejected`. Default: `cut_from_utterance`.
        total: how many utterances there are about, for the progress bar; not needed for a list.
        manifests: names of all that this corpus may have: of the splits, and of subsets that shall have their own.
            Those for which nothing is found are removed.
        strict: stop at the first rejection.

    Raises:
        UserError: nothing was usable (the quarantine file is written, manifests are left alone).
        Refused: the first rejection of a strict run.
    """
    make_cut = make_cut or functools.partial(cut_from_utterance, max_seconds=max_seconds)
    if total is None and isinstance(utterances, Sized):
        total = len(utterances)
    summary, pieces = Summary(), []
    settings = f"{_identity(make_cut)} {sorted(manifests)} {strict}"
    with _checker(make_cut, jobs) as check, _progress_bar(total) as bar:
        for number, items in enumerate(_batches(_reject_duplicates(utterances))):
            piece = output / ".pieces" / f"{number:06d}-{_digest(settings, items)}"
            if piece.is_dir():
                bar.update(len(items))
            else:
                write_piece(piece, _checked(items, check, bar, manifests, strict))
            summary.add_json((piece / "summary.json").read_bytes())
            pieces.append(piece)
    _publish(pieces, summary, output, manifests)
    return summary


def _publish(pieces: Sequence[Path], summary: Summary, output: Path, manifests: Collection[str]) -> None:
    with replace_atomically(output / "quarantine.tsv") as file:
        file.write(b"split\tid\tpath\treason\tsource\n")
        join_files([piece / "quarantine.tsv" for piece in pieces], file)
    print(summary.table())
    rejected = summary.rejected.total()
    if rejected:
        print(f"rejected recordings: {output / 'quarantine.tsv'}")
    if summary.utterances:
        # Train last: whoever looks for it (make does) finds the others there too, also after an interruption.
        for name in sorted(manifests, key=lambda name: name == "train"):
            _publish_manifest(pieces, output / f"{name}.jsonl.gz")
    shutil.rmtree(output / ".pieces", ignore_errors=True)
    if not summary.utterances:
        raise UserError(
            f"no usable recording for {output}: all {rejected} were rejected, see {output / 'quarantine.tsv'}"
        )


def _publish_manifest(pieces: Sequence[Path], path: Path) -> None:
    parts = [piece / path.name for piece in pieces if (piece / path.name).is_file()]
    if not parts:
        path.unlink(missing_ok=True)
        return
    with replace_atomically(path) as file:
        join_files(parts, file)


def _reject_duplicates(utterances: Iterable[Utterance | Rejection]) -> Iterator[Utterance | Rejection]:
    """The first utterance of an id stays; the others, and those of an unknown split, become rejections."""
    seen: set[int] = set()  # of digests: a twentieth of the memory that the ids would take with long names
    for item in utterances:
        if isinstance(item, Rejection):
            yield item
            continue
        digest = int.from_bytes(hashlib.blake2b(item.id.encode(), digest_size=8).digest(), "little")
        if item.split not in SPLITS:
            yield rejection(item, f"unknown split: {item.split!r} is none of {', '.join(SPLITS)}")
        elif digest in seen:
            yield rejection(item, "duplicate id")
        else:
            seen.add(digest)
            yield item


def _batches(items: Iterable[Utterance | Rejection]) -> Iterator[list[Utterance | Rejection]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, PIECE)):
        yield batch


def _digest(settings: str, items: Sequence[Utterance | Rejection]) -> str:
    """Sixteen hexadecimal digits that change with any of the items and settings."""
    digest = hashlib.blake2b(settings.encode(), digest_size=8)
    for item in items:
        digest.update(repr(item).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _identity(function: Callable[..., Any]) -> str:
    """A function's name, and the values of a partial's arguments: the same in every run."""
    if isinstance(function, functools.partial):
        return f"{_identity(function.func)} {function.args} {sorted(function.keywords.items())}"
    return f"{function.__module__}.{function.__qualname__}"


def rejection(utterance: Utterance, reason: str) -> Rejection:
    return Rejection(utterance.split, utterance.id, str(utterance.path), reason, utterance.source)


def _check(item: Utterance | Rejection, make_cut: Callable[[Utterance], MonoCut]) -> Kept | Rejection:
    if isinstance(item, Rejection):
        return item
    try:
        cut = make_cut(item)
    except Rejected as error:
        return rejection(item, str(error))
    line = (json.dumps(cut.to_dict(), ensure_ascii=False) + "\n").encode()
    names = (item.split, item.subset) if item.subset else (item.split,)
    return Kept(names, (item.subset or item.split, item.language), cut.duration, line)


def _checked(
    items: Sequence[Utterance | Rejection],
    check: Callable[[Sequence[Utterance | Rejection]], Iterator[Kept | Rejection]],
    bar: tqdm,
    manifests: Collection[str],
    strict: bool,
) -> dict[str, bytes]:
    """Name → content of a piece's files."""
    lines: dict[str, list[bytes]] = {}
    quarantine: list[bytes] = []
    summary = Summary()
    for result in check(items):
        bar.update()
        if isinstance(result, Rejection):
            if strict:
                raise Refused(_sentence(result))
            quarantine.append(_quarantine_line(result))
            summary.rejected[result.reason.split(":")[0]] += 1
            continue
        summary.utterances[result.key] += 1
        summary.seconds[result.key] += result.seconds
        for name in result.manifests:
            if name in manifests:
                lines.setdefault(f"{name}.jsonl.gz", []).append(result.line)
    files = {name: compressed(of) for name, of in lines.items()}
    return files | {"quarantine.tsv": b"".join(quarantine), "summary.json": summary.to_json()}


def _quarantine_line(rejection: Rejection) -> bytes:
    fields = (rejection.split, rejection.id, rejection.path, rejection.reason, rejection.source)
    # A field is one line without tabs, whatever the corpus put into it.
    return ("\t".join(" ".join(text.split()) for text in fields) + "\n").encode(errors="surrogateescape")


def _sentence(rejection: Rejection) -> str:
    where = " ".join(filter(None, (rejection.source, rejection.id)))
    return f"--strict: {where}: {rejection.reason} ({rejection.path})"


def _progress_bar(total: int | None) -> tqdm:
    # In a log file every refresh is a line: one in ten seconds is enough there.
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, unit=" utterances", desc="checking", mininterval=interval)


@contextlib.contextmanager
def _checker(
    make_cut: Callable[[Utterance], MonoCut], jobs: int
) -> Iterator[Callable[[Sequence[Utterance | Rejection]], Iterator[Kept | Rejection]]]:
    """Items → results in their order, by `jobs` processes."""
    check = functools.partial(_check, make_cut=make_cut)
    if jobs <= 1:
        yield functools.partial(map, check)
        return
    context = process_context()
    context.set_forkserver_preload([__name__] if __name__ != "__main__" else [])
    with process_pool(jobs, context) as pool:
        yield functools.partial(pool.map, check, chunksize=16)


# ---------------------------------------------------------------- the command line


def add_standard_arguments(
    parser: argparse.ArgumentParser, max_seconds: str = "reject longer utterances (default: %(default)s)"
) -> None:
    """Add --output, --jobs, and --max-seconds with the help `max_seconds`."""
    parser.add_argument("--output", type=Path, required=True, help="folder for the manifests, for example data/mine")
    parser.add_argument(
        "--jobs", type=_at_least_one, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    parser.add_argument("--max-seconds", type=float, default=30.0, help=max_seconds)


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def run(main: Callable[[], None]) -> None:
    """Run a program: bad input is one line and exit status 2, what --strict refuses 1, Ctrl-C one line and 130."""
    try:
        main()
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    except (UserError, OSError) as error:  # OSError: full disk, no permission
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        raise SystemExit(130) from None
