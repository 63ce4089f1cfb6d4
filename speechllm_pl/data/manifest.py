"""A manifest of Lhotse cuts as a lazy sequence: twelve million cuts open within a second.

A large manifest is read once, to write an index beside it: where its lines are, the cuts' durations, languages and
lengths of transcript, and the transcripts' characters. Processes map the index into memory and share it. A cut is
deserialised when it is asked for.
"""

import contextlib
import errno
import fcntl
import gzip
import hashlib
import io
import itertools
import json
import logging
import math
import os
import shutil
import socket
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast, overload

import numpy as np
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

from speechllm_pl.core.audio.sources import REMEDY, runs_in_shell, unsafe_source
from speechllm_pl.core.cut_fields import LONGEST_SECONDS, agree, refuse_repeated, wrong_field
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.progress import progress_bar
from speechllm_pl.data.shared_memory import SharedMemory, shared

LARGE = 16 * 2**20
"""Bytes of a manifest from which its index is kept: some 30,000 cuts, or ten times as many when gzipped."""

VERSION = 4
"""Of the index's format."""

log = logging.getLogger(__name__)


class Index(NamedTuple):
    """What is known of N cuts without deserialising them."""

    starts: np.ndarray  # (N + 1,) uint64: cut i is in the bytes from starts[i] to starts[i + 1]
    durations: np.ndarray  # (N,) float32 seconds
    languages: np.ndarray  # (N,) uint8, of `language_codes`
    language_codes: tuple[str, ...]  # sorted
    characters: str  # each that occurs in a transcript, once
    unsafe: str  # the first line whose audio is no file, in words; empty if there is none


ARRAYS = Index._fields[:3]
"""What the index keeps in files of their own."""

UNKNOWN_LANGUAGE = "und"
"""Of a cut that names none: ISO 639's code for undetermined."""


class Manifest(Sequence[Cut]):
    """The cuts of a manifest, or some of them.

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
        """Every character of the whole manifest's transcripts, once."""
        return self._index.characters

    @property
    def unsafe(self) -> str:
        """What is wrong with the first line of the whole manifest whose audio is no file; empty if there is none."""
        return self._index.unsafe

    @property
    def language_codes(self) -> tuple[str, ...]:
        """Every language of the whole manifest, which `languages` are numbers of."""
        return self._index.language_codes

    def texts(self) -> Iterator[str]:
        """The transcripts, in order.

        Raises:
            UserError: a line is no cut any more; the message names file and line.
        """
        for position in range(len(self)):
            line, place = self._line(position)
            known = _glance(line)
            yield self._cut(line, place).supervisions[0].text or "" if known is None else known.text

    def select(self, rows: np.ndarray) -> "Manifest":
        """The cuts at these positions of the sequence, in their order."""
        rows = rows if self._rows is None else self._rows[rows]
        return Manifest(self.path, self._lines, self._index, rows, allow_commands=self.allow_commands)

    def __len__(self) -> int:
        return len(self.durations)

    @overload
    def __getitem__(self, index: int) -> Cut: ...

    @overload
    def __getitem__(self, index: slice) -> "Manifest": ...

    def __getitem__(self, index: int | slice) -> "Cut | Manifest":
        """
        Raises:
            UserError: the line is no cut, or its audio no file; the message names file and line.
        """
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        return self._cut(*self._line(range(len(self))[index]))

    def _cut(self, line: bytes, place: str) -> Cut:
        return cut_from_line(line, place, allow_commands=self.allow_commands)

    def _line(self, position: int) -> tuple[bytes, str]:
        """→ the line of a cut, and where it stands, for errors."""
        row = self._row(position)
        begin, end = map(int, self._index.starts[row : row + 2])
        line = self._read(begin, end) if isinstance(self._lines, Path) else self._lines[begin:end]
        return line, self.where(position)

    def where(self, position: int) -> str:
        """The file that has a cut, and where in it: nothing is read."""
        return f"{self.path}, line {self._row(position) + 1}"

    def _row(self, position: int) -> int:
        return position if self._rows is None else int(self._rows[position])

    def _of_rows(self, array: np.ndarray) -> np.ndarray:
        return array if self._rows is None else array[self._rows]

    def _read(self, begin: int, end: int) -> bytes:
        """Without moving the file's position, which forked processes share."""
        return os.pread(cast(BinaryIO, self._file).fileno(), end - begin, begin)

    def __reduce__(self) -> tuple:
        """Another process maps the index for itself, where it is kept."""
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
    """
    Raises:
        UserError: the manifest is not what it was any more.
    """
    if index is None:
        found = _stored(path)
        if found is None or found[0] != folder:
            raise UserError(f"manifest {path} has changed since it was opened, or its index is gone: start again")
        index = found[1]
    return Manifest(path, lines, index, rows, folder, allow_commands)


def read_manifest(path: Path, *, allow_commands: bool = False) -> Manifest:
    """The cuts of a JSONL manifest, plain or gzipped.

    Args:
        allow_commands: also take cuts whose audio comes from shell commands or over the network.

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
    """`(N,)` float32 seconds."""
    known = getattr(cuts, "durations", None)
    return np.array([cut.duration for cut in cuts], np.float32) if known is None else known


# lines to cuts


def cut_from_line(line: bytes, place: str, *, allow_commands: bool = False, shar: bool = False) -> Cut:
    """
    Args:
        allow_commands: take one whose audio is no file, too.
        shar: the line stands in a Shar folder, which has the audio.

    Raises:
        UserError: it is no cut that can be trained on, or its audio no file; `place` says where it stands.
    """
    wrong = ""
    try:
        fields = json.loads(line)
        if not allow_commands and (unsafe := unsafe_source(fields, shar=shar)):
            raise UserError(_told(unsafe, place))
        wrong = wrong_field(fields)
        cut = deserialize_item(fields)
        lasts = 0 < cut.duration < math.inf
    except UserError:
        raise
    except Exception as error:  # lhotse raises whatever the missing field leads to
        why = wrong and f", {wrong}"
        raise UserError(
            f"{place}: not a Lhotse cut{why}: mend or delete this line, or prepare the data again"
        ) from error
    if len(getattr(cut, "supervisions", ())) != 1:
        raise UserError(f"{place}: cut {getattr(cut, 'id', '?')} must have exactly one supervision")
    if not lasts:
        raise UserError(f"{place}: cut {cut.id} lasts {cut.duration} seconds: delete this line")
    if wrong:
        raise UserError(f"{place}: {wrong}: mend or delete this line")
    return cut


def index_lines(lines: Iterable[bytes], path: Path) -> Index:
    """Check every line and note where it is and what is known of its cut.

    Deserialising each would take ten times as long: it is done for lines whose fields have not been met before.

    Raises:
        UserError: a line is no cut, or has the id of another one, or there are more than 256 languages; the message
            names `path` and the line.
    """
    starts, durations, languages, ids = array("Q", [0]), array("f"), array("B"), array("q")
    characters: set[str] = set()
    numbers: dict[str, int] = {}  # of languages, as they are met
    known: set[tuple] = set()
    unsafe = ""
    for number, line in enumerate(lines, start=1):
        seen = _glance(line)
        if seen is None or seen.fields not in known:
            place = f"{path}, line {number}"
            cut = cut_from_line(line, place, allow_commands=True)
            unsafe = unsafe or _told(unsafe_source(json.loads(line)), place)
            if seen is not None:
                known.add(seen.fields)
            (supervision,) = cut.supervisions
            language = supervision.language or UNKNOWN_LANGUAGE
            seen = _Glance((), cut.id, cut.duration, supervision.text or "", language)
        starts.append(starts[-1] + len(line))
        ids.append(hash(seen.id))
        durations.append(seen.duration)
        languages.append(_numbered(seen.language, numbers, f"{path}, line {number}"))
        characters.update(seen.text)
    refuse_repeated(np.frombuffer(ids, np.int64), path)
    codes, languages = _sorted_codes(numbers, np.frombuffer(languages, np.uint8))
    return Index(
        np.frombuffer(starts, np.uint64),
        np.frombuffer(durations, np.float32),
        languages,
        codes,
        characters="".join(sorted(characters)),
        unsafe=unsafe,
    )


def _told(unsafe: str, place: str) -> str:
    return unsafe and f"{place}: {unsafe}: {REMEDY}"


def _numbered(language: str, numbers: dict[str, int], place: str) -> int:
    if language not in numbers:
        if len(numbers) == 256:
            raise UserError(f"{place}: {language!r} is the 257th language, and there may be 256: are these languages?")
        numbers[language] = len(numbers)
    return numbers[language]


def _sorted_codes(numbers: dict[str, int], languages: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """→ the codes in order, and `(N,)` uint8 numbers of them: independent of which was met first."""
    codes = tuple(sorted(numbers))
    renumbered = np.zeros(256, np.uint8)
    renumbered[[numbers[code] for code in codes]] = range(len(codes))
    return codes, renumbered[languages]


class _Glance(NamedTuple):
    """What is read of an ordinary line without deserialising its cut."""

    fields: tuple  # names and types of those that it has
    id: str
    duration: float
    text: str
    language: str


def _glance(line: bytes) -> _Glance | None:
    """Nothing, if it is no cut of the ordinary kind."""
    try:
        cut = json.loads(text := line.decode())
        (supervision,) = cut["supervisions"]
        recording = cut.get("recording") or {}
        kinds = _kinds_of_audio(recording)
        fields = cut["type"], _form(cut), _form(supervision), _form(recording), kinds
        hash(fields)  # a type that is a list has none
        halves = "\\ud" in text or "\\uD" in text  # perhaps of surrogate pairs
        if kinds is not None and not _holds_more(cut.get("custom") or {}) and not halves and _in_range(cut, recording):
            language = supervision.get("language") or UNKNOWN_LANGUAGE
            return _Glance(fields, cut["id"], cut["duration"], supervision.get("text") or "", language)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
        pass
    return None


def _form(fields: dict) -> tuple:
    """Where lines agree in it, all their values are of the types of the first, which was looked at."""
    return tuple(fields), tuple(map(type, fields.values()))


def _in_range(cut: dict, recording: dict) -> bool:
    """Whether the values are possible, if they are of the right types."""
    return (
        cut["id"] != ""
        and cut["start"] >= 0
        and 0 < cut["duration"] <= LONGEST_SECONDS
        and (not recording or (recording["id"] != "" and recording["num_samples"] > 0 and agree(recording)))
    )


def _kinds_of_audio(recording: dict) -> tuple | None:
    """Of each source its type and whether a shell would read its name, where lines that agree in it are equally safe.

    None where there is more to look at, as in transforms that bring recordings of their own.
    """
    if any(_holds_more(transform["kwargs"]) for transform in recording.get("transforms") or ()):
        return None
    return tuple((source["type"], runs_in_shell(source["source"])) for source in recording.get("sources", ()))


def _holds_more(fields: dict) -> bool:
    return any(isinstance(value, dict | list) for value in fields.values())


# indexes


def _kept_in_memory(path: Path) -> Manifest:
    content = path.read_bytes()
    lines = gzip.decompress(content) if path.suffix == ".gz" else content
    return Manifest(path, shared(lines), index_lines(io.BytesIO(lines), path))


def _kept_beside(path: Path) -> Manifest:
    """With its index in a folder beside the manifest, where it is made if it is not there.

    One process of a machine makes it while the others wait; of several machines the first to finish counts. None is
    ever changed or deleted, since processes of any machine may have it mapped.
    """
    found = _stored(path)
    if found is None:
        beside = _beside(path)
        try:
            beside.mkdir(exist_ok=True)
            lock = (beside / ".lock").open("w")  # it stays: who waits has opened this very file
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            return _not_kept(path, error)
        with lock:
            found = _stored(path) or _built(path)
    folder, index = found
    return Manifest(path, folder / "lines.jsonl" if path.suffix == ".gz" else path, index, index_folder=folder)


def _not_kept(path: Path, error: OSError) -> Manifest:
    if path.suffix == ".gz":
        raise UserError(
            f"manifest {path} is large, and there is no room for its index beside it ({error}): unpack it with gunzip"
        )
    log.warning("no index can be kept beside %s (%s): every process makes its own at every start", path, error)
    with path.open("rb") as file:
        return Manifest(path, path, index_lines(_with_progress(file, file, path), path))


def _beside(path: Path) -> Path:
    """The folder of the indexes of a manifest: one of each content that it has had since they were last deleted."""
    return path.with_name(f"{path.name}.index")


def _folders(path: Path, identity: list[int]) -> Iterator[Path]:
    """Where the index of this content may be: under the first name, or the next where that one's is damaged."""
    name = f"{VERSION}-{hashlib.sha256(repr(identity).encode()).hexdigest()[:12]}"
    return (_beside(path) / (f"{name}-{number}" if number else name) for number in itertools.count())


def _stored(path: Path) -> tuple[Path, Index] | None:
    """The index of the manifest as it is now, and its folder."""
    identity = _identity(path.stat())
    there = itertools.takewhile(Path.exists, _folders(path, identity))
    return next((found for folder in there if (found := _mapped(folder, identity))), None)


def _mapped(folder: Path, identity: list[int]) -> tuple[Path, Index] | None:
    """`folder`, and the index in it, if it is whole."""
    try:
        record = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if (record["version"], record["manifest"]) != (VERSION, identity):
            return None
        arrays = {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in ARRAYS}
        codes = tuple(record["languages"])
        return folder, Index(**arrays, language_codes=codes, characters=record["characters"], unsafe=record["unsafe"])
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def _built(path: Path) -> tuple[Path, Index]:
    """The index, written under another name and renamed, and its folder; or those of a machine that was faster."""
    beside = _beside(path)
    if any(beside.glob("[!.]*")):
        log.warning(
            "%s is not what its index was made of: indexing it anew; what %s has may be deleted when nothing reads it",
            path,
            beside,
        )
    partial = beside / f".{socket.gethostname()}"
    shutil.rmtree(partial, ignore_errors=True)  # what a process that was killed has left
    partial.mkdir()
    try:
        with path.open("rb") as file:
            identity = _identity(os.fstat(file.fileno()))
            _write_index(partial, _indexed_into(partial, path, file), identity)
        placed = (_placed(partial, folder, identity) for folder in _folders(path, identity))
        return next(filter(None, placed))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _placed(partial: Path, folder: Path, identity: list[int]) -> tuple[Path, Index] | None:
    """A finished index under its name; where there is one already, that one, if it is whole."""
    try:
        partial.rename(folder)
    except OSError:
        if not folder.exists():
            raise
    return _mapped(folder, identity)


def _write_index(folder: Path, index: Index, identity: list[int]) -> None:
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", getattr(index, name))
    hours = round(float(index.durations.sum(dtype=np.float64)) / 3600, 1)
    record = {"version": VERSION, "manifest": identity, "cuts": len(index.durations), "hours": hours}
    record |= {"languages": index.language_codes, "characters": index.characters, "unsafe": index.unsafe}
    (folder / "index.json").write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")


def _indexed_into(partial: Path, path: Path, file: BinaryIO) -> Index:
    """Index a manifest that is open; of a gzipped one the text goes into the folder `partial`, to be read in place."""
    with contextlib.ExitStack() as stack:
        lines: Iterable[bytes] = file
        if path.suffix == ".gz":
            unpacked = stack.enter_context((partial / "lines.jsonl").open("wb"))
            lines = _copied(stack.enter_context(gzip.open(file)), unpacked.write)
        return index_lines(_with_progress(lines, file, path), path)


def _identity(status: os.stat_result) -> list[int]:
    """Another manifest under the same name differs in this."""
    return [status.st_size, status.st_mtime_ns]


def _copied(lines: Iterable[bytes], write: Callable[[bytes], Any]) -> Iterator[bytes]:
    for line in lines:
        write(line)
        yield line


def _with_progress(lines: Iterable[bytes], file: BinaryIO, path: Path) -> Iterator[bytes]:
    """The lines of `file`, with a bar of how much of it has been read."""
    with progress_bar(f"index of {path.name}", path.stat().st_size, unit="B", unit_scale=True) as bar:
        for number, line in enumerate(lines):
            if number % 10_000 == 0:
                bar.update(file.tell() - bar.n)
            yield line
        bar.update(path.stat().st_size - bar.n)
