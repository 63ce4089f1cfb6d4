"""Index of a manifest: positions of its lines, and the facts about their cuts that planning needs.

The index of a large manifest is kept in a folder beside it, from which processes of any machine map it into memory.
"""

import contextlib
import gzip
import hashlib
import itertools
import json
import logging
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from speechllm_pl.core.audio.sources import unsafe_source
from speechllm_pl.core.cut_fields import refuse_repeated
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.languages import UNKNOWN_LANGUAGE
from speechllm_pl.data.cut_line import Glance, cut_from_line, glance, told
from speechllm_pl.storage.machine_lock import machine_lock
from speechllm_pl.storage.progress import progress_bar

VERSION = 4
"""Version of the index's format."""

log = logging.getLogger(__name__)


class Index(NamedTuple):
    """Facts about N cuts that do not need deserialising."""

    starts: np.ndarray  # (N + 1,) uint64: cut i is in the bytes from starts[i] to starts[i + 1]
    durations: np.ndarray  # (N,) float32 seconds
    languages: np.ndarray  # (N,) uint8, of `language_codes`
    language_codes: tuple[str, ...]  # sorted
    characters: str  # each that occurs in a transcript, once
    unsafe: str  # the first line whose audio is no file, in words; empty if there is none


ARRAYS = Index._fields[:3]
"""Fields that the index keeps in files of their own."""


def index_lines(lines: Iterable[bytes], path: Path) -> Index:
    """Check every line, and record its position and the facts about its cut.

    Deserialising every line would take ten times as long: it is done for lines with fields not met before.

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
        seen = glance(line)
        if seen is None or seen.fields not in known:
            place = f"{path}, line {number}"
            cut = cut_from_line(line, place, allow_commands=True)
            unsafe = unsafe or told(unsafe_source(json.loads(line)), place)
            if seen is not None:
                known.add(seen.fields)
            (supervision,) = cut.supervisions
            language = supervision.language or UNKNOWN_LANGUAGE
            seen = Glance((), cut.id, cut.duration, supervision.text or "", language)
        starts.append(starts[-1] + len(line))
        ids.append(hash(seen.id))
        durations.append(seen.duration)
        languages.append(_numbered(seen.language, numbers, f"{path}, line {number}"))
        characters.update(seen.text)
    refuse_repeated(np.frombuffer(ids, np.int64), str(path))
    codes, languages = _sorted_codes(numbers, np.frombuffer(languages, np.uint8))
    return Index(
        np.frombuffer(starts, np.uint64),
        np.frombuffer(durations, np.float32),
        languages,
        codes,
        characters="".join(sorted(characters)),
        unsafe=unsafe,
    )


def _numbered(language: str, numbers: dict[str, int], place: str) -> int:
    if language not in numbers:
        if len(numbers) == 256:
            raise UserError(f"{place}: {language!r} is the 257th language, and there may be 256: are these languages?")
        numbers[language] = len(numbers)
    return numbers[language]


def _sorted_codes(numbers: dict[str, int], languages: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Sorted codes, and `(N,)` uint8 indices into them, independent of the order in which they were met."""
    codes = tuple(sorted(numbers))
    renumbered = np.zeros(256, np.uint8)
    renumbered[[numbers[code] for code in codes]] = range(len(codes))
    return codes, renumbered[languages]


# beside the manifest


def index_beside(path: Path) -> tuple[Path | None, Index]:
    """Index of a manifest, built if missing, and its folder; None if no folder can be written.

    One process of a machine builds it while the others wait; of several machines the first to finish counts. An index
    is never changed or deleted, since processes of any machine may have it mapped.

    Raises:
        UserError: a gzipped manifest, which must be unpacked there, has no room.
    """
    if (found := stored(path)) is not None:
        return found
    beside = _beside(path)
    with contextlib.ExitStack() as stack:
        try:
            beside.mkdir(exist_ok=True)
            name = stack.enter_context(machine_lock(beside / ".lock"))  # it stays: who waits has opened this very file
        except OSError as error:
            return None, _not_kept(path, error)
        return stored(path) or _built(path, name)


def _not_kept(path: Path, error: OSError) -> Index:
    if path.suffix == ".gz":
        raise UserError(
            f"manifest {path} is large, and there is no room for its index beside it ({error}): unpack it with gunzip"
        )
    log.warning("no index can be kept beside %s (%s): every process makes its own at every start", path, error)
    with path.open("rb") as file:
        return index_lines(_with_progress(file, file, path), path)


def _beside(path: Path) -> Path:
    """Folder of a manifest's indexes: one for each content that it has had since they were last deleted."""
    return path.with_name(f"{path.name}.index")


def _folders(path: Path, identity: list[int]) -> Iterator[Path]:
    """Folders in which the index of this content may be: the first, or the next if that one is damaged."""
    name = f"{VERSION}-{hashlib.sha256(repr(identity).encode()).hexdigest()[:12]}"
    return (_beside(path) / (f"{name}-{number}" if number else name) for number in itertools.count())


def stored(path: Path) -> tuple[Path, Index] | None:
    """Index of the manifest in its present state, and its folder; None if there is none."""
    identity = _identity(path.stat())
    there = itertools.takewhile(Path.exists, _folders(path, identity))
    return next((found for folder in there if (found := _mapped(folder, identity))), None)


def _mapped(folder: Path, identity: list[int]) -> tuple[Path, Index] | None:
    """`folder` and the index in it, mapped; None if it is not whole."""
    try:
        record = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if (record["version"], record["manifest"]) != (VERSION, identity):
            return None
        arrays = {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in ARRAYS}
        codes = tuple(record["languages"])
        return folder, Index(**arrays, language_codes=codes, characters=record["characters"], unsafe=record["unsafe"])
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def _built(path: Path, name: str) -> tuple[Path, Index]:
    """Build an index under this hidden name and rename it; return it, or the one of a machine that was faster."""
    beside = _beside(path)
    if any(beside.glob("[!.]*")):
        log.warning(
            "%s is not what its index was made of: indexing it anew; what %s has may be deleted when nothing reads it",
            path,
            beside,
        )
    partial = beside / f".{name}"
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
    """Rename a finished index; return it, or an existing one of that name; None if that one is damaged."""
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
    """Index an open manifest; the text of a gzipped one is written to the folder `partial`, to be read from there."""
    with contextlib.ExitStack() as stack:
        lines: Iterable[bytes] = file
        if path.suffix == ".gz":
            unpacked = stack.enter_context((partial / "lines.jsonl").open("wb"))
            lines = _copied(stack.enter_context(gzip.open(file)), unpacked.write)
        return index_lines(_with_progress(lines, file, path), path)


def _identity(status: os.stat_result) -> list[int]:
    """Size and time, in which another manifest of the same name differs."""
    return [status.st_size, status.st_mtime_ns]


def _copied(lines: Iterable[bytes], write: Callable[[bytes], Any]) -> Iterator[bytes]:
    for line in lines:
        write(line)
        yield line


def _with_progress(lines: Iterable[bytes], file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Iterate over the lines of `file` with a progress bar."""
    with progress_bar(f"index of {path.name}", path.stat().st_size, unit="B", unit_scale=True) as bar:
        for number, line in enumerate(lines):
            if number % 10_000 == 0:
                bar.update(file.tell() - bar.n)
            yield line
        bar.update(path.stat().st_size - bar.n)
