"""Anyone's own data → Lhotse manifests: a folder of audio and a table that says what is spoken in it.

    python -m data_prep.table --table mine.tsv --audio recordings --language de --output data/mine

The table is TSV, CSV or JSONL. Its columns are found by name: `text`, and `id` or `path`; optionally
`language`, `speaker`, `split`, `start` and `end` (seconds). A TSV without header is read as `id<TAB>text`. A
folder stands for the tables train, dev and test in it, or in its sub-folders named by language (en, de, ...),
each beside its folder `audio`; where it holds none, for its recordings that have a text of their name beside them
(talk.mp3, talk.txt). Every row ends in a manifest, in quarantine.tsv with the reason, or the
program stops and says why.
"""

import argparse
import functools
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_prep.audio.checks import Rejected
from data_prep.corpora.checked_cuts import cut_from_utterance
from data_prep.corpora.entries import SPLITS, Rejection, Utterance
from data_prep.corpora.lines import BrokenLine
from data_prep.corpora.manifest_writer import prepare
from data_prep.corpora.strange_characters import StrangeCharacters
from data_prep.corpora.table_rows import TABLE_SUFFIXES, Row, count_rows, read_table, transcribed_recordings
from data_prep.machinery.command_line import add_standard_arguments, program_parser, run
from speechllm_pl.core.cut_fields import LONGEST_SECONDS
from speechllm_pl.core.errors import UserError, printable
from speechllm_pl.core.languages import LANGUAGES
from speechllm_pl.core.text import normalize
from speechllm_pl.storage.folders import AUDIO_SUFFIXES

SPLIT_NAMES: Mapping[str, str] = {split: split for split in SPLITS} | {
    "training": "train",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "eval": "test",
}

TO_GET_DEV = "give --dev-fraction 0.05 (with make: PREPARE_ARGS='--dev-fraction 0.05'), or a table of dev"

# ---------------------------------------------------------------- finding the tables


@dataclass(frozen=True)
class TableSource:
    """A table, the folder of its audio, and what its name and place say of rows that do not say it themselves."""

    table: Path
    audio: Path
    language: str | None
    split: str | None


def find_sources(table: Path, audio: Path | None) -> list[TableSource]:
    """Find the tables that `table` stands for: the file itself, or those of a folder and its language sub-folders.

    A folder without tables is one itself if it holds recordings with texts.

    Raises:
        UserError: `table` or its audio folder does not exist, or the folder holds neither.
    """
    if not table.exists():
        raise UserError(f"table {table} does not exist")
    if audio is not None and not audio.is_dir():
        raise UserError(f"audio folder {audio} does not exist")
    if table.is_file():
        return [_source(table, audio, language=None)]
    language = table.name if table.name in LANGUAGES else None
    sources = [_source(file, audio, language) for file in _tables_of_splits(table)]
    for folder in sorted(path for path in table.iterdir() if path.is_dir() and path.name in LANGUAGES):
        inside = audio / folder.name if audio is not None and (audio / folder.name).is_dir() else audio
        sources += [_source(file, inside, folder.name) for file in _tables_of_splits(folder)]
    if not sources and transcribed_recordings(table):
        return [TableSource(table, table, language, None)]
    if not sources:
        raise UserError(
            f"folder {table} holds no table: expected train, dev or test with {', '.join(TABLE_SUFFIXES)}, "
            f"in it or in sub-folders named by language ({', '.join(sorted(LANGUAGES))}), or recordings with texts "
            "(talk.mp3, talk.txt)"
        )
    return sources


def _source(table: Path, audio: Path | None, language: str | None) -> TableSource:
    if audio is None:
        beside = table.parent / "audio"
        audio = beside if beside.is_dir() else table.parent
    return TableSource(table, audio, language, SPLIT_NAMES.get(table.stem.lower()))


def _tables_of_splits(folder: Path) -> list[Path]:
    """Tables named by a split, in the order train, dev, test; others are left out and named on the terminal."""
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() in TABLE_SUFFIXES)
    named = [table for table in tables if table.stem.lower() in SPLIT_NAMES]
    for table in tables:
        if table not in named:
            print(f"not read: {printable(str(table))} (its name is no split; give it as --table to read it alone)")
    return sorted(named, key=lambda table: SPLITS.index(SPLIT_NAMES[table.stem.lower()]))


# ---------------------------------------------------------------- rows → utterances


def utterances(
    source: TableSource,
    *,
    language: str | None,
    split: str,
    only_split: str | None,
    dev_fraction: float,
    seed: int,
    digits: Literal["keep", "spell"],
    respell: bool,
    strict: bool,
    strange: StrangeCharacters,
) -> Iterator[Utterance | Rejection]:
    """Utterances of a table in the order of its rows, with normalized transcripts; `strange` collects on the way.

    What a row says goes before what the table's name and folder say, and that before `language` and `split`.
    Rows whose split nothing names go to dev with the probability `dev_fraction`, decided by their id and
    `seed`. With `only_split` all rows are of that one.

    Raises:
        UserError: the table cannot be read; a broken line when `strict`; nothing names the language.
    """
    of_paths: dict[int, int] = {}  # hash of an id that was made from a path → hash of that path
    for row in read_table(source.table):
        if isinstance(row, BrokenLine):
            if strict:
                raise UserError(str(row))
            yield Rejection(source.split or "", "", str(source.table), f"broken line: {row}")
            continue
        utterance_id = _id(row)
        if "id" not in row and of_paths.setdefault(hash(utterance_id), hash(row.get("path"))) != hash(row.get("path")):
            utterance_id = _id(row, with_suffix=True)  # a.flac beside a.wav
        row_split = only_split or _named_split(row, source)
        if row_split is None:
            row_split = "dev" if _uniform(utterance_id, seed) < dev_fraction else split
        path = _find_audio(source.audio, row.get("path") or row["id"]) if utterance_id else source.audio
        code = row.get("language", source.language or language)
        try:
            if not utterance_id:
                raise Rejected("no id: neither id nor path")
            code = _known_language(code)
            text = normalize(row.get("text", ""), code, digits=digits, respell=respell)
            start, end = _seconds(row, "start") or 0.0, _seconds(row, "end")
        except Rejected as error:
            yield Rejection(row_split, utterance_id, str(path), str(error))
            continue
        strange.add(text, code, utterance_id)
        yield Utterance(utterance_id, path, text, code, row.get("speaker", "unknown"), row_split, start, end)


def _named_split(row: Row, source: TableSource) -> str | None:
    name = row.get("split", source.split)
    return name and SPLIT_NAMES.get(name.lower(), name)


def will_lack_dev(sources: Iterable[TableSource], *, split: str, dev_fraction: float) -> bool:
    """Whether there are rows to train on and none to validate on: all are read if so, else up to the first one.

    Raises:
        UserError: a table cannot be read.
    """
    of_others = "dev" if dev_fraction > 0 else split
    splits = set()
    for source in sorted(sources, key=lambda source: source.split != "dev"):
        for row in read_table(source.table):
            if not isinstance(row, BrokenLine):
                splits.add(_named_split(row, source) or of_others)
            if "dev" in splits:
                return False
    return "train" in splits


def _id(row: Row, with_suffix: bool = False) -> str:
    """Id of a row, or its path, mostly without suffix, with the times if it is a stretch; "" without either."""
    if "id" in row or "path" not in row:
        return row.get("id", "")
    path = Path(row["path"])
    whole = path if with_suffix else path.with_suffix("")
    name = whole.name if path.is_absolute() else whole.as_posix()
    times = [row[column] for column in ("start", "end") if column in row]
    return "-".join([name, *times])


def _uniform(utterance_id: str, seed: int) -> float:
    """Draw a number in [0, 1) that depends on the id alone, so that an utterance keeps its split as a table grows."""
    digest = hashlib.sha256(f"{seed}:{utterance_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _find_audio(folder: Path, name: str) -> Path:
    """Find `folder`/`name` as it stands or with a suffix of audio files, in lower or upper case.

    As it stands when there is none of them.
    """
    candidates = [folder / name]
    candidates += [folder / (name + spelt) for suffix in AUDIO_SUFFIXES for spelt in (suffix, suffix.upper())]
    return next((path for path in candidates if os.path.isfile(path)), candidates[0])


def _known_language(code: str | None) -> str:
    if code is None:
        raise Rejected(f"no language: add a column language or give --language ({_languages()})")
    known = code.lower().replace("_", "-").split("-")[0]  # en-US is en
    if known not in LANGUAGES:
        raise Rejected(f"unknown language: {code!r} is none of {_languages()}")
    return known


def _languages() -> str:
    return ", ".join(sorted(LANGUAGES))


def _seconds(row: Row, column: str) -> float | None:
    if column not in row:
        return None
    try:
        seconds = float(row[column])
    except ValueError:
        seconds = math.nan
    if not abs(seconds) <= LONGEST_SECONDS:  # nor is NaN
        raise Rejected(f"broken line: {column} {row[column]!r} is not a number of seconds")
    return seconds


# ---------------------------------------------------------------- the command line


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = program_parser("table", __doc__)
    parser.add_argument("--table", type=Path, required=True, help="TSV, CSV or JSONL file, or a folder of them.")
    parser.add_argument("--audio", type=Path, help="Folder of the audio (default: `audio` beside the table).")
    add_standard_arguments(parser)
    parser.add_argument("--language", help=f"Language of rows that name none: {_languages()}.")
    of_rows = "Split of rows that name none (default: %(default)s)."
    parser.add_argument("--split", choices=SPLITS, default="train", help=of_rows)
    all_rows = "Split of all rows, whatever they or the names of tables say."
    parser.add_argument("--only-split", choices=SPLITS, help=all_rows)
    share = "Share of dev in the rows whose split nothing names (default: %(default)s)."
    parser.add_argument("--dev-fraction", type=float, default=0.0, help=share)
    parser.add_argument("--seed", type=int, default=0, help="Seed of --dev-fraction (default: %(default)s).")
    digits = "What becomes of numbers that are written in digits (default: %(default)s)."
    parser.add_argument("--digits", choices=("keep", "spell"), default="spell", help=digits)
    respell = "Write Italian e' as è and so on, where accents were typed as apostrophes."
    parser.add_argument("--respell", action="store_true", help=respell)
    parser.add_argument("--strict", action="store_true", help="Stop at the first row that cannot be used.")
    parser.add_argument(
        "--copy-audio",
        action="store_true",
        help="Write 16 kHz mono FLAC copies of all recordings to OUTPUT/audio, for formats that are slow to "
        "decode (several channels, and formats that need ffmpeg, are copied in any case).",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.language is not None and args.language not in LANGUAGES:
        raise UserError(f"unknown language {args.language!r}: the known ones are {_languages()}")
    if not 0 <= args.dev_fraction <= 1:
        raise UserError(f"--dev-fraction {args.dev_fraction} is not between 0 and 1")
    strange = StrangeCharacters()
    sources = find_sources(args.table, args.audio)
    if args.only_split is None and will_lack_dev(sources, split=args.split, dev_fraction=args.dev_fraction):
        print(f"no row is of dev, and training needs some to validate on: {TO_GET_DEV}", flush=True)
    options = ("language", "split", "only_split", "dev_fraction", "seed", "digits", "respell", "strict")
    of_rows = {name: getattr(args, name) for name in options}
    rows = (row for source in sources for row in utterances(source, **of_rows, strange=strange))
    make_cut = functools.partial(
        cut_from_utterance,
        max_seconds=args.max_seconds,
        copies=args.output / "audio",
        copy_all=args.copy_audio,
    )
    total = sum(count_rows(source.table) for source in sources)
    work = {"jobs": args.jobs, "make_cut": make_cut, "total": total}
    prepare(rows, args.output, **work, strict=args.strict, to_get_dev=TO_GET_DEV)
    strange.tell()


if __name__ == "__main__":
    run(main)
