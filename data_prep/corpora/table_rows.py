"""Rows of a table that somebody has written: TSV, CSV or JSONL, whose columns are found by their names.

A folder of recordings with texts beside them is such a table, too.
"""

import codecs
import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_prep.corpora.lines import BrokenLine, as_text, count_lines, numbered_lines, tsv_records
from speechllm_pl.core.errors import UserError
from speechllm_pl.storage.folders import AUDIO_SUFFIXES

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "utterance_id", "utt_id"),
    "path": ("path", "audio", "file", "filename", "file_name", "audio_filepath", "wav"),
    "text": ("text", "sentence", "transcript", "transcription"),
    "language": ("language", "lang", "locale"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "split": ("split", "subset"),
    "start": ("start", "offset"),
    "end": ("end",),
}
"""What a column is for, and the headers that say so (any case)."""

TABLE_SUFFIXES = (".tsv", ".csv", ".jsonl")

Row = dict[str, str]
"""Column of `COLUMNS` → cell; an absent or empty cell has no entry."""


def read_table(path: Path) -> Iterator[Row | BrokenLine]:
    """Read the rows of a TSV, CSV or JSONL file in order, with a `BrokenLine` in the place of each that is none.

    The rows of a folder are its recordings with texts.

    Raises:
        UserError: no such file, another kind of file, no rows, or no text column.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise UserError(f"table {path} does not exist")
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise UserError(f"table {path} must be one of {', '.join(TABLE_SUFFIXES)}")
    if path.stat().st_size == 0:
        raise UserError(f"table {path} is empty")
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise UserError(f"table {path} is written in UTF-16: save it as UTF-8")
    if path.suffix.lower() == ".jsonl":
        return _read_jsonl(path)
    return _read_columns(path)


def count_rows(path: Path) -> int:
    """Count about the rows that `read_table` reads, for a progress bar."""
    return len(transcribed_recordings(path)) if path.is_dir() else count_lines(path)


def transcribed_recordings(folder: Path) -> list[Path]:
    """Recordings in a folder, sorted, beside which stands a text of their name, as talk.txt beside talk.mp3."""
    recordings = (path for path in folder.iterdir() if path.suffix.lower() in AUDIO_SUFFIXES)
    return sorted(path for path in recordings if path.with_suffix(".txt").is_file())


def _read_folder(folder: Path) -> Iterator[Row | BrokenLine]:
    for path in transcribed_recordings(folder):
        try:
            text = " ".join(as_text(path.with_suffix(".txt").read_bytes()).removeprefix("\ufeff").split())
        except ValueError as error:
            yield BrokenLine(f"{path.with_suffix('.txt')}: {error}")
            continue
        yield {"path": path.name, **({"text": text} if text else {})}


def _read_jsonl(path: Path) -> Iterator[Row | BrokenLine]:
    checked = False
    for where, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            fields = json.loads(as_text(line))
            if not isinstance(fields, dict):
                raise ValueError("not a JSON object")
            for name, value in fields.items():
                if _column(name) and isinstance(value, dict | list):
                    raise ValueError(f"{name} is neither text nor a number")
            json.dumps(fields, ensure_ascii=False).encode()  # fails on half of a surrogate pair
        except (ValueError, RecursionError) as error:
            yield BrokenLine(f"{where}: {error}")
            continue
        if not checked:
            _find_columns(list(fields), path)
            checked = True
        # A number is as good as its text; None is an empty cell.
        yield _row(list(fields), ["" if value is None else str(value) for value in fields.values()])


def _read_columns(path: Path) -> Iterator[Row | BrokenLine]:
    """Read TSV (a tab always separates, quotes are ordinary characters) or CSV (with quotes)."""
    records = _csv_records(path) if path.suffix.lower() == ".csv" else tsv_records(path)
    header: list[str] | None = None
    for where, cells in records:
        if isinstance(cells, BrokenLine):
            yield cells
            continue
        if header is None:
            named = any(cell.strip().lower() in names for cell in cells for names in COLUMNS.values())
            headless = path.suffix.lower() == ".tsv" and len(cells) == 2 and not named
            header = ["id", "text"] if headless else cells
            _find_columns(header, path)
            if not headless:
                continue
        if len(cells) != len(header):
            yield BrokenLine(f"{where}: {len(cells)} fields where {len(header)} are expected")
        else:
            yield _row(header, cells)
    if header is None:
        raise UserError(f"table {path} holds no rows")


def _csv_records(path: Path) -> Iterator[tuple[str, list[str] | BrokenLine]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True, delimiter=_delimiter(file.readline()))
        file.seek(0)
        while True:
            first = reader.line_num + 1
            try:
                cells = next(reader)
                if cells:
                    "".join(cells).encode()  # fails on the stand-ins for undecodable bytes
                    yield f"{path}:{first}", cells
            except StopIteration:
                return
            except (csv.Error, UnicodeEncodeError) as error:
                # A quote that is never closed swallows lines: say which.
                where = f"{path}:{first}" + (f"-{reader.line_num}" if reader.line_num > first else "")
                reason = "not UTF-8" if isinstance(error, UnicodeEncodeError) else error
                yield where, BrokenLine(f"{where}: {reason}")


def _delimiter(header: str) -> str:
    """Delimiter of a CSV: a comma, or the semicolon of spreadsheets where the comma is the decimal sign."""
    text, known = header.strip(), COLUMNS["text"]
    cells = {mark: [cell.strip('" ').lower() for cell in text.split(mark)] for mark in ",;"}
    return ";" if set(cells[";"]) & {*known} and not set(cells[","]) & {*known} else ","


def _column(header: str) -> str | None:
    """Column that a header means."""
    name = header.strip().lower()
    return next((column for column, names in COLUMNS.items() if name in names), None)


def _find_columns(header: list[str], path: Path) -> None:
    found = Counter(filter(None, map(_column, header)))
    columns = f"columns found: {', '.join(name.strip() or '(empty)' for name in header)[:300]}"
    if "text" not in found:
        raise UserError(f"table {path} has no text column; {columns}")
    if "id" not in found and "path" not in found:
        raise UserError(f"table {path} has neither an id nor a path column; {columns}")
    twice = [column for column, count in found.items() if count > 1]
    if twice:
        raise UserError(f"table {path} has more than one column for {twice[0]}; {columns}")


def _row(header: list[str], cells: list[str]) -> Row:
    row = {_column(name): cell.strip() for name, cell in zip(header, cells, strict=True)}
    return {column: cell for column, cell in row.items() if column and cell}
