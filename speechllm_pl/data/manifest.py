"""A manifest of Lhotse cuts as a lazy sequence: twelve million cuts open within a second.

A large manifest is read once, to write an index beside it: where its lines are, the cuts' durations and the
characters of the transcripts. Processes map the index into memory and share it. A cut is deserialised when it is
asked for.
"""

import contextlib
import fcntl
import gzip
import io
import json
import logging
import math
import os
import shutil
import socket
import sys
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast, overload

import numpy as np
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item
from tqdm import tqdm

from speechllm_pl.core.errors import UserError

LARGE = 16 * 2**20
"""Bytes of a manifest from which its index is kept: some 30,000 cuts, or ten times as many when gzipped."""

VERSION = 1
"""Of the index's format."""

log = logging.getLogger(__name__)


class Index(NamedTuple):
    """What is known of N cuts without deserialising them."""

    starts: np.ndarray  # (N + 1,) uint64: cut i is in the bytes from starts[i] to starts[i + 1]
    durations: np.ndarray  # (N,) float32 seconds
    characters: str  # each that occurs in a transcript, once


class Manifest(Sequence[Cut]):
    """The cuts of a manifest, or some of them.

    Args:
        path: of the manifest, for errors.
        lines: its text, or the file that has it; this is read in place, also after a fork.
        index: of its lines.
        rows: `(n,)` the lines that are meant; default is all.
    """

    def __init__(self, path: Path, lines: bytes | Path, index: Index, rows: np.ndarray | None = None):
        self.path = path
        self._index = index
        self._rows = rows
        self.durations = index.durations if rows is None else index.durations[rows]  # (n,) float32 seconds
        self._lines = lines
        self._file = _opened(lines)

    @property
    def characters(self) -> str:
        """Every character of the whole manifest's transcripts, once."""
        return self._index.characters

    def select(self, rows: np.ndarray) -> "Manifest":
        """The cuts at these positions of the sequence, in their order."""
        return Manifest(self.path, self._lines, self._index, rows if self._rows is None else self._rows[rows])

    def __len__(self) -> int:
        return len(self.durations)

    @overload
    def __getitem__(self, index: int) -> Cut: ...

    @overload
    def __getitem__(self, index: slice) -> "Manifest": ...

    def __getitem__(self, index: int | slice) -> "Cut | Manifest":
        """
        Raises:
            UserError: the line is no cut; the message names file and line.
        """
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        position = range(len(self))[index]
        row = position if self._rows is None else int(self._rows[position])
        begin, end = map(int, self._index.starts[row : row + 2])
        line = self._lines[begin:end] if isinstance(self._lines, bytes) else self._read(begin, end)
        return cut_from_line(line, f"{self.path}, line {row + 1}")

    def _read(self, begin: int, end: int) -> bytes:
        """Without moving the file's position, which forked processes share."""
        return os.pread(cast(BinaryIO, self._file).fileno(), end - begin, begin)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._file = _opened(self._lines)


def _opened(lines: bytes | Path) -> BinaryIO | None:
    return None if isinstance(lines, bytes) else lines.open("rb")


def read_manifest(path: Path) -> Manifest:
    """The cuts of a JSONL manifest, plain or gzipped.

    Raises:
        UserError: the file is missing, empty, or has a line that is no cut; the message names file and line.
    """
    if not path.is_file():
        raise UserError(f"manifest {path} does not exist: prepare the data first (`make data`), or correct data.root")
    try:
        manifest = _kept_in_memory(path) if path.stat().st_size < LARGE else _kept_beside(path)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"manifest {path} cannot be read ({error}): prepare the data again") from error
    if not len(manifest):
        raise UserError(f"manifest {path} has no cuts: see the quarantine file beside it")
    return manifest


def durations_of(cuts: Sequence[Cut]) -> np.ndarray:
    """`(N,)` float32 seconds."""
    known = getattr(cuts, "durations", None)
    return np.array([cut.duration for cut in cuts], np.float32) if known is None else known


# lines to cuts


def cut_from_line(line: bytes, place: str) -> Cut:
    """
    Raises:
        UserError: it is no cut that can be trained on; `place` says where it stands.
    """
    try:
        cut = deserialize_item(json.loads(line))
        lasts = 0 < cut.duration < math.inf
    except Exception as error:  # lhotse raises whatever the missing field leads to
        raise UserError(f"{place}: not a Lhotse cut: mend or delete this line, or prepare the data again") from error
    if len(getattr(cut, "supervisions", ())) != 1:
        raise UserError(f"{place}: cut {getattr(cut, 'id', '?')} must have exactly one supervision")
    if not lasts:
        raise UserError(f"{place}: cut {cut.id} lasts {cut.duration} seconds: delete this line")
    return cut


def index_lines(lines: Iterable[bytes], path: Path) -> Index:
    """Check every line and note where it is, how long its cut lasts and what its transcript is written with.

    Deserialising each would take ten times as long: it is done for lines whose fields have not been met before.

    Raises:
        UserError: a line is no cut; the message names `path` and the line.
    """
    starts, durations, characters = array("Q", [0]), array("f"), set()
    known: set[tuple] = set()
    for number, line in enumerate(lines, start=1):
        fields, duration, text = _glance(line.decode())
        if fields is None or fields not in known or not 0 < duration < math.inf:
            cut = cut_from_line(line, f"{path}, line {number}")
            duration, text = cut.duration, cut.supervisions[0].text or ""
            if fields is not None:
                known.add(fields)
        starts.append(starts[-1] + len(line))
        durations.append(duration)
        characters.update(text)
    arrays = np.frombuffer(starts, np.uint64), np.frombuffer(durations, np.float32)
    return Index(*arrays, characters="".join(sorted(characters)))


def _glance(line: str) -> tuple[tuple | None, float, str]:
    """→ which fields a cut has, its seconds and its transcript; no fields if it is not one of the ordinary kind."""
    try:
        cut = json.loads(line)
        (supervision,) = cut["supervisions"]
        duration, text = cut["duration"], supervision.get("text") or ""
        fields = (cut["type"], *cut), tuple(supervision), tuple(cut.get("recording") or ())
        if isinstance(duration, int | float) and isinstance(text, str):
            return fields, duration, text
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return None, 0.0, ""


# indexes


def _kept_in_memory(path: Path) -> Manifest:
    content = path.read_bytes()
    lines = gzip.decompress(content) if path.suffix == ".gz" else content
    return Manifest(path, lines, index_lines(io.BytesIO(lines), path))


def _kept_beside(path: Path) -> Manifest:
    """With the index in a folder beside the manifest, which is made if there is none that fits.

    One process of a machine makes it while the others wait; on several machines the first to finish counts.
    """
    folder = path.with_name(f"{path.name}.index")
    index = _stored(folder, path)
    if index is None:
        try:
            lock = folder.with_name(f".{folder.name}.lock").open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            return _not_kept(path, error)
        with lock:
            index = _stored(folder, path) or _built(folder, path)
            Path(lock.name).unlink(missing_ok=True)
    return Manifest(path, folder / "lines.jsonl" if path.suffix == ".gz" else path, index)


def _not_kept(path: Path, error: OSError) -> Manifest:
    if path.suffix == ".gz":
        raise UserError(
            f"manifest {path} is large, and there is no room for its index beside it ({error}): unpack it with gunzip"
        )
    log.warning("no index can be kept beside %s (%s): every process makes its own at every start", path, error)
    with path.open("rb") as file:
        return Manifest(path, path, index_lines(_with_progress(file, file, path), path))


def _stored(folder: Path, path: Path) -> Index | None:
    """The index in `folder`, unless the manifest has changed since."""
    try:
        record = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if (record["version"], record["manifest"]) != (VERSION, _identity(path)):
            return None
        starts, durations = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("starts", "durations"))
        return Index(np.asarray(starts), np.asarray(durations), record["characters"])
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def _built(folder: Path, path: Path) -> Index:
    """Written under another name and renamed."""
    if folder.exists():
        log.warning("%s is not what its index was made of: indexing it anew", path)
    partial = folder.with_name(f".{folder.name}.{socket.gethostname()}")
    shutil.rmtree(partial, ignore_errors=True)  # what a process that was killed has left
    partial.mkdir()
    try:
        record = {"version": VERSION, "manifest": _identity(path)}
        index = _indexed_into(partial, path)
        np.save(partial / "starts.npy", index.starts)
        np.save(partial / "durations.npy", index.durations)
        hours = round(float(index.durations.sum(dtype=np.float64)) / 3600, 1)
        record |= {"cuts": len(index.durations), "hours": hours, "characters": index.characters}
        (partial / "index.json").write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another machine was faster
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _stored(folder, path) or index


def _indexed_into(partial: Path, path: Path) -> Index:
    """Index a manifest; of a gzipped one the text goes into the folder `partial`, to be read in place."""
    with path.open("rb") as file, contextlib.ExitStack() as stack:
        lines: Iterable[bytes] = file
        if path.suffix == ".gz":
            unpacked = stack.enter_context((partial / "lines.jsonl").open("wb"))
            lines = _copied(stack.enter_context(gzip.open(file)), unpacked.write)
        return index_lines(_with_progress(lines, file, path), path)


def _identity(path: Path) -> list[int]:
    """Another manifest under the same name differs in this."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _copied(lines: Iterable[bytes], write: Callable[[bytes], Any]) -> Iterator[bytes]:
    for line in lines:
        write(line)
        yield line


def _with_progress(lines: Iterable[bytes], file: BinaryIO, path: Path) -> Iterator[bytes]:
    """The lines of `file`, with a bar of how much of it has been read."""
    seldom = 0.5 if sys.stderr.isatty() else 30.0  # seconds
    size = path.stat().st_size
    with tqdm(desc=f"index of {path.name}", total=size, unit="B", unit_scale=True, mininterval=seldom) as bar:
        for number, line in enumerate(lines):
            if number % 10_000 == 0:
                bar.update(file.tell() - bar.n)
            yield line
        bar.update(size - bar.n)
