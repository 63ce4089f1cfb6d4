"""Multilingual LibriSpeech (MLS) → Lhotse manifests: read audiobooks, en de nl fr es it pt pl.

    python -m data_prep.mls --corpus /corpora/mls --languages pl --output data/mls

CORPUS is the folder that the archives were unpacked in, with mls_polish (FLAC) or mls_polish_opus in it, or
one of these itself. Where both are there, FLAC is read; name the folder with Opus to read that.

Where    https://www.openslr.org/94 (mls_polish.tar.gz, mls_polish_opus.tar.gz and so on)
Licence  CC BY 4.0
Size     50,834 hours of train, dev and test; archives in GB, FLAC/Opus, and hours of train:
         en 2400/651, 44,660 h    de 115/29, 1,967 h    nl 86/23, 1,554 h    fr 61/16, 1,077 h
         es 50/14, 918 h          it 15/3.8, 247 h      pt 9.3/2.5, 161 h    pl 6.2/1.6, 104 h
Time     an hour of audio takes one core 1.4 s as FLAC, 5.4 s as Opus: all of MLS 20 or 76 hours of one core;
         --check header 1.2 or 5 hours (docs/data.md has the command that measured this)

The subsets for limited supervision replace train: 9h, 1h (its six folds together), 10h (both) and 10min (one
fold of the 1h, --fold 0 to 5).

Transcripts are normalised already: they stay as published, in all splits, as others score them.

Why not lhotse.recipes: prepare_mls ends at the first missing recording, speaker or tab, and holds the corpus.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_prep.corpora.entries import SPLITS, Rejection, Utterance
from data_prep.corpora.lines import BrokenLine, count_lines, text_lines, tsv_records
from data_prep.corpora.published import languages_to_prepare, not_there, parser_of, prepare_published, read_genders
from data_prep.corpora.strange_characters import StrangeCharacters
from data_prep.machinery.command_line import run
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.text import as_published

NAMES: Mapping[str, str] = {
    "en": "english",
    "de": "german",
    "nl": "dutch",
    "fr": "french",
    "es": "spanish",
    "it": "italian",
    "pt": "portuguese",
    "pl": "polish",
}
"""Language → what the corpus calls it."""

RATES = {".flac": (16_000, 16_000), ".opus": (16_000, 48_000)}
"""Lowest and highest Hz: all is 16 kHz, but Opus may say 48 kHz of whatever it was made from."""

FOLDS = range(6)
"""Of the hour of limited supervision: ten minutes each."""


def find_languages(corpus: Path) -> dict[str, Path]:
    """Find the folder of each language.

    Raises:
        UserError: there is none; the message says where to get them.
    """
    found = {}
    for language, name in NAMES.items():
        spelt = (f"mls_{name}", f"mls_{name}_opus")
        candidates = [corpus] if corpus.resolve().name in spelt else [corpus / folder for folder in spelt]
        folders = [folder for folder in candidates if (folder / "train" / "transcripts.txt").is_file()]
        if folders:
            found[language] = folders[0]
    if not found:
        looked_for = "mls_polish/train/transcripts.txt, mls_polish_opus/…"
        how = "from https://www.openslr.org/94, unpack it, and give the folder"
        raise not_there("MLS", corpus, looked_for, how)
    return found


def handle_files(folder: Path, limited: str, fold: int) -> list[Path]:
    """Find the files that name the recordings of a subset: 9h, 1h, 10h or 10min.

    Raises:
        UserError: one of them is missing.
    """
    root = folder / "train" / "limited_supervision"
    nine_hours, folds = root / "9hr" / "handles.txt", [root / "1hr" / str(i) / "handles.txt" for i in FOLDS]
    files = {"9h": [nine_hours], "1h": folds, "10h": [nine_hours, *folds], "10min": [folds[fold]]}[limited]
    for path in files:
        if not path.is_file():
            raise UserError(f"{path} does not exist: unpack the archive again, or leave --limited out")
    return files


def read_handles(files: list[Path]) -> dict[str, str | BrokenLine]:
    """Map each recording to the place that names it, and the place of a broken line to what is wrong with it."""
    return {
        place if isinstance(line, BrokenLine) else line.strip(): line if isinstance(line, BrokenLine) else place
        for path in files
        for place, line in text_lines(path)
    }


def utterances(
    folder: Path,
    language: str,
    split: str,
    strange: StrangeCharacters,
    handles: Mapping[str, str | BrokenLine] | None = None,
) -> Iterator[Utterance | Rejection]:
    """Utterances of a split in the order of its transcripts.txt; `strange` collects on the way.

    Args:
        handles: recordings to take, from `read_handles`; all of them if None.
    """
    genders = read_genders(folder / "metainfo.txt")
    audio = folder / split / "audio"
    suffix = _suffix(audio)
    left = dict(handles or {})
    for place, fields in tsv_records(folder / split / "transcripts.txt"):
        try:
            name, speaker, book, text = _parsed(fields)
        except BrokenLine as error:
            yield Rejection(split, "", str(audio), f"broken line: {error}", place)
            continue
        if handles is not None and name not in handles:
            continue
        left.pop(name, None)
        text = as_published(text)
        strange.add(text, language, name)
        yield Utterance(
            id=name,
            path=f"{audio}/{speaker}/{book}/{name}{suffix}",
            text=text,
            language=language,
            speaker=speaker,
            split=split,
            gender=genders.get(speaker, ""),
            source=place,
        )
    for name, place in left.items():
        if isinstance(place, BrokenLine):
            yield Rejection(split, "", str(audio), f"broken line: {place}", name)
        else:
            yield Rejection(split, name, str(audio), "no transcript: transcripts.txt has no such line", place)


def _parsed(fields: list[str] | BrokenLine) -> tuple[str, str, str, str]:
    """Take a line apart: the recording's name, its speaker and book, and the transcript."""
    if isinstance(fields, BrokenLine):
        raise fields
    parts = fields[0].split("_")
    if len(fields) != 2 or len(parts) != 3:
        raise BrokenLine("expected speaker_book_number, a tab and the transcript")
    return fields[0], parts[0], parts[1], fields[1]


def _suffix(audio: Path) -> str:
    """Suffix of all recordings in a folder.

    An archive holds one kind; looking for each recording would ask the file system twelve million times.
    """
    return next((path.suffix for path in audio.glob("*/*/*") if path.suffix in (".flac", ".opus")), ".flac")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = parser_of("mls", __doc__, list(NAMES))
    parser.add_argument(
        "--limited", choices=("9h", "1h", "10h", "10min"), help="Subset of train to prepare instead of it."
    )
    parser.add_argument("--fold", type=int, choices=FOLDS, default=0, help="Fold of 10min (default: %(default)s).")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.fold and args.limited != "10min":
        raise UserError(f"--fold {args.fold} has no effect: it is for --limited 10min")
    folders = languages_to_prepare(args.languages, find_languages(args.corpus), "MLS")
    handles = {
        language: read_handles(handle_files(folder, args.limited, args.fold)) if args.limited else None
        for language, folder in folders.items()
    }
    kinds = {_suffix(folder / split / "audio") for folder in folders.values() for split in SPLITS}
    kind = ".opus" if ".opus" in kinds else ".flac"
    strange = StrangeCharacters()

    def all_utterances() -> Iterator[Utterance | Rejection]:
        for language, folder in folders.items():
            for split in SPLITS:
                named = handles[language] if split == "train" else None
                yield from utterances(folder, language, split, strange, named)

    prepare_published(args, all_utterances(), total=_total(folders, handles), rates=RATES[kind])
    strange.tell()


def _total(folders: Mapping[str, Path], handles: Mapping[str, Mapping[str, str | BrokenLine] | None]) -> int:
    total = 0
    for language, folder in folders.items():
        named = handles[language]
        splits = SPLITS if named is None else SPLITS[1:]
        total += sum(count_lines(folder / split / "transcripts.txt") for split in splits) + len(named or ())
    return total


if __name__ == "__main__":
    run(main)
