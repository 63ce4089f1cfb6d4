"""Checks that an audio file is as long as its container says, and has the sampling rate that a manifest says.

libsndfile takes a file that was cut off for a short recording, passes over pages of an Ogg file that are missing or
damaged, and guesses the length of an MP3 whose first frame does not tell it. So the stated length is compared
with the file here. (FLAC fails in decoding, as does an MP3 that was cut off.)
"""

import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import miniaudio
import soundfile
from miniaudio import ffi, lib

UNKNOWN_LENGTH = 0xFFFFFF00
"""Lengths from here on mean that the file was written to a pipe and its header never completed."""

SAMPLE_BYTES = {b"fl32": 4, b"FL32": 4, b"fl64": 8, b"FL64": 8, b"ulaw": 1, b"ULAW": 1, b"alaw": 1, b"ALAW": 1}
"""Bytes a sample of AIFC compressions that do not store as many bits as the header says."""

PLAIN = {b"NONE", b"twos", b"sowt", b"raw ", b"in24", b"in32", *SAMPLE_BYTES}
"""AIFC compressions in which every sample has the same number of bytes."""

MP3_FRAME = 1152
"""Largest number of samples in an MP3 frame; a guess of the length may be wrong by one frame."""

REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Each byte with its bits reversed: Ogg's CRC starts at the other end than zlib's."""


def broken_promise(path: Path) -> str:
    """Describe what a WAV, AIFF, Ogg, MP3, AU, CAF, W64 or NIST file lacks; empty for whole files and other formats.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = _after_id3(file.read(10))
        file.seek(start)
        head = file.read(16)
        file.seek(start)
        if head.startswith(b"OggS"):
            return _broken_pages(file)
        if path.suffix.lower() == ".mp3" or head[:1] == b"\xff":
            return _passed_over_in_mp3(path)
        missing = _missing(file, head, size)
    return f"{missing} bytes of its end are missing" if missing else ""


def false_rate(path: str, said: float) -> str:
    """Describe a file whose rate in Hz is not the manifest's, and the remedy; empty if they agree.

    Lhotse trusts the manifest, so speech would be fast or slow.
    """
    try:
        found = soundfile.info(path).samplerate
    except (soundfile.LibsndfileError, OSError):
        return ""  # whoever decodes it will say why it cannot be
    return "" if found == said else f"{path} has {found} Hz, but its manifest says {said} Hz: prepare it again"


def _after_id3(head: bytes) -> int:
    """Offset of the audio after an ID3 tag, which may precede any format and which libsndfile skips."""
    if not head.startswith(b"ID3") or len(head) < 10:
        return 0
    return 10 + sum((byte & 0x7F) << 7 * place for place, byte in enumerate(reversed(head[6:10])))


def _missing(file: BinaryIO, head: bytes, size: int) -> int:
    """Number of missing bytes of samples."""
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return _missing_of_wav(file, size)
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _missing_of_aiff(file, size, compressed=head[8:12] == b"AIFC")
    if head[:4] == b"caff":
        return _missing_of_data(file, size, ">4sq", header=8, align=1)
    if head.startswith(b"riff\x2e\x91\xcf\x11"):
        return _missing_of_data(file, size, "<16sq", header=40, align=8, own=24)
    if head[:4] in (b".snd", b"dns."):
        return _missing_of_au(file, size)
    if head.startswith(b"NIST_1A"):
        return _missing_of_nist(file, size)
    return 0


def _chunks(file: BinaryIO, layout: str, *, header: int, align: int, own: int = 0) -> Iterator[tuple[bytes, int]]:
    """Iterate over the names and lengths of chunks, with the file positioned at each chunk's content.

    Args:
        layout: `struct` format of a chunk's name and length.
        header: bytes before the first chunk.
        align: number of bytes at whose multiples chunks begin.
        own: bytes of the chunk's header that its length includes.
    """
    file.seek(header, os.SEEK_CUR)
    width = struct.calcsize(layout)
    while len(head := file.read(width)) == width:
        name, length = struct.unpack(layout, head)
        length -= own
        start = file.tell()
        yield name, length
        if length < 0:
            return
        file.seek(start + length + -length % align)


def _missing_of_wav(file: BinaryIO, size: int) -> int:
    long = 0  # what RF64, for files of more than 4 GiB, has instead of the length
    for name, length in _chunks(file, "<4sI", header=12, align=2):
        if name == b"ds64" and len(sizes := file.read(16)) == 16:
            long = struct.unpack("<QQ", sizes)[1]
        elif name == b"data":
            length = long if length == 0xFFFFFFFF and long else length
            unknown = length >= UNKNOWN_LENGTH and not long
            return 0 if unknown else max(0, file.tell() + length - size)
    return 0


def _missing_of_aiff(file: BinaryIO, size: int, compressed: bool) -> int:
    promised = present = 0  # bytes of samples
    for name, length in _chunks(file, ">4sI", header=12, align=2):
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
    """Bytes of samples stated by the chunk COMM; 0 if it does not tell."""
    if len(header) < 18:
        return 0
    channels, frames, bits = struct.unpack(">hIh", header[:8])
    kind = header[18:22] if compressed else b"NONE"
    return channels * frames * SAMPLE_BYTES.get(kind, -(-bits // 8)) if kind in PLAIN else 0


def _missing_of_data(file: BinaryIO, size: int, layout: str, **chunks: int) -> int:
    """Missing bytes of the chunk that begins with `data`, as CAF and W64 have it; arguments as of `_chunks`."""
    for name, length in _chunks(file, layout, **chunks):
        if name.startswith(b"data"):
            return max(0, file.tell() + length - size)  # less than 0 if the length is unknown
    return 0


def _missing_of_au(file: BinaryIO, size: int) -> int:
    start, head = file.tell(), file.read(12)
    if len(head) < 12:
        return 0
    begin, length = struct.unpack(">II" if head.startswith(b".snd") else "<II", head[4:])
    return 0 if length >= UNKNOWN_LENGTH else max(0, start + begin + length - size)


def _missing_of_nist(file: BinaryIO, size: int) -> int:
    start, header = file.tell(), file.read(1024)
    fields = dict(re.findall(rb"^(\w+) -i (\d{1,12})", header, re.MULTILINE))
    length = int(fields.get(b"channel_count", b"1"))
    for name in (b"sample_count", b"sample_n_bytes"):
        length *= int(fields.get(name, b"0"))
    begin = re.match(rb"NIST_1A\n\s*(\d{1,9})\n", header)
    return max(0, start + int(begin[1]) + length - size) if begin and length else 0


def _passed_over_in_mp3(path: Path) -> str:
    """Describe what libsndfile would skip of an MP3 of variable bit rate without a Xing frame, which has the length."""
    try:
        there, read = _mp3_samples(path), soundfile.info(path).frames
    except (miniaudio.DecodeError, soundfile.LibsndfileError):  # whoever reads it says so
        return ""
    if there <= read + MP3_FRAME:
        return ""
    return f"{there - read} of its {there} samples would be passed over, as its first frame tells no length"


def _mp3_samples(path: Path) -> int:
    """Number of samples, counted in the file itself: its content would be as large as the recording is long."""
    with ffi.new("ma_dr_mp3 *") as mp3:
        if not lib.ma_dr_mp3_init_file(mp3, os.fsencode(path), ffi.NULL):
            raise miniaudio.DecodeError
        try:
            return lib.ma_dr_mp3_get_pcm_frame_count(mp3)
        finally:
            lib.ma_dr_mp3_uninit(mp3)


def _broken_pages(file: BinaryIO) -> str:
    """Describe a missing or damaged page of an Ogg file, by the pages' checksums and numbers."""
    numbers: dict[int, int] = {}  # stream → number of its next page
    ended = False
    while head := file.read(27):
        if not head.startswith(b"OggS\0"[: len(head)]):
            return "" if ended else "what stands between its Ogg pages is no page"
        lengths = file.read(head[26]) if len(head) == 27 else b""
        content = file.read(sum(lengths))
        if len(head) < 27 or len(lengths) < head[26] or len(content) < sum(lengths):
            return "its last Ogg page is missing"
        if ended and head[5] & 2:  # the flag "beginning of stream"
            return "of several recordings one after another only the first would be read"
        stream, number, checksum = struct.unpack("<III", head[14:26])
        if _ogg_crc(head[:22] + bytes(4) + head[26:] + lengths + content) != checksum:
            return f"its Ogg page {number} is damaged"
        if numbers.get(stream, number) != number:
            return f"its Ogg page {numbers[stream]} is missing"
        numbers[stream] = number + 1
        ended = bool(head[5] & 4)  # the flag "end of stream"
    return "" if ended else "its last Ogg page is missing"


def _ogg_crc(page: bytes) -> int:
    found = zlib.crc32(page.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{found:032b}"[::-1], 2)
