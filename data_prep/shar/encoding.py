"""Encoding of a cut for a shard: the cut, and the bytes of its audio; others are rejected with the reason."""

import io
import json
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from lhotse import AudioSource, MonoCut, Recording, fastcopy
from lhotse.augmentation import torchaudio as lhotse_transforms
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

from data_prep.audio.checks import Rejected, check_samples
from speechllm_pl.core.audio.resampling import steady
from speechllm_pl.core.audio.sampling_rates import rate_of_files
from speechllm_pl.core.audio.sources import unsafe_source
from speechllm_pl.core.audio.units import SAMPLING_RATE
from speechllm_pl.core.cut_fields import wrong_field
from speechllm_pl.core.errors import in_one_line
from speechllm_pl.storage.containers import broken_promise, false_rate
from speechllm_pl.storage.folders import no_file

# Lhotse fills up to 0.5 s that a file lacks with the mirror image of its end: speech that nobody said.
os.environ.setdefault("LHOTSE_AUDIO_DURATION_MISMATCH_TOLERANCE", "0.1")  # seconds, left open by MP3 headers

# Whatever of Lhotse's resamples asks this for the filter, which can take gigabytes.
lhotse_transforms.get_or_create_resampler = steady(lhotse_transforms.get_or_create_resampler)

CODECS = {"flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}
"""Formats and subtypes of libsndfile."""


class Encoded(NamedTuple):
    """A cut on its way into a shard."""

    cut: MonoCut  # its recording is a placeholder
    audio: bytes


def encoded(line: bytes, codec: str, *, allow_commands: bool = False) -> Encoded:
    """Read a cut and its audio, and encode it.

    Args:
        allow_commands: also run shell commands and open addresses that the cut names instead of files.

    Raises:
        Rejected: with the reason, whatever it is that cannot be used.
    """
    try:
        fields = json.loads(line)
        if not allow_commands and (unsafe := unsafe_source(fields)):
            raise Rejected(f"source that is no file: {unsafe}")
        if wrong := wrong_field(fields):
            raise Rejected(f"wrong field: {wrong}")
        cut = deserialize_item(fields)
        if len(cut.supervisions) != 1:
            raise Rejected(f"not one supervision: {len(cut.supervisions)}")
        _check_name(cut.id, codec)
        _check_ends(cut)
        samples = _samples(cut)
    except Rejected:
        raise
    except Exception as error:  # whatever Lhotse and the decoders throw
        raise Rejected(f"unreadable: {in_one_line(error)}") from error
    check_samples(samples, SAMPLING_RATE)
    audio = _original(cut, codec, len(samples)) or encode(samples, codec)
    return Encoded(_with_placeholder(cut, len(samples)), audio)


def _check_name(name: str, codec: str) -> None:
    """Reject an id that Lhotse would not recognise in the tar, where it is a name and has a suffix."""
    path = Path(f"{name}.{codec}")
    if not name or str(path.parent / path.stem) != name:
        raise Rejected("id that a tar cannot have as a name")


def _check_ends(cut: Cut) -> None:
    """Reject a cut whose files lack what their headers promise, or are not as the manifest says."""
    recording = cut.recording if isinstance(cut, MonoCut) else None
    sources = recording.sources if recording else ()
    paths = (Path(str(source.source)) for source in sources if source.type == "file")
    for path in paths:
        if ".tar/" in str(path):
            continue
        if why := no_file(path):
            raise Rejected(f"missing: {path} {why}")
        if broken := broken_promise(path):
            raise Rejected(f"truncated: {broken}")
        if wrong := false_rate(str(path), rate_of_files(recording)):
            raise Rejected(f"false sampling rate: {wrong}")


def _samples(cut: Cut) -> np.ndarray:
    """Samples (N,) of a cut: float32, mono, 16 kHz."""
    if cut.sampling_rate != SAMPLING_RATE:
        cut = cut.resample(SAMPLING_RATE)
    audio = cut.load_audio()
    if audio is None:
        raise Rejected("no recording")
    return np.atleast_2d(audio).mean(axis=0)


def _original(cut: Cut, codec: str, samples: int) -> bytes | None:
    """Bytes of a recording that is, as a whole, what it would be encoded as: lossy coding is not done twice."""
    if not isinstance(cut, MonoCut) or cut.recording is None or cut.recording.transforms:
        return None
    (source, *others) = cut.recording.sources
    if others or source.type != "file":
        return None
    path = Path(str(source.source))
    found = soundfile.info(path)
    form = (found.format, found.subtype, found.samplerate, found.channels, found.frames)
    return path.read_bytes() if form == (*CODECS[codec], SAMPLING_RATE, 1, samples) else None


def _with_placeholder(cut: Cut, samples: int) -> MonoCut:
    """Make the cut of `samples` at 16 kHz whose audio stands in a shard."""
    source = AudioSource(type="shar", channels=[0], source="")
    seconds = samples / SAMPLING_RATE
    recording = Recording(cut.id, [source], SAMPLING_RATE, samples, seconds, channel_ids=[0])
    (supervision,) = cut.supervisions
    supervision = fastcopy(supervision, recording_id=cut.id, channel=0)
    custom = cut.custom if isinstance(cut, MonoCut) else None
    return MonoCut(cut.id, 0.0, seconds, 0, supervisions=[supervision], recording=recording, custom=custom)


# ---------------------------------------------------------------- encoding


def encode(samples: np.ndarray, codec: str) -> bytes:
    """Encode `samples` (N,) at 16 kHz as the bytes of a file, which depend on the samples alone.

    Samples beyond full scale are scaled down, not clipped.
    """
    file_format, subtype = CODECS[codec]
    file = io.BytesIO()
    peak = max(1.0, float(np.abs(samples).max()))
    soundfile.write(file, samples / peak, SAMPLING_RATE, format=file_format, subtype=subtype)
    return _with_serial(file.getvalue(), 1) if codec == "opus" else file.getvalue()


def _with_serial(ogg: bytes, serial: int) -> bytes:
    """Give an Ogg stream another serial number.

    libsndfile's is drawn at random, and the same speech shall give the same bytes.
    """
    pages, start = bytearray(ogg), 0
    while start < len(pages):
        segments = pages[start + 26]
        table = start + 27
        end = table + segments + sum(pages[table : table + segments])
        pages[start + 14 : start + 18] = serial.to_bytes(4, "little")
        pages[start + 22 : start + 26] = bytes(4)
        pages[start + 22 : start + 26] = _ogg_crc(bytes(pages[start:end])).to_bytes(4, "little")
        start = end
    return bytes(pages)


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_crc(page: bytes) -> int:
    """CRC32 of Ogg: that of zip with all bits in the other order, from 0 and not inverted (RFC 3533, section 6)."""
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
