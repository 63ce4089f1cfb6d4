"""Writing of a shard: its cuts are read, encoded and written, and it appears when it is complete."""

import functools
import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from lhotse import MonoCut

from data_prep.audio.checks import Rejected
from data_prep.machinery.command_line import Refused
from data_prep.shar.encoding import Encoded, encoded
from speechllm_pl.core.errors import printable
from speechllm_pl.storage import shar_index as shar

BLOCK = 512
"""Bytes to which a tar fills up its files."""


class _Hashed:
    """File that is written from beginning to end, with its size and digest."""

    def __init__(self, path: Path):
        self.file = path.open("wb")
        self.digest = hashlib.sha256()
        self.bytes = 0

    def write(self, content: bytes | memoryview) -> int:
        self.digest.update(content)
        self.bytes += len(content)
        return self.file.write(content)

    def finish(self) -> list:
        """Flush onto the disk; return the number of bytes and the SHA-256."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return [self.bytes, self.digest.hexdigest()]

    def close(self) -> None:
        self.file.close()


def make_shard(
    folder: Path,
    shard: int,
    lines: Sequence[bytes],
    input_digest: str,
    codec: str,
    strict: bool,
    allow_commands: bool,
    done: Callable,
) -> None:
    """Write one shard under other names, rename its files, and record that it is complete.

    Args:
        allow_commands: as `encoded` has it.
        done: called after every cut.

    Raises:
        Refused: `strict`, and a cut cannot be used.
    """
    names = shar.cuts_name(shard), shar.audio_name(shard)
    partials = [folder / shar.INDEX / f".{name}" for name in names]
    rejected: list[str] = []
    characters: set[str] = set()
    rows: list[tuple] = []
    in_cuts, in_audio = (closing(_Hashed(path)) for path in partials)
    with in_cuts as cuts, in_audio as audio, tarfile.open(fileobj=cast(BinaryIO, audio), mode="w|") as tar:
        encode_line = functools.partial(encoded, codec=codec, allow_commands=allow_commands)
        for cut, content in _usable(lines, encode_line, strict, rejected, done):
            (supervision,) = cut.supervisions
            line = (json.dumps(cut.to_dict(), ensure_ascii=False) + "\n").encode()
            crc = zlib.crc32(line, zlib.crc32(content))
            place = _append(tar, cut, content, codec), len(content), cuts.bytes, len(line), crc
            cuts.write(line)
            text, language = supervision.text or "", supervision.language or "und"
            rows.append((place, cut.duration, language))
            characters.update(text)
        tar.close()
        files = dict(zip(names, (cuts.finish(), audio.finish()), strict=True))
    shar.withdraw(folder, shard)
    for partial, name in zip(partials, names, strict=True):
        partial.replace(folder / name)
    content = "".join(rejected).encode()
    shar.write_whole(quarantine(folder, shard), content)
    files[f"{shar.INDEX}/{quarantine(folder, shard).name}"] = [len(content), hashlib.sha256(content).hexdigest()]
    codes = sorted({language for *_, language in rows})
    entries = np.array([(*row[:2], codes.index(row[2])) for row in rows], shar.ENTRY)
    record = shar.Record(input_digest, len(rows), len(rejected), codes, "".join(sorted(characters)), files)
    shar.write_record(folder, shard, record, entries)


def _usable(
    lines: Sequence[bytes], encode_line: Callable[[bytes], Encoded], strict: bool, rejected: list[str], done: Callable
) -> Iterator[Encoded]:
    """Encode the cuts that can be used; the others become lines of `rejected`."""
    for line in lines:
        try:
            yield encode_line(line)
        except Rejected as error:
            found = _id_of(line)
            name = f"? ({line[:40].decode(errors='replace').strip()})" if found is None else str(found)
            if strict:
                raise Refused(f"--strict: cut {name}: {error}") from error
            rejected.append(f"{printable(name)}\t{printable(str(error))}\n")
        done()


def _id_of(line: bytes) -> object:
    try:
        return json.loads(line)["id"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def hash_of_id(line: bytes, place: int) -> int:
    """Hash of a line's id. Of a line without one, which will be quarantined, that of its place."""
    name = _id_of(line)
    return hash(name if isinstance(name, str) else (place,))


def _append(tar: tarfile.TarFile, cut: MonoCut, audio: bytes, codec: str) -> int:
    """Add the audio and after it, as Shar has it, its recording; return where the audio's bytes begin."""
    _add(tar, f"{cut.id}.{codec}", audio)
    start = tar.offset - -(-len(audio) // BLOCK) * BLOCK
    assert cut.recording is not None
    _add(tar, f"{cut.id}.json", (json.dumps(cut.recording.to_dict()) + "\n").encode())
    return start


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # no owner and no time: the same content gives the same bytes
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def quarantine(folder: Path, shard: int) -> Path:
    return folder / shar.INDEX / f"{shard:06d}.quarantine.tsv"
