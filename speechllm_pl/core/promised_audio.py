"""What the container of an audio file promises. libsndfile takes a WAV, AIFF or Ogg file that was cut off for a short
recording, so the promise is compared with the file here. (FLAC and MP3 fail in decoding, or have too few samples.)
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

UNKNOWN_LENGTH = 0xFFFFFF00
"""Lengths from here on mean that the file was written to a pipe, and the header never filled in."""

OGG_PAGE = 65_307
"""Bytes of the longest page of an Ogg file."""

SAMPLE_BYTES = {b"fl32": 4, b"FL32": 4, b"fl64": 8, b"FL64": 8, b"ulaw": 1, b"ULAW": 1, b"alaw": 1, b"ALAW": 1}
"""Of compressions of AIFC that do not store as many bits as the header says."""

PLAIN = {b"NONE", b"twos", b"sowt", b"raw ", b"in24", b"in32", *SAMPLE_BYTES}
"""Compressions of AIFC in which all samples take as many bytes."""


def broken_promise(path: Path) -> str:
    """What the end of a WAV, AIFF or Ogg file lacks, in words; empty for a whole file and for any other format.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
            missing = _missing_of_wav(file, size)
        elif head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
            missing = _missing_of_aiff(file, size, compressed=head[8:12] == b"AIFC")
        elif head[:4] == b"OggS":
            return "" if _ends_with_last_page(file, size) else "its last Ogg page is missing"
        else:
            return ""
    return f"{missing} bytes of its end are missing" if missing else ""


def _chunks(file: BinaryIO, order: str) -> Iterator[tuple[bytes, int]]:
    """Names and lengths; the file stands at a chunk's content, and where it is next does not matter."""
    while len(head := file.read(8)) == 8:
        name, length = struct.unpack(f"{order}4sI", head)
        start = file.tell()
        yield name, length
        file.seek(start + length + length % 2)


def _missing_of_wav(file: BinaryIO, size: int) -> int:
    long = 0  # what RF64, for files of more than 4 GiB, has instead of the length
    for name, length in _chunks(file, "<"):
        if name == b"ds64" and len(sizes := file.read(16)) == 16:
            long = struct.unpack("<QQ", sizes)[1]
        elif name == b"data":
            length = long if length == 0xFFFFFFFF and long else length
            unknown = length >= UNKNOWN_LENGTH and not long
            return 0 if unknown else max(0, file.tell() + length - size)
    return 0


def _missing_of_aiff(file: BinaryIO, size: int, compressed: bool) -> int:
    promised = present = 0  # bytes of samples
    for name, length in _chunks(file, ">"):
        if name == b"COMM":
            promised = _promised_of_aiff(file.read(22), compressed)
        elif name == b"SSND":
            if length >= UNKNOWN_LENGTH:
                return 0
            if missing := max(0, file.tell() + length - size):
                return missing
            present = max(0, length - 8)  # after an offset and a block size
    return max(0, promised - present)


def _promised_of_aiff(header: bytes, compressed: bool) -> int:
    """Bytes of samples; 0 where they cannot be told from the chunk COMM."""
    if len(header) < 18:
        return 0
    channels, frames, bits = struct.unpack(">hIh", header[:8])
    kind = header[18:22] if compressed else b"NONE"
    return channels * frames * SAMPLE_BYTES.get(kind, -(-bits // 8)) if kind in PLAIN else 0


def _ends_with_last_page(file: BinaryIO, size: int) -> bool:
    """Whether an Ogg file has the whole of the page that is marked as the last of its stream."""
    file.seek(max(0, size - OGG_PAGE), os.SEEK_SET)
    tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS\0")) :]
    if len(page) < 27 or not page[5] & 4:  # the flag "end of stream"
        return False
    lengths = page[27 : 27 + page[26]]
    return len(page) >= 27 + page[26] + sum(lengths)
