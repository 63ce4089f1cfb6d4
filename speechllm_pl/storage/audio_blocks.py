"""Read a recording of any length in blocks: memory does not grow with its length."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from speechllm_pl.core.audio.channels import LEAST_SHARE
from speechllm_pl.core.audio.sampling_rates import implausible_rate
from speechllm_pl.core.audio.units import SAMPLING_RATE
from speechllm_pl.core.errors import UserError

BLOCK_SECONDS = 10
MISSING_SECONDS = 0.1
"""Shortage that headers of MP3 leave open."""


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
        for block in file.blocks(BLOCK_SECONDS * rate, dtype="float32", always_2d=True):  # (n, channel)
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
