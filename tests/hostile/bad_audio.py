"""Recordings that were cut off, damaged, mislabelled, or are none: through `transcribe`, `evaluate` and tables."""

import gzip
import json
import math
import os
import random
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from audio_files import BYTES, FORMATS, Whole, boundaries, encoded, whole
from bench import Bench
from jail import Ended
from lhotse import CutSet, Recording, SupervisionSegment
from trials import Trial, heard_samples

from speechllm_pl.core.errors import printable

MP3_SLACK = 2 * 576
"""Samples of 8 to 24 kHz that the header of an MP3 leaves open: two frames."""


class Bad(NamedTuple):
    """What a damaged file contains, and what must not be lost of it unnoticed."""

    kind: str
    content: bytes
    suffix: str
    of: Whole | None = None  # the undamaged file; none where anything may be heard


def trial(bench: Bench, seed: int, folder: Path) -> Trial:
    """The hostile recording of a seed, given to one of the commands."""
    draw = random.Random(seed)
    (kind,) = draw.choices([_damaged, _named, _no_file], [12, 1, 1])
    return kind(bench, draw, folder)


def _damaged(bench: Bench, draw: random.Random, folder: Path) -> Trial:
    (damage,) = draw.choices([*DAMAGES], [*DAMAGES.values()])
    return given(bench, damage(draw), draw.choice([*COMMANDS]), folder)


def given(bench: Bench, bad: Bad, command: str, folder: Path) -> Trial:
    """A damaged file in `folder`, on its way through a command."""
    path = folder / f"bad{bad.suffix}"
    path.write_bytes(bad.content)
    return COMMANDS[command](bench, bad, path)


# commands


def _transcribed(bench: Bench, bad: Bad, path: Path) -> Trial:
    arguments = ["transcribe", str(path), "--checkpoint", str(bench.ctc)]

    def judge(ended: Ended) -> tuple[str, str]:
        heard = heard_samples(path.parent)
        if list(heard) != [str(path)]:
            return "lost", f"heard was {heard}"
        return _whole(bad, path, heard[str(path)])

    return Trial(f"{bad.kind}, transcribe", "speechllm", arguments, (str(path),), judge)


def _evaluated(bench: Bench, bad: Bad, path: Path) -> Trial:
    """Evaluate a file as the undamaged file's manifest has it, beside a good recording."""
    cuts = path.parent / "cuts.jsonl"
    of = bad.of or whole("wav")
    rows = []
    for id_, at, rate, frames, channels in (
        ("bad", path, of.rate, of.frames, of.channels),
        ("good", bench.good, 16_000, soundfile.info(bench.good).frames, 1),
    ):
        source = {"type": "file", "channels": [*range(channels)], "source": str(at)}
        recording = Recording.from_dict(
            {"id": id_, "sources": [source], "sampling_rate": rate, "num_samples": frames, "duration": frames / rate}
        )
        cut = recording.to_cut().with_id(id_)
        cut.supervisions = [SupervisionSegment(id_, id_, 0, cut.duration, text="one two", language="en")]
        rows.append(cut)
    CutSet.from_cuts(rows).to_file(cuts)
    arguments = ["evaluate", "--cuts", str(cuts), "--checkpoint", str(bench.ctc), "--output", str(path.parent / "out")]

    def judge(ended: Ended) -> tuple[str, str]:
        heard = heard_samples(path.parent)
        if "bad" in heard:
            return _whole(bad, path, heard["bad"])
        told = "1 recordings could not be read: bad" in ended.err and "good" in heard
        return ("set aside", "") if told else ("lost", "it is not told that the recording could not be read")

    return Trial(f"{bad.kind}, evaluate", "speechllm", arguments, (str(cuts),), judge)


def _tabled(bench: Bench, bad: Bad, path: Path) -> Trial:
    table, output = path.parent / "table.tsv", path.parent / "out"
    table.write_text(f"path\ttext\tlanguage\n{path}\tone two\ten\n{bench.good}\tone two\ten\n")
    arguments = ["--table", str(table), "--output", str(output), "--jobs", "1"]

    def judge(ended: Ended) -> tuple[str, str]:
        kept = [json.loads(line) for line in gzip.decompress((output / "train.jsonl.gz").read_bytes()).splitlines()]
        set_aside = (output / "quarantine.tsv").read_text(errors="replace").splitlines()[1:]
        (ours,) = [cut for cut in kept if cut["id"] == "bad"] or [None]
        if len(kept) + len(set_aside) != 2:
            return "lost", f"{len(kept)} kept and {len(set_aside)} in the quarantine"
        if ours is None:
            named = str(path) in set_aside[0]
            return ("set aside", "") if named else ("unnamed", "its line in the quarantine does not name it")
        return _whole(bad, path, round(ours["duration"] * 16_000))

    return Trial(f"{bad.kind}, table", "table", arguments, (str(path), str(output)), judge)


COMMANDS: dict[str, Callable[[Bench, Bad, Path], Trial]] = {
    "transcribe": _transcribed,
    "evaluate": _evaluated,
    "table": _tabled,
}


def _whole(bad: Bad, path: Path, heard: int) -> tuple[str, str]:
    """Whether all of a file was heard, as samples of 16 kHz.

    A damaged header can say another rate, width or number of channels, and what was written cannot be known any more:
    then all bytes are to be heard, whatever they are taken for.
    """
    of = bad.of
    if of is None:
        return "text", ""
    unit = _units_of_sample(path) or of.units / of.frames * of.rate / 16_000
    slack = 1 + (MP3_SLACK * 16_000 / min(of.rate, 24_000) if of.format == "mp3" else 0)
    if heard + slack < of.units / unit:
        return "silent partial", f"heard were {heard} of {math.ceil(of.units / unit)} samples"
    return "text", ""


def _units_of_sample(path: Path) -> float:
    """Units in a sample of 16 kHz, as the header now says; 0 if libsndfile does not know it, but another decoder."""
    try:
        now = soundfile.info(path)
    except soundfile.LibsndfileError:
        return 0
    return now.channels * BYTES.get(now.subtype, 1) * now.samplerate / 16_000


# damages


def _cut(draw: random.Random) -> Bad:
    of = _some(draw)
    places = [place for place in boundaries(of) if place < len(of.content)]
    at = draw.choice(
        [draw.choice(places), draw.choice(places) + draw.choice([-1, 1, 2, 5, 20]), draw.randrange(len(of.content))]
    )
    at = min(max(at, 0), len(of.content) - 1)
    return Bad(f"cut: {of.format}", of.content[:at], of.suffix, of)


def _flipped(draw: random.Random) -> Bad:
    of = _some(draw)
    content = bytearray(of.content)
    reach = draw.choice([64, 256, len(content)])
    for _ in range(draw.choice([1, 1, 2, 8])):
        content[draw.randrange(min(reach, len(content)))] ^= 1 << draw.randrange(8)
    return Bad(f"flipped: {of.format}", bytes(content), of.suffix, of)


def _overwritten(draw: random.Random) -> Bad:
    """A stretch of zeros or noise where a disk has lost a block."""
    of = _some(draw)
    begin = draw.randrange(len(of.content))
    length = draw.choice([1, 4, 16, 512, 4096])
    lost = bytes(length) if draw.random() < 0.5 else draw.randbytes(length)
    content = of.content[:begin] + lost + of.content[begin + length :]
    return Bad(f"overwritten: {of.format}", content, of.suffix, of)


def _removed(draw: random.Random) -> Bad:
    """A stretch in the middle is gone, or its beginning is."""
    of = _some(draw)
    places = boundaries(of)
    begin, end = sorted(draw.choice(places) if draw.random() < 0.5 else draw.randrange(len(of.content)) for _ in "ab")
    headless = begin < 4 or (of.format in ("mp3", "vorbis", "opus") and begin < 300)
    return Bad(f"with a gap: {of.format}", of.content[:begin] + of.content[end:], of.suffix, None if headless else of)


def _wrapped(draw: random.Random) -> Bad:
    """A whole file with something before or behind it, or twice."""
    of = _some(draw)
    junk = draw.choice(
        [b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10), b"TAG" + bytes(125), draw.randbytes(100), of.content]
    )
    before = draw.random() < 0.3
    return Bad(f"wrapped: {of.format}", junk + of.content if before else of.content + junk, of.suffix, of)


def _false_header(draw: random.Random) -> Bad:
    """A field of the header says something impossible or huge."""
    of = whole(draw.choice(["wav", "wav-float", "wavex", "rf64", "aiff", "aifc-float", "flac", "au", "caf", "w64"]))
    width = draw.choice([1, 2, 4, 8])
    at = draw.choice([place for place in boundaries(of) if place < 200] or [0]) + draw.randrange(32)
    value = draw.choice([0, 1, 0x7F, 0x80, 2 ** (8 * width - 1), 2 ** (8 * width) - 1, 15_999, 0x10000, 2**31 - 1])
    order = draw.choice(["big", "little"])
    field = (value % 2 ** (8 * width)).to_bytes(width, order)
    return Bad(f"false header: {of.format}", of.content[:at] + field + of.content[at + width :], of.suffix, of)


def _made_header(draw: random.Random) -> Bad:
    """A WAV header of any numbers before some samples."""
    rate = draw.choice([0, 1, 7, 3_999, 4_001, 8_000, 15_999, 16_001, 383_999, 384_001, 2**31 - 1, 2**32 - 1])
    channels = draw.choice([0, 1, 2, 3, 255, 1024, 65_535])
    bits = draw.choice([0, 1, 7, 8, 12, 16, 24, 32, 64, 65_535])
    tag = draw.choice([0, 1, 1, 1, 2, 3, 6, 7, 0x11, 0x31, 0x50, 0x55, 0xFFFE])
    block = draw.choice([0, 1, channels * bits // 8 % 65_536, 65_535])
    samples = draw.randbytes(draw.choice([0, 1, 2, 16_000, 64_000]))
    length = draw.choice([len(samples), len(samples), 0, 2**31, 2**32 - 1])
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * block % 2**32, block, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", length) + samples
    return Bad("made-up header: wav", b"RIFF" + struct.pack("<I", len(body)) + body, ".wav")


def _noise(draw: random.Random) -> Bad:
    magic = draw.choice(
        [b"", b"RIFF", b"fLaC", b"OggS", b"FORM", b"ID3", b"\xff\xfb\x90\x64", b"NIST_1A\n   1024\n", b"caff"]
    )
    suffix = draw.choice([".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aiff", ".sph", "", ".xyz"])
    return Bad("random bytes: any", magic + draw.randbytes(draw.choice([0, 1, 11, 44, 1000, 100_000])), suffix)


def _not_finite(draw: random.Random) -> Bad:
    samples = 0.1 * np.random.default_rng(draw.randrange(99)).standard_normal(16_000)
    samples[draw.sample(range(16_000), draw.choice([1, 100, 16_000]))] = draw.choice(
        [np.nan, np.inf, -np.inf, 3e38, 1e-40]
    )
    format = draw.choice(["wav-float", "aifc-float"])
    return Bad(f"not finite: {format}", encoded(samples[:, None], format), ".wav")


def _odd(draw: random.Random) -> Bad:
    """Nothing is wrong with it but that few files are so."""
    rate = draw.choice([4_000, 5_512, 7_999, 8_000, 11_025, 15_999, 16_001, 44_101, 48_000, 96_000, 383_999, 384_000])
    format = draw.choice(["wav", "wav24", "wav-float", "aiff", "flac" if rate < 65_536 else "au", "caf", "w64"])
    frames = draw.choice([1, 2, 100, rate // 10, rate, rate])
    of = whole(format, rate, draw.choice([1, 1, 2, 3, 6, 8]), frames)
    return Bad(f"odd: {of.format}", of.content, draw.choice([of.suffix, ".flac", ".mp3", ""]), of)


def _some(draw: random.Random) -> Whole:
    """Draw a file of one of the formats in which users have their files more often than not."""
    format, rate = draw.choice([*FORMATS]), draw.choice([16_000, 16_000, 8_000, 48_000])
    return whole(format, rate if format != "nist" else 16_000, draw.choice([1, 1, 2]))


DAMAGES: dict[Callable[[random.Random], Bad], int] = {
    _cut: 6,
    _flipped: 5,
    _overwritten: 2,
    _removed: 2,
    _wrapped: 1,
    _false_header: 3,
    _made_header: 2,
    _noise: 1,
    _not_finite: 1,
    _odd: 2,
}
"""How often each occurs, beside the others."""


# names, and what is no file

NAMES = (
    "a\nerror: b.wav",
    "\x1b[2J\x1b]0;title\x07.wav",
    "\r\t\x7f.wav",
    "\u2028\u202e\u2066.wav",
    "\udcff\udc80.wav",  # bytes that are no UTF-8
    "\U0001f480" * 60 + ".wav",
    "n" * 251 + ".wav",
    "x; touch canary; .sph",
    "$(touch canary)`touch canary`.sph",
    "| touch canary |.wav",
    "{0} %s [a-z] * ? ~.wav",
    "@file.wav",
    "'quoted' \"twice\".wav",
    "pipe:touch canary",
    "ark.tar,0:9",
)


def _named(bench: Bench, draw: random.Random, folder: Path) -> Trial:
    """A good recording whose name is the trouble, or that of its folder."""
    inside = folder / draw.choice(["", "a.tar", "\udcffb", "a\nb", "-"])
    inside.mkdir(exist_ok=True)
    path = inside / draw.choice(NAMES)
    path.write_bytes(bench.good.read_bytes())
    asked = draw.choice([path, inside])
    arguments = ["transcribe", str(bench.good), str(asked), "--checkpoint", str(bench.ctc), "--format", "json"]

    def judge(ended: Ended) -> tuple[str, str]:
        good, ours = map(json.loads, filter(None, ended.out.split("\n")))
        right = (ours["file"], ours["text"]) == (str(path), good["text"])
        return ("text", "") if right else ("wrong", f"it is not {path!r} with the good one's text")

    return Trial("name: any", "speechllm", arguments, (printable(str(path)), printable(str(folder))), judge)


def _no_file(bench: Bench, draw: random.Random, folder: Path) -> Trial:
    """A path at which nothing can be read, or never ends."""
    path = folder / "bad.wav"
    kind, make = draw.choice(list(NO_FILES.items()))
    make(path)
    of = Bad(f"no file: {kind}", b"", ".wav")
    asked = draw.choice([*COMMANDS, "folder"])
    if asked in COMMANDS:
        return COMMANDS[asked](bench, of, path)
    os.symlink(bench.good, folder / "good.wav")
    arguments = ["transcribe", str(folder), "--checkpoint", str(bench.ctc)]

    def judge(ended: Ended) -> tuple[str, str]:
        told = f"left out {path}" in ended.err or kind in ("a folder", "nothing")
        heard = list(heard_samples(folder)) == [str(folder / "good.wav")]
        return ("set aside", "") if told and heard else ("lost", "it is not left out by name, or nothing else is heard")

    return Trial(f"no file: {kind}, in a folder", "speechllm", arguments, (str(path),), judge)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a folder": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to zeros": lambda path: path.symlink_to("/dev/zero"),
    "a link to a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a socket": _socket,
    "an empty file": Path.touch,
    "an unreadable file": lambda path: path.symlink_to("/proc/self/mem"),
    "a hole": lambda path: (path.touch(), os.truncate(path, 2**40)),
    "nothing": lambda path: None,
}
