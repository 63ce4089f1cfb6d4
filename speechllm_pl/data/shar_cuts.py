"""A Shar folder as a lazy sequence of cuts: twelve million open within a second, and reading follows the disk.

`data_prep.shar` writes such folders; `speechllm_pl/storage/shar_index.py` says what is in them. What a planner needs is
mapped into memory. A cut and its encoded audio are read at their known places when they are asked for, and checked.
"""

import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from lhotse.cut import Cut

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.cut_line import cut_from_line
from speechllm_pl.storage.shar_index import INDEX, audio_name, cuts_name, read_joined

AHEAD = 8 * 2**20
"""Bytes of a tar that the system is asked to read ahead: some 30 utterances in FLAC."""

MOST_OPEN = 192
"""Number of shards that a process holds open. Each has two files; the usual limit is 1,024 files."""


class SharCuts(Sequence[Cut]):
    """Cuts of a Shar folder, or some of them.

    Args:
        folder: Shar folder of `data_prep.shar`.
        rows: `(n,)` positions of the cuts; default is all.

    Raises:
        UserError: the export is not finished, or files of it are missing.
    """

    def __init__(self, folder: Path, rows: np.ndarray | None = None):
        self.folder = folder
        self._rows = rows
        self._open()

    def _open(self) -> None:
        joined = read_joined(self.folder)
        rows = slice(None) if self._rows is None else self._rows
        self._places = joined.places
        self.durations = joined.durations[rows]  # (n,) float32 seconds
        self.languages = joined.languages[rows]  # (n,) uint8 indices into language_codes
        self.language_codes = joined.language_codes  # ISO 639-1, "und" where a cut has none
        self.characters = joined.characters  # every one of the whole folder's transcripts, once
        self._starts = joined.shard_starts  # (S + 1,) rows of the folder
        self._shards: dict[int, _Shard] = {}
        self._open_shards: OrderedDict[int, None] = OrderedDict()  # the one that was used longest ago first

    @property
    def index_folder(self) -> Path:
        """Folder in which facts about all cuts may be kept; a new export empties it."""
        return self.folder / INDEX / "joined"

    @property
    def shard_starts(self) -> np.ndarray:
        """Positions in this sequence at which shards begin, `(S + 1,)`, if it is in the order of the folder."""
        return self._starts if self._rows is None else np.searchsorted(self._rows, self._starts)

    def select(self, rows: np.ndarray) -> "SharCuts":
        """Cuts at these positions of the sequence, in the order of `rows`."""
        return SharCuts(self.folder, rows if self._rows is None else self._rows[rows])

    def __len__(self) -> int:
        return len(self.durations)

    @overload
    def __getitem__(self, index: int) -> Cut: ...

    @overload
    def __getitem__(self, index: slice) -> "SharCuts": ...

    def __getitem__(self, index: int | slice) -> "Cut | SharCuts":
        """Read a cut, with its encoded audio in memory, or take a part of the sequence.

        Raises:
            UserError: the bytes are not those that were written, or name other audio than the shard's; the message says
                which.
        """
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        shard, row, place = self._place(range(len(self))[index])
        line, audio = self._shard(shard).read(place)
        if zlib.crc32(line, zlib.crc32(audio)) != place["crc32"]:
            raise UserError(
                f"{self.folder / audio_name(shard)}: cut {row} ({_id_of(line)}) is not what was written:"
                " delete this file and run data_prep.shar again"
            )
        cut = cut_from_line(line, f"{self.folder / cuts_name(shard)}, line {row + 1}", shar=True)
        (source,) = cut.recording.sources  # type: ignore[reportAttributeAccessIssue]
        source.type, source.source = "memory", audio
        return cut

    def without_audio(self, position: int) -> Cut:
        """Read a cut from its line alone; its audio cannot be loaded.

        Raises:
            UserError: the line is no cut; the message names the shard and the line.
        """
        shard, row, place = self._place(position)
        where = f"{self.folder / cuts_name(shard)}, line {row + 1}"
        return cut_from_line(self._shard(shard).line(place), where, shar=True)

    def where(self, position: int) -> str:
        """File and location of a cut's audio, without reading anything."""
        shard, row, _ = self._place(position)
        return f"{self.folder / audio_name(shard)}, cut {row}"

    def texts(self) -> Iterator[str]:
        """Iterate over the transcripts in order."""
        for position in range(len(self)):
            shard, _, place = self._place(position)
            (supervision,) = json.loads(self._shard(shard).line(place))["supervisions"]
            yield supervision.get("text") or ""

    def _place(self, position: int) -> tuple[int, int, np.void]:
        """Shard of a cut, its number there, and the location of its bytes."""
        row = position if self._rows is None else int(self._rows[position])
        shard = int(self._starts.searchsorted(row, side="right")) - 1
        return shard, row - int(self._starts[shard]), self._places[row]

    def _shard(self, number: int) -> "_Shard":
        """Shard by number, opened on reading; the least recently used one is closed."""
        if number not in self._shards:
            self._shards[number] = _Shard(self.folder, number)
        self._open_shards[number] = None
        self._open_shards.move_to_end(number)
        if len(self._open_shards) > MOST_OPEN:
            self._shards[self._open_shards.popitem(last=False)[0]].close()
        return self._shards[number]

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the path alone: another process opens the folder for itself."""
        return {"folder": self.folder, "_rows": self._rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


class _Shard:
    """Files of a shard, read without moving their positions, which forked processes share."""

    def __init__(self, folder: Path, number: int):
        self.paths = folder / cuts_name(number), folder / audio_name(number)
        self.files: list[BinaryIO] = []
        self.last = -AHEAD  # bytes into the tar: where was read
        self.asked = 0  # bytes into the tar: up to where the system was asked to read ahead

    def line(self, place: np.void) -> bytes:
        cuts, _ = self._opened()
        return os.pread(cuts, int(place["line_bytes"]), int(place["line_start"]))

    def read(self, place: np.void) -> tuple[bytes, bytes]:
        """Line and encoded audio, shorter than they should be if the files are."""
        start = int(place["audio_start"])
        _, audio = self._opened()
        self._read_ahead(audio, start)
        return self.line(place), os.pread(audio, int(place["audio_bytes"]), start)

    def close(self) -> None:
        """Close the files; what was read ahead is remembered."""
        for file in self.files:
            file.close()
        self.files = []

    def _opened(self) -> tuple[int, int]:
        """Descriptors of the files of cuts and audio, opened if necessary."""
        if not self.files:
            self.files = [path.open("rb") for path in self.paths]
        cuts, audio = self.files
        return cuts.fileno(), audio.fileno()

    def _read_ahead(self, audio: int, start: int) -> None:
        """Ask the system to read ahead if reading goes forward, but not if it jumps about."""
        forward = 0 <= start - self.last < AHEAD
        self.last = start
        if forward and start + AHEAD // 2 > self.asked and hasattr(os, "posix_fadvise"):  # not on macOS
            begin, self.asked = max(start, self.asked), start + AHEAD
            os.posix_fadvise(audio, begin, self.asked - begin, os.POSIX_FADV_WILLNEED)


def _id_of(line: bytes) -> str:
    try:
        return json.loads(line)["id"]
    except (ValueError, KeyError, TypeError):
        return "id unknown"
