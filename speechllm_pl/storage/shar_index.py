"""Index beside the shards of a Shar folder, by which any utterance is found without opening a shard.

    train/cuts.000000.jsonl            a cut a line        } Lhotse Shar, as `CutSet.from_shar` reads it
    train/recording.000000.tar         its encoded audio   }
    train/cuts.quarantine.tsv          recordings that could not be read, and why
    train/cuts.index/plan.json         planned shards and their input
    train/cuts.index/000000.json       of a complete shard: input, counts, checksums
    train/cuts.index/000000.npy        of a complete shard: a row of `ENTRY` a cut
    train/cuts.index/joined/           of all verified shards: what a reader opens
    train/cuts.index/lock              held by the process that verifies and joins

Lhotse takes every file name up to its first dot for the name of a field: hence the names that begin with `cuts`.
"""

import contextlib
import fcntl
import filecmp
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechllm_pl.core.errors import UserError
from speechllm_pl.storage.whole_file import write_whole

VERSION = 1
"""Version of the index's format and of the shards' content."""

INDEX = "cuts.index"
QUARANTINE = "cuts.quarantine.tsv"
AGAIN = "run the same data_prep.shar command again"

PLACE = np.dtype(
    [
        ("audio_start", "<u8"),  # bytes into the tar
        ("audio_bytes", "<u4"),
        ("line_start", "<u4"),  # bytes into the file of cuts
        ("line_bytes", "<u4"),
        ("crc32", "<u4"),  # of the audio's bytes, then the line's
    ]
)
"""Location of a cut in its shard."""

ENTRY = np.dtype(
    [
        ("place", PLACE),
        ("duration", "<f4"),  # seconds
        ("language", "u1"),  # index into the shard's languages
    ]
)
"""Facts about a cut that need no access to its shard."""

COLUMNS = {"places": "place", "durations": "duration", "languages": "language"}
"""Files of the joined index, and the fields of `ENTRY` that they hold."""


def cuts_name(shard: int) -> str:
    return f"cuts.{shard:06d}.jsonl"


def audio_name(shard: int) -> str:
    return f"recording.{shard:06d}.tar"


@dataclass(frozen=True)
class ExportPlan:
    """Plan of an export, the same for all tasks that share the work."""

    cuts: int  # of the input
    settings: dict[str, int | str]
    inputs: list[str]  # of each shard the digest of its settings and input

    @property
    def shards(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Record:
    """Record of a complete shard."""

    input: str  # as planned
    cuts: int
    quarantined: int
    languages: list[str]  # ISO 639-1 codes, sorted
    characters: str  # each that occurs in a transcript, once
    files: dict[str, list]  # name → bytes, SHA-256


class Joined(NamedTuple):
    """Facts about all N cuts of a folder."""

    places: np.ndarray  # (N,) PLACE
    durations: np.ndarray  # (N,) float32 seconds
    languages: np.ndarray  # (N,) uint8 indices into language_codes
    shard_starts: np.ndarray  # (S + 1,) int64 rows at which shards begin, and N
    language_codes: tuple[str, ...]
    characters: str


# plan and records: each file appears under its name when it is complete


def write_plan(folder: Path, plan: ExportPlan) -> None:
    content = {"version": VERSION, **asdict(plan)}
    write_whole(folder / INDEX / "plan.json", (json.dumps(content, ensure_ascii=False) + "\n").encode())


def read_plan(folder: Path) -> ExportPlan | None:
    """Read the plan; None if there is none of this version."""
    content = _read_json(folder / INDEX / "plan.json")
    return None if content is None else ExportPlan(**content)


def write_record(folder: Path, shard: int, record: Record, entries: np.ndarray) -> None:
    """Write a shard's entries, then its record, with which the shard counts as complete."""
    path = folder / INDEX / f"{shard:06d}.json"
    partial = path.with_name(f".{shard:06d}.npy")
    np.save(partial, entries)
    partial.replace(path.with_suffix(".npy"))
    files = record.files | {f"{INDEX}/{shard:06d}.npy": _sums(path.with_suffix(".npy"))}
    content = {"version": VERSION, **asdict(record), "files": files}
    write_whole(path, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())


def read_record(folder: Path, shard: int) -> Record | None:
    """Read a shard's record; None if the shard is incomplete or of another version."""
    content = _read_json(folder / INDEX / f"{shard:06d}.json")
    return None if content is None else Record(**content)


def _read_json(path: Path) -> dict | None:
    try:
        content = json.loads(path.read_bytes())
        return content if content.pop("version") == VERSION else None
    except (OSError, ValueError, KeyError):
        return None


def withdraw(folder: Path, shard: int) -> None:
    """Mark a shard, and with it the folder, as incomplete before any of its files changes."""
    (folder / INDEX / f"{shard:06d}.json").unlink(missing_ok=True)
    shutil.rmtree(folder / INDEX / "joined", ignore_errors=True)


# verification


def unfinished(folder: Path, plan: ExportPlan) -> list[int]:
    """Numbers of shards that are missing or made from another input, without opening their files."""
    records = ((shard, read_record(folder, shard)) for shard in range(plan.shards))
    return [shard for shard, record in records if record is None or record.input != plan.inputs[shard]]


def faults(folder: Path, shard: int, expected_input: str) -> list[str]:
    """Read every byte of a shard and describe its faults, a line each."""
    record = read_record(folder, shard)
    if record is None:
        return [f"shard {shard:06d} is missing"]
    if record.input != expected_input:
        return [f"shard {shard:06d} was made from another input"]
    paths = {folder / name: sums for name, sums in record.files.items()}
    wrong = [f"{path} {fault}" for path, sums in paths.items() if (fault := _fault(path, sums))]
    return wrong or _miscounted(folder, shard, record)


def _fault(path: Path, sums: list) -> str:
    try:
        found = _sums(path)
    except OSError as error:
        return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
    if found[0] != sums[0]:
        return f"has {found[0]} bytes instead of {sums[0]}"
    return "" if found == sums else "has bytes that have changed since it was written"


def _miscounted(folder: Path, shard: int, record: Record) -> list[str]:
    lines = (folder / cuts_name(shard)).read_bytes().count(b"\n")
    rows = len(np.load(folder / INDEX / f"{shard:06d}.npy"))
    if lines == rows == record.cuts:
        return []
    return [f"shard {shard:06d} has {lines} cuts and {rows} index rows, but its record says {record.cuts}"]


def _sums(path: Path) -> list:
    """Size in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return [file.tell(), digest.hexdigest()]


# the joined index


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process verifies or joins the shards of `folder`, on this node or another one.

    Without an index there is nothing to lock.
    """
    if not (folder / INDEX).is_dir():
        yield
        return
    with (folder / INDEX / "lock").open("a") as file:  # it stays: who waits has opened this very file
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # a process forked meanwhile has the file open too


def join(folder: Path, shards: int) -> Joined:
    """Join the entries of all shards into one index, which appears in one step. Call it under `locked`.

    An equal index that exists stays, since readers have it mapped.

    Raises:
        UserError: no shard has a cut.
    """
    records = [record for shard in range(shards) if (record := read_record(folder, shard))]
    codes = sorted({code for record in records for code in record.languages})
    entries = np.concatenate([_entries(folder, shard, record, codes) for shard, record in enumerate(records)])
    if not len(entries):
        raise UserError(f"{folder} has no cut: all were quarantined, see {folder / QUARANTINE}")
    joined = folder / INDEX / "joined"
    partial = joined.with_name(f".joined.{os.uname().nodename}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name, field in COLUMNS.items():
        np.save(partial / f"{name}.npy", np.ascontiguousarray(entries[field]))
    np.save(partial / "shard_starts.npy", np.cumsum([0] + [record.cuts for record in records]))
    facts = {
        "version": VERSION,
        "cuts": len(entries),
        "hours": round(float(entries["duration"].sum(dtype=np.float64)) / 3600, 2),
        "language_codes": codes,
        "characters": "".join(sorted(set().union(*(record.characters for record in records)))),
    }
    (partial / "joined.json").write_text(json.dumps(facts, ensure_ascii=False) + "\n", encoding="utf-8")
    try:
        partial.rename(joined)
    except OSError:  # there is one
        if not _same_files(partial, joined):
            shutil.rmtree(joined, ignore_errors=True)
            partial.rename(joined)
    shutil.rmtree(partial, ignore_errors=True)
    return read_joined(folder)


def _same_files(partial: Path, joined: Path) -> bool:
    names = os.listdir(partial)
    return filecmp.cmpfiles(partial, joined, names, shallow=False)[0] == names


def _entries(folder: Path, shard: int, record: Record, codes: list[str]) -> np.ndarray:
    """Entries of a shard, `(n,)` ENTRY, with languages numbered as in `codes`."""
    entries = np.load(folder / INDEX / f"{shard:06d}.npy")
    numbers = np.array([codes.index(code) for code in record.languages], np.uint8)
    entries["language"] = numbers[entries["language"]] if len(entries) else 0
    return entries


def is_joined(folder: Path) -> bool:
    """Whether all shards have been verified and none has changed since."""
    return _read_json(folder / INDEX / "joined" / "joined.json") is not None


def read_joined(folder: Path) -> Joined:
    """Map the joined index into memory, which processes share.

    Raises:
        UserError: `folder` is no finished export, or files of it are missing; the message names them.
    """
    facts = _read_json(folder / INDEX / "joined" / "joined.json")
    if facts is None:
        raise UserError(_why_not_finished(folder))
    columns = {name: _mapped(folder, name) for name in COLUMNS}
    starts = _mapped(folder, "shard_starts")
    missing = sorted(set(_names(len(starts) - 1)) - set(os.listdir(folder)))
    if missing:
        raise UserError(f"{folder}: {_some(missing)} missing: copy the folder again, or {AGAIN}")
    return Joined(
        **columns,
        shard_starts=starts,
        language_codes=tuple(facts["language_codes"]),
        characters=facts["characters"],
    )


def _mapped(folder: Path, name: str) -> np.ndarray:
    path = folder / INDEX / "joined" / f"{name}.npy"
    try:
        return np.asarray(np.load(path, mmap_mode="r"))
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}): run data_prep.shar --verify on the folder") from error


def _names(shards: int) -> Iterator[str]:
    for shard in range(shards):
        yield cuts_name(shard)
        yield audio_name(shard)


def _why_not_finished(folder: Path) -> str:
    plan = read_plan(folder)
    if plan is None:
        return f"{folder} is no Shar folder of data_prep.shar: it has no {INDEX}/plan.json of version {VERSION}"
    left = unfinished(folder, plan)
    if not left:
        return f"{folder} has not been verified: run data_prep.shar --verify on it"
    some = _some([f"{shard:06d}" for shard in left])
    return f"{folder} is incomplete, {len(left)} of {plan.shards} shards ({some}) missing: {AGAIN}"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
