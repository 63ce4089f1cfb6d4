"""Miniature copies of the published corpora in their exact layouts, spoken by espeak-ng.

Each `make_*` writes the clean corpus that its publishers ship. `spoil_*` adds what the real ones contain besides, and
returns id → kind of the reason for which it must be quarantined.
"""

import contextlib
import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import soundfile
import torch
from lhotse import CutSet, MonoCut
from torchaudio.functional import resample

from data_prep.audio.espeak import SAMPLING_RATE, Espeak
from data_prep.machinery.command_line import run

SENTENCES: Mapping[str, tuple[str, ...]] = {
    "en": ("it's a quiet evening by the sea", "the old clock struck ten", "nobody came to the door"),
    "de": ("die straße führt über den fluß", "er grüßte höflich", "am abend wurde es kühl"),
    "nl": ("de koeien staan in de weide", "zij ging naar huis", "het één en het ander"),
    "fr": ("l'été dernier il faisait chaud", "la fenêtre était ouverte", "où est passé mon frère"),
    "es": ("el niño corrió hacia el río", "mañana será otro día", "la canción terminó pronto"),
    "it": ("l'acqua del lago è fredda", "così finisce la storia", "non so perché piange"),
    "pt": ("o coração não mente nunca", "a manhã estava fria", "amanhã haverá pão"),
    "pl": ("zażółć gęślą jaźń", "wieczorem było już chłodno", "ptaki śpiewały w lesie"),
}

FORMATS: Mapping[str, tuple[str, str]] = {
    ".flac": ("FLAC", "PCM_16"),
    ".opus": ("OGG", "OPUS"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}


@functools.cache
def said(language: str, number: int) -> np.ndarray:
    """(T,) float32 at espeak-ng's rate of the sentence with that number."""
    voice = "en-us" if language == "en" else language
    sound = espeak()(SENTENCES[language][number], voice, words_per_minute=200, pitch=50).samples
    return np.frombuffer(sound, np.int16).astype(np.float32) / 32768


@functools.cache
def espeak() -> Espeak:
    return Espeak()


@functools.cache
def encoded(language: str, number: int, rate: int, suffix: str) -> bytes:
    kind, subtype = FORMATS[suffix]
    samples = resample(torch.from_numpy(said(language, number)), SAMPLING_RATE, rate).numpy()
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def speak(path: Path, language: str, number: int, rate: int = 16_000) -> Path:
    """Write the sentence with that number (they repeat) in the format that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(language, number % len(SENTENCES[language]), rate, path.suffix))
    return path


def sentence(language: str, number: int) -> str:
    return SENTENCES[language][number % len(SENTENCES[language])]


def append(path: Path, *lines: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        for line in lines:
            file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


# what a program leaves


@dataclass
class Prepared:
    """What a program did: its exit status and messages, and all that it wrote."""

    status: int
    out: str
    err: str
    folder: Path

    def cuts(self, manifest: str) -> list[MonoCut]:
        path = self.folder / f"{manifest}.jsonl.gz"
        return list(CutSet.from_file(path)) if path.exists() else []  # type: ignore[arg-type]

    def ids(self, manifest: str) -> list[str]:
        return [cut.id for cut in self.cuts(manifest)]

    def by_id(self) -> dict[str, MonoCut]:
        return {cut.id: cut for split in ("train", "dev", "test") for cut in self.cuts(split)}

    def quarantine(self) -> dict[str, str]:
        """id (of a line that has none: its place) → reason."""
        rows = [line.split("\t") for line in (self.folder / "quarantine.tsv").read_text().splitlines()[1:]]
        return {row[1] or row[4]: row[3] for row in rows}

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}

    def error(self) -> str:
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return line


def prepare(program: ModuleType, corpus: Path, output: Path, *options: object) -> Prepared:
    """Run a program in this process."""
    arguments = ["--corpus", str(corpus), "--output", str(output), "--jobs", "1", *map(str, options)]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run(lambda: program.main(arguments))
        except SystemExit as end:
            status = int(end.code or 0)
    return Prepared(status, out.getvalue(), err.getvalue(), output)


# MLS

MLS_NAMES = dict(
    zip(
        ("en", "de", "nl", "fr", "es", "it", "pt", "pl"),
        ("english", "german", "dutch", "french", "spanish", "italian", "portuguese", "polish"),
        strict=True,
    )
)
MLS_SPLITS = {"train": ("1001", 10), "dev": ("1002", 2), "test": ("1003", 1)}
"""Split → its speaker, and number of recordings."""


def mls_id(language: str, number: int, split: str = "train") -> str:
    """speaker_book_number; a book is in one language."""
    speaker, _ = MLS_SPLITS[split]
    return f"{speaker}_{2000 + list(MLS_NAMES).index(language)}_{number:06d}"


def mls_audio(folder: Path, split: str, name: str, suffix: str) -> Path:
    speaker, book, _ = name.split("_")
    return folder / split / "audio" / speaker / book / f"{name}{suffix}"


MLS_METAINFO = (
    " SPEAKER   |   GENDER   | PARTITION  |  MINUTES   |  BOOK ID   |             TITLE              |  CHAPTER  ",
    "   1001    |     F      |   train    |   13.452   |    2001    |          Pan Tadeusz           | Księga I | Dom",
    "   1001    |     F      |   train    |   10.123   |    2001    |          Pan Tadeusz           | Księga II",
    "   1002    |     M      |    dev     |   11.003   |    2002    |             Potop              | Rozdział 1",
    "   1003    |     F      |    test    |   15.730   |    2003    |             Faraon             | 01 - Wstęp",
)


def make_mls_language(root: Path, language: str, suffix: str = ".flac") -> Path:
    folder = root / f"mls_{MLS_NAMES[language]}{'_opus' if suffix == '.opus' else ''}"
    append(folder / "metainfo.txt", *MLS_METAINFO)
    for split, (_, count) in MLS_SPLITS.items():
        for number in range(count):
            name = mls_id(language, number, split)
            speak(mls_audio(folder, split, name, suffix), language, number)
            append(folder / split / "transcripts.txt", f"{name}\t{sentence(language, number)}")
            url = "http://www.archive.org/download/pan_tadeusz/chapter_01_64kb.mp3"
            append(folder / split / "segments.txt", f"{name}\t{url}\t{10 * number}.51\t{10 * number + 10}.2")
    limited = folder / "train" / "limited_supervision"
    append(limited / "9hr" / "handles.txt", mls_id(language, 6), mls_id(language, 7))
    for fold in range(6):
        append(limited / "1hr" / str(fold) / "handles.txt", mls_id(language, fold))
    return folder


def make_mls(root: Path) -> Path:
    """All eight languages, German as Opus."""
    for language in MLS_NAMES:
        make_mls_language(root, language, ".opus" if language == "de" else ".flac")
    return root


def spoil_mls(folder: Path, language: str, suffix: str) -> dict[str, str]:
    """Expects a folder that `make_mls_language` made."""
    table = folder / "train" / "transcripts.txt"
    short, empty, slow, missing, silent, twice, good = (mls_id(language, n) for n in (*range(900, 905), 0, 907))
    fast = mls_id(language, 908)  # Opus has no such rate
    for name in (short, empty, slow, silent, good):
        speak(mls_audio(folder, "train", name, suffix), language, 0, 8_000 if name == slow else 16_000)
    if suffix == ".flac":
        speak(mls_audio(folder, "train", fast, suffix), language, 0, 22_050)
    cut_short(mls_audio(folder, "train", short, suffix))
    mls_audio(folder, "train", empty, suffix).write_bytes(b"")
    first = len(table.read_bytes().splitlines()) + 1
    append(
        table,
        *(f"{name}\t{sentence(language, 0)}" for name in (short, empty, slow, missing)),
        f"{silent}\t",
        f"{twice}\t{sentence(language, 0)}",
        f"{mls_id(language, 905)} no tab here",
        f"{mls_id(language, 906)}\tłód".encode("iso8859-2"),
        "",
        # Quotes and a line separator hurt nobody.
        f'{good}\t„{sentence(language, 0)}” \u2028 "{sentence(language, 1)}',
        f"{fast}\t{sentence(language, 0)}",
    )
    return {
        fast: "wrong sampling rate" if suffix == ".flac" else "missing",
        short: "unreadable" if suffix == ".flac" else "truncated",
        empty: "empty",
        slow: "wrong sampling rate",
        missing: "missing",
        silent: "no transcript",
        twice: "duplicate id",
        f"{table}:{first + 6}": "broken line",
        f"{table}:{first + 7}": "broken line",
    }


# Common Voice

CV_COLUMNS = {
    "cv-corpus-1": "client_id path sentence up_votes down_votes age gender accent",
    "cv-corpus-7.0-2021-07-21": "client_id path sentence up_votes down_votes age gender accent locale segment",
    "cv-corpus-23.0-2025-09-05": (
        "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale "
        "segment"
    ),
}
"""Release → the columns of its clips."""

CV_RELEASE = "cv-corpus-23.0-2025-09-05"
CV_SPLITS = {"train": range(4), "dev": range(4, 6), "test": range(6, 8), "other": range(8, 9)}
CV_SENTENCES = ('"Stój!', "Mam 3 koty.", "Idź, „Aniu”, sama.", "Kto to?", "Tak?", "Nie.", "Dom", "Las", "Pies")
CV_NORMALIZED = ("stój", "mam trzy koty", "idź aniu sama", "kto to", "tak", "nie", "dom", "las", "pies")


def cv_row(columns: str, number: int, **cells: str) -> str:
    clip = f"common_voice_pl_{20547774 + number}.mp3"
    row = {
        "client_id": f"{number // 2:0128x}",
        "path": clip if "segment" in columns else clip.removesuffix(".mp3"),
        "sentence": CV_SENTENCES[number % len(CV_SENTENCES)],
        "up_votes": "2",
        "down_votes": "0",
        "gender": ("female_feminine", "male_masculine", "", "do_not_wish_to_say")[number // 2 % 4],
        "locale": "pl",
        "sentence_id": f"{number:064x}",
    }
    return "\t".join((row | cells).get(column, "") for column in columns.split())


def cv_clip(folder: Path, number: int) -> Path:
    return folder / "clips" / f"common_voice_pl_{20547774 + number}.mp3"


def make_common_voice(root: Path, release: str = CV_RELEASE, language: str = "pl") -> Path:
    """One language of a release; eight validated clips in three splits, and one that is still to be validated."""
    folder, columns = root / release / language, CV_COLUMNS[release]
    for table in (*CV_SPLITS, "validated", "invalidated"):
        append(folder / f"{table}.tsv", columns.replace(" ", "\t"))
    for split, numbers in CV_SPLITS.items():
        for number in numbers:
            speak(cv_clip(folder, number), language, number, rate=32_000 if number % 2 else 48_000)
            for table in (split, *(["validated"] if split != "other" else [])):
                append(folder / f"{table}.tsv", cv_row(columns, number))
    append(folder / "clip_durations.tsv", "clip\tduration[ms]")
    return folder


def spoil_common_voice(folder: Path) -> dict[str, str]:
    """Expects a folder of the newest release that `make_common_voice` made."""
    columns, table = CV_COLUMNS[CV_RELEASE], folder / "train.tsv"
    numbers = range(100, 107)
    broken, short, empty, slow, missing, silent, good = numbers
    for number in numbers:
        if number != missing:
            speak(cv_clip(folder, number), "pl", 0, 8_000 if number == slow else 48_000)
    cv_clip(folder, broken).write_bytes(b"<html><body>504 Gateway Time-out</body></html>" * 40)
    cut_short(cv_clip(folder, short))
    cv_clip(folder, empty).write_bytes(b"")
    first = len(table.read_bytes().splitlines()) + 1
    append(
        table,
        *(cv_row(columns, number) for number in (broken, short, empty, slow, missing)),
        cv_row(columns, silent, sentence=" … "),
        cv_row(columns, 0),
        "\t".join(cv_row(columns, 105).split("\t")[:4]),
        cv_row(columns, good, sentence='Jak "to możliwe?\u0085'),  # a quote that is never closed, an old line end
    )
    append(folder / "dev.tsv", cv_row(columns, 1))  # also in train
    kinds = {
        broken: "unreadable",
        short: "truncated",
        empty: "empty",
        slow: "wrong sampling rate",
        missing: "missing",
        silent: "no transcript",
        0: "duplicate id",
        1: "duplicate id",
    }
    return {cv_clip(folder, n).stem: kind for n, kind in kinds.items()} | {f"{table}:{first + 7}": "broken line"}


# VoxPopuli

VP_HEADER = "id raw_text normalized_text speaker_id split gender is_gold_transcript accent".replace(" ", "\t")
VP_SESSION = "20170315-0900-PLENARY-{}"
VP_SPLITS = {"train": range(3), "dev": range(3, 4), "test": range(4, 5)}


def vp_id(number: int) -> str:
    """Id of a session and of the segment in it, as the official script joins them."""
    return f"{VP_SESSION.format(number % 2)}-pl_20170315-09:0{number % 10}:{number // 10:02d}_{number}"


def vp_row(number: int, split: str, **cells: str) -> str:
    text = sentence("pl", number)
    row = {
        "id": vp_id(number),
        "raw_text": f"{text.capitalize()}.",
        "normalized_text": text,
        "speaker_id": str(124_000 + number),
        "split": split,
        "gender": ("female", "male")[number % 2],
        "is_gold_transcript": "False",
        "accent": "None",
    }
    return "\t".join((row | cells)[column] for column in VP_HEADER.split("\t"))


def make_voxpopuli(root: Path, language: str = "pl") -> Path:
    folder = root / "transcribed_data" / language
    for split, numbers in VP_SPLITS.items():
        append(folder / f"asr_{split}.tsv", VP_HEADER)
        for number in numbers:
            speak(folder / "2017" / f"{vp_id(number)}.ogg", "pl", number)
            append(folder / f"asr_{split}.tsv", vp_row(number, split))
    return folder


def spoil_voxpopuli(folder: Path) -> dict[str, str]:
    table = folder / "asr_train.tsv"
    short, slow, missing, silent, raw, quoted = range(50, 56)
    for number in (short, slow, silent, raw, quoted):
        speak(folder / "2017" / f"{vp_id(number)}.ogg", "pl", 0, 8_000 if number == slow else 16_000)
    cut_short(folder / "2017" / f"{vp_id(short)}.ogg")
    first = len(table.read_bytes().splitlines()) + 1
    append(
        table,
        *(vp_row(number, "train") for number in (short, slow, missing)),
        vp_row(silent, "train", raw_text="", normalized_text=""),
        vp_row(raw, "train", normalized_text="", speaker_id="None"),
        vp_row(quoted, "train", raw_text='"Panie\u2028', normalized_text='"panie'),
        vp_row(0, "train"),
        vp_row(56, "train", raw_text="a tab\tin the text"),
    )
    kinds = {
        short: "truncated",
        slow: "wrong sampling rate",
        missing: "missing",
        silent: "no transcript",
        0: "duplicate id",
    }
    return {vp_id(number): kind for number, kind in kinds.items()} | {f"{table}:{first + 7}": "broken line"}


# LibriSpeech

LS_SPEAKERS = (
    "; Some pipe(|) separated metadata about all LibriVox readers, whose work was used",
    ";ID  |SEX| SUBSET           |MINUTES| NAME",
    "14   | F | train-clean-100  | 25.03 | Kristin LeMoine",
    "60   | M | dev-other        | 20.18 | |CBW|Simon",
    "84   | F | dev-clean        |  8.02 | Christie Nowak",
    "61   | M | test-clean       |  8.08 | Paul-Gabriel Wiener",
)
LS_SUBSETS = {"train-clean-100": "14", "dev-clean": "84", "dev-other": "60", "test-clean": "61", "test-other": "367"}


def ls_id(subset: str, number: int) -> str:
    return f"{LS_SUBSETS[subset]}-{208 + number // 2}-{number:04d}"


def ls_audio(root: Path, subset: str, number: int) -> Path:
    speaker, chapter, _ = ls_id(subset, number).split("-")
    return root / subset / speaker / chapter / f"{ls_id(subset, number)}.flac"


def ls_table(root: Path, subset: str, number: int) -> Path:
    speaker, chapter, _ = ls_id(subset, number).split("-")
    return root / subset / speaker / chapter / f"{speaker}-{chapter}.trans.txt"


def make_librispeech(folder: Path) -> Path:
    """Two chapters of two recordings in each subset."""
    root = folder / "LibriSpeech"
    append(root / "SPEAKERS.TXT", *LS_SPEAKERS)
    for subset in LS_SUBSETS:
        for number in range(4):
            speak(ls_audio(root, subset, number), "en", number)
            append(ls_table(root, subset, number), f"{ls_id(subset, number)} {sentence('en', number).upper()}")
    return root


def spoil_librispeech(root: Path) -> dict[str, str]:
    subset, last = "train-clean-100", 2
    short, slow, missing, silent = range(4, 8)
    table = ls_table(root, subset, last)
    folder = table.parent
    names = {number: f"14-209-{number:04d}" for number in (short, slow, missing, silent)}
    for number in (short, slow, silent):
        speak(folder / f"{names[number]}.flac", "en", 0, 8_000 if number == slow else 16_000)
    cut_short(folder / f"{names[short]}.flac")
    first = len(table.read_bytes().splitlines()) + 1
    append(
        table,
        *(f"{names[number]} THREE WORDS HERE" for number in (short, slow, missing)),
        names[silent],
        f"{ls_id(subset, last)} AGAIN",
        "14-209 NO NUMBER",
    )
    return {
        names[short]: "unreadable",
        names[slow]: "wrong sampling rate",
        names[missing]: "missing",
        names[silent]: "no transcript",
        ls_id(subset, last): "duplicate id",
        f"{table}:{first + 5}": "broken line",
    }
