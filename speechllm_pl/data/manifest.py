"""A manifest of Lhotse cuts as a lazy sequence: twelve million cuts open within a second.

A large manifest is read once, to write an index beside it: where its lines are, the cuts' durations, languages and
lengths of transcript, and the transcripts' characters. Processes map the index into memory and share it. A cut is
deserialised when it is asked for.
"""

import errno
import gzip
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast, overload

import numpy as np
from lhotse.cut import Cut

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.cut_line import cut_from_line, glance
from speechllm_pl.data.manifest_index import Index, index_beside, index_lines, stored
from speechllm_pl.data.shared_memory import SharedMemory, shared

LARGE = 16 * 2**20
"""Bytes of a manifest from which its index is kept: some 30,000 cuts, or ten times as many when gzipped."""


class Manifest(Sequence[Cut]):
    """Cuts of a manifest, or some of them.

    Args:
        path: of the manifest, for errors.
        lines: its text, or the file that has it, which is read in place.
        index: of its lines.
        rows: `(n,)` the lines that are meant; default is all.
        index_folder: where the index of the whole manifest is kept, if it is.
        allow_commands: also open cuts whose audio is no file.
    """

    def __init__(
        self,
        path: Path,
        lines: bytes | SharedMemory | Path,
        index: Index,
        rows: np.ndarray | None = None,
        index_folder: Path | None = None,
        allow_commands: bool = False,
    ):
        self.path = path
        self.allow_commands = allow_commands
        self.index_folder = index_folder
        self._index = index
        self._rows = rows
        self.durations = self._of_rows(index.durations)  # (n,) float32 seconds
        self.languages = self._of_rows(index.languages)  # (n,) uint8, of `language_codes`
        self._lines = lines
        self._file = lines.open("rb") if isinstance(lines, Path) else None

    @property
    def characters(self) -> str:
        """All characters of the whole manifest's transcripts, each once."""
        return self._index.characters

    @property
    def unsafe(self) -> str:
        """Describe the first line of the whole manifest whose audio is not a file; empty if there is none."""
        return self._index.unsafe

    @property
    def language_codes(self) -> tuple[str, ...]:
        """Languages of the whole manifest, of which `languages` are indices."""
        return self._index.language_codes

    def texts(self) -> Iterator[str]:
        """Iterate over the transcripts in order.

        Raises:
            UserError: a line is no cut any more; the message names file and line.
        """
        for position in range(len(self)):
            line, place = self._line(position)
            known = glance(line)
            yield self._cut(line, place).supervisions[0].text or "" if known is None else known.text

    def select(self, rows: np.ndarray) -> "Manifest":
        """Cuts at these positions of the sequence, in the order of `rows`."""
        rows = rows if self._rows is None else self._rows[rows]
        return Manifest(self.path, self._lines, self._index, rows, allow_commands=self.allow_commands)

    def __len__(self) -> int:
        return len(self.durations)

    @overload
    def __getitem__(self, index: int) -> Cut: ...

    @overload
    def __getitem__(self, index: slice) -> "Manifest": ...

    def __getitem__(self, index: int | slice) -> "Cut | Manifest":
        """Read a cut, or take a part of the sequence.

        Raises:
            UserError: the line is no cut, or its audio is not a file; the message names file and line.
        """
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        return self._cut(*self._line(range(len(self))[index]))

    def _cut(self, line: bytes, place: str) -> Cut:
        return cut_from_line(line, place, allow_commands=self.allow_commands)

    def _line(self, position: int) -> tuple[bytes, str]:
        """Line of a cut, and its location, for errors."""
        row = self._row(position)
        begin, end = map(int, self._index.starts[row : row + 2])
        line = self._read(begin, end) if isinstance(self._lines, Path) else self._lines[begin:end]
        return line, self.where(position)

    def where(self, position: int) -> str:
        """File and line of a cut, without reading anything."""
        return f"{self.path}, line {self._row(position) + 1}"

    def _row(self, position: int) -> int:
        return position if self._rows is None else int(self._rows[position])

    def _of_rows(self, array: np.ndarray) -> np.ndarray:
        return array if self._rows is None else array[self._rows]

    def _read(self, begin: int, end: int) -> bytes:
        """Read without moving the file's position, which forked processes share."""
        return os.pread(cast(BinaryIO, self._file).fileno(), end - begin, begin)

    def __reduce__(self) -> tuple:
        """Pickle without the index where it is kept in files: the other process maps it."""
        kept = self.index_folder is not None
        index = None if kept else self._index
        return _sent, (self.path, self._lines, index, self._rows, self.index_folder, self.allow_commands)


def _sent(
    path: Path,
    lines: bytes | SharedMemory | Path,
    index: Index | None,
    rows: np.ndarray | None,
    folder: Path | None,
    allow_commands: bool,
) -> Manifest:
    """Open the manifest of another process.

    Raises:
        UserError: the manifest has changed since.
    """
    if index is None:
        found = stored(path)
        if found is None or found[0] != folder:
            raise UserError(f"manifest {path} has changed since it was opened, or its index is gone: start again")
        index = found[1]
    return Manifest(path, lines, index, rows, folder, allow_commands)


def read_manifest(path: Path, *, allow_commands: bool = False) -> Manifest:
    """Open the cuts of a JSONL manifest, plain or gzipped.

    Args:
        allow_commands: accept cuts whose audio comes from shell commands or over the network.

    Raises:
        UserError: the file is missing, empty, or has a line that is no cut; the message names file and line.
    """
    if not path.is_file():
        raise UserError(f"manifest {path} does not exist: prepare the data first (`make data`), or correct data.root")
    try:
        manifest = _kept_in_memory(path) if path.stat().st_size < LARGE else _kept_beside(path)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no room for the index of manifest {path} beside it: free some there") from error
        raise UserError(f"manifest {path} cannot be read ({error}): prepare the data again") from error
    if not len(manifest):
        raise UserError(f"manifest {path} has no cuts: see the quarantine file beside it")
    if manifest.unsafe and not allow_commands:
        raise UserError(manifest.unsafe)
    manifest.allow_commands = allow_commands
    return manifest


def durations_of(cuts: Sequence[Cut]) -> np.ndarray:
    """Durations of the cuts, `(N,)` float32 seconds."""
    known = getattr(cuts, "durations", None)
    return np.array([cut.duration for cut in cuts], np.float32) if known is None else known


def _kept_in_memory(path: Path) -> Manifest:
    content = path.read_bytes()
    lines = gzip.decompress(content) if path.suffix == ".gz" else content
    return Manifest(path, shared(lines), index_lines(io.BytesIO(lines), path))


def _kept_beside(path: Path) -> Manifest:
    folder, index = index_beside(path)
    lines = folder / "lines.jsonl" if folder is not None and path.suffix == ".gz" else path
    return Manifest(path, lines, index, index_folder=folder)
