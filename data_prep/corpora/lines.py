"""Lines of a corpus's text files, each with its place; a broken one is told and not fatal.

A line ends with a line feed and with nothing else. `str.splitlines` would also end it at U+2028, U+0085 and other
characters that do stand in transcripts.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from speechllm_pl.core.errors import UserError

_BOM = b"\xef\xbb\xbf"


class BrokenLine(Exception):
    """A line that is no row; the message says where and why."""


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: unpack the corpus again, or leave out the language or subset that it belongs to"
        ) from None


def numbered_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Iterate over (file:number, line) with the line's end, without a byte order mark.

    Raises:
        UserError: there is no such file.
    """
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            yield f"{path}:{number}", line.removeprefix(_BOM) if number == 1 else line


def as_text(line: bytes) -> str:
    """Decode a line.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None


def text_lines(path: Path) -> Iterator[tuple[str, str | BrokenLine]]:
    """Iterate over (file:number, text without the line's end); empty lines are left out."""
    for place, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            yield place, as_text(line).rstrip("\r\n")
        except ValueError as error:
            yield place, BrokenLine(f"{place}: {error}")


def tsv_records(path: Path) -> Iterator[tuple[str, list[str] | BrokenLine]]:
    """Iterate over (file:number, cells) of a TSV: a tab always separates and quotes are ordinary characters."""
    for place, line in text_lines(path):
        yield place, line if isinstance(line, BrokenLine) else line.split("\t")


def tsv_rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[str, dict[str, str] | BrokenLine]]:
    """Iterate over (file:number, column → cell) of a TSV whose first line names its columns.

    Raises:
        UserError: a column of `needed` is missing.
    """
    header: list[str] = []
    for place, cells in tsv_records(path):
        if isinstance(cells, BrokenLine):
            yield place, cells
        elif not header:
            header = cells
            missing = [name for name in needed if name not in header]
            if missing:
                raise UserError(f"{path} has no column {missing[0]}; columns found: {', '.join(header)[:300]}")
        elif len(cells) != len(header):
            yield place, BrokenLine(f"{place}: {len(cells)} fields where {len(header)} are expected")
        else:
            yield place, dict(zip(header, cells, strict=True))


def count_lines(path: Path) -> int:
    """Count line feeds, for a progress bar.

    Raises:
        UserError: there is no such file.
    """
    with _opened(path) as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))
