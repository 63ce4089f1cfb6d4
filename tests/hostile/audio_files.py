"""Whole audio files of every container, and where their parts begin."""

import io
import struct
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import soundfile

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "wav24": ("WAV", "PCM_24"),
    "wav-float": ("WAV", "FLOAT"),
    "wav-ulaw": ("WAV", "ULAW"),
    "wavex": ("WAVEX", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "aifc-float": ("AIFF", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "flac24": ("FLAC", "PCM_24"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "nist": ("NIST", "PCM_16"),
}
SUFFIXES = {"wav": ".wav", "rf64": ".wav", "aif": ".aiff", "flac": ".flac", "vorbis": ".ogg", "opus": ".opus"}
"""By how a format's name begins; others are called by it."""

BYTES = {"PCM_U8": 1, "PCM_S8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
"""Of a sample, where all have as many."""

FRAMES = 24_000


class Whole(NamedTuple):
    """An undamaged file."""

    format: str
    content: bytes
    rate: int  # Hz
    channels: int
    frames: int  # samples of a channel

    @property
    def suffix(self) -> str:
        return next((suffix for start, suffix in SUFFIXES.items() if self.format.startswith(start)), f".{self.format}")

    @property
    def units(self) -> int:
        """Bytes of samples where all have as many, or samples."""
        return self.frames * self.channels * BYTES.get(FORMATS[self.format][1], 1)


@lru_cache(64)
def whole(format: str, rate: int = 16_000, channels: int = 1, frames: int = FRAMES) -> Whole:
    """Noise in which a tone stands: so that codecs need many pages, and no channel is another's opposite."""
    rng = np.random.default_rng(rate + channels)
    tone = np.sin(2 * np.pi * 440 * np.arange(frames) / rate)[:, None]
    samples = 0.2 * tone + 0.1 * rng.standard_normal((frames, channels))
    return Whole(format, encoded(samples, format, rate), rate, channels, frames)


def encoded(samples: np.ndarray, format: str, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    container, subtype = FORMATS[format]
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


def boundaries(file: Whole) -> list[int]:
    """Places at which parts begin: chunks, metadata blocks, frames or pages; and what their headers consist of."""
    content = file.content
    if file.format.startswith(("wav", "rf64", "aif")):
        return _chunks(content, ">" if file.format.startswith("aif") else "<")
    if file.format.startswith("flac"):
        return _flac_parts(content)
    if file.format == "mp3":
        return _mp3_frames(content)
    if content.startswith(b"OggS"):
        return [place for place in range(len(content)) if content.startswith(b"OggS", place)]
    return [*range(0, min(len(content), 4096), 4)]  # its header


def _chunks(content: bytes, order: str) -> list[int]:
    places, place = [0, 4, 8], 12
    while place + 8 <= len(content):
        places += [place, place + 4, place + 8]
        place += 8 + struct.unpack(f"{order}I", content[place + 4 : place + 8])[0]
        place += place % 2
    return places


def _flac_parts(content: bytes) -> list[int]:
    places, place, last = [4], 4, False
    while not last:
        last, length = bool(content[place] & 0x80), int.from_bytes(content[place + 1 : place + 4], "big")
        place += 4 + length
        places.append(place)
    return places + [at for at in range(place, len(content)) if content.startswith((b"\xff\xf8", b"\xff\xf9"), at)]


def _mp3_frames(content: bytes) -> list[int]:
    return [at for at in range(len(content) - 1) if content[at] == 0xFF and content[at + 1] & 0xE6 == 0xE2]
