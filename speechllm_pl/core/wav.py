"""What a WAV header promises. libsndfile shortens a truncated file silently, so the promise is checked here."""

import os
import struct
from pathlib import Path

UNKNOWN_LENGTH = 0xFFFFFF00
"""Lengths from here on mean that the file was written to a pipe, and the header never filled in."""


def missing_wav_bytes(path: Path) -> int:
    """How many bytes of its data chunk a RIFF/WAVE file lacks; 0 for a whole file and for any other format.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            return 0
        while len(chunk := file.read(8)) == 8:
            name, length = chunk[:4], struct.unpack("<I", chunk[4:])[0]
            if name == b"data":
                return 0 if length >= UNKNOWN_LENGTH else max(0, file.tell() + length - size)
            file.seek(length + length % 2, os.SEEK_CUR)
    return 0
