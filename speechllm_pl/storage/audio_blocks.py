"""Read a recording of any length in blocks: memory does not grow with its length."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from speechllm_pl.core.audio.channels import LEAST_SHARE
from speechllm_pl.core.audio.sampling_rates import implausible_rate
from speechllm_pl.core.audio.units import SAMPLING_RATE
from speechllm_pl.core.errors import UserError
from speechllm_pl.storage.progress import print_above

BLOCK_SECONDS = 10
MISSING_SECONDS = 0.1
"""Shortage that headers of MP3 leave open."""

READ_BYTES = 1 << 14
"""Largest number of bytes of raw PCM that are read at once: half a second at 16 kHz."""

HEADERS = b"RIFF", b"RF64", b"fLaC", b"OggS", b"ID3", b"FORM", b"caff", b".snd"
"""First bytes of files that are no raw PCM."""


def blocks(path: Path) -> Iterator[np.ndarray]:
    """Yield the samples of a file, `(n,)` float32, mono, at 16 kHz, resampled by soxr.

    Raises:
        UserError: it cannot be decoded, its sampling rate is implausible, or its samples are not finite; at its end
            also that samples were missing or its channels cancel each other.
    """
    with soundfile.SoundFile(path) as file:
        rate, read = file.samplerate, 0
        if wrong := implausible_rate(rate):
            raise UserError(f"{path}: {wrong}")
        resampler = soxr.ResampleStream(rate, SAMPLING_RATE, 1, dtype="float32")
        power = mean_power = 0.0
        # Not file.blocks: of a file that ends early it gives the last block again for all that the header promises.
        while len(block := file.read(BLOCK_SECONDS * rate, dtype="float32", always_2d=True)):  # (n, channel)
            if not np.isfinite(block).all():
                raise UserError(f"{path}: the recording has samples that are not finite: record or convert it again")
            mono = block.mean(1)
            read += len(block)
            power += float(np.square(block, dtype=np.float64).mean(1).sum())
            mean_power += float(np.square(mono, dtype=np.float64).sum())
            yield mono if rate == SAMPLING_RATE else resampler.resample_chunk(mono)
        if rate != SAMPLING_RATE:
            yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        if read < file.frames - MISSING_SECONDS * rate:
            raise UserError(f"{path}: {file.frames - read} samples of its end are missing: copy or record it again")
        if file.channels > 1 and mean_power < LEAST_SHARE * power:
            raise UserError(f"{path}: the channels cancel each other: keep one of them")


def raw_pcm(read: Callable[[int], bytes], hz: int) -> Iterator[np.ndarray]:
    """Yield raw PCM (mono, signed 16 bits, little-endian) as it comes: `(n,)` float32 samples at 16 kHz.

    A sample that the end cuts off is left out, with a warning.

    Args:
        read: returns at most so many bytes, as soon as there are some; none at the end.
        hz: sampling rate of the PCM.

    Raises:
        UserError: the rate is implausible, or a file with a header comes.
    """
    if wrong := implausible_rate(hz):
        raise UserError(f"--sample_rate: {wrong}")
    resampler = soxr.ResampleStream(hz, SAMPLING_RATE, 1, dtype="float32")
    rest, first = b"", True
    while content := read(READ_BYTES):
        if first and content.startswith(HEADERS):
            raise UserError("standard input is a file with a header, not raw PCM: give the file's name instead")
        first, content = False, rest + content
        whole = len(content) // 2 * 2
        rest = content[whole:]
        samples = np.frombuffer(content[:whole], "<i2").astype(np.float32) / 2**15
        yield samples if hz == SAMPLING_RATE else resampler.resample_chunk(samples)
    if hz != SAMPLING_RATE:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
    if rest:
        print_above("warning: standard input ends inside a sample: is it PCM of 16 bits (S16_LE)?", sys.stderr)
